"""random_operations in plain torch: a hundred and fifty small operations over the whole batch."""

import math

import torch
from torch import Tensor

from fastlnl.ops.random_operations import DRAWS, GREY, LEVELS, OPERATIONS, ROUNDS


def random_operations(images: Tensor, draws: Tensor, table: Tensor, cutout: int, channels_last: bool) -> Tensor:
    centre, images = draws[:, DRAWS : DRAWS + 2], images.contiguous()
    matrix = torch.eye(2, dtype=torch.float64, device=images.device).expand(len(images), 2, 2)
    move = torch.zeros(len(images), 2, dtype=torch.float64, device=images.device)
    for turn in draws[:, :DRAWS].unflatten(1, (ROUNDS, 4)).unbind(1):
        which, magnitude, whether, sign = turn.unbind(1)
        operation = torch.where(whether < 0.5, (which * len(OPERATIONS)).long(), 0)
        level = (1 + (magnitude * (LEVELS - 1)).floor()) / LEVELS
        images = change_values(images, operation, level.float())
        # Where a pixel comes from: first back through the last move, then through the earlier ones.
        turned, moved = backward_map(operation, torch.where(sign < 0.5, -level, level), images.shape[2:])
        move = move + (matrix * moved[:, None]).sum(2)
        matrix = (matrix[:, :, :, None] * turned[:, None]).sum(2)
    images = move_pixels(images, matrix, move)
    if cutout > 0:
        images = cut_square(images, centre, cutout, GREY)
    made = table[torch.arange(images.shape[1], device=images.device)[:, None, None], images.long()]
    return made.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format)


def is_(operation: Tensor, name: str) -> Tensor:
    return operation == OPERATIONS.index(name)


def luminance(x: Tensor) -> Tensor:
    """Grey value of (B, 1 or 3, ...) in the weights of ITU-R BT.601."""
    return 0.299 * x[:, 0] + 0.587 * x[:, 1] + 0.114 * x[:, 2] if x.shape[1] == 3 else x[:, 0]


def change_values(images: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """One round of the operations on values: a look-up table for each channel, then a blend with a smoother image."""
    batch, channels = images.shape[:2]
    byte = images.long().flatten(2)  # (B, ch, HW)
    count = torch.zeros(batch, channels, 256, dtype=torch.int64, device=images.device)
    count.scatter_add_(2, byte, torch.ones_like(byte))
    table = value_table(count, operation, level)
    looked_up = table.gather(2, byte).view_as(images)
    factor = (0.1 + 1.8 * level)[:, None, None, None]
    grey = luminance(images)[:, None].round()
    smooth = images.clone()  # the border stays as it is
    if min(images.shape[2:]) > 2:
        three = images[..., :-2] + images[..., 1:-1] + images[..., 2:]
        nine = three[..., :-2, :] + three[..., 1:-1, :] + three[..., 2:, :]
        smooth[..., 1:-1, 1:-1] = nine.add_(images[..., 1:-1, 1:-1], alpha=4).div_(13).round_()
    which = operation[:, None, None, None]
    base = torch.where(is_(which, "color"), grey, smooth)
    blended = (base + factor * (images - base)).round().clamp(0, 255)
    return torch.where(is_(which, "color") | is_(which, "sharpness"), blended, looked_up)


def value_table(count: Tensor, operation: Tensor, level: Tensor) -> Tensor:
    """(B, ch, 256) float32: what each byte of each channel becomes, from the histograms (B, ch, 256)."""
    v = torch.arange(256, device=count.device, dtype=torch.float32)
    which, level = operation[:, None, None], level[:, None, None]
    factor = 0.1 + 1.8 * level
    there = count > 0
    low = torch.where(there, v, 255.0).amin(2, keepdim=True)
    high = torch.where(there, v, 0.0).amax(2, keepdim=True)
    span = high - low
    stretched = torch.where(span > 0, (v - low) * (255 / span.clamp(min=1)), v)
    # Equalize: the step is the number of pixels without those of the highest byte, over 255.
    before = count.cumsum(2) - count
    highest = torch.where(v == high, count, 0).sum(2, keepdim=True)
    step = (count.sum(2, keepdim=True) - highest) // 255
    flat = torch.where(step > 0, (before + step // 2) // step.clamp(min=1), v.long()).float()
    grey = luminance((count * v.long()).sum(2) / count.sum(2).clamp(min=1)).round()[:, None, None]
    coarse = 2.0 ** (4 - (4 * level).floor())
    table = v.expand(count.shape)
    for name, values in (
        ("autocontrast", stretched),
        ("equalize", flat),
        ("invert", 255 - v),
        ("posterize", (v / coarse).floor() * coarse),
        ("solarize", torch.where(v < 256 - 256 * level, v, 255 - v)),
        ("solarize_add", torch.where(v < 128, v + (110 * level).floor(), v)),
        ("brightness", factor * v),
        ("contrast", grey + factor * (v - grey)),
    ):
        table = torch.where(is_(which, name), values, table)
    return table.round().clamp(0, 255)


def backward_map(operation: Tensor, level: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(B, 2, 2) and (B, 2) float64: source = matrix @ (x, y) + move, in pixels from the centre; level has a sign."""
    angle = torch.where(is_(operation, "rotate"), level * (30 / 180 * math.pi), 0.0)
    cosine, sine = angle.cos(), angle.sin()
    zero = torch.zeros_like(level)
    shear_x = torch.where(is_(operation, "shear_x"), 0.3 * level, zero)
    shear_y = torch.where(is_(operation, "shear_y"), 0.3 * level, zero)
    matrix = torch.stack((cosine, shear_x - sine, shear_y + sine, cosine), 1).view(-1, 2, 2)
    height, width = shape
    x = torch.where(is_(operation, "translate_x"), 0.3 * width * level, zero)
    y = torch.where(is_(operation, "translate_y"), 0.3 * height * level, zero)
    return matrix, torch.stack((x, y), 1)


def move_pixels(images: Tensor, matrix: Tensor, move: Tensor) -> Tensor:
    """Each pixel from the nearest one at matrix @ (x, y) + move, black where that is outside."""
    channels, height, width = images.shape[1:]
    y = torch.arange(height, device=images.device)[:, None] - (height - 1) / 2
    x = torch.arange(width, device=images.device) - (width - 1) / 2
    a, b, c, d = matrix.flatten(1)[:, :, None, None].unbind(1)
    # Twelve digits decide: a pixel exactly between two others goes the same way on every device.
    column = (((a * x + b * y) + move[:, 0, None, None]) + (width - 1) / 2 + 0.5 + 1e-9).floor().long()
    row = (((c * x + d * y) + move[:, 1, None, None]) + (height - 1) / 2 + 0.5 + 1e-9).floor().long()
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    source = torch.where(inside, row * width + column, 0).flatten(1)[:, None].expand(-1, channels, -1)
    found = images.flatten(2).gather(2, source).view_as(images)
    return torch.where(inside[:, None], found, 0.0)


def cut_square(images: Tensor, draws: Tensor, side: int, value: float) -> Tensor:
    """The images with a square of one value around a random pixel, clipped at the border.

    Args:
        images: (B, ch, H, W) float. draws: (B, 2) in [0, 1): row and column of its centre.
        side: of the square, in pixels.

    Returns:
        (B, ch, H, W), as `images`.

    Deterministic given `draws`. Source: DeVries and Taylor 2017.
    """
    height, width = images.shape[2:]
    top, left = (draws[:, 0] * height).long() - side // 2, (draws[:, 1] * width).long() - side // 2
    row = torch.arange(height, device=images.device)[:, None] - top[:, None, None]
    column = torch.arange(width, device=images.device) - left[:, None, None]
    cut = (row >= 0) & (row < side) & (column >= 0) & (column < side)
    return torch.where(cut[:, None], value, images)
