"""Compile every kernel once, with the very types the programs call it with, so that none compiles in the field.

Machine code is cached on disk (beside the source, or in NUMBA_CACHE_DIR), so this runs at install time; later
processes load it. Each entry below calls one kernel on a vector or two; a test fails if a kernel is missing here, or
if training, coding or adding ever asks for a type that is not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from engine.kernels import dense, gaps, loss, optimize, quantize, reduce, shuffle, sparsify

if TYPE_CHECKING:
    from collections.abc import Callable


def warm(progress: Callable[[str], None]) -> None:
    """Compile or load every kernel; `progress` hears each one's name before its turn."""
    for kernel, arguments in calls():
        progress(kernel.__name__)
        kernel(*arguments)


def calls() -> list[tuple[Callable[..., object], tuple[object, ...]]]:
    """Give every kernel with arguments of the types it meets in service, smallest first within its file."""
    f4, i4, i8, u1, u4, f8 = np.float32, np.int32, np.int64, np.uint8, np.uint32, np.float64
    row, square, label = np.ones(1, f4), np.ones((1, 1), f4), np.zeros(1, i4)
    index, code, buffer = np.zeros(1, u4), np.zeros(1, u1), np.zeros(8, u1)
    rate = f4(0.5)
    return [
        (dense.dense_forward, (square, square, row, True, square)),
        (dense.dense_backward, (square, square, True, square, square, row)),
        (dense.dense_backward_inputs, (square, square, square)),
        (loss.exp_negative, (-1.0,)),
        (loss.log_above_one, (1.0,)),
        (loss.softmax_forward, (square, label, np.ones((1, 1), f8))),
        (loss.softmax_backward, (np.ones((1, 1), f8), label, square)),
        (loss.largest_logit, (square, label)),
        (optimize.sgd_step, (row, row, row, rate, rate)),
        (optimize.squared_norm, (row,)),
        (optimize.clip_to_norm, (row, 1.0)),
        (optimize.all_finite, (row,)),
        (shuffle.splitmix64, (np.uint64(1), np.uint64(0))),
        (shuffle.shuffle, (np.zeros(1, i8), np.uint64(1), np.uint64(0))),
        (sparsify.fold_in, (row, row, row)),
        (sparsify.choose_largest, (np.ones(1, u4), 1, np.zeros(2048, i8), index)),
        (sparsify.pick, (row, index, row)),
        (sparsify.take_out, (row, index, row, row)),
        (quantize.value_scale, (row, 4)),
        (quantize.quantize, (row, 4, rate, code)),
        (quantize.dequantize, (code, 4, rate, row)),
        (quantize.pack_codes, (code, 4, buffer)),
        (quantize.unpack_codes, (buffer, 4, code)),
        (gaps.rice_bits, (index, 0)),
        (gaps.best_parameter, (index,)),
        (gaps.rice_encode, (index, 0, buffer)),
        (gaps.rice_decode, (buffer, 0, 8, index)),
        (reduce.within_limit, (row,)),
        (reduce.scatter_add, (np.zeros(1, i8), index, row, 1)),
    ]
