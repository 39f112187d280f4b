"""refine_targets in plain torch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fastlnl.ops.row_loss.reference import softmax


def refine_targets(
    logits: Sequence[Tensor],
    peer: Sequence[Tensor],
    label: Tensor | None,
    clean_prob: Tensor | None,
    temperature: float,
) -> Tensor:
    number = torch.float64 if logits[0].dtype == torch.float64 else torch.float32
    q = torch.stack([softmax(z.to(number).contiguous()).p for z in logits]).sum(0)
    if peer:
        first = len(q) - len(peer[0])
        rest = torch.stack([softmax(z.to(number).contiguous()).p for z in peer]).sum(0) + q[first:]
        q = torch.cat([q[:first] / len(logits), rest / (len(logits) + len(peer))])
    else:
        q = q / len(logits)
    if label is not None and clean_prob is not None:
        given = (label >= 0) & (label < q.shape[1])
        w = torch.where(given, clean_prob.to(number), 0.0)[:, None]
        mixed = ((1 - w) * q[: len(label)]).scatter_add(1, torch.where(given, label, 0)[:, None], w)
        q = torch.cat([mixed, q[len(label) :]])
    return softmax(q.log() / temperature).p
