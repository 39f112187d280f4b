"""Self-supervised adversarial masking: erase where the network looks most and least, move label mass accordingly."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe, floats

__all__ = ["ANCHORS", "ASPECT", "FILLS", "FLOORS", "ErasedPair", "Masking", "draws_of", "erase_peaks"]

ANCHORS = ("corner", "center")
FILLS = ("uniform_normalised", "mean", "black")
FLOORS = ("none", "clamp", "clip")
ASPECT = (0.8, 1.25)  # height / width of a box


class Masking(NamedTuple):
    """How large a box is, where it lies, what it is filled with, and what it costs the label."""

    mask_ratio: tuple[float, float, float] = (0.02, 0.07, 0.03)  # low, high, distrust
    area_factor: float = 0.5  # share of the ratio that becomes area
    mask_anchor: str = "corner"  # the box's top left corner at the peak, or its "center"
    mask_fill: str = "uniform_normalised"  # or "mean" (0), "black" (what is passed as `black`)
    target_floor: str = "none"  # "clamp": the mass lost is limited; "clip": negative entries become 0
    separate_low_box: bool = False  # ratio, aspect and target of its own for the box at the lowest point
    quantise_attention: bool = True  # to 256 steps, as the authors' code: decides ties


class ErasedPair(NamedTuple):
    """What `erase_peaks` makes of a batch."""

    high: Tensor  # (B, ch, H, W) erased at the highest point
    low: Tensor  # (B, ch, H, W) erased at the lowest point
    target: Tensor  # (B, C) float32, of `high`
    low_target: Tensor  # (B, C) float32, of `low`; the same tensor without `separate_low_box`
    boxes: Tensor  # (B, 2, 4) int32: top, left, height, width of the highest point's box, then the lowest's
    peaks: Tensor  # (B, 2, 2) int32: row and column of the highest point, then of the lowest


def draws_of(channels: int, separate_low_box: bool = False) -> int:
    """How many random numbers an image needs."""
    return 2 + 2 * channels + 2 * separate_low_box


def erase_peaks(
    features: Tensor,
    images: Tensor,
    target: Tensor,
    clean_prob: Tensor,
    draws: Tensor,
    masking: Masking = Masking(),  # noqa: B008 - a constant
    *,
    black: Tensor | None = None,
) -> ErasedPair:
    """Two copies of each image, erased at the points of highest and of lowest activation, and the targets they keep.

        A    = sum_c features[b, c]^2, resized to H x W (bilinear, half-pixel centres)
        A    = floor(255 (A - min A) / (max A - min A + 1e-12)),  peaks = first argmax and argmin in row-major order
        r    = low + (high - low) draws[b, 0] + distrust (1 - clean_prob[b])
        rho  = .8 + .45 draws[b, 1];  area = area_factor r H W
        box  = sqrt(area rho) x sqrt(area / rho), rounded, at most H - 1 x W - 1, at the peak, moved inside
        fill = draws[b, 2 : 2 + ch] at the highest point, the next ch at the lowest: a constant per channel and box
        out_k = t_k - r at the first argmax of target[b], t_k + r / (C - 1) elsewhere

    `separate_low_box` takes two more draws for ratio and aspect of the second box. "clamp" limits the mass moved to
    max(0, max t - 1/C), "clip" sets negative entries to 0 and divides by the sum.

    Args:
        features: (B, Cf, h, w) last feature map, float16, bfloat16 or float32, any strides. Squares are summed in
            float64, so that every backend finds the same peaks.
        images: (B, ch, H, W) of a floating type, contiguous or channels_last (else a copy is made).
        target: (B, C) soft labels. It is not changed.
        clean_prob: (B,) in [0, 1], how much each label is trusted: the less, the larger the box.
        draws: (B, k) float64 in [0, 1), k >= `draws_of(ch, separate_low_box)`:
            `uniform(seed, "erase", index, draws=k, epoch=epoch, view=view)`.
        masking: see `Masking`.
        black: (ch,) value of a black pixel in the images' normalised space, for mask_fill "black".

    Returns:
        `ErasedPair`, images in type and memory format of `images`. A flat map, and one that is not finite, has both
        peaks at the first pixel. A ratio of 0 erases nothing.

    Raises:
        ShapeError: shapes or types do not fit, too few draws.
        ValueError: an option is unknown or out of range.

    Deterministic. No gradient, nothing waits for the device. Source: Tu et al. 2023 (SANM) and its code.
    """
    if images.dim() != 4 or not images.is_floating_point():
        raise ShapeError(f"images is {describe(images)}; expected (B, ch, H, W) of a floating type")
    batch, channels = images.shape[:2]
    if features.dim() != 4 or len(features) != batch or not features.is_floating_point() or 0 in features.shape[2:]:
        raise ShapeError(f"features is {describe(features)}; expected a map ({batch}, Cf, h, w) of a floating type")
    if 0 in images.shape[1:]:
        raise ShapeError(f"images is {describe(images)}; expected at least one channel and one pixel")
    if target.dim() != 2 or len(target) != batch or target.shape[1] == 0 or not target.is_floating_point():
        raise ShapeError(f"target is {describe(target)}; expected ({batch}, C) of a floating type")
    for name, x in (("images", images), ("target", target), ("draws", draws)):
        check_device(name, x, features)
    needed = draws_of(channels, masking.separate_low_box)
    if draws.dim() != 2 or len(draws) != batch or draws.shape[1] < needed or draws.dtype != torch.float64:
        raise ShapeError(f"draws is {describe(draws)}; expected ({batch}, {needed}) float64 in [0, 1), from `uniform`")
    _check(masking)
    if (black is None) == (masking.mask_fill == "black"):
        raise ShapeError("black is the value (ch,) of a black pixel; pass it with mask_fill 'black', and only then")
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    memory = torch.channels_last if last else torch.contiguous_format
    with torch.no_grad():
        pair: ErasedPair = backend.implementation("erase_peaks", features)(
            features.detach(),
            images.detach().contiguous(memory_format=memory),
            floats("target", target.detach(), tuple(target.shape), features),
            floats("clean_prob", clean_prob.detach(), (batch,), features),
            draws.contiguous(),
            masking,
            None if black is None else floats("black", black.detach(), (channels,), features),
        )
    return pair


def _check(masking: Masking) -> None:
    words = (("mask_anchor", ANCHORS), ("mask_fill", FILLS), ("target_floor", FLOORS))
    for name, known in words:
        if (came := getattr(masking, name)) not in known:
            raise ValueError(f"{name} is {came!r}; expected one of {', '.join(known)}")
    low, high, distrust = masking.mask_ratio
    if not (0 <= low <= high and distrust >= 0 and masking.area_factor >= 0):
        raise ValueError(
            f"mask_ratio is {masking.mask_ratio} and area_factor {masking.area_factor}; "
            "expected 0 <= low <= high, distrust >= 0, area_factor >= 0"
        )


def empty_like_images(images: Tensor) -> Tensor:
    """Not yet written, in shape, type and memory format of `images`, which is contiguous or channels_last."""
    batch, channels, height, width = images.shape
    if images.is_contiguous():
        return torch.empty(batch, channels, height, width, dtype=images.dtype, device=images.device)
    flat = torch.empty(batch, height, width, channels, dtype=images.dtype, device=images.device)
    return flat.permute(0, 3, 1, 2)
