"""The flash code, ended before each of its disk operations: by power, by its process, by a card that fails.

On a simulated card (`firmware_sim.card`), once and once again: what a second process makes of what the first one left
in the page cache is where a durable file is lost. Not some of the operations: all of them.
"""

from __future__ import annotations

import contextlib
import errno
import random

import pytest

from edge_agent.effects import Durable
from edge_agent.flash import (
    Flash,
    Model,
    complete_file,
    file_name,
    is_whole,
    load_durable,
    load_model,
    read_patch,
    replace_file,
    residual_name,
)
from firmware_sim.card import Card
from wire import chunks
from wire.messages import Patch

ENDS = ("cut", "exit", "fail")
NEVER = 10**9
STATES = [Durable(boot=n, last_round_id=n, outbox=bytes([n]) * 1400, outbox_round_id=n) for n in range(9)]


class EndedError(Exception):
    """The process is no more."""


class Device:
    """A card, and processes that come and go on it."""

    def __init__(self, seed: int = 0) -> None:
        self.chance = random.Random(seed)
        self.card = Card(self._begin, lambda: self.chance.random() < 0.5)
        self._end = ""
        self._after = NEVER  # operations until then
        self._is_over = False

    def _begin(self, operation: str) -> None:
        self._is_over = self._is_over or (self._after == 0 and self._end != "fail")
        if self._is_over:
            raise EndedError
        self._after -= 1
        if self._after == -1:
            raise OSError(errno.ENOSPC if operation in ("grow", "name") else errno.EIO, "the card is full or ill")

    def run(self, work, after: int = NEVER, end: str = "exit") -> bool:
        """A process that does `work`, and ends before its operation number `after`; whether it came to its end."""
        self._after, self._end, self._is_over = after, end, False
        done = False
        with contextlib.suppress(EndedError, OSError):
            work(self.card)
            done = True
        cut, self._after, self._is_over = self._is_over and end == "cut", NEVER, False
        if cut:
            self.cut()
        return done

    def cut(self) -> None:
        """The power fails."""
        self.card.cut(self.chance, tear=self.chance.random() < 0.5)


def save(number):
    """Start, and save the next state."""

    def work(card):
        store = Flash(card)
        assert store.load() == load_durable(card.survivor())[1], "what is believed is not on the card"
        store.save(STATES[number])

    return work


def newest(card) -> int:
    return load_durable(card)[1].boot


@pytest.mark.parametrize("saved", range(4))
@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("next_end", ENDS)
def test_a_state_that_was_saved_is_never_taken_back_whatever_ends_the_next_two_processes(saved, end, next_end):
    for seed in range(12):
        for after in range(14):
            for next_after in range(14):
                device = Device(seed)
                for number in range(1, saved + 1):
                    assert device.run(save(number))
                least = saved
                for number, (operations, how) in enumerate(((after, end), (next_after, next_end)), saved + 1):
                    if device.run(save(number), operations, how):
                        least = number
                    assert newest(device.card.survivor()) >= least
                device.cut()
                assert newest(device.card) >= least, (
                    f"seed {seed}, {end} before {after}, {next_end} before {next_after}"
                )


MODEL = chunks.split("model.tflite", random.Random(1).randbytes(1300), 500)
CONTENT = {MODEL.digest: random.Random(1).randbytes(1300)}
PARAMS = []
for version in range(1, 4):
    data = random.Random(version + 10).randbytes(700)
    PARAMS.append(chunks.split("params.bin", data, 500))
    CONTENT[PARAMS[-1].digest] = data
VERSIONS = [Model(number, "last-1", (MODEL, params)) for number, params in enumerate(PARAMS, 1)]


def fetch(card, file):
    """Get what is missing and seal it, as the agent does: once more when the seal finds that something is wrong."""
    store = Flash(card)
    store.load()
    state = store.open_file(file)
    for _ in range(2):
        for index in range(len(file.chunk_digests)):
            if not state.ready and index not in state.have:
                store.write_chunk(file, index, chunks.chunk_at(CONTENT[file.digest], file, index).data)
        if not state.ready:
            state = store.seal_file(file)
    assert state.ready


def patch_to(version):
    old, new = PARAMS[version - 2], PARAMS[version - 1]
    return Patch(new.digest, version - 1, old.digest, b"what to add" * 90)


def by_patch(card, version):
    """Get a version by a patch, as agent and child do."""
    store, file = Flash(card), PARAMS[version - 1]
    store.load()
    store.save(STATES[version])
    state = store.open_file(file)
    if not state.ready:
        if not state.patched:
            assert store.write_patch(file, patch_to(version)).patched
        complete_file(card, file, CONTENT[file.digest])
    assert store.open_file(file).ready


def note(card, version):
    store = Flash(card)
    store.load()
    store.note_model(VERSIONS[version - 1])
    store.forget(frozenset(file.digest for file in VERSIONS[version - 1].files), frozenset())


def first_version(device):
    for file in (MODEL, PARAMS[0]):
        assert device.run(lambda card, file=file: fetch(card, file))
    assert device.run(save(1))
    assert device.run(lambda card: note(card, 1))


def noted_is_whole(card) -> bool:
    model = load_model(card)
    return model is not None and all(is_whole(card, file.digest) for file in model.files)


WAYS = {
    "in chunks": lambda card: fetch(card, PARAMS[1]),
    "by a patch": lambda card: by_patch(card, 2),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("end", ENDS)
def test_the_noted_version_is_whole_on_the_card_wherever_its_successor_was_cut_short(way, end):
    """Somebody always can predict. Cut short while it comes, then while it is noted; in the end it comes."""
    for seed in range(6):
        for after in range(30):
            for noted_after in (*range(12), 99):
                device = Device(seed)
                first_version(device)
                device.run(WAYS[way], after, end)
                device.run(WAYS[way])
                device.run(lambda card: note(card, 2), noted_after, end)
                assert noted_is_whole(device.card.survivor()), f"{end} before {after} and {noted_after}"
                device.cut()
                assert noted_is_whole(device.card), f"{end} before {after} and {noted_after}"
                device.run(WAYS[way])
                device.run(lambda card: note(card, 2))
                assert load_model(device.card.survivor()) == VERSIONS[1]
                assert noted_is_whole(device.card.survivor())


@pytest.mark.parametrize("end", ENDS)
def test_a_sealed_file_is_whole_on_the_card_wherever_sealing_was_cut_short_before(end):
    for seed in range(6):
        for after in range(20):
            device = Device(seed)
            device.run(lambda card: fetch(card, MODEL), after, end)
            device.run(lambda card: fetch(card, MODEL))
            assert is_whole(device.card, MODEL.digest)
            for directory in ("", "files"):
                device.card.sync_directory(directory)  # names are for who notes the version to sync
            assert is_whole(device.card.survivor(), MODEL.digest), f"{end} before {after}"


@pytest.mark.parametrize("end", ENDS)
def test_a_patch_that_failed_is_remembered_until_the_file_is_whole(end):
    """Also when the chunks turn out to be wrong at the seal, or its end comes in the middle."""
    file = PARAMS[1]
    for seed in range(6):
        for after in range(12):
            for rotten in (False, True):
                device = Device(seed)
                first_version(device)

                def drop(card):
                    store = Flash(card)
                    store.write_patch(file, patch_to(2))
                    store.drop_patch(file)

                def seal(card, rotten=rotten):
                    store = Flash(card)
                    store.open_file(file)
                    for index in range(2):
                        store.write_chunk(file, index, chunks.chunk_at(CONTENT[file.digest], file, index).data)
                    if rotten:
                        card.rot(f"{file_name(file.digest)}.part", 3)
                    store.seal_file(file)

                assert device.run(drop)
                device.run(seal, after, end)
                for _ in range(2):
                    state = Flash(device.card).open_file(file)
                    assert state.ready or state.patch_failed, f"{end} before {after}, rotten: {rotten}"
                    device.cut()


@pytest.mark.parametrize("end", ENDS)
def test_a_dropped_patch_is_there_or_has_failed_and_a_written_one_is_whole_or_absent(end):
    file = PARAMS[1]
    for seed in range(6):
        for after in range(14):
            device = Device(seed)
            first_version(device)
            written = device.run(lambda card: Flash(card).write_patch(file, patch_to(2)), after, end)
            device.cut()
            assert read_patch(device.card, file.digest) in ((patch_to(2),) if written else (patch_to(2), None))
            state = Flash(device.card).open_file(file)
            assert not state.patch_failed, "nobody has tried it"
            device.run(lambda card: Flash(card).write_patch(file, patch_to(2)))
            dropped = device.run(lambda card: Flash(card).drop_patch(file), after, end)
            device.cut()
            state = Flash(device.card).open_file(file)
            assert state.patch_failed or (not dropped and state.patched)


@pytest.mark.parametrize("end", ENDS)
def test_a_file_that_is_replaced_holds_the_old_or_the_new_and_the_new_once_that_was_said(end):
    name = residual_name(1)
    for seed in range(12):
        for after in range(8):
            device = Device(seed)
            device.run(save(1))
            device.run(lambda card: replace_file(card, name, b"o" * 1300))
            done = device.run(lambda card: replace_file(card, name, b"n" * 900), after, end)
            device.run(Flash)
            found = {device.card.survivor().read(name)}
            device.cut()
            found.add(device.card.read(name))
            assert found <= ({b"n" * 900} if done else {b"o" * 1300, b"n" * 900})
