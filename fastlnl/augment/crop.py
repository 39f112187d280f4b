"""Random crop and flip of a batch on its device."""

import torch
import torch.nn.functional as F
from torch import Tensor

from fastlnl.errors import ShapeError


def crop_flip(images: Tensor, draws: Tensor, padding: int = 4) -> Tensor:
    """Random crop after zero padding, and horizontal flip of every second image: the usual CIFAR recipe.

    The randomness is an argument, so the result depends on the samples and not on their batch:

        draws = uniform(seed, "crop_flip", index, draws=3, epoch=epoch, view=view)

    Args:
        images: (B, ch, H, W), any type and memory format. Crop before normalising: padded pixels are then black.
        draws: (B, 3) in [0, 1): the vertical and the horizontal shift, and the flip (below one half).
        padding: pixels added on each side; shifts are uniform over -padding .. padding.

    Returns:
        (B, ch, H, W), type and memory format of `images`.

    Raises:
        ShapeError: images is not (B, ch, H, W), or draws is not (B, 3).

    Deterministic given `draws`. Source: He et al. 2016, section 4.2.
    """
    if images.ndim != 4:
        raise ShapeError(f"images has shape {tuple(images.shape)} but crop_flip needs (B, ch, H, W)")
    if draws.shape != (len(images), 3):
        raise ShapeError(f"draws has shape {tuple(draws.shape)} but {len(images)} images need ({len(images)}, 3)")
    batch, channels, height, width = images.shape
    offset = (draws[:, :2] * (2 * padding + 1)).long()
    x = torch.arange(width, device=images.device)
    x = torch.where(draws[:, 2:] < 0.5, width - 1 - x, x)  # (B, W)
    row = offset[:, :1] + torch.arange(height, device=images.device)  # (B, H)
    pixel = row[:, :, None] * (width + 2 * padding) + (offset[:, 1:] + x)[:, None, :]  # (B, H, W), in the padded image
    padded = F.pad(images, (padding,) * 4).flatten(2)
    cropped = padded.gather(2, pixel.reshape(batch, 1, height * width).expand(-1, channels, -1)).view_as(images)
    if images.is_contiguous(memory_format=torch.channels_last):
        return cropped.contiguous(memory_format=torch.channels_last)
    return cropped
