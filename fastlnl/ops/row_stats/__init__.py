"""The reading pass alone: what each row of logits says about its sample, without a gradient."""

from torch import Tensor

from fastlnl import backend
from fastlnl.ops.doors import check_logits, integers
from fastlnl.ops.row_loss import RowStats

__all__ = ["row_stats"]


def row_stats(logits: Tensor, label: Tensor, *, errors: Tensor) -> RowStats:
    """Negative log-likelihood, probabilities, prediction, margin and entropy of each row in one pass over the logits.

    Args:
        logits: (B, C) float16, bfloat16 or float32, any strides (float64 on the reference backend).
        label: (B,) any integer type, given labels.
        errors: (4,) int64 from `new_error_word`; the first label outside [0, C) is recorded there, and its row is 0.

    Returns:
        `RowStats`: nll, p_label, confidence, margin, entropy (B,) float32 and prediction (B,) int64. Rows with NaN or
        +inf logits give NaN (margin and prediction are then without meaning); -inf counts as probability 0.

    Raises:
        ShapeError: shapes or types do not fit.

    Deterministic. Updates: errors.
    """
    label = integers("label", label, check_logits(logits)[0], logits)
    stats: RowStats = backend.implementation("row_stats", logits)(logits.detach(), label, errors)
    return stats
