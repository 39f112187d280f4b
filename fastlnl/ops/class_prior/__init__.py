"""How far the mean prediction of a batch is from the classes' prior: the first of two passes."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.ops.doors import check_logits, floats

__all__ = ["LOWEST_MEAN", "ClassPrior", "class_prior"]

LOWEST_MEAN = 1e-12


class ClassPrior(NamedTuple):
    """What the pass that makes gradients (`mixmatch_rows`) wants to know of the whole batch."""

    terms: Tensor  # (C,) float32, their sum is the penalty
    ratio: Tensor  # (C,) float32, prior over mean prediction

    @property
    def loss(self) -> Tensor:
        """() float32."""
        return self.terms.sum()


def class_prior(logits: Tensor, prior: Tensor | None = None) -> ClassPrior:
    """Divergence of the classes' prior from the mean prediction, class by class, in one reading of the logits.

        mean[c]  = mean of softmax(logits)[b, c] over the rows, at least 1e-12
        terms[c] = prior[c] log(prior[c] / mean[c])          (0 where prior[c] is 0)
        ratio[c] = prior[c] / mean[c]

    The derivative of the penalty by logits[b] is -(1/B) p (ratio - <p, ratio>), the second pass.

    Args:
        logits: (B, C) float16, bfloat16 or float32, any strides (float64 on the reference backend).
        prior: (C,) probabilities of the classes; None is 1/C each.

    Returns:
        `ClassPrior`. An empty batch has terms and ratio 0. A row with NaN or +inf logits makes all NaN; -inf counts as
        probability 0.

    Raises:
        ShapeError: shapes or types do not fit.

    Deterministic. Source: Tanaka et al. 2018, equation 11; Li, Socher, Hoi 2020.
    """
    _, classes = check_logits(logits)
    if prior is not None:
        prior = floats("prior", prior.detach(), (classes,), logits)
    with torch.no_grad():
        found: ClassPrior = backend.implementation("class_prior", logits)(logits.detach(), prior)
    return found
