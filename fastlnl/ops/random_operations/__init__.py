"""RandAugment, a grey square and the map from bytes to floats for a batch: each image draws its own operations."""

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe

__all__ = ["DRAWS", "GREY", "LEVELS", "OPERATIONS", "random_operations"]
ROUNDS = 2
LEVELS = 10  # of magnitude; levels 1 .. LEVELS - 1 are drawn
DRAWS = 4 * ROUNDS
GREY = 127
OPERATIONS = (
    "identity",
    "autocontrast",
    "equalize",
    "invert",
    "posterize",
    "solarize",
    "solarize_add",
    "brightness",
    "contrast",
    "color",
    "sharpness",
    "rotate",
    "shear_x",
    "shear_y",
    "translate_x",
    "translate_y",
)


def random_operations(
    images: Tensor, draws: Tensor, table: Tensor | None = None, *, cutout: int = 0, channels_last: bool = False
) -> Tensor:
    """Two random operations an image, then one move of its pixels, a grey square, and a float for each byte.

        operation = OPERATIONS[floor(16 u_0)] if u_2 < 1/2, else identity     u: four draws a round
        m = (1 + floor(9 u_1)) / 10,  s = -1 if u_3 < 1/2, else 1             m to float32 for values
        v' = clamp(round(f(v)), 0, 255) after each round, f in float32 by the formulas of `fastlnl.augment`
        column = floor(a x + b y + d + (W - 1) / 2 + 1/2 + 10^-9), x and y from the centre, row likewise, in float64
        out[b, c, y, x] = table[c, v'[row, column]];  table[c, 0] outside, table[c, 127] inside the square

    Rounding is to even. The map (a, b, d) is that of both rounds together. Row and column of the square's centre are
    floor(H u_8) and floor(W u_9), its first pixel is cutout // 2 before it, and it is clipped at the border.

    Args:
        images: (B, 1 or 3, H, W) float32, whole numbers 0..255, any strides; other numbers give no defined picture.
        draws: (B, 8 or more, 10 or more for a square) float in [0, 1).
        table: (ch, 256) float32, the float that each byte becomes; None for its own value.
        cutout: side of the square in pixels, 0 for none.
        channels_last: memory format of the result.

    Returns:
        (B, ch, H, W) float32.

    Raises:
        ShapeError: shapes, types or devices do not fit.
        ValueError: cutout is negative.

    Deterministic, every bit the same on every backend: decisions are taken at 10^-9 of a pixel, sines may differ at
    10^-15. Source: Cubuk et al. 2020; DeVries and Taylor 2017.
    """
    if cutout < 0:
        raise ValueError(f"cutout is {cutout} but must be at least 0; use 0 for no square")
    needed = DRAWS + 2 if cutout else DRAWS
    if images.dim() != 4 or images.shape[1] not in (1, 3) or draws.dim() != 2 or draws.shape[1] < needed:
        raise ShapeError(
            f"images has shape {tuple(images.shape)} and draws {tuple(draws.shape)}; expected (B, 1 or 3, H, W) and "
            f"(B, {needed} or more)"
        )
    if images.dtype != torch.float32:
        raise ShapeError(f"images is {describe(images)}; expected float32 with values 0..255")
    if len(draws) != len(images) or not draws.is_floating_point():
        raise ShapeError(f"draws is {describe(draws)}; expected a row of floats for each of {len(images)} images")
    channels = images.shape[1]
    if table is None:
        table = torch.arange(256, dtype=torch.float32, device=images.device).expand(channels, 256)
    if table.shape != (channels, 256) or table.dtype != torch.float32:
        raise ShapeError(f"table is {describe(table)}; expected ({channels}, 256) float32")
    for name, tensor in (("draws", draws), ("table", table)):
        if tensor.device != images.device:
            raise ShapeError(f"{name} is on {tensor.device} but images is on {images.device}; move one of them")
    if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
        images = images.contiguous()
    function = backend.implementation("random_operations", images)
    made: Tensor = function(
        images.detach(), draws.double().contiguous(), table.contiguous(), int(cutout), channels_last
    )
    return made
