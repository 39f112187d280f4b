"""scale_rows_ in plain torch."""

from torch import Tensor


def scale_rows(dlogits: Tensor, factor: Tensor, constant: float) -> None:
    dlogits.mul_((factor * constant).reshape(-1, 1).to(dlogits.dtype))
