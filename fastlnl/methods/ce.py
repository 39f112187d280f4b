"""Plain cross-entropy on the given labels: the baseline of every table."""

from __future__ import annotations

from fastlnl import losses
from fastlnl.methods.base import Method, Run


class CE(Method):
    """Cross-entropy on the given labels, right or wrong. It has no options and keeps nothing per sample."""

    name = "ce"

    def setup(self, run: Run) -> None:
        self.run = run
        self.criterion = losses.CrossEntropy().to(run.device)

    def epoch(self, t: int) -> None:
        run = self.run
        for batch in run.batches():
            logits = run.network(batch.views[0])
            run.network.step(self.criterion(logits, batch.label))
        self.criterion.end_epoch()
