"""Criteria: `loss = criterion(logits, label, index)` in anybody's loop, `criterion.end_epoch()` after each epoch.

Every criterion is a coefficient function of `ops.row_loss` behind an `nn.Module`. Those with a label memory take the
samples' ids; the others accept and ignore them, so that criteria can be exchanged.
"""

from fastlnl.losses.criterion import Criterion
from fastlnl.losses.memory import ALR, ELR, SELC, MemoryCriterion
from fastlnl.losses.mixmatch import MixMatch
from fastlnl.losses.robust import (
    GCE,
    MAE,
    NCE,
    NCERCE,
    SCE,
    Bootstrapping,
    ConfidencePenalty,
    CrossEntropy,
    Focal,
    LabelSmoothing,
    Poly1,
    SoftCrossEntropy,
)
from fastlnl.losses.two_view import TwoViewLoss

__all__ = [
    "ALR",
    "ELR",
    "GCE",
    "MAE",
    "NCE",
    "NCERCE",
    "SCE",
    "SELC",
    "Bootstrapping",
    "ConfidencePenalty",
    "Criterion",
    "CrossEntropy",
    "Focal",
    "LabelSmoothing",
    "MemoryCriterion",
    "MixMatch",
    "Poly1",
    "SoftCrossEntropy",
    "TwoViewLoss",
]
