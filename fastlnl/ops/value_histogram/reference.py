"""value_histogram in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.value_histogram import BINADES, ONE, POSITIONS, SPAN, Histogram, offset_bits


def value_histogram(x: Tensor, group: Tensor | None, num_groups: int, bins: int, limits: Tensor | None) -> Histogram:
    group = torch.zeros(len(x), dtype=torch.int64, device=x.device) if group is None else group
    member = (group >= 0) & (group < num_groups)
    group, finite = torch.where(member, group, 0), x.isfinite()
    left_out = torch.zeros(num_groups, dtype=torch.int64, device=x.device)
    left_out.scatter_add_(0, group, (member & ~finite).long())
    inside = member & finite
    value = torch.where(inside, x.double(), 0)
    if limits is None:
        limits = range_of(value, group, inside, num_groups)
    low, high = limits[group].unbind(1)
    inside &= (value >= low) & (value <= high)
    position = positions(torch.where(inside, value, low), low, high)
    shift = offset_bits(bins)
    cell = group * bins + (position >> shift)
    count = torch.zeros(num_groups * bins, dtype=torch.int64, device=x.device)
    total = torch.zeros_like(count).scatter_add_(0, cell, (position & (1 << shift) - 1) * inside)
    count = count.scatter_add_(0, cell, inside.long()).reshape(num_groups, bins)
    return Histogram(count, bin_means(count, total.reshape(num_groups, bins), limits), limits, left_out)


def positions(value: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Numbers of values that are from low to high, from 0 on."""
    y = (1 + (value - low) * torch.where(high > low, SPAN / (high - low), 0)).float()
    return (y.view(torch.int32).long() - ONE).clamp(max=POSITIONS - 1)


def range_of(value: Tensor, group: Tensor, inside: Tensor, num_groups: int) -> Tensor:
    """Lowest and highest value (G, 2) of each group; 0, 0 where it has none."""
    ends = []
    for beyond, reduce in ((torch.inf, "amin"), (-torch.inf, "amax")):
        end = torch.full((num_groups,), beyond, dtype=torch.float64, device=value.device)
        ends.append(end.scatter_reduce_(0, group, torch.where(inside, value, beyond), reduce))
    found = torch.stack(ends, dim=1)
    return torch.where(found.isfinite(), found, 0)


def bin_means(count: Tensor, total: Tensor, limits: Tensor) -> Tensor:
    """Means (G, bins) from counts and sums of offsets."""
    bins, low, high = count.shape[1], limits[:, :1], limits[:, 1:]
    bin_ = torch.arange(bins, device=count.device, dtype=torch.float64)
    binade = (bin_ * (BINADES / bins)).floor()
    edge = 1 + (bin_ - binade * (bins // BINADES)) * (BINADES / bins)
    y = (edge + total.double() / count.clamp(min=1) * 2.0**-23) * 2.0**binade
    mean = torch.minimum(low + (y - 1) * ((high - low) / SPAN), high)
    return torch.where(count > 0, mean, 0)
