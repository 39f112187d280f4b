"""What a piece of a step asks of the device: launches and host reads, counted on a CPU.

A launch is an operator that computes something; views and allocations are none. A primitive of fastlnl counts as the
kernels that its Triton implementation launches. A read is whatever makes the host wait for the device.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fastlnl import backend

KERNELS = {
    "refine_targets": 1, "mix_views": 1, "class_prior": 2, "mixmatch_rows": 1, "erase_peaks": 2, "scale_rows": 1,
    "row_loss": 1, "row_stats": 1, "dynamics": 1, "two_view_loss": 1,
}  # fmt: skip
WAITING = ("_local_scalar_dense", "equal", "is_nonzero", "nonzero", "masked_select", "_unique2", "bincount")
LEAVING = ("tolist", "cpu", "numpy")  # of torch.Tensor, which a dispatch mode does not see on a CPU
FREE = ("empty", "empty_like", "empty_strided", "new_empty", "_unsafe_view")  # allocations and a view without an alias


class Asked(NamedTuple):
    """Of the device."""

    launches: int
    reads: int


class Count(TorchDispatchMode):
    """`launches` and `reads` so far; nothing counts while `paused`."""

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.reads = self.paused = 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), keywords: Any = None) -> Any:
        found = operator(*arguments, **(keywords or {}))
        if not self.paused:
            name = operator.overloadpacket.__name__
            returned = operator._schema.returns
            view = bool(returned) and all(r.alias_info is not None and not r.alias_info.is_write for r in returned)
            self.reads += name in WAITING
            self.launches += not (view or name in WAITING or name in FREE)
        return found

    @contextmanager
    def pause(self):  # type: ignore[no-untyped-def]
        self.paused += 1
        try:
            yield
        finally:
            self.paused -= 1


def counted(loss: Callable[[], Tensor]) -> Asked:
    """Launches and reads of a loss and its backward pass; what is made at the first call does not count."""
    loss().backward()
    return counted_call(lambda: loss().backward())


def counted_call(function: Callable[[], object]) -> Asked:
    """Launches and reads of one call."""
    mode, find = Count(), backend.implementation
    kept = {name: getattr(torch.Tensor, name) for name in LEAVING}

    def implementation(primitive: str, like: Tensor) -> Callable[..., Any]:
        function = find(primitive, like)

        def call(*arguments: Any, **keywords: Any) -> Any:
            mode.launches += KERNELS[primitive] if not mode.paused else 0
            with mode.pause():
                return function(*arguments, **keywords)

        return call

    def leave(method: Callable[..., Any], tensor: Tensor, *arguments: Any) -> Any:
        mode.reads += not mode.paused
        with mode.pause():
            return method(tensor, *arguments)

    backend.implementation = implementation
    for name, method in kept.items():
        setattr(torch.Tensor, name, lambda tensor, *arguments, method=method: leave(method, tensor, *arguments))
    try:
        with mode:
            function()
    finally:
        backend.implementation = find
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)
    return Asked(mode.launches, mode.reads)
