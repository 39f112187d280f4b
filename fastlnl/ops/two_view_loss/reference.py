"""two_view_loss in plain torch; float64 logits are computed in float64."""

import torch
from torch import Tensor

from fastlnl.ops.row_loss.reference import check_rows
from fastlnl.ops.two_view_loss import FLOOR, FULL, TwoViewInput, TwoViewOutput


@torch.no_grad()
def two_view_loss(call: TwoViewInput) -> TwoViewOutput:
    views = torch.stack([call.weak, call.strong])
    z = views if views.dtype == torch.float64 else views.float()
    batch, classes = z.shape[1:]
    valid = check_rows(z[0], call.label, call.index, len(call.wrong_count), call.errors)
    finite = z.isfinite().all(2).all(0)
    y = torch.where(valid, call.label, 0)
    prediction = (z == z.amax(2, keepdim=True)).long().argmax(2)
    prediction = torch.where(valid & finite, prediction, 0)
    tau, eps = (w[:, None].to(z.dtype) for w in count_and_look_up(call, y, prediction, valid, finite))

    p = z.softmax(2)
    clamped = p.clamp(FLOOR, 1 - FLOOR)
    q = torch.where(finite[:, None], clamped.mean(0), torch.nan)
    log_q = q.log()
    entropy = -(q * log_q).sum(1, keepdim=True)
    top = q.amax(1, keepdim=True)
    onehot_top = torch.zeros_like(q).scatter_(1, (q == top).long().argmax(1, keepdim=True), 1.0)
    onehot = torch.zeros_like(q).scatter_(1, y[:, None], 1.0)

    # The entropy term of the sum of the losses is factor (1 - tau) H; `at_top` is its derivative by max q.
    if call.entropy_scale == "none":
        factor, at_top = torch.ones_like(top), torch.zeros_like(top)
    elif call.entropy_scale == "sample":
        factor, at_top = top, (1 - tau) * entropy
    else:
        rows = valid.sum().clamp(min=1)
        factor = torch.where(valid[:, None], top, 0.0).sum(0) / rows
        at_top = torch.where(valid[:, None], (1 - tau) * entropy, 0.0).sum(0) / rows
    apart = z[1] - z[0]
    similarity = torch.where(eps == 0, 0.0, eps * apart.square().mean(1, keepdim=True))
    nll = -(z.log_softmax(2) * onehot).sum((0, 2))[:, None]
    loss = (tau * nll + similarity + factor * (1 - tau) * entropy)[:, 0]

    g = at_top * onehot_top - factor * (1 - tau) * (log_q + 1)
    h = torch.where(p == clamped, g / 2, 0.0)
    pull = torch.stack([-apart, apart]) * (2 * eps / classes)
    dz = tau * (p - onehot) + pull + p * (h - (p * h).sum(2, keepdim=True))

    loss = torch.where(valid, torch.where(finite, loss, torch.nan), 0.0)
    dz = torch.where(valid[:, None], torch.where(finite[:, None], dz * call.grad_scale, torch.nan), 0.0)
    if call.reduction != "none":
        loss = loss.sum() / (max(batch, 1) if call.reduction == "mean" else 1)
    return TwoViewOutput(loss, dz.to(views.dtype), prediction)


def count_and_look_up(
    call: TwoViewInput, y: Tensor, prediction: Tensor, valid: Tensor, finite: Tensor
) -> tuple[Tensor, Tensor]:
    """Clean probability and similarity weight of each row; updates the counters."""
    sample = torch.where(valid, call.index, 0)
    events = torch.where(valid & finite, (prediction != y).sum(0), 0)
    before = call.wrong_count.long()
    after = before.scatter_add(0, sample, events).clamp_(max=FULL)
    groups, rows, _ = call.table.shape
    count = (after if call.before else before)[sample].clamp(0, rows - 1)
    call.wrong_count.copy_(after)
    tau, eps = call.table[y if groups > 1 else 0 * y, count].unbind(1)
    return tau, eps
