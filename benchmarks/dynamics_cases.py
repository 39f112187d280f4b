"""Sample dynamics: area under the margin against the `aum` package, and what they add to a step of ALR."""

import tempfile
from collections.abc import Callable
from itertools import count

import torch
from cases import CASES, ENTROPY_WEIGHT, MOMENTUM, Problem, Rival, distance, take_step
from contests import Contest, Entry, Size, WrongAnswer
from timing import num_batches, steps_over
from torch import Tensor

from fastlnl.losses import ALR
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.row_stats import row_stats
from fastlnl.state import SampleDynamics

STEP = next(case for case in CASES if case.name == "P3")
AUM_BATCHES = 40
ROUNDING = 1e-6

First = tuple[Tensor, Tensor, Tensor]  # loss, gradient and moved rows of the label memory of the first step


def many_batches(size: Size, device: torch.device | str) -> Problem:
    batch, classes = size
    return STEP.inputs((batch, classes), device, AUM_BATCHES)


def batches(size: Size, device: torch.device | str) -> Problem:
    """As in the section row_loss."""
    batch, classes = size
    return STEP.inputs((batch, classes), device, num_batches(STEP, (batch, classes), str(device)))


def fastlnl_aum(problem: Problem) -> Entry:
    """Statistics of the logits and the update; the averages are made when asked for."""
    device = problem.label.device
    dynamics, errors = SampleDynamics(len(problem.label), problem.num_classes).to(device), new_error_word(device)

    def update(logits: Tensor, b: int) -> None:
        batch = problem.batches[b]
        dynamics.update(batch.index, batch.label, row_stats(logits, batch.label, errors=errors))

    return averaging(problem, update, lambda: dynamics.aum)


def aum_package(problem: Problem) -> Entry:
    from aum import AUMCalculator

    calculator = AUMCalculator(tempfile.gettempdir())  # where nothing is written until the end of a training run
    ids = [batch.index.tolist() for batch in problem.batches]

    def update(logits: Tensor, b: int) -> None:
        calculator.update(logits, problem.batches[b].label, ids[b])

    def averages() -> Tensor:
        found = torch.full((len(problem.label),), torch.nan)
        for i, total in calculator.sums.items():
            found[i] = total / calculator.counts[i]
        return found

    return averaging(problem, update, averages)


def averaging(problem: Problem, update: Callable[[Tensor, int], None], averages: Callable[[], Tensor]) -> Entry:
    """A step enters a batch, with other logits in each round over the batches; compared are the averages of two."""
    seen = torch.cat([batch.index for batch in problem.batches])
    logits = [batch.logits.detach() for batch in problem.batches]
    taken = count()

    def step() -> None:
        turn, b = divmod(next(taken), len(logits))
        update(logits[(turn + b) % len(logits)], b)

    def answer() -> Tensor:
        for _ in range(2 * len(logits)):
            step()
        return averages().to(seen.device)[seen].cpu()

    return Entry(step, answer)


def rounded(ours: Tensor, theirs: Tensor) -> str:
    worst = float((ours - theirs).abs().max() / theirs.abs().max())
    if not worst <= ROUNDING:
        raise WrongAnswer(f"an average differs by {worst:.0e} of the largest")
    return f"{worst:.0e}" if worst else "equal"


def alr(with_dynamics: bool) -> Callable[[Problem], Entry]:
    """Loss and gradient through autograd, the label memory moved."""

    def build(problem: Problem) -> Entry:
        samples, classes, device = len(problem.label), problem.num_classes, problem.label.device
        dynamics = SampleDynamics(samples, classes).to(device) if with_dynamics else None
        criterion = ALR(
            samples, classes, problem.label, momentum=MOMENTUM, entropy_weight=ENTROPY_WEIGHT, dynamics=dynamics
        )
        rival = Rival(lambda batch: criterion(batch.logits, batch.label, batch.index), criterion.memory.table)

        def first() -> First:
            batch = problem.batches[0]
            loss = take_step(rival, batch)
            assert batch.logits.grad is not None
            return loss, batch.logits.grad.clone(), criterion.memory.table[batch.index]

        return Entry(steps_over(rival, problem.batches), first)

    return build


def same_step(ours: First, theirs: First) -> str:
    worst = max(distance(x, y.double()) for x, y in zip(ours, theirs, strict=True))
    if not worst <= ROUNDING:
        raise WrongAnswer(f"loss, gradient or label memory differ by {worst:.0e} of their norm")
    return f"{worst:.0e}" if worst else "equal"


DYNAMICS_CONTESTS = [
    Contest(
        "aum",
        "area under the margin: statistics of a batch of logits, entered for each sample",
        "B x C",
        ((256, 10),),
        many_batches,
        {"fastlnl": fastlnl_aum, "aum": aum_package},
        rounded,
        "tests/ops/test_dynamics.py",
        ("row_stats", "dynamics"),
        lambda size: 4 * size[0] * size[1] + 80 * size[0],  # logits, label, id, and a record of 32 bytes both ways
        {(256, 10): 50.0},
    ),
    Contest(
        "dynamics",
        "what SampleDynamics add to a step of ALR, forward and backward through autograd",
        "B x C",
        ((128, 10), (1024, 100), (4096, 1000)),
        batches,
        {"fastlnl": alr(with_dynamics=True), "ALR alone": alr(with_dynamics=False)},
        same_step,
        "tests/losses/test_criteria_dynamics.py",
        ("row_loss", "dynamics", "scale_rows"),
        lambda size: STEP.byte_model(size[0], size[1]) + 64 * size[0],
        {(1024, 100): 10.0, (4096, 1000): 2.0},
        quick=((128, 10), (1024, 100)),
        surcharge=True,
    ),
]
