"""Rows of the label memory on the CPU: who stores them; decoded to a row of float32 in the cache, and written back.

See `storage` for the formats and the rounding. Records and rows are int64 addresses; a row has room for 16 more floats.
"""

import numpy as np
from numba import njit

from fastlnl.cpu.native import as_float32, as_int8, as_int64
from fastlnl.cpu.rows import CHUNK, fill
from fastlnl.cpu.simd import WIDTH, load, load_first, only_first, splat, store, total
from fastlnl.cpu.words import (
    above,
    as_int32,
    as_uint16,
    bits_of,
    count_from,
    floats_of,
    integers,
    load8,
    load8_first,
    load16,
    load16_first,
    load32,
    lowest_bit,
    numbers,
    store8,
    store8_first,
    store16,
    store16_first,
    where_below,
)
from fastlnl.ops.row_loss.contract import PADDING
from fastlnl.ops.row_loss.storage import DTYPES, LEVELS, STREAM
from fastlnl.philox import KEY_STEPS, MASK, MULTIPLIERS, ROUNDS

NO_TARGET, DENSE, TABLE = 0, 1, 2
STORE, READ_ONLY, DEFERRED, INVALID = 0, 1, 2, 3  # roles of a batch position
ROLE, FRESH = 3, 4  # bits: the role; its memory row was never written before
FLOAT32, BFLOAT16, FLOAT16, UINT8, TOPK = range(5)
CODES = dict(zip(DTYPES, range(5), strict=True))
_f = np.float32
_ONE, _MINUS_ONE, _HALF = _f(1.0), _f(-1.0), _f(0.5)
_TO_UNIT, _FROM_UNIT, _TO_FIXED, _LEVEL = _f(2.0**24), _f(2.0**-24), _f(2.0**37), _f(1.0 / LEVELS)


@njit(
    "UniTuple(int64,2)(int64,int64,int64,int64,int64,int64,int64,boolean,boolean,boolean,int64,int64)",
    cache=True,
    nogil=True,
)
def prepare(batch, classes, label_, index_, table_, rows, errors_, one_hot, defer, count, role_, slots):
    """Give each position its role, in batch order; report the first label or id that is out of range.

    Of several occurrences of an id the last one stores its row. With `defer` it has to wait until all
    others have read; returns how many wait, and how many rows are out of range or share their id with a later one
    (without a table only if asked to `count`).
    """
    role, label, index, errors = as_int8(role_), as_int64(label_), as_int64(index_), as_int64(errors_)
    deferred, unfit = 0, 0
    for b in range(batch):
        role[b] = STORE
        if table_ != 0 and index[b] == PADDING:
            role[b] = INVALID
            continue
        if label_ != 0 and not 0 <= label[b] < classes:
            role[b], unfit = INVALID, unfit + 1
            if errors[0] == 0:
                errors[0], errors[1], errors[2], errors[3] = 1, b, index[b] if index_ != 0 else b, label[b]
        if table_ != 0 and not 0 <= index[b] < rows:
            role[b], unfit = INVALID, unfit + 1
            if errors[0] == 0:
                errors[0], errors[1], errors[2], errors[3] = 2, b, index[b], index[b]
    if table_ == 0 and not count:
        return deferred, unfit
    seen = np.full(slots, -1, np.int32)  # open addressing, at most half full
    for b in range(batch - 1, -1, -1):
        if role[b] == INVALID or index[b] == PADDING:
            continue
        slot = (index[b] * 0x9E3779B1) & (slots - 1)
        while seen[slot] >= 0 and index[seen[slot]] != index[b]:
            slot = (slot + 1) & (slots - 1)
        if seen[slot] < 0:
            seen[slot] = b
        else:
            unfit += 1
            if table_ == 0:
                continue
            role[b] = READ_ONLY
            if defer and role[seen[slot]] & ROLE != DEFERRED:
                role[seen[slot]] |= DEFERRED
                deferred += 1
        if one_hot:
            row = table_ + 4 * index[b] * classes
            head = as_float32(row)
            if head[0] < 0:
                role[b] |= FRESH
                fill(row, classes, 0.0)
                head[label[b]] = 1.0
    return deferred, unfit


@njit
def record_bytes(storage, columns, kept):
    """Bytes from one record to the next."""
    if storage == TOPK:
        return 2 * (id_words(columns, kept) + kept + 1)
    return columns * (4 if storage == FLOAT32 else 1 if storage == UINT8 else 2)


@njit
def id_words(columns, kept):
    """Words of the class ids in a topk record."""
    return kept if columns <= 65536 else 2 * kept


@njit
def row_key(seed, step, sample):
    """The two words that make the random words of a row: Philox4x32-10, as in `fastlnl.philox`."""
    word0, word1, word2, word3 = sample & MASK, (sample >> 32) & MASK, step & MASK, (step >> 32) & MASK
    key0, key1 = seed, STREAM
    for _ in range(ROUNDS):
        product0, product1 = word0 * MULTIPLIERS[0], word2 * MULTIPLIERS[1]
        word0, word2 = ((product1 >> 32) & MASK) ^ word1 ^ key0, ((product0 >> 32) & MASK) ^ word3 ^ key1
        word1, word3 = product1 & MASK, product0 & MASK
        key0, key1 = (key0 + KEY_STEPS[0]) & MASK, (key1 + KEY_STEPS[1]) & MASK
    return word0, word1


@njit(inline="always")
def random_words(columns, first, second):
    """A 32-bit word for each column: lowbias32 of C. Wellons."""
    x = columns ^ first
    x = (x ^ (x >> 16)) * 0x7FEB352D
    x = (x ^ (x >> 15)) * 0x846CA68B
    return x ^ (x >> 16) ^ second


@njit(inline="always")
def to_float16(x, words):
    """Bits of x >= 0 rounded at random; below 2^-14 (bits 0x38800000) numbers are multiples of 2^-24."""
    bits = bits_of(x)
    fixed = where_below(bits, 0x38800000, integers(x * _TO_FIXED), bits - (112 << 23))
    return (fixed + (words >> 19)) >> 13


@njit(inline="always")
def from_float16(bits):
    """Floats >= 0, and -1 for any other."""
    normal, small = (bits << 13) + (112 << 23), bits_of(numbers(bits) * _FROM_UNIT)
    normal = where_below(bits, 0x400, small, normal)
    return floats_of(where_below(bits, 0x8000, normal, bits_of(splat(_MINUS_ONE))))


@njit(inline="always")
def rounded(storage, x, words):
    """The words of columns x >= 0 of a dense record."""
    if storage == BFLOAT16:
        return (bits_of(x) + (words >> 16)) >> 16
    if storage == FLOAT16:
        return to_float16(x, words)
    fixed = where_below(bits_of(x), 0x3F800000, integers(x * _TO_UNIT + _HALF), integers(splat(_TO_UNIT)))
    return (fixed * LEVELS + (words >> 8)) >> 24


@njit(inline="always")
def floats(storage, words):
    """The columns of a dense record."""
    if storage == BFLOAT16:
        return floats_of(words << 16)
    if storage == FLOAT16:
        return from_float16(words)
    return floats_of(where_below(words, LEVELS + 1, bits_of(numbers(words) * _LEVEL), bits_of(splat(_MINUS_ONE))))


@njit
def read_row(storage, record, columns, kept, row, lists):
    """Decode a record; a row that was never written starts with a negative number. `lists`: see `write_topk`."""
    if storage == TOPK:
        values = record + 2 * id_words(columns, kept)
        for i in range(0, kept + 1, WIDTH):
            store(lists, i, from_float16(load16_first(values, i, min(WIDTH, kept + 1 - i))))
        value, word, dense = as_float32(lists), as_uint16(record), as_float32(row)
        fill(row, columns, value[kept] * _f(1.0 / max(columns - kept, 1)))
        for i in range(kept):
            j = word[i] if columns <= 65536 else word[2 * i] | (word[2 * i + 1] << 16)
            if j < columns:
                dense[j] = value[i]
        return
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        store(row, j, floats(storage, load8(record, j) if storage == UINT8 else load16(record, j)))
    if whole < columns:
        count = columns - whole
        words = load8_first(record, whole, count) if storage == UINT8 else load16_first(record, whole, count)
        store(row, whole, floats(storage, words))


@njit
def open_row(storage, record, columns, kept, row, lists, start):
    """`read_row`, and whether it was never written: it then is the one-hot of the class `start`, if that is not -1."""
    read_row(storage, record, columns, kept, row, lists)
    dense = as_float32(row)
    fresh = dense[0] < 0
    if fresh and start >= 0:
        fill(row, columns, 0.0)
        dense[start] = 1.0
    return fresh


@njit
def write_row(storage, record, columns, kept, row, lists, seed, step, sample):
    """Round a row >= 0 at random and store it; the row itself is used up."""
    first, second = row_key(seed, step, sample)
    if storage == TOPK:
        write_topk(record, columns, kept, row, lists, first, second)
        return
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        words = rounded(storage, load(row, j), random_words(count_from(j), first, second))
        if storage == UINT8:
            store8(record, j, words)
        else:
            store16(record, j, words)
    if whole < columns:
        count = columns - whole
        words = rounded(storage, load(row, whole), random_words(count_from(whole), first, second))
        if storage == UINT8:
            store8_first(record, whole, count, words)
        else:
            store16_first(record, whole, count, words)


@njit
def write_topk(record, columns, kept, row, lists, first, second):
    """Store the `kept` largest columns, of equal ones the lowest first, and the sum of the others.

    `lists` has room for kept + 17 values and, behind them, as many classes.
    """
    classes_ = lists + 4 * (kept + 17)
    value, kept_class, dense = as_float32(lists), as_int32(classes_), as_float32(row)
    for i in range(kept):
        value[i] = _MINUS_ONE
    for j in range(0, columns, WIDTH):
        x = load(row, j) if j + WIDTH <= columns else load_first(row, j, columns - j, _MINUS_ONE)
        better = above(x, value[kept - 1])
        while better != 0:
            lane = lowest_bit(better)
            better &= better - 1
            v, i = dense[j + lane], kept - 1
            if v > value[i]:
                while i > 0 and value[i - 1] < v:
                    value[i], kept_class[i] = value[i - 1], kept_class[i - 1]
                    i -= 1
                value[i], kept_class[i] = v, j + lane
    word = as_uint16(record)
    for i in range(kept):
        j = kept_class[i]
        dense[j] = 0.0
        if columns <= 65536:
            word[i] = j
        else:
            word[2 * i], word[2 * i + 1] = j & 0xFFFF, j >> 16
    value[kept], kept_class[kept] = _sum(row, columns), columns
    values = record + 2 * id_words(columns, kept)
    for i in range(0, kept + 1, WIDTH):
        bits = to_float16(load(lists, i), random_words(load32(classes_, i), first, second))
        store16_first(values, i, min(WIDTH, kept + 1 - i), bits)


@njit
def _sum(row, columns):
    whole_sum = 0.0
    for start in range(0, columns, CHUNK):
        stop, lane_sum = min(columns, start + CHUNK), splat(_f(0.0))
        for j in range(start, stop, WIDTH):
            x = load(row, j)
            lane_sum = lane_sum + (x if j + WIDTH <= stop else only_first(x, stop - j))
        whole_sum += total(lane_sum)
    return whole_sum
