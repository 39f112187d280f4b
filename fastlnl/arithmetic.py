"""The functions a coefficient function may call, as torch runs them; numba and Triton bind their own."""

from typing import Any

import torch
from torch import Tensor

__all__ = ["exp", "larger", "log", "where"]


def log(x: Tensor) -> Tensor:
    """Natural logarithm."""
    return torch.log(x)


def exp(x: Tensor) -> Tensor:
    """e to the power of x; write x ** q as exp(q * log(x))."""
    return torch.exp(x)


def where(condition: Any, yes: Any, no: Any) -> Tensor:
    """`yes` where the condition holds, `no` elsewhere."""
    return torch.where(condition, yes, no)


def larger(x: Any, y: Any) -> Tensor:
    """Element-wise maximum; one of the two may be a number."""
    return torch.where(x > y, x, y)
