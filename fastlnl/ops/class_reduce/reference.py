"""class_reduce in plain torch."""

import torch
from torch import Tensor


def class_reduce(probs: Tensor, limit: Tensor) -> Tensor:
    reached = probs.to(limit.dtype) >= limit
    number = reached.sum(1)
    likeliest = torch.where(probs.isnan(), -torch.inf, probs).argmax(1)
    chosen = torch.where(number > 1, likeliest, reached.byte().argmax(1))
    return torch.where(number > 0, chosen, -1)
