"""What a step of DivideMix and SANM asks of the device: `python benchmarks/step_cost.py`. Writes results/step_cost.md.

Counted are launches and reads from the views of a step to the gradient by the logits, without networks, decoder,
optimiser and augmentation: what differs between the method in the way of its authors' code and here. `counting.py`
says what counts. All of it runs on a CPU: counts, no times.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from counting import Asked, counted
from provenance import commit
from torch import Tensor, nn
from torch.nn import functional as F

from fastlnl.data import Dataset
from fastlnl.frame import Frame, Learner
from fastlnl.methods import SANM, DivideMix
from fastlnl.methods.dividemix import Step
from fastlnl.ops.erase_peaks import draws_of
from fastlnl.philox import uniform

RESULT = Path(__file__).parent / "results" / "step_cost.md"
BATCH, CLASSES, SIZE, CHANNELS = 64, 10, 32, 512


class Given(nn.Module):
    """The same leaf of autograd for every batch of one size, in place of a network's output: no launch, no backward."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.made: dict[int, Tensor] = {}
        self.rows = torch.randn(BATCH, *shape)  # again and again, so that two batches give what both together give
        self.scale = nn.Parameter(torch.ones(()))  # an optimiser wants something to optimise

    def forward(self, images: Tensor) -> Tensor:
        rows = len(images)
        if rows not in self.made:
            self.made[rows] = self.rows[torch.arange(rows) % BATCH].requires_grad_()
        self.made[rows].grad = None
        return self.made[rows]


class Free(nn.Module):
    """Logits and a feature map that cost nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.map, self.head = Given(CHANNELS, 4, 4), Given(CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        self.map(images)
        return self.head(images)


def plain_dividemix(net: Free, peer: Free, step: Step) -> Tensor:
    """Co-refinement to loss in the way of the authors' training script."""
    (x, u), (x1, x2), (u1, u2) = step.halves, step.halves[0].views[-2:], step.halves[1].views[-2:]
    targets_x, targets_u = plain_targets(net, peer, step, (x1, x2), (u1, u2))
    views = [*x.views, *u.views]
    return plain_mixmatch(net, step, views, [targets_x] * len(x.views) + [targets_u] * len(u.views), len(x.views))


def plain_targets(net: Free, peer: Free, step: Step, x_views: Any, u_views: Any) -> tuple[Tensor, Tensor]:
    x = step.halves[0]
    (x1, x2), (u1, u2) = x_views, u_views
    with torch.no_grad():
        w = step.clean_prob[x.index].view(-1, 1)
        onehot = torch.zeros(len(x.label), CLASSES).scatter_(1, x.label.view(-1, 1), 1)
        guesses = [torch.softmax(z, dim=1) for z in (net(u1), net(u2), peer(u1), peer(u2))]
        pu = (guesses[0] + guesses[1] + guesses[2] + guesses[3]) / 4
        px = (torch.softmax(net(x1), dim=1) + torch.softmax(net(x2), dim=1)) / 2
        px = w * onehot + (1 - w) * px
        found = []
        for q in (px, pu):
            q = q ** (1 / 0.5)
            found.append((q / q.sum(dim=1, keepdim=True)).detach())
    return found[0], found[1]


def plain_mixmatch(net: Free, step: Step, views: list[Tensor], targets: list[Tensor], labelled_views: int) -> Tensor:
    share = np.random.beta(4, 4)
    share = max(share, 1 - share)
    inputs, goals = torch.cat(views), torch.cat(targets)
    other = torch.randperm(len(inputs))
    mixed, goal = share * inputs + (1 - share) * inputs[other], share * goals + (1 - share) * goals[other]
    logits = net(mixed)
    n = labelled_views * len(step.halves[0].index)
    loss_x = -torch.mean(torch.sum(F.log_softmax(logits[:n], dim=1) * goal[:n], dim=1))
    loss_u = torch.mean((torch.softmax(logits[n:], dim=1) - goal[n:]) ** 2)
    prior = torch.ones(CLASSES) / CLASSES
    mean = torch.softmax(logits, dim=1).mean(0)
    loss = loss_x + step.unlabeled_weight * loss_u + torch.sum(prior * torch.log(prior / mean))
    print_losses(loss_x.item(), loss_u.item())
    return loss


def print_losses(*values: float) -> None:
    """The authors' script prints both parts in every step."""


def plain_sanm(net: Free, peer: Free, step: Step, decode: nn.Module) -> Tensor:
    """The same with masks made image by image, from attention maps on the host."""
    x, u = step.halves
    targets_x, targets_u = plain_targets(net, peer, step, x.views[-2:], u.views[-2:])
    images, target = torch.cat((x.views[-2], u.views[-2])), torch.cat((targets_x, targets_u))
    maps = F.normalize(net.map(images).detach().pow(2).sum(1).flatten(1), dim=1).view(-1, 1, 4, 4)
    heat = np.asarray(F.interpolate(maps, (SIZE, SIZE), mode="bilinear").cpu())[:, 0]
    trust, top = step.clean_prob[torch.cat((x.index, u.index))].tolist(), target.argmax(1).tolist()
    copies, moved = [images.clone(), images.clone()], target.clone()
    for i, image in enumerate(heat):
        ratio = np.random.uniform(0.02, 0.07) + 0.03 * (1 - trust[i])
        rho, area = np.random.uniform(0.8, 1.25), 0.5 * ratio * SIZE * SIZE
        height, width = round((area * rho) ** 0.5), round((area / rho) ** 0.5)
        level = np.floor(255 * (image - image.min()) / (image.max() - image.min() + 1e-12))
        for copy, peak in zip(copies, (level.argmax(), level.argmin()), strict=True):
            row, column = min(peak // SIZE, SIZE - height), min(peak % SIZE, SIZE - width)
            for channel in range(3):
                copy[i, channel, row : row + height, column : column + width] = np.random.rand()
        moved[i] += ratio / (CLASSES - 1)
        moved[i, top[i]] -= ratio + ratio / (CLASSES - 1)
    first, second = decode(torch.cat(copies)).chunk(2)
    reconstruction = F.mse_loss(first, images) + F.mse_loss(second, images)
    views, targets = [], []
    for half, own, rows in ((x, targets_x, slice(0, BATCH)), (u, targets_u, slice(BATCH, 2 * BATCH))):
        views += [*half.views[:-2], copies[0][rows], copies[1][rows]]
        targets += [own, own, own, own, moved[rows], moved[rows]]
    return plain_mixmatch(net, step, views, targets, 6) + 0.02 * reconstruction


def build(method: DivideMix) -> DivideMix:
    """The method after a split of random images, half of them clean, by networks that cost nothing."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 255, (8 * BATCH, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    label = torch.arange(len(images)) % CLASSES
    names = tuple(map(str, range(CLASSES)))
    data = Dataset("random", images, label, images, label, CLASSES, names, (0.5,) * 3, (0.25,) * 3)
    device = torch.device("cpu")
    sgd = partial(torch.optim.SGD, lr=0.1)
    learners = [
        Learner(
            Free(), lambda module: sgd(module.parameters()), device=device, amp=None, channels_last=False, compile=False
        )
        for _ in range(2)
    ]
    run = Frame(learners, data, label, epochs=30, batch_size=2 * BATCH, augment="crop_flip", seed=0, device=device)
    method.setup(run)
    run.start_epoch(30, 0.1)
    for split in method.splits:
        split.clean_prob.copy_(torch.rand(len(label), generator=generator))
        split.is_clean.copy_(torch.arange(len(label)) % 2 == 0)
    return method


def contest(method: DivideMix) -> dict[str, Callable[[], Tensor]]:
    """The loss of one and the same step, plain and ours."""
    build(method)
    networks = method.run.networks
    plain: Callable[..., Tensor] = plain_dividemix
    if isinstance(method, SANM):
        decode = Given(3, SIZE, SIZE)
        method.decoders = [decode, decode]
        method.mask_draws = uniform(0, "erase_peaks", torch.arange(method.run.num_samples), draws_of(3))
        plain = partial(plain_sanm, decode=decode)
    step = next(method.steps(0, 30))
    return {
        "plain": partial(plain, *(network.module for network in networks), step),
        "ours": lambda: method.step_loss(*networks, step),
    }


def costs() -> dict[str, dict[str, Asked]]:
    """Launches and reads of a step of either method, plain and ours."""
    methods = (DivideMix(warmup_epochs=1), SANM(warmup_epochs=1, feature_map="map"))
    return {method.name: {who: counted(loss) for who, loss in contest(method).items()} for method in methods}


def lines(found: dict[str, dict[str, Asked]]) -> list[str]:
    text = [
        f"# What a step asks of the device: batches of {BATCH} + {BATCH}, {CLASSES} classes, commit {commit()}",
        "",
        "From the views to the gradient by the logits, without networks, decoder, optimiser and augmentation. *Plain*",
        "is the step in the way of the authors' code. Counted by `python benchmarks/step_cost.py` on a CPU; no times.",
        "",
        "| step | launches, plain | launches, ours | reads, plain | reads, ours |",
        "|---|--:|--:|--:|--:|",
    ]
    for name, cost in found.items():
        (launches, reads), (our_launches, our_reads) = cost["plain"], cost["ours"]
        text.append(f"| {name} | {launches} | {our_launches} | {reads} | {our_reads} |")
    return text


if __name__ == "__main__":
    table = "\n".join(lines(costs())) + "\n"
    RESULT.write_text(table)
    print(table, end="")
