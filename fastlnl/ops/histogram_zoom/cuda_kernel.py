"""histogram_zoom by the CUDA C++ extension (`csrc/histogram_zoom.cu`)."""

import torch
from torch import Tensor

from fastlnl import extension
from fastlnl.ops.histogram_zoom import PARTS, WINDOW, Zoom
from fastlnl.ops.value_histogram import Histogram


def histogram_zoom(x: Tensor, group: Tensor | None, histogram: Histogram, at: Tensor) -> Zoom:
    (groups, bins), device = histogram.counts.shape, x.device
    cells = torch.empty(2, groups, WINDOW * PARTS, dtype=torch.int64, device=device)
    value = torch.empty(groups, bins + WINDOW * (PARTS - 1), dtype=torch.float64, device=device)
    counts = torch.empty_like(value, dtype=torch.int64)
    extension.operators().histogram_zoom(
        x, group, histogram.limits, at, histogram.mean, histogram.counts, cells, value, counts
    )
    return Zoom(value, counts)
