"""class_prior on the CPU: sums of 32 rows at a time in float32 lanes, added up in order, in float64."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_float32, take
from fastlnl.cpu.native import keep as keep_alive
from fastlnl.cpu.rows import fill, largest_between, softmax_sums
from fastlnl.cpu.simd import WIDTH, fma, load, load_first, splat, store, store_first
from fastlnl.ops.class_prior import LOWEST_MEAN, ClassPrior

SERIAL_BELOW = 1 << 18  # elements
ROWS = 32  # of a partial sum, whatever the number of threads
_f = np.float32


@njit
def add_scaled(row, columns, scratch, scale):
    """row += scale scratch."""
    s, whole = splat(_f(scale)), columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        store(row, j, fma(s, load(scratch, j), load(row, j)))
    if whole < columns:
        count = columns - whole
        store_first(row, whole, count, fma(s, load(scratch, whole), load_first(row, whole, count, _f(0.0))))


@njit("void(int64,int64,int64,int64,int64,int64)", cache=True, nogil=True, error_model="numpy")
def add_rows(cursor, batch, columns, logits, stride, partial):
    """Sum of the predictions of each group of rows."""
    scratch = np.empty(columns + WIDTH, np.float32)
    e = scratch.ctypes.data
    while True:
        begin = take(cursor, ROWS)
        if begin >= batch:
            break
        row = partial + 4 * (begin // ROWS) * columns
        fill(row, columns, 0.0)
        for b in range(begin, min(begin + ROWS, batch)):
            z = logits + 4 * b * stride
            s_e, _, s_x = softmax_sums(z, columns, largest_between(z, 0, columns), e)
            add_scaled(row, columns, e, 1.0 / s_e + 0.0 * s_x)
    keep_alive(scratch)


@njit("void(int64,int64,int64,int64,int64,int64,int64)", cache=True, nogil=True, error_model="numpy")
def compare(groups, batch, columns, partial_, prior_, terms_, ratio_):
    partial, prior = as_float32(partial_), as_float32(prior_)
    terms, ratio, total = as_float32(terms_), as_float32(ratio_), np.zeros(columns)
    for g in range(groups):
        for c in range(columns):
            total[c] += partial[g * columns + c]
    for c in range(columns):
        pi, mean = np.float64(prior[c]) if prior_ != 0 else 1.0 / columns, total[c] / max(batch, 1)
        if mean < LOWEST_MEAN:
            mean = LOWEST_MEAN
        there = batch > 0
        terms[c] = _f(pi * math.log(pi / mean)) if there and pi > 0 else _f(0.0 * total[c])
        ratio[c] = _f(pi / mean) if there else _f(0.0)


def class_prior(logits: Tensor, prior: Tensor | None) -> ClassPrior:
    z = logits if logits.dtype == torch.float32 else logits.float()
    z = z if z.stride(1) == 1 else z.contiguous()
    batch, classes = z.shape
    groups = -(-batch // ROWS)
    partial, terms, ratio = torch.empty(groups, classes), torch.empty(classes), torch.empty(classes)
    run = team.alone if z.numel() < SERIAL_BELOW else team.team.run
    run(add_rows, batch, classes, z.data_ptr(), z.stride(0), partial.data_ptr())
    prior_ = 0 if prior is None else prior.data_ptr()
    compare(groups, batch, classes, partial.data_ptr(), prior_, terms.data_ptr(), ratio.data_ptr())
    return ClassPrior(terms, ratio)
