"""erase_peaks in plain torch: no image is visited on its own."""

import torch
from torch import Tensor

from fastlnl.ops.erase_peaks import ASPECT, ErasedPair, Masking


def erase_peaks(
    features: Tensor, images: Tensor, target: Tensor, clean_prob: Tensor, draws: Tensor, masking: Masking,
    black: Tensor | None,
) -> ErasedPair:  # fmt: skip
    batch, channels, height, width = images.shape
    attention = features.double().square().sum(1).float()
    peaks = find_peaks(attention, height, width, masking.quantise_attention)
    low, high, distrust = masking.mask_ratio
    at = [0, 2 + 2 * channels if masking.separate_low_box else 0]  # where the draws of each box start
    ratio = low + (high - low) * draws[:, at] + distrust * (1 - clean_prob.double()[:, None])  # (B, 2)
    ratio = ratio.clamp(min=0)
    rho = ASPECT[0] + (ASPECT[1] - ASPECT[0]) * draws[:, [i + 1 for i in at]]
    area = masking.area_factor * ratio * height * width
    sides = torch.stack([(area * rho).sqrt(), (area / rho).sqrt()], 2)  # (B, 2, 2)
    limit = torch.tensor([height, width], device=images.device)
    sides = torch.minimum((sides + 0.5).floor().long(), limit - 1)
    corner = peaks if masking.mask_anchor == "corner" else (peaks - sides // 2).clamp(min=0)
    corner = torch.minimum(corner, limit - sides)
    boxes = torch.cat([corner, sides], 2)

    if masking.mask_fill == "uniform_normalised":
        fill = draws[:, 2 : 2 + 2 * channels].reshape(batch, 2, channels)
    else:
        value = torch.zeros(channels, device=images.device) if black is None else black
        fill = value.expand(batch, 2, channels)
    row, column = (torch.arange(n, device=images.device) for n in (height, width))
    top, left, tall, wide = boxes.unbind(2)
    in_rows = (row >= top[..., None]) & (row < (top + tall)[..., None])
    in_columns = (column >= left[..., None]) & (column < (left + wide)[..., None])
    inside = in_rows[..., :, None] & in_columns[..., None, :]  # (B, 2, H, W)
    pair = [torch.where(inside[:, i, None], fill[:, i, :, None, None].to(images.dtype), images) for i in (0, 1)]

    kept = move_mass(target, ratio[:, 0], masking.target_floor)
    low_kept = move_mass(target, ratio[:, 1], masking.target_floor) if masking.separate_low_box else kept
    return ErasedPair(pair[0], pair[1], kept, low_kept, boxes.int(), peaks.int())


def find_peaks(attention: Tensor, height: int, width: int, quantise: bool) -> Tensor:
    """(B, 2, 2) int64 rows and columns of the highest and of the lowest point of maps (B, h, w) float32."""
    v = resize(attention.double(), height, width).flatten(1)
    lowest, highest = v.amin(1, keepdim=True), v.amax(1, keepdim=True)
    norm = attention.double().square().sum((1, 2)).sqrt().clamp(min=1e-12)[:, None]
    norm = norm.where(norm < torch.inf, torch.nan)
    level = ((v - lowest) / norm).float()
    if quantise:
        level = (255 * (level / (((highest - lowest) / norm).float() + 1e-12))).floor()
    index = torch.stack([(level == f(level, 1, keepdim=True)).byte().argmax(1) for f in (torch.amax, torch.amin)], 1)
    return torch.stack([index // width, index % width], 2)


def resize(a: Tensor, height: int, width: int) -> Tensor:
    """Bilinear, half-pixel centres: (B, h, w) -> (B, H, W)."""
    for axis, size in ((2, width), (1, height)):
        old = a.shape[axis]
        place = ((torch.arange(size, device=a.device).double() + 0.5) * (old / size) - 0.5).clamp(min=0)
        first = place.floor().long()
        share = (place - first).reshape([-1 if i == axis else 1 for i in range(3)])
        a = (1 - share) * a.index_select(axis, first) + share * a.index_select(axis, (first + 1).clamp(max=old - 1))
    return a


def move_mass(target: Tensor, ratio: Tensor, floor: str) -> Tensor:
    """The first highest entry of each row loses `ratio`, the others gain it in equal parts."""
    classes = target.shape[1]
    if classes == 1:
        return target.clone()
    top = (target == target.amax(1, keepdim=True)).byte().argmax(1, keepdim=True)
    moved = ratio[:, None]
    if floor == "clamp":
        moved = torch.minimum(moved, (target.gather(1, top).double() - 1 / classes).clamp(min=0))
    out = (target.double() + moved / (classes - 1)).scatter(1, top, target.gather(1, top).double() - moved)
    if floor == "clip":
        out = out.clamp(min=0)
        out = out / out.sum(1, keepdim=True)
    return out.float()
