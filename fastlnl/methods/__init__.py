"""Training methods by name. A card for each is in README.md."""

from fastlnl.methods.alr import ALR
from fastlnl.methods.base import Method, Run
from fastlnl.methods.ce import CE

METHODS: dict[str, type[Method]] = {"ce": CE, "alr": ALR}

__all__ = ["ALR", "CE", "METHODS", "Method", "Run"]
