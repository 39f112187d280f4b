"""scale_rows_ on the CPU: the factor is in the host's memory, so one look decides; torch does the multiplying."""

import torch
from torch import Tensor

from fastlnl.ops.scale_rows.reference import scale_rows as multiply


def scale_rows(dlogits: Tensor, factor: Tensor, constant: float) -> None:
    if factor.dim() == 0:
        if (scale := float(factor) * constant) != 1.0:
            dlogits.mul_(scale)
    elif dlogits.dtype == torch.float32:
        dlogits.mul_((factor * constant).unsqueeze(1))
    else:
        multiply(dlogits, factor, constant)
