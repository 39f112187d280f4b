"""The loss of a MixMatch step: soft cross-entropy on labelled rows, squared error on guessed ones, a prior on all."""

import torch
from torch import Tensor, nn

from fastlnl.losses.criterion import require_inside
from fastlnl.losses.fused import _WithGradient
from fastlnl.ops.class_prior import class_prior
from fastlnl.ops.mixmatch_rows import mixmatch_rows


class MixMatch(nn.Module):
    """Lx + unlabeled_weight Lu + prior_weight D, as DivideMix and its successors train on mixed rows.

        Lx = mean of -<t, log p> over the labelled rows
        Lu = mean of (p - t)^2 over the other rows and the classes
        D  = sum_c prior_c log(prior_c / mean prediction_c) over all rows

    Two readings of the logits give loss and gradient. A part without rows counts as 0. Sources: Berthelot et al. 2019;
    Tanaka et al. 2018 (D); Li, Socher, Hoi 2020 (all three).

    Args:
        prior_weight: of D, >= 0; with 0 the first reading is left out.
        prior: (C,) probabilities of the classes; None is 1/C each.
    """

    prior: Tensor | None

    def __init__(self, prior_weight: float = 1.0, prior: Tensor | None = None) -> None:
        super().__init__()
        require_inside("prior_weight", prior_weight, 0, float("inf"))
        self.prior_weight = prior_weight
        self.register_buffer("prior", prior, persistent=False)

    def forward(self, logits: Tensor, target: Tensor, labelled: int, unlabeled_weight: float | Tensor = 1.0) -> Tensor:
        """Loss of a step.

        Args:
            logits: (B, C), float16, bfloat16 or float32, any strides.
            target: (B, C) soft labels, constants; negative entries are legal.
            labelled: how many of the first rows count for Lx; the rest counts for Lu.
            unlabeled_weight: a number, or () on the device of the logits.

        Returns:
            () float32.
        """
        found = class_prior(logits, self.prior) if self.prior_weight > 0 else None
        # As in `fused_loss`: of float16 logits the gradient is divided by the batch size in backward.
        late = float(max(len(logits), 1)) if logits.dtype == torch.float16 else 1.0
        rows = mixmatch_rows(logits, target, labelled, unlabeled_weight, found, self.prior_weight, grad_scale=late)
        value = rows.loss.sum()
        if not (logits.requires_grad and torch.is_grad_enabled()):
            return value
        loss: Tensor = _WithGradient.apply(logits, value, rows.dlogits, 1 / late)
        return loss

    def extra_repr(self) -> str:
        return f"prior_weight={self.prior_weight:g}"
