"""How credible each sample is to one network: what it costs, who is clean, the label that would fit the others."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from fastlnl.metrics import auroc, correction, selection_quality
from fastlnl.mixture import BetaMixture1D, GaussianMixture1D, MixtureStatus
from fastlnl.mixture.base import UNUSABLE
from fastlnl.ops.row_loss import catalogue, new_error_word, row_loss
from fastlnl.selection import above_threshold, class_counts, highest
from fastlnl.state.credibility_history import CredibilityHistory, FixedTypes
from fastlnl.state.fingerprint import check_fingerprint
from fastlnl.state.label_memory import LabelMemory, label_fingerprint
from fastlnl.state.recorded import raise_recorded

SCORES = ("loss", "label_logit")
BLOCK = 1 << 22  # elements of the label memory that are decoded at a time


class Credibility(FixedTypes):
    """Scores, clean set, weights and corrected labels of N samples in the eyes of one network.

        for batch in all_samples:
            state.score(logits, batch.label, batch.index)
        state.split(0.5, minimum=batch_size)  # mixture, history, weights, clean set
        state.correct(0.9, peer=other)        # labels of the others, once both are split

    Nothing here waits for the device, except `check`. Deterministic; of a repeated id the last occurrence counts.

    Args:
        label: (N,) given labels, never written.
        num_classes: C.
        score: what the mixture is fitted to: "loss", -log p_y, or "label_logit", -z_y.
        mixture: fitted once an epoch; None is the fit of DivideMix.
        momentum: of the averaged prediction q, which starts as the first prediction.
        storage, seed: of q, see `LabelMemory`.
        history: of `CredibilityHistory`: rule, length, decay, fluctuation, dtype.

    Raises:
        ValueError: an option is none of the above.

    Source: our reconstruction of CREMA (Zhang et al. 2022).
    """

    loss: Tensor
    clean_prob: Tensor
    weight: Tensor
    is_clean: Tensor
    accepted: Tensor
    new_label: Tensor
    row_weight: Tensor
    confidence: Tensor
    prediction: Tensor
    unchanged: Tensor
    status: Tensor
    observed: Tensor | None
    label: Tensor
    errors: Tensor
    place: Tensor

    def __init__(
        self,
        label: Tensor,
        num_classes: int,
        *,
        score: str = "loss",
        mixture: GaussianMixture1D | BetaMixture1D | None = None,
        momentum: float = 0.9,
        storage: str = "float32",
        seed: int = 0,
        **history: Any,
    ) -> None:
        super().__init__()
        if score not in SCORES or not 0 <= momentum <= 1:
            raise ValueError(
                f"score is {score!r} and momentum {momentum}; expected {' or '.join(SCORES)}, and a value in [0, 1]"
            )
        device, samples = label.device, len(label)
        self.memory = LabelMemory(samples, num_classes, label, "first_prediction", storage, seed)
        self.history = CredibilityHistory(samples, device=device, **history)
        self.mixture = mixture if mixture is not None else GaussianMixture1D()
        self.num_samples, self.num_classes = samples, num_classes
        self.score_by, self.momentum, self.fingerprint = score, momentum, label_fingerprint(label)

        def vector(value: float, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.full((samples,), value, dtype=dtype, device=device)

        self.register_buffer("loss", vector(torch.nan))
        self.register_buffer("clean_prob", vector(1.0))  # g
        self.register_buffer("weight", vector(1.0))  # W, of everybody
        self.register_buffer("is_clean", vector(1, torch.bool))
        self.register_buffer("accepted", vector(0, torch.bool))  # of the noisy set, with a label to train on
        self.register_buffer("new_label", label.to(torch.int32))  # the given one where none is accepted
        self.register_buffer("row_weight", vector(1.0))  # W of the clean, weighted confidence of the accepted, else 0
        self.register_buffer("confidence", vector(0.0))  # max q
        self.register_buffer("prediction", vector(-1, torch.int32))  # argmax q
        self.register_buffer("unchanged", vector(0, torch.uint8))  # epochs without a change of argmax q, 255 at most
        self.register_buffer("status", torch.zeros((), dtype=torch.int64, device=device))  # of the last mixture
        beside = self.history.ring is not None and not self.history.by_odds
        self.register_buffer("observed", vector(0.0) if beside else None)  # next row of the ring
        self.register_buffer("label", label, persistent=False)
        self.register_buffer("errors", new_error_word(device), persistent=False)
        self.register_buffer("place", vector(0, torch.int64), persistent=False)  # room for `_last_occurrence`

    @torch.no_grad()
    def score(self, logits: Tensor, label: Tensor, index: Tensor) -> None:
        """Enter what the network says of a batch: its losses, and q <- momentum q + (1 - momentum) p.

        Args:
            logits: (B, C). label: (B,) given labels. index: (B,) int64 sample ids.

        Updates: loss, observed, memory. A row whose logits are not finite gets loss NaN and keeps its q.
        """
        logits = logits.detach()
        _, _, stats = row_loss(
            logits,
            label,
            catalogue.cross_entropy,
            memory=self.memory.target(1.0, self.momentum),
            index=index,
            with_stats=True,
            errors=self.errors,
        )
        assert stats is not None
        loss = stats.nll
        if self.score_by == "label_logit":
            loss = -logits.float().gather(1, label.long()[:, None])[:, 0]
        last = self._last_occurrence(index)
        self.loss.index_copy_(0, index, loss[last])
        if self.observed is not None:
            entry = stats.p_label
            if self.history.rule == "streak":
                entry = torch.where(stats.prediction == label, stats.confidence, 0.0)
            self.observed.index_copy_(0, index, entry[last])

    def _last_occurrence(self, index: Tensor) -> Tensor:
        """(B,) the position in the batch at which each row's id stands last."""
        position = torch.arange(len(index), device=index.device)
        self.place.scatter_reduce_(0, index, position, "amax", include_self=False)
        return self.place[index]

    @torch.no_grad()
    def split(self, clean_threshold: float, minimum: int) -> None:
        """Close the epoch: who is clean, how credible everybody was so far, and what q says.

        A sample without a finite loss, or everybody where the mixture has no two components, keeps clean_prob and
        repeats its newest entry of the history (clean_prob 1 and log-odds 0 at first).

        Args:
            clean_threshold: clean is who is above it.
            minimum: if nobody is, so many of the highest clean_prob are taken.

        Updates: clean_prob, history, weight, is_clean, confidence, prediction, unchanged, status.
        """
        mixture = self.mixture.fit(self.loss)
        self.status.copy_(mixture.status_)
        scored = self.loss.isfinite()
        fitted = scored & ((self.status & int(UNUSABLE)) == 0)
        self.clean_prob.copy_(torch.where(fitted, mixture.clean_prob(self.loss), self.clean_prob))
        if self.observed is None:
            self.history.push(mixture.log_odds(self.loss), fitted)
        else:
            self.history.push(self.observed, scored)
        self.weight.copy_(self.history.weight(self.clean_prob))
        above = above_threshold(self.clean_prob, clean_threshold)
        self.is_clean.copy_(torch.where(above.any(), above, highest(self.clean_prob, minimum)))
        self._read_memory()

    @property
    def flagged(self) -> Tensor:
        """() bool: something was wrong with the losses of the last split; `status` (`MixtureStatus`) says what."""
        return (self.status & ~int(MixtureStatus.TWO_VALUES)) != 0

    def _read_memory(self) -> None:
        """Confidence and class of every q, and for how long the class has been the same."""
        ids = torch.arange(self.num_samples, device=self.loss.device)
        blocks = [self.memory.rows(block).max(1) for block in ids.split(max(1, BLOCK // self.num_classes))]
        self.confidence.copy_(torch.cat([block.values for block in blocks]))
        prediction = torch.cat([block.indices for block in blocks])
        prediction = torch.where(self.confidence > 0, prediction, -1).to(torch.int32)
        since = (self.unchanged.to(torch.int32) + 1).clamp(max=255)
        self.unchanged.copy_(torch.where(prediction == self.prediction, since, 0))
        self.prediction.copy_(prediction)

    @torch.no_grad()
    def correct(
        self,
        confidence_threshold: float,
        *,
        peer: Credibility | None = None,
        stable_epochs: int = 0,
        unlabeled_weight: float = 1.0,
    ) -> None:
        """Which samples of the noisy set get a label of their own for the next epoch; the given ones are not touched.

        Args:
            confidence_threshold: max q must be above it.
            peer: its argmax q must be the same; None does not ask.
            stable_epochs: so many epochs argmax q must not have changed.
            unlabeled_weight: factor of the confidence in `row_weight`; 0 accepts nobody.

        Updates: accepted, new_label, row_weight.
        """
        accepted = ~self.is_clean & (self.confidence > confidence_threshold) & (self.unchanged >= stable_epochs)
        if peer is not None:
            accepted &= self.prediction == peer.prediction
        if unlabeled_weight == 0:
            accepted = torch.zeros_like(accepted)
        self.accepted.copy_(accepted)
        self.new_label.copy_(torch.where(accepted, self.prediction, self.label))
        others = torch.where(accepted, unlabeled_weight * self.confidence, 0.0)
        self.row_weight.copy_(torch.where(self.is_clean, self.weight, others))

    def check(self) -> None:
        """Raise LabelError if a label or id was out of range since the last check. Reads from the device once."""
        raise_recorded(self.errors, self.num_classes, self.num_samples, "the credibility has")

    def quality(self, true_label: Tensor) -> dict[str, Tensor]:
        """How well this view of the samples fits the truth, as scalars on the device; what is undefined is NaN.

        auroc_weight (the weight rule applied to everybody), auroc_posterior: of the rightly labelled.
        clean_precision, clean_recall, clean_f1, clean_share: of the clean set.
        accepted_share, accepted_correct, accepted_largest_class: corrected labels, of all samples; how many are true;
            how many are of one and the same class.
        flagged; changed, correction_accuracy, repair, damage: see `metrics.correction`.
        """
        rightly = self.label == true_label
        quality = selection_quality(self.is_clean, rightly)
        number, classes = self.accepted.sum(), class_counts(self.new_label, self.num_classes, self.accepted)
        return {
            "auroc_weight": auroc(self.weight, rightly),
            "auroc_posterior": auroc(self.clean_prob, rightly),
            **{f"clean_{name}": value for name, value in quality.items()},
            "clean_share": self.is_clean.double().mean(),
            "accepted_share": self.accepted.double().mean(),
            "accepted_correct": (self.accepted & (self.new_label == true_label)).sum() / number,
            "accepted_largest_class": classes.max() / number,
            "flagged": self.flagged,
            **correction(self.new_label, self.label, true_label),
        }

    def get_extra_state(self) -> dict[str, Any]:
        here = {
            "num_samples": self.num_samples,
            "num_classes": self.num_classes,
            "score": self.score_by,
            "weight_rule": self.history.rule,
            "history_length": self.history.length,
            "label": self.fingerprint,
        }
        return {"made_for": here, "mixture": self.mixture.state_dict()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        fit = {k: x.to(self.loss.device) if isinstance(x, Tensor) else x for k, x in state["mixture"].items()}
        self.mixture.load_state_dict(fit)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the state of other data before anything is overwritten."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is not None:
            check_fingerprint("credibility", saved["made_for"], self.get_extra_state()["made_for"])
        super()._load_from_state_dict(state_dict, prefix, *args)
