"""Counter-based random numbers: a draw depends on what it is for, never on when or where it is made.

Philox4x32-10 (Salmon, Moraes, Dror and Shaw 2011, "Parallel random numbers: as easy as 1, 2, 3") in plain int64
tensor arithmetic, so that CPU and GPU, any batch order and any number of ranks see the same bits.
"""

import math
import zlib

import torch
from torch import Tensor

ROUNDS = 10
MASK = 0xFFFFFFFF
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
# The key grows by the golden ratio and by sqrt(3) - 1, both times 2^32, from round to round.
KEY_STEPS = (0x9E3779B9, 0xBB67AE85)


def philox4x32(counter: Tensor, key: tuple[int, int]) -> Tensor:
    """Four random 32-bit words for each counter.

    Args:
        counter: (..., 4) int64, each word in [0, 2^32).
        key: two words in [0, 2^32).

    Returns:
        (..., 4) int64, each word in [0, 2^32); on the device of `counter`.

    Deterministic. Source: Salmon et al. 2011, Philox4x32 with 10 rounds.
    """
    word0, word1, word2, word3 = counter.unbind(-1)
    key0, key1 = key
    for _ in range(ROUNDS):
        # The 64-bit products wrap around the sign; shifting and masking restores their upper and lower halves.
        product0, product1 = word0 * MULTIPLIERS[0], word2 * MULTIPLIERS[1]
        word0, word2 = ((product1 >> 32) & MASK) ^ word1 ^ key0, ((product0 >> 32) & MASK) ^ word3 ^ key1
        word1, word3 = product1 & MASK, product0 & MASK
        key0, key1 = (key0 + KEY_STEPS[0]) & MASK, (key1 + KEY_STEPS[1]) & MASK
    return torch.stack((word0, word1, word2, word3), dim=-1)


def uniform(seed: int, stream: str, index: Tensor, draws: int = 1, epoch: int = 0, view: int = 0) -> Tensor:
    """Uniform numbers that depend on (seed, stream, index, epoch, view) alone.

    The key holds the seed and the stream; the counter holds the id (64 bits), the epoch, the view and the number of
    the draw. More draws extend a row and leave the earlier ones as they were.

    Args:
        seed: in [0, 2^32).
        stream: what the numbers are for, such as "order" or "crop_flip"; streams are independent of each other.
        index: (n,) int64 sample ids >= 0.
        draws: how many numbers for each id.
        epoch: in [0, 2^32).
        view: in [0, 2^16).

    Returns:
        (n, draws) float64 in [0, 1) with 53 random bits, on the device of `index`.

    Raises:
        ValueError: seed, epoch or view does not fit its word.
    """
    return unit_interval(words(seed, stream, index, 2 * draws, epoch, view))


def permutation(seed: int, stream: str, num_samples: int, epoch: int = 0, device: torch.device | str = "cpu") -> Tensor:
    """(num_samples,) int64: the ids 0 .. num_samples - 1 in a random order that depends on (seed, stream, epoch)."""
    ids = torch.arange(num_samples, device=device)
    return uniform(seed, stream, ids, epoch=epoch)[:, 0].argsort(stable=True)


def words(seed: int, stream: str, index: Tensor, draws: int, epoch: int = 0, view: int = 0) -> Tensor:
    """(n, draws) int64 words in [0, 2^32), the bits that `uniform` is made of: two words a number, in the same order.

    For masks and other elementwise draws, where 32 bits are enough and 53 cost twice as much.

    Raises:
        ValueError: seed, epoch or view does not fit its word.
    """
    for name, value, bits in (("seed", seed, 32), ("epoch", epoch, 32), ("view", view, 16), ("draws", draws, 18)):
        if not 0 <= value < 2**bits:
            raise ValueError(f"{name} is {value} but must be in [0, 2^{bits}); choose a smaller, non-negative number")
    blocks = (draws + 3) // 4
    block = torch.arange(blocks, device=index.device).expand(len(index), blocks)
    ids = index[:, None].expand_as(block)
    counter = torch.stack((ids & MASK, (ids >> 32) & MASK, torch.full_like(block, epoch), block + (view << 16)), dim=-1)
    return philox4x32(counter, (seed, zlib.crc32(stream.encode()))).reshape(len(index), 4 * blocks)[:, :draws]


def unit_interval(pairs: Tensor) -> Tensor:
    """(n, k) float64 in [0, 1) from (n, 2 k) int64 words in [0, 2^32): the numbers of `uniform`."""
    # 27 + 26 bits fill the 53-bit significand, so that 1.0 can never appear.
    first, second = pairs.unflatten(1, (-1, 2)).unbind(2)
    return ((first >> 5) * 2**26 + (second >> 6)).double() * 2.0**-53


def box_muller(u: Tensor) -> Tensor:
    """(n, 2 k) normal numbers from as many uniform ones above 0: k radii, then k angles (Box and Muller 1958)."""
    radius, angle = u.unflatten(1, (2, -1)).unbind(1)
    radius, angle = (-2 * radius.log()).sqrt(), angle * (2 * math.pi)
    return torch.cat((radius * angle.cos(), radius * angle.sin()), 1)


def normal(seed: int, stream: str, index: Tensor, draws: int = 1, epoch: int = 0, view: int = 0) -> Tensor:
    """(n, draws) float64 standard normal numbers that depend on what `uniform` depends on, and on `draws`.

    They are made from 32-bit words: 2^32 radii, none above 6.8.
    """
    pairs = words(seed, stream, index, draws + draws % 2, epoch, view)
    return box_muller((pairs.double() + 0.5) * 2.0**-32)[:, :draws]
