"""The trainer: what it writes, what it refuses, and that a killed run continues bit for bit."""

import csv
import dataclasses
import json
import multiprocessing
import os
import random
import signal

import pytest
import torch
from torch import nn

from fastlnl import checkpoint
from fastlnl.data import load_dataset
from fastlnl.errors import StateError
from fastlnl.learner import Learner
from fastlnl.methods import ALR, CE, IDO
from fastlnl.metrics import correction, memorisation
from fastlnl.networks import build_network
from fastlnl.trainer import Trainer

EPOCHS = 5
pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def trainer(out_dir=None, method=None, **settings):
    settings = {"noise": "symmetric:0.4", "epochs": EPOCHS, "optimizer": "adam", "lr": 1e-3, "seed": 3} | settings
    method = method or ALR(momentum=0.7)
    return Trainer(method, load_dataset("digits"), settings.pop("network", "mlp"), out_dir=out_dir, **settings)


class WithDropout(nn.Sequential):
    """Draws from torch's global generator in every step, so that a forgotten generator state shows."""

    def __init__(self):
        super().__init__(nn.Flatten(), nn.Linear(64, 64), nn.ReLU(), nn.Dropout(0.5), nn.Linear(64, 10))


def run_until_killed(out_dir, kill_at):
    """Train, or continue, and die by SIGKILL before step `kill_at` of this process (never if None)."""
    torch.set_num_threads(1)
    steps, step = 0, Learner.step

    def deadly_step(self, loss, clip_norm=None):
        nonlocal steps
        if steps == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        steps += 1
        step(self, loss, clip_norm)

    Learner.step = deadly_step
    torch.manual_seed(17)  # for the network below; fit() seeds for itself
    trainer(out_dir, network=WithDropout(), checkpoint_seconds=0).fit(resume=True)


def test_killed_and_resumed_is_bitwise_the_uninterrupted_run(tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastlnl.trainer", "fastlnl.methods", "sklearn.datasets", "torch._dynamo"])

    def run(out_dir, kill_at):
        process = context.Process(target=run_until_killed, args=(str(out_dir), kill_at))
        process.start()
        process.join()
        return process.exitcode

    whole, broken = tmp_path / "whole", tmp_path / "broken"
    assert run(whole, None) == 0
    rng = random.Random(5)
    steps = len(load_dataset("digits").train_label) // 128 + 1
    kills = [rng.randrange(0, steps), *(rng.randrange(1, 2 * steps) for _ in range(4))]
    assert [run(broken, kill_at) for kill_at in kills].count(-signal.SIGKILL) >= 3
    assert run(broken, None) == 0

    expected, got = (checkpoint.load(folder / "checkpoint.pt") for folder in (whole, broken))
    for part, other in [
        (expected["networks"][0]["module"], got["networks"][0]["module"]),
        (expected["method"], got["method"]),
    ]:
        assert part.keys() == other.keys()
        for name, value in part.items():
            assert torch.equal(value, other[name]) if isinstance(value, torch.Tensor) else value == other[name]
    assert torch.equal(expected["rng"]["torch"], got["rng"]["torch"])

    def log(folder):
        records = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
        return [{k: v for k, v in record.items() if k != "seconds"} for record in records]

    assert log(broken) == log(whole)
    assert [record["epoch"] for record in log(broken)] == list(range(1, EPOCHS + 1))


def test_fit_writes_log_settings_and_final_metrics(tmp_path):
    result = trainer(tmp_path).fit()
    records = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == list(range(1, EPOCHS + 1))
    accuracy = [record["test_accuracy"] for record in records]
    assert (result.last, result.best) == (accuracy[-1], max(accuracy))
    assert result.last10 == pytest.approx(sum(accuracy) / EPOCHS)
    assert result.seconds == pytest.approx(sum(record["seconds"] for record in records))
    settings = json.loads((tmp_path / "run.json").read_text())
    counts = torch.tensor(settings["noise_counts"])
    wrong = (counts.sum() - counts.trace()).item() / counts.sum().item()
    assert records[0]["noise"] == settings["realised_noise"] == pytest.approx(wrong)
    with open(tmp_path / "metrics.csv") as file:
        (row,) = csv.DictReader(file)
    assert float(row["last"]) == result.last
    assert float(row["correction_accuracy"]) == result.metrics["correction_accuracy"]
    assert (row["method"], row["option_momentum"], row["noise_mode"]) == ("alr", "0.7", settings["noise_mode"])


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = trainer(tmp_path).fit()
    log = (tmp_path / "log.jsonl").read_bytes()
    assert trainer(tmp_path).fit(resume=True) == first
    assert (tmp_path / "log.jsonl").read_bytes() == log


@pytest.mark.parametrize(("seconds", "count"), [(0, EPOCHS), (3600, 1)])
def test_checkpoints_are_written_when_the_last_one_is_old_and_at_the_end(tmp_path, monkeypatch, seconds, count):
    written, save = [], checkpoint.save
    monkeypatch.setattr(
        checkpoint, "save", lambda state, path: (written.append(len(state["history"])), save(state, path))
    )
    trainer(tmp_path, checkpoint_seconds=seconds).fit()
    assert written == list(range(1, EPOCHS + 1))[-count:]
    assert len((tmp_path / "log.jsonl").read_text().splitlines()) == EPOCHS


def test_lines_after_the_checkpoint_are_written_again(tmp_path, monkeypatch):
    whole = trainer(epochs=4).fit().history
    with monkeypatch.context() as patch:
        interrupt_in_epoch(4, patch)
        with pytest.raises(KeyboardInterrupt):
            trainer(tmp_path, epochs=4, checkpoint_seconds=0).fit()
    assert len(checkpoint.load(tmp_path / "checkpoint.pt")["history"]) == 3
    with open(tmp_path / "log.jsonl", "a") as file:  # of an epoch that no checkpoint has
        file.write('{"epoch": 4, "train_loss": 0}\n')
    trainer(tmp_path, epochs=4, checkpoint_seconds=3600).fit(resume=True)
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["train_loss"] for line in log] == [record["train_loss"] for record in whole]


def interrupt_in_epoch(t, patch):
    epoch = ALR.epoch

    def interrupted(self, number):
        if number == t:
            raise KeyboardInterrupt
        epoch(self, number)

    patch.setattr(ALR, "epoch", interrupted)


def test_existing_run_is_not_overwritten(tmp_path):
    trainer(tmp_path, epochs=1).fit()
    with pytest.raises(FileExistsError, match="holds a run already"):
        trainer(tmp_path, epochs=1).fit()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 4}, "label_fingerprint was"),
        ({"noise": "symmetric:0.2"}, "nominal_noise was 0.4 and is now 0.2"),
        ({"epochs": 9}, "epochs was 1 and is now 9"),
        ({"lr": 0.5}, "lr was 0.001 and is now 0.5"),
        ({"method": ALR(momentum=0.9)}, "option_momentum was 0.7 and is now 0.9"),
        ({"method": CE()}, "method was 'alr' and is now 'ce'"),
    ],
)
def test_resume_with_other_data_or_settings_is_refused(tmp_path, change, message):
    trainer(tmp_path, epochs=1).fit()
    with pytest.raises(StateError, match="belongs to another run") as error:
        trainer(tmp_path, **{"epochs": 1, **change}).fit(resume=True)
    assert message in str(error.value)


def test_same_seed_same_run_and_other_seed_another():
    first, again, other = (trainer(epochs=2, seed=seed).fit() for seed in (0, 0, 1))
    for record in (*first.history, *again.history):
        del record["seconds"]
    assert first.history == again.history
    assert first.history[-1]["train_loss"] != other.history[-1]["train_loss"]


def test_clean_labels_leave_undefined_shares_null(tmp_path):
    trainer(tmp_path, noise="none", epochs=1).fit()
    record = json.loads((tmp_path / "log.jsonl").read_text())
    assert record["repair"] is None
    assert record["memorised"] is None
    assert record["noise"] == 0


@pytest.mark.parametrize("amp", ["bfloat16", "float16"])
def test_low_precision_learns(amp):
    result = trainer(amp=amp, noise="none", method=CE(), epochs=4).fit()
    assert result.last > 0.8


def test_images_network_with_augmentation_and_channels_last_learns():
    data = load_dataset("digits")
    wide = torch.nn.functional.interpolate(data.train_images[:256].float(), 16).to(torch.uint8).expand(-1, 3, -1, -1)
    data = dataclasses.replace(
        data,
        train_images=wide,
        train_label=data.train_label[:256],
        test_images=wide,
        test_label=data.train_label[:256],
        mean=data.mean * 3,
        std=data.std * 3,
    )
    settings = {"epochs": 6, "batch_size": 32, "optimizer": "adam", "lr": 2e-3, "augment": "crop_flip"}
    result = Trainer(CE(), data, "cnn", **settings).fit()
    assert result.last > 0.5


@pytest.mark.parametrize(("asked", "got"), [(None, True), (True, True), (False, False)])
def test_convolutions_are_channels_last_unless_told_otherwise(asked, got):
    data = load_dataset("digits").first(64)
    network = build_network("cnn", data.image_shape, data.num_classes)
    Trainer(CE(), data, network, epochs=1, channels_last=asked).fit()
    wide = [layer.weight for layer in network if isinstance(layer, torch.nn.Conv2d) and layer.in_channels > 1]
    assert {weight.is_contiguous(memory_format=torch.channels_last) for weight in wide} == {got}


def test_progress_bar_reaches_the_end(capsys):
    trainer(epochs=2, progress=True).fit()
    shown = capsys.readouterr().err
    assert "100%" in shown
    assert "epoch 2, test accuracy" in shown


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("amp", [None, "float16", "bfloat16"])
def test_no_training_step_waits_for_the_device(amp):
    class Watched(ALR):
        def epoch(self, t):
            for batch in self.run.batches():
                torch.cuda.set_sync_debug_mode("error" if t > 1 else "default")  # the first epoch compiles kernels
                self.run.network.step(self.criterion(self.run.network(batch.views[0]), batch.label, batch.index))
            torch.cuda.set_sync_debug_mode("default")
            self.criterion.end_epoch()

    assert trainer(method=Watched(warmup_epochs=0), device="cuda", amp=amp, epochs=3).fit().last > 0.5


def test_schedules():
    rate = trainer(schedule="cosine", epochs=4, lr=1.0).learning_rate
    assert [rate(t) for t in (1, 3)] == pytest.approx([1.0, 0.5])
    assert 0 < rate(4) < 0.2
    rate = trainer(schedule="step", epochs=200, lr=1.0).learning_rate  # SELC: a tenth at 40 and at 80 of 200
    assert [rate(t) for t in (40, 41, 80, 81, 200)] == pytest.approx([1.0, 0.1, 0.1, 0.01, 0.01])
    assert trainer(schedule="constant", lr=0.3).learning_rate(5) == 0.3


def test_bad_settings_are_named():
    with pytest.raises(ValueError, match="schedule is 'linear', expected one of"):
        trainer(schedule="linear")
    with pytest.raises(ValueError, match="epochs is 0, expected more than 0"):
        trainer(epochs=0)


def test_adamw_decays_weights_beside_the_gradient():
    end = {}
    for name, decay in (("adam", 0.0), ("adamw", 0.0), ("adamw", 10.0)):
        held = trainer(method=CE(), optimizer=name, weight_decay=decay, epochs=1)
        held.fit()
        end[name, decay] = held.method.run.network.weights()["1.weight"]
    assert torch.equal(end["adam", 0.0], end["adamw", 0.0])
    assert end["adamw", 10.0].norm() < end["adamw", 0.0].norm()


def test_learning_rate_of_a_stage_is_checked():
    with pytest.raises(ValueError, match="refine_lr is 0; expected more than 0, or None"):
        trainer(method=IDO(refine_lr=0)).fit()


def test_diverged_training_stops_with_a_sentence():
    with pytest.raises(FloatingPointError, match=r"training loss is (nan|inf) in epoch \d; lower lr"):
        trainer(method=CE(), optimizer="sgd", lr=1e30).fit()


def test_correction_and_memorisation_by_hand():
    true = torch.tensor([0, 0, 1, 1, 2, 2])
    given = torch.tensor([0, 1, 1, 2, 0, 2])  # samples 1, 3, 4 are wrong
    proposed = torch.tensor([0, 0, 2, 2, 1, 2])  # repairs 1, damages 2
    shares = {name: value.item() for name, value in correction(proposed, given, true).items()}
    assert shares == pytest.approx({"changed": 3 / 6, "correction_accuracy": 3 / 6, "repair": 1 / 3, "damage": 1 / 3})
    shares = {name: value.item() for name, value in memorisation(proposed, given, true).items()}
    assert shares == pytest.approx(
        {"memorised": 1 / 3, "wrong_as_true": 1 / 3, "wrong_as_other": 1 / 3, "right_as_true": 2 / 3}
    )
