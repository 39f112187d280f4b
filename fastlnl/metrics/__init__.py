"""How well label noise is found, undone and resisted; everything stays on the device of its arguments.

No metric waits for the device: results are tensors of shape (), or a dict of them, to be read when convenient.
"""

from fastlnl.metrics.labels import correction, memorisation, selection_quality
from fastlnl.metrics.ranking import auroc, average_precision, precision_recall_curve, roc_curve
from fastlnl.metrics.transition import (
    confusion_matrix,
    transition_from_anchors,
    transition_from_joint,
    transition_matrix,
)

__all__ = [
    "auroc",
    "average_precision",
    "confusion_matrix",
    "correction",
    "memorisation",
    "precision_recall_curve",
    "roc_curve",
    "selection_quality",
    "transition_from_anchors",
    "transition_from_joint",
    "transition_matrix",
]
