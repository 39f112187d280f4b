"""How a label memory keeps its rows: the formats, and their plain torch form that every kernel is tested against.

A row of C probabilities becomes one record of W words. All formats but float32 lose digits and round at random, up with
the probability that keeps the mean: plain rounding would stop a moving average as soon as its steps are smaller than
half a digit. The random words depend on seed, step, sample id and column alone, so every backend, batch order and
number of ranks rounds alike.

A topk record holds the K likeliest classes (of equal ones the lowest first): K class ids, K float16 values, and in
float16 the mass of all other classes, which share it evenly. Ids are 16-bit words, or two of them (the low one first)
above 65,536 classes.
"""

import zlib
from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl.philox import MASK, philox4x32

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "uint8": torch.uint8,
    "topk": torch.int16,
}
# The first value (topk: the rest) of a row that was never written; as float16 bits, and 255 for -1 in uint8.
NEVER_WRITTEN = {"topk": -0x4400, "uint8": 255}
LEVELS = 254  # of uint8: probability 1
STREAM = zlib.crc32(b"label_memory")


class Storage(NamedTuple):
    """The format of a label memory's rows."""

    kind: str = "float32"
    kept: int = 0  # K of topk
    classes: int = 0  # C, which a topk record does not show; 0 for the others

    @classmethod
    def parse(cls, text: str, num_classes: int) -> "Storage":
        """The format called "float32", "bfloat16", "float16", "uint8" or "topk:K".

        Raises:
            ValueError: there is no such format, or K is not in [1, C].
        """
        kind, colon, kept = text.partition(":")
        if kind == "topk" and kept.isdecimal() and 1 <= int(kept) <= num_classes:
            return cls(kind, int(kept), num_classes)
        if kind not in DTYPES or kind == "topk" or colon:
            raise ValueError(
                f"storage is {text!r}; expected 'float32', 'bfloat16', 'float16', 'uint8', or 'topk:K' with K from 1 "
                f"to the {num_classes} classes"
            )
        return cls(kind)

    def __str__(self) -> str:
        return f"topk:{self.kept}" if self.kind == "topk" else self.kind

    @property
    def dtype(self) -> torch.dtype:
        """Of the words of a record."""
        return DTYPES[self.kind]

    @property
    def lossy(self) -> bool:
        return self.kind != "float32"

    @property
    def id_words(self) -> int:
        """Words in front of the values of a topk record."""
        return self.kept * (1 if self.classes <= 1 << 16 else 2)

    def width(self, num_classes: int) -> int:
        """W, words in a record of C classes."""
        return self.id_words + self.kept + 1 if self.kind == "topk" else num_classes

    @property
    def never_written(self) -> float:
        """The word that fills rows which were never written; they are decoded to rows that start negative."""
        return NEVER_WRITTEN.get(self.kind, -1.0)


FLOAT32 = Storage()


def row_key(seed: int, step: Tensor, index: Tensor) -> Tensor:
    """(n, 2) int64, the two words that make the random words of a sample's row at a step; index (n,), step ()."""
    words = (index & MASK, (index >> 32) & MASK, (step & MASK).expand_as(index), ((step >> 32) & MASK).expand_as(index))
    return philox4x32(torch.stack(words, -1), (seed, STREAM))[..., :2]


def random_words(key: Tensor, columns: Tensor) -> Tensor:
    """A 32-bit word (n, m) int64 for each column, (m,) or (n, m), of the rows with these keys (n, 2).

    The mix is lowbias32 of C. Wellons, "Prospecting for hash functions" (2018).
    """
    x = columns ^ key[:, :1]
    x = ((x ^ (x >> 16)) * 0x7FEB352D) & MASK
    x = ((x ^ (x >> 15)) * 0x846CA68B) & MASK
    return x ^ (x >> 16) ^ key[:, 1:]


def to_bfloat16(x: Tensor, words: Tensor) -> Tensor:
    """Round x >= 0 at random: bits below the last are filled by addition and cut off."""
    return ((x.view(torch.int32) + (words >> 16).int()) >> 16).to(torch.int16).view(torch.bfloat16)


def to_float16(x: Tensor, words: Tensor) -> Tensor:
    """Round x >= 0 at random; below 2^-14 numbers are multiples of 2^-24."""
    fixed = torch.where(x < 2.0**-14, (x * 2.0**37).int(), x.view(torch.int32) - (112 << 23))
    return ((fixed + (words >> 19).int()) >> 13).to(torch.int16).view(torch.float16)


def to_uint8(x: Tensor, words: Tensor) -> Tensor:
    """Round 254 x at random, in integers: fused and plain multiply-adds give the same."""
    fixed = (x.clamp(max=1.0) * 2.0**24 + 0.5).long()
    return ((fixed * LEVELS + (words >> 8)) >> 24).to(torch.uint8)


ROUND = {"bfloat16": to_bfloat16, "float16": to_float16, "uint8": to_uint8}


def encode(storage: Storage, rows: Tensor, key: Tensor | None) -> Tensor:
    """Records (n, W) of rows (n, C) float32 >= 0, rounded by their keys (n, 2); float32 needs none."""
    if storage.kind == "float32" or key is None:
        return rows
    columns = torch.arange(rows.shape[1], device=rows.device)
    if storage.kind != "topk":
        return ROUND[storage.kind](rows, random_words(key, columns))
    # Floats >= 0 are ordered like their bits; below these, the class makes the order strict.
    order = (rows.contiguous().view(torch.int32).long() << 32) | (storage.classes - 1 - columns)
    ids = storage.classes - 1 - (order.topk(storage.kept, dim=1).values & MASK)
    rest = rows.scatter(1, ids, 0.0).sum(1, keepdim=True)
    columns = torch.cat((ids, torch.full_like(ids[:, :1], storage.classes)), 1)
    values = to_float16(torch.cat((rows.gather(1, ids), rest), 1), random_words(key, columns))
    return _record(storage, ids, values)


def decode(storage: Storage, records: Tensor, num_classes: int) -> Tensor:
    """Rows (n, C) float32 of records (n, W); a row that was never written starts with a negative number."""
    if storage.kind == "uint8":
        return torch.where(records == NEVER_WRITTEN["uint8"], -1.0, records.float() * (1.0 / LEVELS))
    if storage.kind != "topk":
        return records.float()
    ids, values, rest = topk_parts(storage, records)
    share = rest * (1.0 / max(num_classes - storage.kept, 1))
    return share.repeat(1, num_classes).scatter_(1, ids.clamp(0, num_classes - 1), values)


def topk_parts(storage: Storage, records: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Class ids (n, K) int64, values (n, K) and rest (n, 1) float32 of topk records."""
    ids = records[:, : storage.id_words].long() & 0xFFFF
    if storage.id_words > storage.kept:
        ids = ids[:, 0::2] | (ids[:, 1::2] << 16)
    values = records[:, storage.id_words :].contiguous().view(torch.float16).float()
    return ids, values[:, :-1], values[:, -1:]


def one_hot(storage: Storage, label: Tensor, num_classes: int) -> Tensor:
    """Records (n, W) of one-hot rows, which no format has to round; label (n,) int64."""
    if storage.kind != "topk":
        one = LEVELS if storage.kind == "uint8" else 1.0
        rows = torch.zeros(len(label), num_classes, dtype=storage.dtype, device=label.device)
        return rows.scatter_(1, label[:, None], one)
    others = torch.arange(storage.kept - 1, device=label.device)
    ids = torch.cat((label[:, None], others + (others >= label[:, None])), 1)
    values = torch.zeros(len(label), storage.kept + 1, dtype=torch.float16, device=label.device)
    values[:, 0] = 1.0
    return _record(storage, ids, values)


def _record(storage: Storage, ids: Tensor, values: Tensor) -> Tensor:
    """Records of class ids (n, K) and float16 values (n, K + 1), the last of them the rest."""
    if storage.id_words > storage.kept:
        ids = torch.stack((ids & 0xFFFF, ids >> 16), -1).flatten(1)
    return torch.cat((ids.to(torch.int16), values.view(torch.int16)), 1)
