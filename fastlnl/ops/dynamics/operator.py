"""dynamics as an operator of torch, for torch.compile; eager calls go straight to `dynamics`."""

import torch
from torch import Tensor

from fastlnl.ops.dynamics import dynamics
from fastlnl.ops.row_loss import RowStats

_library = torch.library.Library("fastlnl", "FRAGMENT")
_library.define(
    "dynamics(Tensor(a!) records, Tensor(b!) counters, Tensor index, Tensor label, Tensor numbers, "
    "Tensor prediction, int num_classes, str[] track, "
    "float momentum, Tensor? second_prediction, Tensor(c!)? history, str history_statistic) -> ()"
)


@torch.library.impl(_library, "dynamics", "CompositeExplicitAutograd")
def _dynamics(
    records: Tensor, counters: Tensor, index: Tensor, label: Tensor, numbers: Tensor, prediction: Tensor,
    num_classes: int, track: list[str], momentum: float, second_prediction: Tensor | None, history: Tensor | None,
    history_statistic: str,
) -> None:  # fmt: skip
    dynamics(
        records,
        counters,
        index,
        label,
        RowStats(numbers, prediction),
        num_classes=num_classes,
        track=(track[0], track[1]),
        momentum=momentum,
        second_prediction=second_prediction,
        history=history,
        history_statistic=history_statistic,
    )


@torch.library.register_fake("fastlnl::dynamics", lib=_library)
def _fake(*args: object) -> None:
    """Nothing comes back."""
