"""One example of every message, with the topic it travels on: for golden vectors, mutations and round trips."""

from __future__ import annotations

import hashlib

import msgspec

from wire import messages as m
from wire import topics

SEED = bytes(range(32))
FLEET = "barn"
DEVICE = "pi-07"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()


PLAN = m.Plan(
    model="digits-cnn",
    train="last-1",
    lane="economy",
    num_params=17_098,
    epochs=2,
    batch_size=16,
    learning_rate=0.05,
    momentum=0.9,
    clip_norm=1.0,
    keep_count=171,
    value_bits=4,
    seed=2**53,
    num_examples_min=20,
    num_examples_max=256,
    trainer_memory_bytes_max=256 << 20,
    trainer_ms_max=600_000,
)
STEPS_PLAN = msgspec.structs.replace(
    PLAN, train="9:b,10:w/4,14:w", value_bits=0, scale_epoch=2, trainer_arena_bytes=190_000
)
FRUGAL_PLAN = msgspec.structs.replace(
    STEPS_PLAN, value_bits=1, coding="context", update_bytes_max=300, momentum_correction=0.9, residual_decay=0.5
)
HARDENED_PLAN = msgspec.structs.replace(PLAN, lane="hardened", keep_count=171, proximal=0.125, scaffold=True)
FILE = m.File("model.tflite", _digest("file"), 2500, 1000, (_digest("0"), _digest("1"), _digest("2")))

OFFERED = bytes.fromhex("2856daeac56c7fc9513d82348f2146a6400263e3c86543e70232d9baa90cfc82")

# Vectors from before their last fields were added. They are read for ever, and no longer written.
OLDER = frozenset(
    {
        "offer",
        "plan",
        "plan, whole steps",
        "plan, context coding",
        "manifest",
        "manifest, scale epoch 2",
        "manifest, also by HTTP",
        "manifest, version 9 in its base",
        "manifest, a candidate",
        "update",
        "update, nothing held out",
        "want",
        "telemetry",
        "telemetry, unknown",
    }
)

EXAMPLES: dict[str, tuple[str, m.Message]] = {
    "birth": (topics.up(FLEET, DEVICE, "birth"), m.Birth(3, 1, 0, 12, 480, "hedgerow-0.1.0")),
    "death": (topics.up(FLEET, DEVICE, "death"), m.Death(3, 1)),
    "state": (topics.shared(FLEET, "state"), m.State(7, True, 41, 12)),
    "plan": (topics.shared(FLEET, "plan"), PLAN),
    "plan, whole steps": (topics.shared(FLEET, "plan"), STEPS_PLAN),
    "plan, context coding": (topics.shared(FLEET, "plan"), FRUGAL_PLAN),
    "plan, hardened": (topics.shared(FLEET, "plan"), HARDENED_PLAN),
    "plan, a trial": (topics.shared(FLEET, "plan"), msgspec.structs.replace(PLAN, lane="trial")),
    "offer": (topics.dn(FLEET, DEVICE, "offer"), m.Offer(41, OFFERED, 12, 3_600_000)),
    "offer, of a cohort": (topics.dn(FLEET, DEVICE, "offer"), m.Offer(42, OFFERED, 12, 60_000)),
    "offer, to all": (
        topics.shared(FLEET, "offer"),
        m.Offer(43, OFFERED, 13, 600_000, bytes(range(16)), 2**30, 20_000),
    ),
    "update": (topics.up(FLEET, DEVICE, "update"), m.Update(41, 12, 256, 93, 100, bytes(range(100)))),
    "update, nothing held out": (topics.up(FLEET, DEVICE, "update"), m.Update(1, 0, 1, 0, 0, b"")),
    "update, a trial": (
        topics.up(FLEET, DEVICE, "update"),
        m.Update(42, 13, 480, 93, 100, b"", m.Trial(12, 1, 7, "worse here than version 12: 7 lost, 1 won")),
    ),
    "receipt": (topics.dn(FLEET, DEVICE, "receipt"), m.Receipt(_digest("sealed"), 41, "accepted")),
    "receipt, refused": (
        topics.dn(FLEET, DEVICE, "receipt"),
        m.Receipt(_digest("sealed"), 41, "refused", "Länge 9 statt 8"),
    ),
    "receipt, unfounded": (
        topics.dn(FLEET, DEVICE, "receipt"),
        m.Receipt(_digest("sealed"), 41, "unfounded", "what it builds on is not held here"),
    ),
    "manifest": (topics.shared(FLEET, "manifest"), m.Manifest("digits-cnn", 12, 11, 17_098, (FILE,))),
    "manifest, scale epoch 2": (
        topics.shared(FLEET, "manifest"),
        m.Manifest("digits-cnn", 12, 11, 17_098, (FILE,), 2),
    ),
    "manifest, also by HTTP": (
        topics.shared(FLEET, "manifest"),
        m.Manifest("digits-cnn", 13, 12, 17_098, (FILE,), 2, "https://models.example:8443/barn"),
    ),
    "manifest, version 9 in its base": (
        topics.shared(FLEET, "manifest"),
        m.Manifest("digits-cnn", 13, 12, 17_098, (FILE,), 2, "", 9),
    ),
    "manifest, a candidate": (
        topics.dn(FLEET, DEVICE, "manifest"),
        m.Manifest("digits-cnn", 14, 13, 17_098, (FILE,), 2, "", 9, _digest("answers")),
    ),
    "manifest, with operators": (
        topics.shared(FLEET, "manifest"),
        m.Manifest(
            *("digits-cnn", 14, 13, 17_098, (FILE,), 2, "", 9, _digest("answers")),
            (m.Operator("CONV_2D", 3), m.Operator("FULLY_CONNECTED", 12)),
        ),
    ),
    "want": (topics.up(FLEET, DEVICE, "want"), m.Want(_digest("file"), (m.Range(0, 1), m.Range(5, 7)))),
    "want, or a patch": (
        topics.up(FLEET, DEVICE, "want"),
        m.Want(_digest("file"), (m.Range(0, 3),), 12),
    ),
    "patch": (
        topics.dn(FLEET, DEVICE, "patch"),
        m.Patch(_digest("file"), 12, _digest("file of version 12"), bytes(range(200))),
    ),
    "chunk": (topics.dn(FLEET, DEVICE, "chunk"), m.Chunk(_digest("file"), 2, b"\xff" * 500)),
    "telemetry": (
        topics.up(FLEET, DEVICE, "telemetry"),
        m.Telemetry(3, 9, "waiting", "battery at 20 %", 81_000, 39_000, 54.3, 0.25),
    ),
    "telemetry, unknown": (topics.up(FLEET, DEVICE, "telemetry"), m.Telemetry(3, 10, "idle", "", 0, 0)),
    "telemetry, bytes by purpose": (
        topics.up(FLEET, DEVICE, "telemetry"),
        m.Telemetry(
            3, 11, "idle", "", 81_000, 39_000, traffic=m.Traffic(900, 450, 260, 71_000, 2_200, 330, 1_800, 5_100, 6_700)
        ),
    ),
    "label": (topics.dn(FLEET, DEVICE, "label"), m.Label(1234, 7)),
    "claim": (
        topics.claim(FLEET, "0123456789abcdef"),
        m.Claim(DEVICE, "ed25519:" + "A" * 43, _digest("a proof") * 2, bytes(range(220))),
    ),
    "renew": (topics.up(FLEET, DEVICE, "renew"), m.Renew(bytes(range(220)))),
    "certificate": (topics.dn(FLEET, DEVICE, "certificate"), m.Certificate(_digest("sealed"), bytes(range(250)))),
    "certificate, refused": (
        topics.dn(FLEET, DEVICE, "certificate"),
        m.Certificate(_digest("sealed"), b"", "the token was used by another device"),
    ),
}
