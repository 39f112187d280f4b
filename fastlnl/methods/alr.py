"""ALR, our reconstruction: every label follows the network's predictions a little, an entropy term hardens it.

Zhang et al., arXiv 2502.00386 (2025). The card in README.md says which parts are known and which are ours.
"""

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from torch import Tensor

from fastlnl import losses
from fastlnl.data import Batch
from fastlnl.methods.base import Method, Run
from fastlnl.metrics import correction


class ALR(Method):
    """Refine soft labels by moving average, train on them with an entropy term.

    Args:
        preset: "alr", "selc" (no entropy term) or "temporal" (soft labels updated by one inference pass an epoch).
        momentum: weight of the old soft label.
        entropy_weight: weight of the entropy of the prediction.
        warmup_epochs: epochs of plain cross-entropy first; None is 0.15 of all epochs, at least one.
        target_source: "train" (predictions of the training step) or "eval" (one inference pass over all samples an
            epoch; the target is fixed inside the epoch).
        update_order: "update_then_use" or "use_then_update"; with "eval" the pass comes before or after the epoch.
        detach: False lets the gradient flow through the prediction inside the target.
        init: "onehot" (given label), "first_prediction" or "zeros".
        entropy_sign: +1 minimises the entropy; -1 exists to show that the sign matters.
        storage: format of the soft labels: "float32", "bfloat16", "float16", "uint8" or "topk:K".
    """

    name = "alr"
    capturable = True
    scoring = ("refine",)
    defaults: ClassVar[dict[str, Any]] = {
        "momentum": 0.9,
        "entropy_weight": 0.3,
        "warmup_epochs": None,
        "target_source": "train",
        "update_order": "update_then_use",
        "detach": True,
        "init": "onehot",
        "entropy_sign": 1,
        "storage": "float32",
    }
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "alr": {},
        "selc": {"momentum": 0.9, "entropy_weight": 0.0},
        "temporal": {"target_source": "eval"},
    }

    def setup(self, run: Run) -> None:
        self.run = run
        if self.options["warmup_epochs"] is None:
            self.options["warmup_epochs"] = max(1, round(0.15 * run.epochs))
        self.warmup_epochs: int = self.options["warmup_epochs"]
        if self.warmup_epochs == 0:
            warnings.warn("warmup_epochs is 0: ALR hardens the predictions of an untrained network", stacklevel=2)
        self.criterion = losses.ALR(run.num_samples, run.num_classes, run.label, **self.options).to(run.device)
        # With "eval" the label memory moves in a pass of its own, on the side of the epoch that update_order names.
        by_pass, order = self.options["target_source"] == "eval", self.options["update_order"]
        self.refine_before = by_pass and order == "update_then_use"
        self.refine_after = by_pass and order == "use_then_update"

    def epoch(self, t: int) -> None:
        run = self.run
        if self.refine_before and t > self.warmup_epochs:
            self.refine()
        for batch in run.batches():
            run.network.train_on(batch, self.loss, t > self.warmup_epochs)
        if self.refine_after and t > self.warmup_epochs:
            self.refine()
        self.criterion.end_epoch()

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy in the warm-up, then the loss on soft labels."""
        loss: Tensor = self.criterion(self.run.network(batch.views[0]), batch.label, batch.index)
        return loss

    def refine(self) -> None:
        """Move every soft label towards the prediction of the network at rest."""
        with self.run.inference() as batches:
            for batch in batches:
                self.criterion.refine(self.run.network(batch.views[0]), batch.index)

    def corrected_label(self) -> Tensor:
        """(N,) int64: the class each soft label stands for now, the given label where there is none yet."""
        corrected = self.criterion.memory.labels()
        return torch.where(corrected >= 0, corrected, self.run.label)

    def metrics(self) -> dict[str, Tensor]:
        return correction(self.corrected_label(), self.run.label, self.run.true_label)
