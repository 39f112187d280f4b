"""Rows of the label memory on the GPU: read into a tile of float32, written back in the format of the table.

bfloat16, float16 and topk tables come as int16. See `storage` for the formats and the rounding.
"""

import triton
import triton.language as tl

from fastlnl.ops.row_loss.storage import LEVELS as _LEVELS
from fastlnl.ops.row_loss.storage import NEVER_WRITTEN, STREAM

LEVELS, KEY = tl.constexpr(_LEVELS), tl.constexpr(STREAM << 32)
EMPTY = tl.constexpr(NEVER_WRITTEN["uint8"])


@triton.jit
def row_key(seed, step, sample):
    """The two words that make the random words of a row."""
    now = tl.load(step)
    zero = sample * 0
    low, high = (zero + now).to(tl.uint32), (zero + (now >> 32)).to(tl.uint32)
    key = (seed.to(tl.int64) & 0xFFFFFFFF) | KEY
    first, second, _, _ = tl.philox(key, sample.to(tl.uint32), (sample >> 32).to(tl.uint32), low, high)
    return first, second


@triton.jit
def random_words(columns, first, second):
    """A 32-bit word for each column: lowbias32 of C. Wellons."""
    x = columns.to(tl.uint32) ^ first
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16) ^ second


@triton.jit
def to_float16(x, words):
    """Bits of x >= 0 rounded at random; below 2^-14 numbers are multiples of 2^-24."""
    fixed = tl.where(x < 6.103515625e-5, (x * 137438953472.0).to(tl.int32), x.to(tl.int32, bitcast=True) - (112 << 23))
    return ((fixed + (words >> 19).to(tl.int32)) >> 13).to(tl.int16)


@triton.jit
def rounded(x, words, STORAGE: tl.constexpr):
    if STORAGE == "bfloat16":
        bits = ((x.to(tl.int32, bitcast=True) + (words >> 16).to(tl.int32)) >> 16).to(tl.int16)
    elif STORAGE == "float16":
        bits = to_float16(x, words)
    else:
        fixed = (tl.minimum(x, 1.0) * 16777216.0 + 0.5).to(tl.int32).to(tl.uint32)
        bits = ((fixed * LEVELS + (words >> 8)) >> 24).to(tl.uint8)
    return bits


@triton.jit
def from_float16(bits):
    return bits.to(tl.float16, bitcast=True).to(tl.float32)


@triton.jit
def id_words(C: tl.constexpr, KEPT: tl.constexpr):
    """Words of the class ids in a topk record."""
    return KEPT if C <= 65536 else 2 * KEPT


@triton.jit
def record_of(target, sample, C: tl.constexpr, KEPT: tl.constexpr):
    return target + sample * (id_words(C, KEPT) + KEPT + 1)


@triton.jit
def read_rows(target, sample, columns, live, C: tl.constexpr, STORAGE: tl.constexpr, KEPT: tl.constexpr):
    """The tile (samples, columns) of the table; 0 where not `live` and past the last column.

    A row that was never written is negative in its first column.
    """
    inside = live[:, None] & (columns < C)[None, :]
    if STORAGE == "topk":
        record = record_of(target, sample, C, KEPT)
        values = record + id_words(C, KEPT)
        share = from_float16(tl.load(values + KEPT, mask=live, other=0)) * (1.0 / max(C - KEPT, 1))
        rows = share[:, None] + tl.zeros([1, columns.shape[0]], tl.float32)
        for i in range(KEPT):
            if C <= 65536:
                kept = tl.load(record + i, mask=live, other=0).to(tl.int32) & 0xFFFF
            else:
                low = tl.load(record + 2 * i, mask=live, other=0).to(tl.int32) & 0xFFFF
                kept = low | (tl.load(record + 2 * i + 1, mask=live, other=0).to(tl.int32) << 16)
            value = from_float16(tl.load(values + i, mask=live, other=0))
            rows = tl.where(columns[None, :] == kept[:, None], value[:, None], rows)
        rows = tl.where(inside, rows, 0.0)
    else:
        words = tl.load(target + sample[:, None] * C + columns[None, :], mask=inside, other=0)
        if STORAGE == "float32":
            rows = words
        elif STORAGE == "bfloat16":
            rows = (words.to(tl.int32) << 16).to(tl.float32, bitcast=True)
        elif STORAGE == "float16":
            rows = from_float16(words)
        else:
            rows = tl.where(words == EMPTY, -1.0, words.to(tl.float32) * (1.0 / LEVELS))
    return rows


@triton.jit
def write_dense(target, sample, columns, rows, stores, seed, step, C: tl.constexpr, STORAGE: tl.constexpr):
    """Store the tile of rows where `stores`, rounded at random."""
    bits = rows
    if STORAGE != "float32":
        first, second = row_key(seed, step, sample)
        bits = rounded(rows, random_words(columns[None, :], first[:, None], second[:, None]), STORAGE)
    tl.store(target + sample[:, None] * C + columns[None, :], bits, mask=stores[:, None] & (columns < C)[None, :])


@triton.jit
def write_kept(record, i, kept, value, stores, first, second, C: tl.constexpr, KEPT: tl.constexpr):
    """Place i of a topk record."""
    if C <= 65536:
        tl.store(record + i, kept.to(tl.int16), mask=stores)
    else:
        tl.store(record + 2 * i, kept.to(tl.int16), mask=stores)
        tl.store(record + 2 * i + 1, (kept >> 16).to(tl.int16), mask=stores)
    tl.store(record + id_words(C, KEPT) + i, to_float16(value, random_words(kept, first, second)), mask=stores)


@triton.jit
def write_rest(record, rest, stores, first, second, C: tl.constexpr, KEPT: tl.constexpr):
    """The mass of the other classes, rounded as a column behind the last."""
    bits = to_float16(rest, random_words(tl.zeros_like(rest).to(tl.int32) + C, first, second))
    tl.store(record + id_words(C, KEPT) + KEPT, bits, mask=stores)


@triton.jit
def write_topk(target, sample, columns, rows, stores, seed, step, C: tl.constexpr, KEPT: tl.constexpr):
    """Store whole rows as topk records: KEPT times the largest of the tile, then the sum of what is left."""
    first, second = row_key(seed, step, sample)
    record = record_of(target, sample, C, KEPT)
    rows = tl.where(stores[:, None] & (columns < C)[None, :], rows, -1.0)
    for i in range(KEPT):
        value, kept = tl.max(rows, 1, return_indices=True)
        write_kept(record, i, kept, value, stores, first, second, C, KEPT)
        rows = tl.where(columns[None, :] == kept[:, None], -1.0, rows)
    write_rest(record, tl.sum(tl.maximum(rows, 0.0), 1), stores, first, second, C, KEPT)


@triton.jit
def new_best(KEPT: tl.constexpr):
    """An empty list of the KEPT best of one row, values and classes (1, P); an empty place is worse than any class."""
    place = tl.arange(0, triton.next_power_of_2(KEPT))[None, :]
    return tl.where(place < KEPT, -1.0, float("inf")), -1 - place


@triton.jit
def merge_best(values, kept, rest, rows, columns):
    """Take what is better than the worst of the list out of a block (1, BLOCK) of later columns; sum the others."""
    best, at = tl.max(rows, 1, return_indices=True)
    while tl.max(best, 0) > tl.min(values):
        worst = tl.min(values, 1)
        last = tl.max(tl.where(values == worst[:, None], kept, -2147483648), 1)  # of equal ones the highest class goes
        goes = kept == last[:, None]
        rest += tl.maximum(worst, 0.0)
        values = tl.where(goes, best[:, None], values)
        comes = tl.arange(0, rows.shape[1])[None, :] == at[:, None]
        kept = tl.where(goes, tl.sum(tl.where(comes, columns[None, :], 0), 1)[:, None], kept)
        rows = tl.where(comes, -1.0, rows)
        best, at = tl.max(rows, 1, return_indices=True)
    return values, kept, rest + tl.sum(tl.maximum(rows, 0.0), 1)


@triton.jit
def write_best(target, sample, values, kept, rest, stores, seed, step, C: tl.constexpr, KEPT: tl.constexpr):
    """Store the list as a topk record, the largest value first."""
    first, second = row_key(seed, step, sample)
    record = record_of(target, sample, C, KEPT)
    values = tl.where(kept < 0, -1.0, values)
    for i in range(KEPT):
        value = tl.max(values, 1)
        lowest = tl.min(tl.where(values == value[:, None], kept, C), 1)
        write_kept(record, i, lowest, value, stores, first, second, C, KEPT)
        values = tl.where(kept == lowest[:, None], -1.0, values)
    write_rest(record, rest, stores, first, second, C, KEPT)
