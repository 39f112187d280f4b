"""A contest: one task, done by fastlnl and by what people use for it now.

The contests themselves are in `*_cases.py`; `libraries.py` holds them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fastlnl.backend import use_backend

Size = tuple[int, ...]


class WrongAnswer(Exception):
    """A rival's answer is not fastlnl's; the text says in one sentence how they differ."""


class Entry(NamedTuple):
    """An implementation, built for its inputs."""

    step: Callable[[], Any]  # what is timed
    answer: Callable[[], Any]  # what is compared, once, before anything is timed


Build = Callable[[Any], Entry]


@dataclass(frozen=True)
class Contest:
    """A task, and who does it.

    Attributes:
        axes: what the numbers of a size are, such as "N x C"; the first one counts samples.
        sizes: the cheapest one first.
        inputs: random inputs of a size on a device.
        rivals: by name, "fastlnl" first.
        difference: what the table says of fastlnl's answer (first argument) beside a rival's; raises WrongAnswer.
        test: the test that must be green before a number of this contest means anything.
        primitives: folders of `fastlnl/ops` that do fastlnl's part.
        byte_model: bytes that a perfect implementation moves at a size.
        targets: by size, how many times faster than the rival fastlnl wants to be on a CPU.
        quick: the sizes of a short run; where none is given the first of all.
        truth: the answer in float64, from the inputs, where answers are numbers that are rounded.
        surcharge: fastlnl does all of the rival's work and more. Told is what that adds, in per cent of the rival's
            time, and a target is the most it may be.
        only_full: left out of a short run.
    """

    name: str
    title: str
    axes: str
    sizes: tuple[Size, ...]
    inputs: Callable[[Size, torch.device | str], Any]
    rivals: dict[str, Build]
    difference: Callable[[Any, Any], str]
    test: str
    primitives: tuple[str, ...]
    byte_model: Callable[[Size], int]
    targets: dict[Size, float] = field(default_factory=dict)
    quick: tuple[Size, ...] = ()
    truth: Callable[[Any], Any] | None = None
    surcharge: bool = False
    only_full: bool = False

    def sizes_of(self, full: bool) -> tuple[Size, ...]:
        if full:
            return self.sizes
        return () if self.only_full else self.quick or self.sizes[:1]


def calling(function: Callable[[Any], Any]) -> Build:
    """Rival from a function of the inputs; each call gives the answer."""

    def build(inputs: Any) -> Entry:
        call = partial(function, inputs)
        return Entry(call, call)

    return build


def in_plain_torch(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function of fastlnl on its reference backend: the shortest torch calls that meet the contract."""

    def call(inputs: Any) -> Any:
        with use_backend("reference"):
            return function(inputs)

    return call


def in_float64(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The truth: the reference backend on inputs of twice the precision."""
    return lambda inputs: in_plain_torch(function)(doubled(inputs))


def doubled(given: Any) -> Any:
    """Tensors of float32 as float64, in tuples and lists too."""
    if isinstance(given, Tensor):
        if given.dtype != torch.float32:
            return given
        return given.detach().double().requires_grad_(given.requires_grad)
    if isinstance(given, tuple):
        values = [doubled(x) for x in given]
        return type(given)(*values) if hasattr(given, "_fields") else tuple(values)
    return [doubled(x) for x in given] if isinstance(given, list) else given


def error_of(answer: Any, truth: Any) -> float:
    """Norm over norm of what is rounded, the worst of several tensors."""
    pairs = zip(answer, truth, strict=True) if isinstance(answer, tuple) else [(answer, truth)]
    return max(float((x.double() - t.double()).norm() / t.double().norm()) for x, t in pairs if x.is_floating_point())
