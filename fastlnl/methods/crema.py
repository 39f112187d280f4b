"""CREMA-style (reconstructed): a clean set weighted by its history, selective label update for the others.

After Zhang et al., arXiv 2208.10683 (2022), whose equations were not available to us. The card in README.md says what
is known and what is ours.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastlnl import losses
from fastlnl.methods.base import Method, Network, Run
from fastlnl.mixture import BetaMixture1D, GaussianMixture1D
from fastlnl.selection import compact
from fastlnl.state.credibility import Credibility

CHOICES = {
    "score_source": ("eval", "train"),
    "mixture": ("gaussian", "beta"),
    "new_label": ("hard", "soft"),
    "networks": (1, 2),
}
HISTORY_TYPES = {"float16": torch.float16, "float32": torch.float32}


class CREMA(Method):
    """Two networks; each trains on the clean set, the weights and the corrected labels that the other one made.

    Args:
        preset: "crema", or an ablation: "gmm_split" (no history, no update), "no_update", "single" (one network),
            "dividemix_weights" (all of the clean set alike).
        warmup_epochs: epochs of cross-entropy on everything; None is a sixth of all, at least one, at most 10 (30 for
            more than 14 classes).
        warmup_penalty: of confident predictions in the warm-up; 1 for asymmetric noise.
        weight_rule, history_length, history_decay, fluctuation, history_limit: of the clean set's weights, see
            `CredibilityHistory`. history_dtype: "float16" or "float32".
        score: "loss" or "label_logit". score_source: "eval", a pass of its own after each epoch under the test
            transform, or "train", from the training pass, which then runs over all samples.
        mixture: "gaussian" or "beta", with normalise, init ("warm" starts from the epoch before), bins, tol and
            max_iter as there; None is the family's default.
        clean_threshold: of the posterior.
        momentum, storage: of the averaged predictions.
        confidence_threshold: above it a corrected label is accepted; None is 0.9 up to 14 classes, 0.7 for 100.
        require_agreement, stable_epochs: the other network must agree; epochs without a change.
        new_label: "hard", the class, or "soft", the averaged prediction.
        unlabeled_weight: of accepted labels; prior_weight: of the class prior.
        networks: 2, or 1. co_divide: False lets each network train on its own split.
    """

    name = "crema"
    scoring = ("score_all", "divide")
    defaults: ClassVar[dict[str, Any]] = {
        "warmup_epochs": None,
        "warmup_penalty": 0.0,
        "weight_rule": "logodds",
        "history_length": 10,
        "history_decay": 0.9,
        "history_limit": 6.0,
        "history_dtype": "float16",
        "fluctuation": 2.0,
        "score": "loss",
        "score_source": "eval",
        "mixture": "gaussian",
        "normalise": "minmax",
        "init": "lloyd",
        "bins": 4096,
        "tol": None,
        "max_iter": None,
        "clean_threshold": 0.5,
        "momentum": 0.9,
        "storage": "float32",
        "confidence_threshold": None,
        "require_agreement": True,
        "stable_epochs": 0,
        "new_label": "hard",
        "unlabeled_weight": 1.0,
        "prior_weight": 1.0,
        "networks": 2,
        "co_divide": True,
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "crema": {},
        "gmm_split": {"weight_rule": "posterior", "unlabeled_weight": 0.0},
        "no_update": {"unlabeled_weight": 0.0},
        "single": {"networks": 1},
        "dividemix_weights": {"weight_rule": "none"},
    }

    def __init__(self, preset: str | None = None, **options: Any) -> None:
        super().__init__(preset, **options)
        for option, known in CHOICES.items():
            if self.options[option] not in known:
                raise ValueError(f"{option} is {self.options[option]!r}; expected one of {', '.join(map(str, known))}")
        if self.options["history_dtype"] not in HISTORY_TYPES:
            raise ValueError(f"history_dtype is {self.options['history_dtype']!r}; expected float16 or float32")
        self.num_networks = self.options["networks"]

    def setup(self, run: Run) -> None:
        self.run, o = run, self.options
        if o["warmup_epochs"] is None:
            o["warmup_epochs"] = max(1, min(round(run.epochs / 6), 10 if run.num_classes <= 14 else 30))
        if o["confidence_threshold"] is None:
            o["confidence_threshold"] = default_threshold(run.num_classes)
        self.by_pass = o["score_source"] == "eval"
        self.criterion = losses.MixMatch(o["prior_weight"]).to(run.device)  # with labelled rows only
        self.warmup_criterion = losses.ConfidencePenalty(o["warmup_penalty"]).to(run.device)
        self.states = [self.credibility(k) for k in range(self.num_networks)]

    def credibility(self, k: int) -> Credibility:
        o = self.options
        return Credibility(
            self.run.label,
            self.run.num_classes,
            score=o["score"],
            mixture=build_mixture(o),
            momentum=o["momentum"],
            storage=o["storage"],
            seed=(2 * self.run.seed + k) % 2**32,
            rule=o["weight_rule"],
            length=o["history_length"],
            decay=o["history_decay"],
            fluctuation=o["fluctuation"],
            limit=o["history_limit"],
            dtype=HISTORY_TYPES[o["history_dtype"]],
        )

    def epoch(self, t: int) -> None:
        if self.options["new_label"] == "soft":  # as they are now: with score_source "train" they move in the epoch
            self.soft = [state.memory.rows(torch.arange(self.run.num_samples)) for state in self.states]
        for k, network in enumerate(self.run.networks):
            if t <= self.options["warmup_epochs"]:
                self.warm_up(network, k)
            else:
                self.train(network, k)
        if self.by_pass:
            self.score_all()
        self.divide()

    def warm_up(self, network: Network, k: int) -> None:
        for batch in self.run.batches(stream=f"crema/{k}"):
            logits = network(batch.views[0])
            network.step(self.warmup_criterion(logits, batch.label))
            if not self.by_pass:
                self.states[k].score(logits, batch.label, batch.index)

    def train(self, network: Network, k: int) -> None:
        """On the clean and the accepted of the teacher; with score_source "train" the rest comes along at weight 0."""
        teacher, size = self.peer(k) if self.options["co_divide"] else k, self.run.batch_size
        ids = chosen(self.states[teacher]) if self.by_pass else None
        alone = ids is not None and len(ids) > size and len(ids) % size == 1  # a last batch that batch norm refuses
        for batch in self.run.batches(ids, stream=f"crema/{k}", drop_last=alone):
            logits = network(batch.views[0])
            network.step(self.loss(logits, teacher, batch.index))
            if not self.by_pass:
                self.states[k].score(logits, batch.label, batch.index)

    def peer(self, k: int) -> int:
        return self.num_networks - 1 - k

    def loss(self, logits: Tensor, teacher: int, index: Tensor) -> Tensor:
        """Weighted cross-entropy against given and corrected labels over B, and the class prior."""
        state = self.states[teacher]
        label, weight = state.new_label[index].long()[:, None], state.row_weight[index, None]
        target = torch.zeros(logits.shape, device=logits.device).scatter_(1, label, weight)
        if self.options["new_label"] == "soft":
            target = torch.where(state.accepted[index, None], weight * self.soft[teacher][index], target)
        return self.criterion(logits, target, len(index))

    def score_all(self) -> None:
        """Losses and averaged predictions of every sample, by each network at rest."""
        with self.run.inference() as batches:
            for batch in batches:
                for network, state in zip(self.run.networks, self.states, strict=True):
                    state.score(network(batch.views[0]), batch.label, batch.index)

    def divide(self) -> None:
        """All split, then all correct: nothing here sees a network that was trained after another one was scored."""
        o = self.options
        for state in self.states:
            state.check()
            state.split(o["clean_threshold"], self.run.batch_size)
        for k, state in enumerate(self.states):
            state.correct(
                o["confidence_threshold"],
                peer=self.states[self.peer(k)] if o["require_agreement"] else None,
                stable_epochs=o["stable_epochs"],
                unlabeled_weight=o["unlabeled_weight"],
            )

    def metrics(self) -> dict[str, Tensor]:
        """Means over the networks; what is undefined is NaN."""
        found = [state.quality(self.run.true_label) for state in self.states]
        return {name: torch.stack([m[name].double() for m in found]).mean() for name in found[0]}

    def state_dict(self) -> dict[str, Any]:
        return {"states": [state.state_dict() for state in self.states]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for mine, saved in zip(self.states, state["states"], strict=True):
            mine.load_state_dict(saved)


def default_threshold(num_classes: int) -> float:
    """0.9 up to 14 classes, 0.7 from 100 on, linear in the logarithm of their number between."""
    share = math.log(max(num_classes, 14) / 14) / math.log(100 / 14)
    return 0.9 - 0.2 * min(share, 1.0)


def build_mixture(o: dict[str, Any]) -> GaussianMixture1D | BetaMixture1D:
    shared = {"bins": o["bins"], "normalise": o["normalise"], "warm_start": o["init"] == "warm"}
    shared |= {name: o[name] for name in ("tol", "max_iter") if o[name] is not None}
    if o["mixture"] == "beta":
        return BetaMixture1D(**shared)
    return GaussianMixture1D(init="lloyd" if o["init"] == "warm" else o["init"], **shared)


def chosen(state: Credibility) -> Tensor:
    """Ids of the clean and the accepted, ascending; the one place where an epoch reads from the device."""
    index, count = compact(state.is_clean | state.accepted)
    return index[: int(count)]
