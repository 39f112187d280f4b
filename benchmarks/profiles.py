"""Where the time of an epoch of each method goes: `python benchmarks/profiles.py`. Writes results/profiles.md.

The last epoch of a short run, when every part of the method is at work, and what batches made ahead in a thread gain.
"""

import argparse
import dataclasses
import statistics
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import torch
from machine import cpu_model
from provenance import commit

from fastlnl.data import Dataset, load_dataset
from fastlnl.methods import METHODS
from fastlnl.profiling import PARTS
from fastlnl.trainer import Trainer

RESULT = Path(__file__).parent / "results" / "profiles.md"
EPOCHS, WARMUP = 4, 2  # the last epoch is the second after the warm-up: its kernels have been loaded
OPTIONS = {"sanm": {"views": "two"}}  # the short run of its card
ROUNDS = 5


class Setting(NamedTuple):
    title: str
    network: str
    samples: int
    methods: tuple[str, ...]
    augment: str | None


SETTINGS = (
    Setting("MLP 2x512", "mlp512", 20_000, tuple(name for name in METHODS if name != "sanm"), None),
    Setting("PreAct CNN, crop and flip", "preact_cnn", 512, ("ce", "alr", "dividemix", "sanm"), "crop_flip"),
)


def trainer(name: str, setting: Setting, data: Dataset, **how: Any) -> Trainer:
    options = OPTIONS.get(name, {}) | ({"warmup_epochs": WARMUP} if "warmup_epochs" in METHODS[name].defaults else {})
    recipe = {"epochs": EPOCHS, "optimizer": "adam", "lr": 1e-3, "augment": setting.augment}
    return Trainer(
        METHODS[name](**options), data, setting.network, noise="symmetric:0.4", progress=False, **recipe, **how
    )


def shares(name: str, setting: Setting, data: Dataset) -> tuple[float, dict[str, float]]:
    """Seconds of the last epoch, and how many per cent of them each part takes."""
    with tempfile.TemporaryDirectory() as folder:  # a checkpoint and a log are part of an epoch
        run = trainer(name, setting, data, profile=True, out_dir=Path(folder, "run"))
        run.fit()
    seconds, calls = run.profile_.seconds, run.profile_.calls
    total = sum(seconds.values())
    return total, {part: 100 * seconds[part] / total for part in PARTS if calls[part]}


def gain(name: str, setting: Setting, data: Dataset, rounds: int) -> list[float]:
    """Seconds of the last epoch over those with `prefetch`, of runs that take turns."""
    ratios = []
    for turn in range(rounds):
        seconds = {}
        for ahead in (False, True) if turn % 2 else (True, False):
            run = trainer(name, setting, data, prefetch=ahead, monitor=False)
            seconds[ahead] = run.fit().history[-1]["seconds"]
        ratios.append(seconds[False] / seconds[True])
    return ratios


def smaller(data: Dataset, samples: int) -> Dataset:
    """The first samples, and as large a share of the test samples: an evaluation takes its usual share of the time."""
    tested = max(1, len(data.test_label) * samples // data.num_samples)
    data = dataclasses.replace(data, test_images=data.test_images[:tested], test_label=data.test_label[:tested])
    return data.first(samples)


def profiles(dataset: str, samples: int | None, rounds: int) -> list[str]:
    """Lines of Markdown: a table for each setting."""
    lines = []
    for setting in SETTINGS:
        data = load_dataset(dataset)
        data = smaller(data, min(samples or setting.samples, data.num_samples))
        if setting.augment and min(data.image_shape[-2:]) < 28:  # nothing for the masks of SANM
            lines += [f"{setting.title}: skipped, the images of {data.name} are too small.", ""]
            continue
        table = {name: shares(name, setting, data) for name in setting.methods}
        lines += [f"## {setting.title}, {data.note or data.name}", ""]
        lines += ["| part | " + " | ".join(table) + " |", "|---|" + "--:|" * len(table)]
        for part in PARTS:
            cells = [f"{of[part]:.1f} %" if part in of else "" for _, of in table.values()]
            if any(cells):
                lines.append(f"| {part} | {' | '.join(cells)} |")
        lines.append(f"| epoch, s | {' | '.join(f'{total:.2f}' for total, _ in table.values())} |")
        if setting.augment:
            found = {name: gain(name, setting, data, rounds) for name in setting.methods}
            cells = [f"{statistics.median(r):.2f}x ({min(r):.2f} to {max(r):.2f})" for r in found.values()]
            lines.append(f"| with `prefetch` | {' | '.join(cells)} |")
        lines.append("")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="fashion_mnist", choices=("digits", "mnist", "fashion_mnist", "cifar10"))
    parser.add_argument("--samples", type=int, help="in place of those of each setting")
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of runs with and without prefetch")
    parser.add_argument("--out", type=Path, default=RESULT)
    arguments = parser.parse_args(argv)
    head = [
        "# Where the time of an epoch goes",
        "",
        f"Written by `python benchmarks/profiles.py` at {commit()}: {cpu_model()}, {torch.get_num_threads()} threads,",
        f"torch {torch.__version__}. The last of {EPOCHS} epochs, batches of 128, symmetric 40 %, SANM with two",
        "views; as many test samples for each training sample as the data set has. `prefetch`: seconds of that epoch",
        f"without over those with, median and range of {arguments.rounds} pairs of runs.",
        "",
    ]
    arguments.out.write_text("\n".join([*head, *profiles(arguments.dataset, arguments.samples, arguments.rounds)]))
    print(arguments.out.read_text(), end="")


if __name__ == "__main__":
    main()
