"""Small networks by name."""

from __future__ import annotations

import math
from collections.abc import Callable
from importlib import import_module

from torch import nn

from fastlnl.errors import ShapeError
from fastlnl.networks.cnn import cnn
from fastlnl.networks.features import Captured, capture, feature_map
from fastlnl.networks.mlp import mlp
from fastlnl.networks.preact import preact_cnn, preact_resnet
from fastlnl.networks.resnet import resnet
from fastlnl.networks.text import BiLSTM, TextCNN

__all__ = [
    "NETWORKS", "TEXT_NETWORKS", "BiLSTM", "Captured", "TextCNN", "build_network", "capture", "cnn", "feature_map",
    "mlp", "preact_cnn", "preact_resnet", "resnet",
]  # fmt: skip

# Each takes the shape of one sample and the number of classes.
NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "mlp": lambda shape, num_classes: mlp(math.prod(shape), num_classes, width=256),
    "mlp512": lambda shape, num_classes: mlp(math.prod(shape), num_classes, width=512),
    "cnn": lambda shape, num_classes: cnn(shape[0], num_classes),
    "preact_cnn": lambda shape, num_classes: preact_cnn(shape[0], num_classes),
    "resnet18": lambda shape, num_classes: resnet(shape[0], num_classes, blocks=(2, 2, 2, 2)),
    "resnet34": lambda shape, num_classes: resnet(shape[0], num_classes, blocks=(3, 4, 6, 3)),
    "preact_resnet18": lambda shape, num_classes: preact_resnet(shape[0], num_classes, blocks=(2, 2, 2, 2)),
}
# Each takes the size of the vocabulary and the number of classes.
TEXT_NETWORKS: dict[str, Callable[[int, int], nn.Module]] = {"textcnn": TextCNN, "bilstm": BiLSTM}
TIMM = "timm:"


def build_network(
    name: str, image_shape: tuple[int, ...], num_classes: int, num_tokens: int = 0, pretrained: bool = False
) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        name: for any input "mlp" (2 x 256 units) and "mlp512" (2 x 512); for images "cnn" (1.17 million parameters,
            for CPUs), "preact_cnn" (0.31 million), "resnet18", "resnet34" and "preact_resnet18" (CIFAR stem), or
            "timm:" and a model of the timm package, such as "timm:resnet50"; for texts "textcnn" and "bilstm".
        image_shape: (ch, H, W), at least 8 x 8 pixels; the MLPs take any shape; (L,) for texts.
        num_classes: C.
        num_tokens: size of the vocabulary where samples are texts, `len(dataset.vocabulary)`; 0 where they are not.
        pretrained: start from the weights that timm has for the model; its last layer is drawn for C classes.

    Returns:
        Module from (B, *image_shape) float32, for texts int64, to logits (B, C).

    Raises:
        ValueError: unknown name; pretrained=True for a network without published weights.
        ShapeError: a convolutional network was asked for samples that are no images of 8 x 8 pixels, a text network
            for samples that are no texts, or another one for texts.
        ImportError: a timm model was asked for and timm is not installed.
    """
    if name not in NETWORKS and name not in TEXT_NETWORKS and not name.startswith(TIMM):
        known = ", ".join([*NETWORKS, *TEXT_NETWORKS])
        raise ValueError(f"there is no network {name!r}; expected one of {known}, or timm:<model>")
    if name in TEXT_NETWORKS and (num_tokens < 1 or len(image_shape) != 1):
        raise ShapeError(
            f"image_shape is {image_shape} and num_tokens {num_tokens} but {name} reads texts: (L,) and the size of "
            f"the vocabulary, num_tokens=len(dataset.vocabulary); for images use 'cnn', for features 'mlp'"
        )
    if name not in TEXT_NETWORKS and num_tokens:
        raise ShapeError(
            f"num_tokens is {num_tokens}, so samples are texts, but {name} reads numbers; "
            f"use {' or '.join(map(repr, TEXT_NETWORKS))}"
        )
    if name not in TEXT_NETWORKS and not name.startswith("mlp") and (len(image_shape) != 3 or min(image_shape[1:]) < 8):
        raise ShapeError(f"image_shape is {image_shape} but {name} needs (ch, H, W) from 8 x 8 pixels on; use 'mlp'")
    if name.startswith(TIMM):
        return timm_model(name.removeprefix(TIMM), image_shape[0], num_classes, pretrained)
    if pretrained:
        raise ValueError(f"pretrained is True but {name} has no published weights; use a timm model: 'timm:resnet18'")
    if name in TEXT_NETWORKS:
        return TEXT_NETWORKS[name](num_tokens, num_classes)
    return NETWORKS[name](image_shape, num_classes)


def timm_model(name: str, channels: int, num_classes: int, pretrained: bool) -> nn.Module:
    """A model of the timm package; what is unknown there raises there."""
    try:
        timm = import_module("timm")
    except ImportError as error:
        raise ImportError(f"network 'timm:{name}' needs the timm package ({error}); pip install timm") from error
    model: nn.Module = timm.create_model(name, pretrained=pretrained, in_chans=channels, num_classes=num_classes)
    return model
