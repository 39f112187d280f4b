"""The primitives that no library has: against the same task in plain torch calls, and SciPy's Beta distribution."""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from contests import Contest, Size, WrongAnswer, calling, in_float64, in_plain_torch
from mixture_cases import losses
from torch import Tensor

from fastlnl.ops.beta_cdf import beta_cdf
from fastlnl.ops.class_prior import class_prior
from fastlnl.ops.histogram_zoom import histogram_zoom
from fastlnl.ops.history_weight import history_weight
from fastlnl.ops.mixture_em import EMInput, EMOptions, mixture_em
from fastlnl.ops.mixture_posterior import mixture_posterior
from fastlnl.ops.random_words import random_words
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.row_stats import row_stats
from fastlnl.ops.scale_rows import scale_rows_
from fastlnl.ops.value_histogram import Histogram, value_histogram
from fastlnl.philox import words

BINS, EPOCHS, DECAY, DRAWS = 4096, 10, 0.9, 64
ROUNDING = 1e-5
IMAGENET = (1_280_000,)


class Rows(NamedTuple):
    logits: Tensor  # (B, C)
    label: Tensor  # (B,)
    factor: Tensor  # (B,) -1, which changes every number and lets none grow
    errors: Tensor


class Beta(NamedTuple):
    x: Tensor  # (N,) float64
    alpha: Tensor  # (N,) float64
    beta: Tensor  # (N,) float64


class Ring(NamedTuple):
    history: Tensor  # (EPOCHS, N) float16
    position: Tensor  # (2,)


class Binned(NamedTuple):
    loss: Tensor  # (N,)
    histogram: Histogram
    points: EMInput
    odds: Tensor  # (1, 8)


def rows(size: Size, device: torch.device | str) -> Rows:
    random = torch.Generator(device).manual_seed(0)
    logits = 3 * torch.randn(size, generator=random, device=device)
    label = torch.randint(size[1], (size[0],), generator=random, device=device)
    return Rows(logits, label, torch.full((size[0],), -1.0, device=device), new_error_word(torch.device(device)))


def beta_values(size: Size, device: torch.device | str) -> Beta:
    random = torch.Generator(device).manual_seed(0)
    x, alpha, beta = torch.rand(3, *size, dtype=torch.float64, generator=random, device=device)
    return Beta(x, 0.5 + 20 * alpha, 0.5 + 20 * beta)


def ring(size: Size, device: torch.device | str) -> Ring:
    """Log-odds of ten epochs, the newest in the middle."""
    random = torch.Generator(device).manual_seed(0)
    history = (3 * torch.randn(EPOCHS, *size, generator=random, device=device)).clamp(-6, 6).half()
    return Ring(history, torch.tensor([EPOCHS // 2, EPOCHS], device=device))


def ids(size: Size, device: torch.device | str) -> Tensor:
    return torch.randperm(50_000, generator=torch.Generator(device).manual_seed(0), device=device)[: size[0]]


def binned(size: Size, device: torch.device | str) -> Binned:
    loss = losses(size, device).loss
    histogram = value_histogram(loss, bins=BINS)
    offset = torch.tensor([0, BINS], device=device)
    points = EMInput(histogram.mean.view(-1), histogram.counts.view(-1), offset, histogram.limits, None, None)
    return Binned(loss, histogram, points, mixture_em(points, EMOptions()).odds)


def statistics(given: Rows) -> tuple[Tensor, Tensor]:
    found = row_stats(given.logits, given.label, errors=given.errors)
    return found.prediction, found.numbers


def eager_statistics(given: Rows) -> tuple[Tensor, Tensor]:
    """As a scoring pass writes it: loss, probabilities of label and prediction, margin, entropy."""
    log_probs = given.logits.log_softmax(1)
    probs = log_probs.exp()
    own = given.logits.gather(1, given.label[:, None])[:, 0]
    others = given.logits.scatter(1, given.label[:, None], -torch.inf).amax(1)
    confidence, prediction = probs.max(1)
    nll = -log_probs.gather(1, given.label[:, None])[:, 0]
    numbers = (nll, (-nll).exp(), confidence, own - others, -(probs * log_probs).sum(1))
    return prediction, torch.stack(numbers)


def scaled(given: Rows) -> Tensor:
    return scale_rows_(given.logits, given.factor)


def eager_scaled(given: Rows) -> Tensor:
    return given.logits.mul_(given.factor[:, None])


def prior(given: Rows) -> tuple[Tensor, Tensor]:
    return tuple(class_prior(given.logits))  # type: ignore[return-value]


def eager_prior(given: Rows) -> tuple[Tensor, Tensor]:
    """DivideMix's penalty, class by class."""
    mean = given.logits.softmax(1).mean(0)
    uniform = torch.full_like(mean, 1 / len(mean))
    return uniform * (uniform / mean).log(), uniform / mean


def cdf(given: Beta) -> Tensor:
    return beta_cdf(given.x, 1 - given.x, given.alpha, given.beta)


def scipy_cdf(given: Beta) -> Tensor:
    from scipy.special import betainc

    return torch.from_numpy(betainc(*(x.cpu().numpy() for x in (given.alpha, given.beta, given.x))))


def history(given: Ring) -> Tensor:
    return history_weight(given.history, given.position, DECAY)


def keyed_words(index: Tensor) -> Tensor:
    return random_words(index, DRAWS, seed=0, stream="dropout", epoch=1)


def eager_words(index: Tensor) -> Tensor:
    """Philox in int64 tensor arithmetic."""
    return (words(0, "dropout", index, DRAWS, 1) - 2**31).int()


def histogram(given: Binned) -> tuple[Tensor, Tensor]:
    found = value_histogram(given.loss, bins=BINS)
    return found.counts, found.mean


def zoom(given: Binned) -> tuple[Tensor, Tensor]:
    found = histogram_zoom(given.loss, None, given.histogram, given.histogram.limits.mean(1))
    return found.counts, found.value


def em(given: Binned) -> Tensor:
    return mixture_em(given.points, EMOptions()).fitted


def posterior(given: Binned) -> Tensor:
    return mixture_posterior(given.loss, given.odds)


def close(ours: Any, theirs: Any) -> str:
    """Integers equal, numbers to the rounding of float32."""
    worst = 0.0
    for x, y in zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]:
        x, y = x.cpu(), y.cpu()
        if not x.is_floating_point():
            if differ := int((x != y).sum()):
                raise WrongAnswer(f"{differ} of {x.numel()} values differ")
            continue
        worst = max(worst, float((x.double() - y).abs().max() / y.abs().max()))
    if not worst <= ROUNDING:
        raise WrongAnswer(f"a value differs by {worst:.0e} of the largest")
    return f"{worst:.0e}" if worst else "equal"


def contest(
    primitive: str,
    title: str,
    axes: str,
    sizes: tuple[Size, ...],
    inputs: Callable[[Size, torch.device | str], Any],
    ours: Callable[[Any], Any],
    rival: tuple[str, Callable[[Any], Any]],
    byte_model: Callable[[Size], int],
    truth: Callable[[Any], Any] | None = None,
) -> Contest:
    """Named like its primitive."""
    rivals = {"fastlnl": calling(ours), rival[0]: calling(rival[1])}
    test = f"tests/ops/test_{primitive}.py"
    return Contest(primitive, title, axes, sizes, inputs, rivals, close, test, (primitive,), byte_model, truth=truth)


PRIMITIVE_CONTESTS = [
    contest(
        "row_stats", "a scoring pass: loss, probabilities, prediction, margin and entropy of each row", "B x C",
        ((1024, 100), (4096, 1000)), rows, statistics, ("eager", eager_statistics),
        lambda size: 4 * size[0] * size[1] + 36 * size[0], in_float64(statistics),
    ),
    contest(
        "scale_rows", "stored gradients times what comes in, where that is not 1", "B x C",
        ((1024, 100), (4096, 1000)), rows, scaled, ("eager", eager_scaled), lambda size: 8 * size[0] * size[1],
    ),
    contest(
        "class_prior", "divergence of the mean prediction from uniform classes, class by class", "B x C",
        ((256, 100), (1024, 1000)), rows, prior, ("eager", eager_prior),
        lambda size: 4 * size[0] * size[1] + 8 * size[1], in_float64(prior),
    ),
    contest(
        "beta_cdf", "distribution function of as many Beta distributions", "N",
        ((10_000,),), beta_values, cdf, ("scipy", scipy_cdf), lambda size: 32 * size[0],
    ),
    contest(
        "history_weight", "decayed mean of ten epochs of log-odds in float16", "N",
        ((50_000,), IMAGENET), ring, history, ("eager", in_plain_torch(history)),
        lambda size: (2 * EPOCHS + 4) * size[0],
    ),
    contest(
        "random_words", "64 random words a sample, keyed by seed, epoch and id", "N",
        ((128,), (1024,)), ids, keyed_words, ("eager", eager_words), lambda size: (4 * DRAWS + 8) * size[0],
    ),
    contest(
        "value_histogram", "counts and means of 4,096 bins, finest at small values", "N",
        ((50_000,), IMAGENET), binned, histogram, ("eager", in_plain_torch(histogram)), lambda size: 4 * size[0],
    ),
    contest(
        "histogram_zoom", "eight bins around the cut counted again, in 512 parts each", "N",
        ((50_000,), IMAGENET), binned, zoom, ("eager", in_plain_torch(zoom)), lambda size: 4 * size[0],
    ),
    contest(
        "mixture_em", "ten steps of EM on the bins", "N",
        ((50_000,),), binned, em, ("eager", in_plain_torch(em)), lambda size: 16 * BINS,
    ),
    contest(
        "mixture_posterior", "posteriors from fitted log-odds", "N",
        ((50_000,), IMAGENET), binned, posterior, ("eager", in_plain_torch(posterior)), lambda size: 8 * size[0],
    ),
]  # fmt: skip
