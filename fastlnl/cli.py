"""The `fastlnl` command: train a network under label noise, see which backends work here."""

from __future__ import annotations

import argparse
import ast
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

from fastlnl.errors import BackendError, StateError
from fastlnl.extension import BuildError


class Recipe(NamedTuple):
    """How to train on a data set when nothing else is said."""

    network: str
    optimizer: str
    lr: float
    schedule: str
    weight_decay: float
    augment: str | None
    epochs: int


# Cosine everywhere: plain cross-entropy memorises least under it, so the baseline is not handicapped.
TEXT = Recipe("textcnn", "adam", 1e-3, "cosine", 0.0, "word_dropout:0.1", 20)
RECIPES = {
    "digits": Recipe("mlp", "adam", 1e-3, "cosine", 0.0, None, 60),
    "mnist": Recipe("mlp512", "adam", 1e-3, "cosine", 0.0, None, 40),
    "fashion_mnist": Recipe("mlp512", "adam", 1e-3, "cosine", 0.0, None, 40),
    "cifar10": Recipe("cnn", "sgd", 0.05, "cosine", 5e-4, "crop_flip", 30),
    "trec": TEXT,
    "sst2": TEXT,
    "subj": TEXT,
    "mr": TEXT,
    "hausa": TEXT._replace(epochs=40),
}
# Options of the methods for runs as short as these.
SHORT_RUN = {"alr": {"momentum": 0.7}}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 0, 2 for bad input (one sentence on stderr), 130 when interrupted."""
    arguments = _parser().parse_args(argv)
    try:
        return arguments.run(arguments)
    except (ValueError, OSError, ImportError, FloatingPointError, BackendError, BuildError, StateError) as error:
        print(f"fastlnl: error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("fastlnl: interrupted; --resume continues a run from its last checkpoint", file=sys.stderr)
        return 130


def train(arguments: argparse.Namespace) -> int:
    """`fastlnl train`"""
    from fastlnl.data import load_dataset
    from fastlnl.methods import METHODS
    from fastlnl.trainer import Trainer

    method_class = METHODS[arguments.method]
    data = load_dataset(arguments.dataset, arguments.data)
    if arguments.samples is not None:
        data = data.first(arguments.samples)
    settings = RECIPES[arguments.dataset]._asdict()
    options = dict(_option(text) for text in arguments.option)
    if "preset" not in options:  # a preset says its own
        options = SHORT_RUN.get(arguments.method, {}) | options
    words = "network epochs batch_size optimizer lr min_lr schedule weight_decay augment amp"
    for name in words.split():
        if (value := getattr(arguments, name)) is not None:
            settings[name] = None if value == "none" else value
    out_dir = arguments.out or Path("runs", _run_name(arguments))
    if arguments.overwrite:
        (out_dir / "checkpoint.pt").unlink(missing_ok=True)
    result = Trainer(
        method_class(**options),
        data,
        noise=arguments.noise,
        device=arguments.device,
        seed=arguments.seed,
        out_dir=out_dir,
        progress=False if arguments.quiet else None,
        profile=arguments.profile,
        cuda_graph=arguments.cuda_graph,
        prefetch=arguments.prefetch,
        **settings,
    ).fit(resume=arguments.resume)
    last = result.history[-1]
    noise = f"{last['noise_mode']} ({100 * last['noise']:.2f} % wrong)"
    last10, best = 100 * result.last10, 100 * result.best
    print(f"{arguments.method} on {data.note or data.name}, {noise}, seed {arguments.seed}, {last['epoch']} epochs")
    print(f"test accuracy {100 * result.last:.2f} % (mean of the last ten epochs {last10:.2f}, best {best:.2f})")
    print(f"{result.seconds:.1f} s of training, log in {out_dir}")
    return 0


def doctor(arguments: argparse.Namespace) -> int:
    """`fastlnl doctor`"""
    from fastlnl.backend import backends

    for name, status in backends().items():
        print(f"{name:10} {status}")
    return 0


def build(arguments: argparse.Namespace) -> int:
    """`fastlnl build`"""
    from fastlnl import extension

    print(extension.build(arguments.arch.split(",") if arguments.arch else None))
    return 0


def _parser() -> argparse.ArgumentParser:
    from fastlnl.data import DATASETS
    from fastlnl.methods import METHODS
    from fastlnl.networks import NETWORKS, TEXT_NETWORKS

    parser = argparse.ArgumentParser(prog="fastlnl", description="Learning with noisy labels.")
    parser.add_argument("--version", action="version", version=f"fastlnl {version('fastlnl')}")
    commands = parser.add_subparsers(required=True, metavar="command")

    sub = commands.add_parser("train", help="train a network under label noise")
    sub.set_defaults(run=train)
    sub.add_argument("--method", choices=METHODS, default="alr")
    sub.add_argument("--dataset", choices=DATASETS, default="digits")
    sub.add_argument("--samples", type=int, metavar="N", help="train on the first N samples only: a smaller run")
    sub.add_argument("--noise", default="none", help="such as symmetric:0.4 or human/cifar10n_worst")
    sub.add_argument("--seed", type=int, default=0, help="of the noise, the weights and the order of the batches")
    sub.add_argument("--option", action="append", default=[], metavar="NAME=VALUE", help="of the method, repeatable")
    recipe = sub.add_argument_group("training", "default: the recipe of the data set")
    recipe.add_argument("--network", help=", ".join([*NETWORKS, *TEXT_NETWORKS, "timm:NAME"]))
    recipe.add_argument("--epochs", type=int)
    recipe.add_argument("--batch-size", type=int)
    recipe.add_argument("--optimizer", help="sgd, adam or adamw")
    recipe.add_argument("--lr", type=float)
    recipe.add_argument("--min-lr", type=float, help="where the cosine ends")
    recipe.add_argument("--schedule", help="cosine, step or constant")
    recipe.add_argument("--weight-decay", type=float)
    recipe.add_argument("--augment", help="such as crop_flip, shift, word_dropout:0.1 or none")
    recipe.add_argument("--amp", help="bfloat16 or float16")
    sub.add_argument("--device", default="cpu", help="such as cpu, cuda, cuda:1")
    sub.add_argument("--data", type=Path, help="folder of the data sets, default FASTLNL_DATA")
    sub.add_argument("--out", type=Path, help="folder of the run, default runs/<method>-<dataset>-<noise>-seed<seed>")
    existing = sub.add_mutually_exclusive_group()
    existing.add_argument("--resume", action="store_true", help="continue the run in the folder if there is one")
    existing.add_argument("--overwrite", action="store_true", help="start again where the folder holds a run")
    sub.add_argument("--cuda-graph", action="store_true", help="capture the training step and replay it (ce, alr)")
    sub.add_argument("--prefetch", action="store_true", help="make each batch while the one before is used")
    sub.add_argument("--profile", action="store_true", help="where the time of the last epoch goes: profile.md")
    sub.add_argument("--quiet", action="store_true", help="no progress bar")

    sub = commands.add_parser("build", help="compile the CUDA C++ extension for the device of this machine")
    sub.set_defaults(run=build)
    sub.add_argument("--arch", help="for these instead, such as 80,90")

    sub = commands.add_parser("doctor", help="which backends work here, and why the others do not")
    sub.set_defaults(run=doctor)
    return parser


def _run_name(arguments: argparse.Namespace) -> str:
    noise = arguments.noise.replace("/", "-").replace(":", "-")
    samples = f"-first{arguments.samples}" if arguments.samples is not None else ""
    return f"{arguments.method}-{arguments.dataset}{samples}-{noise}-seed{arguments.seed}"


def _option(text: str) -> tuple[str, Any]:
    """momentum=0.7 -> ("momentum", 0.7); what is no Python literal is a string."""
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise ValueError(f"--option is {text!r}, expected NAME=VALUE, such as momentum=0.7")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value
