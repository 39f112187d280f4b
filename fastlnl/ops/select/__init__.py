"""The best of each group by score: small-loss samples, quantiles and class-balanced picks are all this."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe

__all__ = ["Selected", "select"]


class Selected(NamedTuple):
    """Who was selected, and where the line was drawn."""

    mask: Tensor  # (N,) bool
    cut: Tensor  # (G,) the worst selected score of each group; where none is selected, a score that nobody passes


def select(scores: Tensor, quota: Tensor, group: Tensor | None = None, *, largest: bool = True) -> Selected:
    """The `quota[g]` best samples of each group g; of equal scores the lower id comes first.

    A radix selection in O(N): the sample that is selected last is found digit by digit of (score, id), for all groups
    at once. The counts are integers and ids differ, so neither threads nor the order of additions can be seen.

    Args:
        scores: (N,) float16, bfloat16 or float32 (float64 on the reference backend). NaN is never selected; -0.0
            equals 0.0.
        quota: (G,) any integer type, how many of each group, on the device of `scores`; below 0 counts as 0. A group
            that has fewer gives all it has.
        group: (N,) any integer type; a sample whose group is outside [0, G) is never selected. None: one group.
        largest: the highest scores are the best; False: the lowest, as for a loss.

    Returns:
        mask: (N,) bool.
        cut: (G,) float32, the worst score selected in each group: the k-th best, hence an order statistic of the
            group. Where nothing is selected it is inf, or -inf where the lowest scores are the best.

    Raises:
        ShapeError: shapes, types or devices do not fit.

    Deterministic. Nothing waits for the device.
    """
    if scores.dim() != 1 or not scores.is_floating_point():
        raise ShapeError(f"scores is {describe(scores)}; expected (N,) of a floating type")
    if quota.dim() != 1 or len(quota) == 0:
        raise ShapeError(f"quota is {describe(quota)}; expected (G,), a number for each group")
    quota = _integers("quota", quota, scores)
    if group is None:
        if len(quota) != 1:
            raise ShapeError(f"quota is for {len(quota)} groups but there is no group; say which sample is in which")
    elif group.shape != scores.shape:
        raise ShapeError(f"group is {describe(group)}; expected {tuple(scores.shape)}, one for each score")
    else:
        group = _integers("group", group, scores)
    if scores.dtype in (torch.float16, torch.bfloat16):
        scores = scores.float()
    work = backend.implementation("select", scores)
    mask, cut = work(scores.detach().contiguous(), quota, group, largest)
    return Selected(mask, cut)


def _integers(name: str, x: Tensor, scores: Tensor) -> Tensor:
    if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool:
        raise ShapeError(f"{name} is {describe(x)}; expected an integer type")
    if x.device != scores.device:
        raise ShapeError(f"{name} is on {x.device} but scores is on {scores.device}; move one of them")
    return x.long().contiguous()
