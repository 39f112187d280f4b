"""The loss of IDO on two views of a batch: loss, both gradients, both predictions and the wrong events in one pass."""

from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, float32, int32

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, check_logits, describe, integers

__all__ = ["COUNTER_ORDERS", "ENTROPY_SCALES", "FLOOR", "REDUCTIONS", "TwoViewInput", "TwoViewOutput", "two_view_loss"]

ENTROPY_SCALES = ("none", "sample", "batchmean")
COUNTER_ORDERS = ("before_weights", "after_weights")
REDUCTIONS = ("none", "sum", "mean")
FLOOR = 1e-4  # probabilities of the entropy term stay in [FLOOR, 1 - FLOOR]
FULL = 2**31 - 1  # where a counter stops


@dataclass(slots=True)
class TwoViewInput:
    """Checked arguments of one call; see `two_view_loss`."""

    weak: Tensor  # (B, C)
    strong: Tensor  # (B, C), of the same type
    label: Tensor  # (B,) int64
    index: Tensor  # (B,) int64
    wrong_count: Tensor  # (N,) int32, contiguous; updated
    table: Tensor  # (G, K, 2) float32, contiguous
    entropy_scale: str
    before: bool  # counters first, then weights
    grad_scale: float
    reduction: str
    errors: Tensor  # (4,) int64; updated


class TwoViewOutput(NamedTuple):
    """Of both views the weak one stands first."""

    loss: Tensor  # (B,) or () float32
    dlogits: Tensor  # (2, B, C) in the type of the logits
    prediction: Tensor  # (2, B) int64


def two_view_loss(
    logits_weak: Tensor,
    logits_strong: Tensor,
    label: Tensor,
    index: Tensor,
    wrong_count: Tensor,
    table: Tensor,
    *,
    entropy_scale: str = "none",
    counter_order: str = "before_weights",
    grad_scale: float = 1.0,
    reduction: str = "none",
    errors: Tensor,
) -> TwoViewOutput:
    """Count how often both views are predicted against the label, look up two weights, weight three losses by them.

        wrong_count[index] += [argmax zw != y] + [argmax zs != y]
        tau, eps = table[y (or 0 if G = 1), min(wrong_count[index], K - 1)]
        loss[b]  = tau (CE(zw, y) + CE(zs, y)) + eps / C sum_k (zs_k - zw_k)^2 + f (1 - tau) H
        dlogits  = grad_scale times the derivative of sum_b loss[b], tau and eps constants

    with q the mean of both softmaxes, each clamped to [1e-4, 1 - 1e-4], H = -sum_k q_k log q_k, and f = 1
    (`entropy_scale` "none"), the row's max q ("sample"), or the mean of max q over the batch ("batchmean": then every
    row depends on every other, and the mean of the last term over the batch is cbar S of the method's card).

    Args:
        logits_weak, logits_strong: (B, C) float16, bfloat16 or float32, any strides (float64 on the reference backend),
            both of one type.
        label: (B,) any integer type, given labels.
        index: (B,) any integer type, sample ids; -1 is padding: loss 0, gradient 0, nothing counted, its label not
            looked at, and no other row changed by it.
        wrong_count: (N,) int32 wrong events of each sample, stopping at 2^31 - 1.
        table: (G, K, 2) float32, clean probability and similarity weight by group and count; the group is the given
            label if G = C, and G = 1 is one group for all. Counts beyond the last row use the last row.
        counter_order: "before_weights" reads the table after all events of the batch were counted, "after_weights"
            before any was. Repeated ids: every occurrence counts, all read the same count.
        grad_scale: factor of dlogits, 1/B for the gradient of a mean.
        reduction: "none" gives loss (B,), "sum" and "mean" (over B; of an empty batch 0) give loss ().
        errors: (4,) int64 from `new_error_word`. The first label outside [0, C) or id outside [0, N) is recorded there
            and stays, as in `row_loss`; such a row is treated as padding.

    Returns:
        `TwoViewOutput`. Predictions are the lowest class that attains the maximum. A row with a logit that is not
        finite in one of its views has loss NaN, gradients NaN and predictions 0, and is not counted; with
        "batchmean" its NaN reaches all rows. Views must not differ by more than 1e18, or their distance is no float32.

    Raises:
        ShapeError: shapes, types or devices do not fit; says what came and what was expected.

    Deterministic. Source: Zhang et al. 2025 (IDO, arXiv 2505.00812) and its code. Updates: wrong_count, errors.
    """
    batch, classes = check_logits(logits_weak)
    if logits_strong.shape != logits_weak.shape or logits_strong.dtype != logits_weak.dtype:
        raise ShapeError(
            f"logits_strong is {describe(logits_strong)} but logits_weak is {describe(logits_weak)}; "
            "expected two views of one batch by one network"
        )
    check_device("logits_strong", logits_strong, logits_weak)
    check_state(wrong_count, table, classes, logits_weak)
    for name, value, known in (
        ("entropy_scale", entropy_scale, ENTROPY_SCALES),
        ("counter_order", counter_order, COUNTER_ORDERS),
        ("reduction", reduction, REDUCTIONS),
    ):
        if value not in known:
            raise ShapeError(f"{name} is {value!r}; expected one of {', '.join(known)}")
    call = TwoViewInput(
        logits_weak,
        logits_strong,
        integers("label", label, batch, logits_weak),
        integers("index", index, batch, logits_weak),
        wrong_count,
        table,
        entropy_scale,
        counter_order == "before_weights",
        grad_scale,
        reduction,
        errors,
    )
    result: TwoViewOutput = backend.implementation("two_view_loss", logits_weak)(call)
    return result


def check_state(wrong_count: Tensor, table: Tensor, classes: int, like: Tensor) -> None:
    """Refuse counters and a table that a kernel could not use."""
    if wrong_count.dtype != int32 or wrong_count.dim() != 1 or not len(wrong_count) or not wrong_count.is_contiguous():
        raise ShapeError(f"wrong_count is {describe(wrong_count)}; expected contiguous (N,) int32 with N at least 1")
    groups, rows, columns = table.shape if table.dim() == 3 else (0, 0, 0)
    if table.dtype != float32 or groups not in (1, classes) or not rows or columns != 2 or not table.is_contiguous():
        raise ShapeError(
            f"table is {describe(table)}; expected contiguous (G, K, 2) float32 with G = {classes} (a group for each "
            "class) or 1, and K at least 1"
        )
    check_device("wrong_count", wrong_count, like)
    check_device("table", table, like)
