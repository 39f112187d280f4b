"""Targets for semi-supervised steps, in DivideMix's words: thin names on top of `ops.refine_targets`."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe
from fastlnl.ops.refine_targets import refine_targets

__all__ = ["co_guess", "co_refine", "refine_targets", "sharpen"]


def co_refine(logits: Sequence[Tensor] | Tensor, label: Tensor, clean_prob: Tensor, temperature: float = 0.5) -> Tensor:
    """Labelled samples: the given label as far as it is clean, the rest as the network's views predict; sharpened.

        sharpen(clean_prob onehot(label) + (1 - clean_prob) mean softmax)

    Args:
        logits: M predictions (B, C) of the network that is trained, one for each view.
        label: (B,) given labels. clean_prob: (B,) by the PEER's mixture.
        temperature: of `sharpen`.

    Returns:
        (B, C) float32.

    Raises:
        ShapeError: shapes or types do not fit.

    Source: Li, Socher, Hoi 2020.
    """
    return refine_targets(logits, label, clean_prob, temperature)


def co_guess(logits: Sequence[Tensor] | Tensor, temperature: float = 0.5) -> Tensor:
    """Unlabelled samples: the mean prediction of both networks over all views, sharpened.

    Args:
        logits: M predictions (B, C), those of both networks.
        temperature: of `sharpen`.

    Returns:
        (B, C) float32.

    Raises:
        ShapeError: shapes or types do not fit.

    Source: Li, Socher, Hoi 2020.
    """
    return refine_targets(logits, temperature=temperature)


def sharpen(probs: Tensor, temperature: float = 0.5) -> Tensor:
    """probs^(1 / temperature), divided by its sum, as softmax(log probs / temperature): no power underflows.

    Args:
        probs: (..., C) >= 0, of a floating type; each row has a positive entry, and need not sum to one.
        temperature: > 0; below 1 sharpens.

    Returns:
        (..., C) float32 (float64 for float64 probs); 0 stays 0.

    Raises:
        ShapeError: probs is of no floating type or has no classes.
        ValueError: temperature is not above 0.

    Source: Berthelot et al. 2019 (MixMatch).
    """
    if not probs.is_floating_point() or probs.dim() == 0 or probs.shape[-1] == 0:
        raise ShapeError(f"probs is {describe(probs)}; expected (..., C) of a floating type")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a value above 0, 0.5 sharpens")
    return torch.softmax((probs if probs.dtype == torch.float64 else probs.float()).log() / temperature, -1)
