"""Section `[source]` of a device's config: what is watched, and how it becomes windows. Absent: nothing is.

Apart from `edge_agent.config`, so that the child that watches need not load keys and certificates.
"""

from pathlib import Path
from typing import Annotated, Final, Literal, Self, TypeAlias

from msgspec import Meta, Struct

PERIOD_MS: Final = {"directory": 1000, "replay": 1000, "camera": 1000, "i2c": 20}  # where every_ms is not given
TOPIC_BYTES_MAX: Final = 256
_Topic: TypeAlias = Annotated[str, Meta(pattern=r"^(?!fl/|\$)[^\x00-\x1f\x7f+#]*\Z", max_length=TOPIC_BYTES_MAX)]
_Size: TypeAlias = Annotated[int, Meta(ge=1, le=1 << 20)]


class SourceError(Exception):
    """A file or a sensor brings no samples; the sentence says why, and how to mend it."""


class SettingsError(ValueError):
    """The section cannot be used. One line: what, and how to mend it."""


class Settings(Struct, frozen=True, forbid_unknown_fields=True):
    """The section. Keys that a kind has no use for are left out."""

    kind: Literal["directory", "replay", "mqtt", "serial", "i2c", "microphone", "camera"]
    window: Annotated[tuple[_Size, ...], Meta(min_length=1, max_length=8)]  # its shape; the first is how many samples
    path: Path | None = None  # of directory, replay, serial
    topic: _Topic = ""  # of mqtt: where samples or windows arrive
    form: Literal["json", "float32"] = "json"  # of what arrives there
    hop: Annotated[int, Meta(ge=0, le=1 << 20)] = 0  # samples from one window to the next; 0: windows do not overlap
    every_ms: Annotated[int, Meta(ge=0, le=3_600_000)] | None = None  # between looks, windows or samples
    baud: Literal[9600, 19200, 38400, 57600, 115200, 230400, 460800, 921600] = 115200
    chip: Literal["adxl345", "mpu6050"] = "adxl345"
    bus: Annotated[int, Meta(ge=0, le=255)] = 1
    device: Annotated[str, Meta(max_length=256, pattern=r"^[^\x00-\x1f\x7f]*\Z")] = ""  # of microphone and camera
    rate_hz: Annotated[int, Meta(ge=100, le=192_000)] = 16_000  # of microphone
    keep_every: Annotated[int, Meta(ge=1, le=1_000_000)] = 1  # one window in so many waits for its label
    predictions: _Topic = ""  # where predictions are published; "": hedgerow/{device}/prediction
    labels: _Topic = ""  # where labels are heard; "": hedgerow/{device}/label

    @property
    def width(self) -> int:
        """How many numbers one sample has."""
        width = 1
        for size in self.window[1:]:
            width *= size
        return width

    @property
    def hop_count(self) -> int:
        """Samples from the start of one window to the start of the next."""
        return self.hop or self.window[0]

    @property
    def period_s(self) -> float:
        """Seconds between looks, windows or samples."""
        every_ms = PERIOD_MS.get(self.kind, 0) if self.every_ms is None else self.every_ms
        return every_ms / 1000

    def prediction_topic(self, device_id: str) -> str:
        """Where predictions are published."""
        return self.predictions or f"hedgerow/{device_id}/prediction"

    def label_topic(self, device_id: str) -> str:
        """Where labels are heard."""
        return self.labels or f"hedgerow/{device_id}/label"

    @property
    def place(self) -> str:
        """What is watched, for a sentence."""
        where = f"{self.chip} on bus {self.bus}" if self.kind == "i2c" else self.topic or self.path or self.device
        return f"{self.kind} {where}".rstrip()

    def check(self, device_id: str) -> Self:
        """Return the section; raise SettingsError where it cannot work."""
        if self.topic and self.kind != "mqtt":
            raise SettingsError(f"topic is for kind 'mqtt' alone, not for {self.kind!r}: leave it out")
        if self.path is not None and self.kind not in {"directory", "replay", "serial"}:
            raise SettingsError(f"path is not for kind {self.kind!r}: leave it out")
        topics = (self.topic, self.prediction_topic(device_id), self.label_topic(device_id))
        if len(set(topics)) < len(topics):
            raise SettingsError(f"samples, predictions and labels need a topic each, not {', '.join(topics)}")
        if self.kind in {"directory", "replay", "serial"} and self.path is None:
            raise SettingsError(f"kind {self.kind!r} needs path = …")
        if self.kind == "mqtt" and not self.topic:
            raise SettingsError("kind 'mqtt' needs topic = …: where the samples or windows arrive")
        if self.hop > self.window[0]:
            raise SettingsError(f"hop: {self.hop} samples would be skipped past a window of {self.window[0]}")
        if self.width * self.window[0] > 1 << 20:
            raise SettingsError(f"window: {self.width * self.window[0]} numbers are too many; 1048576 at most")
        return self
