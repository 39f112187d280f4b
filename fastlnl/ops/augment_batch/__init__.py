"""Images by id, cropped, flipped, cut out and normalised in one pass from bytes to floats, several views at once."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe

__all__ = ["Crop", "augment_batch"]
WORD = 2**32


class Crop(NamedTuple):
    """What happens to an image on its way into a view; without arguments nothing does.

    Attributes:
        padding: black pixels added on each side; the crop's shift is uniform over -padding .. padding, both ways.
        flip: mirror every second image.
        cutout: side of a square around a random pixel that is set to 0, clipped at the border; 0 for none.
        number: of the view, part of what its random numbers are keyed by.
    """

    padding: int = 0
    flip: bool = False
    cutout: int = 0
    number: int = 0


def augment_batch(
    images: Tensor,
    index: Tensor,
    views: Sequence[Crop],
    table: Tensor,
    *,
    seed: int,
    stream: str,
    epoch: int,
    channels_last: bool = False,
) -> tuple[Tensor, ...]:
    """Float views of the images with these ids.

        u = uniform(seed, stream, index, draws=5, epoch=epoch, view=view.number)        see fastlnl.philox
        top, left = floor((2 padding + 1) u_0), floor((2 padding + 1) u_1),  mirrored if flip and u_2 < 1/2
        row, column of the square's centre = floor(H u_3), floor(W u_4), first pixel cutout // 2 before it
        out[b, c, y, x] = table[c, pixel of the padded image at (y + top, x' + left)],   x' = W - 1 - x if mirrored

    and 0 inside the square. A sample's view depends on (seed, stream, epoch, id, view number) and not on its batch.

    Args:
        images: (N, ch, H, W) uint8, contiguous or channels_last.
        index: (B,) int64 ids on the same device, which may repeat; one outside [0, N), such as the -1 of padding,
            gives an image of zeros.
        views: what to make of each image.
        table: (ch, 256) float32, the float that each byte becomes. One rounding for all backends: they copy it.
        seed, epoch: in [0, 2^32). stream: what the numbers are for.
        channels_last: memory format of the views.

    Returns:
        a (B, ch, H, W) float32 for each view.

    Raises:
        ShapeError: shapes, types, strides or devices do not fit.
        ValueError: seed, epoch or a number of a view is outside its range.

    Deterministic, every bit the same on every backend. Source: He et al. 2016, section 4.2 (crop and flip); DeVries
    and Taylor 2017 (cut square).
    """
    if images.dim() != 4 or images.dtype != torch.uint8:
        raise ShapeError(f"images is {describe(images)}; expected (N, ch, H, W) uint8")
    if not (images.is_contiguous() or images.is_contiguous(memory_format=torch.channels_last)):
        raise ShapeError(f"images has strides {images.stride()}; expected a contiguous or channels_last tensor")
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ShapeError(f"index is {describe(index)}; expected (B,) int64")
    if table.shape != (images.shape[1], 256) or table.dtype != torch.float32:
        raise ShapeError(f"table is {describe(table)}; expected ({images.shape[1]}, 256) float32")
    for name, tensor in (("index", index), ("table", table)):
        if tensor.device != images.device:
            raise ShapeError(f"{name} is on {tensor.device} but images is on {images.device}; move one of them")
    for name, value in (("seed", seed), ("epoch", epoch)):
        if not 0 <= value < WORD:
            raise ValueError(f"{name} is {value} but must be in [0, 2^32); choose a smaller, non-negative number")
    for view in views:
        if view.padding < 0 or view.cutout < 0 or not 0 <= view.number < 2**16:
            raise ValueError(f"a view is {view}; padding and cutout must be at least 0 and number in [0, 2^16)")
    function = backend.implementation("augment_batch", table)
    made: tuple[Tensor, ...] = function(
        images, index.contiguous(), tuple(views), table.contiguous(), seed, stream, epoch, channels_last
    )
    return made
