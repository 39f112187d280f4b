"""select in plain torch: two stable sorts, and ranks within each group."""

import torch
from torch import Tensor


def select(scores: Tensor, quota: Tensor, group: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    n, groups, device = len(scores), len(quota), scores.device
    scores = torch.where(scores == 0, 0.0, scores)  # -0.0 too
    member = torch.zeros(n, dtype=torch.int64, device=device) if group is None else group
    nobody = (member < 0) | (member >= groups) | scores.isnan()
    member = torch.where(nobody, groups, member)
    order = scores.argsort(descending=largest, stable=True)
    order = order[member[order].argsort(stable=True)]
    member = member[order]
    ends = torch.searchsorted(member, torch.arange(groups, device=device), right=True)
    starts = torch.cat([ends.new_zeros(1), ends])
    taken = torch.minimum(quota.clamp(min=0), ends - starts[:-1])
    rank = torch.arange(n, device=device) - starts[member]
    mask = torch.empty(n, dtype=torch.int8, device=device)
    mask[order] = (rank < torch.cat([taken, taken.new_zeros(1)])[member]).to(torch.int8)
    nothing = scores.new_full((1,), torch.inf if largest else -torch.inf)
    last = torch.where(taken > 0, starts[:-1] + taken - 1, n)
    return mask.view(torch.bool), torch.cat([scores[order], nothing])[last]
