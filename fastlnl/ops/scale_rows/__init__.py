"""The backward pass of every fused loss: multiply stored gradients by what comes in, if it is not 1."""

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError


def scale_rows_(dlogits: Tensor, factor: Tensor, constant: float = 1.0) -> Tensor:
    """dlogits[b] *= factor[b] * constant in place, in float32; rows whose factor is exactly 1 are not touched.

    The decision is made where the factor lives, so nothing waits for the device: after `loss.backward()`, where the
    incoming gradient is 1, a call costs one launch and no traffic.

    Args:
        dlogits: (B, C) any floating type, contiguous.
        factor: () or (B,) float32 on the same device.
        constant: a number known to the host.

    Returns:
        dlogits itself.

    Raises:
        ShapeError: factor is neither () nor (B,).

    Deterministic. Updates: dlogits.
    """
    if factor.shape not in ((), dlogits.shape[:1]) or dlogits.dim() != 2 or not dlogits.is_contiguous():
        raise ShapeError(
            f"factor has {tuple(factor.shape)} and dlogits {tuple(dlogits.shape)}; "
            "expected () or (B,) and contiguous (B, C)"
        )
    if factor.dtype != torch.float32 or factor.dim() > 0:
        factor = factor.float().contiguous()
    backend.implementation("scale_rows", dlogits)(dlogits, factor, constant)
    return dlogits
