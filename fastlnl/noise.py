"""Noisy labels under named presets: "40 %" means something else in every paper, so a preset says which 40 % it is.

A generator draws two numbers for each sample, keyed by (seed, sample id): the first decides whether the label is
drawn anew, the second which label it becomes. `count` says how the first is read:

- "bernoulli": below the rate. The label depends on (seed, id) and on the true label of that sample, nothing else.
- "exact": the floor(rate * N) samples with the smallest numbers, ties by id. The numbers depend on (seed, id); which
  of them are the smallest depends on all N.
- "exact_per_class": the same within each true class, floor(rate * n_c) samples of class c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from fastlnl.errors import LabelError
from fastlnl.philox import uniform

if TYPE_CHECKING:  # the data sets are a floor above
    from fastlnl.data.dataset import Dataset

COUNTS = ("exact", "exact_per_class", "bernoulli")


@dataclass(frozen=True, eq=False)
class NoisyLabels:
    """Given labels and how they came about. `str()` is the line for a log.

    Attributes:
        label: (N,) int64 given labels.
        mode: full name of the preset, such as "symmetric/inclusive".
        count: "exact", "exact_per_class" or "bernoulli"; empty where nothing was drawn.
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
            "asymmetric/pairs:0.4", "asymmetric/blocks5:0.4:exact"; or "human/cifar10n_worst", "none" without a rate.
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
    count = numbers[1] if len(numbers) == 2 else preset.count
    if preset.mapping is None:
        own = mode == "symmetric/inclusive"
        label = symmetric(dataset.train_label, dataset.num_classes, rate, seed, include_own=own, count=count)
    else:
        label = asymmetric(dataset.train_label, preset.mapping(dataset.num_classes), rate, seed, count=count)
    return describe(label, dataset, mode, count, rate)


def symmetric(
    label: Tensor,
    num_classes: int,
    rate: float,
    seed: int,
    include_own: bool = True,
    count: str = "exact",
    index: Tensor | None = None,
) -> Tensor:
    """Draw some labels anew, uniformly over the classes.

    Args:
        label: (N,) int64 true labels.
        num_classes: C.
        rate: share of samples drawn anew, in [0, 1].
        seed: in [0, 2^32).
        include_own: over all C classes, so that rate * (C - 1) / C of the labels are wrong; False: over the C - 1
            other classes, so that `rate` of them are.
        count: how samples are chosen, see the head of this module.
        index: (N,) int64 sample ids, default 0 .. N - 1.

    Returns:
        (N,) int64 given labels, on the device of `label`.

    Raises:
        LabelError: a label outside [0, C).
        ValueError: a rate outside [0, 1], an unknown count, no other class to draw.

    Deterministic. Source: Patrini et al. 2017 (exclusive); the inclusive form is that of DivideMix (Li et al. 2020).
    """
    if num_classes < 2 and not include_own:
        raise ValueError(f"num_classes is {num_classes} but a label of another class needs 2; use include_own=True")
    chosen, draw = draw_samples(label, num_classes, rate, seed, count, index)
    if include_own:
        other = (draw * num_classes).long()
    else:
        other = (draw * (num_classes - 1)).long()
        other += other >= label  # the classes above the true one move up by one
    return torch.where(chosen, other, label)


def asymmetric(
    label: Tensor,
    mapping: Sequence[int],
    rate: float,
    seed: int,
    count: str = "exact_per_class",
    index: Tensor | None = None,
) -> Tensor:
    """Turn some labels of each class into one fixed other class. Every flip starts from the true label.

    Args:
        label: (N,) int64 true labels.
        mapping: C classes, class c becomes mapping[c]; mapping[c] = c leaves it alone.
        rate: share of samples that go through the mapping, in [0, 1].
        seed: in [0, 2^32).
        count: how samples are chosen, see the head of this module.
        index: (N,) int64 sample ids, default 0 .. N - 1.

    Returns:
        (N,) int64 given labels, on the device of `label`.

    Raises:
        LabelError: a label outside [0, C).
        ValueError: a mapped class outside [0, C), a rate outside [0, 1], an unknown count.

    Deterministic. Source: Patrini et al. 2017.
    """
    num_classes = len(mapping)
    for source, target in enumerate(mapping):
        if not 0 <= target < num_classes:
            raise ValueError(
                f"mapping sends class {source} to {target} but it names {num_classes} classes; "
                f"every target must be in [0, {num_classes})"
            )
    chosen, _ = draw_samples(label, num_classes, rate, seed, count, index)
    return torch.where(chosen, torch.tensor(mapping, device=label.device)[label], label)


def draw_samples(
    label: Tensor, num_classes: int, rate: float, seed: int, count: str, index: Tensor | None
) -> tuple[Tensor, Tensor]:
    """(N,) bool, whose label is drawn anew, and (N,) float64 in [0, 1), the number that decides what it becomes."""
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is {rate} but must be in [0, 1], the share of samples: write 0.4 for 40 %")
    if count not in COUNTS:
        raise ValueError(f"count is {count!r}, expected one of {', '.join(COUNTS)}")
    if len(label) and (label.min() < 0 or label.max() >= num_classes):
        raise LabelError(
            f"label has values in [{label.min()}, {label.max()}] but there are {num_classes} classes; "
            f"are labels 1-based?"
        )
    if index is None:
        index = torch.arange(len(label), device=label.device)
    select, become = uniform(seed, "noise", index, draws=2).unbind(1)
    if count == "bernoulli":
        return select < rate, become
    by_id = index.argsort()
    order = by_id[select[by_id].argsort(stable=True)]
    groups = [order] if count == "exact" else [order[label[order] == c] for c in range(num_classes)]
    chosen = torch.zeros(len(label), dtype=torch.bool, device=label.device)
    for group in groups:
        # The rate as it is written: 0.29 of 100 samples is 29, not floor(28.999999999999996).
        chosen[group[: int(Fraction(str(rate)) * len(group))]] = True
    return chosen, become


def describe(label: Tensor, dataset: Dataset, mode: str, count: str = "", rate: float | None = None) -> NoisyLabels:
    """Count what became of the true labels; without a rate the nominal one is the share of wrong labels."""
    true, num_classes = dataset.train_label, dataset.num_classes
    counts = (true * num_classes + label).bincount(minlength=num_classes**2).reshape(num_classes, num_classes)
    wrong = int((label != true).sum()) / max(len(label), 1)
    return NoisyLabels(label, mode, count, wrong if rate is None else rate, wrong, counts)


def moved(num_classes: int, moves: dict[int, int]) -> list[int]:
    return [moves.get(c, c) for c in range(num_classes)]


def pairs(num_classes: int) -> list[int]:
    """CIFAR-10: truck to automobile, bird to airplane, deer to horse, cat to dog, dog to cat (Patrini et al. 2017)."""
    return moved(num_classes, {9: 1, 2: 0, 4: 7, 3: 5, 5: 3})


def similar_digits(num_classes: int) -> list[int]:
    """7 to 1, 2 to 7, 5 to 6, 6 to 5, 3 to 8 (Patrini et al. 2017; 5 and 6 both ways as in Ma et al. 2020)."""
    return moved(num_classes, {7: 1, 2: 7, 5: 6, 6: 5, 3: 8})


def next_class(num_classes: int) -> list[int]:
    """Each class to the following one, circular (Han et al. 2018, Co-teaching)."""
    return [(c + 1) % num_classes for c in range(num_classes)]


def blocks5(num_classes: int) -> list[int]:
    """Each class to the following one inside blocks of five consecutive ids, circular (as in ELR, Liu et al. 2020)."""
    return [c - c % 5 + (c + 1) % 5 for c in range(num_classes)]


@dataclass(frozen=True)
class Preset:
    """How samples are chosen by default, which data sets fit, and the class mapping of asymmetric noise."""

    count: str
    fits: Callable[[Dataset], bool]
    mapping: Callable[[int], list[int]] | None = None


PRESETS = {
    "symmetric/inclusive": Preset("exact", lambda dataset: True),
    "symmetric/exclusive": Preset("bernoulli", lambda dataset: dataset.num_classes > 1),
    "asymmetric/pairs": Preset("exact_per_class", lambda dataset: dataset.name == "cifar10", pairs),
    "asymmetric/mnist": Preset("bernoulli", lambda dataset: dataset.name in ("mnist", "digits"), similar_digits),
    "asymmetric/next": Preset("bernoulli", lambda dataset: dataset.num_classes > 1, next_class),
    "asymmetric/blocks5": Preset("bernoulli", lambda dataset: dataset.num_classes % 5 == 0, blocks5),
}
# What a plain name means: (name, data set), where the empty data set stands for any.
DEFAULTS = {
    ("symmetric", ""): "symmetric/inclusive",
    ("asymmetric", "cifar10"): "asymmetric/pairs",
    ("asymmetric", "cifar100"): "asymmetric/blocks5",
}


def presets_for(dataset: Dataset) -> list[str]:
    """Names of the noise that fits a data set."""
    human = [f"human/{name}" for name in dataset.human_labels]
    return ["none", *(name for name, preset in PRESETS.items() if preset.fits(dataset)), *human]
