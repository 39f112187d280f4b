"""A network with its optimiser, in the precision of the run, one step at a time or replayed from a graph."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlnl.data import Batch
from fastlnl.graph import RecordedStep

PRECISIONS = {None: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Learner:
    """A network with its optimiser. Called with images (B, ...) it gives logits (B, C) in the precision of the run.

    Args:
        module: the network, on `device`.
        build_optimizer: from a module to an optimiser over its parameters. A parameter group may hold "lr_scale", by
            which the learning rate of the run is multiplied there.
        amp: None, "bfloat16" or "float16" (with loss scaling).
        recorded: replays the steps of `train_on`; None takes every step as it comes.
    """

    def __init__(
        self,
        module: nn.Module,
        build_optimizer: Callable[[nn.Module], torch.optim.Optimizer],
        *,
        device: torch.device,
        amp: str | None,
        channels_last: bool,
        compile: bool,
        recorded: RecordedStep | None = None,
    ) -> None:
        self.module, self.device, self.channels_last = module, device, channels_last
        self.precision = PRECISIONS[amp]
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "float16")
        self.recorded = recorded
        self._build_optimizer = build_optimizer
        self._forward = torch.compile(module) if compile else module
        self.optimizer = build_optimizer(module)
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        self.loss, self.steps = torch.zeros((), device=device), 0

    def __call__(self, images: Tensor) -> Tensor:
        if self.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if self.precision is torch.float32:
            return self._forward(images)
        # The context ends with each forward pass, so no weight that was cast here outlives the next optimiser step.
        with torch.autocast(self.device.type, self.precision):
            return self._forward(images)

    def train_on(self, batch: Batch, loss: Callable[[Batch], Tensor], phase: Hashable = None) -> None:
        """One optimiser step on the scalar `loss(batch)`, replayed where the run has `cuda_graph`.

        Args:
            loss: launches the same operations for every batch of one shape, and changes nothing but tensors in place.
            phase: what the operations depend on besides; another value is captured anew.
        """
        if self.recorded is None:
            self.step(loss(batch))
            return
        self.recorded(batch, lambda given: self._update(loss(given)), phase)
        self.steps += 1

    def step(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """One optimiser step on a scalar loss, its gradient scaled down to `clip_norm` where it is longer."""
        self._update(loss, clip_norm)
        self.steps += 1

    def _update(self, loss: Tensor, clip_norm: float | None = None) -> None:
        """What a step does on the device."""
        self.optimizer.zero_grad(set_to_none=True)
        self._backward(loss)
        if clip_norm is not None:
            self.scaler.unscale_(self.optimizer)
            nn.utils.clip_grad_norm_(self.module.parameters(), clip_norm)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.loss += loss.detach()

    def _backward(self, loss: Tensor) -> None:
        self.scaler.scale(loss).backward()

    def start_epoch(self, lr: float) -> None:
        """Set the learning rate; the sum of the losses starts again."""
        self._set_lr(lr)
        self.loss.zero_()
        self.steps = 0
        self.module.train()

    def _set_lr(self, lr: float) -> None:
        self.lr = lr
        for group in self.optimizer.param_groups:
            # in float32, as the tensor holds it that a graph reads: replayed steps are then the eager ones, bit for bit
            value = float(np.float32(lr * group.get("lr_scale", 1.0)))
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(value)
            else:
                group["lr"] = value

    def weights(self) -> dict[str, Tensor]:
        """A copy of parameters and buffers, which later steps do not touch."""
        return copy.deepcopy(self.module.state_dict())

    def restart(self, weights: dict[str, Tensor]) -> None:
        """Go on from these weights with a new optimiser, at the learning rate of now."""
        self.module.load_state_dict(weights)
        self.optimizer = self._build_optimizer(self.module)
        if self.recorded is not None:
            self.recorded.forget()
        self._set_lr(self.lr)

    def state_dict(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"module": self.module, "optimizer": self.optimizer, "scaler": self.scaler}
        return {name: part.state_dict() for name, part in parts.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.module.load_state_dict(state["module"])
        # How a step is taken is a matter of this run, not of the saved one; the learning rate comes each epoch.
        own = [{name: group.get(name) for name in ("lr", "capturable")} for group in self.optimizer.param_groups]
        self.optimizer.load_state_dict(state["optimizer"])
        for group, kept in zip(self.optimizer.param_groups, own, strict=True):
            group.update({name: value for name, value in kept.items() if value is not None})
        self.scaler.load_state_dict(state["scaler"])
