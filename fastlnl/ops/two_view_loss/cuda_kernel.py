"""two_view_loss by the CUDA C++ extension (`csrc/two_view_loss.cu`): one launch, two and a sum for "batchmean"."""

import torch
from torch import Tensor

from fastlnl import extension
from fastlnl.ops.two_view_loss import TwoViewInput, TwoViewOutput

PLAIN, SAMPLE, MEASURE, COUPLED = range(4)  # as in csrc/kernels.h


def two_view_loss(call: TwoViewInput) -> TwoViewOutput:
    batch, classes = call.weak.shape
    weak, strong = (z.detach() for z in (call.weak, call.strong))
    if classes > 1:
        weak, strong = (z if z.stride(1) == 1 else z.contiguous() for z in (weak, strong))
    device = weak.device
    loss = torch.empty(batch, device=device)
    dlogits = torch.empty(2, batch, classes, dtype=weak.dtype, device=device)
    prediction = torch.empty(2, batch, dtype=torch.int64, device=device)

    def launch(mode: int, weights: Tensor | None, terms: Tensor | None, totals: Tensor | None) -> None:
        extension.operators().two_view_loss(
            weak, strong, call.label, call.index, call.wrong_count, call.table, weights, terms, totals, loss, dlogits,
            prediction, call.errors, mode, call.before, call.grad_scale,
        )  # fmt: skip

    if call.entropy_scale == "batchmean":
        weights, terms = torch.empty(2, batch, device=device), torch.empty(3, batch, device=device)
        launch(MEASURE, weights, terms, None)
        launch(COUPLED, weights, None, terms.sum(1))
    else:
        launch(SAMPLE if call.entropy_scale == "sample" else PLAIN, None, None, None)
    if call.reduction != "none":
        loss = loss.mean() if call.reduction == "mean" and batch > 0 else loss.sum()
    return TwoViewOutput(loss, dlogits, prediction)
