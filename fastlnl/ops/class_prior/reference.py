"""class_prior in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.class_prior import LOWEST_MEAN, ClassPrior
from fastlnl.ops.row_loss.reference import softmax


def class_prior(logits: Tensor, prior: Tensor | None) -> ClassPrior:
    z = logits if logits.dtype == torch.float64 else logits.float()
    batch, classes = z.shape
    if batch == 0:
        return ClassPrior(z.new_zeros(classes), z.new_zeros(classes))
    mean = softmax(z.contiguous()).p.mean(0).clamp(min=LOWEST_MEAN)
    pi = torch.full_like(mean, 1 / classes) if prior is None else prior.to(z.dtype)
    return ClassPrior(torch.xlogy(pi, pi / mean), pi / mean)
