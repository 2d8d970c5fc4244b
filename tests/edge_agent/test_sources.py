"""Every source: whatever comes in, windows of the right shape come out, or a count under a reason."""

from __future__ import annotations

import io
import itertools
import os
import sys
import threading
import types
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_agent.sources import camera, contents, directory, i2c, microphone, mqtt, replay, serial
from edge_agent.sources.settings import Settings, SettingsError, SourceError
from edge_agent.sources.source import open_source
from edge_agent.sources.windower import Windower

SAMPLES = np.arange(30, dtype=np.float32).reshape(10, 3) / 4


def npy(array: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def take(pieces, count: int) -> list[np.ndarray]:
    return list(itertools.islice(pieces, count))


# The windower


def windows_of(pieces, shape=(4, 3), hop=4) -> tuple[list[np.ndarray], Counter]:
    dropped: Counter = Counter()
    windower = Windower(shape, hop, lambda reason: dropped.update([reason]))
    return [window for piece in pieces for window in windower.take(np.asarray(piece, np.float32))], dropped


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(1, 7), min_size=1, max_size=8), st.integers(1, 4))
def test_a_stream_is_cut_the_same_however_it_comes_in_pieces(lengths, hop):
    stream = np.arange(sum(lengths) * 3, dtype=np.float32).reshape(-1, 3)
    bounds = list(itertools.accumulate(lengths, initial=0))
    pieces = [stream[a:b] for a, b in itertools.pairwise(bounds) if b - a != 4]  # 4 samples are a window of their own
    whole = np.concatenate([*pieces, np.empty((0, 3), np.float32)])
    found, dropped = windows_of([piece.reshape(-1) if len(piece) % 4 else piece for piece in pieces], hop=hop)
    expected = [whole[at : at + 4] for at in range(0, len(whole) - 3, hop)]
    assert len(found) == len(expected)
    assert all((a == b).all() for a, b in zip(found, expected, strict=True))
    assert not dropped


def test_whole_windows_come_alone_in_a_batch_and_flat():
    batch = np.arange(24, dtype=np.float32).reshape(2, 4, 3)
    for pieces in ([batch], list(batch), [batch.reshape(-1)]):
        found, dropped = windows_of(pieces)
        assert np.array_equal(found, batch)
        assert not dropped


def test_what_is_not_finite_is_dropped_and_a_hole_begins_a_window_anew():
    bad = SAMPLES.copy()
    bad[1, 2] = np.nan
    found, dropped = windows_of([SAMPLES[:3], bad[1:2], SAMPLES[3:7].reshape(2, 2, 3)[0], SAMPLES[5:7]])
    assert len(found) == 1
    assert (found[0] == SAMPLES[3:7]).all()
    assert dropped == {"not finite": 1}
    found, dropped = windows_of([np.stack([SAMPLES[:4], np.full((4, 3), np.inf)])])
    assert (len(found), dropped) == (1, {"not finite": 1})


def test_no_window_spans_a_hole():
    found, dropped = windows_of([SAMPLES[:3], np.empty(0), SAMPLES[3:8]])
    assert np.array_equal(found, [SAMPLES[3:7]])
    assert not dropped


@pytest.mark.parametrize("piece", [np.zeros((2, 2)), np.zeros(7), np.zeros((1, 1, 1, 1)), np.zeros((5, 4, 2))])
def test_another_shape_is_dropped(piece):
    assert windows_of([piece]) == ([], {"another shape": 1})


# Files


def read(path: Path) -> tuple[list[np.ndarray], Counter]:
    dropped: Counter = Counter()
    return list(contents.pieces_of(path, lambda reason: dropped.update([reason]))), dropped


def test_the_three_forms_of_a_file_bring_the_same_numbers(tmp_path):
    np.save(tmp_path / "a.npy", SAMPLES)
    np.savez(tmp_path / "a.npz", x=SAMPLES, y=np.zeros(10))
    (tmp_path / "a.csv").write_text("x, y; z\n" + "\n".join(";".join(map(str, row)) for row in SAMPLES) + "\n\n")
    for suffix in contents.SUFFIXES:
        (piece,), dropped = read(tmp_path / f"a{suffix}")
        assert piece.dtype == np.float32
        assert (piece == SAMPLES).all()
        assert not dropped


def test_a_long_csv_comes_in_pieces_and_what_is_no_number_in_it_is_counted(tmp_path):
    rows = "1,2\n" * (contents.ROWS + 5) + "1,two\n3\n4\n" + "9" * 40_000 + "\n"
    (tmp_path / "a.csv").write_text(rows)
    pieces, dropped = read(tmp_path / "a.csv")
    assert [piece.shape for piece in pieces[:3]] == [(contents.ROWS, 2), (5, 2), (2, 1)]
    assert len(pieces) == 3
    assert dropped == {"not numbers": 1, "too long": 1}


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("a.npy", b"", "unreadable"),
        ("a.npy", npy(np.array([object()], object)), "unreadable"),
        ("a.npy", npy(np.array(["text"])), "unreadable"),
        ("a.npy", npy(np.zeros(0)), "unreadable"),
        ("a.npz", b"PK rubbish", "unreadable"),
        ("a.npy", b"\x93NUMPY\x01\x00\x76\x00{'descr': '<f4', 'fortran_order': False, 'shape': (99999999999999,), }",
         "unreadable"),
        ("a.npy", bytes(contents.FILE_BYTES_MAX + 1), "too large"),
    ],
)  # fmt: skip
def test_a_file_that_brings_nothing_is_counted(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    assert read(tmp_path / name) == ([], {reason: 1})


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(contents, "FILE_BYTES_MAX", 10_000)
    np.savez_compressed(tmp_path / "a.npz", x=np.zeros(100_000, np.float32))
    assert (tmp_path / "a.npz").stat().st_size < 10_000
    assert read(tmp_path / "a.npz") == ([], {"unreadable": 1})


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([".npy", ".npz", ".csv"]), st.lists(st.tuples(st.integers(0, 400), st.integers(0, 255))))
def test_damaged_files_are_numbers_or_a_count_and_nothing_else(tmp_path_factory, suffix, damage):
    path = tmp_path_factory.mktemp("damaged") / f"a{suffix}"
    buffer = io.BytesIO()
    np.savez(buffer, x=SAMPLES)
    data = bytearray({".npy": npy(SAMPLES), ".npz": buffer.getvalue(), ".csv": b"1,2,3\n4,5,6\n" * 20}[suffix])
    for at, value in damage:
        data[at % len(data)] = value
    path.write_bytes(data)
    pieces, dropped = read(path)
    assert all(piece.dtype == np.float32 for piece in pieces)
    assert pieces or dropped


# A directory


def a_directory(tmp_path, dropped: Counter | None = None) -> directory.Directory:
    drop = (dropped if dropped is not None else Counter()).update
    (tmp_path / "in").mkdir(exist_ok=True)
    return directory.Directory(tmp_path / "in", tmp_path / "seen", 0.05, lambda reason: drop([reason]))


def firsts(source: directory.Directory, count: int) -> list[int]:
    """The first number of each of so many files, with a hole behind each but the last."""
    pieces = take(source.pieces(), 2 * count - 1)
    assert [piece.size for piece in pieces[1::2]] == [0] * (count - 1)
    return [int(piece[0, 0]) for piece in pieces[::2]]


def test_each_file_is_read_once_in_the_order_of_time_over_restarts(tmp_path):
    source, dropped = a_directory(tmp_path), Counter()
    for at, name in enumerate(["b.npy", "a.npy", "notes.txt", ".hidden.npy"]):
        np.save(tmp_path / "in" / "x", np.full((2, 2), at, np.float32))
        (tmp_path / "in" / "x.npy").rename(tmp_path / "in" / name)
        os.utime(tmp_path / "in" / name, (at, at))
    assert firsts(source, 2) == [0, 1]
    source.close()
    np.save(tmp_path / "in" / "c.npy", np.full((2, 2), 7, np.float32))
    again = a_directory(tmp_path, dropped)
    assert firsts(again, 1) == [7]
    np.save(tmp_path / "in" / "a.npy", np.full((2, 2), 8, np.float32))  # written anew
    assert firsts(a_directory(tmp_path), 1) == [8]
    assert not dropped


def test_a_file_is_not_read_while_it_grows(tmp_path, monkeypatch):
    source = a_directory(tmp_path)
    target, sizes = tmp_path / "in" / "a.csv", iter([1, 2, 3])
    target.write_text("1,2\n")

    def grow(_seconds):
        for _ in itertools.islice(sizes, 1):
            target.write_text(target.read_text() + "3,4\n")

    monkeypatch.setattr(directory.time, "sleep", grow)
    (piece,) = take(source.pieces(), 1)
    assert len(piece) == 4


def test_the_memory_of_names_is_bounded_by_those_that_lie_there(tmp_path, monkeypatch):
    monkeypatch.setattr(directory, "NAMES_MAX", 3)
    source = a_directory(tmp_path)
    for at in range(5):
        np.save(tmp_path / "in" / f"{at}.npy", np.full((2, 2), at, np.float32))
        os.utime(tmp_path / "in" / f"{at}.npy", (at, at))
    assert firsts(source, 3) == [2, 3, 4]
    assert len((tmp_path / "seen").read_bytes().splitlines()) == 3
    for at in range(5, 12):
        np.save(tmp_path / "in" / f"{at}.npy", np.full((2, 2), at, np.float32))
        assert firsts(a_directory(tmp_path), 1) == [at]
    assert len((tmp_path / "seen").read_bytes().splitlines()) <= 6
    whole = (tmp_path / "seen").read_bytes()
    (tmp_path / "seen").write_bytes(whole[:-5])  # the last line is torn: its file is read again
    assert firsts(a_directory(tmp_path), 1) == [11]


def test_a_directory_that_is_gone_ends_the_source(tmp_path):
    source = directory.Directory(tmp_path / "none", tmp_path / "seen", 0.05, lambda _reason: None)
    with pytest.raises(OSError, match="No such file"):
        take(source.pieces(), 1)


# Replay


def test_a_replay_keeps_its_rate_and_ends(tmp_path, monkeypatch):
    slept = []
    monkeypatch.setattr(replay.time, "monotonic", lambda: float(len(slept)))
    monkeypatch.setattr(replay.time, "sleep", slept.append)
    np.save(tmp_path / "a.npy", np.zeros((3, 4, 3), np.float32))
    items = list(replay.Replay(tmp_path / "a.npy", 1.0, lambda _reason: None).pieces())
    assert [item.shape for item in items] == [(4, 3)] * 3
    assert slept == [1.0, 1.0, 1.0]
    (tmp_path / "a.csv").write_text("1,2\n3,4\n")
    items = list(replay.Replay(tmp_path / "a.csv", 0.0, lambda _reason: None).pieces())
    assert np.array_equal(items, [[1, 2], [3, 4]])
    np.save(tmp_path / "b.npy", np.float32(5))
    assert list(replay.Replay(tmp_path / "b.npy", 0.0, lambda _reason: None).pieces()) == [np.array([5.0])]
    with pytest.raises(SourceError, match=r"cannot replay .*none.npz: it is no file that ends in .npy"):
        replay.Replay(tmp_path / "none.npz", 0.0, lambda _reason: None)


# MQTT


@pytest.mark.parametrize(
    ("form", "payload", "expected"),
    [
        ("json", b"[1, 2.5, -3e2]", [1, 2.5, -300]),
        ("json", b"[[1, 2], [3, 4]]", [[1, 2], [3, 4]]),
        ("float32", np.array([1, 2], "<f4").tobytes(), [1, 2]),
        ("json", b"[1, 1e300]", [1, np.inf]),  # which the windower drops
    ],
)
def test_numbers_arrive_on_a_topic(form, payload, expected):
    (piece,) = mqtt.Topic(iter([payload]), form, pytest.fail).pieces()
    assert piece.dtype == np.float32
    assert np.array_equal(piece, np.array(expected, np.float32))


@pytest.mark.parametrize(
    ("form", "payload"),
    [
        ("json", b""),
        ("json", b"[]"),
        ("json", b"[[1, 2], [3]]"),
        ("json", b"[true]"),
        ("json", b'["1"]'),
        ("json", b'{"x": 1}'),
        ("json", b"[1, 1e999]"),
        ("json", b"[1, 2"),
        ("json", b"\xff\xfe"),
        ("json", b"[" * 100_000),
        ("float32", b""),
        ("float32", b"abc"),
    ],
)
def test_what_is_no_numbers_is_counted_and_the_next_is_read(form, payload):
    dropped: list[str] = []
    good = b"[1]" if form == "json" else np.array([1], "<f4").tobytes()
    assert len(list(mqtt.Topic(iter([payload, good]), form, dropped.append).pieces())) == 1
    assert dropped == ["not numbers"]


# Serial


def test_a_serial_line_brings_a_sample_a_line_and_ends_when_the_cable_is_out(tmp_path):
    master, slave = os.openpty()
    dropped: list[str] = []
    source = serial.SerialLine(os.ttyname(slave), 115200, dropped.append)
    os.close(slave)
    os.write(master, b"boot v1\r\n1, 2; 3\r\n\n4 5\t6\n7,8")
    pieces = source.pieces()
    assert [piece.tolist() for piece in take(pieces, 3)] == [[], [1, 2, 3], [4, 5, 6]]
    os.write(master, b",9\n")
    assert np.array_equal(next(pieces), [7, 8, 9])
    assert dropped == ["not numbers"]
    writer = threading.Thread(target=lambda: os.write(master, b"1" * (contents.LINE_BYTES_MAX + 5000) + b"\n2\n"))
    writer.start()
    assert np.array_equal(next(pieces), [2])
    assert dropped == ["not numbers", "too long"]
    writer.join()
    os.close(master)
    with pytest.raises((SourceError, OSError)):
        list(pieces)
    source.close()
    source.close()


def test_what_is_no_serial_line_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="file is no serial line"):
        serial.SerialLine(tmp_path / "file", 9600, pytest.fail)
    with pytest.raises(OSError, match="No such file"):
        serial.SerialLine(tmp_path / "none", 9600, pytest.fail)


# I2C


class Bus:
    """What smbus2 would give."""

    made: list[Bus] = []  # noqa: RUF012
    answers: list[Any] = []  # noqa: RUF012

    def __init__(self, number: int) -> None:
        self.number, self.written = number, []
        Bus.made.append(self)

    def write_byte_data(self, address: int, register: int, value: int) -> None:
        self.written.append((address, register, value))

    def read_i2c_block_data(self, address: int, register: int, count: int) -> list[int]:
        answer = Bus.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        assert (count, len(answer)) == (6, 6)
        self.read = (address, register)
        return list(answer)

    def close(self) -> None:
        self.written.append("closed")


@pytest.fixture
def bus(monkeypatch):
    monkeypatch.setitem(sys.modules, "smbus2", types.SimpleNamespace(SMBus=Bus))
    monkeypatch.setattr(Bus, "made", [])
    return Bus


@pytest.mark.parametrize(("chip", "order", "one_g"), [("adxl345", "<i2", 256), ("mpu6050", ">i2", 8192)])
def test_an_accelerometer_is_woken_and_read_in_metres_per_second_squared(bus, monkeypatch, chip, order, one_g):
    answers = [np.array([one_g, -one_g, 0], order).tobytes(), OSError(121, "Remote I/O error")] * 2
    monkeypatch.setattr(Bus, "answers", answers)
    dropped: list[str] = []
    source = i2c.Accelerometer(1, chip, 0.001, dropped.append)
    first, hole, second = take(source.pieces(), 3)
    assert np.allclose([first, second], [[9.80665, -9.80665, 0]] * 2)
    assert hole.size == 0
    assert dropped == ["not read"]
    source.close()
    assert [made.written for made in bus.made] == [
        [(i2c.CHIPS[chip].address, *pair) for pair in i2c.CHIPS[chip].wake] + ["closed"]
    ]


def test_a_chip_that_answers_no_more_ends_the_source(bus, monkeypatch):
    monkeypatch.setattr(i2c, "FAILURES_MAX", 2)
    monkeypatch.setattr(Bus, "answers", [OSError(121, "Remote I/O error")] * 3)
    with pytest.raises(SourceError, match="adxl345 on I2C bus 1 answers no more: Remote I/O error"):
        list(i2c.Accelerometer(1, "adxl345", 0.001, lambda _reason: None).pieces())


def test_without_the_library_one_line_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "smbus2", None)
    with pytest.raises(SourceError, match=r"pip install 'hedgerow\[i2c\]'"):
        i2c.Accelerometer(1, "adxl345", 0.1, pytest.fail)


# Sound and pictures


class PortAudioError(Exception):
    pass


class Sound:
    """What sounddevice would give: one block of silence, one of full scale after an overrun, and then nothing more."""

    def __init__(self, **wishes: object) -> None:
        if wishes["device"] == "none":
            raise ValueError("No input device matching 'none'")
        assert (wishes["samplerate"], wishes["channels"], wishes["dtype"]) == (16_000, 1, "int16")
        self.blocks = [(0, False), (-(1 << 15), True)] * 1

    def start(self) -> None:
        pass

    def read(self, count: int) -> tuple[bytes, bool]:
        if not self.blocks:
            raise PortAudioError("Device unavailable")
        value, has_overrun = self.blocks.pop(0)
        return np.full(count, value, "<i2").tobytes(), has_overrun

    def close(self) -> None:
        pass


@pytest.fixture
def sound(monkeypatch):
    library = types.SimpleNamespace(RawInputStream=Sound, PortAudioError=PortAudioError)
    monkeypatch.setitem(sys.modules, "sounddevice", library)


def test_sound_comes_as_samples_and_an_overrun_is_a_hole(sound):
    dropped: list[str] = []
    pieces = microphone.Microphone("", 16_000, dropped.append).pieces()
    silent, hole, loud = take(pieces, 3)
    assert (silent.shape, silent.dtype, hole.size) == ((1600,), np.float32, 0)
    assert (set(silent.tolist()), set(loud.tolist()), dropped) == ({0.0}, {-1.0}, ["overrun"])
    with pytest.raises(SourceError, match="the microphone is silent: Device unavailable"):
        next(pieces)
    with pytest.raises(SourceError, match="cannot listen to microphone 'none': No input device"):
        microphone.Microphone("none", 16_000, pytest.fail)


class Capture:
    """What cv2.VideoCapture would be: blue pictures, of which some do not come."""

    def __init__(self, name: object) -> None:
        self.name, self.comes = name, [True, False, True, *[False] * 20]

    def isOpened(self) -> bool:  # noqa: N802
        return self.name == 0

    def read(self) -> tuple[bool, np.ndarray]:
        return self.comes.pop(0), np.tile(np.array([255, 0, 51], np.uint8), (48, 64, 1))

    def release(self) -> None:
        pass


@pytest.fixture
def pictures(monkeypatch):
    """OpenCV, of which only what the source uses is there, and works on one colour."""
    library = types.SimpleNamespace(
        VideoCapture=Capture,
        INTER_AREA=3,
        COLOR_BGR2GRAY=6,
        COLOR_BGR2RGB=4,
        resize=lambda picture, size, interpolation: picture[: size[1], : size[0]],
        cvtColor=lambda picture, code: picture[..., ::-1] if code == 4 else picture[..., 0],
    )
    monkeypatch.setitem(sys.modules, "cv2", library)


def test_a_picture_is_a_window_between_0_and_1_grey_or_rgb(pictures):
    dropped: list[str] = []
    source = camera.Camera("", (8, 6, 3), 0.0, dropped.append)
    one, two = take(source.pieces(), 2)
    assert (one.shape, one.dtype, dropped) == ((8, 6, 3), np.float32, ["not read"])
    assert np.allclose(one, np.array([0.2, 0, 1]))
    assert np.array_equal(one, two)
    (grey,) = take(camera.Camera("0", (8, 6, 1), 0.0, pytest.fail).pieces(), 1)
    assert grey.shape == (8, 6, 1)
    with pytest.raises(SourceError, match="camera 0 gives no pictures any more"):
        list(source.pieces())


def test_a_camera_or_microphone_that_cannot_be_had_is_one_line(pictures, monkeypatch):
    with pytest.raises(SourceError, match="cannot open camera /dev/video7: is it plugged in"):
        camera.Camera("/dev/video7", (8, 6, 3), 0.0, pytest.fail)
    with pytest.raises(SourceError, match=r"\[height, width, 1 or 3\], not \[64\]"):
        camera.Camera("", (64,), 0.0, pytest.fail)
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    with pytest.raises(SourceError, match=r"pip install 'hedgerow\[camera\]'"):
        camera.Camera("", (8, 6, 3), 0.0, pytest.fail)
    with pytest.raises(SourceError, match=r"pip install 'hedgerow\[microphone\]'"):
        microphone.Microphone("", 16_000, pytest.fail)


# All of them


def test_every_kind_is_opened_by_its_settings_and_closes_twice(bus, sound, pictures, monkeypatch, tmp_path):
    master, slave = os.openpty()
    monkeypatch.setattr(Bus, "answers", [bytes(6)] * 1000)
    np.save(tmp_path / "a.npy", np.zeros((50, 4, 3), np.float32))
    (tmp_path / "in").mkdir()
    np.save(tmp_path / "in" / "a.npy", np.zeros((4, 3), np.float32))
    os.write(master, b"0 0 0\n" * 20)
    paths = {"directory": tmp_path / "in", "replay": tmp_path / "a.npy", "serial": os.ttyname(slave)}
    kinds = ["directory", "replay", "mqtt", "serial", "i2c", "microphone", "camera"]
    for kind in kinds:
        shape = {"microphone": (1000,), "camera": (8, 6, 3)}.get(kind, (4, 3))
        named = Settings(kind, shape, path=paths.get(kind), topic="t" if kind == "mqtt" else "", every_ms=1).check(
            "dev-1"
        )
        heard = iter([b"[0, 0, 0]"] * 20)
        source = open_source(named, tmp_path / "seen", heard, pytest.fail)
        windower = Windower(shape, shape[0], pytest.fail)
        window = next(window for piece in source.pieces() for window in windower.take(piece))
        assert (window.shape, window.dtype, window.flags.c_contiguous) == (shape, np.float32, True)
        source.close()
        source.close()
    assert set(kinds) == set(Settings.__annotations__["kind"].__args__)


@pytest.mark.parametrize(
    ("section", "sentence"),
    [
        (Settings("serial", (4,)), "kind 'serial' needs path"),
        (Settings("mqtt", (4,)), "kind 'mqtt' needs topic"),
        (Settings("mqtt", (4,), topic="t", hop=5), "hop: 5 samples would be skipped past a window of 4"),
        (Settings("mqtt", (1 << 20, 2), topic="t"), "2097152 numbers are too many"),
        (Settings("i2c", (4,), path=Path("x")), "path is not for kind 'i2c'"),
        (Settings("i2c", (4,), topic="t"), "topic is for kind 'mqtt' alone"),
        (Settings("mqtt", (4,), topic="hedgerow/dev-1/prediction"), "need a topic each"),
        (Settings("mqtt", (4,), topic="t", predictions="p", labels="p"), "need a topic each, not t, p, p"),
    ],
)
def test_settings_that_cannot_work_say_so(section, sentence):
    with pytest.raises(SettingsError, match=sentence):
        section.check("dev-1")
