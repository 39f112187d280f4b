"""Checkpoints: whole after any kill, plain data only, and every random generator continues where it was."""

import multiprocessing
import random
import resource
import time
from multiprocessing.sharedctypes import Synchronized

import numpy as np
import pytest
import torch

from fastlnl import checkpoint
from fastlnl.errors import StateError


def test_save_and_load_give_back_what_was_saved(tmp_path):
    state = {"weight": torch.arange(5.0), "step": torch.tensor(3), "epoch": 7, "names": ["a"], "pair": (0.2, None)}
    checkpoint.save(state, tmp_path / "c.pt")
    loaded = checkpoint.load(tmp_path / "c.pt")
    assert torch.equal(loaded.pop("weight"), state.pop("weight"))
    assert loaded == state
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]  # no temporary file is left


def test_failed_write_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    path = tmp_path / "c.pt"
    checkpoint.save({"epoch": 1}, path)

    class Unsavable:
        def __reduce__(self):
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        checkpoint.save({"epoch": 2, "weight": torch.ones(1000), "bad": Unsavable()}, path)
    assert checkpoint.load(path) == {"epoch": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_code_carrying_pickle_is_refused(tmp_path):
    torch.save({"call": print}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="cannot be read as a checkpoint"):
        checkpoint.load(tmp_path / "c.pt")


def test_missing_and_damaged_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="start the run without resume"):
        checkpoint.load(tmp_path / "c.pt")
    checkpoint.save({"weight": torch.ones(1000)}, tmp_path / "c.pt")
    whole = (tmp_path / "c.pt").read_bytes()
    for cut in (0, 10, len(whole) // 2):
        (tmp_path / "c.pt").write_bytes(whole[:cut])
        with pytest.raises(ValueError, match=r"c\.pt cannot be read as a checkpoint"):
            checkpoint.load(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(ValueError, match="holds a list"):
        checkpoint.load(tmp_path / "c.pt")


def test_rng_state_continues_every_generator(tmp_path):
    def draw():
        return random.random(), np.random.rand(), np.random.randn(), torch.rand(3).tolist()

    np.random.randn()  # leaves a cached second normal behind, which is part of the state
    checkpoint.save(checkpoint.rng_state(), tmp_path / "rng.pt")
    expected = draw()
    assert draw() != expected
    checkpoint.set_rng_state(checkpoint.load(tmp_path / "rng.pt"))
    assert draw() == expected


def test_check_same_run_names_what_differs():
    saved = {"noise": "symmetric:0.4", "seed": 0, "gone": 1}
    with pytest.raises(StateError, match=r"noise was 'symmetric:0.4' and is now 'none'; gone was 1 and is now None"):
        checkpoint.check_same_run("c.pt", saved, {"noise": "none", "seed": 0})
    checkpoint.check_same_run("c.pt", saved, dict(saved))


def write_for_ever(path: str, version: "Synchronized[int]") -> None:
    """Writes version after version; `version` is the newest one whose save has returned."""
    torch.set_num_threads(1)
    while True:
        checkpoint.save({"version": version.value + 1, "payload": torch.full((300_000,), version.value + 1.0)}, path)
        version.value += 1


def test_kill_while_writing_leaves_the_old_or_the_new_file_whole(tmp_path):
    """Twelve real SIGKILLs at random moments of a process that does nothing but write checkpoints."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["fastlnl.trainer", "fastlnl.methods", "sklearn.datasets", "torch._dynamo"])
    version = context.Value("q", 0, lock=False)
    path, moment = tmp_path / "c.pt", random.Random(0)
    left_behind = 0
    for _ in range(12):
        before = version.value
        writer = context.Process(target=write_for_ever, args=(str(path), version))
        writer.start()
        while version.value < before + 2:
            time.sleep(0.001)
            assert writer.is_alive()
        time.sleep(moment.uniform(0, 0.02))
        writer.kill()
        writer.join()
        assert writer.exitcode == -9
        state = checkpoint.load(path)
        assert state["version"] in (version.value, version.value + 1)
        assert torch.equal(state["payload"], torch.full((300_000,), float(state["version"])))
        left_behind += (tmp_path / ".c.pt.tmp").exists()
    assert left_behind > 0  # else no kill fell into a write and the test showed nothing


def test_a_full_disk_is_an_os_error_and_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "checkpoint.pt"
    checkpoint.save({"value": 1}, path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))  # no file may grow beyond
    try:
        with pytest.raises(OSError, match=r"checkpoint not written: '.*checkpoint\.pt'"):
            checkpoint.save({"value": torch.zeros(1_000_000)}, path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert checkpoint.load(path) == {"value": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["checkpoint.pt"]
