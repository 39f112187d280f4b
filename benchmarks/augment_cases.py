"""Augmented batches against the chain of torch calls they replace, and what share of an epoch the loader takes.

python benchmarks/augment_cases.py      prints the share: loader against a training step of the small CNN, in turns
"""

import math
import statistics
import time
from collections.abc import Callable
from typing import NamedTuple

import torch
from class_cases import equal
from contests import Contest, Size, calling
from torch import Tensor

from fastlnl.augment import GREY, STRONG_DRAWS, crop_flip, cut_square
from fastlnl.ops.augment_batch import Crop, augment_batch
from fastlnl.ops.random_operations import random_operations
from fastlnl.ops.random_operations.reference import random_operations as batched_operations
from fastlnl.philox import uniform

SAMPLES, SHAPE, BATCH = 10_000, (3, 32, 32), 128
SEED, STREAM, EPOCH = 0, "crop_flip", 1
VIEW = Crop(4, True)


class Images(NamedTuple):
    images: Tensor  # (N, 3, 32, 32) uint8
    index: Tensor  # (B,)
    draws: Tensor  # (N, 3), those of the whole epoch
    scale: Tensor  # (3, 1, 1)
    shift: Tensor  # (3, 1, 1)
    table: Tensor  # (3, 256), the same map by byte


def byte_images(size: Size, device: torch.device | str) -> Images:
    random = torch.Generator(device).manual_seed(0)
    images = torch.randint(256, (SAMPLES, *SHAPE), generator=random, device=device, dtype=torch.uint8)
    index = torch.randint(SAMPLES, size, generator=random, device=device)
    draws = uniform(SEED, STREAM, torch.arange(SAMPLES, device=device), 3, EPOCH)
    mean, std = torch.tensor([0.49, 0.48, 0.45], device=device), torch.tensor([0.25, 0.24, 0.26], device=device)
    scale, shift = (1 / (255 * std))[:, None, None], (-mean / std)[:, None, None]
    table = torch.addcmul(shift, torch.arange(256.0, device=device), scale)[:, 0].contiguous()
    return Images(images, index, draws, scale, shift, table)


def fused(given: Images) -> Tensor:
    (view,) = augment_batch(given.images, given.index, [VIEW], given.table, seed=SEED, stream=STREAM, epoch=EPOCH)
    return view


def by_torch_calls(given: Images) -> Tensor:
    """A gather, a padded crop, a conversion, a multiply-add; the random numbers of the epoch are there already."""
    images = crop_flip(given.images[given.index], given.draws[given.index])
    return torch.addcmul(given.shift, images.float(), given.scale)


def image_by_image(given: Images) -> Tensor:
    """As transforms of a data set do it in its `__getitem__`, without their conversions to Pillow images and back."""
    made = []
    for i in given.index.tolist():
        top, left, flip = given.draws[i].tolist()
        image = torch.nn.functional.pad(given.images[i], (4, 4, 4, 4))
        image = image[:, int(9 * top) : int(9 * top) + 32, int(9 * left) : int(9 * left) + 32]
        image = image.flip(-1) if flip < 0.5 else image
        made.append(torch.addcmul(given.shift, image.float(), given.scale))
    return torch.stack(made)


def contest(name: str, title: str, rival: Callable[[Images], Tensor]) -> Contest:
    return Contest(
        name,
        title,
        "N",
        ((BATCH,), (1024,)),
        byte_images,
        {"fastlnl": calling(fused), "eager": calling(rival)},
        equal,
        "tests/ops/test_augment_batch.py",
        ("augment_batch",),
        lambda size: 5 * size[0] * math.prod(SHAPE),
        {(BATCH,): 3.0, (1024,): 3.0},
    )


class Strong(NamedTuple):
    images: Tensor  # (B, ch, H, W) float32, bytes as floats
    draws: Tensor  # (B, STRONG_DRAWS)
    bytes_as_floats: Tensor  # (ch, 256)
    scale: Tensor  # (ch, 1, 1)
    shift: Tensor  # (ch, 1, 1)
    table: Tensor  # (ch, 256), the same map by byte


def strong_inputs(shape: tuple[int, int, int]) -> Callable[[Size, torch.device | str], Strong]:
    def inputs(size: Size, device: torch.device | str) -> Strong:
        random, channels = torch.Generator(device).manual_seed(0), shape[0]
        images = torch.randint(256, (*size, *shape), generator=random, device=device).float()
        draws = uniform(SEED, "strong", torch.arange(size[0], device=device), STRONG_DRAWS, EPOCH)
        scale, shift = torch.full((2, channels, 1, 1), 1 / 64, device=device).unbind(0)  # exact: no rounding to compare
        byte = torch.arange(256.0, device=device).expand(channels, 256).contiguous()
        return Strong(images, draws, byte, scale, -64 * shift, torch.addcmul(-64 * shift[:, 0], byte, scale[:, 0]))

    return inputs


def strong_fused(given: Strong) -> Tensor:
    side = round(0.15 * given.images.shape[2])
    return random_operations(given.images, given.draws, given.table, cutout=side)


def strong_by_torch_calls(given: Strong) -> Tensor:
    """Every operation on the whole batch, and the drawn one chosen: what a device does without kernels of its own."""
    images = batched_operations(given.images, given.draws, given.bytes_as_floats, 0, False)
    images = cut_square(images, given.draws[:, -2:], round(0.15 * images.shape[2]), GREY)
    return torch.addcmul(given.shift, images, given.scale)


def strong_contest(shape: tuple[int, int, int]) -> Contest:
    named = " x ".join(map(str, shape))
    return Contest(
        f"random_operations {named}",
        f"the strong view of {named} images: random operations, a grey square, normalised",
        "N",
        ((BATCH,),),
        strong_inputs(shape),
        {"fastlnl": calling(strong_fused), "eager": calling(strong_by_torch_calls)},
        equal,
        "tests/ops/test_random_operations.py",
        ("random_operations",),
        lambda size: size[0] * (8 * math.prod(shape) + 8 * STRONG_DRAWS),
        {(BATCH,): 15.0},
    )


AUGMENT_CONTESTS = [
    contest("augment_batch", "a batch of 32 x 32 images gathered, cropped, flipped and normalised", by_torch_calls),
    contest("augment_batch one by one", "the same, image by image as in a data set's transforms", image_by_image),
    strong_contest((1, 28, 28)),
    strong_contest(SHAPE),
]


def shares(steps: int = 5) -> dict[str, tuple[float, float]]:
    """By augmentation: median seconds of a batch from the loader, and its share of loader plus training step."""
    from fastlnl.data import IndexedLoader
    from fastlnl.networks import build_network

    given = byte_images((BATCH,), "cpu")
    label = torch.randint(10, (SAMPLES,), generator=torch.Generator().manual_seed(0))
    network = build_network("cnn", SHAPE, 10)
    optimizer = torch.optim.SGD(network.parameters(), 0.01, 0.9)
    loader = IndexedLoader(given.images, label, batch_size=BATCH, mean=(0.5,), std=(0.25,))
    passes = {name: loader.cycle(augment=name) for name in (None, "crop_flip", "crop_flip_cutout", "strong")}
    seconds: dict[str, list[float]] = {str(name): [] for name in passes} | {"step": []}

    def step(images: Tensor, label: Tensor) -> None:
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(network(images), label).backward()
        optimizer.step()

    for turn in range(steps + 1):
        for name, batches in passes.items():
            began = time.perf_counter()
            _, (images,), given_label = next(batches)
            seconds[str(name)].append(time.perf_counter() - began)
        began = time.perf_counter()
        step(images, given_label)
        seconds["step"].append(time.perf_counter() - began)
        if turn == 0:  # compilation, first pages
            seconds = {name: [] for name in seconds}
    middle = {name: statistics.median(values) for name, values in seconds.items()}
    return {name: (middle[name], middle[name] / (middle[name] + middle["step"])) for name in middle}


if __name__ == "__main__":
    for name, (took, share) in shares().items():
        print(
            f"{name:17} {1e3 * took:8.2f} ms" + (f"  {100 * share:5.2f} % of loader and step" if name != "step" else "")
        )
