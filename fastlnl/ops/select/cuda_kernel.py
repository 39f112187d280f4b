"""select by the CUDA C++ extension (`csrc/select.cu`)."""

import torch
from torch import Tensor

from fastlnl import extension

ONE_LAUNCH = 4096  # samples; up to here each is compared with all, beyond they are sorted out digit by digit
DIGITS, DIGITS_OF_GROUPS = 2048, 256


def select(scores: Tensor, quota: Tensor, group: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    n, groups, device = len(scores), len(quota), scores.device
    mask = torch.empty(n, dtype=torch.int8, device=device)
    cut = torch.full((groups,), torch.inf if largest else -torch.inf, device=device)
    count = prefix = remaining = None
    if n > ONE_LAUNCH:
        digits = DIGITS if groups == 1 else DIGITS_OF_GROUPS
        count = torch.empty(groups, digits, dtype=torch.int32, device=device)
        prefix = torch.empty(groups, dtype=torch.int64, device=device)
        remaining = torch.empty(groups, dtype=torch.int64, device=device)
    extension.operators().select(scores, quota, group, mask, cut, count, prefix, remaining, largest)
    return mask.view(torch.bool), cut
