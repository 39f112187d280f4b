"""histogram_zoom on the CPU: sixteen values at a time are asked whether one is in the window; hardly any is."""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import keep, take
from fastlnl.cpu.simd import WIDTH, lanes, load, splat
from fastlnl.ops.histogram_zoom import PARTS, WINDOW, Zoom
from fastlnl.ops.value_histogram import POSITIONS, SPAN, Histogram, offset_bits
from fastlnl.ops.value_histogram.numba_kernel import position_of, scale_of

SERIAL_BELOW = 1 << 18  # values
PIECE = 1 << 15  # values taken at a time
CELLS = WINDOW * PARTS
PART_BITS = PARTS.bit_length() - 1


def histogram_zoom(x: Tensor, group: Tensor | None, histogram: Histogram, at: Tensor) -> Zoom:
    groups, bins = histogram.counts.shape
    values, ids = x.detach().numpy(), np.empty(0, np.int64) if group is None else group.numpy()
    run = team.team.run if group is None and len(x) >= SERIAL_BELOW else team.alone
    shift, limits = offset_bits(bins), histogram.limits.numpy()
    first = np.empty(groups, np.int64)
    windows(limits, at.numpy(), bins, shift, first)
    count, total = np.zeros(groups * CELLS, np.int64), np.zeros(groups * CELLS, np.int64)
    run(fill, values, ids, limits, shift - PART_BITS, first, count, total)
    value = torch.empty(groups, bins - WINDOW + CELLS, dtype=torch.float64)
    counts = torch.empty(groups, bins - WINDOW + CELLS, dtype=torch.int64)
    write_points(
        histogram.mean.numpy(), histogram.counts.numpy(), limits, shift - PART_BITS, first, count, total,
        value.numpy(), counts.numpy(),
    )  # fmt: skip
    return Zoom(value, counts)


@njit("void(float64[:, ::1], float64[::1], int64, int64, int64[::1])", cache=True, nogil=True)
def windows(limits, at, bins, shift, first):
    """First bin of each window."""
    for g in range(len(first)):
        low, high = limits[g]
        p = position_of(min(max(at[g], low), high), low, high, scale_of(low, high))
        first[g] = min(max((np.int64(p) >> shift) - WINDOW // 2, 0), bins - WINDOW)


@intrinsic
def _which_between(typing_context: Any, x: Any, low: Any, high: Any) -> Any:
    """A bit for each lane that is from low to high."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        above, below = builder.fcmp_ordered(">=", args[0], args[1]), builder.fcmp_ordered("<=", args[0], args[2])
        bits = builder.bitcast(builder.and_(above, below), ir.IntType(WIDTH))
        return builder.zext(bits, ir.IntType(64))

    return types.int64(lanes, lanes, lanes), codegen


@njit
def _value_at(position, low, high):
    y = (1.0 + (position & ((1 << 23) - 1)) * 2.0**-23) * (1 << (position >> 23))
    return low + (y - 1.0) * ((high - low) / SPAN)


@njit
def _ends_of_window(low, high, begin, end):
    """Two float32 with all values of the positions from begin to end between them, and few others."""
    lowest, highest = _value_at(begin, low, high), high if end >= POSITIONS else _value_at(end, low, high)
    slack = 2.0**-21 * (abs(low) + abs(high)) + 1e-44  # positions are rounded to 2^-24 of the range, ends to 2^-24
    return np.float32(lowest - slack), np.float32(highest + slack)


@njit(inline="always")
def _add(x, low, high, scale, part, begin, cell, count, total):
    p = np.int64(position_of(np.float64(x), low, high, scale))
    own = (p >> part) - begin
    if p >= 0 and 0 <= own < CELLS:
        count[cell + own] += 1
        total[cell + own] += p & ((1 << part) - 1)


@njit(
    "void(int64, float32[::1], int64[::1], float64[:, ::1], int64, int64[::1], int64[::1], int64[::1])",
    cache=True,
    nogil=True,
)
def fill(cursor, x, group, limits, part, first, count, total):
    """Add pieces of the values to `count` and to the sums of offsets, `total`."""
    if len(group) > 0:
        for i in range(len(x)):
            g = group[i]
            if 0 <= g < len(limits):
                low, high = limits[g]
                _add(x[i], low, high, scale_of(low, high), part, first[g] * PARTS, g * CELLS, count, total)
        return
    low, high = limits[0]
    scale, begin = scale_of(low, high), first[0] * PARTS
    lowest, highest = _ends_of_window(low, high, begin << part, (begin + CELLS) << part)
    floor, ceiling = splat(lowest), splat(highest)
    own_count, own_total = np.zeros(CELLS, np.int64), np.zeros(CELLS, np.int64)
    address = x.ctypes.data
    while True:
        start = take(cursor, PIECE)
        if start >= len(x):
            break
        stop = min(len(x), start + PIECE)
        whole = stop - (stop - start) % WIDTH
        for i in range(start, whole, WIDTH):
            which = _which_between(load(address, i), floor, ceiling)
            j = i
            while which != 0:
                if which & 1:
                    _add(x[j], low, high, scale, part, begin, 0, own_count, own_total)
                which, j = which >> 1, j + 1
        for i in range(whole, stop):
            _add(x[i], low, high, scale, part, begin, 0, own_count, own_total)
    for cell in range(CELLS):
        if own_count[cell] > 0:
            take(count.ctypes.data + 8 * cell, own_count[cell])
            take(total.ctypes.data + 8 * cell, own_total[cell])
    keep(x)
    keep(count)
    keep(total)


@njit(
    "void(float64[:, ::1], int64[:, ::1], float64[:, ::1], int64, int64[::1], int64[::1], int64[::1],"
    "float64[:, ::1], int64[:, ::1])",
    cache=True,
    nogil=True,
)
def write_points(bin_mean, bin_count, limits, part, first, count, total, value, counts):
    """Bins below the window, parts, bins above it."""
    for g in range(len(first)):
        low, high = limits[g]
        begin = first[g]
        value[g, :begin], counts[g, :begin] = bin_mean[g, :begin], bin_count[g, :begin]
        value[g, begin + CELLS :] = bin_mean[g, begin + WINDOW :]
        counts[g, begin + CELLS :] = bin_count[g, begin + WINDOW :]
        unit = (high - low) / SPAN
        for c in range(CELLS):
            number = count[g * CELLS + c]
            value[g, begin + c], counts[g, begin + c] = 0.0, number
            if number > 0:
                at = (begin * PARTS + c) << part
                inner = ((at & ((1 << 23) - 1)) + total[g * CELLS + c] / number) * 2.0**-23
                value[g, begin + c] = min(low + ((1.0 + inner) * (1 << (at >> 23)) - 1.0) * unit, high)
