"""mix_views in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor


def mix_views(
    views: Sequence[Tensor], targets: Sequence[Tensor], partner: Tensor, coefficient: Tensor
) -> tuple[Tensor, Tensor]:
    own = torch.arange(len(partner), device=partner.device)
    other = torch.where((partner >= 0) & (partner < len(partner)), partner, own)

    def mixed(parts: Sequence[Tensor]) -> Tensor:
        x = torch.cat(list(parts))
        a = coefficient.reshape(-1, *[1] * (x.dim() - 1))
        return (a * x + (1 - a) * x[other]).to(x.dtype)

    return mixed(views), mixed(targets)
