"""class_reduce on the CPU: one sweep over a row for both maxima; what they leave open is looked up in the cache."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_float32, as_int64, take
from fastlnl.cpu.rows import first_column
from fastlnl.cpu.simd import WIDTH, larger, largest, load, load_first, splat

SERIAL_BELOW = 1 << 18  # elements
CHUNK_ELEMENTS = 1 << 16
_LOWEST = np.float32(-np.inf)


@njit
def highest(p, limit, columns):
    """Highest probability of a row and the most by which one passes its limit; NaN is passed over."""
    top, most = splat(_LOWEST), splat(_LOWEST)
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        x = load(p, j)
        top, most = larger(top, x), larger(most, x - load(limit, j))
    if whole < columns:
        count = columns - whole
        x = load_first(p, whole, count, _LOWEST)
        top, most = larger(top, x), larger(most, x - load_first(limit, whole, count, np.float32(0.0)))
    return largest(top), largest(most)


@njit("void(int64,int64,int64,int64,int64,int64,int64,int64)", cache=True, nogil=True)
def class_reduce_kernel(cursor, chunk, samples, columns, probs, stride, limit_, confident_):
    """Rows until the cursor is past the end. x - limit has the sign of the comparison, denormals included."""
    limit, confident = as_float32(limit_), as_int64(confident_)
    while True:
        begin = take(cursor, chunk)
        if begin >= samples:
            break
        for i in range(begin, min(begin + chunk, samples)):
            row = probs + 4 * i * stride
            p = as_float32(row)
            top, most = highest(row, limit_, columns)
            if not most >= 0:
                confident[i] = -1
                continue
            best = first_column(row, columns, top)
            if p[best] < limit[best]:
                number, only = 0, 0
                for j in range(columns):
                    if p[j] >= limit[j]:
                        number, only = number + 1, j
                if number == 1:
                    best = only
            confident[i] = best


def class_reduce(probs: Tensor, limit: Tensor) -> Tensor:
    samples, classes = probs.shape
    p = probs if probs.dtype == torch.float32 else probs.float()
    p = p if p.stride(1) == 1 else p.contiguous()
    confident = torch.empty(samples, dtype=torch.int64)
    run = team.alone if p.numel() < SERIAL_BELOW else team.team.run
    chunk = max(1, CHUNK_ELEMENTS // classes)
    run(
        class_reduce_kernel, chunk, samples, classes, p.data_ptr(), p.stride(0), limit.data_ptr(), confident.data_ptr()
    )  # fmt: skip
    return confident
