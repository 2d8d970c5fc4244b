"""The tuned model on flash: wherever the power goes, the old model or the new one is loaded, and nothing else."""

from __future__ import annotations

import itertools
import os
from pathlib import Path

import pytest

from edge_agent import slots

FIRST, SECOND, THIRD = b"first model" * 3, b"the second" * 4, b"a third, longer model" * 3


def recorded(monkeypatch, root, action):
    """Do `action` and return what it did to the flash, step by step; an inode is a name's number."""
    steps, inode_of, descriptors = [], {}, {}
    real_open, real_fdopen, real_fsync = os.open, os.fdopen, os.fsync
    real_replace, real_unlink = Path.replace, Path.unlink

    def opened(path, flags, *rest, **named):
        descriptor = real_open(path, flags, *rest, **named)
        if flags & os.O_DIRECTORY:
            descriptors[descriptor] = "directory"
        else:
            descriptors[descriptor] = inode_of[Path(path).name] = len(steps)
            steps.append(("create", Path(path).name, len(steps)))
        return descriptor

    class File:
        def __init__(self, descriptor, mode):
            self.file, self.inode = real_fdopen(descriptor, mode, buffering=0), descriptors[descriptor]
            self.fileno, self.flush = self.file.fileno, self.file.flush

        def __enter__(self):
            return self

        def __exit__(self, *_):
            self.file.close()

        def write(self, data):
            self.file.write(data)
            steps.append(("write", self.inode, bytes(data)))

    def synced(descriptor):
        real_fsync(descriptor)
        steps.append(("sync", descriptors[descriptor]))

    def replaced(path, target):
        steps.append(("rename", path.name, Path(target).name, inode_of[path.name]))
        inode_of[Path(target).name] = inode_of[path.name]
        return real_replace(path, target)

    def unlinked(path, missing_ok=False):
        steps.append(("unlink", path.name))
        real_unlink(path, missing_ok=missing_ok)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", opened)
        patched.setattr(os, "fdopen", File)
        patched.setattr(os, "fsync", synced)
        patched.setattr(Path, "replace", replaced)
        patched.setattr(Path, "unlink", unlinked)
        action()
    return steps


def contents_after_cut(before, steps):
    """Every directory that a power cut after `steps` can leave, as {name: bytes}.

    Bytes that were not synced may be there up to any byte, or be zeros; names that were not synced may be there or not.
    """
    written, safe, entries, pending = {}, {}, dict(before), []
    for step in steps:
        match step:
            case ("create", name, inode):
                written[inode], safe[inode] = b"", False
                pending.append((name, None, inode))
            case ("write", inode, data):
                written[inode] += data
                safe[inode] = False
            case ("sync", "directory"):
                for operation in pending:
                    apply(entries, operation)
                pending = []
            case ("sync", inode):
                safe[inode] = True
            case ("rename", old, new, inode):
                pending.append((new, old, inode))
            case ("unlink", name):
                pending.append((None, name, None))
    for kept in itertools.product((True, False), repeat=len(pending)):
        names = dict(entries)
        for operation, there in zip(pending, kept, strict=True):
            if there:
                apply(names, operation)
        unsafe = sorted({inode for inode in names.values() if isinstance(inode, int) and not safe[inode]})
        variants = [
            [data[:cut] for cut in range(len(data) + 1)] + [bytes(len(data))] for data in map(written.get, unsafe)
        ]
        for chosen in itertools.product(*variants):
            content = written | dict(zip(unsafe, chosen, strict=True))
            yield {name: content[inode] if isinstance(inode, int) else inode for name, inode in names.items()}


def apply(names, operation):
    new, old, inode = operation
    if old is not None:
        names.pop(old, None)
    if new is not None:
        names[new] = inode


def loaded_from(root, content):
    directory = root / "tuned"
    directory.mkdir(parents=True, exist_ok=True)
    for path in directory.iterdir():
        path.unlink()
    for name, data in content.items():
        (directory / name).write_bytes(data)
    return slots.load(root)


def on_flash(root):
    return {path.name: path.read_bytes() for path in (root / "tuned").iterdir()} if (root / "tuned").exists() else {}


@pytest.mark.parametrize(
    ("earlier", "action", "expected"),
    [
        ([], lambda root: slots.store(root, FIRST), (None, FIRST)),
        ([FIRST], lambda root: slots.store(root, SECOND), (FIRST, SECOND)),
        ([FIRST, SECOND], lambda root: slots.store(root, THIRD), (SECOND, THIRD)),
        ([FIRST, SECOND], lambda root: slots.store(root, FIRST), (SECOND, FIRST)),
        ([FIRST, SECOND], lambda root: slots.store(root, SECOND), (SECOND, SECOND)),
        ([FIRST, SECOND], slots.roll_back, (SECOND, FIRST)),
        ([FIRST], slots.roll_back, (FIRST, None)),
    ],
)
def test_a_power_cut_anywhere_leaves_the_old_model_or_the_new(tmp_path, monkeypatch, earlier, action, expected):
    before, after = expected
    for model in earlier:
        slots.store(tmp_path / "live", model)
    there = on_flash(tmp_path / "live")
    assert slots.load(tmp_path / "live") == before
    steps = recorded(monkeypatch, tmp_path / "live", lambda: action(tmp_path / "live"))
    assert slots.load(tmp_path / "live") == after
    assert len(steps) >= 4
    seen, states = set(), 0
    for count in range(len(steps) + 1):
        for content in contents_after_cut(there, steps[:count]):
            states += 1
            found = loaded_from(tmp_path / "cut", content)
            assert found in (before, after), f"cut after step {count}: {steps[:count][-1:]}"
            seen.add(found)
    assert seen == {before, after}
    assert states > 10
    # And what a cut left does not stand in the way of the next store.
    assert loaded_from(tmp_path / "cut", there | {".x.new": b"torn"}) == before
    slots.store(tmp_path / "cut", THIRD + b"!")
    assert slots.load(tmp_path / "cut") == THIRD + b"!"
    assert len(on_flash(tmp_path / "cut")) <= 3


def test_a_model_that_the_card_has_spoiled_is_not_loaded_but_the_one_before_it(tmp_path):
    slots.store(tmp_path, FIRST)
    slots.store(tmp_path, SECOND)
    newest = next(path for path in (tmp_path / "tuned").iterdir() if path.read_bytes() == SECOND)
    for at in range(len(SECOND)):
        newest.write_bytes(SECOND[:at] + bytes([SECOND[at] ^ 1]) + SECOND[at + 1 :])
        assert slots.load(tmp_path) == FIRST
    newest.unlink()
    assert slots.load(tmp_path) == FIRST
    slots.store(tmp_path, THIRD)
    assert slots.load(tmp_path) == THIRD
    assert slots.roll_back(tmp_path) == FIRST


def test_a_damaged_list_of_models_is_no_model(tmp_path):
    slots.store(tmp_path, FIRST)
    listed = (tmp_path / "tuned" / "current").read_bytes()
    for damaged in (b"", listed[:-1], listed + b"x", bytes(32), b"\xff" * 64):
        (tmp_path / "tuned" / "current").write_bytes(damaged)
        assert slots.load(tmp_path) is None
    slots.store(tmp_path, SECOND)
    assert slots.load(tmp_path) == SECOND


def test_two_models_are_kept_and_the_third_one_back_is_gone(tmp_path):
    assert slots.load(tmp_path) is None
    assert slots.roll_back(tmp_path) is None
    for model in (FIRST, SECOND, THIRD):
        slots.store(tmp_path, model)
    assert len(on_flash(tmp_path)) == 3
    assert slots.roll_back(tmp_path) == SECOND
    assert slots.roll_back(tmp_path) is None
    assert slots.load(tmp_path) is None
    assert all(path.stat().st_mode & 0o777 == 0o600 for path in (tmp_path / "tuned").iterdir())
