"""Class statistics against cleanlab, selection against torch's sorts."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from contests import Contest, Size, WrongAnswer, calling
from torch import Tensor

from fastlnl.confident import confident_joint, confident_thresholds
from fastlnl.selection import class_balanced, small_loss

KEPT = 0.5  # share of the samples that a selection takes


class Predictions(NamedTuple):
    probs: Tensor  # (N, C)
    label: Tensor  # (N,) given labels


class Losses(NamedTuple):
    loss: Tensor  # (N,)
    label: Tensor  # (N,) given labels
    num_classes: int


def predictions(size: Size, device: torch.device | str) -> Predictions:
    """Of a network that is right more often than its labels, 30 % of which were drawn anew."""
    samples, classes = size
    random = torch.Generator(device).manual_seed(0)
    true, other = (torch.randint(classes, (samples,), generator=random, device=device) for _ in range(2))
    label = torch.where(torch.rand(samples, generator=random, device=device) < 0.3, other, true)
    logits = torch.randn(size, generator=random, device=device).mul_(2)
    logits.scatter_add_(1, true[:, None], torch.full((samples, 1), 6.0, device=device))
    return Predictions(logits.softmax(1), label)


def exponential_losses(size: Size, device: torch.device | str) -> Losses:
    samples, classes = size[0], size[-1] if len(size) > 1 else 1
    random = torch.Generator(device).manual_seed(0)
    loss = torch.rand(samples, generator=random, device=device).log().neg()
    return Losses(loss, torch.randint(classes, (samples,), generator=random, device=device), classes)


def cleanlab_thresholds(given: Predictions) -> Tensor:
    from cleanlab.count import get_confident_thresholds

    return torch.from_numpy(get_confident_thresholds(*on_host(given)))


def cleanlab_joint(calibrate: bool) -> Callable[[Predictions], Tensor]:
    def joint(given: Predictions) -> Tensor:
        from cleanlab.count import compute_confident_joint

        return torch.from_numpy(compute_confident_joint(*on_host(given), calibrate=calibrate))

    return joint


def on_host(given: Predictions) -> tuple[Any, Any]:
    """As cleanlab wants them; the same memory on a CPU."""
    return given.label.cpu().numpy(), given.probs.cpu().numpy()


def smallest_by_topk(given: Losses) -> Tensor:
    count = int(KEPT * len(given.loss))
    return mask(given.loss, torch.topk(given.loss, count, largest=False, sorted=False).indices)


def smallest_by_sort(given: Losses) -> Tensor:
    count = int(KEPT * len(given.loss))
    return mask(given.loss, torch.sort(given.loss, stable=True).indices[:count])


def balanced_by_sorts(given: Losses) -> Tensor:
    """By loss, then by class; in each class those of the lowest ranks."""
    loss, label, classes = given
    order = torch.sort(loss, stable=True).indices
    order = order[torch.sort(label[order], stable=True).indices]
    start = torch.searchsorted(label[order], torch.arange(classes, device=loss.device))
    rank = torch.arange(len(loss), device=loss.device) - start[label[order]]
    return mask(loss, order[rank < -(-len(loss) * KEPT // classes)])


def mask(like: Tensor, index: Tensor) -> Tensor:
    return torch.zeros(len(like), dtype=torch.bool, device=like.device).scatter_(0, index, True)


def equal(ours: Tensor, theirs: Tensor) -> str:
    if differ := int((ours.cpu() != theirs.cpu()).sum()):
        raise WrongAnswer(f"{differ} of {ours.numel()} values differ")
    return "equal"


def nearly_equal(ours: Tensor, theirs: Tensor) -> str:
    """cleanlab sums in float32."""
    worst = float((ours.cpu() - theirs).abs().max())
    if not worst <= 1e-6:
        raise WrongAnswer(f"a threshold differs by {worst:.0e}")
    return f"{worst:.0e}"


def equal_in_rows(ours: Tensor, theirs: Tensor) -> str:
    """cleanlab leaves to numpy's sort which of equal remainders is rounded up: a count may be off by one."""
    ours = ours.cpu()
    off = (ours - theirs).abs()
    if off.max() > 1 or not torch.equal(ours.sum(1), theirs.sum(1)):
        raise WrongAnswer(f"a count differs by {int(off.max())}, or the sum of a row does")
    return f"{int(off.sum()):,} of {ours.numel():,} off by one, sums of rows equal" if off.any() else "equal"


def row_bytes(size: Size) -> int:
    """Probabilities and labels, each read once."""
    samples, classes = size
    return 4 * samples * classes + 8 * samples


THREE_TIMES = {(50_000, 100): 3.0, (50_000, 1000): 3.0}

CLASS_CONTESTS = [
    Contest(
        "thresholds",
        "mean probability of each class over the samples given that class",
        "N x C",
        tuple(THREE_TIMES),
        predictions,
        {
            "fastlnl": calling(lambda given: confident_thresholds(*given)),
            "cleanlab": calling(cleanlab_thresholds),
        },
        nearly_equal,
        "tests/test_confident.py",
        ("class_reduce",),
        lambda size: 12 * size[0],
        THREE_TIMES,
        truth=lambda given: confident_thresholds(given.probs.double(), given.label),
    ),
    Contest(
        "joint",
        "confident joint of given and true classes",
        "N x C",
        tuple(THREE_TIMES),
        predictions,
        {
            "fastlnl": calling(lambda given: confident_joint(*given, calibrate=False)),
            "cleanlab": calling(cleanlab_joint(calibrate=False)),
        },
        equal,
        "tests/test_confident.py",
        ("class_reduce",),
        row_bytes,
        THREE_TIMES,
    ),
    Contest(
        "calibrated joint",
        "confident joint scaled to the number of samples given each class",
        "N x C",
        tuple(THREE_TIMES),
        predictions,
        {
            "fastlnl": calling(lambda given: confident_joint(*given)),
            "cleanlab": calling(cleanlab_joint(calibrate=True)),
        },
        equal_in_rows,
        "tests/test_confident.py",
        ("class_reduce",),
        row_bytes,
        THREE_TIMES,
    ),
    Contest(
        "small_loss",
        "mask of the half with the smallest losses",
        "N",
        ((50_000,), (1_280_000,)),
        exponential_losses,
        {
            "fastlnl": calling(lambda given: small_loss(given.loss, KEPT)),
            "torch.topk": calling(smallest_by_topk),
            "torch.sort": calling(smallest_by_sort),
        },
        equal,
        "tests/test_selection.py",
        ("select",),
        lambda size: 5 * size[0],
        quick=((1_280_000,),),
    ),
    Contest(
        "class_balanced",
        "mask of the smallest losses of each class, half of the samples in all",
        "N x C",
        ((50_000, 100), (1_280_000, 1000)),
        exponential_losses,
        {
            "fastlnl": calling(lambda given: class_balanced(-given.loss, given.label, given.num_classes, KEPT)),
            "torch.sort": calling(balanced_by_sorts),
        },
        equal,
        "tests/test_selection.py",
        ("select",),
        lambda size: 13 * size[0],
    ),
]
