"""What is remembered of each sample."""

from fastlnl.state.credibility import Credibility
from fastlnl.state.dynamics import EpochSummary, SampleDynamics
from fastlnl.state.keys import KeyTable
from fastlnl.state.label_memory import LabelMemory, check_labels, label_fingerprint
from fastlnl.state.split import LossSplit

__all__ = [
    "Credibility",
    "EpochSummary",
    "KeyTable",
    "LabelMemory",
    "LossSplit",
    "SampleDynamics",
    "check_labels",
    "label_fingerprint",
]
