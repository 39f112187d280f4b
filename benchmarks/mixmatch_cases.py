"""Steps of semi-supervised methods as their authors' code writes them: targets, mixup of all views, masks, loss."""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from contests import Contest, Entry, Size, WrongAnswer, calling, doubled, in_float64
from torch import Tensor

from fastlnl.losses import MixMatch
from fastlnl.ops.erase_peaks import Masking, draws_of, erase_peaks
from fastlnl.ops.mix_views import mix_views
from fastlnl.ops.refine_targets import refine_targets

TEMPERATURE, COEFFICIENT, UNLABELED_WEIGHT = 0.5, 0.7, 25.0
IMAGE, FEATURES = (3, 32, 32), (512, 4, 4)
MASKING = Masking()


class Guesses(NamedTuple):
    own: list[Tensor]  # two views, (B, C)
    peer: list[Tensor]  # two views of the second half, (B / 2, C)
    label: Tensor  # (B / 2,) of the first half
    clean_prob: Tensor  # (B / 2,)


class Views(NamedTuple):
    images: list[Tensor]  # four, (B / 4, 3, 32, 32)
    targets: list[Tensor]  # four, (B / 4, C)
    partner: Tensor  # (B,)
    coefficient: Tensor  # ()


class Masked(NamedTuple):
    features: Tensor  # (B, 512, 4, 4)
    images: Tensor  # (B, 3, 32, 32)
    target: Tensor  # (B, C)
    clean_prob: Tensor  # (B,)
    draws: Tensor  # (B, 8) float64


class Mixed(NamedTuple):
    logits: Tensor  # (B, C), the first half labelled
    target: Tensor  # (B, C)


def generator(device: torch.device | str) -> torch.Generator:
    return torch.Generator(device).manual_seed(0)


def guesses(size: Size, device: torch.device | str) -> Guesses:
    """Bytes: 4 BC for each of three predictions (the peer's are half), 4 BC written, 12 B."""
    batch, classes = size
    half = batch // 2
    random: dict[str, Any] = {"generator": generator(device), "device": device}
    own = [3 * torch.randn(2 * half, classes, **random) for _ in range(2)]
    peer = [3 * torch.randn(half, classes, **random) for _ in range(2)]
    return Guesses(own, peer, torch.randint(classes, (half,), **random), torch.rand(half, **random))


def views(size: Size, device: torch.device | str) -> Views:
    """Bytes: 12 for each number of image and target: read, read as partner, written."""
    rows, classes = size[0] // 4, size[1]
    random: dict[str, Any] = {"generator": generator(device), "device": device}
    images = [torch.randn(rows, *IMAGE, **random) for _ in range(4)]
    targets = [torch.randn(rows, classes, **random).softmax(1) for _ in range(4)]
    partner = torch.randperm(4 * rows, **random)
    return Views(images, targets, partner, torch.full((), COEFFICIENT, device=device))


def masked(size: Size, device: torch.device | str) -> Masked:
    """Bytes: 4 for each feature, 12 for each number of the image, 8 C for the target."""
    batch, classes = size
    random: dict[str, Any] = {"generator": generator(device), "device": device}
    target = torch.randn(batch, classes, **random).mul_(2).softmax(1)
    features, images = torch.randn(batch, *FEATURES, **random), torch.randn(batch, *IMAGE, **random)
    draws = torch.rand(batch, draws_of(IMAGE[0]), dtype=torch.float64, **random)
    return Masked(features, images, target, torch.rand(batch, **random), draws)


def mixed(size: Size, device: torch.device | str) -> Mixed:
    """Bytes: 16 BC: the logits twice, the targets, the gradient."""
    random: dict[str, Any] = {"generator": generator(device), "device": device}
    return Mixed(3 * torch.randn(size, **random), torch.randn(size, **random).softmax(1))


def fastlnl_targets(given: Guesses) -> Tensor:
    return refine_targets(given.own, given.label, given.clean_prob, TEMPERATURE, peer=given.peer)


def eager_targets(given: Guesses) -> Tensor:
    """Labelled and unlabelled apart, as DivideMix."""
    half, classes = len(given.label), given.own[0].shape[1]
    x, w = [z[:half].softmax(1) for z in given.own], given.clean_prob[:, None]
    refined = w * F.one_hot(given.label, classes) + (1 - w) * (x[0] + x[1]) / 2
    u = [z[half:].softmax(1) for z in given.own] + [z.softmax(1) for z in given.peer]
    powers = [q ** (1 / TEMPERATURE) for q in (refined, (u[0] + u[1] + u[2] + u[3]) / 4)]
    return torch.cat([power / power.sum(1, keepdim=True) for power in powers])


def fastlnl_mixup(given: Views) -> tuple[Tensor, Tensor]:
    return mix_views(*given)


def eager_mixup(given: Views) -> tuple[Tensor, Tensor]:
    x, t, a = torch.cat(given.images), torch.cat(given.targets), given.coefficient
    return a * x + (1 - a) * x[given.partner], a * t + (1 - a) * t[given.partner]


def fastlnl_masks(given: Masked) -> tuple[Tensor, ...]:
    pair = erase_peaks(*given, MASKING)
    return pair.boxes.long(), pair.high, pair.low, pair.target


def eager_masks(given: Masked) -> tuple[Tensor, ...]:
    """Image after image; the map in float64, because in float32 rounding decides between equal pixels."""
    channels, height, width = given.images.shape[1:]
    low, high, distrust = MASKING.mask_ratio
    found: list[tuple[Tensor, ...]] = []
    for b, image in enumerate(given.images):
        attention = given.features[b].double().square().sum(0).float().double()
        attention = attention / attention.square().sum().sqrt()
        v = F.interpolate(attention[None, None], (height, width), mode="bilinear", align_corners=False)
        v = (v - v.min()).float()
        v = (255 * (v / (v.max() + 1e-12))).floor().flatten()
        first = [int((v == extreme).byte().argmax()) for extreme in (v.max(), v.min())]
        u = given.draws[b].tolist()
        ratio, rho = low + (high - low) * u[0] + distrust * (1 - float(given.clean_prob[b])), 0.8 + 0.45 * u[1]
        area = MASKING.area_factor * ratio * height * width
        tall, wide = round((area * rho) ** 0.5), round((area / rho) ** 0.5)
        pair, boxes = [], []
        for i, place in enumerate(first):
            top, left = min(place // width, height - tall), min(place % width, width - wide)
            fill = given.draws[b, 2 + i * channels : 2 + (i + 1) * channels].float()
            copy = image.clone()
            copy[:, top : top + tall, left : left + wide] = fill[:, None, None]
            pair.append(copy)
            boxes.append([top, left, tall, wide])
        t = given.target[b] + ratio / (len(given.target[b]) - 1)
        t[given.target[b].argmax()] = given.target[b].max() - ratio
        found.append((torch.tensor(boxes, device=t.device), *pair, t))
    return tuple(torch.stack(column) for column in zip(*found, strict=True))


def loss_step(loss: Callable[[Tensor, Tensor], Tensor]) -> Callable[[Mixed], Entry]:
    """Forward and backward."""

    def build(given: Mixed) -> Entry:
        logits = given.logits.clone().requires_grad_()

        def step() -> tuple[Tensor, Tensor]:
            logits.grad = None
            value = loss(logits, given.target)
            value.backward()
            assert logits.grad is not None
            return value.detach(), logits.grad

        return Entry(step, step)

    return build


def eager_loss(logits: Tensor, target: Tensor) -> Tensor:
    """DivideMix's three terms."""
    half, classes = len(logits) // 2, logits.shape[1]
    lx = -(logits[:half].log_softmax(1) * target[:half]).sum(1).mean()
    lu = (logits[half:].softmax(1) - target[half:]).square().mean()
    prior = torch.full((classes,), 1 / classes, device=logits.device)
    return lx + UNLABELED_WEIGHT * lu + (prior * (prior / logits.softmax(1).mean(0)).log()).sum()


def loss_in_float64(given: Mixed) -> tuple[Tensor, Tensor]:
    """Value and gradient of the same formula by autograd."""
    return loss_step(eager_loss)(doubled(given)).answer()


def fastlnl_loss() -> Callable[[Tensor, Tensor], Tensor]:
    criterion = MixMatch()
    return lambda logits, target: criterion(logits, target, len(logits) // 2, UNLABELED_WEIGHT)


def nearly_equal(ours: Any, theirs: Any) -> str:
    """Integers equal, numbers to the rounding of float32."""
    worst = 0.0
    pairs = zip(ours, theirs, strict=True) if isinstance(ours, tuple) else [(ours, theirs)]
    for x, y in pairs:
        if not x.is_floating_point() and not torch.equal(x, y):
            raise WrongAnswer(f"{int((x != y).sum())} of {x.numel()} places of boxes differ")
        worst = max(worst, float((x - y).abs().max() / y.abs().max()))
    if not worst <= 1e-5:
        raise WrongAnswer(f"a value differs by {worst:.0e} of the largest")
    return f"{worst:.0e}" if worst else "equal"


MIXMATCH_CONTESTS = [
    Contest(
        "refine_targets",
        "targets of labelled and unlabelled rows from two networks' views",
        "B x C",
        ((128, 10), (128, 100), (1024, 1000)),
        guesses,
        {"fastlnl": calling(fastlnl_targets), "eager": calling(eager_targets)},
        nearly_equal,
        "tests/ops/test_refine_targets.py",
        ("refine_targets",),
        lambda size: 16 * size[0] * size[1] + 6 * size[0],
        quick=((128, 10), (1024, 1000)),
        truth=in_float64(fastlnl_targets),
    ),
    Contest(
        "mix_views",
        "mixup of four views of 3 x 32 x 32 images and their targets",
        "B x C",
        ((256, 10), (512, 100)),
        views,
        {"fastlnl": calling(fastlnl_mixup), "eager": calling(eager_mixup)},
        nearly_equal,
        "tests/ops/test_mix_views.py",
        ("mix_views",),
        lambda size: 12 * size[0] * (math.prod(IMAGE) + size[1]) + 8 * size[0],
        truth=in_float64(fastlnl_mixup),
    ),
    Contest(
        "erase_peaks",
        "both masked copies of 3 x 32 x 32 images from 512 x 4 x 4 features, and their targets",
        "B x C",
        ((64, 10),),
        masked,
        {"fastlnl": calling(fastlnl_masks), "eager": calling(eager_masks)},
        nearly_equal,
        "tests/ops/test_erase_peaks.py",
        ("erase_peaks",),
        lambda size: size[0] * (4 * math.prod(FEATURES) + 12 * math.prod(IMAGE) + 8 * size[1] + 84),
        {(64, 10): 20.0},
    ),
    Contest(
        "mixmatch",
        "loss of a DivideMix step, forward and backward through autograd",
        "B x C",
        ((256, 10), (256, 100), (1024, 1000)),
        mixed,
        {"fastlnl": loss_step(fastlnl_loss()), "eager": loss_step(eager_loss)},
        nearly_equal,
        "tests/ops/test_mixmatch_rows.py",
        ("class_prior", "mixmatch_rows", "scale_rows"),
        lambda size: 16 * size[0] * size[1],
        quick=((256, 10), (1024, 1000)),
        truth=loss_in_float64,
    ),
]
