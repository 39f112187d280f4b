"""How likely each value is to belong to the lower of two fitted components."""

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe

__all__ = ["mixture_posterior"]


def mixture_posterior(
    x: Tensor, odds: Tensor, group: Tensor | None = None, *, beta: bool = False, log_odds: bool = False
) -> Tensor:
    """Posterior of the lower component, in one pass over the values, from the log-odds that `mixture_em` hands out.

    A row of `odds` is c, p0, p1, p2, p3, low, high, scale. Then

        Gaussian:  log-odds = c + p1 (v - p0)^2 - p3 (v - p2)^2,   v = x held to [low, high]
        Beta:      log-odds = c + p0 log(z) + p1 log(z'),   v = x held to [p2, p3],
                   z = (v - low) scale, z' = (high - v) scale, both mapped to [1e-6, 1 - 1e-6]

    in float64; the posterior is then taken in float32, 1e-7 from the truth at most.

    Args:
        x: (N,) float32.
        odds: (G, 8) float64.
        group: (N,) int64, or None for one group.
        beta: whether the rows of `odds` are those of a Beta mixture.
        log_odds: give the log-odds, held to [-1000, 1000], instead of the posterior.

    Returns:
        (N,) float32. NaN, infinite values and values of no group give 0 (log-odds -1000).

    Raises:
        ShapeError: shapes or types do not fit.

    Deterministic.
    """
    if x.dim() != 1 or x.dtype != torch.float32 or not x.is_contiguous():
        raise ShapeError(f"x is {describe(x)}; expected contiguous (N,) float32")
    if odds.dim() != 2 or odds.shape[1] != 8 or odds.dtype != torch.float64 or not odds.is_contiguous():
        raise ShapeError(f"odds is {describe(odds)}; expected contiguous (G, 8) float64")
    if group is None and len(odds) != 1:
        raise ShapeError(f"odds has {len(odds)} groups but group is None; say which group each value is of")
    if group is not None and (group.shape != x.shape or group.dtype != torch.int64 or not group.is_contiguous()):
        raise ShapeError(f"group is {describe(group)}; expected contiguous {tuple(x.shape)} int64")
    for name, y in (("odds", odds), ("group", group)):
        if y is not None:
            check_device(name, y, x)
    posterior: Tensor = backend.implementation("mixture_posterior", x)(x, odds, group, beta, log_odds)
    return posterior
