"""scale_rows_ on the CPU: the factor is in the host's memory, so one look decides; torch does the multiplying."""

from torch import Tensor

from fastlnl.ops.scale_rows.reference import scale_rows as multiply


def scale_rows(dlogits: Tensor, factor: Tensor, constant: float) -> None:
    if factor.dim() > 0:
        multiply(dlogits, factor, constant)
    elif (scale := float(factor) * constant) != 1.0:
        dlogits.mul_(scale)
