"""The views of a batch, from the table of all samples: gathered, augmented, normalised."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl.augment import (
    STRONG_DRAWS,
    View,
    crop_flip,
    cut_square,
    dropout,
    gaussian_noise,
    word_dropout,
)
from fastlnl.ops.augment_batch import Crop, augment_batch
from fastlnl.ops.random_operations import random_operations
from fastlnl.ops.random_words import random_words
from fastlnl.philox import unit_interval


class Views:
    """Called with the ids of a batch, it gives the views asked for. `fastlnl.data.IndexedLoader` is how to use it.

    Args:
        images: all samples, on the device: uint8, float32, or token ids of another integer type.
        mean, std: one number a channel, or one for all.
        seed: of the augmentations.
        channels_last: memory format of images; None takes that of `images`.

    Raises:
        ValueError: mean and std do not fit.
    """

    def __init__(
        self, images: Tensor, mean: Sequence[float], std: Sequence[float], seed: int, channels_last: bool | None
    ) -> None:
        self.images, self.seed = images, seed
        self.tokens = not images.is_floating_point() and images.dtype != torch.uint8
        self.bytes_of_images = images.ndim == 4 and images.dtype == torch.uint8
        if channels_last is None and images.ndim == 4:
            channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
        self.channels_last = bool(channels_last) and images.ndim == 4
        if self.tokens:
            return
        if len(mean) != len(std) or len(mean) not in (1, *images.shape[1:2]) or min(std) <= 0:
            raise ValueError(
                f"mean is {tuple(mean)} and std is {tuple(std)} but each must hold 1 or {images.shape[1]} numbers, "
                f"those of std above 0"
            )
        # (x / unit - mean) / std as one multiply-add
        unit = 255 if images.dtype == torch.uint8 else 1
        shape = (-1,) + (1,) * (images.ndim - 2)
        center, spread = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
        scale, shift = (1 / (unit * spread)).float(), (-center / spread).float()
        self.scale, self.shift = scale.reshape(shape).to(images.device), shift.reshape(shape).to(images.device)
        if self.bytes_of_images:
            channels, byte = images.shape[1], torch.arange(256.0)
            self.normal = torch.addcmul(shift[:, None], byte, scale[:, None]).expand(channels, 256)
            self.normal = self.normal.contiguous().to(images.device)
            self.raw = byte.expand(channels, 256).contiguous().to(images.device)

    def __call__(self, index: Tensor, views: tuple[View, ...], key: str, epoch: int) -> tuple[Tensor, ...]:
        """A (B, ...) tensor for each view, drawn from the streams whose names begin with `key`; None's are one."""
        numbered = {i if view.name is not None else -1: view for i, view in enumerate(views)}
        made: dict[int, Tensor] = {}
        if self.bytes_of_images:
            for strong, table in ((False, self.normal), (True, self.raw)):
                group = {i: view for i, view in numbered.items() if view.strong == strong}
                crops = [view.crop._replace(number=max(i, 0)) for i, view in group.items()]
                images = augment_batch(
                    self.images, index, crops, table, seed=self.seed, stream=f"{key}crop_flip", epoch=epoch,
                    channels_last=self.channels_last and not strong,
                )  # fmt: skip
                made |= zip(group, images, strict=True)
        else:
            gathered = self.images[index]
            made = {i: self._cropped(gathered, index, i, view, key, epoch) for i, view in numbered.items()}
        for i, view in numbered.items():
            if view.strong:
                made[i] = self._strong(made[i], index, i, view, key, epoch)
            elif view.element:
                made[i] = self._element(made[i], index, i, view, key, epoch)
        return tuple(made[i if view.name is not None else -1] for i, view in enumerate(views))

    def normalised(self, images: Tensor) -> Tensor:
        """(B, ...) float32 with the mean and the standard deviation of the data removed."""
        return torch.addcmul(self.shift, images.float(), self.scale)

    def _cropped(self, images: Tensor, index: Tensor, number: int, view: View, key: str, epoch: int) -> Tensor:
        """A view of gathered samples that are no bytes of images, as far as its crop goes."""
        if self.tokens:
            return images
        if view.crop == Crop():
            return self.normalised(images)
        draws = self._uniform(f"{key}crop_flip", index, 5, epoch, number)
        if not view.crop.flip:
            draws[:, 2] = 1
        images = self.normalised(crop_flip(images, draws[:, :3], view.crop.padding))
        return cut_square(images, draws[:, 3:], view.crop.cutout, 0.0) if view.crop.cutout else images

    def _strong(self, images: Tensor, index: Tensor, number: int, view: View, key: str, epoch: int) -> Tensor:
        """From bytes as floats, cropped and flipped, to a normalised view."""
        draws = self._uniform(f"{key}strong", index, STRONG_DRAWS, epoch, number)
        return random_operations(images, draws, self.normal, cutout=view.cutout, channels_last=self.channels_last)

    def _uniform(self, stream: str, index: Tensor, draws: int, epoch: int, number: int) -> Tensor:
        """`fastlnl.philox.uniform` of these ids, made in one launch."""
        words = random_words(index, 2 * draws, seed=self.seed, stream=stream, epoch=epoch, view=number)
        return unit_interval(words.long() + 2**31)

    def _element(self, x: Tensor, index: Tensor, number: int, view: View, key: str, epoch: int) -> Tensor:
        """Element by element, on normalised samples or token ids."""
        elements = x.shape[1:].numel()
        count = elements + elements % 2 if view.element == "noise" else elements
        draws = random_words(index, count, seed=self.seed, stream=f"{key}{view.element}", epoch=epoch, view=number)
        if view.element == "word_dropout":
            return word_dropout(x, draws, view.rate)
        return dropout(x, draws, view.rate) if view.element == "dropout" else gaussian_noise(x, draws, view.rate)
