"""row_loss in plain torch, the shortest form that meets the contract; float64 logits are computed in float64."""

import torch
from torch import Tensor

from .contract import RowLossInput, RowLossOutput, RowStats, TableTarget
from .definition import TORCH_NAMESPACE


def row_loss(call: RowLossInput) -> RowLossOutput:
    z = call.logits if call.logits.dtype == torch.float64 else call.logits.float()
    batch, classes = z.shape
    valid = _check(call)
    label = torch.where(valid, call.label, 0) if call.label is not None else valid.long() * 0
    onehot = torch.zeros_like(z).scatter_(1, label[:, None], 1.0)

    top = z.amax(1, keepdim=True)
    x = torch.where(z == -torch.inf, -1e30, z - top)
    e = x.exp()
    sum_e = e.sum(1, keepdim=True)
    log_sum = sum_e.log()
    p, logp = e / sum_e, x - log_sum
    entropy = log_sum - (e * x).sum(1, keepdim=True) / sum_e
    nll = -logp.gather(1, label[:, None])[:, 0]
    finite = logp.isfinite().all(1)

    if call.memory is not None and call.index is not None:
        t = _move(call.memory, torch.where(valid, call.index, 0), onehot, p, valid, finite)
    else:
        t = torch.zeros_like(p) if call.target is None else call.target.to(z.dtype)
    numbers = {
        "nll": nll,
        "p_label": (-nll).exp(),
        "entropy": entropy[:, 0],
        "target_sum": t.sum(1),
        "target_p": (t * p).sum(1),
        "target_logp": (t * logp).sum(1),
        "logp_sum": logp.sum(1),
        "num_classes": torch.full_like(nll, classes),
    }
    function = call.loss.bind(TORCH_NAMESPACE)
    returned = function(*(numbers[k] for k in call.loss.statistics), *call.parameters)
    loss, a, b, c, d, e_, f = (torch.as_tensor(v, dtype=z.dtype, device=z.device).expand(batch) for v in returned)
    dz = p * (a[:, None] + e_[:, None] * t + d[:, None] * (x + (entropy - log_sum))) + f[:, None]
    dz = dz - c[:, None] * t - b[:, None] * onehot

    weight = torch.ones_like(loss) if call.weight is None else call.weight.to(z.dtype)
    loss = torch.where(valid, torch.where(finite, loss * weight, torch.nan), 0.0)
    keep = valid & finite
    dz = torch.where(keep[:, None], dz * (weight * call.grad_scale)[:, None], torch.where(valid, torch.nan, 0.0)[:, None])
    if call.reduction == "sum":
        loss = loss.sum()
    elif call.reduction == "mean":
        loss = loss.sum() / max(batch, 1)
    stats = None
    if call.with_stats:
        others = torch.where(onehot > 0, -torch.inf, z).amax(1)
        margin = z.gather(1, label[:, None])[:, 0] - others if classes > 1 else torch.zeros_like(nll)
        columns = (nll, numbers["p_label"], 1 / sum_e[:, 0], margin, entropy[:, 0])
        nll, p_label, confidence, margin, h = (torch.where(valid, v, 0.0).float() for v in columns)
        prediction = torch.where(valid, (z == top).long().argmax(1), 0)
        stats = RowStats(nll, p_label, confidence, prediction, margin, h)
    return RowLossOutput(loss if z.dtype == torch.float64 else loss.float(), dz.to(call.logits.dtype), stats)


def _check(call: RowLossInput) -> Tensor:
    """(B,) bool, which rows have label and id in range; the first that has not is recorded."""
    batch, classes = call.logits.shape
    position = torch.arange(batch, device=call.logits.device)
    ids = position if call.index is None else call.index
    label = position * 0 if call.label is None else call.label
    rows = torch.iinfo(torch.int64).max if call.memory is None else len(call.memory.table)
    wrong_label, wrong_id = (label < 0) | (label >= classes), (ids < 0) | (ids >= rows)
    if call.memory is None:
        wrong_id = torch.zeros_like(wrong_id)
    kind = torch.where(wrong_label, 1, wrong_id * 2)
    if batch > 0:
        at = (kind > 0).long().argmax()
        record = torch.stack([kind[at], at, ids[at], torch.where(wrong_label[at], label[at], ids[at])])
        call.errors.copy_(torch.where((call.errors[0] == 0) & (kind[at] > 0), record, call.errors))
    return kind == 0


def _move(memory: TableTarget, index: Tensor, onehot: Tensor, p: Tensor, valid: Tensor, finite: Tensor) -> Tensor:
    """The targets of the rows; of several valid rows of an id the last one is stored, if it is finite."""
    before = memory.table[index]
    old, use, keep = before.to(p.dtype), torch.full_like(p[:, :1], memory.use), torch.full_like(p[:, :1], memory.keep)
    fresh = old[:, :1] < 0
    if memory.one_hot:
        old = torch.where(fresh, onehot, old)
    else:
        use, keep = use.where(~fresh, 0.0), keep.where(~fresh, 0.0)
    position = torch.arange(len(index), device=index.device)
    last = torch.full((len(memory.table),), -1, device=index.device)
    last.scatter_reduce_(0, index, torch.where(valid, position, -1), "amax")
    winner = last[index]  # every occurrence of an id writes the winner's row
    stored = torch.where(finite[:, None], (keep * old + (1 - keep) * p).to(before.dtype), before)
    memory.table[index] = torch.where((winner >= 0)[:, None], stored[winner], before)
    return use * old + (1 - use) * p
