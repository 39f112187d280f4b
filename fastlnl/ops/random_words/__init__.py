"""Random words by id in one pass: the draws of elementwise augmentation, where a hundred small operations cost more."""

import torch
from torch import Tensor

from fastlnl import backend
from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe

__all__ = ["random_words"]


def random_words(index: Tensor, draws: int, *, seed: int, stream: str, epoch: int = 0, view: int = 0) -> Tensor:
    """`fastlnl.philox.words` of a batch, the same bits, as int32.

        out[b, d] = word d mod 4 of Philox4x32-10 at the counter (id, epoch, d // 4 + 2^16 view), minus 2^31

    Args:
        index: (B,) int64 sample ids.
        draws: words for each id, in [0, 2^18).
        seed, epoch: in [0, 2^32). stream: what the words are for. view: in [0, 2^16).

    Returns:
        (B, draws) int32, uniform over all of int32: a word less 2^31, so that comparisons keep their order.

    Raises:
        ShapeError: index is not (B,) int64.
        ValueError: a number is outside its range.

    Deterministic, every bit the same on every backend. Source: Salmon et al. 2011.
    """
    if index.dim() != 1 or index.dtype != torch.int64:
        raise ShapeError(f"index is {describe(index)}; expected (B,) int64")
    for name, value, bits in (("seed", seed, 32), ("epoch", epoch, 32), ("view", view, 16), ("draws", draws, 18)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} is {value} but must be in [0, 2^{bits}); choose a smaller, non-negative number")
    function = backend.implementation("random_words", index)
    made: Tensor = function(index.contiguous(), draws, seed, stream, epoch, view)
    return made
