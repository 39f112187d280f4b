"""Nothing in a training step waits for the device: an epoch of twice as many steps reads as often."""

from contextlib import contextmanager

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from toy import fit, noisy_label, toy_data, toy_run

from fastlnl.backend import use_backend
from fastlnl.data import Dataset
from fastlnl.methods import METHODS

aten = torch.ops.aten
# What makes the host wait on a GPU: values that become Python numbers, and shapes that depend on values.
WAITING = {
    aten._local_scalar_dense, aten.equal, aten.is_nonzero, aten.nonzero, aten.masked_select, aten._unique2,
    aten.unique_consecutive, aten.unique_dim, aten.repeat_interleave, aten.bincount,
}  # fmt: skip
LEAVING = ("tolist", "numpy", "__array__", "cpu")  # of torch.Tensor, which a dispatch mode does not see on a CPU


class CountReads(TorchDispatchMode):
    """`count` says how often something that waits for the device was called."""

    count = 0

    def __torch_dispatch__(self, operator, types, arguments=(), keywords=None):
        by_mask = operator.overloadpacket in (aten.index, aten.index_put, aten.index_put_) and any(
            index is not None and index.dtype in (torch.bool, torch.uint8) for index in arguments[1]
        )
        self.count += by_mask or operator.overloadpacket in WAITING
        return operator(*arguments, **(keywords or {}))


@contextmanager
def counted():
    mode = CountReads()
    kept = {name: getattr(torch.Tensor, name) for name in LEAVING}

    def watched(method):
        def call(tensor, *arguments, **keywords):
            mode.count += 1
            return method(tensor, *arguments, **keywords)

        return call

    for name, method in kept.items():
        setattr(torch.Tensor, name, watched(method))
    try:
        with mode:
            yield mode
    finally:
        for name, method in kept.items():
            setattr(torch.Tensor, name, method)


def test_the_counter_counts():
    x = torch.arange(4.0)
    with counted() as reads:
        x.sum().item()
        bool(x.any())
        x[x > 1]
        x.tolist()
        x[torch.tensor([True, False, True, False])] = 0.0
        x[torch.tensor([0, 1])].sum().neg()  # nothing to wait for
    assert reads.count == 5


def images(data):
    """Pictures in place of features, for methods that look at them."""
    pictures = data.train_images.repeat(1, 12 * 12 // data.train_images.shape[1]).view(-1, 1, 12, 12)
    pictures = (40 * (pictures + 3)).clamp(0, 255).to(torch.uint8)
    return Dataset("toy", pictures, data.train_label, pictures, data.train_label, 4, tuple("abcd"), (0.5,), (0.3,))


def small_network():
    layers = nn.Conv2d(1, 8, 3, stride=2, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    return nn.Sequential(*layers)


def reads_of_an_epoch(name, num_samples):
    data = toy_data(num_samples)
    build = None
    if name == "sanm":
        data = images(data)
        build = small_network
    method = METHODS[name](warmup_epochs=1) if name != "ce" else METHODS[name]()
    label = noisy_label(toy_data(num_samples), rate=0.3)
    run = toy_run(data, label, num_networks=method.num_networks, epochs=4, build=build)
    method.setup(run)
    fit(method, run, epochs=2)  # kernels are compiled, tables made
    run.start_epoch(3, 0.05)
    with use_backend("reference"), counted() as reads:  # torch alone: numba's kernels may read what is on the CPU
        method.epoch(3)
    return reads.count


@pytest.mark.parametrize("name", METHODS)
def test_reads_do_not_grow_with_the_steps(name, monkeypatch):
    monkeypatch.setattr("fastlnl.networks.decoder.HIDDEN", (8, 6))
    assert reads_of_an_epoch(name, 96) == reads_of_an_epoch(name, 48)
