"""What every training method is, and what it may ask of the frame it runs in."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

from fastlnl.data import Batch


class Network(Protocol):
    """A network with its optimiser, as a method sees it."""

    module: nn.Module
    optimizer: torch.optim.Optimizer  # one of its parameter groups may belong to a module of the method

    def __call__(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, ...) in the precision of the run."""

    def train_on(self, batch: Batch, loss: Callable[[Batch], Tensor], phase: Hashable = None) -> None:
        """One optimiser step on `loss(batch)`, replayed where the run asks for it; a new `phase` is captured anew."""

    def step(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """One optimiser step on a scalar loss, its gradient scaled down to `clip_norm` where it is longer."""

    def weights(self) -> dict[str, Tensor]:
        """A copy of parameters and buffers."""

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Go on from these weights with a new optimiser."""


class Run(Protocol):
    """The frame that the trainer gives to a method: data, networks, optimisers, nothing of the method's own.

    Attributes:
        networks: as many as the method asked for, of different seeds; `network` is the first.
        num_samples, num_classes, epochs: N, C and the length of the run.
        batch_size: B. augment: name of the augmentation of the run, None for none. strong_augment: of a strong one.
        seed: of the run. image_shape: of one sample.
        label: (N,) int64 given labels. true_label: (N,) int64, for monitoring only.
        device: where all of it lives.
    """

    num_samples: int
    num_classes: int
    epochs: int
    batch_size: int
    augment: str | None
    strong_augment: str
    seed: int
    image_shape: tuple[int, ...]
    label: Tensor
    true_label: Tensor
    device: torch.device

    @property
    def networks(self) -> Sequence[Network]: ...

    @property
    def network(self) -> Network: ...

    def batches(self, ids: Tensor | None = None, **options: Any) -> Iterator[Batch]:
        """The training batches of this epoch, of all samples or of these (n,) ids.

        Options are those of `IndexedLoader.batches`: stream (name of the random order), augment (one name a view),
        batch_size, shuffle, drop_last.
        """

    def cycle(self, ids: Tensor, **options: Any) -> Iterator[Batch]:
        """Batches of these ids without end, in a new order each time they are through."""

    def inference(self) -> AbstractContextManager[Iterable[Batch]]:
        """Every training sample once, under the test transform; networks in eval mode, no gradients."""

    def at_rest(self) -> AbstractContextManager[None]:
        """Networks in eval mode, no gradients."""


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
    scoring: ClassVar[tuple[str, ...]] = ()  # its functions that look at all samples at once, for a profile

    capturable: ClassVar[bool] = False  # one network and view, and its steps go through `Network.train_on`

    run: Run
    criterion: Any
    num_networks: int = 1

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

    def schedule_span(self, t: int, epochs: int) -> tuple[int, int]:
        """Epoch `t` as the learning rate's schedule counts it, and of how many: (t, epochs) unless there are stages.

        A length of 0 keeps the first learning rate.
        """
        return t, epochs

    def stage_lr(self, t: int, lr: float) -> float:
        """The learning rate that the schedule of epoch `t` starts from: `lr`, unless a stage has its own."""
        return lr

    def predict(self, images: Tensor) -> Tensor:
        """Logits (B, C) of images (B, ...) as used at test time: the sum over the networks."""
        logits = self.run.network(images)
        for network in self.run.networks[1:]:
            logits = logits + network(images)
        return logits

    def metrics(self) -> dict[str, Tensor]:
        """What to log once an epoch: scalars on the device, read together by the trainer."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        return self.criterion.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.criterion.load_state_dict(state)
