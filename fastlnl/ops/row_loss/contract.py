"""What goes into the row pass and what comes out: one signature for every backend."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from fastlnl.ops.row_loss.definition import LossDefinition


class TableTarget(NamedTuple):
    """Soft targets that live in a label memory and move with the predictions.

    With R = table[index[b]] and p the prediction, the target of row b is t = use R + (1 - use) p, a constant for the
    gradient, and the row becomes keep R + (1 - keep) p. A row whose first entry is negative was never written: it is
    onehot(label[b]) with `one_hot`, and p itself without.
    """

    table: Tensor  # (N, C) float32, contiguous; updated
    use: float
    keep: float
    one_hot: bool


@dataclass(slots=True)
class RowLossInput:
    """Checked arguments of one call; see `row_loss`."""

    logits: Tensor  # (B, C)
    label: Tensor | None  # (B,) int64
    loss: LossDefinition
    parameters: tuple[float, ...]
    target: Tensor | None  # (B, C) float32, contiguous
    memory: TableTarget | None
    index: Tensor | None  # (B,) int64
    weight: Tensor | None  # (B,) float32
    grad_scale: float
    reduction: str
    with_stats: bool
    errors: Tensor  # (4,) int64; updated


class RowStats(NamedTuple):
    """What one pass over a row of logits tells about it; each (B,), float32 but for the prediction."""

    nll: Tensor  # -log p_y of the given label, nats
    p_label: Tensor  # p_y
    confidence: Tensor  # max p
    prediction: Tensor  # int64, the lowest class that attains the maximum
    margin: Tensor  # z_y - max of the other logits; 0 with one class
    entropy: Tensor  # -sum p log p, nats


class RowLossOutput(NamedTuple):
    """loss (B,) or () float32; dlogits (B, C) in the type of the logits; statistics on request."""

    loss: Tensor
    dlogits: Tensor
    stats: RowStats | None
