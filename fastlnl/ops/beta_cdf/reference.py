"""The continued fraction of beta_cdf in plain torch: all `STEPS` steps, as asking whether to stop would wait."""

import torch
from torch import Tensor

from fastlnl.ops.beta_cdf import STEPS

TINY = 1e-300


def _away_from_zero(x: Tensor) -> Tensor:
    return torch.where(x.abs() < TINY, TINY, x)


def beta_cdf(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    c = torch.ones_like(x)
    d = 1 / _away_from_zero(1 - (a + b) * x / (a + 1))
    fraction = d
    for m in range(1, STEPS + 1):
        for term in (
            m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
            -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1)),
        ):
            d = 1 / _away_from_zero(1 + term * d)
            c = _away_from_zero(1 + term / c)
            fraction = fraction * (c * d)
    return fraction
