"""The loss of IDO's second stage against a transcription of its formulas, in eager torch and under torch.compile."""

import shutil
from collections.abc import Callable
from itertools import cycle
from typing import NamedTuple

import torch
import torch.nn.functional as F
from cases import distance, maybe_compile
from contests import Contest, Entry, Size, WrongAnswer, doubled
from torch import Tensor

from fastlnl.losses import TwoViewLoss

NUM_SAMPLES, MAX_COUNT = 50_000, 25  # 5 + 10 epochs
ROUNDING = 1e-6


class TwoViews(NamedTuple):
    """Batches that no two share a sample of."""

    batches: list[tuple[Tensor, Tensor, Tensor, Tensor]]  # logits of both views, leaves; label; index
    table: Tensor  # (C, K, 2)


Loss = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
Answer = tuple[Tensor, Tensor, Tensor, Tensor]  # of the first step: loss, both gradients, counters of the batch


def bytes_moved(size: Size) -> int:
    """What a perfect implementation moves: both logits read, both gradients written; a row's label, id, counter read
    and written, weights, predictions, loss."""
    batch, classes = size
    return 16 * batch * classes + (16 + 8 + 8 + 16 + 4) * batch


def two_views(size: Size, device: torch.device | str) -> TwoViews:
    batch, classes = size
    random = torch.Generator(device).manual_seed(0)
    order = torch.randperm(NUM_SAMPLES, generator=random, device=device)
    batches = []
    for i in range(max(2, min(8, 64_000_000 // bytes_moved(size)))):
        label = torch.randint(classes, (batch,), generator=random, device=device)
        views = [(3 * torch.randn(size, generator=random, device=device)).requires_grad_() for _ in range(2)]
        batches.append((views[0], views[1], label, order[i * batch : (i + 1) * batch]))
    table = torch.rand(classes, MAX_COUNT + 1, 2, generator=random, device=device)
    return TwoViews(batches, table)


def plain_loss(weak: Tensor, strong: Tensor, label: Tensor, tau: Tensor, eps: Tensor) -> Tensor:
    """L_C + L_SIM + L_N of the method's card."""
    ce = F.cross_entropy(strong, label, reduction="none") + F.cross_entropy(weak, label, reduction="none")
    similarity = F.mse_loss(strong, weak, reduction="none").mean(1)
    p_strong, p_weak = (F.softmax(z, dim=1).clamp(1e-4, 1 - 1e-4) for z in (strong, weak))
    q = (p_strong + p_weak) / 2
    entropy = -(q * q.log()).sum(1)
    return (tau * ce + eps * similarity + (1 - tau) * entropy).mean()


def stepping(inputs: TwoViews, loss: Loss, counts: Callable[[], Tensor]) -> Entry:
    """A step is the loss of the next batch and its backward pass."""
    following = cycle(inputs.batches)

    def step() -> None:
        weak, strong, label, index = next(following)
        weak.grad = strong.grad = None
        loss(weak, strong, label, index).backward()

    def answer() -> Answer:
        weak, strong, label, index = inputs.batches[0]
        weak.grad = strong.grad = None
        value = loss(weak, strong, label, index)
        value.backward()
        assert weak.grad is not None
        assert strong.grad is not None
        return value.detach(), weak.grad.clone(), strong.grad.clone(), counts()[index].clone()

    return Entry(step, answer)


def fastlnl_two_views(inputs: TwoViews) -> Entry:
    classes, device = inputs.table.shape[0], inputs.table.device
    criterion = TwoViewLoss(NUM_SAMPLES, classes, max_count=MAX_COUNT).to(device)
    criterion.set_table(inputs.table)
    return stepping(inputs, criterion, lambda: criterion.wrong_count)


def plain(compiled: bool) -> Callable[[TwoViews], Entry]:
    def build(inputs: TwoViews) -> Entry:
        if compiled and not any(map(shutil.which, ("g++", "clang++", "c++"))):
            raise ModuleNotFoundError("torch.compile needs it", name="a C++ compiler")
        table = inputs.table
        count = torch.zeros(NUM_SAMPLES, dtype=torch.int32, device=table.device)

        def whole(weak: Tensor, strong: Tensor, label: Tensor, index: Tensor, count: Tensor) -> Tensor:
            with torch.no_grad():
                events = (strong.argmax(1) != label).int() + (weak.argmax(1) != label).int()
                count.index_add_(0, index, events)
                tau, eps = table[label, count[index].long().clamp(max=MAX_COUNT)].unbind(1)
            return plain_loss(weak, strong, label, tau, eps)

        call = maybe_compile(whole, compiled)
        return stepping(inputs, lambda *batch: call(*batch, count), lambda: count)

    return build


def same_step(ours: Answer, theirs: Answer) -> str:
    if not torch.equal(ours[3], theirs[3]):
        raise WrongAnswer("a counter differs")
    worst = max(distance(x, y.double()) for x, y in zip(ours[:3], theirs[:3], strict=True))
    if not worst <= ROUNDING:
        raise WrongAnswer(f"the loss or a gradient differs by {worst:.0e} of its norm")
    return f"{worst:.0e}" if worst else "equal"


def contest(name: str, rival: str, compiled: bool, targets: dict[Size, float], quick: tuple[Size, ...]) -> Contest:
    return Contest(
        name,
        "IDO's loss of two views: counters, weights, loss and both gradients through autograd",
        "B x C",
        ((128, 10), (128, 100), (1024, 100)),
        two_views,
        {"fastlnl": fastlnl_two_views, rival: plain(compiled)},
        same_step,
        "tests/ops/test_two_view_loss.py",
        ("two_view_loss", "scale_rows"),
        bytes_moved,
        targets,
        quick,
        only_full=compiled,  # it takes ten seconds to compile
        truth=lambda given: plain(False)(doubled(given)).answer(),
    )


TWO_VIEW_CONTESTS = [
    contest("two views", "eager", False, {(128, 100): 3.0}, ((128, 10), (1024, 100))),
    contest("two views compiled", "torch.compile", True, {}, ()),
]
