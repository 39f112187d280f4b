"""Augmentation on the device: the names a loader knows, and what they do."""

from fastlnl.augment.crop import crop_flip
from fastlnl.augment.elements import dropout, gaussian_noise, word_dropout
from fastlnl.augment.strong import GREY, STRONG_DRAWS, cut_square, random_operations
from fastlnl.augment.views import AUGMENTATIONS, View, parse_view

__all__ = [
    "AUGMENTATIONS",
    "GREY",
    "STRONG_DRAWS",
    "View",
    "crop_flip",
    "cut_square",
    "dropout",
    "gaussian_noise",
    "parse_view",
    "random_operations",
    "word_dropout",
]
