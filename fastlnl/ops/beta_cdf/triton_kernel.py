"""The continued fraction of beta_cdf on the GPU: a program stops when its elements have settled."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.beta_cdf import STEPS

BLOCK = 128
MOST = tl.constexpr(STEPS)


@triton.jit
def _away_from_zero(x):
    return tl.where(tl.abs(x) < 1e-300, 1e-300, x)


@triton.jit
def beta_cdf_kernel(x, alpha, beta, out, n, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < n
    y = tl.load(x + at, mask=inside, other=0.0)
    a, b = tl.load(alpha + at, mask=inside, other=1.0), tl.load(beta + at, mask=inside, other=1.0)
    c = y * 0.0 + 1.0
    d = 1.0 / _away_from_zero(1.0 - (a + b) * y / (a + 1.0))
    fraction = d
    m, moving = y * 0.0 + 1.0, 1
    while moving > 0:
        term = m * (b - m) * y / ((a + 2.0 * m - 1.0) * (a + 2.0 * m))
        d, c = 1.0 / _away_from_zero(1.0 + term * d), _away_from_zero(1.0 + term / c)
        fraction = fraction * (c * d)
        term = -(a + m) * (a + b + m) * y / ((a + 2.0 * m) * (a + 2.0 * m + 1.0))
        d, c = 1.0 / _away_from_zero(1.0 + term * d), _away_from_zero(1.0 + term / c)
        fraction = fraction * (c * d)
        m += 1.0
        moving = tl.max(((tl.abs(c * d - 1.0) > 1e-15) & (m <= MOST)).to(tl.int32), 0)
    tl.store(out + at, fraction, mask=inside)


def beta_cdf(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty(len(x), dtype=torch.float64, device=x.device)
    if len(x) > 0:
        beta_cdf_kernel[(triton.cdiv(len(x), BLOCK),)](x, a, b, out, len(x), BLOCK=BLOCK)
    return out
