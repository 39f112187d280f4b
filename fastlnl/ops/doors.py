"""What is checked at the door of a primitive, before a kernel sees it: shapes, types, strides."""

import torch
from torch import Tensor

from fastlnl.errors import ShapeError


def describe(x: Tensor) -> str:
    """Shape and type in words: `(128, 10) float32`."""
    return f"{tuple(x.shape)} {str(x.dtype).removeprefix('torch.')}"


def check_logits(logits: Tensor) -> tuple[int, int]:
    """B and C of logits (B, C) of a floating type with at least one class."""
    if logits.dim() != 2 or not logits.is_floating_point() or logits.shape[1] == 0:
        raise ShapeError(f"logits is {describe(logits)}; expected (B, C) of a floating type with at least one class")
    return logits.shape[0], logits.shape[1]


def integers(name: str, x: Tensor, batch: int, like: Tensor) -> Tensor:
    """`x` as contiguous int64 (B,), copied only where it is not that already."""
    if x.dtype != torch.int64 or x.shape != (batch,) or not x.is_contiguous():
        if x.is_floating_point() or x.is_complex() or x.dtype == torch.bool or x.shape != (batch,):
            raise ShapeError(
                f"{name} is {describe(x)}; expected ({batch},) of an integer type, one for each row of logits"
            )
        x = x.long().contiguous()
    check_device(name, x, like)
    return x


def floats(name: str, x: Tensor, shape: tuple[int, ...], like: Tensor) -> Tensor:
    """`x` as contiguous float32 of this shape, copied only where it is not that already."""
    if x.dtype == torch.float32 and x.shape == shape and x.device == like.device and x.is_contiguous():
        return x
    if x.shape != shape or not x.is_floating_point():
        raise ShapeError(f"{name} is {describe(x)}; expected {shape} of a floating type")
    check_device(name, x, like)
    return x.float().contiguous()


def check_device(name: str, x: Tensor, like: Tensor) -> None:
    """Refuse tensors of another device than the logits."""
    if x.device != like.device:
        raise ShapeError(f"{name} is on {x.device} but logits is on {like.device}; move one of them")
