"""A contest: one task, done by fastlnl and by what people use for it now.

The contests themselves are in `mixture_cases.py`, `class_cases.py`, `dynamics_cases.py`, `augment_cases.py` and
`mixmatch_cases.py`; `libraries.py` holds them.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch

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
        targets: by size, how many times faster than the rival fastlnl wants to be on a CPU.
        surcharge: fastlnl does all of the rival's work and more. Told is what that adds, in per cent of the rival's
            time, and a target is the most it may be.
    """

    name: str
    title: str
    axes: str
    sizes: tuple[Size, ...]
    inputs: Callable[[Size, torch.device | str], Any]
    rivals: dict[str, Build]
    difference: Callable[[Any, Any], str]
    test: str
    targets: dict[Size, float] = field(default_factory=dict)
    surcharge: bool = False


def calling(function: Callable[[Any], Any]) -> Build:
    """Rival from a function of the inputs; each call gives the answer."""

    def build(inputs: Any) -> Entry:
        call = partial(function, inputs)
        return Entry(call, call)

    return build
