"""Learning with noisy labels at the price of plain cross-entropy."""

from fastlnl import losses, metrics, mixture, selection, state
from fastlnl.backend import backends, current_backend, use_backend
from fastlnl.errors import BackendError, DefinitionError, LabelError, ShapeError, StateError
from fastlnl.ops.row_loss import LossDefinition, RowStats, define_loss
from fastlnl.ops.row_loss.check import check_loss

__version__ = "0.1.0"

__all__ = [
    "BackendError",
    "DefinitionError",
    "LabelError",
    "LossDefinition",
    "RowStats",
    "ShapeError",
    "StateError",
    "__version__",
    "backends",
    "check_loss",
    "current_backend",
    "define_loss",
    "losses",
    "metrics",
    "mixture",
    "selection",
    "state",
    "use_backend",
]
