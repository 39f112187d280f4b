"""select on the GPU: up to 4,096 samples by counting who is better, in one launch; more by a radix selection.

A sample's place is its (score, id) as one integer of 32 + log2(N) bits, higher for better. No two are equal, so the
last one selected is found by 8 bits a pass: count the next digit of those still in question, walk down the counts.
Two launches a pass, 5 passes up to N = 2^8, 7 up to 2^24; every pass reads the scores (and groups) once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

ONE_LAUNCH = 4096
DIGIT = tl.constexpr(256)


@triton.jit
def load_keys(scores, group, at, n, groups, LARGEST: tl.constexpr, GROUPED: tl.constexpr):
    """Score keys in [0, 2^32), higher for better; groups; and which samples can be selected at all."""
    score = tl.load(scores + at, mask=at < n, other=float("nan"))
    magnitude = (score.to(tl.int32, bitcast=True) & 0x7FFFFFFF).to(tl.int64)
    signed = tl.where(score < 0, -magnitude, magnitude)  # -0.0 is 0
    key = (signed if LARGEST else -signed) + 2147483648
    live = score == score
    g = tl.load(group + at, mask=at < n, other=-1) if GROUPED else at * 0
    return key, g, live & (g >= 0) & (g < groups), score


@triton.jit
def rank_kernel(scores, group, quota, mask, cut, n, groups, LARGEST: tl.constexpr, GROUPED: tl.constexpr,
                ROWS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """ROWS samples a program, each compared with all: its rank is how many of its group are better."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    key, g, live, score = load_keys(scores, group, rows, n, groups, LARGEST, GROUPED)
    rank, size = tl.zeros([ROWS], tl.int32), tl.zeros([ROWS], tl.int32)
    for begin in range(0, n, BLOCK):
        at = begin + tl.arange(0, BLOCK).to(tl.int64)
        key_, g_, live_, _score = load_keys(scores, group, at, n, groups, LARGEST, GROUPED)
        rival = live_[None, :] & (g_[None, :] == g[:, None])
        better = (key_[None, :] > key[:, None]) | ((key_[None, :] == key[:, None]) & (at[None, :] < rows[:, None]))
        size += tl.sum(rival.to(tl.int32), 1)
        rank += tl.sum((rival & better).to(tl.int32), 1)
    taken = tl.minimum(tl.load(quota + g, mask=live, other=0), size)
    tl.store(mask + rows, (live & (rank < taken)).to(tl.int8), mask=rows < n)
    tl.store(cut + g, score, mask=live & (rank + 1 == taken))


@triton.jit
def count_kernel(scores, group, prefix, count, n, groups, SHIFT: tl.constexpr, ID_BITS: tl.constexpr,
                 LARGEST: tl.constexpr, GROUPED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """How many of the samples that begin with their group's prefix have each next digit; added to count (G, 256)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key, g, live, _score = load_keys(scores, group, at, n, groups, LARGEST, GROUPED)
    place = ((key << ID_BITS) + ((1 << ID_BITS) - 1 - at)) >> SHIFT
    live = live & ((place >> 8) == tl.load(prefix + g, mask=live, other=0))
    digit = (place & (DIGIT - 1)).to(tl.int32)
    if GROUPED:
        tl.atomic_add(count + g * DIGIT + digit, 1, mask=live)
    else:
        here = tl.histogram(digit, DIGIT, mask=live)
        tl.atomic_add(count + tl.arange(0, DIGIT), here, mask=here > 0)


@triton.jit
def narrow_kernel(count, quota, prefix, remaining, groups, FIRST: tl.constexpr, ROWS: tl.constexpr):
    """Append to each prefix the digit at which the quota is reached, and empty the counts for the next pass."""
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    digits = tl.arange(0, DIGIT)
    inside = rows < groups
    cells = count + rows[:, None] * DIGIT + digits[None, :]
    here = tl.load(cells, mask=inside[:, None], other=0)
    total = tl.sum(here, 1)
    if FIRST:
        left = tl.minimum(tl.load(quota + rows, mask=inside, other=0), total)
    else:
        left = tl.load(remaining + rows, mask=inside, other=0)
    above = total[:, None] - tl.cumsum(here, 1)
    reached = (above < left[:, None]) & (left[:, None] <= above + here)
    digit = tl.sum(tl.where(reached, digits[None, :], 0), 1)
    before = tl.load(prefix + rows, mask=inside, other=0)
    tl.store(prefix + rows, (before << 8) + digit, mask=inside)
    tl.store(remaining + rows, left - tl.sum(tl.where(reached, above, 0), 1), mask=inside)
    tl.store(cells, tl.zeros([ROWS, DIGIT], tl.int32), mask=inside[:, None])


@triton.jit
def mark_kernel(scores, group, prefix, remaining, mask, cut, n, groups, ID_BITS: tl.constexpr, LARGEST: tl.constexpr,
                GROUPED: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    """Everybody down to the one that his group selects last, who writes his score; none where nothing was left."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    key, g, live, score = load_keys(scores, group, at, n, groups, LARGEST, GROUPED)
    place = (key << ID_BITS) + ((1 << ID_BITS) - 1 - at)
    live = live & (tl.load(remaining + g, mask=live, other=0) > 0)
    last = tl.load(prefix + g, mask=live, other=0)
    tl.store(mask + at, (live & (place >= last)).to(tl.int8), mask=at < n)
    tl.store(cut + g, score, mask=live & (place == last))


def select(scores: Tensor, quota: Tensor, group: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    n, groups, device = len(scores), len(quota), scores.device
    mask = torch.empty(n, dtype=torch.int8, device=device)
    cut = torch.full((groups,), torch.inf if largest else -torch.inf, device=device)
    how = {"LARGEST": largest, "GROUPED": group is not None}
    if 0 < n <= ONE_LAUNCH:
        shape = rank_shape(n)
        rank_kernel[(triton.cdiv(n, shape["ROWS"]),)](scores, group, quota, mask, cut, n, groups, **how, **shape)
    elif n > 0:
        id_bits = n.bit_length()
        prefix = torch.zeros(groups, dtype=torch.int64, device=device)
        remaining = torch.empty(groups, dtype=torch.int64, device=device)
        count = torch.zeros(groups, 256, dtype=torch.int32, device=device)
        shape = {"BLOCK": 2048, "num_warps": 8}
        grid = (triton.cdiv(n, shape["BLOCK"]),)
        top = (32 + id_bits - 1) // 8 * 8
        for shift in range(top, -1, -8):
            count_kernel[grid](scores, group, prefix, count, n, groups, SHIFT=shift, ID_BITS=id_bits, **how, **shape)
            narrow_kernel[(triton.cdiv(groups, 4),)](
                count, quota, prefix, remaining, groups, FIRST=shift == top, ROWS=4, num_warps=4
            )
        mark_kernel[grid](scores, group, prefix, remaining, mask, cut, n, groups, ID_BITS=id_bits, **how, **shape)
    return mask.view(torch.bool), cut


def rank_shape(n: int) -> dict[str, int]:
    """Samples a program and samples they are compared with at a time: small batches keep the grid wide."""
    return {"ROWS": 16, "BLOCK": min(128, max(16, triton.next_power_of_2(n))), "num_warps": 4}
