"""What every training method is, and what it may ask of the frame it runs in."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor

from fastlnl.data import Batch


class Run(Protocol):
    """The frame that the trainer gives to a method: data, network, optimiser, nothing of the method's own.

    Attributes:
        num_samples, num_classes, epochs: N, C and the length of the run.
        label: (N,) int64 given labels. true_label: (N,) int64, for monitoring only.
        device: where all of it lives.
    """

    num_samples: int
    num_classes: int
    epochs: int
    label: Tensor
    true_label: Tensor
    device: torch.device

    def network(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, ...) in the precision of the run."""

    def batches(self) -> Iterator[Batch]:
        """The training batches of this epoch."""

    def inference(self) -> AbstractContextManager[Iterable[Batch]]:
        """Every training sample once, under the test transform; network in eval mode, no gradients."""

    def step(self, loss: Tensor) -> None:
        """One optimiser step on a scalar loss."""


class Method:
    """A training method: its `epoch` reads like the algorithm of the paper.

    A subclass names its options with their defaults and its presets (options under a name, for parity with other
    code). One with a single criterion sets `self.criterion` in `setup`; state and `predict` then need no code.

    Args:
        preset: a name among `presets`.
        options: values that differ from the preset.

    Raises:
        ValueError: unknown preset or option; says which exist.
    """

    name: ClassVar[str]
    defaults: ClassVar[dict[str, Any]] = {}
    presets: ClassVar[dict[str, dict[str, Any]]] = {}

    run: Run
    criterion: Any

    def __init__(self, preset: str | None = None, **options: Any) -> None:
        if preset is not None and preset not in self.presets:
            known = ", ".join(self.presets) or "none"
            raise ValueError(f"preset is {preset!r}, but the presets of {self.name} are: {known}")
        for option in options.keys() - self.defaults.keys():
            known = ", ".join(self.defaults) or "none"
            raise ValueError(f"{self.name} has no option {option!r}; its options are: {known}")
        self.options = {**self.defaults, **(self.presets[preset] if preset else {}), **options}

    def setup(self, run: Run) -> None:
        """Create the state of the method. Called once, before the first epoch."""
        raise NotImplementedError

    def epoch(self, t: int) -> None:
        """Train for one epoch; `t` counts from 1."""
        raise NotImplementedError

    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, ...), as used at test time."""
        return self.run.network(images)

    def metrics(self) -> dict[str, Tensor]:
        """What to log once an epoch: scalars on the device, read together by the trainer."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return self.criterion.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.criterion.load_state_dict(state)
