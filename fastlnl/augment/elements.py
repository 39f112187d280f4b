"""Augmentation of features and token ids, element by element; the randomness is an argument.

Words are int32 as `fastlnl.ops.random_words` makes them, uniform over all of int32.
"""

import torch
from torch import Tensor

from fastlnl.philox import box_muller

UNKNOWN, PADDING = 1, 0
HALF = 2**31


def below(draws: Tensor, rate: float) -> Tensor:
    """Bool, true with probability `rate` < 1."""
    return draws < round(rate * 2 * HALF) - HALF


def dropout(x: Tensor, draws: Tensor, rate: float) -> Tensor:
    """Inverted dropout: each element becomes 0 with probability `rate`, the others are divided by 1 - rate.

    Args:
        x: (B, ...) float, normalised, so that 0 is the mean.
        draws: (B, elements) int32 words, one for each element of a sample.
        rate: in [0, 1).

    Returns:
        shape and type of `x`.

    Deterministic given `draws`. Source: Srivastava et al. 2014.
    """
    return torch.where(below(draws, rate).view(x.shape), 0.0, x * (1 / (1 - rate)))


def gaussian_noise(x: Tensor, draws: Tensor, sd: float) -> Tensor:
    """x plus normal numbers of this standard deviation, by Box and Muller from two words a pair of elements.

    Args:
        x: (B, ...) float.
        draws: (B, 2 ceil(elements / 2)) int32 words.
        sd: at least 0, in units of `x`.

    Returns:
        shape and type of `x`; no number is further out than 6.8 sd.

    Deterministic given `draws`. Source: Box and Muller 1958.
    """
    u = ((draws.double() + (HALF + 0.5)) * (0.5 / HALF)).float()
    normal = box_muller(u)[:, : x.shape[1:].numel()]
    return x + sd * normal.reshape(x.shape)


def word_dropout(tokens: Tensor, draws: Tensor, rate: float) -> Tensor:
    """Each token becomes the unknown one, id 1, with probability `rate`; padding, id 0, stays padding.

    Args:
        tokens: (B, L) integer token ids.
        draws: (B, L) int32 words.
        rate: in [0, 1).

    Returns:
        shape and type of `tokens`.

    Deterministic given `draws`. Source: Iyyer et al. 2015, with the unknown token instead of leaving the word out.
    """
    return tokens.masked_fill(below(draws, rate) & (tokens != PADDING), UNKNOWN)
