"""How long a step takes: rivals take turns in one process, medians and quartiles are reported.

On a CPU a sample is a wall time. On a GPU there are three clocks: `cold` (one CUDA-graph replay of 200 steps over
inputs that are not in the L2 cache), `warm` (the same on one input) and `host` (wall time of a call in a plain loop).
Every wait for a device in the benchmarks is in this file.
"""

import gc
import random
import statistics
import time
import tracemalloc
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from itertools import cycle, islice
from typing import NamedTuple

import torch
from cases import Batch, Case, Problem, Rival, Shape, take_step

GRAPH_STEPS = 200
SAMPLE_SECONDS = 1e-3  # shorter steps are repeated inside a sample, or the change of turns would be measured
TURN_SECONDS = 20e-3  # of a contest with rivals that take seconds
REST_SECONDS = 50e-3  # after a long step: threads of BLAS go on spinning for 30 ms, on the cores of whoever comes next
L2_TIMES = 3

Step = Callable[[], object]


class Timing(NamedTuple):
    """Seconds of a step."""

    median: float
    low: float  # first quartile
    high: float  # third quartile
    samples: int


def summary(seconds: list[float]) -> Timing:
    low, median, high = statistics.quantiles(seconds, n=4) if len(seconds) > 1 else seconds * 3
    return Timing(median, low, high, len(seconds))


def num_batches(case: Case, shape: Shape, device: str) -> int:
    """Different inputs to take turns with: on a GPU enough to push each other out of the L2 cache, 200 at most."""
    moved = case.byte_model(*shape)
    if device == "cpu":
        return max(2, min(8, 64_000_000 // moved))
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    return max(2, min(GRAPH_STEPS, -(-L2_TIMES * l2_bytes // moved)))


def steps_over(rival: Rival, batches: list[Batch]) -> Step:
    """A call takes one step, on the next batch each time."""
    following = cycle(batches)
    return lambda: take_step(rival, next(following))


@contextmanager
def no_garbage_collection() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def take_turns(
    samplers: dict[str, Callable[[], float]], seconds: float, fewest: int, turn: float = 0.0
) -> dict[str, Timing]:
    """Each sampler gives the seconds of one step; all are asked in every round, in a new order each time.

    Rounds go on for `seconds`, and until there are `fewest` samples of each. In its turn a sampler is asked once, or
    again and again for `turn` seconds; then its first sample counts only where there is no other, since the caches
    were those of the one before.
    """
    order, shuffle = list(samplers), random.Random(0).shuffle
    samples: dict[str, list[float]] = {name: [] for name in samplers}
    end = time.perf_counter() + seconds
    with no_garbage_collection():
        while time.perf_counter() < end or min(map(len, samples.values())) < fewest:
            shuffle(order)  # whoever follows a big rival finds its caches emptied: let it be another one each time
            for name in order:
                turn_end = time.perf_counter() + turn
                own = [samplers[name]()]
                while time.perf_counter() < turn_end:
                    own.append(samplers[name]())
                samples[name] += own[1:] or own
                if turn and own[-1] > turn:
                    time.sleep(REST_SECONDS)
    return {name: summary(samples[name]) for name in samplers}


def wall_sampler(step: Step, device: str = "cpu", slow: bool = False) -> Callable[[], float]:
    """Samples the wall time of a call, averaged over as many as `SAMPLE_SECONDS` takes.

    A slow step has been called before, takes more than a sample does, and is not called here.
    """

    def sample(calls: int) -> float:
        wait(device)
        started = time.perf_counter()
        for _ in range(calls):
            step()
        wait(device)
        return (time.perf_counter() - started) / calls

    calls = 1
    if not slow:
        step()  # the first call may compile
        calls = 1 if sample(1) > 100 * SAMPLE_SECONDS else max(1, round(SAMPLE_SECONDS / sample(3)))
    return lambda: sample(calls)


def graph_sampler(rival: Rival, batches: list[Batch]) -> Callable[[], float]:
    """Samples the device time of a step: a replay of `GRAPH_STEPS` steps over the batches in turn.

    The L2 cache is overwritten before each replay, so that steps on few bytes find it cold as well; with one batch
    this is noticed once in 200 steps.
    """
    device = batches[0].logits.device
    side = torch.cuda.Stream(device)
    side.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(side):  # what is set up at the first call must not be captured
        for batch in batches[:3]:
            take_step(rival, batch)
    torch.cuda.current_stream(device).wait_stream(side)
    for batch in batches:
        batch.logits.grad = None  # gradients inside the graph come from its own memory
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for batch in islice(cycle(batches), GRAPH_STEPS):
            take_step(rival, batch)
            batch.logits.grad = None
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    flush = torch.empty(L2_TIMES * l2_bytes, dtype=torch.int8, device=device)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)

    def sample() -> float:
        flush.zero_()
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        return start.elapsed_time(end) / 1e3 / GRAPH_STEPS

    sample()
    return sample


def graph_of(step: Step) -> Step:
    """A replay of the step on the inputs of its capture, from fixed addresses."""
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):  # what is set up at the first calls must not be captured
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def time_rivals(
    rivals: dict[str, Rival], problem: Problem, device: str, seconds: float, fewest: int = 15
) -> dict[str, dict[str, Timing]]:
    """Timings by clock and rival; clocks are "wall" on a CPU, "cold", "warm" and "host" on a GPU."""
    batches = problem.batches
    host = {name: wall_sampler(steps_over(rival, batches), device) for name, rival in rivals.items()}
    if device == "cpu":
        return {"wall": take_turns(host, seconds, fewest)}
    timings = {"host": take_turns(host, seconds / 3, fewest)}
    for clock, used in (("cold", batches), ("warm", batches[:1])):
        graphs = {name: graph_sampler(rival, used) for name, rival in rivals.items()}
        timings[clock] = take_turns(graphs, seconds / 3, fewest)
    return {clock: timings[clock] for clock in ("cold", "warm", "host")}


def time_steps(
    steps: dict[str, Step], device: str, seconds: float, fewest: int = 5, slow: Collection[str] = ()
) -> dict[str, Timing]:
    """Wall times of steps of very different length: few samples of one that takes seconds, many of the short ones."""
    samplers = {name: wall_sampler(step, device, name in slow) for name, step in steps.items()}
    return take_turns(samplers, seconds, fewest, TURN_SECONDS)


def copy_rate(device: str) -> float:
    """Bytes per second of a large copy, read and written bytes both counted: what the memory can do."""
    num_bytes = 256 << 20
    source = torch.ones(num_bytes // 4, device=device)
    copy = torch.empty_like(source)
    sample = wall_sampler(lambda: copy.copy_(source), device)
    return 2 * num_bytes / statistics.median(sample() for _ in range(15))


def peak_bytes(rival: Rival, batch: Batch) -> int:
    """Most memory that a step holds at once beyond its inputs and the label memory; the gradient is part of it."""
    batch.logits.grad = None
    return peak_of(lambda: take_step(rival, batch), batch.logits.device.type, numpy=False)


def peak_of(step: Step, device: str, numpy: bool = True) -> int:
    """Most memory that a step allocates at once through torch, or on a CPU through NumPy where that asks for more."""
    if device != "cpu":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    by_numpy = 0
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profiled:
        if numpy:
            tracemalloc.start()
        try:
            step()
            by_numpy = tracemalloc.get_traced_memory()[1] if numpy else 0
        finally:
            tracemalloc.stop()
    assert profiled.profiler is not None
    events = [e for e in profiled.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()  # negative where memory is given back
        peak = max(peak, held)
    return max(peak, by_numpy)


def wait(device: str) -> None:
    if device != "cpu":
        torch.cuda.synchronize(device)
