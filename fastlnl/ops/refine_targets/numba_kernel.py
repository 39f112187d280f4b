"""refine_targets on the CPU: the row is added up where it will stand, then mixed and sharpened in the cache."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import pages, team
from fastlnl.cpu.native import as_float32, as_int64, take
from fastlnl.cpu.native import keep as keep_alive
from fastlnl.cpu.rows import largest_between, softmax_sums
from fastlnl.cpu.simd import WIDTH, fma, load, load_first, only_first, splat, store, store_first, total

SERIAL_BELOW = 1 << 18  # elements read
CHUNK_ELEMENTS = 1 << 14
MOST_STEPS = 16  # 1 / temperature up to here, if whole, is a power by multiplication
_f = np.float32
_ZERO = _f(0.0)


@njit
def add_scaled(row, columns, scratch, scale, start):
    """row += scale scratch; with `start` the row's old values are not read."""
    s, whole = splat(_f(scale)), columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        before = splat(_ZERO) if start else load(row, j)
        store(row, j, fma(s, load(scratch, j), before))
    if whole < columns:
        count = columns - whole
        before = splat(_ZERO) if start else load_first(row, whole, count, _ZERO)
        store_first(row, whole, count, fma(s, load(scratch, whole), before))


@njit(inline="always")
def whole_power(x, steps):
    y = x
    for _ in range(1, steps):
        y = y * x
    return y


@njit
def sharpen_row(row, columns, power, steps):
    """q <- q^power / sum; the largest q is divided out first. `steps` is the power where that is whole, else 0."""
    inverse, entries = _f(1.0) / largest_between(row, 0, columns), as_float32(row)
    whole, s = columns - columns % WIDTH, 0.0
    if steps > 0:
        for j in range(0, whole, WIDTH):
            y = whole_power(load(row, j) * inverse, steps)
            store(row, j, y)
            s += total(y)
        if whole < columns:
            y = whole_power(load_first(row, whole, columns - whole, _ZERO) * inverse, steps)
            store_first(row, whole, columns - whole, y)
            s += total(only_first(y, columns - whole))
    else:
        for j in range(columns):
            q = np.float64(entries[j] * inverse)
            entries[j] = _f(math.exp(power * math.log(q))) if q > 0.0 else _f(q)  # 0 stays 0, NaN stays NaN
            s += entries[j]
    add_scaled(row, columns, row, 1.0 / s, True)


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,float64,int64,int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
def refine_kernel(cursor, chunk, batch, columns, views_, own, views, first, label_, labelled, clean_prob_, power, steps,
                  out):  # fmt: skip
    """`views_`: address and row stride of each prediction, `own` of all rows, then those of rows from `first` on."""
    view, label, clean_prob = as_int64(views_), as_int64(label_), as_float32(clean_prob_)
    scratch = np.empty(columns + WIDTH, np.float32)
    e = scratch.ctypes.data
    while True:
        begin = take(cursor, chunk)
        if begin >= batch:
            break
        for b in range(begin, min(begin + chunk, batch)):
            row = out + 4 * b * columns
            count = views if b >= first else own
            given = b < labelled and 0 <= label[b] < columns
            w = np.float64(clean_prob[b]) if given else 0.0
            for m in range(count):
                z = view[2 * m] + 4 * view[2 * m + 1] * (b if m < own else b - first)
                s_e, _, s_x = softmax_sums(z, columns, largest_between(z, 0, columns), e)
                add_scaled(row, columns, e, (1.0 - w) / (count * s_e) + 0.0 * s_x, m == 0)
            if given:
                as_float32(row)[label[b]] += _f(w)
            sharpen_row(row, columns, power, steps)
    keep_alive(scratch)


def refine_targets(
    logits: Sequence[Tensor],
    peer: Sequence[Tensor],
    label: Tensor | None,
    clean_prob: Tensor | None,
    temperature: float,
) -> Tensor:
    batch, classes = logits[0].shape
    views = [z if z.dtype == torch.float32 else z.float() for z in (*logits, *peer)]
    views = [z if z.stride(1) == 1 else z.contiguous() for z in views]
    places = np.array([number for z in views for number in (z.data_ptr(), z.stride(0))], np.int64)
    first = batch - len(peer[0]) if peer else batch
    labelled, label_, clean_prob_ = 0, 0, 0
    if label is not None and clean_prob is not None:
        labelled, label_, clean_prob_ = len(label), label.data_ptr(), clean_prob.data_ptr()
    power = 1.0 / temperature
    steps = round(power) if power <= MOST_STEPS and abs(power - round(power)) < 1e-12 * power else 0
    out = pages.empty(batch, classes)
    run = team.alone if batch * classes * len(views) < SERIAL_BELOW else team.team.run
    run(
        refine_kernel, max(1, CHUNK_ELEMENTS // classes), batch, classes, places.ctypes.data, len(logits), len(views),
        first, label_, labelled, clean_prob_, power, steps, out.data_ptr(),
    )  # fmt: skip
    return out
