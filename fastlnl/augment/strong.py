"""RandAugment for a whole batch on its device: every image draws its own operations, nobody asks the host."""

from __future__ import annotations

import torch
from torch import Tensor

from fastlnl.ops import random_operations as primitive
from fastlnl.ops.random_operations import DRAWS, OPERATIONS
from fastlnl.ops.random_operations.reference import cut_square

__all__ = ["GREY", "OPERATIONS", "STRONG_DRAWS", "cut_square", "random_operations"]
STRONG_DRAWS = DRAWS + 2
GREY = float(primitive.GREY)


def random_operations(images: Tensor, draws: Tensor) -> Tensor:
    """RandAugment: two operations an image, drawn with replacement from 16, each applied with probability 1/2.

    Magnitude m is uniform over 1/10 .. 9/10, s a fair sign:

    - identity; autocontrast (each channel stretched to 0..255); equalize (each channel's histogram made flat)
    - invert; posterize to 4 + floor(4 m) bits; solarize (invert from 256 - 256 m on); solarize_add (110 m added
      below 128)
    - brightness, contrast, color, sharpness: blend from black, from the mean grey, from grey, from the image smoothed
      by (1 1 1, 1 5 1, 1 1 1) / 13, with factor .1 + 1.8 m
    - rotate by 30 m s degrees; shear_x, shear_y by .3 m s; translate_x, translate_y by .3 m s of the side: nearest
      pixel, black outside

    Operations on values come first, both rounds in order, then one move of the pixels for both rounds together: a value
    operation never sees the black border of a rotation.

    Args:
        images: (B, 1 or 3, H, W) float32 with values 0..255.
        draws: (B, 8 or more) in [0, 1): operation, magnitude, whether, sign, for each round.

    Returns:
        (B, ch, H, W) float32, integers in 0..255, memory format of `images`.

    Raises:
        ShapeError: images or draws have another shape.

    Deterministic given `draws`. Source: Cubuk et al. 2020; probability and magnitudes as in Sohn et al. 2020.
    """
    channels_last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return primitive.random_operations(images, draws, channels_last=channels_last)
