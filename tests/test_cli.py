"""The `fastlnl` command: a run, a baseline, a continued run, and one sentence for bad input."""

import json
import subprocess
import sys
from importlib.metadata import version

import pytest

from fastlnl.backend import backends
from fastlnl.cli import main

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")
TRAIN = ["train", "--dataset", "digits", "--noise", "symmetric:0.4", "--seed", "0", "--epochs", "2", "--quiet"]


@pytest.fixture(autouse=True)
def _work_in_an_empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_train_alr_and_baseline_write_their_folders(tmp_path, capsys):
    for method in ("alr", "ce"):
        assert main([*TRAIN, "--method", method]) == 0
        folder = tmp_path / "runs" / f"{method}-digits-symmetric-0.4-seed0"
        assert {p.name for p in folder.iterdir()} == {"run.json", "log.jsonl", "metrics.csv", "checkpoint.pt"}
        settings = json.loads((folder / "run.json").read_text())
        assert settings["method"] == method
        assert settings.get("option_momentum") == {"alr": 0.7, "ce": None}[method]
    out = capsys.readouterr().out
    assert "alr on " in out
    assert "test accuracy" in out


def test_options_reach_the_method():
    assert main([*TRAIN, "--option", "momentum=0.8", "--option", "init=zeros", "--out", "a"]) == 0
    with open("a/run.json") as file:
        settings = json.load(file)
    assert (settings["option_momentum"], settings["option_init"]) == (0.8, "zeros")
    assert main([*TRAIN, "--option", "preset=selc", "--out", "b"]) == 0
    with open("b/run.json") as file:
        settings = json.load(file)
    assert (settings["option_momentum"], settings["option_entropy_weight"]) == (0.9, 0.0)


def test_a_run_on_the_first_samples_says_so(tmp_path, capsys):
    assert main([*TRAIN, "--samples", "200"]) == 0
    folder = tmp_path / "runs" / "alr-digits-first200-symmetric-0.4-seed0"
    settings = json.loads((folder / "run.json").read_text())
    assert (settings["num_samples"], settings["dataset"]) == (200, "digits (scikit-learn), first 200 samples")
    assert main([*TRAIN, "--samples", "5000", "--out", "b"]) == 2
    assert "has 1437 training samples" in capsys.readouterr().err


def test_training_settings_reach_the_trainer(tmp_path):
    given = ["--weight-decay", "0.01", "--augment", "none", "--lr", "0.002"]
    assert main([*TRAIN, *given, "--out", str(tmp_path)]) == 0
    settings = json.loads((tmp_path / "run.json").read_text())
    assert [settings[name] for name in ("weight_decay", "augment", "lr")] == [0.01, None, 0.002]


def test_profile_says_where_the_time_of_the_last_epoch_goes(tmp_path):
    for method in ("alr", "ido", "crema", "dividemix"):
        assert main([*TRAIN, "--method", method, "--profile", "--out", method]) == 0
        table = (tmp_path / method / "profile.md").read_text()
        rows = [line.split(" | ") for line in table.splitlines()[4:]]
        shown = {row[0].removeprefix("| "): float(row[1]) for row in rows}
        assert {"network, forward", "network, backward", "optimiser", "views", "evaluation"} < shown.keys()
        assert ("scoring and split" in shown) == (method != "alr")
        assert shown.pop("all") == pytest.approx(sum(shown.values()), abs=1)
        assert "calls" in table


def test_second_run_needs_resume_or_overwrite(capsys):
    assert main([*TRAIN, "--out", "a"]) == 0
    assert main([*TRAIN, "--out", "a"]) == 2
    assert "holds a run already" in capsys.readouterr().err
    assert main([*TRAIN, "--out", "a", "--resume"]) == 0
    assert main([*TRAIN, "--out", "a", "--overwrite"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--noise", "symmetric:1.4"], "1.4"),
        (["--noise", "gaussian:0.4"], "gaussian"),
        (["--option", "lambda=0.3"], "alr has no option 'lambda'"),
        (["--option", "momentum"], "expected NAME=VALUE"),
        (["--option", "momentum=7"], "momentum is 7"),
        (["--network", "vgg"], "vgg"),
        (["--optimizer", "lion"], "optimizer is 'lion'"),
        (["--lr", "-1"], "lr is -1.0"),
        (["--device", "abacus"], "abacus"),
        (["--dataset", "mnist", "--data", "/nowhere"], "/nowhere"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_code_2(arguments, message, capsys):
    assert main([*TRAIN, *arguments]) == 2
    error = capsys.readouterr().err
    assert error.startswith("fastlnl: error: ")
    assert message in error
    assert error.count("\n") == 1


def test_doctor_names_every_backend(capsys):
    assert main(["doctor"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in backends())


def test_module_and_version():
    command = [sys.executable, "-m", "fastlnl"]
    done = subprocess.run([*command, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"fastlnl {version('fastlnl')}\n"
    done = subprocess.run(
        [sys.executable, "-m", "fastlnl", "train", "--method", "magic"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
