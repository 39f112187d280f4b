"""DivideMix: two networks split the data for each other, and train on both parts with MixMatch.

Li, Socher, Hoi, ICLR 2020, arXiv 2002.07394. The card is in README.md.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fastlnl import losses
from fastlnl.data import Batch
from fastlnl.errors import ShapeError
from fastlnl.methods.base import Method, Network, Run
from fastlnl.metrics import auroc, selection_quality
from fastlnl.ops.mix_views import mix_views
from fastlnl.ops.refine_targets import refine_targets
from fastlnl.philox import uniform
from fastlnl.state.split import LossSplit


class Step(NamedTuple):
    """What a training step is given.

    Attributes:
        halves: the batch of X labelled samples, and that of U unlabelled ones if there are any.
        clean_prob: (N,) by the split of the peer.
        unlabeled_weight: of this step.
        coefficient: () of mixup. order: (R,) uniform numbers, R at least the rows to be mixed; their ranks permute.
    """

    halves: tuple[Batch, ...]
    clean_prob: Tensor
    unlabeled_weight: float
    coefficient: Tensor
    order: Tensor

    @property
    def sizes(self) -> list[int]:
        """X, and U if there are unlabelled samples."""
        return [len(half.index) for half in self.halves]


class DivideMix(Method):
    """Split by loss with the peer's mixture, refine and guess labels, mix everything.

    A batch of the run is 2B samples: the batch of the warm-up, and B labelled with B unlabelled ones afterwards.

    Args:
        preset: "default", or "asymmetric" (with the warm-up penalty).
        warmup_epochs: epochs of cross-entropy first; None is 0.15 of all, at least one and at most 10.
        warmup_penalty: weight of the confidence penalty sum p log p in the warm-up.
        clip_norm: longest gradient of a step of the warm-up; None does not clip.
        unlabeled_weight: of the unlabelled loss. The card has a table by noise; 25 where the noise is not known.
        ramp_epochs: so many epochs after the warm-up that weight is reached, from 0.
        prior_weight: of the divergence of the mean prediction from uniform classes.
        temperature: of the sharpening. alpha: of mixup's Beta distribution; 0 does not mix.
        threshold: labelled is who has a clean_prob above it.
        average_last: the mixture sees the mean loss of so many epochs; the authors take 5 at 90 % noise.
        normalise, init, max_iter, tol: of the mixture, see `GaussianMixture1D`.
        freeze_target_stats: forward passes that only make targets leave batch norm's running statistics alone.
        augment: of the views, a name for two of them or a tuple of names; None: that of the run.
    """

    name = "dividemix"
    scoring = ("divide",)
    num_networks = 2
    defaults: ClassVar[dict[str, Any]] = {
        "warmup_epochs": None,
        "warmup_penalty": 0.0,
        "clip_norm": None,
        "unlabeled_weight": 25.0,
        "ramp_epochs": 16,
        "prior_weight": 1.0,
        "temperature": 0.5,
        "alpha": 4.0,
        "threshold": 0.5,
        "average_last": 1,
        "normalise": "minmax",
        "init": "lloyd",
        "max_iter": 10,
        "tol": 1e-2,
        "freeze_target_stats": False,
        "augment": None,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {"default": {}, "asymmetric": {"warmup_penalty": 1.0}}

    def setup(self, run: Run) -> None:
        self.run, options = run, self.options
        if options["warmup_epochs"] is None:
            options["warmup_epochs"] = min(10, max(1, round(0.15 * run.epochs)))
        for option in ("warmup_epochs", "warmup_penalty", "unlabeled_weight", "ramp_epochs", "prior_weight", "alpha"):
            if not options[option] >= 0:
                raise ValueError(f"{option} is {options[option]}; expected at least 0")
        if not options["temperature"] > 0:
            raise ValueError(f"temperature is {options['temperature']}; expected a value above 0, 0.5 sharpens")
        if not (sample := one_sample(run)).is_floating_point():
            raise ShapeError(
                f"samples are {tuple(sample.shape[1:])} of {str(sample.dtype)[6:]}, token ids, between which "
                f"{self.name} cannot interpolate; use alr, crema or ido for texts"
            )
        self.warmup_epochs: int = options["warmup_epochs"]
        self.batch_size = max(1, run.batch_size // 2)
        self.views = self.augmentations()
        of_split = ("threshold", "average_last", "normalise", "init", "max_iter", "tol")
        self.splits = [
            LossSplit(run.label, run.num_classes, **{name: options[name] for name in of_split}) for _ in run.networks
        ]
        self.warm_up_loss = losses.ConfidencePenalty(options["warmup_penalty"]).to(run.device)
        self.criterion = losses.MixMatch(prior_weight=options["prior_weight"]).to(run.device)

    def augmentations(self) -> tuple[str | None, ...]:
        """Of every view of a training step. Targets are made from the last two."""
        augment = self.options["augment"]
        return tuple(augment) if isinstance(augment, (tuple, list)) else (augment or self.run.augment,) * 2

    def logits(self, network: Network, images: Tensor) -> Tensor:
        return network(images)

    def epoch(self, t: int) -> None:
        if t <= self.warmup_epochs:
            self.warm_up()
            return
        self.divide()
        for k in (0, 1):
            self.train(k, t)

    def warm_up(self) -> None:
        """Cross-entropy on everything, with the penalty if asked for; each network in an order of its own."""
        for k, network in enumerate(self.run.networks):
            for batch in self.run.batches(stream=f"warmup{k}"):
                loss = self.warm_up_loss(self.logits(network, batch.views[0]), batch.label)
                network.step(loss, self.options["clip_norm"])

    def divide(self) -> None:
        """Score everything by both networks before either is trained, and fit a mixture to the losses of each."""
        with self.run.inference() as batches:
            for batch in batches:
                for network, split in zip(self.run.networks, self.splits, strict=True):
                    split.score(self.logits(network, batch.views[0]), batch.label, batch.index)
        for split in self.splits:
            split.check()
            split.fit()

    def train(self, k: int, t: int) -> None:
        """An epoch of network k on the split of its peer."""
        network, peer = self.run.networks[k], self.run.networks[1 - k]
        peer.module.eval()
        for step in self.steps(k, t):
            network.step(self.step_loss(network, peer, step))
        peer.module.train()

    def steps(self, k: int, t: int) -> Iterator[Step]:
        """One for each batch of the labelled set; the unlabelled set starts again when it ends."""
        run, options, split, size = self.run, self.options, self.splits[1 - k], self.batch_size
        labelled, unlabelled = split.sets(minimum=size)  # reads their sizes
        halves: list[Iterator[Batch]] = [
            batches(ids, stream=f"{name}{k}", augment=self.views, batch_size=size, drop_last=ends_in_one(ids, size))
            for name, batches, ids in (("labelled", run.batches, labelled), ("unlabelled", run.cycle, unlabelled))
            if len(ids)
        ]
        count = math.ceil(len(labelled) / size) - ends_in_one(labelled, size)
        rows = 2 * size * len(self.views)
        coefficient, order = mixup_draws(run.seed, t, k, count, rows, options["alpha"], run.device)
        for i, pair in enumerate(zip(*halves, strict=False)):
            since = t - 1 + i / count - self.warmup_epochs
            ramp = min(since / options["ramp_epochs"], 1.0) if options["ramp_epochs"] else 1.0
            yield Step(pair, split.clean_prob, options["unlabeled_weight"] * ramp, coefficient[i], order[i])

    def step_loss(self, network: Network, peer: Network, step: Step) -> Tensor:
        """Refine and guess labels, mix all views, and compare the predictions with the mixture."""
        target = self.targets(partial(self.logits, network), network, peer, step)
        views = [half.views for half in step.halves]
        return self.mixmatch(network, step, views, [(half,) * len(self.views) for half in target.split(step.sizes)])

    def targets(self, look: Callable[[Tensor], Tensor], network: Network, peer: Network, step: Step) -> Tensor:
        """Sharpened targets (X + U, C), labelled samples first, from two views of each.

        co_refine: a labelled sample keeps its label as far as it is clean; the rest is what the network predicts.
        co_guess: an unlabelled one has the mean prediction of network and peer.

        Args:
            look: from images to the logits of `network`, which is in train mode.
        """
        x, others = step.halves[0], step.halves[1:]
        with torch.no_grad(), self.statistics(network.module):
            guessed = [look(view) for half in others for view in half.views[-2:]]
            own = [look(view) for view in x.views[-2:]]
            if others:
                own = [torch.cat(rows) for rows in zip(own, guessed, strict=True)]
            by_peer = [part for half in others for part in self.logits(peer, torch.cat(half.views[-2:])).chunk(2)]
        clean_prob = step.clean_prob[x.index]
        return refine_targets(own, x.label, clean_prob, self.options["temperature"], peer=by_peer)

    def mixmatch(
        self, network: Network, step: Step, views: Sequence[Sequence[Tensor]], targets: Sequence[Sequence[Tensor]]
    ) -> Tensor:
        """Mixup over all views of both halves, one forward pass, one loss.

        Args:
            views, targets: of each half its views, and a target for each of them.
        """
        flat, flat_targets = list(itertools.chain(*views)), list(itertools.chain(*targets))
        partner = step.order[: sum(map(len, flat))].argsort()
        images, target = mix_views(flat, flat_targets, partner, step.coefficient)
        labelled = sum(map(len, views[0]))
        return self.criterion(self.logits(network, images), target, labelled, step.unlabeled_weight)

    def statistics(self, module: nn.Module) -> AbstractContextManager[None]:
        return statistics_at_rest(module) if self.options["freeze_target_stats"] else nullcontext()

    def predict(self, images: Tensor) -> Tensor:
        first, second = (self.logits(network, images) for network in self.run.networks)
        return first + second

    def metrics(self) -> dict[str, Tensor]:
        """Means over both networks: AUROC of clean_prob; size, precision, recall and F1 of the labelled set."""
        right = self.run.label == self.run.true_label
        each = [
            {
                "auroc_clean_prob": auroc(split.clean_prob, right),
                "labelled": split.is_clean.double().mean(),
                "collapsed": split.collapsed.double(),
                **selection_quality(split.is_clean, right),
            }
            for split in self.splits
        ]
        return {name: torch.stack([scores[name] for scores in each]).mean() for name in each[0]}

    def state_dict(self) -> dict[str, Any]:
        return {"splits": [split.state_dict() for split in self.splits]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for split, saved in zip(self.splits, state["splits"], strict=True):
            split.load_state_dict(saved)


def one_sample(run: Run) -> Tensor:
    """A batch (1, ...) of one training sample, not augmented."""
    return next(run.batches(run.label.new_zeros(1), augment=None, batch_size=1)).views[0]


def mixup_draws(
    seed: int, epoch: int, k: int, steps: int, rows: int, alpha: float, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Coefficients (steps,) float32, max(b, 1 - b) with b from Beta(alpha, alpha), and orders (steps, rows).

    Those of a step depend on (seed, epoch, k) and its number alone. The coefficients go to the device in one copy.
    """
    coefficient = np.ones(steps)
    if alpha > 0:
        share = np.random.default_rng((seed, epoch, k)).beta(alpha, alpha, steps)
        coefficient = np.maximum(share, 1 - share)
    order = uniform(seed, "mixup", torch.arange(steps, device=device), rows, epoch, view=k)
    return torch.from_numpy(coefficient).float().to(device), order


def ends_in_one(ids: Tensor, batch_size: int) -> bool:
    """The last batch would be a single sample, of which batch norm has no variance; it is then left out."""
    return len(ids) > batch_size and len(ids) % batch_size == 1


@contextmanager
def statistics_at_rest(module: nn.Module) -> Iterator[None]:
    """Batch norm in train mode, its running statistics unmoved."""
    norms = [m for m in module.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm in norms:
            norm.track_running_stats = True
