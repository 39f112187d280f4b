"""Criteria whose soft targets are a moving average of the network's own predictions, kept for every sample."""

from typing import Any, Literal

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.losses.criterion import Criterion, Reduction, refuse_recomputation, require_inside
from fastlnl.losses.fused import fused_loss
from fastlnl.ops.row_loss import LossDefinition, catalogue
from fastlnl.state.label_memory import Init, LabelMemory


class MemoryCriterion(Criterion):
    """Any loss with soft targets on a label memory: warm-up with cross-entropy, then the loss.

    Each step moves the rows of the batch, R <- momentum R + (1 - momentum) p, and trains on them: the moved row with
    `update_order` "update_then_use", the row as it was with "use_then_update". The target is a constant for the
    gradient. With `target_source` "eval" a step only reads its rows; `refine` moves them.

    Call it once a step, outside of a checkpointed (recomputed) region: a second call would move the rows again.

    Args:
        definition: a loss of `define_loss` that uses targets.
        num_samples, num_classes: N and C; ids are 0..N-1.
        label: (N,) given labels; without them rows start from the labels of the first batch they appear in.
        momentum: weight of the old row, in [0, 1].
        warmup_epochs: epochs of plain cross-entropy, during which rows are not touched.
        init: how a row starts, see `LabelMemory`.
        storage, seed, pin: how and where rows are kept, see `LabelMemory`.
        reduction: "mean", "sum" or "none".
        parameters: of the loss; `dynamics`, see `Criterion`.
    """

    def __init__(
        self,
        definition: LossDefinition,
        num_samples: int,
        num_classes: int,
        label: Tensor | None = None,
        *,
        momentum: float = 0.9,
        warmup_epochs: int = 0,
        init: Init = "onehot",
        storage: str = "float32",
        seed: int = 0,
        pin: bool = False,
        update_order: Literal["update_then_use", "use_then_update"] = "update_then_use",
        target_source: Literal["train", "eval"] = "train",
        reduction: Reduction = "mean",
        **parameters: Any,
    ) -> None:
        super().__init__(definition, reduction=reduction, **parameters)
        require_inside("momentum", momentum, 0, 1)
        if warmup_epochs < 0 or int(warmup_epochs) != warmup_epochs:
            raise ValueError(f"warmup_epochs is {warmup_epochs}; expected a whole number of epochs >= 0")
        if update_order not in ("update_then_use", "use_then_update") or target_source not in ("train", "eval"):
            raise ValueError(
                f"update_order is {update_order!r} and target_source {target_source!r}; expected 'update_then_use' or "
                "'use_then_update', and 'train' or 'eval'"
            )
        self.momentum, self.warmup_epochs, self.target_source = momentum, warmup_epochs, target_source
        self.update_order = update_order
        self.memory = LabelMemory(num_samples, num_classes, label, init, storage, seed, pin=pin)
        if target_source == "eval":
            self._use, self._keep = 1.0, 1.0
        else:
            self._use, self._keep = (momentum if update_order == "update_then_use" else 1.0), momentum
        self.refining = self.epoch >= warmup_epochs  # a flag of its own: torch.compile guards on it, not on the epoch

    def forward(
        self,
        logits: Tensor,
        label: Tensor | None = None,
        index: Tensor | None = None,
        weight: Tensor | None = None,
        target: Tensor | None = None,
    ) -> Tensor:
        """Loss of a batch; `label` (B,) and `index` (B,) are needed. Updates: memory (after the warm-up)."""
        if target is not None:
            raise ShapeError("target was given; this criterion takes its targets from the label memory")
        if not self.refining:
            return self._loss(logits, label, catalogue.cross_entropy, (), index, weight=weight)
        refuse_recomputation("the label memory would move twice in one step")
        memory = self.memory.target(self._use, self._keep)
        return self._loss(logits, label, self.definition, self.parameters_, index, memory=memory, weight=weight)

    @torch.no_grad()
    def refine(self, logits: Tensor, index: Tensor, label: Tensor | None = None) -> None:
        """Move the rows of a batch towards softmax(logits) without a loss, for `target_source` "eval".

        Args:
            logits: (B, C). index: (B,) sample ids. label: (B,), needed only where the memory was built without labels.

        Updates: memory, nothing before the warm-up has ended.
        """
        if not self.refining:
            return
        memory = self.memory.target(1.0, self.momentum)
        if label is None:
            if self.memory.init == "onehot" and self.memory.fingerprint is None:
                raise ShapeError("refine needs label (B,): the label memory was built without the given labels")
            memory = memory._replace(one_hot=False)
        fused_loss(
            logits, label, catalogue.soft_cross_entropy, index=index, memory=memory, reduction="sum", errors=self.errors
        )

    def end_epoch(self) -> None:
        super().end_epoch()
        self.refining = self.epoch >= self.warmup_epochs

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.refining = self.epoch >= self.warmup_epochs

    def _samples(self) -> int:
        return self.memory.num_samples


class ALR(MemoryCriterion):
    """Adaptive label refinement: -<t, log p> + entropy_weight H(p) on a moving average of the predictions.

    Our reconstruction of Zhang et al. 2025, arXiv 2502.00386; the method card says what is known. entropy_weight 0
    gives SELC's loss. Further arguments: `MemoryCriterion`.

    Args:
        entropy_weight: lambda >= 0 of the entropy of the prediction.
        entropy_sign: +1 minimises the entropy; -1 exists to show that the sign matters.
        detach: False lets the gradient flow through p inside the target as well.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        label: Tensor | None = None,
        *,
        momentum: float = 0.9,
        entropy_weight: float = 0.3,
        entropy_sign: int = 1,
        detach: bool = True,
        update_order: Literal["update_then_use", "use_then_update"] = "update_then_use",
        target_source: Literal["train", "eval"] = "train",
        **options: Any,
    ) -> None:
        require_inside("entropy_weight", entropy_weight, 0, float("inf"))
        if entropy_sign not in (1, -1):
            raise ValueError(f"entropy_sign is {entropy_sign}; expected 1 or -1")
        through_target = not detach and target_source == "train" and update_order == "update_then_use"
        super().__init__(
            catalogue.alr,
            num_samples,
            num_classes,
            label,
            momentum=momentum,
            update_order=update_order,
            target_source=target_source,
            entropy_weight=entropy_sign * entropy_weight,
            undetached=1 - momentum if through_target else 0.0,
            **options,
        )


class SELC(MemoryCriterion):
    """-<t, log p> on a moving average of the predictions, after a warm-up. Source: Lu and He 2022.

    Further arguments: `MemoryCriterion`.
    """

    def __init__(
        self, num_samples: int, num_classes: int, label: Tensor | None = None, *, momentum: float = 0.9, **options: Any
    ) -> None:
        super().__init__(catalogue.selc, num_samples, num_classes, label, momentum=momentum, **options)


class ELR(MemoryCriterion):
    """-log p_y + elr_weight log(1 - <t, p>) on a moving average that starts from zeros. Source: Liu et al. 2020.

    The authors' code clamps p to [1e-4, 1 - 1e-4]; here 1 - <t, p> is floored at 1e-4 instead, which is what the clamp
    is there for. momentum/elr_weight: CIFAR-10 .7/3 (asymmetric .9/1), CIFAR-100 .9/7. Further arguments:
    `MemoryCriterion`.
    """

    def __init__(
        self,
        num_samples: int,
        num_classes: int,
        label: Tensor | None = None,
        *,
        momentum: float = 0.7,
        elr_weight: float = 3.0,
        init: Init = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(
            catalogue.elr,
            num_samples,
            num_classes,
            label,
            momentum=momentum,
            init=init,
            elr_weight=elr_weight,
            **options,
        )
