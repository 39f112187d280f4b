"""Networks by name: sizes, shapes, and that the small one can memorise wrong labels."""

import pytest
import torch
import torch.nn.functional as F

from fastlnl.errors import ShapeError
from fastlnl.networks import NETWORKS, build_network


@pytest.mark.parametrize(
    ("name", "shape", "num_classes", "parameters"),
    [
        ("mlp", (1, 8, 8), 10, 64 * 256 + 256 + 256 * 256 + 256 + 256 * 10 + 10),
        ("mlp512", (1, 28, 28), 10, 784 * 512 + 512 + 512 * 512 + 512 + 512 * 10 + 10),
        ("cnn", (3, 32, 32), 10, 1_162_080 + 1_856 + 2_570),
        ("resnet18", (3, 32, 32), 10, 11_173_962),
        ("resnet34", (3, 32, 32), 10, 21_282_122),
        ("resnet18", (3, 32, 32), 100, 11_220_132),
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


@pytest.mark.parametrize("name", ["cnn", "resnet18"])
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


def test_cnn_memorises_random_labels():
    torch.manual_seed(0)
    network = build_network("cnn", (3, 8, 8), 10)
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
    with pytest.raises(ValueError, match="no network 'vgg'; expected one of mlp, mlp512, cnn, resnet18, resnet34"):
        build_network("vgg", (3, 32, 32), 10)
    for shape in ((64,), (1, 4, 4)):
        with pytest.raises(ShapeError, match=r"cnn needs .* use 'mlp'"):
            build_network("cnn", shape, 10)
