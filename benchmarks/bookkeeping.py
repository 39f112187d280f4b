"""What each method does in a step between logits and their gradient, and what it does once an epoch, by fastlnl."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastlnl.losses import ALR, ELR, MixMatch, TwoViewLoss
from fastlnl.state import Credibility, LossSplit

MAX_COUNT = 25
CLEAN, CONFIDENT = 0.5, 0.9
ALR_MOMENTUM, ENTROPY_WEIGHT = 0.9, 0.3
ELR_MOMENTUM, ELR_WEIGHT = 0.7, 3.0


class Head(NamedTuple):
    """A method's part of a step.

    Attributes:
        loss: of the logits of each view, given labels (B,) and ids (B,); moves the state of the batch.
        end_epoch: what is done once an epoch over all samples; None for nothing.
        state: tensors and arrays that are kept between steps.
        views: images a sample that the network sees.
    """

    loss: Callable[[Sequence[Tensor], Tensor, Tensor], Tensor]
    end_epoch: Callable[[], object] | None = None
    state: Callable[[], int] = lambda: 0
    views: int = 1


Build = Callable[[Tensor, int], Head]  # from the given labels (N,) of all samples and C


def bytes_of(module: nn.Module) -> int:
    return sum(buffer.nbytes for buffer in module.buffers())


def cross_entropy(label: Tensor, num_classes: int) -> Head:
    return Head(lambda logits, y, index: F.cross_entropy(logits[0], y))


def cross_entropy_of_two(label: Tensor, num_classes: int) -> Head:
    """What two views cost by themselves."""
    return Head(lambda logits, y, index: F.cross_entropy(logits[0], y) + F.cross_entropy(logits[1], y), views=2)


def alr(label: Tensor, num_classes: int) -> Head:
    criterion = ALR(len(label), num_classes, label, momentum=ALR_MOMENTUM, entropy_weight=ENTROPY_WEIGHT)
    return Head(lambda logits, y, index: criterion(logits[0], y, index), state=lambda: bytes_of(criterion))


def elr(label: Tensor, num_classes: int) -> Head:
    criterion = ELR(len(label), num_classes, label, momentum=ELR_MOMENTUM, elr_weight=ELR_WEIGHT)
    return Head(lambda logits, y, index: criterion(logits[0], y, index), state=lambda: bytes_of(criterion))


def weights_of_counts(num_classes: int, device: torch.device) -> Tensor:
    """(C, K, 2): a table as a fit of IDO's mixture gives it."""
    random = torch.Generator().manual_seed(0)
    return torch.rand(num_classes, MAX_COUNT + 1, 2, generator=random).to(device)


def ido(label: Tensor, num_classes: int) -> Head:
    criterion = TwoViewLoss(len(label), num_classes, label, max_count=MAX_COUNT)
    criterion.set_table(weights_of_counts(num_classes, label.device))
    return Head(lambda logits, y, index: criterion(*logits, y, index), state=lambda: bytes_of(criterion), views=2)


def crema(label: Tensor, num_classes: int) -> Head:
    """Scores from the training step; the split and the new labels once an epoch."""
    state, criterion = Credibility(label, num_classes), MixMatch().to(label.device)

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        z = logits[0]
        chosen, weight = state.new_label[index].long()[:, None], state.row_weight[index, None]
        target = torch.zeros(z.shape, device=z.device).scatter_(1, chosen, weight)
        value = criterion(z, target, len(index))
        state.score(z, y, index)
        return value

    def end_epoch() -> Tensor:
        state.split(CLEAN, minimum=1)
        state.correct(CONFIDENT)
        return state.row_weight

    return Head(loss, end_epoch, lambda: bytes_of(state))


def dividemix(label: Tensor, num_classes: int) -> Head:
    """Scores of a step, the split once an epoch."""
    split = LossSplit(label, num_classes)

    def loss(logits: Sequence[Tensor], y: Tensor, index: Tensor) -> Tensor:
        split.score(logits[0].detach(), y, index)
        return F.cross_entropy(logits[0], y)

    def end_epoch() -> Tensor:
        split.fit()
        return split.clean_prob

    return Head(loss, end_epoch, lambda: bytes_of(split))


BASELINES: dict[int, Build] = {1: cross_entropy, 2: cross_entropy_of_two}
FASTLNL: dict[str, Build] = {"alr": alr, "elr": elr, "ido": ido, "crema": crema, "dividemix": dividemix}
