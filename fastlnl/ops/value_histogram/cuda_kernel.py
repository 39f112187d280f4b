"""value_histogram by the CUDA C++ extension (`csrc/value_histogram.cu`)."""

import torch
from torch import Tensor

from fastlnl import extension
from fastlnl.ops.value_histogram import Histogram


def value_histogram(x: Tensor, group: Tensor | None, num_groups: int, bins: int, limits: Tensor | None) -> Histogram:
    device = x.device
    keys = torch.empty(2, num_groups, dtype=torch.int32, device=device) if limits is None else None
    counts = torch.empty(num_groups, bins, dtype=torch.int64, device=device)
    mean = torch.empty(num_groups, bins, dtype=torch.float64, device=device)
    found = torch.empty(num_groups, 2, dtype=torch.float64, device=device)
    left_out = torch.empty(num_groups, dtype=torch.int64, device=device)
    given = limits if limits is None else limits.contiguous()
    extension.operators().value_histogram(x, group, given, keys, counts, mean, found, left_out)
    return Histogram(counts, mean, found, left_out)
