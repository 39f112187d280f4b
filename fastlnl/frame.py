"""The frame a method trains in: networks with their optimisers, and the batches of one run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fastlnl.data import Batch, Dataset, IndexedLoader
from fastlnl.data.prefetch import prefetched
from fastlnl.learner import Learner


class Frame:
    """One run seen by its method; `fastlnl.methods.base.Run` says what a method may use of it.

    Nothing here waits for the device: losses are summed there and read by `mean_loss` after the epoch.

    Args:
        networks: on `device`, with their optimisers.
        data: the data set. label: (N,) int64 given labels.
        augment: of the training views, a name known to the loader.
        prefetch: make each training batch while the one before is used.
    """

    def __init__(
        self,
        networks: Sequence[Learner],
        data: Dataset,
        label: Tensor,
        *,
        epochs: int,
        batch_size: int,
        augment: str | None,
        seed: int,
        device: torch.device,
        prefetch: bool = False,
    ) -> None:
        self.networks, self.network, self.device = tuple(networks), networks[0], device
        self.epochs, self.num_classes, self.num_samples = epochs, data.num_classes, len(label)
        self.batch_size, self.augment, self.seed = batch_size, augment, seed
        self.image_shape, self.strong_augment = data.image_shape, stronger(data, augment)
        self.label, self.true_label = label.to(device), data.train_label.to(device)
        self.test_label = data.test_label.to(device)
        self.on_batch: Callable[[], object] = lambda: None
        self.prefetch = prefetch

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
                channels_last=networks[0].channels_last or None,  # as the network wants them: one copy less a step
            )

        train_images = data.train_images.to(device)  # once: both loaders over them share the copy
        self.train = loader(train_images, self.label, batch_size, True, augment)
        self.train_in_order = loader(train_images, self.label, max(batch_size, 512), False, None)
        self.test_in_order = loader(data.test_images, self.test_label, max(batch_size, 512), False, None)

    def start_epoch(self, t: int, lr: float) -> None:
        """Order of the batches and learning rate of epoch `t`; the loss sum starts again."""
        self.epoch = t
        self.train.set_epoch(t)
        for network in self.networks:
            network.start_epoch(lr)

    def batches(self, ids: Tensor | None = None, **options: Any) -> Iterator[Batch]:
        for batch in self._ahead(self.train.batches(ids, **options)):
            yield batch
            self.on_batch()

    def cycle(self, ids: Tensor, **options: Any) -> Iterator[Batch]:
        return self._ahead(self.train.cycle(ids, **options))

    def _ahead(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        return prefetched(batches) if self.prefetch else batches

    @contextmanager
    def inference(self) -> Iterator[Iterable[Batch]]:
        with self.at_rest():
            yield self.train_in_order

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """The networks in eval mode and without gradients."""
        for network in self.networks:
            network.module.eval()
        with torch.no_grad():
            yield
        for network in self.networks:
            network.module.train()

    def mean_loss(self) -> Tensor:
        """Mean of the losses of this epoch's steps, a scalar on the device."""
        steps = sum(network.steps for network in self.networks)
        return torch.stack([network.loss for network in self.networks]).sum() / max(steps, 1)


def stronger(data: Dataset, augment: str | None) -> str:
    """The strong augmentation that goes with a weak one; it mirrors images only where the weak one does."""
    if data.train_images.dim() == 4:
        return "strong" if augment in ("crop_flip", "crop_flip_cutout", "strong") else "strong_shift"
    return "dropout:0.3" if data.train_images.is_floating_point() else "word_dropout:0.3"
