"""value_histogram on the GPU: the range by integer atomics, cells by 64-bit atomics on several copies, one merge.

A cell is one int64: the count above, the sum of the offsets below `FIELD` bits, so a value costs one atomic addition.
Losses crowd in few bins, so programs are spread over copies; a copy is small enough that no cell overflows.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops import value_histogram as contract
from fastlnl.ops.value_histogram import Histogram, offset_bits

SPAN, ONE = tl.constexpr(contract.SPAN), tl.constexpr(contract.ONE)
BINADES, POSITIONS = tl.constexpr(contract.BINADES), tl.constexpr(contract.POSITIONS)
FIELD = tl.constexpr(40)
COUNTED, OFFSETS = tl.constexpr(1 << 40), tl.constexpr((1 << 40) - 1)
BLOCK, CELLS = 1024, 1024
COPY_VALUES = 1 << 21  # a copy may get as many: 2^21 offsets of up to 17 bits stay below FIELD
FEWEST_COPIES, COPIES_CELLS = 8, 1 << 16  # eight copies, as long as they are small


@triton.jit
def _key(bits):
    """Orders floats as integers; its own inverse."""
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def member_of(group, at, n, num_groups, GROUPS: tl.constexpr):
    inside = at < n
    g = tl.load(group + at, mask=inside, other=-1) if GROUPS else tl.where(inside, at * 0, -1)
    return g, inside & (g >= 0) & (g < num_groups)


@triton.jit
def _range_of(keys, limits, g, num_groups, mask, LIMITS: tl.constexpr):
    """Lowest and highest value of groups; 0, 0 of an empty one."""
    if LIMITS:
        low = tl.load(limits + 2 * g, mask=mask, other=0.0)
        high = tl.load(limits + 2 * g + 1, mask=mask, other=0.0)
    else:
        first = tl.load(keys + g, mask=mask, other=0)
        last = -1 - tl.load(keys + num_groups + g, mask=mask, other=0)
        low = tl.where(first <= last, _key(first).to(tl.float32, bitcast=True).to(tl.float64), 0.0)
        high = tl.where(first <= last, _key(last).to(tl.float32, bitcast=True).to(tl.float64), 0.0)
    return low, high


@triton.jit
def range_kernel(x, group, keys, n, num_groups, GROUPS: tl.constexpr, BLOCK: tl.constexpr):
    """keys[g] and -1 - keys[G + g]: keys of the lowest and the highest value; both cells start at the largest int."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    g, member = member_of(group, at, n, num_groups, GROUPS)
    v = tl.load(x + at, mask=at < n, other=0.0)
    key = _key(v.to(tl.int32, bitcast=True))
    use = member & (v - v == 0.0)
    if GROUPS:
        # A look first: only few values are the lowest so far, and cells only ever fall.
        tl.atomic_min(keys + g, key, mask=use & (key < tl.load(keys + g, mask=use, other=0)))
        other = keys + num_groups + g
        tl.atomic_min(other, -1 - key, mask=use & (-1 - key < tl.load(other, mask=use, other=0)))
    else:
        tl.atomic_min(keys, tl.min(tl.where(use, key, 2147483647), 0))
        tl.atomic_min(keys + 1, tl.min(tl.where(use, -1 - key, 2147483647), 0))


@triton.jit
def fill_kernel(x, group, keys, limits, tables, left_out, n, num_groups, copies, BINS: tl.constexpr,
                SHIFT: tl.constexpr, GROUPS: tl.constexpr, LIMITS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    at = program * BLOCK + tl.arange(0, BLOCK)
    g, member = member_of(group, at, n, num_groups, GROUPS)
    v = tl.load(x + at, mask=at < n, other=0.0)
    low, high = _range_of(keys, limits, g, num_groups, member, LIMITS)
    wide = v.to(tl.float64)
    scale = tl.where(high > low, SPAN / (high - low), 0.0)
    use = member & (v - v == 0.0) & (wide >= low) & (wide <= high)
    y = (1.0 + (wide - low) * scale).to(tl.float32)
    position = tl.minimum(y.to(tl.int32, bitcast=True) - ONE, POSITIONS - 1).to(tl.int64)
    cell = (program % copies * num_groups + g) * BINS + (position >> SHIFT)
    offset = position & ((1 << SHIFT) - 1)
    tl.atomic_add(tables + cell, offset + COUNTED, mask=use, sem="relaxed")
    tl.atomic_add(left_out + g, at * 0 + 1, mask=member & (v - v != 0.0), sem="relaxed")


@triton.jit
def merge_kernel(keys, limits, tables, count, mean, found, num_groups, copies, BINS: tl.constexpr,
                 LIMITS: tl.constexpr, CELLS: tl.constexpr):  # fmt: skip
    g = tl.program_id(0).to(tl.int64)
    bin_ = tl.program_id(1) * CELLS + tl.arange(0, CELLS)
    cell, here = g * BINS + bin_, bin_ < BINS
    counted, total = cell * 0, cell * 0
    for copy in range(copies):
        packed = tl.load(tables + copy * num_groups * BINS + cell, mask=here, other=0)
        counted += packed >> FIELD
        total += packed & OFFSETS
    low, high = _range_of(keys, limits, g, num_groups, True, LIMITS)
    per_binade = BINS // BINADES
    edge = 1.0 + (bin_ % per_binade).to(tl.float64) / per_binade
    inner = total.to(tl.float64) / tl.maximum(counted, 1).to(tl.float64) * 1.1920928955078125e-07
    y = (edge + inner) * (1 << bin_ // per_binade).to(tl.float64)
    value = tl.minimum(low + (y - 1.0) * ((high - low) / SPAN), high)
    tl.store(count + cell, counted, mask=here)
    tl.store(mean + cell, tl.where(counted > 0, value, 0.0), mask=here)
    tl.store(found + 2 * g, low)
    tl.store(found + 2 * g + 1, high)


def value_histogram(x: Tensor, group: Tensor | None, num_groups: int, bins: int, limits: Tensor | None) -> Histogram:
    n, device = len(x), x.device
    few = FEWEST_COPIES if num_groups * bins <= COPIES_CELLS else 1
    copies = max(few, triton.cdiv(n, COPY_VALUES))
    keys = torch.full((2 * num_groups,), 2**31 - 1, dtype=torch.int32, device=device) if limits is None else None
    tables = torch.zeros(copies * num_groups * bins, dtype=torch.int64, device=device)
    left_out = torch.zeros(num_groups, dtype=torch.int64, device=device)
    grid = (triton.cdiv(n, BLOCK),)
    groups, given = group is not None, limits is not None
    if n > 0:
        if keys is not None:
            range_kernel[grid](x, group, keys, n, num_groups, GROUPS=groups, BLOCK=BLOCK)
        fill_kernel[grid](
            x, group, keys, limits, tables, left_out, n, num_groups, copies, BINS=bins, SHIFT=offset_bits(bins),
            GROUPS=groups, LIMITS=given, BLOCK=BLOCK,
        )  # fmt: skip
    count = torch.empty(num_groups, bins, dtype=torch.int64, device=device)
    mean = torch.empty(num_groups, bins, dtype=torch.float64, device=device)
    found = torch.empty(num_groups, 2, dtype=torch.float64, device=device)
    cells = min(CELLS, bins)
    merge_kernel[(num_groups, bins // cells)](
        keys, limits, tables, count, mean, found, num_groups, copies, BINS=bins, LIMITS=given, CELLS=cells
    )
    return Histogram(count, mean, found, left_out)
