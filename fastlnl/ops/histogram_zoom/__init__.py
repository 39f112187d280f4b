"""A histogram that is finer around one value: there a start splits hardly more than it should."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe
from fastlnl.ops.value_histogram import Histogram

__all__ = ["PARTS", "WINDOW", "Zoom", "histogram_zoom"]

WINDOW = 8  # bins that are counted again, half of them below the value
PARTS = 512  # parts of each


class Zoom(NamedTuple):
    """Weighted points in ascending order: the bins, but for those of the window, which are there in parts."""

    value: Tensor  # (G, M) float64, means; 0 where nothing is counted; M = bins + WINDOW (PARTS - 1)
    counts: Tensor  # (G, M) int64


def histogram_zoom(x: Tensor, group: Tensor | None, histogram: Histogram, at: Tensor) -> Zoom:
    """Count the values in the eight bins around `at` once more, each bin in 512 parts.

    In 1.28M losses a bin near the middle holds some hundred values and a part of it one. 2-means cuts at a value; on
    bins it stops at an edge of one. Values are read once.

    Args:
        x: (N,) float32, the values of the histogram.
        group: (N,) int64, or None for one group, as the histogram had them.
        histogram: `Histogram` of G groups.
        at: (G,) float64, a value in each group; beyond the limits it counts as the nearer one.

    Returns:
        `Zoom`. Means come from integer sums, so neither the order of the samples nor the threads change a bit.

    Raises:
        ShapeError: shapes or types do not fit.

    Deterministic.
    """
    groups = len(histogram.counts)
    if x.dim() != 1 or x.dtype != torch.float32 or not x.is_contiguous():
        raise ShapeError(f"x is {describe(x)}; expected contiguous (N,) float32")
    if group is None and groups != 1:
        raise ShapeError(f"the histogram has {groups} groups but group is None; say which group each value is of")
    if group is not None and (group.shape != x.shape or group.dtype != torch.int64 or not group.is_contiguous()):
        raise ShapeError(f"group is {describe(group)}; expected contiguous {tuple(x.shape)} int64")
    if at.shape != (groups,) or at.dtype != torch.float64 or not at.is_contiguous():
        raise ShapeError(f"at is {describe(at)}; expected contiguous ({groups},) float64")
    for name, y in (("group", group), ("the histogram", histogram.counts), ("at", at)):
        if y is not None:
            check_device(name, y, x)
    zoom: Zoom = backend.implementation("histogram_zoom", x)(x, group, histogram, at)
    return zoom
