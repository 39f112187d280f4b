"""Time to accuracy: what each method reaches on noisy digits, and in how many seconds of training."""

import statistics
from collections.abc import Callable
from typing import Any

from fastlnl.cli import RECIPES, SHORT_RUN
from fastlnl.data import load_dataset
from fastlnl.methods import METHODS
from fastlnl.methods.base import Method
from fastlnl.trainer import Result, Trainer

DATASET, NOISE = "digits", "symmetric/exclusive:0.4"
COMPARED = ("ce", "alr")


def train(method: str, seed: int, epochs: int | None = None, device: str = "cpu") -> Result:
    """One run, as `fastlnl train --method <method> --dataset digits --noise symmetric/exclusive:0.4` does it."""
    settings = RECIPES[DATASET]._asdict()
    settings["epochs"] = epochs or settings["epochs"]
    chosen: type[Method] = METHODS[method]
    options = SHORT_RUN.get(method, {})
    return Trainer(
        chosen(**options),
        load_dataset(DATASET),
        noise=NOISE,
        seed=seed,
        device=device,
        monitor=False,
        progress=False,
        **settings,
    ).fit()


def time_to_accuracy(
    seeds: int = 5, epochs: int | None = None, device: str = "cpu", say: Callable[[str], None] = print
) -> list[dict[str, Any]]:
    """A record per method: accuracies in per cent (mean and standard deviation over the seeds), seconds, curves.

    Seeds are on the outside and methods inside, so that a machine that gets slower is so for every method.
    """
    train(COMPARED[0], seed=0, epochs=1, device=device)  # what is built at the first use is not training time
    results: dict[str, list[Result]] = {method: [] for method in COMPARED}
    for seed in range(seeds):
        for method in COMPARED:
            result = train(method, seed, epochs, device)
            say(f"{method} on {DATASET}, seed {seed}: {100 * result.last:.2f} % in {result.seconds:.1f} s")
            results[method].append(result)
    return [{"method": method, "dataset": DATASET, "noise": NOISE, **of_runs(runs)} for method, runs in results.items()]


def of_runs(runs: list[Result]) -> dict[str, Any]:
    last, best, seconds = ([getattr(run, name) for run in runs] for name in ("last", "best", "seconds"))
    noise = [run.history[-1]["noise"] for run in runs]
    return {
        "seeds": len(runs),
        "epochs": len(runs[0].history),
        "last": 100 * statistics.mean(last),
        "last_std": 100 * statistics.stdev(last) if len(runs) > 1 else 0.0,
        "best": 100 * statistics.mean(best),
        "seconds": statistics.mean(seconds),
        "realised_noise": 100 * statistics.mean(noise),
        "curves": [[100 * record["test_accuracy"] for record in run.history] for run in runs],
    }
