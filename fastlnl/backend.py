"""Who does the work: the only file that knows devices.

A primitive `name` is implemented in `fastlnl/ops/<name>/<module>.py` by a function called `name`. The first backend of
`PREFERENCE` that works on the tensor's device is used, unless one was asked for by name (`use_backend`,
`FASTLNL_BACKEND`): that one is used or the call fails. Modules are imported when first chosen.
"""

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import cache
from types import TracebackType
from typing import Any

import torch
from torch import Tensor

from fastlnl import extension
from fastlnl.errors import BackendError

MODULES = {"cuda": "cuda_kernel", "triton": "triton_kernel", "numba": "numba_kernel", "reference": "reference"}
# The extension is asked for by name until it is measured: it does not serve every loss.
PREFERENCE = {"cuda": ("triton", "reference"), "cpu": ("numba", "reference")}
DTYPES = (torch.float32, torch.bfloat16, torch.float16)  # of the kernels; the reference takes float64 as well

_chosen: str | None = None
_found: dict[tuple[str, str, torch.dtype, str | None], Callable[..., Any]] = {}


def _interpreted() -> bool:
    return os.environ.get("TRITON_INTERPRET", "0") == "1"


@cache
def _missing(name: str) -> str | None:
    """Why this backend cannot work here, in one sentence; None if it can."""
    if name == "reference":
        return None
    if name == "cuda":
        if torch.version.cuda and not torch.cuda.is_available():
            return "No CUDA device is visible; check the driver and CUDA_VISIBLE_DEVICES."
        return extension.missing()
    try:
        importlib.import_module(name)
    except Exception as error:  # a package that is there but does not import is a reason too
        return f"{name} does not import here ({type(error).__name__}: {error})."
    if name == "triton" and not (torch.cuda.is_available() or _interpreted()):
        return "Triton needs a CUDA device (or TRITON_INTERPRET=1, which runs kernels slowly on the CPU)."
    return None


def _devices(name: str) -> tuple[str, ...]:
    """Device types the backend serves."""
    if name == "triton":
        return ("cpu", "cuda") if _interpreted() else ("cuda",)
    return {"reference": ("cpu", "cuda"), "numba": ("cpu",), "cuda": ("cuda",)}[name]


def backends() -> dict[str, str]:
    """What works here: for each backend "works on cpu" and the like, or one sentence why it does not."""
    return {name: _missing(name) or f"works on {' and '.join(_devices(name))}" for name in MODULES}


def _check_name(name: str) -> str:
    if name not in MODULES:
        raise BackendError(f"backend {name!r} was asked for; there are {', '.join(MODULES)}")
    return name


class use_backend:
    """Choose the backend for the whole process: `use_backend("triton")`, or for a block: `with use_backend(...)`.

    `use_backend(None)` goes back to the preference of each device. A backend chosen by name never falls back: a call
    that it cannot serve raises `BackendError`.
    """

    def __init__(self, name: str | None) -> None:
        global _chosen
        self._before, _chosen = _chosen, None if name is None else _check_name(name)

    def __enter__(self) -> "use_backend":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        global _chosen
        _chosen = self._before


def current_backend() -> str | None:
    """The backend asked for by name, or None."""
    return _chosen


def implementation(primitive: str, like: Tensor) -> Callable[..., Any]:
    """The function that serves `primitive` for tensors on the device and of the type of `like`."""
    key = (primitive, like.device.type, like.dtype, _chosen)
    found = _found.get(key)
    if found is None:
        found = _found[key] = _find(*key)
    return found


def wait_for(device: torch.device) -> None:
    """Wait until a device has done what it was asked for: for clocks, never in a step."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _serves(name: str, device: str, dtype: torch.dtype) -> str | None:
    """Why this backend cannot serve this device and type; None if it can."""
    if (reason := _missing(name)) is not None:
        return reason
    if device not in _devices(name):
        return f"{name} does not serve device type '{device}'."
    if name != "reference" and dtype.is_floating_point and dtype not in DTYPES:
        return f"{name} takes float32, bfloat16 and float16, not {str(dtype).removeprefix('torch.')}."
    return None


def _find(primitive: str, device: str, dtype: torch.dtype, chosen: str | None) -> Callable[..., Any]:
    names = (chosen,) if chosen is not None else PREFERENCE.get(device, ("reference",))
    reasons = []
    for name in names:
        reason = _serves(name, device, dtype)
        if reason is None:
            place = f"{__package__}.ops.{primitive}.{MODULES[name]}"
            if importlib.util.find_spec(place) is not None:
                function: Callable[..., Any] = getattr(importlib.import_module(place), primitive)
                return function
            reason = f"{name} has no {primitive}."
        reasons.append(reason)
    able = [name for name in MODULES if _serves(name, device, dtype) is None]
    raise BackendError(
        f"backend {' or '.join(names)} was asked for {primitive} on {device} "
        f"({str(dtype).removeprefix('torch.')}): {' '.join(reasons)} Here there is: {', '.join(able) or 'none'}."
    )


if "FASTLNL_BACKEND" in os.environ:
    use_backend(os.environ["FASTLNL_BACKEND"])
