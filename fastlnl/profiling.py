"""Where the time of an epoch goes: the parts of a run, each with a clock."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch

from fastlnl.backend import wait_for
from fastlnl.data import Batch
from fastlnl.frame import Frame

if TYPE_CHECKING:
    from fastlnl.methods.base import Method

# What the table shows, in this order. Inside an evaluation or a scoring pass everything counts as that.
PARTS = (
    "network, forward", "network, backward", "optimiser", "loss, targets, bookkeeping", "views", "order of batches",
    "scoring and split", "evaluation", "checkpoint and log", "rest",
)  # fmt: skip
WHOLE = ("scoring and split", "evaluation", "checkpoint and log")


class Profile:
    """Clocks around the parts of a run while it is `running`; a part does not count what is part of another inside.

    Objects are watched from outside, so that a run without a profile has nothing to pay. On a GPU every part ends with
    a wait for the device: parts are then honest, and the epoch is longer than it would be.

    Args:
        device: of the run.
    """

    def __init__(self, device: torch.device) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(PARTS, 0.0)
        self.calls: dict[str, int] = dict.fromkeys(PARTS, 0)
        self.running = False
        self._open: list[str] = []
        self._since = 0.0
        self._device = device

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """The time inside belongs to `name`."""
        if not self.running or (self._open and self._open[-1] in WHOLE):
            yield
            return
        self._lap()
        self._open.append(name)
        self.calls[name] += 1
        try:
            yield
        finally:
            self._lap()
            self._open.pop()

    def _lap(self) -> None:
        """Time since the last lap belongs to the part that is open."""
        wait_for(self._device)
        now = time.perf_counter()
        if self._open:
            self.seconds[self._open[-1]] += now - self._since
        self._since = now

    @contextmanager
    def epoch(self) -> Iterator[None]:
        """A whole epoch: what belongs to no part is the rest."""
        self.running = True
        with self.part("rest"):
            yield
        self.running = False

    def timed(self, function: Callable[..., Any], name: str) -> Callable[..., Any]:
        """The function, as a part."""

        @functools.wraps(function)
        def call(*arguments: Any, **keywords: Any) -> Any:
            with self.part(name):
                return function(*arguments, **keywords)

        return call

    def watch(self, holder: object, attribute: str, name: str) -> None:
        """Time a method of one object."""
        setattr(holder, attribute, self.timed(getattr(holder, attribute), name))

    def watch_run(self, run: Frame, method: Method) -> None:
        """Time what a frame and its method do."""
        for network in run.networks:
            self.watch(network, "_forward", "network, forward")
            self.watch(network, "_backward", "network, backward")
            self.watch(network, "_update", "optimiser")
        for loader in (run.train, run.train_in_order):
            self.watch(loader, "_views", "views")
        for function in ("batches", "cycle"):
            setattr(run, function, self._each_batch(getattr(run, function)))
        for function in method.scoring:
            self.watch(method, function, "scoring and split")
        self.watch(method, "epoch", "loss, targets, bookkeeping")

    def _each_batch(self, function: Callable[..., Iterator[Batch]]) -> Callable[..., Iterator[Batch]]:
        def call(*arguments: Any, **keywords: Any) -> Iterator[Batch]:
            batches = function(*arguments, **keywords)
            take = self.timed(lambda: next(batches, None), "order of batches")
            while (batch := take()) is not None:
                yield batch

        return call

    def table(self, title: str) -> str:
        """Markdown."""
        total = sum(self.seconds.values())
        shares = {name: 100 * seconds / total for name, seconds in self.seconds.items() if self.calls[name]}
        rows = [
            f"| {name} | {1e3 * self.seconds[name]:.1f} | {share:.1f} % | {self.calls[name]} |"
            for name, share in shares.items()
        ]
        head = (f"# {title}", "", "| part | ms | share | calls |", "| --- | --- | --- | --- |")
        return "\n".join([*head, *rows, f"| all | {1e3 * total:.1f} | 100 % | |", ""])
