"""erase_peaks on the GPU: one launch finds peaks, boxes and targets, a program an image; one writes both copies."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops import erase_peaks as contract
from fastlnl.ops.erase_peaks import ANCHORS, FILLS, FLOORS, ErasedPair, Masking, empty_like_images

CENTER = tl.constexpr(ANCHORS.index("center"))
UNIFORM, BLACK = tl.constexpr(FILLS.index("uniform_normalised")), tl.constexpr(FILLS.index("black"))
CLAMP, CLIP = tl.constexpr(FLOORS.index("clamp")), tl.constexpr(FLOORS.index("clip"))
RHO, RHO_SPAN = tl.constexpr(contract.ASPECT[0]), tl.constexpr(contract.ASPECT[1] - contract.ASPECT[0])
PIXELS, FEATURES, COLUMNS, ELEMENTS = 1024, 2048, 1024, 1024  # of a block: pixels, features, classes, image elements


@triton.jit
def neighbours(i, old: tl.constexpr, new: tl.constexpr):
    """The two old positions a new one lies between, and the share of the second."""
    place = (i.to(tl.float64) + 0.5) * (old / new) - 0.5
    place = tl.where(place > 0.0, place, 0.0)
    first = tl.floor(place).to(tl.int32)
    return first, tl.minimum(first + 1, old - 1), place - first.to(tl.float64)


@triton.jit
def resized(attention, pixel, H: tl.constexpr, W: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr):
    """Pixels of the map, bilinear with half-pixel centres, in float64."""
    y0, y1, t = neighbours(tl.minimum(pixel // WIDTH, HEIGHT - 1), H, HEIGHT)
    x0, x1, s = neighbours(pixel % WIDTH, W, WIDTH)
    above = (1.0 - s) * tl.gather(attention, y0 * W + x0, 0).to(tl.float64)
    above += s * tl.gather(attention, y0 * W + x1, 0).to(tl.float64)
    under = (1.0 - s) * tl.gather(attention, y1 * W + x0, 0).to(tl.float64)
    under += s * tl.gather(attention, y1 * W + x1, 0).to(tl.float64)
    return (1.0 - t) * above + t * under


@triton.jit
def level_of(v, lowest, norm, most, QUANTISE: tl.constexpr):
    """In float32: a float64 quotient of float32 numbers, rounded, is their float32 quotient."""
    level = ((v - lowest) / norm).to(tl.float32)
    if QUANTISE:
        share = (level.to(tl.float64) / most).to(tl.float32)
        level = tl.floor((share.to(tl.float64) * 255.0).to(tl.float32))
    return level


@triton.jit
def move_mass(target, out, b, ratio, C: tl.constexpr, FLOOR: tl.constexpr, COLUMNS: tl.constexpr):
    """The first highest entry of the row loses `ratio`, the others gain it in equal parts."""
    highest, top = tl.full([], float("-inf"), tl.float32), tl.full([], 0, tl.int32)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        t = tl.load(target + b * C + column, mask=column < C, other=float("-inf"))
        here = tl.max(t, 0)
        top = tl.where(here > highest, tl.min(tl.where(t == here, column, C - 1), 0), top)
        highest = tl.maximum(highest, here)
    moved = ratio
    if FLOOR == CLAMP:
        spare = highest.to(tl.float64) - 1.0 / C
        moved = tl.minimum(moved, tl.where(spare > 0.0, spare, 0.0))
    gain = moved / (C - 1 if C > 1 else 1)
    if C == 1:
        moved = 0.0 * ratio
    total = 0.0 * ratio
    if FLOOR == CLIP:
        for start in range(0, C, COLUMNS):
            column = start + tl.arange(0, COLUMNS)
            t = tl.load(target + b * C + column, mask=column < C, other=0.0).to(tl.float64)
            t = t + tl.where(column == top, -moved, gain)
            total += tl.sum(tl.where((t > 0.0) & (column < C), t, 0.0), 0)
    for start in range(0, C, COLUMNS):
        column = start + tl.arange(0, COLUMNS)
        t = tl.load(target + b * C + column, mask=column < C, other=0.0).to(tl.float64)
        t = t + tl.where(column == top, -moved, gain)
        if FLOOR == CLIP and C > 1:
            t = tl.where(t > 0.0, t, 0.0) / total
        tl.store(out + b * C + column, t.to(tl.float32), mask=column < C)


@triton.jit
def peaks_kernel(features, target, clean_prob, draws, kept, boxes, peaks, batch, F: tl.constexpr, H: tl.constexpr,
                 W: tl.constexpr, SAMPLE: tl.constexpr, CHANNEL: tl.constexpr, CELL: tl.constexpr,
                 HEIGHT: tl.constexpr, WIDTH: tl.constexpr, C: tl.constexpr, DRAWS: tl.constexpr,
                 SECOND: tl.constexpr, LOW: tl.constexpr, SPAN: tl.constexpr, DISTRUST: tl.constexpr,
                 AREA: tl.constexpr, ANCHOR: tl.constexpr, FLOOR: tl.constexpr, QUANTISE: tl.constexpr,
                 CELLS: tl.constexpr, CHANNELS: tl.constexpr, PIXELS: tl.constexpr,
                 COLUMNS: tl.constexpr):  # fmt: skip
    b = tl.program_id(0).to(tl.int64)
    cell = tl.arange(0, CELLS)
    squares = tl.zeros([CELLS], tl.float64)
    for start in range(0, F, CHANNELS):
        channel = start + tl.arange(0, CHANNELS)
        at = features + b * SAMPLE + channel[:, None].to(tl.int64) * CHANNEL + cell[None, :] * CELL
        a = tl.load(at, mask=(channel < F)[:, None] & (cell < H * W)[None, :], other=0.0).to(tl.float64)
        squares += tl.sum(a * a, 0)
    attention = squares.to(tl.float32)
    squares = attention.to(tl.float64)
    norm = tl.sqrt(tl.sum(squares * squares, 0))
    norm = tl.where(norm < float("inf"), tl.where(norm < 1e-12, 1e-12, norm), float("nan"))
    lowest, highest = tl.full([], float("inf"), tl.float64), tl.full([], float("-inf"), tl.float64)
    for start in range(0, HEIGHT * WIDTH, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        v = resized(attention, pixel, H, W, HEIGHT, WIDTH)
        lowest = tl.minimum(lowest, tl.min(tl.where(pixel < HEIGHT * WIDTH, v, float("inf")), 0))
        highest = tl.maximum(highest, tl.max(tl.where(pixel < HEIGHT * WIDTH, v, float("-inf")), 0))
    most = (((highest - lowest) / norm).to(tl.float32) + 1e-12).to(tl.float64)
    top_level = level_of(highest, lowest, norm, most, QUANTISE)
    bottom_level = level_of(lowest, lowest, norm, most, QUANTISE)
    at_top, at_bottom = tl.full([], HEIGHT * WIDTH, tl.int32), tl.full([], HEIGHT * WIDTH, tl.int32)
    for start in range(0, HEIGHT * WIDTH, PIXELS):
        pixel = start + tl.arange(0, PIXELS)
        level = level_of(resized(attention, pixel, H, W, HEIGHT, WIDTH), lowest, norm, most, QUANTISE)
        at_top = tl.minimum(at_top, tl.min(tl.where(level == top_level, pixel, HEIGHT * WIDTH), 0))
        at_bottom = tl.minimum(at_bottom, tl.min(tl.where(level == bottom_level, pixel, HEIGHT * WIDTH), 0))
    w = tl.load(clean_prob + b).to(tl.float64)
    for i in tl.static_range(2):
        peak = at_top if i == 0 else at_bottom
        peak = tl.where(peak < HEIGHT * WIDTH, peak, 0)  # of a NaN map
        y, x = peak // WIDTH, peak % WIDTH
        use = draws + b * DRAWS + i * SECOND
        ratio = LOW + SPAN * tl.load(use) + DISTRUST * (1.0 - w)
        ratio = tl.where(ratio > 0.0, ratio, 0.0)
        rho = RHO + RHO_SPAN * tl.load(use + 1)
        area = ratio * AREA * HEIGHT * WIDTH
        tall = tl.minimum(tl.floor(tl.sqrt(area * rho) + 0.5).to(tl.int32), HEIGHT - 1)
        broad = tl.minimum(tl.floor(tl.sqrt(area / rho) + 0.5).to(tl.int32), WIDTH - 1)
        top, left = y, x
        if ANCHOR == CENTER:
            top, left = tl.maximum(y - tall // 2, 0), tl.maximum(x - broad // 2, 0)
        tl.store(peaks + b * 4 + 2 * i, y)
        tl.store(peaks + b * 4 + 2 * i + 1, x)
        tl.store(boxes + b * 8 + 4 * i, tl.minimum(top, HEIGHT - tall))
        tl.store(boxes + b * 8 + 4 * i + 1, tl.minimum(left, WIDTH - broad))
        tl.store(boxes + b * 8 + 4 * i + 2, tall)
        tl.store(boxes + b * 8 + 4 * i + 3, broad)
        if i == 0 or SECOND > 0:
            move_mass(target, kept + i * batch * C, b, ratio, C, FLOOR, COLUMNS)


@triton.jit
def erase_kernel(images, high, low, boxes, draws, black, CH: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
                 LAST: tl.constexpr, DRAWS: tl.constexpr, FILL: tl.constexpr, ELEMENTS: tl.constexpr):  # fmt: skip
    """A piece of an image: read once, written twice. LAST: channels are the fastest."""
    b = tl.program_id(0).to(tl.int64)
    at = tl.program_id(1) * ELEMENTS + tl.arange(0, ELEMENTS)
    live = at < CH * HEIGHT * WIDTH
    channel = at % CH if LAST else at // (HEIGHT * WIDTH)
    pixel = at // CH if LAST else at % (HEIGHT * WIDTH)
    y, x = pixel // WIDTH, pixel % WIDTH
    image = tl.load(images + b * (CH * HEIGHT * WIDTH) + at, mask=live, other=0.0)
    for i in tl.static_range(2):
        box = boxes + b * 8 + 4 * i
        top, left, tall, broad = tl.load(box), tl.load(box + 1), tl.load(box + 2), tl.load(box + 3)
        inside = live & (y >= top) & (y < top + tall) & (x >= left) & (x < left + broad)
        if FILL == UNIFORM:
            fill = tl.load(draws + b * DRAWS + 2 + i * CH + channel, mask=inside, other=0.0).to(tl.float32)
        elif FILL == BLACK:
            fill = tl.load(black + channel, mask=inside, other=0.0)
        else:
            fill = tl.zeros([ELEMENTS], tl.float32)
        out = high if i == 0 else low
        erased = tl.where(inside, fill.to(image.dtype), image)
        tl.store(out + b * (CH * HEIGHT * WIDTH) + at, erased, mask=live)


def erase_peaks(
    features: Tensor, images: Tensor, target: Tensor, clean_prob: Tensor, draws: Tensor, masking: Masking,
    black: Tensor | None,
) -> ErasedPair:  # fmt: skip
    maps = features if features.stride(2) == features.shape[3] * features.stride(3) else features.contiguous()
    batch, channels, height, width = images.shape
    classes, device = target.shape[1], images.device
    high, low = empty_like_images(images), empty_like_images(images)
    kept = torch.empty(1 + masking.separate_low_box, batch, classes, device=device)
    boxes = torch.empty(batch, 2, 4, dtype=torch.int32, device=device)
    peaks = torch.empty(batch, 2, 2, dtype=torch.int32, device=device)
    if batch > 0:
        options = peaks_options(
            maps.shape[1:], maps.stride(), (height, width), classes, draws.shape[1], channels, masking
        )
        peaks_kernel[(batch,)](maps, target, clean_prob, draws, kept, boxes, peaks, batch, **options)
        erase_kernel[(batch, triton.cdiv(channels * height * width, ELEMENTS))](
            images, high, low, boxes, draws, black, CH=channels, HEIGHT=height, WIDTH=width,
            LAST=not images.is_contiguous(), DRAWS=draws.shape[1], FILL=FILLS.index(masking.mask_fill),
            ELEMENTS=ELEMENTS,
        )  # fmt: skip
    return ErasedPair(high, low, kept[0], kept[-1], boxes, peaks)


def peaks_options(
    shape: tuple[int, ...], stride: tuple[int, ...], size: tuple[int, int], classes: int, num_draws: int,
    channels: int, masking: Masking,
) -> dict[str, float]:  # fmt: skip
    """Compile-time numbers of `peaks_kernel`; `shape` and `stride` of the maps, `size` and `channels` of the images."""
    low, high, distrust = masking.mask_ratio
    cells = triton.next_power_of_2(shape[1] * shape[2])
    return {
        "F": shape[0], "H": shape[1], "W": shape[2], "SAMPLE": stride[0], "CHANNEL": stride[1], "CELL": stride[3],
        "HEIGHT": size[0], "WIDTH": size[1], "C": classes, "DRAWS": num_draws,
        "SECOND": 2 + 2 * channels if masking.separate_low_box else 0, "LOW": low, "SPAN": high - low,
        "DISTRUST": distrust, "AREA": masking.area_factor, "ANCHOR": ANCHORS.index(masking.mask_anchor),
        "FLOOR": FLOORS.index(masking.target_floor), "QUANTISE": masking.quantise_attention, "CELLS": cells,
        "CHANNELS": max(1, min(triton.next_power_of_2(shape[0]), FEATURES // cells)),
        "PIXELS": min(PIXELS, triton.next_power_of_2(size[0] * size[1])),
        "COLUMNS": min(COLUMNS, triton.next_power_of_2(classes)),
    }  # fmt: skip
