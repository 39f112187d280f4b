"""What is measured of a run after each epoch: test accuracy, the method's own figures, what is memorised."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlnl.data import IndexedLoader
from fastlnl.frame import Frame
from fastlnl.methods.base import Method
from fastlnl.metrics import memorisation
from fastlnl.philox import permutation


def monitored_ids(run: Frame, monitor: int | bool) -> Tensor:
    """(n,) int64 ids of the training samples to predict after each epoch, ascending.

    Args:
        monitor: so many, drawn by the run's seed and the same in every epoch; True: all, False: none.

    Raises:
        ValueError: monitor is negative.
    """
    if monitor < 0:
        raise ValueError(f"monitor is {monitor}; expected a number of samples, True for all or False for none")
    count = run.num_samples * monitor if isinstance(monitor, bool) else min(monitor, run.num_samples)
    return permutation(run.seed, "monitor", run.num_samples)[:count].sort().values.to(run.device)


def evaluate(run: Frame, method: Method, monitored: Tensor) -> dict[str, float]:
    """Test accuracy, the figures of the method and, of the monitored training samples, what is memorised.

    One read from the device for all of them together.
    """
    with run.at_rest():
        hit = predict(method, run.test_in_order) == run.test_label
        measured = {"test_accuracy": hit.double().mean(), **method.metrics()}
        if len(monitored):
            predicted = predict(method, run.train_in_order, monitored)
            measured |= memorisation(predicted, run.label[monitored], run.true_label[monitored])
    values = torch.stack([value.double() for value in measured.values()]).tolist()
    return dict(zip(measured, values, strict=True))


def predict(method: Method, loader: IndexedLoader, ids: Tensor | None = None) -> Tensor:
    """(n,) int64 predicted classes."""
    return torch.cat([method.predict(batch.views[0]).argmax(dim=1) for batch in loader.batches(ids)])
