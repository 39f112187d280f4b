"""MixMatch's rows: soft cross-entropy on the labelled, squared error on the rest, a pull towards the prior on all.

The squared error on probabilities is no coefficient function of `row_loss`: its gradient has a term in p_j^2. And one
pass for all three terms reads the logits once where a pass for each would read them three times.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.class_prior import ClassPrior
from fastlnl.ops.doors import check_device, check_logits, describe, floats

__all__ = ["MixMatchRows", "mixmatch_rows"]


class MixMatchRows(NamedTuple):
    """What each row adds to the loss of the step, and the gradient of that loss."""

    loss: Tensor  # (B + 1,) float32 (float64 for float64 logits): weighted rows, then the prior; their sum is the loss
    dlogits: Tensor  # (B, C) in the type of the logits


def mixmatch_rows(
    logits: Tensor,
    target: Tensor,
    labelled: int,
    unlabeled_weight: float | Tensor = 1.0,
    prior: ClassPrior | None = None,
    prior_weight: float = 1.0,
    *,
    grad_scale: float = 1.0,
) -> MixMatchRows:
    """Loss and gradient of a MixMatch step in one pass over logits and targets.

        loss[b] = -(1/L) <t, log p>                                       the first L = labelled rows
        loss[b] = unlabeled_weight / (U C) sum_c (p_c - t_c)^2            the other U = B - L
        loss[B] = prior_weight sum_c prior.terms[c]

        dlogits[b] = grad_scale times (p sum t - t) / L,  or  2 unlabeled_weight / (U C) p ((p - t) - <p, p - t>),
                     less prior_weight / B p (ratio - <p, ratio>)

    Args:
        logits: (B, C) float16, bfloat16 or float32, any strides (float64 on the reference backend).
        target: (B, C) soft labels; they may be negative and need not sum to one.
        labelled: how many of the first rows have refined labels, in [0, B].
        unlabeled_weight: a number, or () on the device of the logits, so that a captured step can ramp it.
        prior: what `class_prior` found for the same logits; None leaves the term out.
        prior_weight: of that term.
        grad_scale: factor of dlogits alone.

    Returns:
        `MixMatchRows`. A row with NaN or +inf logits has loss and gradient NaN; -inf counts as probability 0.

    Raises:
        ShapeError: shapes or types do not fit.

    Deterministic. Source: Berthelot et al. 2019 (MixMatch); Li, Socher, Hoi 2020 (DivideMix).
    """
    batch, classes = check_logits(logits)
    target = _numbers("target", target.detach(), (batch, classes), logits)
    if not 0 <= labelled <= batch:
        raise ShapeError(f"labelled is {labelled}; expected a number of rows in [0, {batch}], the first of logits")
    if isinstance(unlabeled_weight, Tensor):
        if unlabeled_weight.shape != () or not unlabeled_weight.is_floating_point():
            raise ShapeError(
                f"unlabeled_weight is {describe(unlabeled_weight)}; expected a number or () of a float type"
            )
        check_device("unlabeled_weight", unlabeled_weight, logits)
        unlabeled_weight = unlabeled_weight.detach().float()
    if prior is not None:
        terms = _numbers("the terms of prior", prior.terms, (classes,), logits)
        prior = ClassPrior(terms, _numbers("the ratio of prior", prior.ratio, (classes,), logits))
    with torch.no_grad():
        rows: MixMatchRows = backend.implementation("mixmatch_rows", logits)(
            logits.detach(), target, labelled, unlabeled_weight, prior, prior_weight, grad_scale
        )
    return rows


def _numbers(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """float32, contiguous; beside float64 logits float64 stays."""
    if x.dtype == like.dtype == torch.float64 and x.shape == shape:
        check_device(name, x, like)
        return x.contiguous()
    return floats(name, x, shape, like)
