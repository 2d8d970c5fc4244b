"""Any order of events, however mad: the agent never raises, never spins, never breaks the rules of its docstring."""

from __future__ import annotations

import msgspec
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.budget import Limits
from edge_agent.effects import (
    Base,
    Disconnected,
    DropPatch,
    Durable,
    Fetched,
    FetchFailed,
    FileFailed,
    FileState,
    PatchFailed,
    Persist,
    Publish,
    Reading,
    Received,
    StartTraining,
    Trained,
    TrainingFailed,
)
from tests.edge_agent.stage import DEVICE, FINE, FLEET, MODEL, PARAMS, PLAN, Stage, manifest, patch_to, said
from wire import chunks, topics
from wire.messages import Label, State

ROUNDS = st.integers(1, 4)
VERSIONS = st.integers(1, 3)
FILES = manifest().files
BASE = Base(1, b"b" * 32, FILES[0].digest)
OTHER_PLAN = msgspec.structs.replace(PLAN, seed=8)

STEPS = st.one_of(
    st.tuples(st.just("tick"), st.sampled_from([0, 0, 1, 900, 3000, 20_000, 700_000])),
    st.tuples(st.just("wake"), st.none()),
    st.tuples(st.just("connect"), st.integers(1, 5)),
    st.tuples(st.just("handle"), st.just(Disconnected())),
    st.tuples(st.just("handle"), st.sampled_from([FINE, Reading(), msgspec.structs.replace(FINE, temperature_c=90.0)])),
    st.tuples(st.just("handle"), st.builds(Trained, ROUNDS, st.binary(max_size=9), st.just(9), st.just(1), st.just(2))),
    st.tuples(st.just("handle"), st.builds(TrainingFailed, ROUNDS, st.text(max_size=300))),
    st.tuples(st.just("handle"), st.builds(PatchFailed, ROUNDS, st.text(max_size=300))),
    st.tuples(st.just("handle"), st.builds(FetchFailed, st.sampled_from([f.digest for f in FILES]), st.just("404"))),
    st.tuples(st.just("fetched"), st.tuples(st.integers(0, 1), st.integers(0, 2))),
    st.tuples(st.just("base"), st.sampled_from([None, BASE])),
    st.tuples(st.just("patch"), st.integers(0, 1).map(lambda index: patch_to(FILES[index], BASE))),
    st.tuples(
        st.just("handle"), st.builds(FileFailed, st.sampled_from([f.digest for f in FILES]), st.text(max_size=9))
    ),
    st.tuples(
        st.just("handle"),
        st.builds(
            FileState,
            st.sampled_from([f.digest for f in FILES]),
            st.booleans(),
            st.frozensets(st.integers(0, 0), max_size=1),
        ),
    ),
    st.tuples(st.just("handle"), st.builds(Received, st.text(max_size=40), st.binary(max_size=40))),
    st.tuples(
        st.just("handle"), st.builds(Received, st.just(topics.dn(FLEET, DEVICE, "offer")), st.binary(max_size=90))
    ),
    st.tuples(st.just("offer"), st.tuples(ROUNDS, VERSIONS, st.sampled_from([PLAN, OTHER_PLAN]), st.just(50_000))),
    st.tuples(st.just("state"), st.builds(State, st.integers(1, 3), st.booleans(), st.just(0), st.just(1))),
    st.tuples(st.just("plan"), st.sampled_from([PLAN, PLAN, OTHER_PLAN])),
    st.tuples(
        st.just("manifest"), st.builds(manifest, st.integers(0, 3), url=st.sampled_from(["", "https://m.example"]))
    ),
    st.tuples(st.just("label"), st.just(Label(1, 2))),
    st.tuples(st.just("chunk"), st.tuples(st.integers(0, 1), st.integers(0, 2))),
    st.tuples(
        st.just("receipt"), st.tuples(st.sampled_from(["accepted", "duplicate", "stale", "refused", "unknown"]), ROUNDS)
    ),
)


def do(stage: Stage, what: str, argument):
    match what:
        case "tick":
            return stage.tick(argument)
        case "wake":
            return stage.tick(max(0, (stage.agent.wake_at_ms or stage.now_ms) - stage.now_ms))
        case "connect":
            return stage.connect(argument)
        case "handle":
            return stage.handle(argument)
        case "offer":
            return stage.offer(*argument)
        case "receipt":
            return stage.receipt(stage.agent.durable.outbox, argument[0], argument[1])
        case "base":
            stage.base = argument
            return []
        case "chunk" | "fetched":
            file, data = FILES[argument[0]], (MODEL, PARAMS)[argument[0]]
            chunk = chunks.chunk_at(data, file, min(argument[1], len(file.chunk_digests) - 1))
            if what == "chunk":
                return stage.hear("chunk", chunk)
            return stage.handle(Fetched(chunk.digest, chunk.index, chunk.data))
        case _:
            return stage.hear(what, argument)


@settings(deadline=None, max_examples=150)
@given(st.lists(STEPS, max_size=60), st.sampled_from(["boot", "training", "sending"]))
def test_whatever_happens_in_whatever_order(steps, start):
    stage = Stage(limits=Limits(temperature_c_max=60.0))
    getattr(stage, start)()
    on_flash = stage.agent.durable
    updates: dict[int, set[bytes]] = {}
    dropped: set[bytes] = set()
    for what, argument in steps:
        followed = do(stage, what, argument)
        for effect in followed:
            match effect:
                case Persist(durable=durable):
                    check_step(on_flash, durable, what)
                    on_flash = durable
                case Publish(topic=topic, payload=payload) if topic.endswith("/update"):
                    assert payload == on_flash.outbox, "spoken of before it was on flash"
                    updates.setdefault(on_flash.outbox_round_id, set()).add(payload)
                case DropPatch(file=file):
                    dropped.add(file.digest)
                case StartTraining(job=job):
                    assert not on_flash.outbox, "trained while an update waits for its receipt"
                    assert job.round_id > on_flash.last_round_id, "a finished round was trained again"
                    assert job.residual_round_id == on_flash.residual_round_id
        for want in said(followed, "want"):
            assert not want.base_version or want.digest not in dropped, "a patch failed, and another was asked for"
        assert all(len(different) == 1 for different in updates.values()), "one round, two different updates"
        check_that_time_moves(stage)
    assert on_flash == stage.agent.durable, "the agent believes what is not on flash"


def check_step(before: Durable, after: Durable, what: str) -> None:
    assert after.last_round_id >= before.last_round_id
    assert after.model_version >= before.model_version
    if before.outbox and not after.outbox:
        assert what == "receipt", "only a receipt empties an outbox"
    if before.outbox and after.outbox:
        assert before.outbox == after.outbox, "an update was replaced before its receipt"
    if after.residual_round_id != before.residual_round_id:
        assert after.residual_round_id == before.outbox_round_id
        assert not after.outbox


def check_that_time_moves(stage: Stage) -> None:
    """Ticks at `wake_at_ms`, and nothing else: each moves it on or clears it."""
    for _ in range(3):
        wake = stage.agent.wake_at_ms
        if wake is None or wake > stage.now_ms:
            return
        stage.tick()
        after = stage.agent.wake_at_ms
        assert after is None or after > stage.now_ms, "a shell would spin"
