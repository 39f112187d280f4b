"""What is remembered of each sample."""

from fastlnl.state.keys import KeyTable
from fastlnl.state.label_memory import LabelMemory, check_labels, label_fingerprint

__all__ = ["KeyTable", "LabelMemory", "check_labels", "label_fingerprint"]
