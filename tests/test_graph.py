"""Replayed training steps: what the graph holds, what it reads, and that nothing of the result changes."""

import pytest
import torch
from recorded import Recorded

from fastlnl import graph
from fastlnl.backend import use_backend
from fastlnl.data import load_dataset
from fastlnl.methods import ALR, CE, IDO
from fastlnl.networks import build_network
from fastlnl.trainer import Trainer

pytest.importorskip("sklearn", reason="the digits come with scikit-learn")


def run(method, cuda_graph, device="cpu", **settings):
    """What was logged but the seconds, and the bits of the trained weights."""
    settings = {"noise": "symmetric:0.4", "epochs": 4, "lr": 0.05, "batch_size": 256} | settings
    data = load_dataset("digits")
    torch.manual_seed(1)
    network = build_network("mlp", data.image_shape, data.num_classes)
    trainer = Trainer(method, data, network, cuda_graph=cuda_graph, device=device, **settings)
    history = [{name: value for name, value in r.items() if name != "seconds"} for r in trainer.fit().history]
    return history, {name: value.cpu().numpy().tobytes() for name, value in network.state_dict().items()}


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("build", [CE, lambda: ALR(warmup_epochs=2)], ids=["ce", "alr"])
def test_replayed_steps_are_the_eager_ones(build, optimizer, monkeypatch):
    """Learning rates that fall, a smaller last batch, and ALR's end of the warm-up included."""
    monkeypatch.setitem(graph.RECORDINGS, "cpu", Recorded)
    monkeypatch.setattr(Recorded, "made", 0)
    with use_backend("reference"):  # operations that the stand-in sees
        assert run(build(), True, optimizer=optimizer) == run(build(), False, optimizer=optimizer)
    assert Recorded.made == (1 if build is CE else 2)


def test_the_stand_in_freezes_python_numbers_and_runs_nothing_when_it_captures():
    weight, rate = torch.zeros(1), 1.0
    recorded = Recorded(lambda: weight.add_(rate))
    assert weight.item() == 0
    rate = 5.0
    recorded.replay()
    assert weight.item() == 1


def test_what_cannot_be_captured_says_so(monkeypatch):
    with pytest.raises(ValueError, match="device is 'cpu'; graphs need a CUDA device"):
        run(CE(), True)
    monkeypatch.setitem(graph.RECORDINGS, "cpu", Recorded)
    with pytest.raises(ValueError, match="steps of ido are not all alike; it works for ce and alr"):
        run(IDO(), True)
    with pytest.raises(ValueError, match="amp is 'float16', whose loss scale moves; use 'bfloat16'"):
        run(CE(), True, amp="float16")
    with pytest.raises(ValueError, match="cuda_graph and prefetch are True; a capture allows no second thread"):
        run(CE(), True, prefetch=True)


@pytest.mark.gpu
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("build", [CE, lambda: ALR(warmup_epochs=2)], ids=["ce", "alr"])
def test_a_hundred_replayed_steps_on_a_gpu_are_the_eager_ones(build, optimizer):
    settings = {"device": "cuda", "optimizer": optimizer, "lr": 1e-3, "batch_size": 64, "epochs": 6}
    assert run(build(), True, **settings) == run(build(), False, **settings)
