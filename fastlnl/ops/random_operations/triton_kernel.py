"""random_operations on the GPU: three launches instead of 150; a program takes the values of one image and round.

The values of a round go to bytes in a scratch array, since smoothing reads neighbours; then blocks of pixels are moved.
Sums and products stay apart (`enable_fp_fusion=False`): a fused one would round otherwise than the reference.
"""

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.random_operations import DRAWS, GREY, OPERATIONS

BLOCK = 1024
(
    _, AUTOCONTRAST, EQUALIZE, INVERT, POSTERIZE, SOLARIZE, SOLARIZE_ADD, BRIGHTNESS, CONTRAST, COLOR, SHARPNESS,
    ROTATE, SHEAR_X, SHEAR_Y, TRANSLATE_X, TRANSLATE_Y,
) = (tl.constexpr(number) for number in range(len(OPERATIONS)))  # fmt: skip
RADIANS = tl.constexpr(30 / 180 * math.pi)
SQUARE_VALUE, FIRST_OF_SQUARE = tl.constexpr(GREY), tl.constexpr(DRAWS)


@triton.jit
def whole(x):
    """Nearest whole number of a float32 below 2^22, ties to even."""
    return (x + 12582912.0) - 12582912.0


@triton.jit
def as_byte(x):
    return tl.minimum(tl.maximum(whole(x), 0.0), 255.0).to(tl.int32)


@triton.jit
def turn_of(u):
    """Operation, level (float64) and its signed twin from the four draws of a round."""
    operation = tl.where(tl.load(u + 2) < 0.5, (tl.load(u) * 16).to(tl.int32), 0)
    level = (1.0 + tl.floor(tl.load(u + 1) * 9)) / 10
    return operation, level, tl.where(tl.load(u + 3) < 0.5, -level, level)


@triton.jit
def bytes_at(plane, pixel, there, PIXEL_STEP: tl.constexpr):
    return tl.load(plane + pixel * PIXEL_STEP, mask=there, other=0).to(tl.int32) & 255


@triton.jit
def mean_of(plane, PIXELS: tl.constexpr, PIXEL_STEP: tl.constexpr, BLOCK: tl.constexpr):
    total = tl.zeros([1], tl.int64)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        total += tl.sum(bytes_at(plane, pixel, pixel < PIXELS, PIXEL_STEP), 0)
    return tl.div_rn(total.to(tl.float32), tl.full([1], PIXELS, tl.float32))


@triton.jit
def count_bytes(plane, PIXELS: tl.constexpr, PIXEL_STEP: tl.constexpr, BLOCK: tl.constexpr):
    count = tl.zeros([256], tl.int32)
    for start in range(0, PIXELS, BLOCK):
        pixel = start + tl.arange(0, BLOCK)
        count += tl.histogram(bytes_at(plane, pixel, pixel < PIXELS, PIXEL_STEP), 256, mask=pixel < PIXELS)
    return count


@triton.jit
def luminance(red, green, blue):
    return whole((0.299 * red + 0.587 * green) + 0.114 * blue)


@triton.jit
def smoothed(plane, pixel, W: tl.constexpr, PIXEL_STEP: tl.constexpr, inner):
    total = 4 * bytes_at(plane, pixel, inner, PIXEL_STEP)
    for dy in tl.static_range(-1, 2):
        for dx in tl.static_range(-1, 2):
            total += bytes_at(plane, pixel + dy * W + dx, inner, PIXEL_STEP)
    return ((total + 6) // 13).to(tl.float32)  # thirteenths are never half-way


@triton.jit
def change_values_kernel(given, made, draws, num_draws, TURN: tl.constexpr, H: tl.constexpr, W: tl.constexpr,
                         CH: tl.constexpr, PLANE_STEP: tl.constexpr, PIXEL_STEP: tl.constexpr,
                         BLOCK: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    operation, precise, _signed = turn_of(draws + image * num_draws + 4 * TURN)
    level = precise.to(tl.float32)
    factor = 0.1 + 1.8 * level
    first = given + image * (CH * H * W)
    grey = tl.zeros([1], tl.float32)
    if operation == CONTRAST:
        grey = whole(mean_of(first, H * W, PIXEL_STEP, BLOCK))
        if CH == 3:
            red, green = mean_of(first, H * W, PIXEL_STEP, BLOCK), mean_of(first + PLANE_STEP, H * W, PIXEL_STEP, BLOCK)
            grey = luminance(red, green, mean_of(first + 2 * PLANE_STEP, H * W, PIXEL_STEP, BLOCK))
    for channel in tl.static_range(CH):
        plane = first + channel * PLANE_STEP
        every = tl.arange(0, 256)
        table = every
        if (operation == AUTOCONTRAST) | (operation == EQUALIZE):
            count = count_bytes(plane, H * W, PIXEL_STEP, BLOCK)
            high = tl.max(tl.where(count > 0, every, 0), 0)
            if operation == EQUALIZE:
                step = (H * W - tl.sum(tl.where(every == high, count, 0), 0)) // 255
                before = tl.cumsum(count, 0) - count
                table = tl.where(step > 0, tl.minimum((before + step // 2) // tl.maximum(step, 1), 255), every)
            else:
                low = tl.min(tl.where(count > 0, every, 255), 0)
                span = tl.maximum(high - low, 1).to(tl.float32)
                gain = tl.div_rn(tl.full([1], 1.0, tl.float32), span + tl.zeros([1], tl.float32)) * 255.0
                table = tl.where(high > low, as_byte((every - low).to(tl.float32) * gain), every)
        for start in range(0, H * W, BLOCK):
            pixel = start + tl.arange(0, BLOCK)
            there = pixel < H * W
            byte = bytes_at(plane, pixel, there, PIXEL_STEP)
            value = byte.to(tl.float32)
            new = byte
            if (operation == AUTOCONTRAST) | (operation == EQUALIZE):
                new = tl.gather(table, byte, 0)
            elif operation == INVERT:
                new = 255 - byte
            elif operation == POSTERIZE:
                shift = 4 - (4 * level).to(tl.int32)
                new = (byte >> shift) << shift
            elif operation == SOLARIZE:
                new = tl.where(value < 256 - 256 * level, byte, 255 - byte)
            elif operation == SOLARIZE_ADD:
                new = tl.where(byte < 128, tl.minimum(byte + (110 * level).to(tl.int32), 255), byte)
            elif operation == BRIGHTNESS:
                new = as_byte(factor * value)
            elif operation == CONTRAST:
                new = as_byte(grey + factor * (value - grey))
            elif operation == COLOR:
                if CH == 3:
                    red = bytes_at(first, pixel, there, PIXEL_STEP).to(tl.float32)
                    green = bytes_at(first + PLANE_STEP, pixel, there, PIXEL_STEP).to(tl.float32)
                    blue = bytes_at(first + 2 * PLANE_STEP, pixel, there, PIXEL_STEP).to(tl.float32)
                    own = luminance(red, green, blue)
                    new = as_byte(own + factor * (value - own))
            elif operation == SHARPNESS:
                y, x = pixel // W, pixel % W
                inner = (y > 0) & (y < H - 1) & (x > 0) & (x < W - 1)
                smooth = smoothed(plane, pixel, W, PIXEL_STEP, inner)
                new = tl.where(inner, as_byte(smooth + factor * (value - smooth)), byte)
            tl.store(made + image * (CH * H * W) + channel * H * W + pixel, new.to(tl.int8), mask=there)


@triton.jit
def backward_map(operation, level, H: tl.constexpr, W: tl.constexpr):
    """Diagonal, b, c and both moves in float64; a rotation is below half a radian, where ten terms are exact."""
    angle = tl.where(operation == ROTATE, level * RADIANS, 0.0)
    square = angle * angle
    cosine, sine = square * 0 + 1.0, square * 0 + 1.0
    for term in tl.static_range(18, 0, -2):
        cosine = 1.0 - cosine * square / ((term - 1) * term)
        sine = 1.0 - sine * square / (term * (term + 1))
    sine = sine * angle
    b = tl.where(operation == SHEAR_X, 0.3 * level, 0.0) - sine
    c = tl.where(operation == SHEAR_Y, 0.3 * level, 0.0) + sine
    right = tl.where(operation == TRANSLATE_X, 0.3 * W * level, 0.0)
    return cosine, b, c, right, tl.where(operation == TRANSLATE_Y, 0.3 * H * level, 0.0)


@triton.jit
def move_pixels_kernel(given, out, draws, table, num_draws, cutout, H: tl.constexpr, W: tl.constexpr, CH: tl.constexpr,
                       CUT: tl.constexpr, PLANE_STEP: tl.constexpr, PIXEL_STEP: tl.constexpr,
                       BLOCK: tl.constexpr):  # fmt: skip
    image = tl.program_id(0).to(tl.int64)
    u = draws + image * num_draws
    operation, _level, signed = turn_of(u)
    a0, b0, c0, right0, down0 = backward_map(operation, signed, H, W)
    operation, _level, signed = turn_of(u + 4)
    a1, b1, c1, right1, down1 = backward_map(operation, signed, H, W)
    right, down = right0 + (a0 * right1 + b0 * down1), down0 + (c0 * right1 + a0 * down1)
    a, b, c, d = a0 * a1 + b0 * c1, a0 * b1 + b0 * a1, c0 * a1 + a0 * c1, c0 * b1 + a0 * a1
    pixel = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    y, x = pixel // W, pixel % W
    up, along = y.to(tl.float64) - (H - 1) / 2, x.to(tl.float64) - (W - 1) / 2
    column = tl.floor(((a * along + b * up) + right) + (W - 1) / 2 + 0.5 + 1e-9).to(tl.int32)
    row = tl.floor(((c * along + d * up) + down) + (H - 1) / 2 + 0.5 + 1e-9).to(tl.int32)
    there = pixel < H * W
    inside = there & (row >= 0) & (row < H) & (column >= 0) & (column < W)
    cut = pixel < 0
    if CUT:
        from_top = y - (tl.load(u + FIRST_OF_SQUARE) * H).to(tl.int32) + cutout // 2
        from_left = x - (tl.load(u + FIRST_OF_SQUARE + 1) * W).to(tl.int32) + cutout // 2
        cut = (from_top >= 0) & (from_top < cutout) & (from_left >= 0) & (from_left < cutout)
    for channel in tl.static_range(CH):
        byte = bytes_at(given + image * (CH * H * W) + channel * H * W, row * W + column, inside, 1)
        value = tl.load(table + 256 * channel + tl.where(cut, SQUARE_VALUE, byte))
        tl.store(out + image * (CH * H * W) + channel * PLANE_STEP + pixel * PIXEL_STEP, value, mask=there)


def random_operations(images: Tensor, draws: Tensor, table: Tensor, cutout: int, channels_last: bool) -> Tensor:
    batch, channels, height, width = images.shape
    pixels, num_draws = height * width, draws.shape[1]
    shape = (height, width, channels) if channels_last else (channels, height, width)
    out = torch.empty(batch, *shape, device=images.device)
    if out.numel() > 0:
        first, second = torch.empty(2, batch, channels * pixels, dtype=torch.int8, device=images.device).unbind(0)
        common = {"H": height, "W": width, "CH": channels, "BLOCK": BLOCK, "enable_fp_fusion": False}
        # By what contiguity says: strides of a dimension of size one may be anything.
        given = {"PLANE_STEP": pixels, "PIXEL_STEP": 1}
        last = {"PLANE_STEP": 1, "PIXEL_STEP": channels}
        change_values_kernel[(batch,)](
            images, first, draws, num_draws, TURN=0, **(given if images.is_contiguous() else last), **common
        )
        change_values_kernel[(batch,)](first, second, draws, num_draws, TURN=1, **given, **common)
        move_pixels_kernel[(batch, triton.cdiv(pixels, BLOCK))](
            second, out, draws, table, num_draws, cutout, CUT=cutout > 0, **(last if channels_last else given),
            **common,
        )  # fmt: skip
    return out.permute(0, 3, 1, 2) if channels_last else out
