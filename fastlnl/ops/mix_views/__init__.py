"""Mixup over several views: every row and its partner are gathered and interpolated without joining the views."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import check_device, describe

__all__ = ["mix_views"]


def mix_views(
    views: Sequence[Tensor], targets: Sequence[Tensor], partner: Tensor, coefficient: Tensor | float
) -> tuple[Tensor, Tensor]:
    """Interpolate each row of all views, and its target, with a row that may be anywhere among them.

        images[r] = coefficient[r] x[r] + (1 - coefficient[r]) x[partner[r]]       x, t: the rows of all views, in order
        target[r] = coefficient[r] t[r] + (1 - coefficient[r]) t[partner[r]]

    A row is read where it lies: R rows are read twice and written once, where joining them first would read and write
    them twice more.

    Args:
        views: V tensors (B_v, ...) of one floating type and sample shape; batches may differ. R is their sum.
        targets: V tensors (B_v, C) of a floating type; several views may share one tensor.
        partner: (R,) any integer type, usually a permutation. A row whose partner is outside [0, R) stays as it is.
        coefficient: () or (R,) of a floating type on the device of the views, or a number.

    Returns:
        images (R, ...) in the type and memory format of the first view, and target (R, C) float32 (float64 for
        float64 views, which the reference backend takes). A coefficient of 1 gives the rows bit for bit.

    Raises:
        ShapeError: shapes, types or devices do not fit.

    Deterministic. No gradient. Source: Zhang et al. 2018 (mixup); over all views at once: Li, Socher, Hoi 2020.
    """
    if not views or len(views) != len(targets):
        raise ShapeError(
            f"{len(views)} views came with {len(targets)} targets; expected at least one view, a target each"
        )
    like = views[0]
    if not like.is_floating_point() or like.dim() < 2:
        raise ShapeError(f"a view is {describe(like)}; expected (B, ...) of a floating type")
    memory = _format_of(like)
    classes = targets[0].shape[-1]
    number = torch.float64 if like.dtype == torch.float64 else torch.float32
    for x, t in zip(views, targets, strict=True):
        if x.shape[1:] != like.shape[1:] or x.dtype != like.dtype:
            raise ShapeError(
                f"a view is {describe(x)} but the first is {describe(like)}; expected one sample shape and type"
            )
        if t.shape != (len(x), classes) or not t.is_floating_point():
            raise ShapeError(
                f"a target is {describe(t)}; expected ({len(x)}, {classes}) of a floating type, a row each"
            )
        check_device("a view", x, like)
        check_device("a target", t, like)
    rows = sum(len(x) for x in views)
    if partner.shape != (rows,) or partner.is_floating_point() or partner.dtype == torch.bool:
        raise ShapeError(f"partner is {describe(partner)}; expected ({rows},) of an integer type, one for each row")
    check_device("partner", partner, like)
    if not isinstance(coefficient, Tensor):
        coefficient = torch.full((), coefficient, dtype=number, device=like.device)
    if coefficient.shape not in ((), (rows,)) or not coefficient.is_floating_point():
        raise ShapeError(f"coefficient is {describe(coefficient)}; expected () or ({rows},) of a floating type")
    check_device("coefficient", coefficient, like)
    mixed: tuple[Tensor, Tensor] = backend.implementation("mix_views", like)(
        [x.detach().contiguous(memory_format=memory) for x in views],
        [t.detach().to(number).contiguous() for t in targets],
        partner.long().contiguous(),
        coefficient.detach().to(number).contiguous(),
    )
    return mixed


def _format_of(x: Tensor) -> torch.memory_format:
    """How the elements of a sample lie; of images of one pixel or one channel both are true, and the same."""
    if x.dim() == 4 and not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def like_rows(like: Tensor, flat: Tensor) -> Tensor:
    """(R, P) numbers, as the samples of `like` lie in memory, in the shape of its samples."""
    if _format_of(like) == torch.channels_last:
        channels, height, width = like.shape[1:]
        return flat.view(len(flat), height, width, channels).permute(0, 3, 1, 2)
    return flat.view(len(flat), *like.shape[1:])
