"""dynamics by the CUDA C++ extension (`csrc/dynamics.cu`)."""

from torch import Tensor

from fastlnl import extension
from fastlnl.ops.dynamics import Columns


def dynamics(
    records: Tensor, counters: Tensor, index: Tensor, label: Tensor, prediction: Tensor, second: Tensor | None,
    numbers: Tensor, columns: Columns, momentum: float, history: Tensor | None, num_classes: int,
) -> None:  # fmt: skip
    extension.operators().dynamics(
        records, counters, index, label, prediction, second, numbers, history, num_classes, columns.mean, columns.ema,
        columns.history, columns.log_odds, momentum,
    )  # fmt: skip
