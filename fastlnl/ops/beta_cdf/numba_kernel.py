"""The continued fraction of beta_cdf on the CPU: an element stops when it has settled."""

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.ops.beta_cdf import STEPS

TINY, SETTLED = 1e-300, 1e-15


def beta_cdf(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    out = torch.empty(len(x), dtype=torch.float64)
    fractions(x.numpy(), a.numpy(), b.numpy(), out.numpy())
    return out


@njit(inline="always")
def _away_from_zero(x):
    return TINY if abs(x) < TINY else x


@njit("void(float64[::1], float64[::1], float64[::1], float64[::1])", cache=True, nogil=True, error_model="numpy")
def fractions(x, alpha, beta, out):
    for i in range(len(x)):
        a, b, c = alpha[i], beta[i], 1.0
        d = 1 / _away_from_zero(1 - (a + b) * x[i] / (a + 1))
        fraction = d
        for m in range(1, STEPS + 1):
            even = m * (b - m) * x[i] / ((a + 2 * m - 1) * (a + 2 * m))
            d, c = 1 / _away_from_zero(1 + even * d), _away_from_zero(1 + even / c)
            fraction *= c * d
            odd = -(a + m) * (a + b + m) * x[i] / ((a + 2 * m) * (a + 2 * m + 1))
            d, c = 1 / _away_from_zero(1 + odd * d), _away_from_zero(1 + odd / c)
            fraction *= c * d
            if np.abs(c * d - 1) <= SETTLED:
                break
        out[i] = fraction
