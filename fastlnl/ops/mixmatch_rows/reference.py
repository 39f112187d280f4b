"""mixmatch_rows in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.class_prior import ClassPrior
from fastlnl.ops.mixmatch_rows import MixMatchRows
from fastlnl.ops.row_loss.reference import softmax


def mixmatch_rows(
    logits: Tensor, target: Tensor, labelled: int, unlabeled_weight: float | Tensor, prior: ClassPrior | None,
    prior_weight: float, grad_scale: float,
) -> MixMatchRows:  # fmt: skip
    z = (logits if logits.dtype == torch.float64 else logits.float()).contiguous()
    batch, classes = z.shape
    s, t = softmax(z), target.to(z.dtype)
    p, logp = s.p, s.x - s.log_sum
    hard = (torch.arange(batch, device=z.device) < labelled)[:, None]
    each = 1 / max(labelled, 1)
    soft = unlabeled_weight / (max(batch - labelled, 1) * classes)
    away = p - t
    loss = torch.where(hard, -each * t * logp, soft * away.square()).sum(1)
    dz = torch.where(
        hard, each * (p * t.sum(1, keepdim=True) - t), 2 * soft * p * (away - (p * away).sum(1, keepdim=True))
    )
    share = z.new_zeros(1)
    if prior is not None:
        ratio = prior.ratio.to(z.dtype)
        dz = dz - prior_weight / max(batch, 1) * p * (ratio - (p * ratio).sum(1, keepdim=True))
        share = prior_weight * prior.terms.to(z.dtype).sum()[None]
    loss = torch.where(s.finite, loss, torch.nan)
    return MixMatchRows(torch.cat([loss, share]), (grad_scale * dz).to(logits.dtype))
