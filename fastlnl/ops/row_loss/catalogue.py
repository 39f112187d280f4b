"""The losses that come with fastlnl, each as its coefficient function.

Returned: loss, a, b, c, d, e, f of `dz_j = a p_j - b [j = y] - c t_j + e p_j t_j + d p_j (log p_j + H) + f`.
`A` of the reverse cross-entropy is -log 1e-4, the value its authors give log 0 (Wang et al. 2019).
"""

from fastlnl.arithmetic import exp, larger, log, where
from fastlnl.ops.row_loss.definition import define_loss


@define_loss
def cross_entropy(nll):  # type: ignore[no-untyped-def]
    """-log p_y."""
    return nll, 1, 1, 0, 0, 0, 0


@define_loss
def label_smoothing(nll, logp_sum, num_classes, smoothing=0.1):  # type: ignore[no-untyped-def]
    """Cross-entropy against (1 - s) onehot(y) + s/C (Szegedy et al. 2016)."""
    hard = 1 - smoothing
    each = smoothing / num_classes
    return hard * nll - each * logp_sum, 1, hard, 0, 0, 0, -each


@define_loss
def soft_cross_entropy(target_sum, target_logp):  # type: ignore[no-untyped-def]
    """-<t, log p>."""
    return -target_logp, target_sum, 0, 1, 0, 0, 0


@define_loss
def alr(target_sum, target_logp, entropy, entropy_weight=0.3, undetached=0.0):  # type: ignore[no-untyped-def]
    """-<t, log p> + entropy_weight H (our reconstruction of Zhang et al. 2025, arXiv 2502.00386).

    `undetached` is 1 - momentum where the gradient is to flow through p inside t as well: that gradient is the one of
    a larger entropy weight, while the loss keeps the user's.
    """
    return entropy_weight * entropy - target_logp, target_sum, 0, 1, -(entropy_weight + undetached), 0, 0


@define_loss
def selc(target_sum, target_logp):  # type: ignore[no-untyped-def]
    """-<t, log p> against the moving average of the predictions (Lu and He 2022)."""
    return -target_logp, target_sum, 0, 1, 0, 0, 0


@define_loss
def elr(nll, target_p, elr_weight=3.0, floor=1e-4):  # type: ignore[no-untyped-def]
    """nll + l log(1 - <t, p>) (Liu et al. 2020); 1 - <t, p> is floored, with no gradient below the floor."""
    gap = 1 - target_p
    pull = where(gap > floor, elr_weight / larger(gap, floor), 0.0 * gap)
    return nll + elr_weight * log(larger(gap, floor)), 1 + pull * target_p, 1, 0, 0, -pull, 0


@define_loss
def gce(nll, q=0.7):  # type: ignore[no-untyped-def]
    """(1 - p_y^q) / q (Zhang and Sabuncu 2018)."""
    p_q = exp(-q * nll)
    return (1 - p_q) / q, p_q, p_q, 0, 0, 0, 0


@define_loss
def sce(nll, p_label, alpha=0.1, beta=1.0):  # type: ignore[no-untyped-def]
    """alpha nll + beta A (1 - p_y) (Wang et al. 2019)."""
    reverse = 9.210340371976184 * beta
    pull = alpha + reverse * p_label
    return alpha * nll + reverse * (1 - p_label), pull, pull, 0, 0, 0, 0


@define_loss
def mae(p_label):  # type: ignore[no-untyped-def]
    """1 - p_y, half the L1 distance to the one-hot label (Ghosh et al. 2017)."""
    return 1 - p_label, p_label, p_label, 0, 0, 0, 0


@define_loss
def nce(nll, logp_sum, num_classes):  # type: ignore[no-untyped-def]
    """nll / D with D = -sum log p (Ma et al. 2020); 0 for one class, where both are 0."""
    inverse = where(logp_sum < 0, -1 / where(logp_sum < 0, logp_sum, -1 + 0 * logp_sum), 0.0 * logp_sum)
    share = nll * inverse
    return share, inverse * (1 - share * num_classes), inverse, 0, 0, 0, share * inverse


@define_loss
def nce_rce(nll, p_label, logp_sum, num_classes, alpha=1.0, beta=1.0):  # type: ignore[no-untyped-def]
    """alpha nll / D + beta A (1 - p_y), an active and a passive loss (Ma et al. 2020)."""
    inverse = where(logp_sum < 0, -1 / where(logp_sum < 0, logp_sum, -1 + 0 * logp_sum), 0.0 * logp_sum)
    share = nll * inverse
    reverse = 9.210340371976184 * beta
    active = alpha * inverse
    return (
        alpha * share + reverse * (1 - p_label),
        active * (1 - share * num_classes) + reverse * p_label,
        active + reverse * p_label,
        0,
        0,
        0,
        active * share,
    )


@define_loss
def focal(nll, p_label, gamma=2.0):  # type: ignore[no-untyped-def]
    """(1 - p_y)^gamma nll (Lin et al. 2017)."""
    rest = larger(1 - p_label, 1e-30)
    power = exp(gamma * log(rest))
    pull = power + gamma * p_label * nll * exp((gamma - 1) * log(rest))
    return power * nll, pull, pull, 0, 0, 0, 0


@define_loss
def poly1(nll, p_label, epsilon=1.0):  # type: ignore[no-untyped-def]
    """nll + epsilon (1 - p_y) (Leng et al. 2022)."""
    pull = 1 + epsilon * p_label
    return nll + epsilon * (1 - p_label), pull, pull, 0, 0, 0, 0


@define_loss
def bootstrapping(nll, entropy, beta=0.95):  # type: ignore[no-untyped-def]
    """beta nll + (1 - beta) H, cross-entropy against beta onehot(y) + (1 - beta) p (Reed et al. 2015, soft)."""
    return beta * nll + (1 - beta) * entropy, beta, beta, 0, beta - 1, 0, 0


@define_loss
def confidence_penalty(nll, entropy, penalty=1.0):  # type: ignore[no-untyped-def]
    """nll - penalty H (Pereyra et al. 2017); DivideMix's warm-up for asymmetric noise."""
    return nll - penalty * entropy, 1, 1, 0, penalty, 0, 0
