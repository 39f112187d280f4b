"""What is measured: one entry per primitive, with its inputs, its byte model, its rivals and the truth.

A rival is built for a problem and turns a batch into a loss (); a step is `take_step`: that loss and its backward pass.
Another primitive joins by appending its cases to `CASES`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlnl import losses

Shape = tuple[int, int]

SHAPES = [(128, 10), (1024, 100), (4096, 1000), (512, 21841)]  # CIFAR-10, CIFAR-100, ImageNet-1k, ImageNet-21k
WIDEST = (16384, 1000)  # with --full
ENDS = ((128, 10), (4096, 1000))  # of a short run, where launches cost and where bytes do
MOMENTUM, ENTROPY_WEIGHT = 0.9, 0.3


@dataclass(frozen=True, eq=False)
class Batch:
    """One step's inputs."""

    logits: Tensor  # (B, C) float32, a leaf that requires a gradient
    label: Tensor  # (B,)
    index: Tensor  # (B,) sample ids, none twice
    target: Tensor | None  # (B, C) soft labels, where the case uses them


class Problem(NamedTuple):
    """Batches that no two share a sample of, and the given labels of all samples."""

    batches: list[Batch]
    label: Tensor  # (N,)
    num_classes: int


class Rival(NamedTuple):
    """An implementation, built for a problem."""

    loss: Callable[[Batch], Tensor]
    memory: Tensor | None = None  # (N, C) label memory that `loss` moves


Build = Callable[[Problem], Rival]


class Errors(NamedTuple):
    """Distance from the closed form in float64, norm over norm."""

    loss: float
    dlogits: float
    memory: float  # of the rows that moved; 0 without a label memory


@dataclass(frozen=True)
class Case:
    """A primitive under one use.

    Attributes:
        byte_model: bytes that a perfect implementation moves at (B, C), outputs and label memory included.
        rivals: by name; "fastlnl" and "eager" are always there.
        test: the test that must be green before a number of this case means anything.
        primitives: folders of `fastlnl/ops` that do fastlnl's part.
        quick: the shapes of a short run.
        targets: how many times faster than a rival fastlnl wants to be on a CPU, in the order of `SHAPES`.
    """

    name: str
    title: str
    byte_model: Callable[[int, int], int]
    rivals: dict[str, Build]
    test: str
    primitives: tuple[str, ...] = ("row_loss", "scale_rows")
    soft: bool = False
    quick: tuple[Shape, ...] = ENDS
    targets: dict[str, tuple[float, ...]] = field(default_factory=dict)

    def inputs(self, shape: Shape, device: torch.device | str, count: int, seed: int = 0) -> Problem:
        """`count` random batches of `shape`; N is 50,000 at least where that is small."""
        batch, classes = shape
        random = torch.Generator(device).manual_seed(seed)
        num_samples = max(count * batch, 50_000 if classes <= 100 else 0)
        label = torch.randint(classes, (num_samples,), generator=random, device=device)
        order = torch.randperm(num_samples, generator=random, device=device)
        batches = []
        for i in range(count):
            index = order[i * batch : (i + 1) * batch]
            logits = (3 * torch.randn(shape, generator=random, device=device)).requires_grad_()
            target = torch.randn(shape, generator=random, device=device).softmax(1) if self.soft else None
            batches.append(Batch(logits, label[index], index, target))
        return Problem(batches, label, classes)

    def bytes_moved(self, shape: Shape, rival: str) -> int:
        """Bytes of the rival's work; F.cross_entropy has no soft labels to read wherever it stands for comparison."""
        return (hard_label_bytes if rival == "F.cross_entropy" else self.byte_model)(*shape)

    def target(self, shape: Shape, rival: str) -> float | None:
        """How many times faster than `rival` fastlnl wants to be; None where nothing was promised."""
        promised = self.targets.get(rival)
        return promised[SHAPES.index(shape)] if promised and shape in SHAPES else None


def hard_label_bytes(batch: int, classes: int) -> int:
    """Logits read, gradient written, label, loss."""
    return 8 * batch * classes + 12 * batch


def take_step(rival: Rival, batch: Batch) -> Tensor:
    """Loss and gradient of a batch through autograd: what is timed."""
    batch.logits.grad = None
    loss = rival.loss(batch)
    loss.backward()
    return loss.detach()


def eager_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Cross-entropy as noisy-label code writes it, from log_softmax."""
    return -F.log_softmax(logits, dim=1).gather(1, label[:, None]).mean()


def eager_soft_cross_entropy(logits: Tensor, target: Tensor) -> Tensor:
    """Cross-entropy against soft labels."""
    return -(target * F.log_softmax(logits, dim=1)).sum(dim=1).mean()


def eager_alr(logits: Tensor, index: Tensor, memory: Tensor) -> Tensor:
    """ALR on an (N, C) tensor of soft labels. Updates: memory."""
    probs = F.softmax(logits, dim=1)
    target = MOMENTUM * memory[index] + (1 - MOMENTUM) * probs.detach()
    memory[index] = target
    log_probs = F.log_softmax(logits, dim=1)
    entropy = -(probs * log_probs).sum(dim=1)
    return (-(target * log_probs).sum(dim=1) + ENTROPY_WEIGHT * entropy).mean()


def given_label_memory(problem: Problem) -> Tensor:
    """(N, C) one-hot rows of the given labels."""
    memory = torch.zeros(len(problem.label), problem.num_classes, device=problem.label.device)
    return memory.scatter_(1, problem.label[:, None], 1.0)


def hard(function: Callable[[Tensor, Tensor], Tensor], compiled: bool = False) -> Build:
    """Rival from a function of logits and label."""
    return lambda problem: Rival(on_hard_label(maybe_compile(function, compiled)))


def soft(function: Callable[[Tensor, Tensor], Tensor], compiled: bool = False) -> Build:
    """Rival from a function of logits and target."""

    def build(problem: Problem) -> Rival:
        call = maybe_compile(function, compiled)
        return Rival(lambda batch: call(batch.logits, batch.target))

    return build


def remembering(function: Callable[[Tensor, Tensor, Tensor], Tensor], compiled: bool = False) -> Build:
    """Rival from a function of logits, index and label memory."""

    def build(problem: Problem) -> Rival:
        call, memory = maybe_compile(function, compiled), given_label_memory(problem)
        return Rival(lambda batch: call(batch.logits, batch.index, memory), memory)

    return build


def on_hard_label(call: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Batch], Tensor]:
    return lambda batch: call(batch.logits, batch.label)


def maybe_compile(function: Callable[..., Tensor], compiled: bool) -> Callable[..., Tensor]:
    """One compilation per shape: the best torch.compile can do."""
    if not compiled:
        return function
    torch.compiler.reset()  # or it would give up after eight shapes
    return torch.compile(function, dynamic=False)


def fastlnl_cross_entropy(problem: Problem) -> Rival:
    return Rival(on_hard_label(losses.CrossEntropy().to(problem.label.device)))


def fastlnl_soft_cross_entropy(problem: Problem) -> Rival:
    criterion = losses.SoftCrossEntropy().to(problem.label.device)
    return Rival(lambda batch: criterion(batch.logits, target=batch.target))


def fastlnl_alr(problem: Problem) -> Rival:
    criterion = losses.ALR(
        len(problem.label), problem.num_classes, problem.label, momentum=MOMENTUM, entropy_weight=ENTROPY_WEIGHT
    )
    return Rival(lambda batch: criterion(batch.logits, batch.label, batch.index), criterion.memory.table)


class Truth(NamedTuple):
    """The first step in float64."""

    loss: Tensor
    dlogits: Tensor
    target: Tensor  # (B, C), moved rows of the label memory where there is one


def truth_of(problem: Problem, remembered: bool) -> Truth:
    """`remembered`: of a rival that trains on its label memory, which starts from the given labels."""
    batch = problem.batches[0]
    z = batch.logits.detach().double()
    target = F.one_hot(batch.label, problem.num_classes).double() if batch.target is None else batch.target.double()
    if remembered:
        target = MOMENTUM * target + (1 - MOMENTUM) * z.softmax(1)
    return Truth(*closed_form(z, target, ENTROPY_WEIGHT if remembered else 0.0), target)


def errors_of(rival: Rival, problem: Problem, truth: Truth | None = None) -> Errors:
    """Distance of the first step of a rival that was just built from the closed form in float64."""
    batch = problem.batches[0]
    truth = truth or truth_of(problem, rival.memory is not None)
    loss = take_step(rival, batch)
    moved = 0.0 if rival.memory is None else distance(rival.memory[batch.index], truth.target)
    assert batch.logits.grad is not None
    return Errors(distance(loss, truth.loss), distance(batch.logits.grad, truth.dlogits), moved)


def closed_form(logits: Tensor, target: Tensor, entropy_weight: float) -> tuple[Tensor, Tensor]:
    """Mean of -<t, log p> + entropy_weight H, and its gradient, without autograd."""
    log_probs = logits.log_softmax(1)
    probs = log_probs.exp()
    entropy = -(probs * log_probs).sum(1, keepdim=True)
    loss = (entropy_weight * entropy[:, 0] - (target * log_probs).sum(1)).mean()
    dlogits = target.sum(1, keepdim=True) * probs - target - entropy_weight * probs * (log_probs + entropy)
    return loss, dlogits / len(logits)


def distance(x: Tensor, truth: Tensor) -> float:
    return float((x.double() - truth).norm() / truth.norm())


CASES = [
    Case(
        "P1",
        "cross-entropy, given label: loss and gradient",
        hard_label_bytes,
        {
            "fastlnl": fastlnl_cross_entropy,
            "eager": hard(eager_cross_entropy),
            "torch.compile": hard(eager_cross_entropy, compiled=True),
            "F.cross_entropy": hard(F.cross_entropy),
        },
        "tests/ops/test_row_loss.py",
    ),
    Case(
        "P2",
        "cross-entropy, dense soft target: loss and gradient",
        lambda batch, classes: 12 * batch * classes,
        {
            "fastlnl": fastlnl_soft_cross_entropy,
            "eager": soft(eager_soft_cross_entropy),
            "torch.compile": soft(eager_soft_cross_entropy, compiled=True),
        },
        "tests/ops/test_row_loss.py",
        soft=True,
        quick=ENDS[1:],
    ),
    Case(
        "P3",
        "ALR with label memory: gather, moving average, loss, gradient, scatter",
        lambda batch, classes: 16 * batch * classes + 12 * batch,
        {
            "fastlnl": fastlnl_alr,
            "eager": remembering(eager_alr),
            "torch.compile": remembering(eager_alr, compiled=True),
            "F.cross_entropy": hard(F.cross_entropy),
        },
        "tests/ops/test_row_loss_memory.py",
        quick=tuple(SHAPES),
        targets={
            "eager": (3.0, 3.0, 5.0, 5.0),
            "torch.compile": (2.5, 1.7, 1.7, 2.0),
            "F.cross_entropy": (1.0, 1.0, 1.0, 1.0),
        },
    ),
]
