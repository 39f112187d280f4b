"""Criteria without state of their own: cross-entropy and the robust losses that replace it.

`options` go to `Criterion`: `dynamics`.
"""

from typing import Any

from fastlnl.losses.criterion import Criterion, Reduction, require_inside
from fastlnl.ops.row_loss import catalogue


class CrossEntropy(Criterion):
    """-log p_y; a label outside [0, C) is an error, there is no ignore_index."""

    def __init__(self, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.cross_entropy, reduction=reduction, **options)


class LabelSmoothing(Criterion):
    """Cross-entropy against (1 - smoothing) onehot(y) + smoothing / C. Source: Szegedy et al. 2016."""

    def __init__(self, smoothing: float = 0.1, reduction: Reduction = "mean", **options: Any) -> None:
        require_inside("smoothing", smoothing, 0, 1)
        super().__init__(catalogue.label_smoothing, reduction=reduction, smoothing=smoothing, **options)


class SoftCrossEntropy(Criterion):
    """-<t, log p> against soft labels: `criterion(logits, target=target)`; rows of target need not sum to one."""

    def __init__(self, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.soft_cross_entropy, reduction=reduction, **options)


class GCE(Criterion):
    """(1 - p_y^q) / q, between cross-entropy (q -> 0) and MAE (q = 1). Source: Zhang and Sabuncu 2018."""

    def __init__(self, q: float = 0.7, reduction: Reduction = "mean", **options: Any) -> None:
        require_inside("q", q, 1e-6, 1)
        super().__init__(catalogue.gce, reduction=reduction, q=q, **options)


class SCE(Criterion):
    """alpha CE + beta 9.21 (1 - p_y). CIFAR-10 .1/1, CIFAR-100 6/.1. Source: Wang et al. 2019."""

    def __init__(self, alpha: float = 0.1, beta: float = 1.0, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.sce, reduction=reduction, alpha=alpha, beta=beta, **options)


class MAE(Criterion):
    """1 - p_y, half the L1 distance to the one-hot label. Source: Ghosh et al. 2017."""

    def __init__(self, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.mae, reduction=reduction, **options)


class NCE(Criterion):
    """-log p_y / -sum log p. Source: Ma et al. 2020."""

    def __init__(self, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.nce, reduction=reduction, **options)


class NCERCE(Criterion):
    """alpha NCE + beta 9.21 (1 - p_y). CIFAR-10 1/1, CIFAR-100 10/.1. Source: Ma et al. 2020."""

    def __init__(self, alpha: float = 1.0, beta: float = 1.0, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.nce_rce, reduction=reduction, alpha=alpha, beta=beta, **options)


class Focal(Criterion):
    """(1 - p_y)^gamma CE. Source: Lin et al. 2017."""

    def __init__(self, gamma: float = 2.0, reduction: Reduction = "mean", **options: Any) -> None:
        require_inside("gamma", gamma, 0, 100)
        super().__init__(catalogue.focal, reduction=reduction, gamma=gamma, **options)


class Poly1(Criterion):
    """CE + epsilon (1 - p_y). Source: Leng et al. 2022."""

    def __init__(self, epsilon: float = 1.0, reduction: Reduction = "mean", **options: Any) -> None:
        super().__init__(catalogue.poly1, reduction=reduction, epsilon=epsilon, **options)


class Bootstrapping(Criterion):
    """beta CE + (1 - beta) H, soft bootstrapping. Source: Reed et al. 2015."""

    def __init__(self, beta: float = 0.95, reduction: Reduction = "mean", **options: Any) -> None:
        require_inside("beta", beta, 0, 1)
        super().__init__(catalogue.bootstrapping, reduction=reduction, beta=beta, **options)


class ConfidencePenalty(Criterion):
    """CE + penalty sum p log p, which keeps predictions from being too sure. Source: Pereyra et al. 2017."""

    def __init__(self, penalty: float = 1.0, reduction: Reduction = "mean", **options: Any) -> None:
        require_inside("penalty", penalty, 0, float("inf"))
        super().__init__(catalogue.confidence_penalty, reduction=reduction, penalty=penalty, **options)
