"""mixture_posterior on the GPU: a value is read, its log-odds taken in float64, its posterior written."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.mixture_em.triton_kernel import inner

BLOCK = 1024
CERTAIN = tl.constexpr(1000.0)  # as in the contract of mixture_em


@triton.jit
def mixture_posterior_kernel(x, odds, group, out, n, num_groups, BETA: tl.constexpr, GROUPS: tl.constexpr,
                             LOG_ODDS: tl.constexpr, BLOCK: tl.constexpr):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    value = tl.load(x + at, mask=inside, other=0.0)
    member = value - value == 0.0
    if GROUPS:
        g = tl.load(group + at, mask=inside, other=-1)
        member = member & (g >= 0) & (g < num_groups)
        row = odds + 8 * tl.where(member, g, 0)
    else:
        row = odds
    c, p0, p1 = tl.load(row), tl.load(row + 1), tl.load(row + 2)
    p2, p3 = tl.load(row + 3), tl.load(row + 4)
    low, high = tl.load(row + 5), tl.load(row + 6)
    start, end = (p2, p3) if BETA else (low, high)
    v = tl.minimum(tl.maximum(tl.where(member, value, 0.0).to(tl.float64), start), end)
    if BETA:
        scale = tl.load(row + 7)
        q = c + p0 * tl.log(inner((v - low) * scale)) + p1 * tl.log(inner((high - v) * scale))
    else:
        q = c + p1 * (v - p0) * (v - p0) - p3 * (v - p2) * (v - p2)
    q = tl.where(member, tl.minimum(tl.maximum(q, -CERTAIN), CERTAIN), -CERTAIN).to(tl.float32)
    if LOG_ODDS:
        tl.store(out + at, q, mask=inside)
    else:
        e = tl.exp(-tl.abs(q))
        tl.store(out + at, tl.where(q >= 0.0, 1.0, e) / (1.0 + e), mask=inside)


def mixture_posterior(x: Tensor, odds: Tensor, group: Tensor | None, beta: bool, log_odds: bool) -> Tensor:
    out = torch.empty(len(x), device=x.device)
    if len(x) > 0:
        mixture_posterior_kernel[(triton.cdiv(len(x), BLOCK),)](
            x, odds, group, out, len(x), len(odds), BETA=beta, GROUPS=group is not None, LOG_ODDS=log_odds, BLOCK=BLOCK
        )
    return out
