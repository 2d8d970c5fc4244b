"""The shell, without a network: what it does when the disk is full, messages pour in, or a child ends."""

from __future__ import annotations

import errno
import queue
import threading
from types import SimpleNamespace

import msgspec
import pytest

from edge_agent import child, config, flash, service, slots, status, trainer
from edge_agent.effects import (
    Disconnected,
    Durable,
    FileFailed,
    FileState,
    Job,
    OpenFile,
    PatchFailed,
    Persist,
    Reading,
    SetLabel,
    StartTraining,
    StopTraining,
    Trained,
    TrainingFailed,
)
from edge_agent.flash import Model
from edge_agent.probation import Failed, Slots
from edge_agent.samples import create
from tests.edge_agent.stage import PLAN, manifest
from wire import envelope, keys
from wire.link import Arrived, LinkUp
from wire.messages import Traffic

FULL = OSError(errno.ENOSPC, "No space left on device", "state.a")


@pytest.fixture
def settings(tmp_path) -> config.Config:
    coordinator = keys.public_text(keys.generate())
    return config.load(config.make(tmp_path, "dev-1", "fleet-1", "mqtt://127.0.0.1:9", coordinator).path)


@pytest.fixture
def shell(settings) -> service.Service:
    return service.Service(settings)


def queued(shell: service.Service) -> list[object]:
    items = []
    while True:
        try:
            items.append(shell._inbox.get_nowait())
        except queue.Empty:
            return items


def refuse(error: OSError):
    def fail(*_args, **_named):
        raise error

    return fail


def test_the_connection_that_is_told_is_the_one_of_the_will(shell):
    topic, first = shell._next_will()
    for _attempt in range(2):
        _, newest = shell._next_will()
    shell._post(LinkUp())
    (told,) = queued(shell)
    before, last = (envelope.unseal(payload, topic, lambda *_: True) for payload in (first, newest))
    assert (told.connection, last.connection) == (last.connection, before.connection + 2)


def test_a_flood_of_messages_is_bounded_and_counted(shell):
    for _ in range(service.INBOX_MAX + 50):
        shell._post(Arrived("t", b"p", retain=False))
    assert shell._inbox.qsize() == service.INBOX_MAX
    assert shell._look().refused == {"too-many": 50}


def test_the_owners_topics_go_to_the_watching_side_and_never_into_the_machine(settings):
    text = '\n[source]\nkind = "mqtt"\ntopic = "farm/x"\nwindow = [2]\n'
    path = settings.device.key.with_suffix(".toml")
    path.write_text(path.read_text() + text)
    shell = service.Service(config.load(path))
    waiting = create(config.load(path).waiting_path, (2,), 5)
    waiting.append(bytes(8))
    shell._post(Arrived("farm/x", b"[1, 2]", retain=False))
    shell._post(Arrived("hedgerow/dev-1/label", b'{"window": 1, "label": 3}', retain=False))
    (item,) = queued(shell)
    shell._on_item(item)
    assert shell._look().num_examples == 0
    assert shell._reading().num_examples == 1
    assert shell._look().refused == {}
    assert shell._look().watching.labels == 1


def test_a_link_whose_thread_died_ends_the_agent_instead_of_silence(shell, monkeypatch):
    monkeypatch.setattr(shell._link, "is_alive", lambda: False)
    shell._next_reading_ms = 0
    with pytest.raises(service.ServiceError, match="starting again mends it"):
        shell._next()
    monkeypatch.setattr(shell._link, "is_alive", lambda: True)
    assert isinstance(shell._next(), Reading)


def test_a_due_tick_comes_before_what_waits_in_the_inbox(shell, monkeypatch):
    shell._post(Arrived("t", b"p", retain=False))
    shell._next_reading_ms = 10**9
    monkeypatch.setattr(type(shell._agent), "wake_at_ms", 0)
    assert type(shell._next()).__name__ == "Tick"


def test_a_full_disk_for_a_model_file_is_an_event_and_for_the_state_the_end(shell, monkeypatch):
    file = manifest().files[0]
    monkeypatch.setattr(shell._flash, "open_file", refuse(FULL))
    shell._perform(OpenFile(file))
    (failed,) = queued(shell)
    assert isinstance(failed, FileFailed)
    assert "no room for model.tflite" in failed.reason
    monkeypatch.setattr(shell._flash, "save", refuse(FULL))
    with pytest.raises(OSError, match="No space"):
        shell._perform(Persist(Durable(boot=1)))


def test_a_card_that_fails_is_not_believed(shell, monkeypatch):
    monkeypatch.setattr(shell._flash, "open_file", refuse(OSError(errno.EIO, "Input/output error")))
    with pytest.raises(OSError, match="Input/output"):
        shell._perform(OpenFile(manifest().files[0]))


def test_a_full_disk_is_one_sentence_with_what_to_do(settings, monkeypatch, capsys):
    monkeypatch.setattr(flash.Flash, "save", refuse(FULL))
    with pytest.raises(service.ServiceError) as caught:
        service.run(settings)
    assert "No space left on device; free some space on the disk of" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert "event=ready" not in capsys.readouterr().out


def test_a_key_that_others_may_read_and_two_damaged_slots_are_sentences(settings):
    settings.device.key.chmod(0o644)
    with pytest.raises(service.ServiceError, match="chmod 600"):
        service.run(settings)
    settings.device.key.chmod(0o600)
    for name in ("state.a", "state.b"):
        (settings.device.state / name).write_bytes(b"rubbish" * 9)
    with pytest.raises(service.ServiceError, match="both damaged"):
        service.run(settings)


def test_the_file_effects_are_answered_in_order(shell):
    for file in manifest().files:
        shell._perform(OpenFile(file))
    assert queued(shell) == [FileState(file.digest, ready=False, have=frozenset()) for file in manifest().files]


def test_a_label_reaches_the_store_and_none_is_no_harm(shell, settings):
    shell._perform(SetLabel(1, 3))
    create(settings.samples_path, (2,), 5).append(b"\0" * 8)
    assert shell._reading().num_examples == 0
    shell._perform(SetLabel(1, 3))
    reading = shell._reading()
    told = {**shell._host._asdict(), "local_minute": reading.local_minute}
    assert reading == Reading(num_examples=1, traffic=Traffic(), **told)


class FakeChild:
    killed = False

    def __init__(self, *_args, **_named) -> None:
        pass

    def give(self, _task: object) -> bool:
        return False

    def cpu_s(self) -> float:
        return 0.5

    def kill(self) -> None:
        self.killed = True


def training(shell: service.Service, monkeypatch, round_id: int = 1) -> tuple[FakeChild, list]:
    handled: list = []
    monkeypatch.setattr(shell, "_handle", handled.append)
    monkeypatch.setattr(child, "Child", FakeChild)
    shell._perform(StartTraining(Job("dev-1", round_id, 1, PLAN, manifest().files, 0)))
    return shell._trainings._trainings[-1].child, handled


def ended(fake: FakeChild, answer: trainer.Answer | None, reason: str = "") -> child.Ended:
    tree = msgspec.to_builtins(answer, builtin_types=(bytes,)) if answer else None
    return child.Ended(fake, tree, reason, 168_000, 1.25, 2.5)


def test_a_childs_answer_becomes_an_event_and_one_line(shell, monkeypatch, capsys):
    fake, handled = training(shell, monkeypatch)
    shell._on_item(ended(fake, trainer.Answer(payload=b"p", num_examples=9, held_out_correct=1, held_out_count=2)))
    assert handled == [Trained(1, b"p", 9, 1, 2)]
    first = capsys.readouterr().out.splitlines()[0]
    assert first == 'event=trainer round=1 ok=1 peak_rss_kb=168000 cpu_s=1.250 wall_s=2.500 reason=""'


def test_a_reason_and_an_end_without_one_are_failures(shell, monkeypatch):
    fake, handled = training(shell, monkeypatch)
    shell._on_item(ended(fake, trainer.Answer(reason="no luck")))
    fake, more = training(shell, monkeypatch, 2)
    shell._on_item(ended(fake, None, "killed"))
    assert handled + more == [TrainingFailed(1, "no luck"), TrainingFailed(2, "killed")]


def test_a_wrong_patch_is_told_apart_from_a_training_that_failed(shell, monkeypatch, capsys):
    fake, handled = training(shell, monkeypatch)
    shell._on_item(ended(fake, trainer.Answer(reason="it makes something else", patch_failed=True)))
    assert handled == [PatchFailed(1, "it makes something else")]
    assert "ok=0" in capsys.readouterr().out


def test_what_a_stopped_child_still_says_is_told_to_the_log_alone(shell, monkeypatch, capsys):
    fake, handled = training(shell, monkeypatch)
    shell._perform(StopTraining("deadline"))
    assert fake.killed
    shell._on_item(ended(fake, trainer.Answer(payload=b"p", num_examples=9)))
    assert handled == []
    assert 'ok=0 peak_rss_kb=168000 cpu_s=1.250 wall_s=2.500 reason="stopped: deadline"' in capsys.readouterr().out


def test_a_days_energy_is_that_of_the_training_that_runs_and_of_those_that_ended_or_were_stopped(settings, monkeypatch):
    limits = msgspec.structs.replace(settings.budget, day_joules_max=5.0, core_w=2.0)
    shell = service.Service(msgspec.structs.replace(settings, budget=limits))
    monkeypatch.setattr(shell._link, "is_alive", lambda: True)
    assert shell._reading().day_joules_left == 5.0
    fake, _ = training(shell, monkeypatch)
    assert shell._reading().day_joules_left == 4.0
    shell._perform(StopTraining("hot"))
    shell._on_item(ended(fake, None))
    assert isinstance(shell._next(), Reading)  # before anything else starts
    assert shell._reading().day_joules_left == 2.5  # 1.25 s at 2 W


def test_a_trainer_that_cannot_be_started_is_a_failure_of_the_round(shell, monkeypatch):
    monkeypatch.setattr(child, "Child", refuse(OSError(errno.ENOMEM, "Cannot allocate memory")))
    shell._perform(StartTraining(Job("dev-1", 4, 1, PLAN, manifest().files, 0)))
    (failed,) = queued(shell)
    assert failed == TrainingFailed(4, "the trainer cannot be started: Cannot allocate memory")


def test_a_quiet_loop_wakes_for_the_status_and_does_not_leave_it_to_the_next_reading(shell):
    now = shell._now_ms()
    shell._next_reading_ms, shell._next_status_ms = now + 60_000, now + 50
    stop = service.Stop("SIGTERM")
    threading.Timer(1.0, shell._inbox.put, [stop]).start()
    assert shell._next() is stop
    assert shell._next_status_ms > now + 50


def test_what_was_written_to_the_card_counts_the_child_that_watches_and_is_in_the_status(settings, monkeypatch):
    counts = {"self": 0, "77": 40_000}
    monkeypatch.setattr(service.host, "written_bytes", lambda pid="self": counts.get(pid))
    shell = service.Service(settings)
    counts["self"] = 5_000_000
    monkeypatch.setattr(shell._predictions, "_stream", SimpleNamespace(pid=77))
    look = shell._look()
    assert look.account.card.total == 5_040_000
    assert "written to the card: 5,040,000 bytes today, 5,040,000 this month, 5,040,000 in all" in status.as_lines(
        look, running=True
    )
    monkeypatch.setattr(shell._predictions, "_stream", None)
    counts["self"] += 140_000  # it has ended, and is counted with us
    assert shell._look().account.card.total == 5_140_000
    counts.clear()
    look = shell._look()
    assert look.account.card is None
    assert not any("card" in line for line in status.as_lines(look, running=True))


def test_the_status_is_written_when_it_says_something_new_and_only_then(shell, settings):
    shell._show(0)
    path = settings.device.state / "status.json"
    first = path.stat().st_ino
    shell._show(20_000)
    assert path.stat().st_ino == first
    shell._handle(Disconnected())
    shell._num_examples = 5
    shell._show(40_000)
    assert path.stat().st_ino != first
    found, running = status.read(settings.device.state)
    assert (found.num_examples, running) == (5, False)
    text = "\n".join(status.as_lines(found, running=running))
    assert "not running" in text
    assert "5 examples to learn from" in text
    path.write_bytes(b"{")
    with pytest.raises(status.StatusError, match="damaged"):
        status.read(settings.device.state)
    path.unlink()
    with pytest.raises(status.StatusError, match="edge-agent run"):
        status.read(settings.device.state)


def test_a_start_takes_a_try_before_anything_can_load_the_version_and_the_status_tells_of_it(shell, monkeypatch):
    old, new = (Model(number, "last-2", manifest().files) for number in (1, 2))
    slots._save(shell._flash.disk, Slots(new, old, tries_left=2))
    seen = []
    for starts in (shell._link, shell._predictions):
        monkeypatch.setattr(starts, "start", lambda *_: seen.append(slots.load(shell._flash.disk).tries_left))
    shell._boot()
    assert seen == [1, 1]
    assert shell._look().in_use == slots.Shown(2, 1, None, 1)
    for _ in range(2):
        shell._on_item(Failed("the child died"))
    assert slots.load(shell._flash.disk).now == old
    (line,) = [line for line in status.as_lines(shell._look(), running=True) if "version 2" in line]
    assert line == "version 2 is not taken again: it failed 3 times here, at last: the child died"


@pytest.mark.parametrize("connected", [True, False])
def test_time_that_the_link_is_up_lets_a_version_stay_and_no_other(shell, connected):
    slots._save(shell._flash.disk, Slots(Model(2, "last-2", manifest().files), tries_left=2))
    now = [0]
    shell._slots._now_ms = lambda: now[0]
    shell._link_reason = None if connected else "no route to host"
    for _ in range(20):
        now[0] += service.READING_MS
        shell._reading()
    assert slots.load(shell._flash.disk).tries_left == (None if connected else 2)


def test_an_agent_that_is_told_to_end_gives_the_try_back(shell, monkeypatch):
    slots._save(shell._flash.disk, Slots(Model(2, "last-2", manifest().files), tries_left=2))
    monkeypatch.setattr(shell, "_listen", lambda: None)
    monkeypatch.setattr(shell._link, "start", lambda: None)
    monkeypatch.setattr(shell._link, "stop", lambda: None)
    shell._inbox.put(service.Stop("SIGTERM"))
    shell.run()
    assert slots.load(shell._flash.disk).tries_left == 2
