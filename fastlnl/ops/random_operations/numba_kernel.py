"""random_operations on the CPU: image by image in bytes, and of the operations only those that were drawn."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_float32, as_float64, take
from fastlnl.ops.random_operations import DRAWS, GREY, LEVELS, OPERATIONS, ROUNDS

SERIAL_BELOW = 1 << 18  # floats written
NUM_OPERATIONS = len(OPERATIONS)
(
    _, AUTOCONTRAST, EQUALIZE, INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD, BRIGHTNESS, CONTRAST, COLOR, SHARPNESS,
    ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y,
) = range(NUM_OPERATIONS)  # fmt: skip
_f = np.float32
RED, GREEN, BLUE = _f(0.299), _f(0.587), _f(0.114)
ZERO, ONE, FOUR, THIRTEEN, TOP, LEAST, GAIN = _f(0), _f(1), _f(4), _f(13), _f(255), _f(0.1), _f(1.8)
BYTES, HALF, ADDED = _f(256), _f(128), _f(110)
MAGIC = _f(3 << 22)  # of numbers below 2^22, adding and subtracting it leaves the nearest whole one, ties to even


@njit(inline="always")
def whole(x):
    return (x + MAGIC) - MAGIC


@njit(inline="always")
def as_byte(x):
    return np.uint8(np.int32(min(max(whole(x), ZERO), TOP)))


@njit
def histogram(plane, count):
    count[:] = 0
    for p in range(len(plane)):
        count[plane[p]] += 1


@njit
def stretch(plane, count, lookup):
    """Autocontrast; 255 / span is a reciprocal and a product, as torch has it."""
    histogram(plane, count)
    low, high = 0, 255
    while low < 255 and count[low] == 0:
        low += 1
    while high > 0 and count[high] == 0:
        high -= 1
    gain = (ONE / _f(high - low)) * TOP if high > low else ONE
    start = _f(low) if high > low else ZERO
    for v in range(256):
        lookup[v] = as_byte((_f(v) - start) * gain)


@njit
def flatten(plane, count, lookup):
    """Equalize: the step is the number of pixels without those of the highest byte, over 255."""
    histogram(plane, count)
    high = 255
    while high > 0 and count[high] == 0:
        high -= 1
    step, before = (len(plane) - count[high]) // 255, 0
    for v in range(256):
        lookup[v] = min((before + step // 2) // step, 255) if step > 0 else v
        before += count[v]


@njit
def fixed_table(operation, level, factor, lookup):
    """The operations that do not look at the image."""
    shift, limit = 4 - np.int64(FOUR * level), BYTES - BYTES * level
    added = np.int64(ADDED * level)
    for v in range(256):
        value = v
        if operation == INVERT or (operation == SOLARIZE and not _f(v) < limit):
            value = 255 - v
        elif operation == POSTERIZE:
            value = (v >> shift) << shift
        elif operation == SOLARIZE_ADD:
            value = min(v + added, 255) if v < 128 else v
        lookup[v] = as_byte(factor * _f(v)) if operation == BRIGHTNESS else np.uint8(value)


@njit
def look_up(plane, lookup):
    for p in range(len(plane)):
        plane[p] = lookup[plane[p]]


@njit(inline="always")
def luminance(red, green, blue):
    return whole((RED * _f(red) + GREEN * _f(green)) + BLUE * _f(blue))


@njit
def mean(plane):
    total = 0
    for p in range(len(plane)):
        total += plane[p]
    return _f(total) / _f(len(plane))


@njit
def blend_from_mean(work, factor, lookup):
    grey = whole(mean(work[0]))
    if len(work) == 3:
        grey = luminance(mean(work[0]), mean(work[1]), mean(work[2]))
    for v in range(256):
        lookup[v] = as_byte(grey + factor * (_f(v) - grey))
    for c in range(len(work)):
        look_up(work[c], lookup)


@njit
def blend_from_grey(red, green, blue, factor):
    for p in range(len(red)):
        grey = luminance(red[p], green[p], blue[p])
        red[p] = as_byte(grey + factor * (_f(red[p]) - grey))
        green[p] = as_byte(grey + factor * (_f(green[p]) - grey))
        blue[p] = as_byte(grey + factor * (_f(blue[p]) - grey))


@njit
def blend_from_smooth(plane, width, factor, made):
    """The inner pixels blended from their smoothed selves, by way of `made`; the border stays as it is."""
    for start in range(width, len(plane) - width, width):
        above, row, below = plane[start - width : start], plane[start : start + width], plane[start + width :]
        out = made[start : start + width]
        for x in range(1, width - 1):
            nine = _f(above[x - 1]) + _f(above[x]) + _f(above[x + 1])
            nine += _f(row[x - 1]) + _f(row[x]) + _f(row[x + 1])
            nine += _f(below[x - 1]) + _f(below[x]) + _f(below[x + 1])
            smooth = whole((nine + FOUR * _f(row[x])) / THIRTEEN)
            out[x] = as_byte(smooth + factor * (_f(row[x]) - smooth))
    for start in range(width, len(plane) - width, width):
        plane[start + 1 : start + width - 1] = made[start + 1 : start + width - 1]


@njit
def change_values(work, width, operation, level, made, count, lookup):
    """One round on the bytes (ch, HW) of an image, in place."""
    factor = LEAST + GAIN * level
    channels, pixels = work.shape
    if operation == CONTRAST:
        blend_from_mean(work, factor, lookup)
    elif operation == COLOR:
        if channels == 3:
            blend_from_grey(work[0], work[1], work[2], factor)
    elif operation == SHARPNESS:
        if min(width, pixels // width) > 2:
            for c in range(channels):
                blend_from_smooth(work[c], width, factor, made)
    elif AUTOCONTRAST <= operation <= BRIGHTNESS:
        if operation > EQUALIZE:
            fixed_table(operation, level, factor, lookup)
        for c in range(channels):
            if operation == AUTOCONTRAST:
                stretch(work[c], count, lookup)
            elif operation == EQUALIZE:
                flatten(work[c], count, lookup)
            look_up(work[c], lookup)


@njit(inline="always")
def backward_map(operation, level, height, width):
    """a, b, c, d and both moves: source = (a x + b y + move, c x + d y + move), in pixels from the centre."""
    diagonal, b, c = 1.0, 0.0, 0.0
    if operation == ROTATE:
        angle = level * (30 / 180 * math.pi)
        diagonal, b, c = math.cos(angle), -math.sin(angle), math.sin(angle)
    elif operation == SHEAR_X:
        b = 0.3 * level
    elif operation == SHEAR_Y:
        c = 0.3 * level
    right = 0.3 * width * level if operation == TRANSLATE_X else 0.0
    down = 0.3 * height * level if operation == TRANSLATE_Y else 0.0
    return diagonal, b, c, diagonal, right, down


@njit
def find_sources(a, b, c, d, right, down, height, width, source):
    """The pixel that each one comes from; -1 outside."""
    for row in range(height):
        y = row - (height - 1) / 2
        out = source[row * width : (row + 1) * width]
        for column in range(width):
            x = column - (width - 1) / 2
            # Twelve digits decide: a pixel exactly between two others goes the same way on every device.
            from_column = math.floor(((a * x + b * y) + right) + (width - 1) / 2 + 0.5 + 1e-9)
            from_row = math.floor(((c * x + d * y) + down) + (height - 1) / 2 + 0.5 + 1e-9)
            inside = (from_row >= 0) & (from_row < height) & (from_column >= 0) & (from_column < width)
            out[column] = np.int64(from_row * width + from_column) if inside else -1


@njit(f"void({', '.join(['int64'] * 15)})", cache=True, nogil=True, error_model="numpy")
def operate(
    cursor, images_, batch, channels, height, width, plane_step, pixel_step, draws_, num_draws, table_, cutout, out_,
    out_plane, out_pixel,
):  # fmt: skip
    """Steps in elements; rounds, move, square and floats of one image after another."""
    pixels = height * width
    work, made = np.empty((channels, pixels), np.uint8), np.empty(pixels, np.uint8)
    count, lookup, source = np.empty(256, np.int64), np.empty(256, np.uint8), np.empty(pixels, np.int64)
    while True:
        i = take(cursor, 1)
        if i >= batch:
            break
        u = as_float64(draws_ + 8 * i * num_draws)
        for channel in range(channels):
            given, plane = as_float32(images_ + 4 * (i * channels * pixels + channel * plane_step)), work[channel]
            for p in range(pixels):
                plane[p] = np.uint8(np.int32(given[p * pixel_step]))
        a, b, c, d, right, down = 1.0, 0.0, 0.0, 1.0, 0.0, 0.0
        moved = False
        for turn in range(0, 4 * ROUNDS, 4):
            operation = np.int64(u[turn] * NUM_OPERATIONS) if u[turn + 2] < 0.5 else 0
            if operation == 0:
                continue
            level = (1 + math.floor(u[turn + 1] * (LEVELS - 1))) / LEVELS
            if operation < ROTATE:
                change_values(work, width, operation, _f(level), made, count, lookup)
                continue
            level = -level if u[turn + 3] < 0.5 else level
            a1, b1, c1, d1, right1, down1 = backward_map(operation, level, height, width)
            # first back through the last move, then through the earlier ones
            right, down = right + (a * right1 + b * down1), down + (c * right1 + d * down1)
            a, b, c, d = a * a1 + b * c1, a * b1 + b * d1, c * a1 + d * c1, c * b1 + d * d1
            moved = True
        if moved:
            find_sources(a, b, c, d, right, down, height, width, source)
        top, left = 0, 0
        if cutout > 0:
            top, left = int(u[DRAWS] * height) - cutout // 2, int(u[DRAWS + 1] * width) - cutout // 2
        for channel in range(channels):
            floats, plane = as_float32(table_ + 1024 * channel), work[channel]
            out = as_float32(out_ + 4 * (i * channels * pixels + channel * out_plane))
            if moved:
                for p in range(pixels):
                    out[p * out_pixel] = floats[plane[source[p]]] if source[p] >= 0 else floats[0]
            else:
                for p in range(pixels):
                    out[p * out_pixel] = floats[plane[p]]
            for y in range(max(0, top), min(height, top + cutout)):
                for x in range(max(0, left), min(width, left + cutout)):
                    out[(y * width + x) * out_pixel] = floats[GREY]


def random_operations(images: Tensor, draws: Tensor, table: Tensor, cutout: int, channels_last: bool) -> Tensor:
    batch, channels, height, width = images.shape
    pixels = height * width
    out = torch.empty(batch, *((height, width, channels) if channels_last else (channels, height, width)))
    # By what contiguity says: strides of a dimension of size one may be anything.
    plane, pixel = (pixels, 1) if images.is_contiguous() else (1, channels)
    if out.numel() > 0:
        run = team.alone if out.numel() < SERIAL_BELOW else team.team.run
        run(
            operate, images.data_ptr(), batch, channels, height, width, plane, pixel, draws.data_ptr(), draws.shape[1],
            table.data_ptr(), cutout, out.data_ptr(), 1 if channels_last else pixels,
            channels if channels_last else 1,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2) if channels_last else out
