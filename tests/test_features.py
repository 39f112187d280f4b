"""The feature map: the right module, the graph kept, nothing left behind."""

import pytest
import torch
from torch import nn

from fastlnl.networks import build_network, capture, feature_map

MAPS = {"cnn": 256, "preact_cnn": 128, "resnet18": 512, "preact_resnet18": 512, "resnet34": 512}


@pytest.mark.parametrize(("name", "channels"), MAPS.items())
def test_shape_and_that_the_logits_follow_from_it(name, channels):
    network, images = build_network(name, (3, 32, 32), 10).eval(), torch.randn(2, 3, 32, 32)
    with capture(network) as features:
        logits = network(images)
    assert features.value.shape == (2, channels, 4, 4)
    torch.testing.assert_close(network[-1](features.value.mean((2, 3))), logits, rtol=1e-5, atol=1e-5)
    # A pre-activation network has no ReLU at its end.
    assert (features.value.min() < 0) == name.startswith("preact")


def test_gradients_flow_through_the_value():
    network = build_network("preact_cnn", (3, 16, 16), 4)
    with capture(network) as features:
        network(torch.randn(2, 3, 16, 16))
    features.value.square().sum().backward()
    assert network[0][0].weight.grad.abs().sum() > 0
    assert network[-1].weight.grad is None  # behind the map


def test_the_last_pass_counts_and_none_after_the_block():
    network, images = build_network("cnn", (1, 8, 8), 3).eval(), torch.randn(4, 1, 8, 8)
    with torch.no_grad():
        with capture(network) as features:
            network(images[:1])
            network(images[1:])
        kept = features.value
        assert len(kept) == 3
        assert not kept.requires_grad
        network(images)
        assert features.value is kept
        with pytest.raises(ZeroDivisionError), capture(network) as broken:
            _ = 1 / 0
        network(images)  # the hook is gone after an exception too
        with pytest.raises(RuntimeError, match="call the network inside"):
            _ = broken.value


def test_autocast_and_channels_last():
    network, images = build_network("preact_cnn", (3, 16, 16), 4), torch.randn(2, 3, 16, 16)
    network.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16), capture(network) as features:
        network(images.contiguous(memory_format=torch.channels_last))
    assert features.value.dtype == torch.bfloat16
    assert features.value.is_contiguous(memory_format=torch.channels_last)


class Backbone(nn.Module):
    """As torchvision's: stages as attributes, the pooling somewhere in forward."""

    def __init__(self):
        super().__init__()
        self.layer4 = nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU())
        self.fc = nn.Linear(8, 5)

    def forward(self, x):
        return self.fc(self.layer4(x).mean((2, 3)))


def test_other_networks_by_name():
    network = Backbone()
    assert feature_map(network, "layer4") is network.layer4
    assert feature_map(nn.DataParallel(network), "layer4.0") is network.layer4[0]
    with capture(network, name="layer4") as features:
        network(torch.randn(2, 3, 9, 9))
    assert features.value.shape == (2, 8, 4, 4)


def test_errors():
    with pytest.raises(ValueError, match=r"Backbone is no nn.Sequential .* pass name=, such as one of layer4, fc"):
        feature_map(Backbone())
    with pytest.raises(ValueError, match=r"Backbone has no module 'layer5'; pass name=, such as one of layer4, fc"):
        feature_map(Backbone(), "layer5")
    with pytest.raises(ValueError, match=r"Sequential is no nn.Sequential with an AdaptiveAvgPool2d"):
        feature_map(build_network("mlp", (4,), 2))
    with pytest.raises(ValueError, match=r"comes from torch.compile, .* pass the one before compiling"):
        feature_map(torch.compile(Backbone()), "layer4")
