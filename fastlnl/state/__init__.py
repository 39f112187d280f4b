"""What is remembered of each sample."""

from fastlnl.state.dynamics import EpochSummary, SampleDynamics
from fastlnl.state.keys import KeyTable
from fastlnl.state.label_memory import LabelMemory, check_labels, label_fingerprint

__all__ = ["EpochSummary", "KeyTable", "LabelMemory", "SampleDynamics", "check_labels", "label_fingerprint"]
