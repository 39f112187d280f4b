"""What a data set is, and the batch that a training step sees."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch, everything on the device.

    Attributes:
        index: (B,) int64 ids of the samples.
        views: float32 tensors (B, ...), one for each augmented view.
        label: (B,) int64 given labels.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    views: tuple[Tensor, ...]
    label: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their true labels; the given, noisy labels come from `fastlnl.noise`.

    Attributes:
        name: "digits", "cifar10", ...
        train_images, test_images: uint8 (N, ch, H, W), or float32 features (N, F).
        train_label, test_label: (N,) int64 true labels.
        num_classes: C.
        class_names: C names.
        mean, std: of the training images, one number a channel, in units of 0..1 for uint8 images.
        human_labels: (N,) int64 labels that people gave to the training images, by name.
        note: what to write beside every result, such as "CIFAR-10 (JPEG q75)".
    """

    name: str
    train_images: Tensor
    train_label: Tensor
    test_images: Tensor
    test_label: Tensor
    num_classes: int
    class_names: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    human_labels: dict[str, Tensor] = field(default_factory=dict)
    note: str = ""

    @property
    def num_samples(self) -> int:
        """N, the number of training samples."""
        return len(self.train_label)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(ch, H, W), or (F,) for features."""
        return tuple(self.train_images.shape[1:])
