"""Rankings of samples: AUROC, average precision and their curves, exact or from bins.

All four count positives and negatives at each distinct score, best score first, in whole numbers; so ties are grouped
as scikit-learn does, the order of the samples changes no bit, and histograms of several machines could be added.
`bins=None` sorts. With `bins` the scores between the lowest and the highest finite one are cut into that many equal
pieces, in O(N); samples of one piece then count as tied, which moves AUROC by at most half the share of
(positive, negative) pairs that fall into one piece: 2e-5 for normal scores and 2^16 bins.

Everywhere scores is (N,) of a floating type, higher = more likely positive, positive (N,) bool. A NaN score ranks
last, as -inf does. Deterministic.
"""

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.doors import describe


def auroc(scores: Tensor, positive: Tensor, *, bins: int | None = None) -> Tensor:
    """Probability that a positive scores higher than a negative, ties counting half; () float64.

    With `scores` higher = cleaner and `positive` the rightly labelled, how well clean samples are told from noisy
    ones. 0.5 if all samples are positive or none is.
    """
    hit, miss = _counts(scores, positive, bins)
    beaten = miss.sum() - miss.cumsum(0)  # negatives with a lower score
    twice = (hit * (2 * beaten + miss)).sum()
    pairs = 2 * hit.sum() * miss.sum()
    return torch.where(pairs > 0, twice.double() / pairs.clamp(min=1), 0.5)


def average_precision(scores: Tensor, positive: Tensor, *, bins: int | None = None) -> Tensor:
    """Sum over the distinct scores of the precision there times the recall gained there; () float64.

    For the noise as evaluation tables have it: `average_precision(-clean_score, ~is_clean)`. 0 without positives.
    """
    hit, miss = _counts(scores, positive, bins)
    precision = hit.cumsum(0).double() / (hit + miss).cumsum(0).clamp(min=1)
    return (hit * precision).sum() / hit.sum().clamp(min=1)


def roc_curve(scores: Tensor, positive: Tensor, *, bins: int | None = None) -> tuple[Tensor, Tensor]:
    """False and true positive rate from the strictest to the mildest threshold, (K + 1,) float64 each, from 0 to 1.

    K is N or `bins`: a fixed shape, so points repeat where scores do. A rate without samples stays 0.
    """
    hit, miss = _counts(scores, positive, bins)
    return _rates(miss), _rates(hit)


def precision_recall_curve(scores: Tensor, positive: Tensor, *, bins: int | None = None) -> tuple[Tensor, Tensor]:
    """Recall and precision from the strictest to the mildest threshold, (K + 1,) float64 each; K as in `roc_curve`.

    The first point is recall 0 with precision 1, as scikit-learn has it.
    """
    hit, miss = _counts(scores, positive, bins)
    found, picked = hit.cumsum(0), (hit + miss).cumsum(0)
    precision = torch.where(picked > 0, found.double() / picked.clamp(min=1), 1.0)
    return _rates(hit), torch.cat([precision.new_ones(1), precision])


def _rates(count: Tensor) -> Tensor:
    return torch.cat([count.new_zeros(1), count.cumsum(0)]).double() / count.sum().clamp(min=1)


def _counts(scores: Tensor, positive: Tensor, bins: int | None) -> tuple[Tensor, Tensor]:
    """Positives and negatives at each distinct score (each bin), best first, padded with zeros; (K,) int64."""
    if scores.dim() != 1 or not scores.is_floating_point():
        raise ShapeError(f"scores is {describe(scores)}; expected (N,) of a floating type")
    if positive.shape != scores.shape or positive.dtype != torch.bool:
        raise ShapeError(f"positive is {describe(positive)}; expected {tuple(scores.shape)} bool, one for each score")
    scores = torch.where(scores.isnan(), -torch.inf, scores)
    if bins is None:
        order = scores.argsort(descending=True)
        scores, positive = scores[order], positive[order]
        place = torch.zeros(len(scores), dtype=torch.int64, device=scores.device)
        place[1:] = (scores[1:] != scores[:-1]).cumsum(0)
    else:
        place = _bins(scores, bins)
    hit = torch.zeros(len(scores) if bins is None else bins, dtype=torch.int64, device=scores.device)
    miss = torch.zeros_like(hit)
    return hit.scatter_add_(0, place, positive.long()), miss.scatter_add_(0, place, (~positive).long())


def _bins(scores: Tensor, bins: int) -> Tensor:
    """Bin of each score, best first; the first and the last bin are kept for infinite scores."""
    if bins < 3:
        raise ShapeError(f"bins is {bins}; expected 3 at least, two of them for infinite scores")
    if len(scores) == 0:
        return torch.zeros(0, dtype=torch.int64, device=scores.device)
    finite, x = scores.isfinite(), scores.double()
    high = torch.where(finite, x, -torch.inf).amax()
    low = torch.where(finite, x, torch.inf).amin()
    share = torch.where(high > low, (high - x) / (high - low), 0.0)
    inner = 1 + (share * (bins - 2)).clamp(0, bins - 3)
    return torch.where(finite, inner, torch.where(scores > 0, 0.0, bins - 1.0)).long()
