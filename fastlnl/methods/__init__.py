"""Training methods by name. A card for each is in README.md."""

from fastlnl.methods.alr import ALR
from fastlnl.methods.base import Method, Run
from fastlnl.methods.ce import CE
from fastlnl.methods.crema import CREMA
from fastlnl.methods.dividemix import DivideMix
from fastlnl.methods.ido import IDO
from fastlnl.methods.sanm import SANM

METHODS: dict[str, type[Method]] = {
    "ce": CE,
    "alr": ALR,
    "crema": CREMA,
    "dividemix": DivideMix,
    "ido": IDO,
    "sanm": SANM,
}

__all__ = ["ALR", "CE", "CREMA", "IDO", "METHODS", "SANM", "DivideMix", "Method", "Run"]
