"""The frame of a training run: epochs, schedule, evaluation, checkpoints, log. It knows no method."""

from __future__ import annotations

import math
import random
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import KW_ONLY, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from fastlnl import checkpoint
from fastlnl.data import Dataset
from fastlnl.evaluation import evaluate, monitored_ids
from fastlnl.frame import Frame
from fastlnl.graph import RecordedStep, recording_for
from fastlnl.learner import PRECISIONS, Learner
from fastlnl.networks import build_network
from fastlnl.noise import NoisyLabels, apply_noise
from fastlnl.profiling import Profile
from fastlnl.runlog import Result, RunFolder, summary
from fastlnl.schedule import SCHEDULES, scheduled
from fastlnl.state import label_fingerprint

if TYPE_CHECKING:
    from fastlnl.methods.base import Method


@dataclass
class Trainer:
    """Train a network with a method on a data set under label noise.

        Trainer(ALR(momentum=0.7), load_dataset("digits"), "mlp", noise="symmetric:0.4", epochs=60).fit()

    Args:
        method: an instance of a class in `fastlnl.methods`.
        data: the data set with its true labels.
        network: name for `build_network`, a function that builds a module, or a module that gives logits (B, C), which
            is trained in place; methods with two networks need one of the first two.
        noise: specification for `apply_noise`, drawn with `seed`, or labels that are there already.
        lr: learning rate of the first epoch. schedule: "cosine" (to zero, set per epoch), "constant", or "step"
            (divided by ten after each share of the run in `milestones`). min_lr: where "cosine" ends.
        optimizer: "sgd" (with `sgd_momentum`), "adam" or "adamw".
        augment: name of an augmentation that `IndexedLoader` knows, None for none.
        amp: None, "bfloat16" or "float16" (with loss scaling).
        channels_last: memory format of weights and images; None: where the network has two-dimensional convolutions.
        cuda_graph: capture the training step and replay it: single-network methods with steps that are all alike.
        prefetch: make each training batch in a thread while the one before is used; the result is the same.
        monitor: predict so many training samples once an epoch, to see how many wrong labels are memorised; True: all,
            False: none.
        checkpoint_seconds: after an epoch a checkpoint is written when the last one is so old, and after the last one.
        profile: measure where the time of the last epoch goes; `profile_` knows, profile.md in `out_dir` is the table.
        out_dir: folder for checkpoint and logs; None writes nothing.
        progress: a progress bar; None shows one on a terminal where tqdm is installed.

    Raises:
        ValueError: a setting that does not exist.
    """

    method: Method
    data: Dataset
    network: str | nn.Module | Callable[[], nn.Module]
    _: KW_ONLY
    noise: str | NoisyLabels = "none"
    epochs: int = 30
    batch_size: int = 128
    optimizer: str = "sgd"
    lr: float = 0.02
    sgd_momentum: float = 0.9
    weight_decay: float = 0.0
    schedule: str = "cosine"
    milestones: tuple[float, ...] = (0.2, 0.4)
    min_lr: float = 0.0
    augment: str | None = None
    amp: str | None = None
    channels_last: bool | None = None
    compile: bool = False
    cuda_graph: bool = False
    device: str | torch.device = "cpu"
    seed: int = 0
    prefetch: bool = False
    monitor: int | bool = 10_000
    checkpoint_seconds: float = 10.0
    profile: bool = False
    out_dir: str | Path | None = None
    progress: bool | None = None

    def __post_init__(self) -> None:
        choices = {"optimizer": ("sgd", "adam", "adamw"), "schedule": SCHEDULES, "amp": tuple(PRECISIONS)}
        for setting, known in choices.items():
            if getattr(self, setting) not in known:
                raise ValueError(f"{setting} is {getattr(self, setting)!r}, expected one of {known}")
        for setting in ("epochs", "batch_size", "lr"):
            if not getattr(self, setting) > 0:
                raise ValueError(f"{setting} is {getattr(self, setting)}, expected more than 0")
        if self.cuda_graph:
            recording_for(torch.device(self.device))
            if not self.method.capturable:
                raise ValueError(
                    f"cuda_graph is True but the steps of {self.method.name} are not all alike; "
                    "it works for ce and alr, leave it out for others"
                )
            if self.amp == "float16":
                raise ValueError("cuda_graph is True but amp is 'float16', whose loss scale moves; use 'bfloat16'")
            if self.prefetch:
                raise ValueError("cuda_graph and prefetch are True; a capture allows no second thread, choose one")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ValueError(f"device is {str(self.device)!r}, which torch cannot use here; try cpu") from error

    def fit(self, resume: bool = False) -> Result:
        """Train to the last epoch, from the start or, with `resume`, from the checkpoint in `out_dir` if there is one.

        A run that was killed at any moment and resumed ends as if it had never been interrupted, bit for bit on a CPU:
        what came after its checkpoint is done again.

        Raises:
            FileExistsError: `out_dir` holds a run already and `resume` was not asked for.
            StateError: the checkpoint there belongs to other data or settings.
            FloatingPointError: the training loss is no longer finite.
        """
        folder = RunFolder(self.out_dir) if self.out_dir is not None else None
        if folder and folder.checkpoint.exists() and not resume:
            raise FileExistsError(f"{folder.path} holds a run already; resume it or choose another output folder")
        run, noisy = self._prepare()
        settings = self._settings(noisy)
        history: list[dict[str, Any]] = []
        if folder:
            if folder.checkpoint.exists():
                history = self._restore(run, folder.checkpoint, settings)
            folder.start({**settings, "noise_counts": noisy.counts.tolist()}, history)
        bar = self._progress_bar(run, len(history))
        profile, monitored, saved = Profile(run.device), monitored_ids(run, self.monitor), time.monotonic()
        for t in range(len(history) + 1, self.epochs + 1):
            if last := self.profile and t == self.epochs:
                run.prefetch = False  # in turn, so that each part has its own time
                profile.watch_run(run, self.method)
            with profile.epoch() if last else nullcontext():
                record = {"epoch": t, **self._epoch(t, run, monitored, profile)}
                record |= {"noise_mode": noisy.mode, "noise": noisy.realised_rate}
                history.append(record)
                if folder:
                    with profile.part("checkpoint and log"):
                        if t == self.epochs or time.monotonic() - saved >= self.checkpoint_seconds:
                            self._save(run, folder.checkpoint, settings, history)
                            saved = time.monotonic()
                        folder.add(record)
            if bar:
                bar.update(t * len(run.train) - bar.n)  # a method may take more or fewer steps than batches
                bar.set_postfix_str(f"epoch {t}, test accuracy {100 * record['test_accuracy']:.2f} %")
        if bar:
            bar.close()
        result = summary(history)
        if self.profile and profile.calls["rest"]:
            where = f"{self.method.name} on {self.data.note or self.data.name}"
            self.profile_ = profile
            if folder:
                folder.write_profile(profile.table(f"Epoch {self.epochs} of {where}"))
        if folder:
            hidden = ("metrics", "history")
            scores = {f.name: getattr(result, f.name) for f in fields(Result) if f.name not in hidden}
            folder.finish({**settings, **scores, **result.metrics, "torch": torch.__version__})
        return result

    def learning_rate(self, t: int) -> float:
        """Learning rate of epoch `t` = 1..epochs."""
        lr, span = self.method.stage_lr(t, self.lr), self.method.schedule_span(t, self.epochs)
        return scheduled(self.schedule, lr, self.min_lr, self.milestones, *span)

    def _build_optimizer(self, module: nn.Module) -> torch.optim.Optimizer:
        # fused: one kernel a step, and a GradScaler that never has to ask the device whether the step is skipped
        lr = torch.tensor(self.lr, device=self.device) if self.cuda_graph else self.lr  # a graph reads it each time
        shared: dict[str, Any] = {"lr": lr, "weight_decay": self.weight_decay, "fused": True}
        if self.optimizer != "sgd":
            adam = torch.optim.AdamW if self.optimizer == "adamw" else torch.optim.Adam
            return adam(module.parameters(), capturable=self.cuda_graph, **shared)
        return torch.optim.SGD(module.parameters(), momentum=self.sgd_momentum, **shared)

    def _prepare(self) -> tuple[Frame, NoisyLabels]:
        random.seed(self.seed)
        np.random.seed(self.seed % 2**32)
        torch.manual_seed(self.seed)
        noisy = self.noise
        if isinstance(noisy, str):
            noisy = apply_noise(noisy, self.data, self.seed)
        run = Frame(
            [self._learner() for _ in range(self.method.num_networks)],
            self.data,
            noisy.label,
            epochs=self.epochs,
            batch_size=self.batch_size,
            augment=self.augment,
            seed=self.seed,
            device=torch.device(self.device),
            prefetch=self.prefetch,
        )
        self.method.setup(run)
        return run, noisy

    def _learner(self) -> Learner:
        """A network with fresh weights; each call draws others."""
        module = self.network
        if isinstance(module, str):
            module = build_network(module, self.data.image_shape, self.data.num_classes, len(self.data.vocabulary))
        elif not isinstance(module, nn.Module):
            module = module()
        elif self.method.num_networks > 1:
            raise ValueError(
                f"network is a module but {self.method.name} trains {self.method.num_networks} of them; "
                f"give a name or a function that builds one"
            )
        module = module.to(self.device)
        channels_last = self.channels_last
        if channels_last is None:
            channels_last = any(isinstance(layer, nn.Conv2d) for layer in module.modules())
        if channels_last:
            module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return Learner(
            module,
            self._build_optimizer,
            device=torch.device(self.device),
            amp=self.amp,
            channels_last=channels_last,
            compile=self.compile,
            recorded=RecordedStep(recording_for(torch.device(self.device))) if self.cuda_graph else None,
        )

    def _epoch(self, t: int, run: Frame, monitored: Tensor, profile: Profile) -> dict[str, Any]:
        started = time.perf_counter()
        run.start_epoch(t, self.learning_rate(t))
        self.method.epoch(t)
        loss = run.mean_loss().item()  # waits for the device: the clock below is honest
        seconds = time.perf_counter() - started
        if not math.isfinite(loss):
            raise FloatingPointError(f"the training loss is {loss} in epoch {t}; lower lr ({self.lr})")
        with profile.part("evaluation"):
            measured = evaluate(run, self.method, monitored)
        return {"train_loss": loss, "lr": self.learning_rate(t), "seconds": round(seconds, 4), **measured}

    def _settings(self, noisy: NoisyLabels) -> dict[str, Any]:
        """What a resumed run must have in common with the run that wrote the checkpoint."""
        elsewhere = {"method", "data", "network", "noise", "device", "compile", "cuda_graph", "monitor", "out_dir"}
        elsewhere |= {"progress", "profile", "prefetch", "checkpoint_seconds"}
        named = self.network if isinstance(self.network, str) else type(self.network).__name__
        return {
            "method": self.method.name,
            **{f"option_{name}": value for name, value in self.method.options.items()},
            "dataset": self.data.note or self.data.name,
            "num_samples": len(noisy.label),
            "num_classes": self.data.num_classes,
            "label_fingerprint": label_fingerprint(noisy.label),
            "noise_mode": noisy.mode,
            "noise_count": noisy.count,
            "nominal_noise": noisy.nominal_rate,
            "realised_noise": noisy.realised_rate,
            "network": named,
            **{f.name: getattr(self, f.name) for f in fields(self) if f.name not in elsewhere},
        }

    def _save(self, run: Frame, path: Path, settings: dict[str, Any], history: list[dict[str, Any]]) -> None:
        state = {
            "settings": settings,
            "history": history,
            "networks": [network.state_dict() for network in run.networks],
            "method": self.method.state_dict(),
            "rng": checkpoint.rng_state(),
        }
        checkpoint.save(state, path)

    def _restore(self, run: Frame, path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
        state = checkpoint.load(path)
        checkpoint.check_same_run(path, state["settings"], settings)
        for network, saved in zip(run.networks, state["networks"], strict=True):
            network.load_state_dict(saved)
        self.method.load_state_dict(state["method"])
        checkpoint.set_rng_state(state["rng"])
        return state["history"]

    def _progress_bar(self, run: Frame, finished: int) -> Any:
        if not (sys.stderr.isatty() if self.progress is None else self.progress):
            return None
        try:
            from tqdm import tqdm
        except ImportError:
            if self.progress:
                raise
            return None  # it was not asked for by name
        steps = len(run.train)
        bar = tqdm(total=self.epochs * steps, initial=finished * steps, unit="step", dynamic_ncols=True)
        run.on_batch = bar.update
        return bar
