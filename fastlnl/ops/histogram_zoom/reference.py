"""histogram_zoom in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.histogram_zoom import PARTS, WINDOW, Zoom
from fastlnl.ops.value_histogram import SPAN, Histogram, offset_bits
from fastlnl.ops.value_histogram.reference import positions


def histogram_zoom(x: Tensor, group: Tensor | None, histogram: Histogram, at: Tensor) -> Zoom:
    (groups, bins), cells = histogram.counts.shape, WINDOW * PARTS
    low, high = histogram.limits.unbind(1)
    shift = offset_bits(bins)
    part = shift - PARTS.bit_length() + 1
    centre = positions(torch.minimum(torch.maximum(at, low), high), low, high) >> shift
    first = (centre - WINDOW // 2).clamp(0, bins - WINDOW)
    group = torch.zeros(len(x), dtype=torch.int64, device=x.device) if group is None else group
    inside = (group >= 0) & (group < groups) & x.isfinite()
    group, value = torch.where(inside, group, 0), torch.where(inside, x.double(), 0)
    inside &= (value >= low[group]) & (value <= high[group])
    position = positions(torch.where(inside, value, low[group]), low[group], high[group])
    own = (position >> part) - first[group] * PARTS
    inside &= (own >= 0) & (own < cells)
    own = torch.where(inside, group * cells + own, 0)
    count = torch.zeros(groups * cells, dtype=torch.int64, device=x.device)
    total = torch.zeros_like(count).scatter_add_(0, own, (position & (1 << part) - 1) * inside).view(groups, cells)
    count = count.scatter_add_(0, own, inside.long()).view(groups, cells)
    begin = first[:, None] * PARTS + torch.arange(cells, device=x.device) << part
    y = (1 + ((begin & (1 << 23) - 1) + total.double() / count.clamp(min=1)) * 2.0**-23) * 2.0 ** (begin >> 23)
    mean = torch.minimum(low[:, None] + (y - 1) * ((high - low) / SPAN)[:, None], high[:, None])
    mean = torch.where(count > 0, mean, 0)
    # Point i of the result is bin i below the window, a part in it, and a bin again above it.
    point, first = torch.arange(bins - WINDOW + cells, device=x.device), first[:, None]
    source = torch.where(point < first, point, torch.where(point < first + cells, bins + point - first,
                                                           point - cells + WINDOW))  # fmt: skip
    value = torch.cat((histogram.mean, mean), dim=1).gather(1, source)
    return Zoom(value, torch.cat((histogram.counts, count), dim=1).gather(1, source))
