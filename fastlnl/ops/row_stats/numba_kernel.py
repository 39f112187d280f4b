"""row_stats on the CPU: the pass of row_loss that ends before the gradient."""

import torch
from torch import Tensor

from fastlnl.ops.row_loss import RowStats
from fastlnl.ops.row_loss.numba_kernel import pass_over, row_stats_of
from fastlnl.ops.row_loss.numba_pass import NO_TARGET


def row_stats(logits: Tensor, label: Tensor, errors: Tensor) -> RowStats | None:
    batch = len(logits)
    stats, prediction = torch.empty(5, batch), torch.empty(batch, dtype=torch.int64)
    pass_over(
        logits, label, None, NO_TARGET, None, 0, errors, False, 1.0, 1.0, None, 0, 0, 0, 1.0, None, None, stats,
        prediction, 1, None,
    )  # fmt: skip
    return row_stats_of(stats, prediction)
