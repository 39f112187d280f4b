"""row_stats by the CUDA C++ extension (`csrc/row_stats.cu`)."""

import torch
from torch import Tensor

from fastlnl import extension
from fastlnl.ops.row_loss import RowStats


def row_stats(logits: Tensor, label: Tensor, errors: Tensor) -> RowStats:
    z = logits if logits.stride(1) == 1 or logits.shape[1] == 1 else logits.contiguous()
    batch = len(z)
    stats = torch.empty(5, batch, device=z.device)
    prediction = torch.empty(batch, dtype=torch.int64, device=z.device)
    extension.operators().row_stats(z, label, stats, prediction, errors)
    return RowStats(stats, prediction)
