"""augment_batch in plain torch."""

import torch
from torch import Tensor

from fastlnl.ops.augment_batch import Crop
from fastlnl.philox import uniform


def augment_batch(
    images: Tensor,
    index: Tensor,
    views: tuple[Crop, ...],
    table: Tensor,
    seed: int,
    stream: str,
    epoch: int,
    channels_last: bool,
) -> tuple[Tensor, ...]:
    num_samples, channels, height, width = images.shape
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    there = ((index >= 0) & (index < num_samples))[:, None, None]
    y, x = torch.arange(height, device=index.device), torch.arange(width, device=index.device)
    channel = torch.arange(channels, device=index.device)[:, None, None]
    made = []
    for view in views:
        draws = uniform(seed, stream, index, 5, epoch, view.number)[:, :, None]  # (B, 5, 1)
        shift = (draws[:, :2] * (2 * view.padding + 1)).long() - view.padding
        mirrored = (draws[:, 2] < 0.5) & view.flip
        row = (y + shift[:, 0])[:, :, None]  # (B, H, 1)
        column = (torch.where(mirrored, width - 1 - x, x) + shift[:, 1])[:, None, :]  # (B, 1, W)
        inside = there & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        pixel = (index[:, None, None, None] * channels + channel) * height * width + (row * width + column)[:, None]
        pixel = torch.where(inside[:, None], pixel, 0)  # (B, ch, H, W), as if contiguous
        byte = torch.where(inside[:, None], images.take(pixel), 0) if num_samples else pixel
        from_top = y[:, None] - (draws[:, 3:4] * height).long() + view.cutout // 2  # (B, H, 1)
        from_left = x - (draws[:, 4:5] * width).long() + view.cutout // 2  # (B, 1, W)
        cut = (from_top >= 0) & (from_top < view.cutout) & (from_left >= 0) & (from_left < view.cutout)
        out = torch.where((there & ~cut)[:, None], table[channel, byte.long()], 0.0)
        made.append(out.contiguous(memory_format=memory_format))
    return tuple(made)
