"""Noise by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlnl.noise.classes import asymmetric, blocks5, next_class, pairs, similar_digits, symmetric
from fastlnl.noise.parts import instance

if TYPE_CHECKING:  # the data sets are a floor above
    from fastlnl.data.dataset import Dataset


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Given labels and how they came about. `str()` is the line for a log.

    Attributes:
        label: (N,) int64 given labels.
        mode: full name of the preset, such as "symmetric/inclusive".
        count: "exact", "exact_per_class", "bernoulli" or "each"; empty where nothing was drawn.
        nominal_rate: the rate that was asked for; with human labels the share of wrong ones.
        realised_rate: share of wrong labels.
        counts: (C, C) int64, number of samples by true (row) and given (column) class.
    """

    label: Tensor
    mode: str
    count: str
    nominal_rate: float
    realised_rate: float
    counts: Tensor

    def __str__(self) -> str:
        name = ":".join([self.mode, *([f"{self.nominal_rate:g}", self.count] if self.count else [])])
        return f"{name}: {100 * self.realised_rate:.2f} % of {len(self.label):,} labels are wrong"


def apply_noise(spec: str, dataset: Dataset, seed: int) -> NoisyLabels:
    """Given labels for the training samples of a data set.

    Args:
        spec: "mode/preset:rate" or "mode/preset:rate:count", such as "symmetric/exclusive:0.4" (each other class),
            "symmetric:0.4" (short for symmetric/inclusive: all classes, the true one too, so 36 % wrong of 10 classes),
            "asymmetric/pairs:0.4", "asymmetric/blocks5:0.4:exact", "instance/pdn:0.4" (part-dependent, from the
            pixels); or "human/cifar10n_worst", "none" without a rate.
        dataset: gives the true labels; decides which presets fit.
        seed: in [0, 2^32).

    Returns:
        NoisyLabels, on the device of the data set's labels.

    Raises:
        ValueError: the preset does not fit the data set, a rate is missing or outside [0, 1], an unknown count.
    """
    name, *numbers = spec.split(":")
    mode = DEFAULTS.get((name, dataset.name)) or DEFAULTS.get((name, "")) or name
    if mode not in presets_for(dataset):
        raise ValueError(f"noise {spec!r} does not fit {dataset.name}; what fits is {', '.join(presets_for(dataset))}")
    if mode not in PRESETS:
        if numbers:
            raise ValueError(f"noise {spec!r} has a rate but these labels are fixed; write {mode!r}")
        label = dataset.train_label if mode == "none" else dataset.human_labels[mode.removeprefix("human/")]
        return describe(label.clone(), dataset, mode)
    if len(numbers) not in (1, 2):
        raise ValueError(f"noise {spec!r} needs a rate and at most a count after it; write '{name}:0.4'")
    try:
        rate = float(numbers[0])
    except ValueError:
        raise ValueError(f"noise {spec!r} has the rate {numbers[0]!r}; write a number, such as '{name}:0.4'") from None
    preset = PRESETS[mode]
    if preset.scale is not None:
        if len(numbers) == 2:
            raise ValueError(f"noise {spec!r} has a count but each sample draws its own label; write '{name}:{rate:g}'")
        x, true, classes = dataset.train_images, dataset.train_label, dataset.num_classes
        moments = (dataset.mean, dataset.std) if preset.scale == "standardised" else None
        label = instance(x, true, classes, rate, seed, moments=moments, shared=mode == "instance/shared_w")
        return describe(label, dataset, mode, preset.count, rate)
    count = numbers[1] if len(numbers) == 2 else preset.count
    if preset.mapping is None:
        own = mode == "symmetric/inclusive"
        label = symmetric(dataset.train_label, dataset.num_classes, rate, seed, include_own=own, count=count)
    else:
        label = asymmetric(dataset.train_label, preset.mapping(dataset.num_classes), rate, seed, count=count)
    return describe(label, dataset, mode, count, rate)


def describe(label: Tensor, dataset: Dataset, mode: str, count: str = "", rate: float | None = None) -> NoisyLabels:
    """Count what became of the true labels; without a rate the nominal one is the share of wrong labels."""
    true, num_classes = dataset.train_label, dataset.num_classes
    counts = (true * num_classes + label).bincount(minlength=num_classes**2).reshape(num_classes, num_classes)
    wrong = int((label != true).sum()) / max(len(label), 1)
    return NoisyLabels(label, mode, count, wrong if rate is None else rate, wrong, counts)


@dataclass(frozen=True)
class Preset:
    """How samples are chosen by default, which data sets fit, and the class mapping of asymmetric noise.

    `scale` makes it instance-dependent: "raw" takes bytes as 0..255 and features as they are,
    "standardised" normalises.
    """

    count: str
    fits: Callable[[Dataset], bool]
    mapping: Callable[[int], list[int]] | None = None
    scale: str | None = None


def instance_fits(dataset: Dataset) -> bool:
    """Samples are bytes or floats, no token ids."""
    return dataset.num_classes > 1 and (
        dataset.train_images.is_floating_point() or dataset.train_images.dtype == torch.uint8
    )


PRESETS = {
    "symmetric/inclusive": Preset("exact", lambda dataset: True),
    "symmetric/exclusive": Preset("bernoulli", lambda dataset: dataset.num_classes > 1),
    "asymmetric/pairs": Preset("exact_per_class", lambda dataset: dataset.name == "cifar10", pairs),
    "asymmetric/mnist": Preset("bernoulli", lambda dataset: dataset.name in ("mnist", "digits"), similar_digits),
    "asymmetric/next": Preset("bernoulli", lambda dataset: dataset.num_classes > 1, next_class),
    "asymmetric/blocks5": Preset("bernoulli", lambda dataset: dataset.num_classes % 5 == 0, blocks5),
    "instance/pdn": Preset("each", instance_fits, scale="raw"),
    "instance/pdn_standardised": Preset("each", instance_fits, scale="standardised"),
    "instance/shared_w": Preset("each", instance_fits, scale="raw"),
}
# What a plain name means: (name, data set), where the empty data set stands for any.
DEFAULTS = {
    ("symmetric", ""): "symmetric/inclusive",
    ("asymmetric", "cifar10"): "asymmetric/pairs",
    ("asymmetric", "cifar100"): "asymmetric/blocks5",
    ("instance", ""): "instance/pdn",
}


def presets_for(dataset: Dataset) -> list[str]:
    """Names of the noise that fits a data set."""
    human = [f"human/{name}" for name in dataset.human_labels]
    return ["none", *(name for name, preset in PRESETS.items() if preset.fits(dataset)), *human]
