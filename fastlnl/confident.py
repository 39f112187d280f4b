"""Confident learning: which labels are likely wrong, from out-of-sample probabilities, without leaving the device.

The thresholds, the joint and the rules are those of cleanlab (Northcutt, Jiang, Chuang 2021, "Confident Learning:
Estimating Uncertainty in Dataset Labels"). Everywhere probs is (N, C), label (N,) integer, a joint (C, C) with given
classes as rows and true classes as columns; a row whose label is outside [0, C) counts nowhere. All deterministic.
"""

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.class_reduce import class_reduce, class_thresholds
from fastlnl.ops.doors import describe
from fastlnl.ops.select import select
from fastlnl.selection import class_counts

NEARLY = 1e-6  # a label whose probability is this close to the highest is no issue


def confident_thresholds(probs: Tensor, label: Tensor) -> Tensor:
    """(C,) float64: mean probability of each class over the samples given that class; inf where there are none."""
    return class_thresholds(probs, label)[1]


def quantile_thresholds(probs: Tensor, label: Tensor, q: float) -> Tensor:
    """(C,) float64: in each class the lowest p_label that at least a share q of its samples do not exceed.

    The inverse distribution function: a probability that occurs, not an interpolated one; q in (0, 1]. inf for a
    class without samples. A way to be stricter or milder than the mean where a class's probabilities are skewed.
    """
    classes = probs.shape[1]
    p = _own(probs, label)
    quota = (class_counts(label, classes, ~p.isnan()).double() * q).ceil().clamp(min=1)
    cut = select(p, quota.long(), label, largest=False).cut.double()
    return torch.where(cut == -torch.inf, torch.inf, cut)


def confident_joint(
    probs: Tensor, label: Tensor, *, thresholds: Tensor | None = None, calibrate: bool = True
) -> Tensor:
    """(C, C) int64: how many samples given class i confidently belong to class j, at least one on the diagonal.

    Args:
        thresholds: (C,), in place of `confident_thresholds`.
        calibrate: scale each row to the number of samples given its class (`calibrate_joint`).
    """
    classes = probs.shape[1]
    reduced = class_reduce(probs, label, thresholds)
    label, confident = label.long(), reduced.confident
    counted = (confident >= 0) & (label >= 0) & (label < classes)
    cell = torch.where(counted, label * classes + confident, 0)
    joint = torch.zeros(classes * classes, dtype=torch.int64, device=probs.device)
    joint = joint.scatter_add_(0, cell, counted.long()).view(classes, classes)
    joint.diagonal().clamp_(min=1)
    return calibrate_joint(joint, reduced.size) if calibrate else joint


def calibrate_joint(joint: Tensor, count: Tensor) -> Tensor:
    """The joint (C, C) with each row scaled to sum to count (C,), in whole numbers; int64.

    Rounded to the nearest; what a row then lacks is added where rounding took most, what it has too much is taken
    where rounding gave most, lower classes first where that is equal. cleanlab leaves the choice among equal ones to
    numpy's sort and exact halves to the last bit of a sum, so a count may differ from it by one; row sums do not.
    """
    if joint.dim() != 2 or joint.shape != (len(count), len(count)):
        raise ShapeError(f"joint is {describe(joint)} and count {describe(count)}; expected (C, C) and (C,)")
    scaled = joint.double().div_(joint.sum(1, keepdim=True).clamp(min=1)).mul_(count[:, None])
    whole = scaled.round()
    lacking = scaled.sum(1).round() - whole.sum(1)
    step = lacking.sign()[:, None]
    needs_most = scaled.sub_(whole).mul_(step).float()  # equal remainders of equal counts stay equal in float32
    needs_most.masked_fill_(needs_most <= 0, torch.nan)  # each is a half at most, so those above 0 are enough
    row = torch.arange(len(count), device=count.device)[:, None].expand_as(joint)
    changed = select(needs_most.view(-1), lacking.abs().long(), row.reshape(-1)).mask.view_as(joint)
    return whole.addcmul_(changed.double(), step).long()


def off_diagonal_issues(probs: Tensor, label: Tensor, *, thresholds: Tensor | None = None) -> Tensor:
    """(N,) bool: samples that confidently belong to another class than the given one (cleanlab: confident_learning)."""
    confident = class_reduce(probs, label, thresholds).confident
    return (confident >= 0) & (confident != label) & _doubtful(probs, label)


def prune_by_class(probs: Tensor, label: Tensor, joint: Tensor | None = None) -> Tensor:
    """(N,) bool: in each class i as many as the joint has off its diagonal, those of the lowest p_label first.

    Args:
        joint: (C, C) calibrated; None: `confident_joint`. At least one sample of each class is left.
    """
    joint = confident_joint(probs, label) if joint is None else joint
    quota = joint.sum(1) - joint.diagonal().clamp(min=1)
    return select(_own(probs, label), quota, label, largest=False).mask & _doubtful(probs, label)


def prune_by_noise_rate(probs: Tensor, label: Tensor, joint: Tensor | None = None) -> Tensor:
    """(N,) bool: for each pair of classes i, j the joint[i, j] samples given i with the largest p_j - p_label.

    One selection for each class j: C passes over a column of probs, for the end of a run rather than of an epoch.
    """
    joint = confident_joint(probs, label) if joint is None else joint
    own = _own(probs, label)
    quota = joint * (1 - torch.eye(len(joint), dtype=torch.int64, device=joint.device))
    issues = torch.zeros(len(own), dtype=torch.bool, device=own.device)
    for j in range(probs.shape[1]):
        issues |= select(probs[:, j] - own, quota[:, j], label).mask
    return issues & _doubtful(probs, label)


def _own(probs: Tensor, label: Tensor) -> Tensor:
    """(N,) p_label; NaN where the label is outside [0, C)."""
    label = label.long()
    own = label.clamp(0, probs.shape[1] - 1)
    p = probs.gather(1, own[:, None])[:, 0]
    return torch.where(label == own, p, torch.nan)


def _doubtful(probs: Tensor, label: Tensor) -> Tensor:
    """Another class is more probable than the given one, by more than rounding."""
    return probs.amax(1) > _own(probs, label) + NEARLY
