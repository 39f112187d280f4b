"""IDO: count how often a sample is predicted against its label, then weigh three losses by those counts.

Zhang et al., arXiv 2505.00812 (NeurIPS 2025), implemented from a description of its code; see the card in README.md.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from fastlnl import losses
from fastlnl.methods.base import Method, Run
from fastlnl.metrics import auroc
from fastlnl.mixture import BetaMixture1D
from fastlnl.state import SampleDynamics

BASE_MODELS = ("first_minimum", "aliased", "initial", "last")
SIMILARITIES = {"dynamic": None, "one": 1.0, "zero": 0.0}


class IDO(Method):
    """Stage 1: cross-entropy and wrong events. Stage 2: two views, weighted by a Beta mixture of the wrong events.

    Args:
        preset: "default", "logs" or "release": settings of the authors' code, see the card.
        warmup_epochs: epochs of stage 1; None is a third of all, at least one. As many as the run has: stage 1 alone.
        base_model: the weights that stage 2 starts from: "first_minimum" (of the number of changed predictions),
            "aliased" (one epoch later, when the rise is seen), "initial" or "last".
        mixture_scope: one mixture for each given "class", or one "pooled" over all samples.
        entropy_scale: "none", "batchmean" or "sample"; see `losses.TwoViewLoss`.
        similarity: weight of the consistency of the views: "dynamic" (from the mixture), "one" or "zero".
        first_em_iterations, em_iterations: of the first fit, and of those after each epoch of stage 2, which go on
            from the last parameters; None is 2 per class, 1 pooled.
        counter_order: "before_weights" (a new wrong event counts at once) or "after_weights".
        merge_views: both views in one forward pass; right only for networks without batch norm.
        weak, strong: augmentations of the two views; None: that of the run, and a strong one of its kind.
    """

    name = "ido"
    scoring = ("fit_mixture",)
    defaults: ClassVar[dict[str, Any]] = {
        "warmup_epochs": None,
        "base_model": "first_minimum",
        "mixture_scope": "class",
        "entropy_scale": "none",
        "similarity": "dynamic",
        "first_em_iterations": 20,
        "em_iterations": None,
        "counter_order": "before_weights",
        "merge_views": False,
        "weak": None,
        "strong": None,
        "refine_lr": None,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "default": {},
        "logs": {"base_model": "aliased"},
        "release": {"base_model": "aliased", "entropy_scale": "batchmean"},
    }

    def setup(self, run: Run) -> None:
        self.run, options = run, self.options
        choices = {"base_model": BASE_MODELS, "mixture_scope": ("class", "pooled"), "similarity": SIMILARITIES}
        for option, known in choices.items():
            if options[option] not in known:
                raise ValueError(f"{option} is {options[option]!r}; expected one of {', '.join(known)}")
        if options["warmup_epochs"] is None:
            options["warmup_epochs"] = max(1, run.epochs // 3)
        self.warmup_epochs: int = options["warmup_epochs"]
        if not 1 <= self.warmup_epochs <= run.epochs:
            raise ValueError(f"warmup_epochs is {self.warmup_epochs}; expected 1..{run.epochs}, the epochs of the run")
        if options["refine_lr"] is not None and not options["refine_lr"] > 0:
            raise ValueError(f"refine_lr is {options['refine_lr']}; expected more than 0, or None for that of stage 1")
        per_class = options["mixture_scope"] == "class"
        if options["em_iterations"] is None:
            options["em_iterations"] = 2 if per_class else 1
        options["weak"] = options["weak"] or run.augment
        options["strong"] = options["strong"] or run.strong_augment
        # With momentum 0 the moving average is the loss at the last presentation.
        self.dynamics = SampleDynamics(
            run.num_samples, run.num_classes, label=run.label, track=("nll", "nll"), ema_momentum=0.0
        )
        self.counting = losses.CrossEntropy(dynamics=self.dynamics).to(run.device)
        self.max_count = self.warmup_epochs + 2 * (run.epochs - self.warmup_epochs)
        self.mixture = BetaMixture1D(num_groups=run.num_classes if per_class else None, warm_start=True)
        self.criterion = losses.TwoViewLoss(
            run.num_samples,
            run.num_classes,
            run.label,
            max_count=self.max_count,
            per_class=per_class,
            entropy_scale=options["entropy_scale"],
            counter_order=options["counter_order"],
        ).to(run.device)
        self.changes: list[int] = []  # predictions that changed, in each epoch of stage 1
        self.base_weights = run.network.weights()

    def epoch(self, t: int) -> None:
        if t <= self.warmup_epochs:
            self.count_wrong_events(t)
            return
        if t == self.warmup_epochs + 1:
            self.run.network.restart(self.base_weights)
            self.criterion.wrong_count.copy_(self.dynamics.wrong_events)
            self.fit_mixture(self.options["first_em_iterations"])
        self.train_on_two_views()
        self.fit_mixture(self.options["em_iterations"])

    def count_wrong_events(self, t: int) -> None:
        """Stage 1: an epoch of cross-entropy. Wrong events come from the predictions of the training step."""
        network = self.run.network
        for batch in self.run.batches():
            network.step(self.counting(network(batch.views[0]), batch.label, batch.index))
        self.counting.end_epoch()
        assert self.dynamics.summary is not None
        self.changes.append(self.dynamics.summary.changed)
        if base_epoch(self.changes, self.run.num_samples, self.options["base_model"]) == t:
            self.base_weights = network.weights()

    def train_on_two_views(self) -> None:
        """Stage 2: an epoch on a weak and a strong view, under the table of the last fit."""
        network = self.run.network
        for batch in self.run.batches(augment=(self.options["weak"], self.options["strong"])):
            weak, strong = batch.views
            if self.options["merge_views"]:
                logits_weak, logits_strong = network(torch.cat((weak, strong))).chunk(2)
            else:
                logits_weak, logits_strong = network(weak), network(strong)
            network.step(self.criterion(logits_weak, logits_strong, batch.label, batch.index))
        self.criterion.end_epoch()

    def fit_mixture(self, iterations: int) -> None:
        """Fit the mixture to the counts, then look up from it what every count means in the next epoch."""
        groups = self.run.label if self.mixture.num_groups else None
        self.mixture.max_iter = iterations
        self.mixture.fit_counts(self.criterion.wrong_count, groups, max_count=self.max_count)
        table = self.mixture.count_table().view_as(self.criterion.table)
        if (similarity := SIMILARITIES[self.options["similarity"]]) is not None:
            table[..., 1] = similarity
        self.criterion.set_table(table)

    def schedule_span(self, t: int, epochs: int) -> tuple[int, int]:
        """Stage 1 keeps the first learning rate, stage 2 goes through the schedule."""
        return (t, 0) if t <= self.warmup_epochs else (t - self.warmup_epochs, epochs - self.warmup_epochs)

    def stage_lr(self, t: int, lr: float) -> float:
        """Stage 2 starts from `refine_lr` where there is one."""
        return lr if t <= self.warmup_epochs else self.options["refine_lr"] or lr

    def metrics(self) -> dict[str, Tensor]:
        """AUROC of a right label: by few wrong events, and by a small loss (stage 1) or by clean_prob (stage 2)."""
        label = self.run.label
        if self.criterion.epoch == 0:
            scores = {"loss": -self.dynamics.ema, "wrong_events": -self.dynamics.wrong_events.float()}
        else:
            scores = {
                "clean_prob": self.criterion.clean_prob(label),
                "wrong_events": -self.criterion.wrong_count.float(),
            }
        return {f"auroc_{name}": auroc(values, label == self.run.true_label) for name, values in scores.items()}

    def state_dict(self) -> dict[str, Any]:
        return {
            "counting": self.counting.state_dict(),
            "criterion": self.criterion.state_dict(),
            "mixture": self.mixture.state_dict(),
            "changes": self.changes,
            "base_weights": self.base_weights,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name in ("counting", "criterion", "mixture"):
            getattr(self, name).load_state_dict(state[name])
        self.changes, self.base_weights = state["changes"], state["base_weights"]


def base_epoch(changes: list[int], num_samples: int, base_model: str) -> int:
    """The epoch, from 1, at whose end the weights are the base model, as far as the run has come.

    Args:
        changes: number of changed predictions in each epoch of stage 1 so far, at least one.
        num_samples: N.
        base_model: "first_minimum" takes the epoch before the first that does not fall (of epochs from the second
            on), the last one if all fall; "aliased" the epoch in which the rise is seen; "initial" is 0.
    """
    if base_model == "initial":
        return 0
    if base_model == "last":
        return len(changes)
    fewest, candidate = num_samples, 1
    for t, changed in enumerate(changes[1:], start=2):
        if changed >= fewest:
            return t if base_model == "aliased" else candidate
        fewest, candidate = changed, t
    return candidate
