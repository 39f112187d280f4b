"""Small networks by name."""

from __future__ import annotations

import math
from collections.abc import Callable

from torch import nn

from fastlnl.errors import ShapeError
from fastlnl.networks.cnn import cnn
from fastlnl.networks.mlp import mlp
from fastlnl.networks.resnet import resnet

__all__ = ["NETWORKS", "build_network", "cnn", "mlp", "resnet"]

# Each takes the shape of one sample and the number of classes.
NETWORKS: dict[str, Callable[[tuple[int, ...], int], nn.Module]] = {
    "mlp": lambda shape, num_classes: mlp(math.prod(shape), num_classes, width=256),
    "mlp512": lambda shape, num_classes: mlp(math.prod(shape), num_classes, width=512),
    "cnn": lambda shape, num_classes: cnn(shape[0], num_classes),
    "resnet18": lambda shape, num_classes: resnet(shape[0], num_classes, blocks=(2, 2, 2, 2)),
    "resnet34": lambda shape, num_classes: resnet(shape[0], num_classes, blocks=(3, 4, 6, 3)),
}


def build_network(name: str, image_shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """A network with fresh weights, drawn from torch's global generator.

    Args:
        name: "mlp" (2 x 256 units), "mlp512" (2 x 512), "cnn" (1.17 million parameters, for CPUs), "resnet18" or
            "resnet34" (CIFAR stem).
        image_shape: (ch, H, W), at least 8 x 8 pixels; the MLPs take any shape.
        num_classes: C.

    Returns:
        Module from (B, *image_shape) float32 to logits (B, C).

    Raises:
        ValueError: unknown name.
        ShapeError: a convolutional network was asked for samples that are no images of 8 x 8 pixels.
    """
    if name not in NETWORKS:
        raise ValueError(f"there is no network {name!r}; expected one of {', '.join(NETWORKS)}")
    if not name.startswith("mlp") and (len(image_shape) != 3 or min(image_shape[1:]) < 8):
        raise ShapeError(f"image_shape is {image_shape} but {name} needs (ch, H, W) from 8 x 8 pixels on; use 'mlp'")
    return NETWORKS[name](image_shape, num_classes)
