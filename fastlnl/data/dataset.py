"""What a data set is, and the batch that a training step sees."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """One batch, everything on the device.

    Attributes:
        index: (B,) int64 ids of the samples.
        views: tensors (B, ...), one for each augmented view: float32, or int64 token ids (B, L) of texts.
        label: (B,) int64 given labels.
    """

    index: Tensor  # type: ignore[assignment]  # hides tuple.index, which nobody asks a batch for
    views: tuple[Tensor, ...]
    label: Tensor


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images or texts with their true labels; the given, noisy labels come from `fastlnl.noise`.

    Methods and loaders ask for "images" whatever a sample is: those of a text data set are token ids, padded with 0 at
    the end. `vocabulary[id]` is the word; 0 is padding, 1 a word that the vocabulary does not have.

    Attributes:
        name: "digits", "cifar10", ...
        train_images, test_images: uint8 (N, ch, H, W), or float32 features (N, F), or int64 token ids (N, L).
        train_label, test_label: (N,) int64 true labels.
        num_classes: C.
        class_names: C names.
        mean, std: of the training images, one number a channel, in units of 0..1 for uint8 images; empty for texts.
        human_labels: (N,) int64 labels that people gave to the training images, by name.
        note: what to write beside every result, such as "CIFAR-10 (JPEG q75)".
        vocabulary: words by token id; empty for images and features.
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
    vocabulary: tuple[str, ...] = ()

    @property
    def num_samples(self) -> int:
        """N, the number of training samples."""
        return len(self.train_label)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(ch, H, W), or (F,) for features, or (L,) for texts."""
        return tuple(self.train_images.shape[1:])

    def first(self, n: int) -> Dataset:
        """The same data set with its first n training samples only; `note` says so. Test samples are all there.

        Raises:
            ValueError: n is not in 1..N.
        """
        if not 1 <= n <= self.num_samples:
            raise ValueError(f"n is {n} but {self.name} has {self.num_samples} training samples; choose 1 to that many")
        if n == self.num_samples:
            return self
        return replace(
            self,
            train_images=self.train_images[:n],
            train_label=self.train_label[:n],
            human_labels={name: label[:n] for name, label in self.human_labels.items()},
            note=f"{self.note or self.name}, first {n:,} samples",
        )
