"""random_words in plain torch."""

from torch import Tensor

from fastlnl.philox import words


def random_words(index: Tensor, draws: int, seed: int, stream: str, epoch: int, view: int) -> Tensor:
    return (words(seed, stream, index, draws, epoch, view) - 2**31).int()
