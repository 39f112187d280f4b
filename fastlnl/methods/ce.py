"""Plain cross-entropy on the given labels: the baseline of every table."""

from __future__ import annotations

from torch import Tensor

from fastlnl import losses
from fastlnl.data import Batch
from fastlnl.methods.base import Method, Run


class CE(Method):
    """Cross-entropy on the given labels, right or wrong. It has no options and keeps nothing per sample."""

    name = "ce"
    capturable = True

    def setup(self, run: Run) -> None:
        self.run = run
        self.criterion = losses.CrossEntropy().to(run.device)

    def epoch(self, t: int) -> None:
        run = self.run
        for batch in run.batches():
            run.network.train_on(batch, self.loss)
        self.criterion.end_epoch()

    def loss(self, batch: Batch) -> Tensor:
        loss: Tensor = self.criterion(self.run.network(batch.views[0]), batch.label)
        return loss
