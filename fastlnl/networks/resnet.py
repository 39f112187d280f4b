"""Residual networks for small images."""

import torch.nn.functional as F
from torch import Tensor, nn


def convolution(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Sequential:
    """Convolution without bias, He initialisation, batch norm."""
    layer = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return nn.Sequential(layer, nn.BatchNorm2d(channels_out))


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut, which is a 1 x 1 convolution where the shape changes."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.first = convolution(channels_in, channels_out, 3, stride)
        self.second = convolution(channels_out, channels_out, 3)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else convolution(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.second(F.relu(self.first(x))) + self.shortcut(x))


def resnet(channels: int, num_classes: int, blocks: tuple[int, int, int, int]) -> nn.Sequential:
    """ResNet of basic blocks with the CIFAR stem: a 3 x 3 first convolution of stride 1 and no max pooling.

    Args:
        channels: of the image.
        num_classes: C.
        blocks: in each of the four stages; (2, 2, 2, 2) is ResNet-18, (3, 4, 6, 3) is ResNet-34.

    Returns:
        Module from (B, ch, H, W) float to logits (B, C).

    Source: He et al. 2016, with the stem that the noisy-label papers use on 32 x 32 images.
    """
    layers: list[nn.Module] = [convolution(channels, 64, 3), nn.ReLU(inplace=True)]
    width = 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            stride = 2 if stage > 0 and block == 0 else 1
            layers.append(BasicBlock(width, 64 * 2**stage, stride))
            width = 64 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
