"""Batches from images that already live on the device."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from fastlnl.augment import crop_flip
from fastlnl.data.dataset import Batch
from fastlnl.errors import ShapeError
from fastlnl.philox import permutation, uniform

AUGMENTATIONS = (None, "crop_flip")


class IndexedLoader:
    """An epoch of batches, each sample with its id; the images stay on the device and are normalised batch by batch.

    Order and augmentation depend on (seed, epoch) and on the ids alone: call `set_epoch` before each epoch, and a
    resumed run sees what an uninterrupted one does. No batch makes the host wait for the device.

    Args:
        images: uint8 (N, ch, H, W), scaled to 0..1 before normalising, or float32 (N, ...), taken as it is.
        label: (N,) int64 given labels.
        batch_size: B.
        mean, std: one number a channel (dimension 1 of `images`), or one for all.
        device: where images and labels are kept and batches appear.
        seed: of order and augmentation.
        shuffle: False keeps the order of the ids.
        drop_last: leave out a last batch of fewer than B samples.
        augment: None, or "crop_flip": zero padding by 4, random crop, horizontal flip.
        num_views: views of each sample in a batch, each augmented on its own.

    Raises:
        ShapeError: images and label differ in length, or crop_flip meets features.
        ValueError: an option has a value outside its range.
    """

    def __init__(
        self,
        images: Tensor,
        label: Tensor,
        *,
        batch_size: int,
        mean: Sequence[float],
        std: Sequence[float],
        device: torch.device | str = "cpu",
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = False,
        augment: str | None = None,
        num_views: int = 1,
    ) -> None:
        if len(images) != len(label):
            raise ShapeError(f"images has {len(images)} samples but label has {len(label)}; pass one label an image")
        if batch_size < 1 or num_views < 1:
            raise ValueError(f"batch_size is {batch_size} and num_views is {num_views} but both must be at least 1")
        if augment not in AUGMENTATIONS:
            raise ValueError(f"augment is {augment!r}, expected one of {AUGMENTATIONS}")
        if augment is not None and images.ndim != 4:
            raise ShapeError(f"images has shape {tuple(images.shape)} but {augment} needs (N, ch, H, W); use None")
        if len(mean) != len(std) or len(mean) not in (1, images.shape[1]) or min(std) <= 0:
            raise ValueError(
                f"mean is {tuple(mean)} and std is {tuple(std)} but each must hold 1 or {images.shape[1]} numbers, "
                f"those of std above 0"
            )
        self.images, self.label = images.to(device), label.to(device)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.augment, self.num_views = augment, num_views
        self.epoch = 0
        # (x / unit - mean) / std as one multiply-add
        unit = 255 if images.dtype == torch.uint8 else 1
        channel_shape = (-1,) + (1,) * (images.ndim - 2)
        center, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        self.scale = (1 / (unit * spread)).float().reshape(channel_shape).to(device)
        self.shift = (-center / spread).float().reshape(channel_shape).to(device)

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.label)

    def __len__(self) -> int:
        """Batches in an epoch."""
        batches = self.num_samples / self.batch_size
        return math.floor(batches) if self.drop_last else math.ceil(batches)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        ids = torch.arange(self.num_samples, device=self.label.device)
        order = ids
        if self.shuffle:
            order = permutation(self.seed, "order", self.num_samples, self.epoch, self.label.device)
        # All random numbers of the epoch at once: Philox is a hundred small operations, too many for each batch.
        draws = []
        if self.augment == "crop_flip":
            draws = [uniform(self.seed, "crop_flip", ids, 3, self.epoch, view) for view in range(self.num_views)]
        for i in range(len(self)):
            index = order[i * self.batch_size : (i + 1) * self.batch_size]
            images = self.images[index]
            if draws:
                views = tuple(self.normalised(crop_flip(images, view_draws[index])) for view_draws in draws)
            else:
                views = (self.normalised(images),) * self.num_views
            yield Batch(index, views, self.label[index])

    def normalised(self, images: Tensor) -> Tensor:
        """(B, ...) float32 with the mean and the standard deviation of the data removed."""
        return torch.addcmul(self.shift, images.float(), self.scale)
