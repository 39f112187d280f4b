"""The frame a method trains in: batches, forward pass and optimiser step of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from fastlnl.data import Batch, Dataset, IndexedLoader

PRECISIONS = {None: torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class Frame:
    """One run seen by its method; `fastlnl.methods.base.Run` says what a method may use of it.

    Nothing here waits for the device: the loss is summed there and read by `mean_loss` after the epoch.

    Args:
        module: the network, on `device`. optimizer: over its parameters.
        data: the data set. label: (N,) int64 given labels.
        amp: None, "bfloat16" or "float16".
    """

    def __init__(
        self,
        module: nn.Module,
        optimizer: torch.optim.Optimizer,
        data: Dataset,
        label: Tensor,
        *,
        epochs: int,
        batch_size: int,
        augment: str | None,
        seed: int,
        device: torch.device,
        amp: str | None,
        channels_last: bool,
        compile: bool,
    ) -> None:
        self.module, self.optimizer, self.device = module, optimizer, device
        self.epochs, self.num_classes, self.num_samples = epochs, data.num_classes, len(label)
        self.label, self.true_label = label.to(device), data.train_label.to(device)
        self.test_label = data.test_label.to(device)
        self.precision, self.channels_last = PRECISIONS[amp], channels_last
        self.scaler = torch.amp.GradScaler(device.type, enabled=amp == "float16")
        self.on_batch: Callable[[], object] = lambda: None
        self._forward = torch.compile(module) if compile else module

        def loader(images: Tensor, label: Tensor, batch_size: int, shuffle: bool, augment: str | None) -> IndexedLoader:
            return IndexedLoader(
                images,
                label,
                batch_size=batch_size,
                mean=data.mean,
                std=data.std,
                device=device,
                seed=seed,
                shuffle=shuffle,
                augment=augment,
            )

        train_images = data.train_images.to(device)  # once: both loaders over them share the copy
        self.train = loader(train_images, self.label, batch_size, True, augment)
        self.train_in_order = loader(train_images, self.label, max(batch_size, 512), False, None)
        self.test_in_order = loader(data.test_images, self.test_label, max(batch_size, 512), False, None)

    def start_epoch(self, t: int, lr: float) -> None:
        """Order of the batches and learning rate of epoch `t`; the loss sum starts again."""
        self.train.set_epoch(t)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._loss = torch.zeros((), device=self.device)
        self.module.train()

    def network(self, images: Tensor) -> Tensor:
        if self.channels_last and images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        # The context ends with each forward pass, so no weight that was cast here outlives the next optimiser step.
        with torch.autocast(self.device.type, self.precision, enabled=self.precision is not torch.float32):
            return self._forward(images)

    def batches(self) -> Iterator[Batch]:
        for batch in self.train:
            yield batch
            self.on_batch()

    @contextmanager
    def inference(self) -> Iterator[Iterable[Batch]]:
        with self.at_rest():
            yield self.train_in_order

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The network in eval mode and without gradients."""
        self.module.eval()
        with torch.no_grad():
            yield
        self.module.train()

    def step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self._loss += loss.detach()

    def mean_loss(self) -> Tensor:
        """Mean of the losses of this epoch's steps, a scalar on the device."""
        return self._loss / max(len(self.train), 1)
