"""Confusion and transition matrices: how the classes are mixed up, known or estimated.

A transition matrix is (C, C) float64, T[i, j] = P(given label j | true class i): rows sum to one. A class of which
nothing is known has its row from the identity, never NaN. Deterministic.
"""

import math

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe


def confusion_matrix(label: Tensor, prediction: Tensor, num_classes: int) -> Tensor:
    """(C, C) int64, how many samples of each label (rows) have each prediction (columns).

    Args:
        label, prediction: (N,) integer; a pair with one outside [0, C) does not count.
    """
    if label.dim() != 1 or label.shape != prediction.shape:
        raise ShapeError(f"label is {describe(label)} and prediction {describe(prediction)}; expected (N,) integers")
    row, column = label.long(), prediction.long()
    counted = (row >= 0) & (row < num_classes) & (column >= 0) & (column < num_classes)
    counts = torch.zeros(num_classes * num_classes, dtype=torch.int64, device=row.device)
    counts.scatter_add_(0, torch.where(counted, row * num_classes + column, 0), counted.long())
    return counts.view(num_classes, num_classes)


def transition_matrix(true_label: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """The transition matrix of a data set whose true labels are known; both (N,) integer."""
    return _row_shares(confusion_matrix(true_label, label, num_classes))


def transition_from_joint(joint: Tensor) -> Tensor:
    """The transition matrix of a joint (C, C), given classes as rows, as `confident.confident_joint` gives it."""
    return _row_shares(joint.t())


def transition_from_anchors(probs: Tensor, q: float = 1.0) -> Tensor:
    """Row i is what the network predicts for the anchor of class i: the sample it is surest to be of class i.

    Args:
        probs: (N, C) of a network trained on the noisy labels, N at least 1.
        q: 1 takes the surest sample; 0.97, say, the surest one below the 97 % quantile of the class's probabilities,
            which a few wild predictions cannot move (the surest one where none is below).

    Source: Patrini et al. 2017 (forward and backward correction), section 4.1. The lowest id of equal ones.
    """
    if probs.dim() != 2 or not probs.is_floating_point() or len(probs) == 0:
        raise ShapeError(f"probs is {describe(probs)}; expected (N, C) of a floating type with at least one row")
    candidates = probs
    if q < 1:
        rank = math.ceil(q * (len(probs) - 1))  # of the two values around the quantile the higher
        bound = probs.kthvalue(rank + 1, 0).values
        below = probs < bound
        candidates = torch.where(below | ~below.any(0), probs, -torch.inf)
    rows = probs[candidates.argmax(0)].double()
    return rows / rows.sum(1, keepdim=True)


def _row_shares(counts: Tensor) -> Tensor:
    total = counts.sum(1, keepdim=True)
    known = counts.double() / total.clamp(min=1)
    return torch.where(total > 0, known, torch.eye(len(counts), dtype=torch.float64, device=counts.device))
