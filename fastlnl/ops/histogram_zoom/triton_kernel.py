"""histogram_zoom on the GPU: every value is asked whether it is in the window, hardly any costs atomic additions."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops import histogram_zoom as contract
from fastlnl.ops.histogram_zoom import Zoom
from fastlnl.ops.value_histogram import Histogram, offset_bits
from fastlnl.ops.value_histogram.triton_kernel import ONE, POSITIONS, SPAN, member_of

WINDOW, PARTS = tl.constexpr(contract.WINDOW), tl.constexpr(contract.PARTS)
CELLS = tl.constexpr(contract.WINDOW * contract.PARTS)
BLOCK, POINTS = 1024, 1024


@triton.jit
def _position(value, low, high):
    y = (1.0 + (value - low) * tl.where(high > low, SPAN / (high - low), 0.0)).to(tl.float32)
    return tl.minimum(y.to(tl.int32, bitcast=True) - ONE, POSITIONS - 1)


@triton.jit
def _window(limits, at, g, mask, BINS: tl.constexpr, SHIFT: tl.constexpr):
    """Limits of a group and the first bin of its window."""
    low, high = tl.load(limits + 2 * g, mask=mask, other=0.0), tl.load(limits + 2 * g + 1, mask=mask, other=0.0)
    centre = tl.minimum(tl.maximum(tl.load(at + g, mask=mask, other=0.0), low), high)
    first = (_position(centre, low, high) >> SHIFT) - WINDOW // 2
    return low, high, tl.minimum(tl.maximum(first, 0), BINS - WINDOW)


@triton.jit
def zoom_fill_kernel(x, group, limits, at, count, total, n, num_groups, BINS: tl.constexpr, SHIFT: tl.constexpr,
                     PART: tl.constexpr, GROUPS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    index = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g, member = member_of(group, index, n, num_groups, GROUPS)
    v = tl.load(x + index, mask=index < n, other=0.0)
    low, high, first = _window(limits, at, g, member, BINS, SHIFT)
    wide = v.to(tl.float64)
    inside = member & (v - v == 0.0) & (wide >= low) & (wide <= high)
    position = _position(tl.where(inside, wide, low), low, high)
    own = (position >> PART) - first * PARTS
    use = inside & (own >= 0) & (own < CELLS)
    cell = g * CELLS + own
    tl.atomic_add(count + cell, index * 0 + 1, mask=use, sem="relaxed")
    tl.atomic_add(total + cell, (position & ((1 << PART) - 1)).to(tl.int64), mask=use, sem="relaxed")


@triton.jit
def zoom_points_kernel(mean, bin_count, limits, at, count, total, value, counts, BINS: tl.constexpr,
                       SHIFT: tl.constexpr, PART: tl.constexpr, POINTS: tl.constexpr):  # fmt: skip
    """Bins below the window, parts, bins above it."""
    g = tl.program_id(0).to(tl.int64)
    point = tl.program_id(1) * POINTS + tl.arange(0, POINTS)
    low, high, first = _window(limits, at, g, True, BINS, SHIFT)
    here = point < BINS - WINDOW + CELLS
    part = here & (point >= first) & (point < first + CELLS)
    whole = here & (part == 0)
    bin_ = g * BINS + tl.where(point < first, point, point - CELLS + WINDOW)
    cell = g * CELLS + point - first
    number, sum_ = tl.load(count + cell, mask=part, other=0), tl.load(total + cell, mask=part, other=0)
    begin = (first * PARTS + point - first) << PART
    begin = tl.where(part, begin, 0)
    inner = (begin & 8388607).to(tl.float64) + sum_.to(tl.float64) / tl.maximum(number, 1).to(tl.float64)
    y = (1.0 + inner * 1.1920928955078125e-07) * (1 << (begin >> 23)).to(tl.float64)
    found = tl.where(number > 0, tl.minimum(low + (y - 1.0) * ((high - low) / SPAN), high), 0.0)
    place = g * (BINS - WINDOW + CELLS) + point
    tl.store(value + place, tl.where(part, found, tl.load(mean + bin_, mask=whole, other=0.0)), mask=here)
    tl.store(counts + place, tl.where(part, number, tl.load(bin_count + bin_, mask=whole, other=0)), mask=here)


def histogram_zoom(x: Tensor, group: Tensor | None, histogram: Histogram, at: Tensor) -> Zoom:
    (groups, bins), device = histogram.counts.shape, x.device
    cells, shift = contract.WINDOW * contract.PARTS, offset_bits(bins)
    shape = {"BINS": bins, "SHIFT": shift, "PART": shift - contract.PARTS.bit_length() + 1}
    count, total = torch.zeros(2, groups * cells, dtype=torch.int64, device=device)
    points = bins - contract.WINDOW + cells
    value = torch.empty(groups, points, dtype=torch.float64, device=device)
    counts = torch.empty(groups, points, dtype=torch.int64, device=device)
    limits = histogram.limits
    if len(x) > 0:
        zoom_fill_kernel[(triton.cdiv(len(x), BLOCK),)](
            x, group, limits, at, count, total, len(x), groups, **shape, GROUPS=group is not None, BLOCK=BLOCK
        )
    zoom_points_kernel[(groups, triton.cdiv(points, POINTS))](
        histogram.mean, histogram.counts, limits, at, count, total, value, counts, **shape, POINTS=POINTS
    )
    return Zoom(value, counts)
