"""Batches from samples that already live on the device."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from types import EllipsisType

import torch
from torch import Tensor

from fastlnl.augment import View, parse_view
from fastlnl.data.dataset import Batch
from fastlnl.data.views import Views
from fastlnl.errors import ShapeError
from fastlnl.philox import uniform

Augment = str | None | tuple[str | None, ...]


class IndexedLoader:
    """An epoch of batches, each sample with its id; the samples stay on the device and are normalised batch by batch.

    Order and augmentation depend on (seed, epoch) and on the ids alone: call `set_epoch` before each epoch, and a
    resumed run sees what an uninterrupted one does. No batch makes the host wait for the device.

    Args:
        images: uint8 (N, ch, H, W), scaled to 0..1 before normalising, float32 (N, ...), or token ids, int64 or
            int32 (N, L), which are taken as they are.
        label: (N,) int64 given labels.
        batch_size: B.
        mean, std: one number a channel (dimension 1 of `images`), or one for all; not used for token ids: ().
        device: where images and labels are kept and batches appear.
        seed: of order and augmentation.
        shuffle: False keeps the order of the ids.
        drop_last: leave out a last batch of fewer than B samples.
        augment: a name that `fastlnl.augment.parse_view` knows, None, or a tuple of them, one for each view.
        num_views: how often a single `augment` is repeated, each view augmented on its own.
        channels_last: memory format of image batches; None takes that of `images`.

    Raises:
        ShapeError: images and label differ in length, or an augmentation meets samples of another kind.
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
        augment: Augment = None,
        num_views: int = 1,
        channels_last: bool | None = None,
    ) -> None:
        if len(images) != len(label):
            raise ShapeError(f"images has {len(images)} samples but label has {len(label)}; pass one label an image")
        if batch_size < 1 or num_views < 1:
            raise ValueError(f"batch_size is {batch_size} and num_views is {num_views} but both must be at least 1")
        if isinstance(augment, tuple) and num_views not in (1, len(augment)):
            raise ValueError(f"augment names {len(augment)} views but num_views is {num_views}; leave num_views out")
        if images.dim() == 4 and not images.is_contiguous(memory_format=torch.channels_last):
            images = images.contiguous()  # an expanded tensor, say
        self.images, self.label = images.to(device), label.to(device)
        self.batch_size, self.seed, self.shuffle, self.drop_last = batch_size, seed, shuffle, drop_last
        self.augment: tuple[str | None, ...] = augment if isinstance(augment, tuple) else (augment,) * num_views
        self.epoch = 0
        self._views = Views(self.images, mean, std, seed, channels_last)
        self._parse(self.augment)

    @property
    def num_samples(self) -> int:
        """N."""
        return len(self.label)

    @property
    def num_views(self) -> int:
        """Views of each sample in a batch."""
        return len(self.augment)

    def __len__(self) -> int:
        """Batches in an epoch over all samples."""
        return _num_batches(self.num_samples, self.batch_size, self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order and the augmentation of the next pass."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def batches(
        self,
        ids: Tensor | None = None,
        *,
        stream: str = "order",
        augment: Augment | EllipsisType = ...,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        drop_last: bool | None = None,
    ) -> Iterator[Batch]:
        """One pass over some of the samples, or all.

        The order is keyed by (seed, stream, epoch, id), the views by (seed, stream, epoch, id, view): a subset comes
        in the order that its samples have in a pass over all, whatever the order of `ids`. Two passes over the same
        samples that must differ, such as a second network's, take two streams.

        Args:
            ids: (n,) int64 on the device, None for all; an id may repeat.
            stream: what the pass is for. "order" is the pass of `__iter__`.
            augment: of this pass: a name or None for one view, a tuple for one view an entry; default: the loader's.
            batch_size, shuffle, drop_last: of this pass, default those of the loader.

        Raises:
            ShapeError: ids is not (n,) int64 on the device of the samples.
            ValueError, ShapeError: the augmentation is unknown or is for other samples.
        """
        return self._pass(self._ids(ids), stream, self._parse(augment), *self._options(batch_size, shuffle, drop_last))

    def cycle(
        self,
        ids: Tensor | None = None,
        *,
        stream: str = "order",
        augment: Augment | EllipsisType = ...,
        batch_size: int | None = None,
        shuffle: bool | None = None,
        drop_last: bool | None = None,
    ) -> Iterator[Batch]:
        """`batches` without end: pass after pass, each in an order and with views of its own. The first is `batches`.

        Raises:
            ValueError: there is nothing to repeat: no ids, or fewer than a batch and `drop_last`.
            ValueError, ShapeError: as `batches`.
        """
        order, views = self._ids(ids), self._parse(augment)
        size, shuffled, short = self._options(batch_size, shuffle, drop_last)
        if _num_batches(len(order), size, short) == 0:
            raise ValueError(
                f"ids has {len(order)} samples for batches of {size} (drop_last is {short}): nothing to repeat; "
                f"leave this cycle out where there are none"
            )
        passes = (stream if i == 0 else f"{stream}#{i}" for i in itertools.count())
        return itertools.chain.from_iterable(self._pass(order, name, views, size, shuffled, short) for name in passes)

    def _pass(
        self, ids: Tensor, stream: str, views: tuple[View, ...], size: int, shuffle: bool, drop_last: bool
    ) -> Iterator[Batch]:
        epoch = self.epoch  # of the whole pass
        if shuffle:
            ids = ids[uniform(self.seed, stream, ids, epoch=epoch)[:, 0].argsort(stable=True)]
        key = "" if stream == "order" else f"{stream}/"
        for i in range(_num_batches(len(ids), size, drop_last)):
            index = ids[i * size : (i + 1) * size]
            yield Batch(index, self._views(index, views, key, epoch), self.label[index])

    def _options(self, batch_size: int | None, shuffle: bool | None, drop_last: bool | None) -> tuple[int, bool, bool]:
        if batch_size is not None and batch_size < 1:
            raise ValueError(f"batch_size is {batch_size} but must be at least 1")
        return (
            self.batch_size if batch_size is None else batch_size,
            self.shuffle if shuffle is None else shuffle,
            self.drop_last if drop_last is None else drop_last,
        )

    def _ids(self, ids: Tensor | None) -> Tensor:
        if ids is None:
            return torch.arange(self.num_samples, device=self.label.device)
        if ids.dim() != 1 or ids.dtype != torch.int64 or ids.device != self.label.device:
            raise ShapeError(
                f"ids is {tuple(ids.shape)} {str(ids.dtype)[6:]} on {ids.device}; expected (n,) int64 on "
                f"{self.label.device}, such as mask.nonzero()[:, 0]"
            )
        return ids

    def _parse(self, augment: Augment | EllipsisType) -> tuple[View, ...]:
        names = self.augment if augment is ... else augment if isinstance(augment, tuple) else (augment,)
        if not names:
            raise ValueError("augment is () but a batch needs at least one view; write None for samples as they are")
        return tuple(parse_view(name, self.images) for name in names)


def _num_batches(num_samples: int, batch_size: int, drop_last: bool) -> int:
    batches = num_samples / batch_size
    return math.floor(batches) if drop_last else math.ceil(batches)
