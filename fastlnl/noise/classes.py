"""Noise that depends on the true class: which samples are drawn anew, and which label they become."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction

import torch
from torch import Tensor

from fastlnl.errors import LabelError
from fastlnl.philox import uniform

COUNTS = ("exact", "exact_per_class", "bernoulli")


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
        count: how samples are chosen, see `fastlnl.noise`.
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
        count: how samples are chosen, see `fastlnl.noise`.
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
