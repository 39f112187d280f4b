"""N values on a line as a few thousand integer counts, each with the mean of the values it counts."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe

__all__ = ["BINADES", "ONE", "POSITIONS", "SPAN", "Histogram", "offset_bits", "value_histogram"]

# A value becomes y = 1 + SPAN (x - low) / (high - low) in [1, 16], and the bits of y as a float32, less those of 1,
# count up from 0 to 2^25: a monotone integer, linear between powers of two, whose upper bits are the bin and whose
# lower bits are summed. So bins are finest at the low end, 1 / 15,360 of the range at 4,096 bins, where the small
# losses crowd, and 1 / 1,920 at the high end, and nothing but integers is ever added.
BINADES = 4
SPAN = 2.0**BINADES - 1
POSITIONS = BINADES << 23
ONE = 0x3F800000  # the bits of 1.0


class Histogram(NamedTuple):
    """Counts and means of the bins, in ascending order of value."""

    counts: Tensor  # (G, bins) int64
    mean: Tensor  # (G, bins) float64, of the values in the bin; 0 where there are none
    limits: Tensor  # (G, 2) float64, lowest and highest value that is binned; 0, 0 in an empty group
    left_out: Tensor  # (G,) int64, NaN and infinite values


def offset_bits(bins: int) -> int:
    """How many bits of a position lie below its bin."""
    return (POSITIONS // bins).bit_length() - 1


def value_histogram(
    x: Tensor, group: Tensor | None = None, num_groups: int = 1, bins: int = 4096, limits: Tensor | None = None
) -> Histogram:
    """Histogram of values, of each group on its own, over the range of its finite values.

    Bins are narrow at the low end and wide at the high end (constants above). The mean of a bin comes from an integer
    sum, so neither the order of the samples nor the number of threads changes a bit. Values are read twice.

    Args:
        x: (N,) float32. NaN and infinite values are counted in `left_out` and in no bin.
        group: (N,) int64, or None for one group; ids outside [0, num_groups) belong to none.
        num_groups: G.
        bins: a power of two, 256 to 65,536.
        limits: (G, 2) float64, the range to bin; values outside are left out. None: the lowest and highest value.

    Returns:
        `Histogram`.

    Raises:
        ShapeError: shapes or types do not fit, or bins is no such power of two.

    Deterministic.
    """
    if x.dim() != 1 or x.dtype != torch.float32 or not x.is_contiguous():
        raise ShapeError(f"x is {describe(x)}; expected contiguous (N,) float32")
    if group is not None:
        if group.shape != x.shape or group.dtype != torch.int64 or not group.is_contiguous():
            raise ShapeError(f"group is {describe(group)}; expected contiguous {tuple(x.shape)} int64")
        check_device("group", group, x)
    if not 256 <= bins <= 65536 or bins & (bins - 1):
        raise ShapeError(f"bins is {bins}; expected a power of two from 256 to 65536")
    if limits is not None and (limits.shape != (num_groups, 2) or limits.dtype != torch.float64):
        raise ShapeError(f"limits is {describe(limits)}; expected ({num_groups}, 2) float64")
    histogram: Histogram = backend.implementation("value_histogram", x)(x, group, num_groups, bins, limits)
    return histogram
