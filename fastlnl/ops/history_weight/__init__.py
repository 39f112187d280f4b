"""What the last epochs say about each sample: a decayed mean over the rows of a ring."""

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe

__all__ = ["history_weight"]


def history_weight(history: Tensor, position: Tensor, decay: float) -> Tensor:
    """Decayed mean of each sample's entries in a ring of epochs, in one pass over it.

        out[i] = sum_j decay^j h_j / sum_j decay^j,   h_j the entry of j epochs ago, j = 0 for the newest row

    over the rows that are stored and the entries that are not NaN; a sample without an entry gets 0. Dividing both sums
    by the power of the newest entry changes nothing, and lets decay 0 mean that entry alone.

    Args:
        history: (R, N) float16 or float32, contiguous, a row an epoch.
        position: (2,) int64 on the same device: the row that comes next, and how many before it are stored.
        decay: in [0, 1].

    Returns:
        (N,) float32.

    Raises:
        ShapeError: shapes or types do not fit.
        ValueError: decay lies outside [0, 1].

    Deterministic. Source: our reconstruction of CREMA (Zhang et al. 2022).
    """
    if history.dim() != 2 or history.dtype not in (torch.float16, torch.float32) or not history.is_contiguous():
        raise ShapeError(f"history is {describe(history)}; expected contiguous (R, N) float16 or float32")
    if position.shape != (2,) or position.dtype != torch.int64:
        raise ShapeError(f"position is {describe(position)}; expected (2,) int64")
    check_device("position", position, history)
    if not 0 <= decay <= 1:
        raise ValueError(f"decay is {decay}; expected a value in [0, 1]")
    weight: Tensor = backend.implementation("history_weight", history)(history, position.contiguous(), decay)
    return weight
