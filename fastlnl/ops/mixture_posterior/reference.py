"""mixture_posterior in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.mixture_em import CERTAIN
from fastlnl.ops.mixture_em.definitions import inner


def mixture_posterior(x: Tensor, odds: Tensor, group: Tensor | None, beta: bool, log_odds: bool) -> Tensor:
    group = torch.zeros(len(x), dtype=torch.int64, device=x.device) if group is None else group
    member = (group >= 0) & (group < len(odds)) & x.isfinite()
    c, p0, p1, p2, p3, low, high, scale = odds[torch.where(member, group, 0)].unbind(1)
    ends = (p2, p3) if beta else (low, high)
    v = torch.minimum(torch.maximum(torch.where(member, x, 0).double(), ends[0]), ends[1])
    if beta:
        found = c + p0 * inner((v - low) * scale).log() + p1 * inner((high - v) * scale).log()
    else:
        found = c + p1 * (v - p0) ** 2 - p3 * (v - p2) ** 2
    found = torch.where(member, found.clamp(-CERTAIN, CERTAIN), -CERTAIN).float()
    return found if log_odds else found.sigmoid()
