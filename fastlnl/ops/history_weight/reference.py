"""history_weight in plain torch."""

import torch
from torch import Tensor


def history_weight(history: Tensor, position: Tensor, decay: float) -> Tensor:
    age = torch.arange(len(history), device=history.device)[:, None]
    newest_first = history[(position[0] - 1 - age[:, 0]) % len(history)].float()
    there = ~newest_first.isnan() & (age < position[1])
    since = age - there.long().argmax(0)  # epochs between an entry and the sample's newest
    a = torch.where(there, torch.full_like(newest_first, decay) ** since.clamp(min=0), 0.0)
    total = a.sum(0)
    return torch.where(total > 0, torch.where(there, a * newest_first, 0.0).sum(0) / total, 0.0)
