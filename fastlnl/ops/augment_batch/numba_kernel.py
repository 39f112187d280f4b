"""augment_batch on the CPU: a team takes images; every byte goes through the table of floats straight to its place."""

import zlib

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_float32, as_int8, as_int64, take
from fastlnl.ops.augment_batch import Crop
from fastlnl.philox import KEY_STEPS, MASK, MULTIPLIERS, ROUNDS

SERIAL_BELOW = 1 << 18  # floats written
M0, M1, W0, W1 = *MULTIPLIERS, *KEY_STEPS


@njit(inline="always")
def philox(word0, word1, word2, word3, key0, key1):
    """Four random words of a counter, all in int64 as in fastlnl.philox."""
    for _ in range(ROUNDS):
        product0, product1 = word0 * M0, word2 * M1
        word0, word2 = ((product1 >> 32) & MASK) ^ word1 ^ key0, ((product0 >> 32) & MASK) ^ word3 ^ key1
        word1, word3 = product1 & MASK, product0 & MASK
        key0, key1 = (key0 + W0) & MASK, (key1 + W1) & MASK
    return word0, word1, word2, word3


@njit(inline="always")
def two_draws(id_, epoch, block, key0, key1):
    """Two numbers in [0, 1) of `fastlnl.philox.uniform`."""
    a, b, c, d = philox(id_ & MASK, (id_ >> 32) & MASK, epoch, block, key0, key1)
    return ((a >> 5) * 67108864 + (b >> 6)) * 2.0**-53, ((c >> 5) * 67108864 + (d >> 6)) * 2.0**-53


@njit(inline="always")
def fill(out, start, step, begin, end, value):
    for x in range(begin, end):
        out[start + x * step] = value


@njit(f"void({', '.join(['int64'] * 22)})", cache=True, nogil=True, error_model="numpy")
def augment(
    cursor, images, num_samples, channels, height, width, image_step, channel_step, pixel_step, index_, batch,
    views_, num_views, table, key0, key1, epoch, out_, out_image, out_channel, out_pixel, chunk,
):  # fmt: skip
    """Steps in elements; a row is `width` pixels, an image of the output `out_image` floats, a view `batch` images."""
    index, views, out, zero = as_int64(index_), as_int64(views_), as_float32(out_), np.float32(0)
    while True:
        first = take(cursor, chunk)
        if first >= num_views * batch:
            break
        for item in range(first, min(first + chunk, num_views * batch)):
            view, id_ = item // batch * 4, index[item % batch]
            padding, flip, cutout, counter = views[view], views[view + 1], views[view + 2], views[view + 3] << 16
            there = 0 <= id_ < num_samples
            top, left, mirrored, cut_top, cut_left = 0, 0, False, 0, 0
            if padding > 0 or flip != 0 or cutout > 0:
                u, v = two_draws(id_, epoch, counter, key0, key1)
                top, left = int(u * (2 * padding + 1)) - padding, int(v * (2 * padding + 1)) - padding
                u, v = two_draws(id_, epoch, counter + 1, key0, key1)
                mirrored = flip != 0 and u < 0.5
                u, _ = two_draws(id_, epoch, counter + 2, key0, key1)
                cut_top, cut_left = int(v * height) - cutout // 2, int(u * width) - cutout // 2
            # Columns begin .. end of the view lie inside the image; column x comes from `origin + x` or `origin - x`.
            direction = -1 if mirrored else 1
            origin = width - 1 + left if mirrored else left
            begin = min(max(0, left if mirrored else -left), width)
            end = max(begin, min(width, width + (left if mirrored else -left)))
            step = direction * pixel_step
            for y in range(height):
                row = y + top
                for c in range(channels):
                    at = item * out_image + c * out_channel + y * width * out_pixel
                    if not there:
                        fill(out, at, out_pixel, 0, width, zero)
                        continue
                    floats = as_float32(table + 1024 * c)
                    if row < 0 or row >= height:
                        fill(out, at, out_pixel, 0, width, floats[0])
                        continue
                    fill(out, at, out_pixel, 0, begin, floats[0])
                    fill(out, at, out_pixel, end, width, floats[0])
                    bytes_ = as_int8(images + id_ * image_step + c * channel_step + (row * width + origin) * pixel_step)
                    for x in range(begin, end):
                        out[at + x * out_pixel] = floats[bytes_[x * step] & 255]
                if cut_top <= y < cut_top + cutout:
                    for c in range(channels):
                        at = item * out_image + c * out_channel + y * width * out_pixel
                        fill(out, at, out_pixel, max(0, cut_left), min(width, cut_left + cutout), zero)


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
    batch, pixels = len(index), height * width
    shape = (height, width, channels) if channels_last else (channels, height, width)
    out = torch.empty(len(views), batch, *shape)
    crops = np.array(views, np.int64).reshape(-1, 4)
    # By what contiguity says: strides of a dimension of size one may be anything.
    plane, pixel = (pixels, 1) if images.is_contiguous() else (1, channels)
    run = team.alone if out.numel() < SERIAL_BELOW else team.team.run
    run(
        augment, images.data_ptr(), num_samples, channels, height, width, channels * pixels, plane, pixel,
        index.data_ptr(), batch, crops.ctypes.data, len(views), table.data_ptr(), seed, zlib.crc32(stream.encode()),
        epoch, out.data_ptr(), channels * pixels, 1 if channels_last else pixels, channels if channels_last else 1, 8,
    )  # fmt: skip
    return tuple((out.permute(0, 1, 4, 2, 3) if channels_last else out).unbind(0))
