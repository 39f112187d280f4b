"""row_stats in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.row_loss.reference import check_rows, softmax, statistics


def row_stats(logits: Tensor, label: Tensor, errors: Tensor) -> RowStats:
    z = (logits if logits.dtype == torch.float64 else logits.float()).contiguous()
    valid = check_rows(z, label, None, None, errors)
    return statistics(z, softmax(z), torch.where(valid, label, 0), valid)
