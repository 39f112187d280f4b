"""Who is kept: the selection rules of the field, each from scores to a mask (N,) bool on the device.

Masks are combined as tensors are (`small_loss(a) & small_loss(b)`, `~mask`), and `compact` turns one into ids. A rule
never waits for the device, its results have fixed shapes, and numbers may be host numbers or tensors on the device, so
all of it runs inside a CUDA graph. Of equal scores the lower id is taken first; NaN is never selected; `among` (N,)
bool leaves the others out of the count. All deterministic.
"""

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe
from fastlnl.ops.select import select

Number = int | float | Tensor  # a tensor has shape ()


def compact(mask: Tensor, capacity: int | None = None) -> tuple[Tensor, Tensor]:
    """Ids of the selected samples in a fixed shape, and how many there are.

    Args:
        mask: (N,) bool.
        capacity: length of `index`; None: N.

    Returns:
        index: (capacity,) int64, ascending, -1 past the last.
        count: () int64, of the mask: more than `capacity` if not all have room.
    """
    if mask.dim() != 1 or mask.dtype != torch.bool:
        raise ShapeError(f"mask is {describe(mask)}; expected (N,) bool")
    size = len(mask) if capacity is None else capacity
    return torch.nonzero_static(mask, size=size, fill_value=-1).view(-1), mask.sum()


def above_threshold(scores: Tensor, threshold: Number) -> Tensor:
    """Scores strictly above the threshold, as DivideMix takes its clean set.

    Args:
        scores: (N,), higher = cleaner.
        threshold: a number, or (N,): one for each sample, such as `thresholds[label]`.
    """
    return scores > threshold


def highest(scores: Tensor, count: Number, *, among: Tensor | None = None) -> Tensor:
    """The `count` highest scores, all if there are fewer; scores (N,), higher = cleaner."""
    return select(_only(scores, among), _quota(count, 1, scores)).mask


def small_loss(loss: Tensor, keep_rate: Number, *, among: Tensor | None = None) -> Tensor:
    """The share `keep_rate` of smallest losses, rounded down, but at least one sample.

    Args:
        loss: (N,), lower = cleaner: of the data set or of a batch.
        keep_rate: in [0, 1]; 1 - forget rate.
        among: (N,) bool; N is then how many these are (Co-teaching+: where two networks disagree).

    Source: Han et al. 2018 (Co-teaching).
    """
    total = len(loss) if among is None else among.sum()
    count = (_double(keep_rate, loss) * total).floor().clamp(min=1)
    return select(_only(loss, among), _quota(count, 1, loss), largest=False).mask


def above_quantile(scores: Tensor, q: Number, *, among: Tensor | None = None) -> Tensor:
    """The highest n - ceil(q n) of the n scores that are numbers: those above the q-quantile, ties by id.

    Exact, not up to a bin: q = 0 takes all and q = 1 none. scores (N,), higher = cleaner; q in [0, 1].
    """
    scores = _only(scores, among)
    n = (~scores.isnan()).sum()
    below = (_double(q, scores) * n).ceil().long()
    return select(scores, (n - below).view(1)).mask


def class_balanced(scores: Tensor, label: Tensor, num_classes: int, rate: Number) -> Tensor:
    """The ceil(rate N / C) highest scores of each class, all of a class that has fewer.

    Args:
        scores: (N,), higher = cleaner.
        label: (N,) integer; a label outside [0, C) is never selected.
        rate: share of all samples to select, in [0, 1].

    Source: Karim et al. 2022 (UNICON).
    """
    quota = (_double(rate, scores) * len(scores) / num_classes).ceil()
    return select(scores, _quota(quota, num_classes, scores), label).mask


def at_least_per_class(mask: Tensor, scores: Tensor, label: Tensor, num_classes: int, minimum: Number) -> Tensor:
    """The mask, and in a class with fewer than `minimum` selected the next highest scores until it has them.

    Args:
        mask: (N,) bool, selected so far.
        scores: (N,), higher = cleaner.
        label: (N,) integer. All zeros and `num_classes` 1: at least `minimum` of all samples.
    """
    missing = minimum - class_counts(label, num_classes, mask)
    return mask | select(_only(scores, ~mask), missing, label).mask


def agreement(probs: Tensor, other: Tensor, threshold: Number = 0.0) -> Tensor:
    """Both networks predict the same class, and the first one with a probability above the threshold.

    Args:
        probs: (N, C) of the network that decides.
        other: (N, C) of its peer; of equal probabilities the lower class is predicted.
    """
    confidence, prediction = probs.max(1)
    return (prediction == other.argmax(1)) & (confidence > threshold)


def class_counts(label: Tensor, num_classes: int, mask: Tensor | None = None) -> Tensor:
    """(C,) int64: samples of each class, of the mask only if there is one; labels outside [0, C) do not count."""
    label = label.long()
    counted = (label >= 0) & (label < num_classes)
    if mask is not None:
        counted = counted & mask
    counts = torch.zeros(num_classes, dtype=torch.int64, device=label.device)
    return counts.scatter_add_(0, label.clamp(0, num_classes - 1), counted.long())


def _only(scores: Tensor, among: Tensor | None) -> Tensor:
    return scores if among is None else torch.where(among, scores, torch.nan)


def _double(x: Number, like: Tensor) -> Tensor:
    """A number in float64 on the device; filled in there, since a copy from the host could not be in a CUDA graph."""
    return x.double() if isinstance(x, Tensor) else torch.full((), x, dtype=torch.float64, device=like.device)


def _quota(count: Number, groups: int, like: Tensor) -> Tensor:
    """The same number for each group, wherever it comes from."""
    if isinstance(count, Tensor):
        return count.long().expand(groups)
    return torch.full((groups,), int(count), dtype=torch.int64, device=like.device)
