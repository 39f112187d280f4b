"""refine_targets on the GPU: a row in one tile up to 4,096 columns, three readings of the predictions above."""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from fastlnl.ops.row_loss.triton_rows import below

TILE_COLUMNS = 4096


@triton.jit
def read(views, m: tl.constexpr, rows, first, columns, inside, C: tl.constexpr, OWN: tl.constexpr):
    """Prediction m of these rows and columns; rows it does not have read 0."""
    at = rows if m < OWN else rows - first
    there = inside & (at >= 0)[:, None]
    z = tl.load(views[m] + at[:, None] * C + columns[None, :], mask=there, other=0.0).to(tl.float32)
    return tl.where((columns < C)[None, :], z, float("-inf"))


@triton.jit
def share_of(m: tl.constexpr, rows, first, keep, OWN: tl.constexpr, VIEWS: tl.constexpr):
    """Weight of prediction m in the mixed row."""
    count = tl.where(rows >= first, VIEWS, OWN).to(tl.float32)
    return keep / count if m < OWN else tl.where(rows >= first, keep / count, 0.0)


@triton.jit
def mixed(views, rows, first, columns, inside, w, y, tops, logs, C: tl.constexpr, OWN: tl.constexpr,
          VIEWS: tl.constexpr):  # fmt: skip
    """The mixed row q; `tops` and `logs` hold maximum and log of the sum for each prediction."""
    slot = tl.arange(0, 16)[None, :]
    q = tl.where(columns[None, :] == y[:, None], w[:, None], 0.0)
    for m in tl.static_range(VIEWS):
        z = read(views, m, rows, first, columns, inside, C, OWN)
        top, log_sum = tl.sum(tl.where(slot == m, tops, 0.0), 1), tl.sum(tl.where(slot == m, logs, 0.0), 1)
        share = share_of(m, rows, first, 1.0 - w, OWN, VIEWS)
        q += share[:, None] * tl.exp(below(z, top[:, None]) - log_sum[:, None])
    return q


@triton.jit
def refine_targets_kernel(views, label, clean_prob, out, batch, first, labelled, power, C: tl.constexpr,
                          OWN: tl.constexpr, VIEWS: tl.constexpr, LABEL: tl.constexpr, ROWS: tl.constexpr,
                          BLOCK: tl.constexpr):  # fmt: skip
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    live = rows < batch
    w = tl.zeros([ROWS], tl.float32)
    y = tl.full([ROWS], -1, tl.int64)
    if LABEL:
        y = tl.load(label + rows, mask=live & (rows < labelled), other=-1)
        given = (y >= 0) & (y < C)
        w = tl.load(clean_prob + rows, mask=given, other=0.0)
        w, y = tl.where(given, w, 0.0), tl.where(given, y, -1)
    if BLOCK >= C:
        columns = tl.arange(0, BLOCK)
        inside = live[:, None] & (columns < C)[None, :]
        q = tl.where(columns[None, :] == y[:, None], w[:, None], 0.0)
        for m in tl.static_range(VIEWS):
            z = read(views, m, rows, first, columns, inside, C, OWN)
            x = below(z, tl.max(z, 1)[:, None])
            e = tl.where((columns < C)[None, :], tl.exp(x), 0.0)
            q += (share_of(m, rows, first, 1.0 - w, OWN, VIEWS) / tl.sum(e, 1))[:, None] * e
        log_q = tl.where(q == 0.0, float("-inf"), tl.log(q)) * power
        t = tl.where((columns < C)[None, :], tl.exp(below(log_q, tl.max(log_q, 1)[:, None])), 0.0)
        t = t / tl.sum(t, 1)[:, None]
        tl.store(out + rows[:, None] * C + columns[None, :], t, mask=inside)
    else:
        slot = tl.arange(0, 16)[None, :]
        tops = tl.zeros([ROWS, 16], tl.float32)
        logs = tl.zeros([ROWS, 16], tl.float32)
        for m in tl.static_range(VIEWS):
            top, s = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
            for start in range(0, C, BLOCK):
                columns = start + tl.arange(0, BLOCK)
                z = read(views, m, rows, first, columns, live[:, None] & (columns < C)[None, :], C, OWN)
                grown = tl.maximum(top, tl.max(z, 1))
                e = tl.where((columns < C)[None, :], tl.exp(below(z, grown[:, None])), 0.0)
                s = s * tl.where(top == float("-inf"), 0.0, tl.exp(below(top, grown))) + tl.sum(e, 1)
                top = grown
            tops, logs = tl.where(slot == m, top[:, None], tops), tl.where(slot == m, tl.log(s)[:, None], logs)
        top, s = tl.full([ROWS], float("-inf"), tl.float32), tl.zeros([ROWS], tl.float32)
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = live[:, None] & (columns < C)[None, :]
            q = mixed(views, rows, first, columns, inside, w, y, tops, logs, C, OWN, VIEWS)
            log_q = tl.where(q == 0.0, float("-inf"), tl.log(q)) * power
            grown = tl.maximum(top, tl.max(log_q, 1))
            e = tl.where((columns < C)[None, :], tl.exp(below(log_q, grown[:, None])), 0.0)
            s = s * tl.where(top == float("-inf"), 0.0, tl.exp(below(top, grown))) + tl.sum(e, 1)
            top = grown
        for start in range(0, C, BLOCK):
            columns = start + tl.arange(0, BLOCK)
            inside = live[:, None] & (columns < C)[None, :]
            q = mixed(views, rows, first, columns, inside, w, y, tops, logs, C, OWN, VIEWS)
            log_q = tl.where(q == 0.0, float("-inf"), tl.log(q)) * power
            t = tl.exp(below(log_q, top[:, None])) / s[:, None]
            tl.store(out + rows[:, None] * C + columns[None, :], t, mask=inside)


def refine_targets(
    logits: Sequence[Tensor],
    peer: Sequence[Tensor],
    label: Tensor | None,
    clean_prob: Tensor | None,
    temperature: float,
) -> Tensor:
    batch, classes = logits[0].shape
    views = tuple(z.contiguous() for z in (*logits, *peer))
    out = torch.empty(batch, classes, device=logits[0].device)
    if batch > 0:
        shape = tile_shape(classes)
        first = batch - len(peer[0]) if peer else batch
        refine_targets_kernel[(triton.cdiv(batch, shape["ROWS"]),)](
            views, label, clean_prob, out, batch, first, 0 if label is None else len(label), 1.0 / temperature,
            C=classes, OWN=len(logits), VIEWS=len(views), LABEL=label is not None, **shape,
        )  # fmt: skip
    return out


def tile_shape(classes: int) -> dict[str, int]:
    """Rows a program, columns of a tile and warps: about 8 elements a thread."""
    block = min(TILE_COLUMNS, triton.next_power_of_2(classes))
    rows = max(1, min(16, 512 // block))
    return {"ROWS": rows, "BLOCK": block, "num_warps": max(1, min(8, rows * block // 256))}
