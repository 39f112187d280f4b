"""Who has a small loss: the split of all samples by one network, as DivideMix makes it every epoch."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from fastlnl.mixture import GaussianMixture1D
from fastlnl.mixture.base import UNUSABLE, Normalise
from fastlnl.ops.mixture_em import Init
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.row_stats import row_stats
from fastlnl.selection import above_threshold
from fastlnl.state.credibility_history import FixedTypes
from fastlnl.state.fingerprint import check_fingerprint
from fastlnl.state.label_memory import label_fingerprint
from fastlnl.state.recorded import raise_recorded


class LossSplit(FixedTypes):
    """Losses of N samples under one network, and the probability of each to be of the small-loss component.

        for batch in all_samples: split.score(network(images), batch.label, batch.index)
        split.fit()                                  # mixture, clean_prob, is_clean
        labelled, unlabelled = split.sets(minimum=batch_size)

    `score` and `fit` never wait for the device. Deterministic.

    Args:
        label: (N,) given labels. num_classes: C.
        threshold: clean is who has a clean_prob above it.
        average_last: the mixture sees the mean of so many epochs' losses, each normalised on its own; 1: this epoch's.
        normalise, init, max_iter, tol: of the mixture, see `GaussianMixture1D`.

    Raises:
        ValueError: threshold outside [0, 1], average_last below 1, or an option of the mixture.

    Source: Li, Socher, Hoi 2020 (DivideMix), section 3.1.
    """

    loss: Tensor
    clean_prob: Tensor
    is_clean: Tensor
    collapsed: Tensor
    loss_history: Tensor | None
    stored: Tensor
    errors: Tensor

    def __init__(
        self,
        label: Tensor,
        num_classes: int,
        *,
        threshold: float = 0.5,
        average_last: int = 1,
        normalise: Normalise = "minmax",
        init: Init = "lloyd",
        max_iter: int = 10,
        tol: float = 1e-2,
    ) -> None:
        super().__init__()
        if not 0 <= threshold <= 1 or average_last < 1:
            raise ValueError(
                f"threshold is {threshold} and average_last {average_last}; expected one in [0, 1], and at least 1"
            )
        self.num_samples, self.num_classes, self.threshold = len(label), num_classes, threshold
        self.mixture = GaussianMixture1D(normalise=normalise, init=init, max_iter=max_iter, tol=tol)
        self.of_means = GaussianMixture1D(normalise="none", init=init, max_iter=max_iter, tol=tol)
        self.fingerprint = label_fingerprint(label)
        samples, device = self.num_samples, label.device
        self.register_buffer("loss", torch.full((samples,), torch.nan, device=device))
        self.register_buffer("clean_prob", torch.ones(samples, device=device))
        self.register_buffer("is_clean", torch.ones(samples, dtype=torch.bool, device=device))
        self.register_buffer("collapsed", torch.zeros((), dtype=torch.bool, device=device))  # the last fit was no use
        ring = torch.full((average_last, samples), torch.nan, device=device) if average_last > 1 else None
        self.register_buffer("loss_history", ring)
        self.register_buffer("stored", torch.zeros((), dtype=torch.int64, device=device))  # epochs, ever
        self.register_buffer("errors", new_error_word(device), persistent=False)

    @torch.no_grad()
    def score(self, logits: Tensor, label: Tensor, index: Tensor) -> None:
        """Enter the losses -log p_y of a batch; of a repeated id the largest one counts.

        Args:
            logits: (B, C). label: (B,) given labels. index: (B,) sample ids.

        Updates: loss.
        """
        nll = row_stats(logits, label, errors=self.errors).nll
        self.loss.scatter_reduce_(0, index, nll, "amax", include_self=False)

    @torch.no_grad()
    def fit(self) -> None:
        """Fit the mixture to the losses, and say who is clean.

        A sample without a finite loss keeps its clean_prob (1 at first), and so does everybody where the losses have no
        two components: all equal, one component without samples, equal means. `collapsed` says so.

        Updates: clean_prob, is_clean, collapsed, loss_history, stored.
        """
        mixture, score = self.mixture.fit(self.loss), self.loss
        if self.loss_history is not None:
            low, high = mixture.limits_
            score = self._average(((self.loss - low) / (high - low)).float())
            mixture = self.of_means.fit(score)
        self.collapsed.copy_((mixture.status_ & int(UNUSABLE)) != 0)
        fitted = score.isfinite() & ~self.collapsed
        self.clean_prob.copy_(torch.where(fitted, mixture.clean_prob(score), self.clean_prob))
        self.is_clean.copy_(above_threshold(self.clean_prob, self.threshold))

    def _average(self, loss: Tensor) -> Tensor:
        """Enter the losses (N,) of this epoch in the ring; their mean over the epochs in which they are finite."""
        assert self.loss_history is not None
        length = len(self.loss_history)
        self.loss_history.index_copy_(0, (self.stored % length)[None], loss[None])
        self.stored += 1
        there = self.loss_history.isfinite()
        return torch.where(there, self.loss_history, 0.0).sum(0) / there.sum(0)

    def sets(self, minimum: int) -> tuple[Tensor, Tensor]:
        """Ids of the clean and of the other samples, ascending. Reads their number from the device.

        Where nobody is clean, the clean ones are the `minimum` samples of largest clean_prob, of those the ones of
        lower loss, of those the ones of lower id. A warning says so, and also where everybody is clean.

        Returns:
            labelled: (n,) int64, at least one id where there are samples; unlabelled: (N - n,) int64.

        Updates: is_clean, by that rule.
        """
        labelled = self.is_clean.nonzero()[:, 0]
        if len(labelled) == 0:
            warnings.warn(
                f"no sample has a clean_prob above {self.threshold}, so the {minimum} of largest clean_prob are taken "
                "for clean; lower the threshold, or look at the losses",
                stacklevel=2,
            )
            by_loss = self.loss.nan_to_num(nan=torch.inf).argsort(stable=True)
            best = by_loss[self.clean_prob[by_loss].argsort(stable=True, descending=True)]
            labelled = best[:minimum].sort().values
            self.is_clean[labelled] = True
        unlabelled = (~self.is_clean).nonzero()[:, 0]
        if len(unlabelled) == 0:
            warnings.warn(
                f"every sample has a clean_prob above {self.threshold}, so no label is dropped; a longer warm-up may "
                "separate the losses, or the labels are clean",
                stacklevel=2,
            )
        return labelled, unlabelled

    def check(self) -> None:
        """Raise LabelError if a label was out of range since the last check. Reads from the device once."""
        raise_recorded(self.errors, self.num_classes, self.num_samples, "the split has")

    def get_extra_state(self) -> dict[str, Any]:
        here = {"num_samples": self.num_samples, "num_classes": self.num_classes, "label": self.fingerprint}
        return {"made_for": here}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Nothing: what was made for other data is refused before."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """Refuse the state of other data before anything is overwritten."""
        saved = state_dict.get(prefix + "_extra_state")
        if saved is not None:
            check_fingerprint("split", saved["made_for"], self.get_extra_state()["made_for"])
        super()._load_from_state_dict(state_dict, prefix, *args)
