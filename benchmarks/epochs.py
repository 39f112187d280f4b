"""The end of an epoch: every sample scored, all losses split in two; and what is kept of a sample, in bytes.

Scoring takes logits that are there (the forward passes are the network's) in order, in batches of 4,096, and enters
each sample's loss; the split is a mixture of two Gaussians and the posterior of everybody.
"""

import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from bookkeeping import bytes_of
from contests import WrongAnswer
from mixture_cases import losses, same_side
from plain_bookkeeping import posterior
from timing import no_garbage_collection, wait
from torch import Tensor

from fastlnl.losses import ALR, TwoViewLoss
from fastlnl.state import Credibility, LossSplit, SampleDynamics

QUICK, FULL = (50_000, 1_280_000), (50_000, 1_280_000, 14_000_000, 100_000_000)
BATCH, CLASSES, RING = 4096, 10, 8
NEEDED = 60  # bytes a sample at the highest point of the split, labels and ids included
LOOPED = {False: 50_000, True: 1_280_000}  # samples up to which the loop over samples is timed, with --full and without
VECTORISED = 1_280_000  # samples up to which scikit-learn is timed
STORAGES = ("float32", "bfloat16", "uint8", "topk:16")
DATA_SETS = (
    ("CIFAR-10", 50_000, 10),
    ("CIFAR-100", 50_000, 100),
    ("ImageNet-1k", 1_281_167, 1000),
    ("ImageNet-21k", 14_197_122, 21_841),
    ("100 million samples", 100_000_000, 1000),
)

Record = dict[str, Any]
Score = Callable[[Tensor, Tensor, Tensor], object]


def measure_epochs(full: bool, device: str, say: Callable[[str], None] = print) -> list[Record]:
    """A record per number of samples and way of doing it."""
    records = []
    for samples in FULL if full else QUICK:
        say(f"epoch of {samples:,} samples")
        records += measure(samples, full, device)
    return records


def measure(samples: int, full: bool, device: str) -> list[Record]:
    if NEEDED * samples > free_bytes(device):
        reason = f"needs some {NEEDED * samples / 1e9:.0f} GB, {free_bytes(device) / 1e9:.0f} are free"
        return [{"samples": samples, "by": "fastlnl", "refused": reason}]
    label = torch.zeros(samples, dtype=torch.int64, device=device)
    loss = losses((samples,), device).loss
    split = LossSplit(label, CLASSES)
    kept = torch.zeros(samples, device=device)

    def enter(logits: Tensor, label: Tensor, index: Tensor) -> None:
        kept[index] = F.cross_entropy(logits, label, reduction="none")

    def enter_one_by_one(logits: Tensor, label: Tensor, index: Tensor) -> None:
        nll = F.cross_entropy(logits, label, reduction="none")
        for b in range(len(index)):
            kept[index[b]] = nll[b]

    def fit() -> Tensor:
        split.loss.copy_(loss)
        split.fit()
        return split.clean_prob

    def fit_on_host() -> Tensor:
        return torch.from_numpy(posterior(loss.cpu().numpy())).float()

    ways: dict[str, tuple[Score, Callable[[], Tensor]]] = {"fastlnl": (split.score, fit)}
    if samples <= VECTORISED:
        ways["torch, scikit-learn"] = (enter, fit_on_host)
    if samples <= LOOPED[full]:
        ways["loop, scikit-learn"] = (enter_one_by_one, fit_on_host)
    if len(ways) > 1:
        posterior(loss[:1000].cpu().numpy())  # imports are no part of a split
    records, ours = [], None
    for by, (score, split_up) in ways.items():
        record: Record = {"samples": samples, "by": by, "refused": None}
        scored, split_seconds, clean_prob = timed(score, split_up, label, device, 3 if by == "fastlnl" else 1)
        record |= {"score": scored, "split": split_seconds}
        ours = clean_prob.clone() if ours is None else ours
        try:
            record["difference"] = "" if by == "fastlnl" else same_side(ours.cpu(), clean_prob)
        except WrongAnswer as error:
            record["refused"] = str(error)
        records.append(record)
    return records


def timed(
    score: Score, split: Callable[[], Tensor], label: Tensor, device: str, repetitions: int
) -> tuple[float, float, Tensor]:
    """Best seconds of the pass over all samples and of the split, with what the split says."""
    logits = 3 * torch.randn(RING, BATCH, CLASSES, generator=torch.Generator(device).manual_seed(0), device=device)
    ids = torch.arange(len(label), device=device)
    score(logits[0, :1], label[:1], ids[:1])  # the first call may compile
    scored, fitted = [], []
    with no_garbage_collection():
        for _ in range(repetitions):
            wait(device)
            started = time.perf_counter()
            for i, (y, index) in enumerate(zip(label.split(BATCH), ids.split(BATCH), strict=True)):
                score(logits[i % RING, : len(index)], y, index)
            wait(device)
            scored.append(time.perf_counter() - started)
            started = time.perf_counter()
            clean_prob = split()
            wait(device)
            fitted.append(time.perf_counter() - started)
    return min(scored), min(fitted), clean_prob


def free_bytes(device: str) -> int:
    if device != "cpu":
        return torch.cuda.mem_get_info()[0]
    try:
        with open("/proc/meminfo") as lines:
            return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable"))
    except OSError:
        return 8 << 30


def state_bytes() -> list[Record]:
    """Bytes a sample of what each method keeps, from the buffers themselves, and of N x C float32.

    topk:16 is for 32 classes and more, CREMA with uint8 below that and with topk:16 above.
    """
    return [
        {"data": name, "samples": samples, "classes": classes, "dense": 4 * classes, **bytes_a_sample(classes)}
        for name, samples, classes in DATA_SETS
    ]


def bytes_a_sample(classes: int) -> dict[str, float | None]:
    def growth(build: Callable[[Tensor], torch.nn.Module]) -> float:
        few, more = (bytes_of(build(torch.zeros(n, dtype=torch.int64))) for n in (8, 16))
        return (more - few) / 8

    fitting = [storage for storage in STORAGES if not storage.startswith("topk") or classes >= 32]
    found: dict[str, float | None] = {f"ALR, {storage}": None for storage in STORAGES}
    for storage in fitting:
        found[f"ALR, {storage}"] = growth(lambda y, storage=storage: ALR(len(y), classes, y, storage=storage))
    return found | {
        "SampleDynamics": growth(lambda y: SampleDynamics(len(y), classes, label=y)),
        "IDO": growth(lambda y: TwoViewLoss(len(y), classes, y, max_count=25)),
        "DivideMix, a network": growth(lambda y: LossSplit(y, classes)),
        "CREMA, a network": growth(lambda y: Credibility(y, classes, storage=fitting[-1])),
    }
