"""select on the CPU: radix selection inside each group's keys, then one pass in the order of the ids.

One thread: a million samples take some milliseconds, and that is once an epoch.
"""

import numpy as np
import torch
from numba import carray, njit
from torch import Tensor

from fastlnl.cpu.native import as_float32, as_int8, as_int64

DIGIT = 256
NOBODY = 1 << 32  # past every key


@njit(inline="always")
def key_of(bits, largest):
    """Float32 bits as an integer above 0 that is higher for a better score; 0 for NaN."""
    magnitude = np.int64(bits) & 0x7FFFFFFF
    if magnitude > 0x7F800000:
        return np.int64(0)
    signed = -magnitude if bits < 0 else magnitude  # -0.0 is 0
    return 0x80000000 + (signed if largest else -signed)


@njit(inline="always")
def bits_of(key, largest):
    """The score that has this key, as float32 bits; past every key it is infinite."""
    if key == NOBODY:
        return np.int32(0x7F800000 if largest else -0x800000)
    signed = key - 0x80000000 if largest else 0x80000000 - key
    return np.int32(signed if signed >= 0 else -signed - 0x80000000)


@njit
def last_selected(keys, low, high, remaining, count):
    """Key of the `remaining`-th best among keys[low:high], which are reordered, and how many equal ones are taken."""
    prefix = 0
    for shift in (24, 16, 8, 0):
        count[:] = 0
        for i in range(low, high):
            count[i & 3, (keys[i] >> shift) & (DIGIT - 1)] += 1
        digit, here = DIGIT, 0
        while remaining > here:
            remaining -= here
            digit -= 1
            here = count[0, digit] + count[1, digit] + count[2, digit] + count[3, digit]
        prefix = (prefix << 8) | digit
        kept = low
        for i in range(low, high):
            key = keys[i]
            keys[kept] = key
            kept += (key >> shift) == prefix
        high = kept
    return prefix, remaining


@njit("void(int64,int64,int64,int64,int64,boolean,int64,int64)", cache=True, nogil=True)
def select_kernel(n, scores_, group_, groups, quota_, largest, mask_, cut_):
    scores, cut = carray(as_float32(scores_), n).view(np.int32), carray(as_float32(cut_), groups).view(np.int32)
    group, quota, mask, one = as_int64(group_), as_int64(quota_), as_int8(mask_), group_ == 0
    start = np.zeros(groups + 1, np.int64)
    keys = np.empty(n + 1, np.int64)  # a key that does not count is written past those that do, and then over
    if one:
        kept = 0
        for i in range(n):
            key = key_of(scores[i], largest)
            keys[kept] = key
            kept += key > 0
        start[1] = kept
    else:
        for i in range(n):
            if 0 <= group[i] < groups and key_of(scores[i], largest) > 0:
                start[group[i] + 1] += 1
        for g in range(groups):
            start[g + 1] += start[g]
        write = start[:-1].copy()
        for i in range(n):
            key = key_of(scores[i], largest)
            if 0 <= group[i] < groups and key > 0:
                keys[write[group[i]]] = key
                write[group[i]] += 1
    last, ties = np.full(groups, NOBODY, np.int64), np.zeros(groups, np.int64)
    count = np.empty((4, DIGIT), np.int64)  # four, or equal digits in a row wait for each other
    for g in range(groups):
        remaining = min(quota[g], start[g + 1] - start[g])
        if remaining > 0:
            last[g], ties[g] = last_selected(keys, start[g], start[g + 1], remaining, count)
        cut[g] = bits_of(last[g], largest)
    line, left = last[0], ties[0]
    for i in range(n):
        key = key_of(scores[i], largest)
        if one:
            tie = (key == line) & (left > 0)
            left -= tie
            mask[i] = (key > line) | tie
        elif 0 <= group[i] < groups:
            g = group[i]
            tie = (key == last[g]) & (ties[g] > 0)
            ties[g] -= tie
            mask[i] = (key > last[g]) | tie
        else:
            mask[i] = 0


def select(scores: Tensor, quota: Tensor, group: Tensor | None, largest: bool) -> tuple[Tensor, Tensor]:
    n, groups = len(scores), len(quota)
    mask, cut = torch.empty(n, dtype=torch.int8), torch.empty(groups)
    member = 0 if group is None else group.data_ptr()
    select_kernel(
        n, scores.data_ptr(), member, groups, quota.data_ptr(), largest, mask.data_ptr(), cut.data_ptr()
    )  # fmt: skip
    return mask.view(torch.bool), cut
