"""From the row pass to autograd: the library's only autograd functions.

The pass has the gradient ready when the loss is known; backward hands it out, multiplied by the incoming gradient where
that is not 1. State moves in the pass, outside of autograd, so a graph that is run twice moves it once.
"""

from typing import Any

import torch
from torch import Tensor

from fastlnl.ops.row_loss import Book, LossDefinition, RowStats, TableTarget, operator, row_loss
from fastlnl.ops.row_loss.storage import FLOAT32
from fastlnl.ops.scale_rows import scale_rows_

NO_MEMORY = (None, 1.0, 1.0, False, FLOAT32, 0, None)
# True while a backward pass with retain_graph=True runs; without the function every pass keeps the graph.
_keeps_graph = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", lambda: True)


class _WithGradient(torch.autograd.Function):
    """loss, whose derivative by the logits is `dlogits * constant`; the buffer is given away in backward."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, dlogits: Tensor, constant: float) -> Tensor:
        ctx.dlogits, ctx.constant = dlogits, constant
        return loss

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError("fused losses have no second derivative; call backward without create_graph=True")
        dlogits = ctx.dlogits
        if dlogits is None:
            raise RuntimeError(
                "backward was called a second time on the same loss; call it with retain_graph=True the first time"
            )
        if _keeps_graph():
            dlogits = dlogits.clone()
        else:
            ctx.dlogits = None
        return scale_rows_(dlogits, grad, ctx.constant), None, None, None


class _WithGradientCompiled(torch.autograd.Function):
    """The same in operations that torch.compile can trace."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, loss: Tensor, dlogits: Tensor, constant: float) -> Tensor:
        ctx.save_for_backward(dlogits)
        ctx.constant = constant
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        (dlogits,) = ctx.saved_tensors
        return (dlogits * (grad * ctx.constant).reshape(-1, 1)).to(dlogits.dtype), None, None, None


def fused_loss(
    logits: Tensor,
    label: Tensor | None,
    loss: LossDefinition,
    parameters: tuple[float, ...] = (),
    *,
    target: Tensor | None = None,
    memory: TableTarget | None = None,
    index: Tensor | None = None,
    weight: Tensor | None = None,
    reduction: str = "mean",
    book: Book | None = None,
    errors: Tensor,
) -> Tensor:
    """`row_loss` as a differentiable function of logits and weight; arguments and errors as there.

    "mean" divides by the batch size, with weights too. float16 logits keep the gradient undivided until backward, where
    the loss scale is known: 1/B would push it below the smallest float16.

    Returns:
        Loss () float32, or (B,) with reduction "none".

    Updates: memory.table, memory.step, book, errors (once, in the forward call).
    """
    if weight is not None and weight.requires_grad:
        rows = fused_loss(
            logits, label, loss, parameters, target=target, memory=memory, index=index, reduction="none",
            book=book, errors=errors)  # fmt: skip
        weighted = rows * weight
        return weighted if reduction == "none" else weighted.mean() if reduction == "mean" else weighted.sum()
    scale = 1.0 / max(len(logits), 1) if reduction == "mean" else 1.0
    late = logits.dtype == torch.float16
    now, later = (1.0, scale) if late else (scale, 1.0)
    differentiable = logits.requires_grad and torch.is_grad_enabled()
    if torch.compiler.is_compiling():
        table, use, keep, one_hot, storage, seed, step = NO_MEMORY if memory is None else memory
        value, dlogits, numbers, prediction = torch.ops.fastlnl.row_loss(
            logits.detach(), label, loss.name, parameters, target, table, use, keep, one_hot, index, weight, now,
            reduction, errors, *storage, seed, step, book is not None)  # fmt: skip
        if book is not None:
            assert index is not None
            assert label is not None
            book.update(index, label, RowStats(numbers, prediction))
        return _WithGradientCompiled.apply(logits, value, dlogits, later) if differentiable else value
    value, dlogits, _ = row_loss(
        logits,
        label,
        loss,
        parameters,
        target=target,
        memory=memory,
        index=index,
        weight=weight,
        grad_scale=now,
        reduction=reduction,
        book=book,
        errors=errors,
    )
    return _WithGradient.apply(logits, value, dlogits, later) if differentiable else value


__all__ = ["fused_loss", "operator"]
