"""erase_peaks on the CPU: an image after the other in one compiled loop, its map and its resized map in the cache."""

import math

import numpy as np
import torch
from numba import njit
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_float32, as_float64, take
from fastlnl.cpu.words import as_int32
from fastlnl.ops.erase_peaks import ANCHORS, ASPECT, FILLS, FLOORS, ErasedPair, Masking, empty_like_images

SERIAL_BELOW = 1 << 18  # numbers read and written
_f = np.float32
_RHO, _RHO_SPAN = ASPECT[0], ASPECT[1] - ASPECT[0]
_CENTER, _UNIFORM, _CLAMP, _CLIP = (
    ANCHORS.index("center"), FILLS.index("uniform_normalised"), FLOORS.index("clamp"), FLOORS.index("clip")
)  # fmt: skip


@njit
def attend(features_, channels, cells, channel_stride, cell_stride, attention):
    """Sum of squares over the channels, in float64."""
    features = as_float32(features_)
    if channel_stride == 1:
        whole = channels - channels % 4
        for cell in range(cells):
            at, s0, s1, s2, s3 = cell * cell_stride, 0.0, 0.0, 0.0, 0.0
            for c in range(0, whole, 4):
                a, b = np.float64(features[at + c]), np.float64(features[at + c + 1])
                d, e = np.float64(features[at + c + 2]), np.float64(features[at + c + 3])
                s0, s1, s2, s3 = s0 + a * a, s1 + b * b, s2 + d * d, s3 + e * e
            for c in range(whole, channels):
                a = np.float64(features[at + c])
                s0 += a * a
            attention[cell] = (s0 + s1) + (s2 + s3)
    else:
        attention[:] = 0.0
        for c in range(channels):
            for cell in range(cells):
                a = np.float64(features[c * channel_stride + cell * cell_stride])
                attention[cell] += a * a
    for cell in range(cells):
        attention[cell] = np.float64(_f(attention[cell]))


@njit
def places(old, size, first, share):
    """Where each new pixel lies between two old ones."""
    for i in range(size):
        place = max((i + 0.5) * (np.float64(old) / np.float64(size)) - 0.5, 0.0)
        first[i] = math.floor(place)
        share[i] = place - first[i]


@njit
def resize(attention, h, w, height, width, row, row_share, column, column_share, wide, out):
    """Columns first, then rows; returns the lowest and the highest value."""
    for i in range(h):
        for x in range(width):
            j, s = column[x], column_share[x]
            wide[i * width + x] = (1.0 - s) * attention[i * w + j] + s * attention[i * w + min(j + 1, w - 1)]
    lowest, highest = np.inf, -np.inf
    for y in range(height):
        above, below, s = row[y] * width, min(row[y] + 1, h - 1) * width, row_share[y]
        for x in range(width):
            v = (1.0 - s) * wide[above + x] + s * wide[below + x]
            out[y * width + x] = v
            lowest, highest = min(lowest, v), max(highest, v)
    return lowest, highest


@njit(inline="always")
def level_of(v, lowest, norm, span, quantise):
    """In float32: a float64 quotient of float32 numbers, rounded, is their float32 quotient."""
    level = _f((v - lowest) / norm)
    return _f(math.floor(_f(_f(255.0) * _f(np.float64(level) / span)))) if quantise else level


@njit
def find_level(v, count, value, lowest, norm, span, quantise):
    """First pixel of this level; 0 if there is none. Only values near the level are divided."""
    step = norm * span / 255.0 if quantise else norm
    start = lowest + step * np.float64(value) * (1.0 - 1e-5)
    stop = lowest + step * (np.float64(value) * (1.0 + 1e-5) + (1.00001 if quantise else 1e-30))
    for i in range(count):
        if start <= v[i] <= stop and level_of(v[i], lowest, norm, span, quantise) == value:
            return i
    return 0


@njit
def erase(image, stride_c, stride_y, stride_x, channels, top, left, tall, wide, fills, fill_kind, first):
    """Write the box's constant of each channel."""
    draws, black = as_float64(fills), as_float32(fills)
    for c in range(channels):
        value = _f(draws[first + c]) if fill_kind == _UNIFORM else (black[c] if fills != 0 else _f(0.0))
        for y in range(top, top + tall):
            for x in range(left, left + wide):
                image[c * stride_c + y * stride_y + x * stride_x] = value


@njit
def move_mass(target, out, classes, ratio, floor):
    top = 0
    for c in range(1, classes):
        if target[c] > target[top]:
            top = c
    moved = ratio
    if floor == _CLAMP:
        moved = min(moved, max(0.0, np.float64(target[top]) - 1.0 / classes))
    gain = moved / (classes - 1) if classes > 1 else 0.0
    total = 0.0
    for c in range(classes):
        t = np.float64(target[c]) + (gain if c != top or classes == 1 else -moved)
        if floor == _CLIP:
            t = max(t, 0.0)
        total += t
        out[c] = _f(t)
    if floor == _CLIP and classes > 1:
        for c in range(classes):
            out[c] = _f(np.float64(out[c]) / total)


@njit(
    "void(int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,int64,"
    "int64,int64,int64,int64,int64,float64,float64,float64,float64,int64,int64,int64,int64,boolean,int64,int64,int64,"
    "int64,int64)",
    cache=True, nogil=True, error_model="numpy",
)  # fmt: skip
def erase_kernel(
    cursor, chunk, batch, features, feature_channels, h, w, sample_stride, channel_stride, cell_stride, images_,
    channels, height, width, stride_c, stride_y, stride_x, target_, classes, clean_prob_, draws_, num_draws, second,
    low, span, distrust, area_factor, anchor, fill_kind, black, floor, quantise, high_, low_, kept_, boxes_, peaks_,
):  # fmt: skip
    """`second`: where the draws of the lowest point's ratio start, 0 if it shares the first."""
    size, images, clean_prob = channels * height * width, as_float32(images_), as_float32(clean_prob_)
    draws, boxes, peaks = as_float64(draws_), as_int32(boxes_), as_int32(peaks_)
    attention, wide, resized = np.empty(h * w), np.empty(h * width), np.empty(height * width)
    row, row_share = np.empty(height, np.int64), np.empty(height)
    column, column_share = np.empty(width, np.int64), np.empty(width)
    places(h, height, row, row_share)
    places(w, width, column, column_share)
    while True:
        begin = take(cursor, chunk)
        if begin >= batch:
            break
        for b in range(begin, min(begin + chunk, batch)):
            attend(features + 4 * b * sample_stride, feature_channels, h * w, channel_stride, cell_stride, attention)
            squares = 0.0
            for cell in range(h * w):
                squares += attention[cell] * attention[cell]
            norm = max(math.sqrt(squares), 1e-12) if squares < np.inf else np.nan
            lowest, highest = resize(
                attention, h, w, height, width, row, row_share, column, column_share, wide, resized
            )
            most = np.float64(_f(_f((highest - lowest) / norm) + _f(1e-12)))
            for i in range(2):
                extreme = highest if i == 0 else lowest
                value = level_of(extreme, lowest, norm, most, quantise)
                at = find_level(resized, height * width, value, lowest, norm, most, quantise)
                y, x = at // width, at % width
                use = b * num_draws + (second if i == 1 else 0)
                ratio = max(low + span * draws[use] + distrust * (1.0 - np.float64(clean_prob[b])), 0.0)
                rho = _RHO + _RHO_SPAN * draws[use + 1]
                area = area_factor * ratio * height * width
                tall = min(math.floor(math.sqrt(area * rho) + 0.5), height - 1)
                broad = min(math.floor(math.sqrt(area / rho) + 0.5), width - 1)
                top, left = y, x
                if anchor == _CENTER:
                    top, left = max(y - tall // 2, 0), max(x - broad // 2, 0)
                top, left = min(top, height - tall), min(left, width - broad)
                peaks[4 * b + 2 * i], peaks[4 * b + 2 * i + 1] = y, x
                box = 8 * b + 4 * i
                boxes[box], boxes[box + 1], boxes[box + 2], boxes[box + 3] = top, left, tall, broad
                erased = as_float32((high_ if i == 0 else low_) + 4 * b * size)
                for j in range(size):
                    erased[j] = images[b * size + j]
                fills = draws_ + 8 * b * num_draws if fill_kind == _UNIFORM else black
                erase(
                    erased, stride_c, stride_y, stride_x, channels, top, left, tall, broad,
                    fills, fill_kind, 2 + i * channels,
                )  # fmt: skip
                if i == 0 or second > 0:
                    t = (i * batch + b) * classes
                    move_mass(as_float32(target_ + 4 * b * classes), as_float32(kept_ + 4 * t), classes, ratio, floor)


def erase_peaks(
    features: Tensor, images: Tensor, target: Tensor, clean_prob: Tensor, draws: Tensor, masking: Masking,
    black: Tensor | None,
) -> ErasedPair:  # fmt: skip
    maps = features if features.dtype == torch.float32 else features.float()
    if maps.stride(2) != maps.shape[3] * maps.stride(3):
        maps = maps.contiguous()
    pictures = images if images.dtype == torch.float32 else images.float()
    batch, channels, height, width = pictures.shape
    classes, (low, high, distrust) = target.shape[1], masking.mask_ratio
    erased = [empty_like_images(pictures) for _ in range(2)]
    kept = torch.empty(1 + masking.separate_low_box, batch, classes)
    boxes, peaks = torch.empty(batch, 2, 4, dtype=torch.int32), torch.empty(batch, 2, 2, dtype=torch.int32)
    run = team.alone if maps.numel() + 3 * pictures.numel() < SERIAL_BELOW else team.team.run
    run(
        erase_kernel, 1, batch, maps.data_ptr(), maps.shape[1], maps.shape[2], maps.shape[3], *strides_of(maps),
        pictures.data_ptr(), channels, height, width, *pictures.stride()[1:], target.data_ptr(), classes,
        clean_prob.data_ptr(), draws.data_ptr(), draws.shape[1],
        2 + 2 * channels if masking.separate_low_box else 0, low, high - low, distrust, masking.area_factor,
        ANCHORS.index(masking.mask_anchor), FILLS.index(masking.mask_fill), 0 if black is None else black.data_ptr(),
        FLOORS.index(masking.target_floor), masking.quantise_attention, erased[0].data_ptr(), erased[1].data_ptr(),
        kept.data_ptr(), boxes.data_ptr(), peaks.data_ptr(),
    )  # fmt: skip
    high_image, low_image = (x.to(images.dtype) for x in erased)
    low_kept = kept[-1]
    return ErasedPair(high_image, low_image, kept[0], low_kept, boxes, peaks)


def strides_of(maps: Tensor) -> tuple[int, int, int]:
    """From one sample, channel and cell to the next."""
    return maps.stride(0), maps.stride(1), maps.stride(3)
