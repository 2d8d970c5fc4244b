"""Damaged update payloads, as many as asked for: each is refused with CodecError, or read within every bound.

`python -m tests.fuzz_codec 1000000` does it in one process. Payload number i is the same in every run. A payload that
is still accepted must be one that a writer writes: what was read from the context coder is written again and compared.
"""

import sys
import time
from collections import Counter

import numpy as np

from engine.codec import context
from engine.codec.header import CodecError
from engine.codec.payload import decode, describe, encode
from engine.codec.update import Update

SHAPES = [(20, 30), (1, 20), (7, 9), (1, 7)]
LARGE = [(300, 900), (1, 300)]
LARGE_EVERY = 200  # payloads
K_MAX = 90
SECONDS_MAX = 1.0  # of the processor, for one payload; some tens of milliseconds are needed


def starts(shapes):
    """Sound payloads of every layout and several lanes: (payload, lane)."""
    size, found = sum(rows * columns for rows, columns in shapes), []
    chance = np.random.default_rng(size)
    for number, (lane, value_bits, coding, count) in enumerate(
        [
            ("int8", 0, "rice", 40),
            ("int8", 4, "rice", 60),
            ("float32", 1, "rice", 25),
            ("float32", 8, "rice", 60),
            ("int8", 0, "context", 60),
            ("int8", 1, "context", 80),
            ("float32", 4, "context", 50),
            ("float32", 1, "context", 70),
            ("int8", 2, "context", 0),
        ]
    ):
        first = shapes[0][0] * shapes[0][1] // (8 if number % 2 else 1)
        indices = np.sort(chance.choice(first, min(count, first), replace=False)).astype(np.uint32)
        signs = np.where(indices % 5 == 0, -1, 1)
        values = signs * (1 + chance.poisson(2, len(indices)))
        values = values.astype(np.int32) if lane == "int8" else (values * np.float32(0.01)).astype(np.float32)
        payload = encode(Update(lane, size, indices, values), shapes, value_bits=value_bits, coding=coding).payload
        found.append((payload, lane))
    return found


def damage(payload, chance):
    """Cut, insert, overwrite or flip a bit, at a random place: more often in front."""
    place = int(chance.integers(0, len(payload) + 1) if chance.random() < 0.6 else chance.integers(0, 12))
    match chance.integers(0, 5):
        case 0:
            del payload[place:]
        case 1:
            payload[place:place] = chance.bytes(int(chance.integers(1, 5)))
        case 2:
            payload[place : place + 1] = chance.bytes(1)
        case 3:
            payload[place:] = chance.bytes(int(chance.integers(0, 60)))
        case _:
            payload[place : place + 1] = bytes(b ^ 1 << int(chance.integers(0, 8)) for b in payload[place : place + 1])


def check(payload, shapes, lane, coding):
    """Give 'refused', or the layout of what was read, once all that a reader of it relies on holds."""
    size = sum(rows * columns for rows, columns in shapes)
    try:
        update = decode(payload, shapes, lane=lane, k_max=K_MAX, coding=coding)
    except CodecError:
        return "refused"
    assert update.lane == lane
    assert update.size == size
    assert len(update.indices) == len(update.values) <= K_MAX
    assert (np.diff(update.indices.astype(np.int64)) > 0).all()
    assert not len(update.indices) or update.indices[-1] < size
    if lane == "int8":
        assert ((np.abs(update.values) >= 1) & (np.abs(update.values) <= 254)).all()
    else:
        assert (np.abs(update.values) <= 64).all()
    header = describe(payload, shapes)
    if header.layout == "context":
        assert coding == "context"
        kind = {"lane": lane, "value_bits": header.value_bits}
        indices, codes, _, scales = context.read(payload[header.start :], header.count, shapes, **kind)
        again = context.write(codes, indices, scales, shapes, **kind, bytes_max=len(payload))
        assert again == payload[header.start :], "a reader took what no writer writes"
    return header.layout


def run(count, seconds_max=SECONDS_MAX):
    """Damage and read `count` payloads; give how many met which fate, and the longest time of one, in seconds."""
    small, large, fates, longest = starts(SHAPES), starts(LARGE), Counter(), 0.0
    for number in range(count):
        chance = np.random.default_rng([7, number])
        shapes, some = (LARGE, large) if number % LARGE_EVERY == 0 else (SHAPES, small)
        sound, lane = some[number % len(some)]
        payload = bytearray(sound)
        for _ in range(chance.integers(1, 4)):
            damage(payload, chance)
        started = time.process_time()
        fates[check(bytes(payload), shapes, lane, "rice" if number % 7 == 0 else "context")] += 1
        longest = max(longest, time.process_time() - started)
        assert longest <= seconds_max, f"payload {number} took {longest:.2f} s"
    return fates, longest


if __name__ == "__main__":
    fates, longest = run(int(sys.argv[1]))
    print(", ".join(f"{fate} {n}" for fate, n in sorted(fates.items())), f"; the longest took {1e3 * longest:.0f} ms")
