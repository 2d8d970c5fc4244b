"""The flash of a swarm's device: bytes are shared, what is there is its own, and nothing wrong is believed."""

from __future__ import annotations

import msgspec
import pytest

from broker.plans import plan_of
from broker.registry import first_version
from edge_agent.effects import Base, Durable, Job
from engine.codec import patch as patches
from engine.frame import Frame, frame_of
from engine.models.scheme import dump_params, load_params
from firmware_sim.swarm.flash import Depot, Flash
from firmware_sim.swarm.site import MODEL, TRAIN, Access, prepare
from wire import chunks
from wire.messages import MODEL_FILE, PARAMS_FILE, File, Manifest, Patch


@pytest.fixture(scope="module")
def frame() -> Frame:
    return frame_of(MODEL.read_bytes(), TRAIN)


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return first_version(MODEL.read_bytes(), "wrist", TRAIN, None).manifest


def file_of(manifest: Manifest, name: str) -> File:
    return next(file for file in manifest.files if file.name == name)


def fetch(flash: Flash, file: File, content: bytes) -> None:
    assert not flash.open_file(file).ready
    for index in range(len(file.chunk_digests)):
        flash.write_chunk(file, index, chunks.chunk_at(content, file, index).data)
    assert flash.seal_file(file).ready


def with_model(depot: Depot, manifest: Manifest) -> Flash:
    flash = Flash(depot)
    fetch(flash, file_of(manifest, MODEL_FILE), MODEL.read_bytes())
    return flash


def job_of(manifest: Manifest, version: int, params: File, plan: object) -> Job:
    return Job("device-1", 1, version, plan, (file_of(manifest, MODEL_FILE), params), 0)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, frame: Frame) -> object:
    site = prepare(tmp_path_factory.mktemp("swarm"), "swarm-1", 2, Access("mqtt://127.0.0.1:1883"))
    return plan_of(site.config, manifest, frame)


def moved(frame: Frame) -> tuple[bytes, bytes]:
    """Parameters one unit away from the base file's, and the patch that leads there."""
    own = frame.own()
    params = load_params(frame.suffix, own).copy()
    place = int((abs(params.astype(int)) < 100).argmax())
    params[place] += int(frame.unit[place])
    after = dump_params(frame.suffix, params)
    return after, patches.make(frame, own, after)


def test_the_durable_state_is_read_back_from_bytes() -> None:
    flash = Flash(Depot())
    assert flash.load() == Durable()
    durable = Durable(boot=2, outbox=b"sealed", outbox_round_id=7)
    flash.save(durable)
    assert isinstance(flash.durable, bytes)
    assert flash.load() == durable


def test_what_one_device_fetched_is_not_there_for_another(manifest: Manifest) -> None:
    depot = Depot()
    with_model(depot, manifest)
    state = Flash(depot).open_file(file_of(manifest, MODEL_FILE))
    assert (state.ready, state.have) == (False, frozenset())


def test_chunks_that_make_another_file_are_fetched_again(manifest: Manifest) -> None:
    file = msgspec.structs.replace(file_of(manifest, MODEL_FILE), digest=bytes(32))
    flash = Flash(Depot())
    flash.write_chunk(file, 0, MODEL.read_bytes())
    state = flash.seal_file(file)
    assert (state.ready, state.have) == (False, frozenset())


def test_a_patch_makes_the_parameters_and_the_next_one_starts_from_them(
    manifest: Manifest, frame: Frame, plan: object
) -> None:
    flash = with_model(Depot(), manifest)
    after, patch = moved(frame)
    params = chunks.split(PARAMS_FILE, after)
    own = chunks.split(PARAMS_FILE, frame.own())
    assert flash.open_file(params).base is None
    assert flash.write_patch(params, Patch(params.digest, 1, own.digest, patch)).patched
    assert flash.prepare(job_of(manifest, 2, params, plan))
    assert flash.open_file(params).ready
    other = chunks.split(PARAMS_FILE, b"later")
    assert flash.open_file(other).base == Base(2, params.digest, file_of(manifest, MODEL_FILE).digest)


def test_a_wrong_patch_makes_nothing_and_none_is_asked_for_again(
    manifest: Manifest, frame: Frame, plan: object
) -> None:
    flash = with_model(Depot(), manifest)
    after, _ = moved(frame)
    params = chunks.split(PARAMS_FILE, after)
    own = chunks.split(PARAMS_FILE, frame.own())
    flash.write_patch(params, Patch(params.digest, 1, own.digest, patches.make(frame, frame.own(), frame.own())))
    assert not flash.prepare(job_of(manifest, 2, params, plan))
    flash.write_patch(params, None)
    state = flash.open_file(params)
    assert (state.ready, state.patched, state.patch_failed) == (False, False, True)


def test_what_is_forgotten_is_gone_and_the_noted_version_stays(manifest: Manifest, frame: Frame, plan: object) -> None:
    flash = with_model(Depot(), manifest)
    params = chunks.split(PARAMS_FILE, frame.own())
    fetch(flash, params, frame.own())
    assert flash.prepare(job_of(manifest, 1, params, plan))
    stray = chunks.split(PARAMS_FILE, b"stray")
    fetch(flash, stray, b"stray")
    flash.forget(frozenset())
    assert not flash.open_file(stray).ready
    assert flash.open_file(params).ready
    assert flash.open_file(file_of(manifest, MODEL_FILE)).ready
