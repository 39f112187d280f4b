"""augment_batch on the GPU: a program takes pixels of one image and walks its channels; and draws there."""

import zlib

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.augment_batch import Crop

PIXELS = 1024


@triton.jit
def two_draws(id_, epoch, block, key):
    """Two numbers in [0, 1) of `fastlnl.philox.uniform`."""
    low, high = (id_ & 0xFFFFFFFF).to(tl.uint32), ((id_ >> 32) & 0xFFFFFFFF).to(tl.uint32)
    a, b, c, d = tl.philox(key, low, high, epoch.to(tl.uint32), block.to(tl.uint32))
    first = (a >> 5).to(tl.int64) * 67108864 + (b >> 6).to(tl.int64)
    second = (c >> 5).to(tl.int64) * 67108864 + (d >> 6).to(tl.int64)
    return first.to(tl.float64) * 1.1102230246251565e-16, second.to(tl.float64) * 1.1102230246251565e-16


@triton.jit(do_not_specialize=["key", "epoch", "number"])
def augment_batch_kernel(images, index, table, out, num_samples, key, epoch, number, padding, flip, cutout,
                         H: tl.constexpr, W: tl.constexpr, CH: tl.constexpr, RANDOM: tl.constexpr,
                         IMAGES_LAST: tl.constexpr, OUT_LAST: tl.constexpr, PIXELS: tl.constexpr):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    pixel = tl.program_id(1) * PIXELS + tl.arange(0, PIXELS)
    y, x = pixel // W, pixel % W
    id_ = tl.load(index + b + tl.zeros([1], tl.int64))
    there = (id_ >= 0) & (id_ < num_samples)
    row, column, cut = y, x, pixel < 0
    if RANDOM:
        counter = (number.to(tl.int64) << 16) + id_ * 0
        u0, u1 = two_draws(id_, epoch + id_ * 0, counter, key)
        u2, u3 = two_draws(id_, epoch + id_ * 0, counter + 1, key)
        u4, _unused = two_draws(id_, epoch + id_ * 0, counter + 2, key)
        row = y + (u0 * (2 * padding + 1)).to(tl.int32) - padding
        mirrored = (flip != 0) & (u2 < 0.5)
        column = tl.where(mirrored, W - 1 - x, x) + (u1 * (2 * padding + 1)).to(tl.int32) - padding
        from_top = y - (u3 * H).to(tl.int32) + cutout // 2
        from_left = x - (u4 * W).to(tl.int32) + cutout // 2
        cut = (from_top >= 0) & (from_top < cutout) & (from_left >= 0) & (from_left < cutout)
    inside = there & (row >= 0) & (row < H) & (column >= 0) & (column < W) & (pixel < H * W)
    source = row * W + column
    for c in tl.static_range(CH):
        place = source * CH + c if IMAGES_LAST else source + c * H * W
        byte = tl.load(images + id_ * (CH * H * W) + place, mask=inside, other=0).to(tl.int32)
        value = tl.where(cut | (id_ < 0) | (id_ >= num_samples), 0.0, tl.load(table + c * 256 + byte))
        target = pixel * CH + c if OUT_LAST else pixel + c * H * W
        tl.store(out + b * (CH * H * W) + target, value, mask=pixel < H * W)


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
    shape = (height, width, channels) if channels_last else (channels, height, width)
    out = torch.empty(len(views), len(index), *shape, device=images.device)
    key = seed + (zlib.crc32(stream.encode()) << 32)
    if out.numel() > 0:
        for made, view in zip(out.unbind(0), views, strict=True):
            augment_batch_kernel[(len(index), triton.cdiv(height * width, PIXELS))](
                images, index, table, made, num_samples, key, epoch, view.number, view.padding, int(view.flip),
                view.cutout, H=height, W=width, CH=channels, RANDOM=view.padding > 0 or view.flip or view.cutout > 0,
                IMAGES_LAST=not images.is_contiguous(), OUT_LAST=channels_last, PIXELS=PIXELS,
            )  # fmt: skip
    return tuple((out.permute(0, 1, 4, 2, 3) if channels_last else out).unbind(0))
