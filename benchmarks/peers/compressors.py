"""General compressors on an update: zstd, pcodec and constriction, as someone would use them who has one evening.

What is called `1 bit` sends signs and one magnitude, 4 bytes; the others send float32 values.
"""

from __future__ import annotations

import struct
from typing import Any

import constriction
import numpy as np
import zstandard
from pcodec import ChunkConfig, standalone
from update_server import Sample, serve, signs, values

FAST = zstandard.ZstdCompressor(level=3)
SMALL = zstandard.ZstdCompressor(level=19)
READER = zstandard.ZstdDecompressor()
LEVEL = ChunkConfig(compression_level=8)
SYMBOLS = 1024


def raw(sample: Sample) -> list[bytes]:
    return [sample.indices.tobytes() + sample.values.tobytes()]


def from_raw(messages: list[bytes], sample: Sample) -> list[Any]:
    count = len(sample.indices)
    return [np.frombuffer(messages[0], np.uint32, count), np.frombuffer(messages[0], np.float32, count, 4 * count)]


def zstd(level: zstandard.ZstdCompressor) -> Any:
    def encode(sample: Sample) -> list[bytes]:
        return [level.compress(*raw(sample))]

    def decode(messages: list[bytes], sample: Sample) -> list[Any]:
        return from_raw([READER.decompress(messages[0])], sample)

    return encode, decode, values


def gaps_of(sample: Sample) -> Any:
    return np.diff(sample.indices.astype(np.int64), prepend=-1) - 1


def signs_behind(sample: Sample) -> bytes:
    return np.packbits(sample.values < 0).tobytes() + struct.pack("<f", np.abs(sample.values).mean())


def signs_from(message: bytes, count: int) -> Any:
    return np.unpackbits(np.frombuffer(message, np.uint8, -(-count // 8)), count=count).astype(bool)


def varints(numbers: Any) -> bytes:
    """Seven bits a byte, the lowest first, the top bit on all but the last."""
    length = 1 + sum((numbers >= 1 << (7 * more)).astype(np.int64) for more in range(1, 5))
    starts = np.cumsum(length) - length
    out = np.empty(int(length.sum()), np.uint8)
    for at in range(5):
        has = length > at
        more = (length[has] > at + 1).astype(np.int64)
        out[starts[has] + at] = (numbers[has] >> (7 * at)) & 127 | more << 7
    return out.tobytes()


def from_varints(message: bytes) -> Any:
    coded = np.frombuffer(message, np.uint8).astype(np.int64)
    starts = np.concatenate([[0], np.flatnonzero(coded < 128)[:-1] + 1])
    place = np.arange(len(coded)) - np.repeat(starts, np.diff(starts, append=len(coded)))
    return np.add.reduceat((coded & 127) << (7 * place), starts)


def gaps_encode(sample: Sample) -> list[bytes]:
    return [SMALL.compress(varints(gaps_of(sample))), signs_behind(sample)]


def gaps_decode(messages: list[bytes], sample: Sample) -> list[Any]:
    numbers = from_varints(READER.decompress(messages[0]))
    return [np.cumsum(numbers + 1) - 1, signs_from(messages[1], len(sample.indices))]


def pcodec_encode(sample: Sample) -> list[bytes]:
    return [standalone.simple_compress(sample.indices, LEVEL), signs_behind(sample)]


def pcodec_decode(messages: list[bytes], sample: Sample) -> list[Any]:
    return [standalone.simple_decompress(messages[0]), signs_from(messages[1], len(sample.indices))]


def pcodec_values_encode(sample: Sample) -> list[bytes]:
    return [standalone.simple_compress(array, LEVEL) for array in (sample.indices, sample.values)]


def pcodec_values_decode(messages: list[bytes], _sample: Sample) -> list[Any]:
    return [standalone.simple_decompress(message) for message in messages]


def law(count: int, size: int) -> tuple[int, Any]:
    """Gaps are geometric: how many low bits go as they are, and a model of the rest; its last symbol is an escape."""
    low = max(0, (size // count).bit_length() - 5)
    stay = (1.0 - count / size) ** (1 << low)
    table = np.maximum(stay ** np.arange(SYMBOLS), 1e-12)
    return low, constriction.stream.model.Categorical(table / table.sum(), perfect=False)


def range_encode(sample: Sample) -> list[bytes]:
    gaps, count = gaps_of(sample), len(sample.indices)
    low, model = law(count, sample.size)
    high = gaps >> low
    coder = constriction.stream.queue.RangeEncoder()
    coder.encode(np.minimum(high, SYMBOLS - 1).astype(np.int32), model)
    bits = (gaps[:, np.newaxis] >> np.arange(low)) & 1
    escaped = high[high >= SYMBOLS - 1].astype(np.uint32)
    packed = np.packbits(bits.astype(np.uint8)).tobytes()
    return [coder.get_compressed().tobytes(), packed, escaped.tobytes(), signs_behind(sample)]


def range_decode(messages: list[bytes], sample: Sample) -> list[Any]:
    count = len(sample.indices)
    low, model = law(count, sample.size)
    coder = constriction.stream.queue.RangeDecoder(np.frombuffer(messages[0], np.uint32))
    high = coder.decode(model, count).astype(np.int64)
    high[high == SYMBOLS - 1] = np.frombuffer(messages[2], np.uint32)
    bits = np.unpackbits(np.frombuffer(messages[1], np.uint8), count=count * low).reshape(count, low).astype(np.int64)
    gaps = (high << low) + (bits << np.arange(low)).sum(axis=1)
    return [np.cumsum(gaps + 1) - 1, signs_from(messages[3], count)]


if __name__ == "__main__":
    serve({
        "raw": (raw, from_raw, values),
        "zstd-3": zstd(FAST),
        "zstd-19": zstd(SMALL),
        "pcodec": (pcodec_values_encode, pcodec_values_decode, values),
        "gaps zstd-19, 1 bit": (gaps_encode, gaps_decode, signs),
        "pcodec, 1 bit": (pcodec_encode, pcodec_decode, signs),
        "constriction, 1 bit": (range_encode, range_decode, signs),
    })  # fmt: skip
