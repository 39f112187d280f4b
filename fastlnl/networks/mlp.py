"""Fully connected networks."""

from torch import nn


def mlp(features: int, num_classes: int, width: int) -> nn.Sequential:
    """Two hidden layers of `width` units with ReLU, on the flattened input.

    Args:
        features: numbers in one sample.
        num_classes: C.
        width: units of each hidden layer.

    Returns:
        Module from (B, ...) float to logits (B, C).
    """
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(features, width),
        nn.ReLU(),
        nn.Linear(width, width),
        nn.ReLU(),
        nn.Linear(width, num_classes),
    )
