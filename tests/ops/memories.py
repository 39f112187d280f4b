"""Label memories of every storage, for the tests of the row pass."""

import torch
from truths import call

from fastlnl.ops.row_loss import Storage, TableTarget
from fastlnl.ops.row_loss.storage import decode, encode, row_key

LOSSY = ("bfloat16", "float16", "uint8", "topk:1", "topk:3")
QUANTUM = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "uint8": 1 / 254, "topk": 2.0**-11}  # of numbers below 1
SEED = 7
WIDE = 40  # classes that `make_tiles_small` gives to the kernel for wide rows


def make_tiles_small(monkeypatch):
    """Triton reads rows of more than 32 columns 16 at a time: wide rows that an interpreter can do."""
    try:
        from fastlnl.ops.row_loss import triton_kernel, triton_wide
    except ImportError:
        return

    monkeypatch.setattr(triton_kernel, "TILE_COLUMNS", 32)
    monkeypatch.setattr(triton_wide, "WIDE_BLOCK", 16)
    monkeypatch.setattr(triton_wide, "TOPK_BLOCK", 16)


def memory_of(rows, text, device, use=0.9, keep=0.9, one_hot=True):
    """A label memory that holds these rows (N, C) as well as it can, negative ones as never written."""
    storage = Storage.parse(text, rows.shape[1])
    table = encode(storage, rows.clamp(min=0.0), row_key(SEED, torch.tensor(1 << 40), torch.arange(len(rows))))
    table[rows[:, 0] < 0] = torch.tensor(storage.never_written, dtype=table.dtype)
    step = torch.tensor(0, device=device) if storage.lossy else None
    return TableTarget(table.to(device).clone(), use, keep, one_hot, storage, SEED, step)


def copy_of(memory, device="cpu"):
    return memory._replace(table=memory.table.to(device).clone(), step=memory.step.to(device).clone())


def dense(memory, classes):
    return decode(memory.storage, memory.table.cpu(), classes)


def bits(memory):
    table = memory.table.cpu()
    return table if table.element_size() == 1 else table.view(torch.int16)


def step(memory, z, y, index, name="alr"):
    device = memory.table.device
    return call(z.to(device), y.to(device), name, memory=memory, index=index.to(device))
