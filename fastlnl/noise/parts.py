"""Noise that depends on the sample itself: part-dependent noise, its weights drawn block by block."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl.errors import LabelError, ShapeError
from fastlnl.philox import normal, uniform

DEVIATION = 0.1  # of the samples' own rates
FEATURES, SAMPLES = 256, 16384  # of a block; constants, so that sums have the same order whatever N and C are


def instance(
    images: Tensor,
    label: Tensor,
    num_classes: int,
    rate: float,
    seed: int,
    *,
    moments: tuple[Sequence[float], Sequence[float]] | None = None,
    shared: bool = False,
    index: Tensor | None = None,
) -> Tensor:
    """Part-dependent noise: every sample has a rate of its own, and its pixels say which wrong label it gets.

        q_i ~ normal(rate, .1) truncated to [0, 1];   A = x_i W[y_i],  W (C, F, C) standard normal,  A_{y_i} = -inf
        P = q_i softmax(A),  P_{y_i} = 1 - q_i;   label_i ~ P

    W is never there as a whole: a block of 256 features of one class is drawn, used and forgotten, so the memory is
    that of 16,384 x (256 + C) + 256 x C numbers. On pixels 0..255 the softmax is nearly one-hot: an image has one wrong
    class it can become. Standardised pixels are softer.

    Args:
        images: (N, ...) uint8 or float; flattened, as float64.
        label: (N,) int64 true labels.
        num_classes: C, at least 2.
        rate: mean of the untruncated q, in [0, 1]; 0 changes no label (the formula would still change 8 %).
        seed: in [0, 2^32).
        moments: mean and std, one number a channel or one for all, in units of 0..1 for bytes: x = (x - mean) / std.
            None takes bytes as 0..255 and floats as they are.
        shared: one W (F, C) for all true classes.
        index: (N,) int64 sample ids, default 0 .. N - 1.

    Returns:
        (N,) int64 given labels, on the device of `label`.

    Raises:
        LabelError: a label outside [0, C).
        ShapeError: images and label differ in length, or images is of an integer type other than uint8.
        ValueError: rate outside [0, 1], or fewer than two classes.

    A label depends on (seed, id), on the sample and on its true label, up to the rounding of float64 sums. Source: Xia
    et al. 2020, algorithm 2; `shared`: Cheng et al. 2021, whose q is redrawn until it lies inside: the same law.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate} but must be in [0, 1], the share of samples: write 0.4 for 40 %")
    if num_classes < 2:
        raise ValueError(f"num_classes is {num_classes} but a label of another class needs 2")
    if len(images) != len(label) or not (images.is_floating_point() or images.dtype == torch.uint8):
        raise ShapeError(
            f"images is {tuple(images.shape)} {str(images.dtype)[6:]} and label {tuple(label.shape)}; expected one "
            f"label for each sample of bytes or floats"
        )
    if len(label) and (label.min() < 0 or label.max() >= num_classes):
        raise LabelError(
            f"label has values in [{label.min()}, {label.max()}] but there are {num_classes} classes; "
            f"are labels 1-based?"
        )
    if index is None:
        index = torch.arange(len(label), device=label.device)
    if rate == 0 or len(label) == 0:
        return label.clone()
    share, become = uniform(seed, "noise", index, draws=2).unbind(1)
    given = torch.empty_like(label)
    for c in range(1 if shared else num_classes):
        members = torch.arange(len(label), device=label.device) if shared else (label == c).nonzero()[:, 0]
        for rows in members.split(SAMPLES):
            x, own = images[rows.to(images.device)].flatten(1), label[rows]
            scores = part_scores(x, moments, num_classes, seed, c).to(label.device)
            given[rows] = drawn(scores, own, own_rate(share[rows], rate), become[rows])
    return given


def part_scores(
    x: Tensor, moments: tuple[Sequence[float], Sequence[float]] | None, num_classes: int, seed: int, c: int
) -> Tensor:
    """(n, C) float64: x (n, F), standardised, times the weights of class c, which are keyed by (seed, c, feature)."""
    features = x.shape[1]
    scores = torch.zeros(len(x), num_classes, dtype=torch.float64, device=x.device)
    if moments is not None:
        mean, std = (
            torch.tensor(values, dtype=torch.float64, device=x.device).repeat_interleave(features // len(values))
            for values in moments
        )
        unit = 255 if x.dtype == torch.uint8 else 1
    for begin in range(0, features, FEATURES):
        block = x[:, begin : begin + FEATURES].double()
        feature = torch.arange(begin, begin + block.shape[1], device=x.device)
        if moments is not None:
            block = (block / unit - mean[feature]) / std[feature]
        scores += block @ normal(seed, "noise/parts", c * features + feature, num_classes)
    return scores


def own_rate(draw: Tensor, rate: float) -> Tensor:
    """(n,) float64: normal(rate, .1) truncated to [0, 1], by the inverse of its distribution function."""
    low, high = (0.5 * math.erfc((rate - end) / DEVIATION / math.sqrt(2)) for end in (0, 1))
    return (rate + DEVIATION * torch.special.ndtri(low + draw * (high - low))).clamp(0, 1)


def drawn(scores: Tensor, label: Tensor, q: Tensor, draw: Tensor) -> Tensor:
    """(n,) int64 labels: 1 - q for the true one, q times the softmax of the others' scores for the others."""
    own = label[:, None]
    probs = scores.scatter(1, own, -torch.inf).softmax(1) * q[:, None]
    reached = probs.scatter(1, own, 1 - q[:, None]).cumsum(1)
    return (reached <= draw[:, None] * reached[:, -1:]).sum(1).clamp(max=scores.shape[1] - 1)
