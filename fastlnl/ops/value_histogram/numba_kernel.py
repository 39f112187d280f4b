"""value_histogram on the CPU: every thread fills its own small table, and integers are added up at the end.

A cell is one int64: the count above, the sum of the offsets below `FIELD` bits, so a value costs one addition. A table
is emptied before either can overflow.
"""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import keep, take
from fastlnl.cpu.simd import WIDTH, larger, largest, load, splat
from fastlnl.ops.value_histogram import BINADES, ONE, POSITIONS, SPAN, Histogram, offset_bits

SERIAL_BELOW = 1 << 18  # values
PIECE = 1 << 15  # values taken at a time
FULL = 1 << 22  # values a table may hold: 2^22 offsets of up to 17 bits stay below FIELD, and 2^22 above it below 2^63
FIELD = 40
COUNTED, OFFSETS = 1 << FIELD, (1 << FIELD) - 1
STRIP = 256  # values whose positions are computed together, vectorised, before any cell is touched
_LOWEST = np.float32(-np.inf)
_NOWHERE = np.int32(-1)


def value_histogram(x: Tensor, group: Tensor | None, num_groups: int, bins: int, limits: Tensor | None) -> Histogram:
    left_out = torch.zeros(num_groups, dtype=torch.int64)
    values, ids = x.detach().numpy(), np.empty(0, np.int64) if group is None else group.numpy()
    run = team.team.run if group is None and len(x) >= SERIAL_BELOW else team.alone
    whole = group is None and limits is None
    if limits is None:
        pieces = np.empty((-(-len(x) // PIECE), 2), np.float32)
        limits = torch.empty(num_groups, 2, dtype=torch.float64)
        if group is None:
            run(ends_of_pieces, values, pieces)
            reduce_ends(pieces, limits.numpy())
        else:
            ends_of_groups(values, ids, limits.numpy())
    count = torch.zeros(num_groups, bins, dtype=torch.int64)
    total = np.zeros(num_groups * bins, np.int64)
    arrays = (offset_bits(bins), count.view(-1).numpy(), total, left_out.numpy())
    if whole:
        run(fill, values, limits.numpy(), *arrays)
    else:
        fill_groups(values, ids, limits.numpy(), bins, *arrays)
    mean = torch.empty(num_groups, bins, dtype=torch.float64)
    write_means(count.numpy(), total, limits.numpy(), mean.numpy())
    return Histogram(count, mean, limits, left_out)


@njit("void(int64, float32[::1], float32[:, ::1])", cache=True, nogil=True)
def ends_of_pieces(cursor, x, pieces):
    """Lowest and highest finite value of each piece; +inf, -inf where there is none."""
    while True:
        piece = take(cursor, 1)
        if piece >= len(pieces):
            break
        start, stop = piece * PIECE, min(len(x), (piece + 1) * PIECE)
        whole = stop - (stop - start) % WIDTH
        low, high, zero = splat(_LOWEST), splat(_LOWEST), splat(np.float32(0))  # the lowest is kept negative
        address = x.ctypes.data
        for i in range(start, whole, WIDTH):
            v = load(address, i)
            v = v + (v - v)  # NaN where infinite, and NaN is passed over
            low, high = larger(low, zero - v), larger(high, v)
        lowest, highest = -largest(low), largest(high)
        for i in range(whole, stop):
            if np.isfinite(x[i]):
                lowest, highest = min(lowest, x[i]), max(highest, x[i])
        pieces[piece, 0], pieces[piece, 1] = lowest, highest
    keep(x)


@njit("void(float32[:, ::1], float64[:, ::1])", cache=True, nogil=True)
def reduce_ends(pieces, limits):
    low, high = np.inf, -np.inf
    for i in range(len(pieces)):
        low, high = min(low, pieces[i, 0]), max(high, pieces[i, 1])
    limits[0, 0], limits[0, 1] = (low, high) if low <= high else (0.0, 0.0)


@njit("void(float32[::1], int64[::1], float64[:, ::1])", cache=True, nogil=True)
def ends_of_groups(x, group, limits):
    limits[:, 0], limits[:, 1] = np.inf, -np.inf
    for i in range(len(x)):
        g = group[i]
        if 0 <= g < len(limits) and np.isfinite(x[i]):
            limits[g, 0], limits[g, 1] = min(limits[g, 0], x[i]), max(limits[g, 1], x[i])
    for g in range(len(limits)):
        if limits[g, 0] > limits[g, 1]:
            limits[g] = 0.0


@njit(inline="always")
def position_of(x, low, high, scale):
    """Number of a value from 0 on; -1 if it is not finite or outside the limits."""
    y = np.float32(1.0 + (x - low) * scale).view(np.int32) - ONE
    return np.int32(min(y, POSITIONS - 1)) if low <= x <= high else _NOWHERE  # type: ignore[arg-type]


@njit(inline="always")
def scale_of(low, high):
    return SPAN / (high - low) if high > low else 0.0


@njit
def empty(table, count, total, left_out, largest_offset):
    """Move the cells of a table to the sums that all threads share."""
    counts, totals = count.ctypes.data, total.ctypes.data
    last, number, none = len(count) - 1, table[-1] >> FIELD, table[-1] & OFFSETS
    take(left_out.ctypes.data, none)
    take(counts + 8 * last, number - none)
    take(totals + 8 * last, (number - none) * np.int64(largest_offset))
    for cell in range(len(count)):
        if table[cell] != 0:
            take(counts + 8 * cell, table[cell] >> FIELD)
            take(totals + 8 * cell, table[cell] & OFFSETS)
    table[:] = 0
    keep(count)
    keep(total)
    keep(left_out)


@njit("void(int64, float32[::1], float64[:, ::1], int64, int64[::1], int64[::1], int64[::1])", cache=True, nogil=True)
def fill(cursor, x, limits, shift, count, total, left_out):
    """Add pieces of the values of one group, all that are finite within the limits, to counts and sums of offsets.

    One cell more takes what has no bin: position POSITIONS is the upper limit, that after it stands for no number.
    """
    bins, held = len(count), 0
    table, which, what = np.zeros(bins + 1, np.int64), np.empty(STRIP, np.uint32), np.empty(STRIP, np.int64)
    bits, last = np.uint32(shift), np.uint32(POSITIONS + 1)
    mask = np.uint32((1 << shift) - 1)
    low, scale = limits[0, 0], scale_of(limits[0, 0], limits[0, 1])
    while True:
        start = take(cursor, PIECE)
        if start >= len(x):
            break
        stop = min(len(x), start + PIECE)
        if held + PIECE > FULL:
            empty(table, count, total, left_out, mask)
            held = 0
        held += stop - start
        for first in range(start, stop, STRIP):
            strip = x[first : min(stop, first + STRIP)]  # with indices from 0 on the loop is vectorised
            for j in range(len(strip)):
                y = np.float32(1.0 + (np.float64(strip[j]) - low) * scale)
                p = min(np.uint32(y.view(np.uint32) - np.uint32(ONE)), last)
                which[j], what[j] = p, np.int64(p & mask) + COUNTED
            for j in range(len(strip)):
                table[which[j] >> bits] += what[j]
    empty(table, count, total, left_out, mask)


@njit(
    "void(float32[::1], int64[::1], float64[:, ::1], int64, int64, int64[::1], int64[::1], int64[::1])",
    cache=True,
    nogil=True,
)
def fill_groups(x, group, limits, bins, shift, count, total, left_out):
    """The same for groups, or for limits beyond which there are values."""
    for i in range(len(x)):
        g = group[i] if len(group) > 0 else 0
        if 0 <= g < len(limits):
            low, high = limits[g]
            p = np.int64(position_of(np.float64(x[i]), low, high, scale_of(low, high)))
            if p >= 0:
                count[g * bins + (p >> shift)] += 1
                total[g * bins + (p >> shift)] += p & ((1 << shift) - 1)
            elif not np.isfinite(x[i]):
                left_out[g] += 1


@njit("void(int64[:, ::1], int64[::1], float64[:, ::1], float64[:, ::1])", cache=True, nogil=True)
def write_means(count, total, limits, mean):
    bins = count.shape[1]
    width = bins // BINADES
    for g in range(len(count)):
        low, high = limits[g]
        unit = (high - low) / SPAN
        for b in range(bins):
            mean[g, b] = 0.0
            if count[g, b] > 0:
                edge = 1 + (b % width) / width
                y = (edge + total[g * bins + b] / count[g, b] * 2.0**-23) * (1 << b // width)
                mean[g, b] = min(low + (y - 1) * unit, high)
