"""What confident learning asks of predicted probabilities: how sure each class is of its own, and who passes that."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe

__all__ = ["ClassReduction", "class_reduce", "class_thresholds"]

LOWEST_THRESHOLD = 2e-6
SLACK = 1e-6  # a probability this far below its threshold still counts
FRACTION = 2**36  # class sums are integers of this fraction, so that their order does not matter


class ClassReduction(NamedTuple):
    """Class statistics of predicted probabilities."""

    size: Tensor  # (C,) int64, samples of each given class
    threshold: Tensor  # (C,) float64, from here on a probability is confident; inf for a class without samples
    confident: Tensor  # (N,) int64, the class a sample confidently belongs to, -1 for none


def class_reduce(probs: Tensor, label: Tensor, threshold: Tensor | None = None) -> ClassReduction:
    """Thresholds of the classes, and the class that each sample confidently belongs to, in one pass over the rows.

        threshold[c] = mean of probs[i, c] over the samples with label[i] = c, but at least 2e-6
        confident[i] = the one class c with probs[i, c] >= threshold[c] - 1e-6
                       if several are: argmax of the whole row (the lowest class of equal ones); if none is: -1

    Args:
        probs: (N, C) predicted out of sample, float16, bfloat16 or float32 (float64 on the reference backend), any
            strides. Logits: `logits.softmax(1)`.
        label: (N,) any integer type, given labels. A row whose label is outside [0, C) counts for no class.
        threshold: (C,) of a floating type to be used in place of the means.

    Returns:
        `ClassReduction`. Each probability enters its class's mean rounded to 2^-36 (an error below 1e-11), so every
        backend and number of threads gives the same bits. A NaN probability passes no threshold, is passed over by
        argmax and does not enter a mean. Comparisons are as exact as in float64.

    Raises:
        ShapeError: shapes, types or devices do not fit.

    Deterministic. Nothing waits for the device. Source: Northcutt, Jiang, Chuang 2021, section 3.1; slack, lower
    bound and collisions as cleanlab has them (it gives 2 for a class without samples).
    """
    size, mean = class_thresholds(probs, label)
    if threshold is None:
        threshold = mean
    elif threshold.shape != mean.shape or not threshold.is_floating_point():
        raise ShapeError(f"threshold is {describe(threshold)}; expected {tuple(mean.shape)} of a floating type")
    threshold, probs = threshold.double(), probs.detach()
    confident = backend.implementation("class_reduce", probs)(probs, _limits(threshold - SLACK, probs.dtype))
    return ClassReduction(size, threshold, confident)


def class_thresholds(probs: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """The size and the threshold of each class alone, as in `class_reduce`: one probability of each row is read."""
    if probs.dim() != 2 or not probs.is_floating_point() or probs.shape[1] == 0:
        raise ShapeError(f"probs is {describe(probs)}; expected (N, C) of a floating type with at least one class")
    samples, classes = probs.shape
    if label.shape != (samples,) or label.is_floating_point() or label.is_complex() or label.dtype == torch.bool:
        raise ShapeError(f"label is {describe(label)}; expected ({samples},) of an integer type, one for each row")
    if label.device != probs.device:
        raise ShapeError(f"label is on {label.device} but probs is on {probs.device}; move one of them")
    label = label.long()
    own = label.clamp(0, classes - 1)
    p = probs.detach().gather(1, own[:, None])[:, 0].double()
    counted = (label == own) & ~p.isnan()
    zero = torch.zeros(classes, dtype=torch.int64, device=probs.device)
    size = zero.scatter_add(0, own, (label == own).long())
    numbers = zero.scatter_add(0, own, counted.long())
    total = zero.scatter_add(0, own, torch.where(counted, p * FRACTION, 0.0).round().long())
    mean = total.double() / (numbers.clamp(min=1) * FRACTION)
    return size, torch.where(numbers > 0, mean.clamp(min=LOWEST_THRESHOLD), torch.inf)


def _limits(bound: Tensor, dtype: torch.dtype) -> Tensor:
    """The lowest number of the rows' precision that reaches each bound: comparing with it is as good as float64."""
    if dtype == torch.float64:
        return bound
    limit = bound.float()
    return torch.where(limit.double() < bound, torch.nextafter(limit, torch.full_like(limit, torch.inf)), limit)
