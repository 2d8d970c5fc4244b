"""What a round costs a device in bytes: the product's own messages, encoded and sealed, as MQTT writes them.

A device that takes part in a round connects, and then

    sends     birth, want (one for each eight chunks, or for a patch), update, and a PUBACK for all that it receives
    receives  state, plan and manifest (retained), offer, the base file once, the parameters as one patch or in chunks,
              whichever is smaller, receipt, and a PUBACK for all that it sends

Telemetry, MQTT's own CONNECT and SUBSCRIBE, TLS and TCP are left out, here as in what the peers are charged with. A
signature is 64 bytes whatever it says, so nothing is signed. An update or a patch too large for one message, which the
product would not send, is charged like one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final

from wire import chunks, envelope, limits, topics
from wire.messages import (
    MODEL_FILE,
    PARAMS_FILE,
    Birth,
    Manifest,
    Offer,
    Patch,
    Plan,
    Receipt,
    State,
    Update,
    Want,
)
from wire.meter import PUBACK_BYTES, publish_bytes

if TYPE_CHECKING:
    from engine.frame import Frame
    from wire.messages import File, Message

FLEET: Final = "orchard"
DIGEST: Final = bytes(32)
EPOCH: Final = 1_800_000_000  # of the coordinator, a number of this size


@dataclass(frozen=True)
class Post:
    """Bytes by purpose and direction, PUBLISH packets with their PUBACKs."""

    update_up: int = 0
    control_up: int = 0  # births, wants, PUBACKs
    base_down: int = 0  # the base file, once in a device's life
    model_down: int = 0  # parameters: patches, chunks
    control_down: int = 0  # state, plan, manifest, offer, receipt, PUBACKs
    participations: int = 0

    def __add__(self, other: Post) -> Post:
        return Post(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})

    @property
    def up(self) -> int:
        """All that devices sent."""
        return self.update_up + self.control_up

    @property
    def down(self) -> int:
        """All that devices received."""
        return self.base_down + self.model_down + self.control_down


class Postage:
    """The costs of one fleet with one model; `publish` says which version is the newest."""

    def __init__(self, frame: Frame, published: bytes) -> None:
        self._frame = frame
        self._base = chunks.split(MODEL_FILE, frame.model)
        self._plan = Plan(
            model=FLEET, train=frame.suffix.train, lane="economy", num_params=frame.suffix.num_params, epochs=2,
            batch_size=16, learning_rate=0.02, momentum=0.0, clip_norm=1e6, keep_count=frame.suffix.num_params,
            value_bits=1, seed=EPOCH, num_examples_min=1, num_examples_max=4096, trainer_memory_bytes_max=2**29,
            trainer_ms_max=600_000, trainer_arena_bytes=2**20, coding="context",
        )  # fmt: skip
        self._base_post = self._whole(self._base, frame.model)
        self.publish(1, published)

    def publish(self, version: int, published: bytes) -> None:
        """Let `published` be the newest version's parameters."""
        params = chunks.split(PARAMS_FILE, published)
        self._params, self._published = params, published
        self._manifest = Manifest(
            FLEET, version, version - 1, self._frame.suffix.num_params, (self._base, params), base_version=1
        )
        self._chunks_post: Post | None = None

    def round(self, device: str, held: int, version: int, patch: bytes | None) -> Post:
        """All of one participation but the update; `held` is the version on flash, 0 for none, and `patch` leads on.

        A device that holds none starts from the version that the base file holds, if it is given a patch from there.
        """
        spent = self._control(device, version, held)
        if held == 0:
            spent += self._base_post
        if held == version:
            return spent
        if self._chunks_post is None:
            whole = self._whole(self._params, self._published)
            self._chunks_post = replace(whole, base_down=0, model_down=whole.base_down)
        if patch is None:
            return spent + self._chunks_post
        patched = self._patched(device, held or 1, patch)
        return spent + min(patched, self._chunks_post, key=lambda post: post.up + post.down)

    def update(self, device: str, payload: bytes) -> Post:
        """An update and its receipt."""
        sealed = sealed_update_bytes(device, payload)
        topic = topics.up(FLEET, device, "update")
        receipt = Receipt(DIGEST, 40, "accepted")
        return Post(
            update_up=publish_bytes(topic, bytes(sealed)),
            control_up=PUBACK_BYTES,
            control_down=PUBACK_BYTES + _publish_bytes(topics.dn(FLEET, device, "receipt"), receipt),
        )

    def _control(self, device: str, version: int, held: int) -> Post:
        up = _publish_bytes(topics.up(FLEET, device, "birth"), Birth(3, 40, EPOCH, held, 100, "hedgerow-0.1.0"))
        state = State(EPOCH, True, 40, version)
        offer = Offer(40, DIGEST, version, 600_000)
        down = sum(
            _publish_bytes(topics.shared(FLEET, kind), message)
            for kind, message in (("state", state), ("plan", self._plan), ("manifest", self._manifest))
        )
        down += _publish_bytes(topics.dn(FLEET, device, "offer"), offer)
        return Post(control_up=up + 4 * PUBACK_BYTES, control_down=down + PUBACK_BYTES, participations=1)

    def _patched(self, device: str, held: int, patch: bytes) -> Post:
        over = max(0, len(patch) - limits.CHUNK_BYTES_MAX)
        message = Patch(self._params.digest, held, DIGEST, patch[: limits.CHUNK_BYTES_MAX])
        want = Want(self._params.digest, chunks.missing_ranges(self._params, ()), held)
        up = _publish_bytes(topics.up(FLEET, device, "want"), want)
        down = over + _publish_bytes(topics.dn(FLEET, device, "patch"), message)
        return Post(control_up=up + PUBACK_BYTES, model_down=down, control_down=PUBACK_BYTES)

    def _whole(self, file: File, content: bytes) -> Post:
        """A file in chunks, as `base_down`."""
        device, count = "device-001", len(file.chunk_digests)
        spent, have = Post(), set[int]()
        while len(have) < count:
            wanted = chunks.missing_ranges(file, have)
            want = Want(file.digest, wanted)
            numbers = [at for part in wanted for at in range(part.first, part.first + part.count)]
            down = sum(
                _publish_bytes(topics.dn(FLEET, device, "chunk"), chunks.chunk_at(content, file, at)) for at in numbers
            )
            up = _publish_bytes(topics.up(FLEET, device, "want"), want) + PUBACK_BYTES * len(numbers)
            spent += Post(control_up=up, base_down=down, control_down=PUBACK_BYTES)
            have.update(numbers)
        return spent


def sealed_update_bytes(device: str, payload: bytes) -> int:
    """The length of the sealed update with this payload: all that its MQTT PUBLISH carries but the topic."""
    over = max(0, len(payload) - limits.UPDATE_PAYLOAD_BYTES_MAX)
    update = Update(
        round_id=40,
        base_version=40,
        num_examples=100,
        held_out_correct=20,
        held_out_count=25,
        payload=payload[: limits.UPDATE_PAYLOAD_BYTES_MAX],
    )
    return over + len(envelope.seal(update, topics.up(FLEET, device, "update"), _unsigned))


def _publish_bytes(topic: str, message: Message) -> int:
    return publish_bytes(topic, envelope.seal(message, topic, _unsigned))


def _unsigned(_data: bytes) -> bytes:
    return bytes(envelope.SIGNATURE_BYTES)
