"""Networks by name: sizes, shapes, and that the small one can memorise wrong labels."""

import sys
import types

import pytest
import torch
import torch.nn.functional as F

from fastlnl.errors import ShapeError
from fastlnl.networks import NETWORKS, build_network
from fastlnl.networks.preact import PreActBlock


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "parameters"),
    [
        ("mlp", (1, 8, 8), 10, 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
        ("mlp512", (1, 28, 28), 10, 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10),
        ("cnn", (3, 32, 32), 10, 1_162_080 + 1_856 + 2_570),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet34", (3, 32, 32), 10, 21_282_122),
        ("resnet18", (3, 32, 32), 100, 11_220_132),
        # DivideMix's: ResNet-18 without the batch norms of the shortcuts, those of the blocks by their input.
        ("preact_resnet18", (3, 32, 32), 10, 11_173_962 - 2 * (128 + 256 + 512) - 2 * (64 + 128 + 256)),
        ("preact_cnn", (3, 32, 32), 10, 309_098),
    ],
)
def test_parameters(name, shape, num_classes, parameters):
    assert sum(p.numel() for p in build_network(name, shape, num_classes).parameters()) == parameters


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 9, 12)])
def test_logits(name, shape):
    torch.manual_seed(0)
    logits = build_network(name, shape, 7)(torch.randn(2, *shape))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    # He initialisation keeps the scale: neither dead nor exploding after 34 layers.
    assert 0.01 < logits.std() < 10


def test_features():
    assert build_network("mlp", (20,), 3)(torch.randn(4, 20)).shape == (4, 3)


@pytest.mark.parametrize("name", ["cnn", "resnet18", "preact_cnn"])
def test_channels_last_changes_nothing_but_the_layout(name):
    torch.manual_seed(0)
    network, images = build_network(name, (3, 16, 16), 10).double(), torch.randn(4, 3, 16, 16, dtype=torch.float64)
    plain = network(images)
    layouts = []
    network[0].register_forward_hook(
        lambda module, args, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
    )
    last = network.to(memory_format=torch.channels_last)(images.contiguous(memory_format=torch.channels_last))
    assert layouts == [True]
    torch.testing.assert_close(last, plain, rtol=1e-12, atol=1e-12)


def test_the_seed_gives_the_weights():
    def weights(seed):
        torch.manual_seed(seed)
        return torch.cat([p.detach().flatten() for p in build_network("cnn", (3, 8, 8), 10).parameters()])

    assert torch.equal(weights(0), weights(0))
    assert not torch.equal(weights(0), weights(1))


def test_preact_block_is_that_of_dividemix():
    block, x = PreActBlock(4, 4, stride=1).double(), torch.randn(2, 4, 5, 5, dtype=torch.float64)
    active = F.batch_norm(x, None, None, training=True).relu()
    hidden = F.batch_norm(F.conv2d(active, block.first.weight, padding=1), None, None, training=True).relu()
    expected = F.conv2d(hidden, block.second.weight, padding=1) + active  # the activated input, not x
    torch.testing.assert_close(block(x), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["cnn", "preact_cnn"])
def test_small_networks_memorise_random_labels(name):
    torch.manual_seed(0)
    network = build_network(name, (3, 8, 8), 10)
    images, label = torch.randn(256, 3, 8, 8), torch.randint(10, (256,))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05, momentum=0.9)
    for _ in range(40):
        optimizer.zero_grad()
        F.cross_entropy(network(images), label).backward()
        optimizer.step()
    network.eval()
    with torch.no_grad():
        assert (network(images).argmax(1) == label).double().mean() == 1


def test_errors():
    with pytest.raises(ValueError, match=r"no network 'vgg'; expected one of mlp, mlp512, cnn, .*, or timm:<model"):
        build_network("vgg", (3, 32, 32), 10)
    with pytest.raises(ValueError, match="cnn has no published weights; use a timm model"):
        build_network("cnn", (3, 32, 32), 10, pretrained=True)
    for shape in ((64,), (1, 4, 4)):
        with pytest.raises(ShapeError, match=r"cnn needs .* use 'mlp'"):
            build_network("cnn", shape, 10)


def test_timm_models_come_from_timm(monkeypatch):
    asked = []
    model = torch.nn.Linear(1, 1)
    fake = types.ModuleType("timm")
    fake.create_model = lambda name, **options: asked.append((name, options)) or model
    monkeypatch.setitem(sys.modules, "timm", fake)
    assert build_network("timm:resnet50", (3, 224, 224), 14, pretrained=True) is model
    assert asked == [("resnet50", {"pretrained": True, "in_chans": 3, "num_classes": 14})]
    with pytest.raises(ShapeError, match="timm:resnet50 needs"):
        build_network("timm:resnet50", (64,), 14)


def test_timm_that_is_not_installed(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"network 'timm:resnet50' needs the timm package .*; pip install timm"):
        build_network("timm:resnet50", (3, 32, 32), 10)
