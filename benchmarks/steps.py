"""The whole step: what each method adds to plain cross-entropy, by fastlnl and in the way of research code.

A network's step with cross-entropy (forward, backward, SGD) is timed as a whole. A method differs from it only between
the logits and their gradient, so that part is timed alone, with cold caches as it finds them inside a step (64 MiB are
overwritten before each call, outside of the clock), in turns with cross-entropy's; the difference over the step's time
is what the method adds. In this way 50 us can be told from a step of seconds. Work of once an epoch is timed over all
50,000 samples and shared out over the steps of an epoch. For the MLP whole steps are timed as well, to see that both
ways agree. Forward passes that a method makes for itself (scoring in eval mode, a second view) are not bookkeeping:
CREMA and DivideMix score the logits of the step here, IDO is compared with cross-entropy of two views.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import count
from typing import Any, NamedTuple

import torch
from bookkeeping import BASELINES, FASTLNL, Build, Head
from counting import counted_call
from plain_bookkeeping import PLAIN
from timing import Step, Timing, graph_of, no_garbage_collection, peak_of, take_turns, wait, wall_sampler
from torch import Tensor, nn

from fastlnl.networks import build_network

NUM_SAMPLES = 50_000
EVICTED = 64 << 20  # bytes, more than the caches hold
COMPILED = ("ce", "alr")  # of ResNet-18, which takes a minute to compile
ROUNDING = 1e-5
SMALL = 0.2  # logits for comparing answers: the clamps of published code, which fastlnl has not, do not reach them

Record = dict[str, Any]


class Setting(NamedTuple):
    """A network and its batch."""

    network: str
    title: str
    shape: tuple[int, ...]
    batch: int
    num_classes: int
    compiled: bool
    samples: int  # of the whole step


QUICK = (
    Setting("mlp", "MLP on 512 features", (512,), 128, 100, False, 40),
    Setting("cnn", "CNN, 3 x 32 x 32", (3, 32, 32), 32, 10, False, 3),
    Setting("resnet18", "ResNet-18, 3 x 32 x 32", (3, 32, 32), 8, 10, False, 3),
)
FULL = (
    QUICK[0]._replace(compiled=True, samples=100),
    QUICK[1]._replace(compiled=True, batch=128, samples=20),
    QUICK[2]._replace(compiled=True, batch=128, samples=9),
)


class Batches:
    """Random batches of an epoch in turn, without repetition."""

    def __init__(self, setting: Setting, device: str) -> None:
        random = torch.Generator(device).manual_seed(0)
        self.label = torch.randint(setting.num_classes, (NUM_SAMPLES,), generator=random, device=device)
        self.order = torch.randperm(NUM_SAMPLES, generator=random, device=device)
        self.views = [torch.randn(setting.batch, *setting.shape, generator=random, device=device) for _ in range(2)]
        self.logits = [
            3 * torch.randn(setting.batch, setting.num_classes, generator=random, device=device) for _ in range(2)
        ]
        self.size = setting.batch

    def ids(self) -> Iterator[Tensor]:
        for i in count():
            start = i * self.size % (NUM_SAMPLES - self.size)
            yield self.order[start : start + self.size]


def measure_steps(full: bool, device: str, say: Callable[[str], None] = print) -> list[Record]:
    """A record per network, method and way of doing it; cross-entropy's records hold the time of the step."""
    records: list[Record] = []
    once: dict[Any, float] = {}
    for setting in FULL if full else QUICK:
        say(f"step of {setting.network}, batch {setting.batch}")
        records += measure(setting, full, device, once)
    return records


def measure(setting: Setting, full: bool, device: str, once: dict[Any, float] | None = None) -> list[Record]:
    """`once` keeps the seconds of `end_epoch`, which do not depend on the network."""
    once = {} if once is None else once
    batches = Batches(setting, device)
    builds: dict[tuple[str, str], Build] = {("ce", "torch"): BASELINES[1], ("ce of two views", "torch"): BASELINES[2]}
    builds |= {(name, "fastlnl"): build for name, build in FASTLNL.items()}
    builds |= {(name, "research code"): build for name, build in PLAIN.items()}
    heads = {key: build(batches.label, setting.num_classes) for key, build in builds.items()}
    refused = {name: why_refused(name, batches, setting.num_classes) for name in FASTLNL}
    calls = {key: head_step(head, batches) for key, head in heads.items()}
    records = {key: {"network": setting.network, "title": setting.title, "batch": setting.batch,
                     "classes": setting.num_classes, "method": key[0], "by": key[1], "refused": refused.get(key[0])}
               for key in heads}  # fmt: skip
    for key, call in calls.items():
        call()  # what is made at the first call does not count
        records[key] |= counted_call(call)._asdict() | {"peak_bytes": peak_of(call, device, numpy=False)}
    alone = take_turns({str(key): cold_sampler(call, device) for key, call in calls.items()}, 0.0, 41 if full else 15)
    whole = whole_steps(setting, batches, heads, device)
    compiled = compiled_steps(setting, batches, builds, device)
    for key, head in heads.items():
        base, record = ("ce" if head.views == 1 else "ce of two views", "torch"), records[key]
        record |= {"head": alone[str(key)]._asdict(), "step": whole[base]._asdict(), "epoch_seconds": 0.0}
        if head.end_epoch is not None:
            place = (*key, setting.num_classes)
            if place not in once:
                once[place] = epoch_seconds(head, batches, device, 3 if key[1] == "fastlnl" else 1)
            record["epoch_seconds"] = once[place]
        record["state_bytes"] = head.state()
        share = record["epoch_seconds"] * setting.batch / NUM_SAMPLES
        record["extra"] = alone[str(key)].median - alone[str(base)].median + share
        record["extra_percent"] = 100 * record["extra"] / whole[base].median
        if key in whole and key != base:
            record["whole"] = whole[key]._asdict()
        graph, graph_base = (key[0], "graph"), (base[0], "graph")
        record["graph"] = whole[graph]._asdict() if graph in whole and key[1] != "research code" else None
        record["graph_base"] = whole[graph_base]._asdict() if graph_base in whole else None
        record["compiled"] = compiled[key]._asdict() if key in compiled else None
        record["compiled_base"] = compiled[base]._asdict() if base in compiled else None
    return list(records.values())


def why_refused(method: str, batches: Batches, num_classes: int) -> str | None:
    """Both ways have to give the same first loss and gradient."""
    found = []
    for build in (FASTLNL[method], PLAIN[method]):
        leaves = [(SMALL * z).requires_grad_() for z in batches.logits]
        index = batches.order[: batches.size]
        head = build(batches.label, num_classes)
        loss = head.loss(leaves[: head.views], batches.label[index], index)
        loss.backward()
        found.append([loss.detach(), *(z.grad for z in leaves[: head.views])])
    worst = max(float((x - y).norm() / y.norm()) for x, y in zip(*found, strict=True))
    return None if worst <= ROUNDING else f"loss or gradient differ by {worst:.0e} of their norm"


def head_step(head: Head, batches: Batches) -> Step:
    """Logits to their gradient, with the state of another batch each time."""
    leaves = [z.clone().requires_grad_() for z in batches.logits[: head.views]]
    ids = batches.ids()

    def step() -> None:
        index = next(ids)
        for z in leaves:
            z.grad = None
        head.loss(leaves, batches.label[index], index).backward()

    return step


def cold_sampler(step: Step, device: str) -> Callable[[], float]:
    """Seconds of a call that finds none of its data in the caches."""
    elsewhere = torch.zeros(EVICTED, dtype=torch.uint8, device=device)
    step()

    def sample() -> float:
        elsewhere.add_(1)
        wait(device)
        started = time.perf_counter()
        step()
        wait(device)
        return time.perf_counter() - started

    return sample


def whole_step(
    setting: Setting, batches: Batches, head: Head, device: str, compiled: bool = False
) -> Callable[[], Tensor]:
    """Forward, loss, backward, SGD with momentum."""
    torch.manual_seed(0)
    network: nn.Module = build_network(setting.network, setting.shape, setting.num_classes).to(device)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    ids = batches.ids()

    def forward(views: Sequence[Tensor], label: Tensor, index: Tensor) -> Tensor:
        return head.loss([network(view) for view in views], label, index)

    run = torch.compile(forward, dynamic=False) if compiled else forward

    def step() -> Tensor:
        index = next(ids)
        optimizer.zero_grad()
        loss = run(batches.views[: head.views], batches.label[index], index)
        loss.backward()
        optimizer.step()
        return loss.detach()

    return step


def whole_steps(
    setting: Setting, batches: Batches, heads: dict[tuple[str, str], Head], device: str
) -> dict[tuple[str, str], Timing]:
    """Of both baselines in turns, with all methods where a step is short; on a GPU, too, as graphs."""
    small = setting.network == "mlp" or device != "cpu"
    chosen = {key: head for key, head in heads.items() if key[1] == "torch" or small}
    steps = {key: whole_step(setting, batches, head, device) for key, head in chosen.items()}
    if device != "cpu":
        steps |= {(key[0], "graph"): graph_of(steps[key]) for key in list(steps) if key[1] != "research code"}
    for step in steps.values():
        step()
    samplers = {str(key): wall_sampler(step, device, slow=not small) for key, step in steps.items()}
    timings = take_turns(samplers, 0.0, setting.samples)
    return {key: timings[str(key)] for key in steps}


def compiled_steps(
    setting: Setting, batches: Batches, builds: dict[tuple[str, str], Build], device: str
) -> dict[tuple[str, str], Timing]:
    """Network and loss in one region of torch.compile; heads of their own, so that none is traced with old state."""
    if not setting.compiled:
        return {}
    names = set(COMPILED) if setting.network == "resnet18" else {"ce", "ce of two views", "alr", "elr", "ido"}
    steps = {}
    for key, build in builds.items():
        if key[0] in names and key[1] != "research code":
            torch.compiler.reset()
            step = whole_step(setting, batches, build(batches.label, setting.num_classes), device, compiled=True)
            step()
            steps[str(key)] = wall_sampler(step, device)
    timings = take_turns(steps, 0.0, setting.samples)
    return {key: timings[str(key)] for key in builds if str(key) in timings}


def epoch_seconds(head: Head, batches: Batches, device: str, repetitions: int) -> float:
    """Median seconds of `end_epoch` after losses of two kinds were entered for all samples."""
    assert head.end_epoch is not None
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for index in batches.order.split(5000):
            wrong = torch.rand(len(index), 1, generator=random) < 0.4
            logits = torch.randn(len(index), batches.logits[0].shape[1], generator=random)
            own = torch.nn.functional.one_hot(batches.label[index].cpu(), logits.shape[1])
            logits = (logits + torch.where(wrong, -2.0, 4.0) * own).to(device)
            head.loss([logits], batches.label[index], index)
    head.end_epoch()
    seconds = []
    with no_garbage_collection():
        for _ in range(repetitions):
            wait(device)
            started = time.perf_counter()
            head.end_epoch()
            wait(device)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)
