"""row_loss in plain torch, the shortest form that meets the contract; float64 logits are computed in float64."""

from typing import NamedTuple

import torch
from torch import Tensor

from fastlnl.ops.row_loss.contract import PADDING, RowLossInput, RowLossOutput, RowStats, TableTarget
from fastlnl.ops.row_loss.definition import TORCH_NAMESPACE
from fastlnl.ops.row_loss.storage import decode, encode, row_key


class Softmax(NamedTuple):
    """One row each: everything that follows from the logits alone."""

    x: Tensor  # (B, C) logits minus their maximum
    p: Tensor  # (B, C)
    log_sum: Tensor  # (B, 1) log sum exp x
    entropy: Tensor  # (B, 1)
    finite: Tensor  # (B,) bool


def softmax(z: Tensor) -> Softmax:
    x = (z - z.amax(1, keepdim=True)).clamp(min=-1e30)  # -inf is that far below: probability 0, and 0 * log 0 = 0
    e = x.exp()
    sum_e = e.sum(1, keepdim=True)
    entropy = sum_e.log() - (e * x).sum(1, keepdim=True) / sum_e
    return Softmax(x, e / sum_e, sum_e.log(), entropy, (x - sum_e.log()).isfinite().all(1))


def statistics(z: Tensor, s: Softmax, label: Tensor, valid: Tensor) -> RowStats:
    """Row statistics; rows that are not valid are 0."""
    at_label = label[:, None]
    nll = (s.log_sum - s.x.gather(1, at_label))[:, 0]
    others = z.scatter(1, at_label, -torch.inf).amax(1)
    margin = z.gather(1, at_label)[:, 0] - others if z.shape[1] > 1 else nll * 0
    columns = (nll, (-nll).exp(), (-s.log_sum).exp()[:, 0], margin, s.entropy[:, 0])
    nll, p_label, confidence, margin, entropy = (torch.where(valid, v, 0.0).float() for v in columns)
    prediction = torch.where(valid, (z == z.amax(1, keepdim=True)).long().argmax(1), 0)
    return RowStats.of(nll, p_label, confidence, prediction, margin, entropy)


@torch.no_grad()
def row_loss(call: RowLossInput) -> RowLossOutput:
    z = (call.logits if call.logits.dtype == torch.float64 else call.logits.float()).contiguous()
    batch, classes = z.shape
    num_samples = None if call.memory is None else len(call.memory.table)
    valid = check_rows(z, call.label, call.index, num_samples, call.errors)
    label = torch.where(valid, call.label, 0) if call.label is not None else valid.long() * 0
    onehot = torch.zeros_like(z).scatter_(1, label[:, None], 1.0)
    s = softmax(z)
    p, logp = s.p, s.x - s.log_sum
    if call.memory is not None and call.index is not None:
        t = move(call.memory, torch.where(valid, call.index, 0), onehot, p, valid, s.finite)
    else:
        t = torch.zeros_like(p) if call.target is None else call.target.to(z.dtype)

    nll = -logp.gather(1, label[:, None])[:, 0]
    numbers = {
        "nll": nll,
        "p_label": (-nll).exp(),
        "entropy": s.entropy[:, 0],
        "target_sum": t.sum(1),
        "target_p": (t * p).sum(1),
        "target_logp": (t * logp).sum(1),
        "logp_sum": logp.sum(1),
        "num_classes": torch.full_like(nll, classes),
    }
    function = call.loss.bind(TORCH_NAMESPACE)
    returned = function(*(numbers[k] for k in call.loss.statistics), *call.parameters)
    columns = (torch.as_tensor(v, dtype=z.dtype, device=z.device).expand(batch)[:, None] for v in returned)
    loss, a, b, c, d, e, f = columns
    dz = p * (a + e * t + d * (s.x + (s.entropy - s.log_sum))) - b * onehot - c * t + f

    weight = torch.ones_like(loss) if call.weight is None else call.weight[:, None].to(z.dtype)
    weight = torch.where(s.finite[:, None], weight, torch.nan)
    loss = torch.where(valid, (loss * weight)[:, 0], 0.0)
    dz = torch.where(valid[:, None], dz * (weight * call.grad_scale), 0.0)
    if call.reduction != "none":
        loss = loss.sum() / (max(batch, 1) if call.reduction == "mean" else 1)
    stats = statistics(z, s, label, valid) if call.with_stats else None
    return RowLossOutput(loss, dz.to(call.logits.dtype), stats)


def check_rows(
    logits: Tensor, label: Tensor | None, index: Tensor | None, num_samples: int | None, errors: Tensor
) -> Tensor:
    """(B,) bool, which rows have label and id in range; the first that has not, and is no padding, is recorded."""
    batch, classes = logits.shape
    position = torch.arange(batch, device=logits.device)
    ids = position if index is None else index
    label = position * 0 if label is None else label
    wrong_label = (label < 0) | (label >= classes)
    wrong_id = torch.zeros_like(wrong_label) if num_samples is None else (ids < 0) | (ids >= num_samples)
    padding = torch.zeros_like(wrong_label) if num_samples is None else ids == PADDING
    kind = torch.where(padding, 0, torch.where(wrong_label, 1, wrong_id * 2))
    if batch > 0:
        at = (kind > 0).long().argmax(keepdim=True)  # (1,): a tensor () as an index would be read by the host
        record = torch.cat([kind[at], at, ids[at], torch.where(wrong_label[at], label[at], ids[at])])
        errors.copy_(torch.where((errors[0] == 0) & (kind[at] > 0), record, errors))
    return (kind == 0) & ~padding


def move(memory: TableTarget, index: Tensor, onehot: Tensor, p: Tensor, valid: Tensor, finite: Tensor) -> Tensor:
    """The targets of the rows; of several valid rows of an id the last one is stored, if it is finite."""
    table, storage = memory.table, memory.storage
    place = index.to(table.device)  # a pinned table lies in host memory
    before = table[place].to(p.device)
    old = decode(storage, before, p.shape[1]).to(p.dtype)
    use, keep = torch.full_like(p[:, :1], memory.use), torch.full_like(p[:, :1], memory.keep)
    fresh = old[:, :1] < 0
    if memory.one_hot:
        old = torch.where(fresh, onehot, old)
    else:
        use, keep = use.where(~fresh, 0.0), keep.where(~fresh, 0.0)
    position = torch.arange(len(index), device=index.device)
    last = torch.full((len(table),), -1, device=index.device)
    last.scatter_reduce_(0, index, torch.where(valid, position, -1), "amax")
    winner = last[index]  # every occurrence of an id writes the winner's row
    key = None if memory.step is None else row_key(memory.seed, memory.step, index)
    moves = finite[:, None] & (fresh | (keep < 1))
    stored = torch.where(moves, encode(storage, (keep * old + (1 - keep) * p).float(), key), before)
    table[place] = torch.where((winner >= 0)[:, None], stored[winner], before).to(table.device)
    return use * old + (1 - use) * p
