"""Pre-activation residual networks for small images."""

import torch.nn.functional as F
from torch import Tensor, nn

from fastlnl.networks.resnet import convolution


def bare(channels_in: int, channels_out: int, size: int, stride: int = 1) -> nn.Conv2d:
    """Convolution without bias and batch norm, He initialisation."""
    layer = nn.Conv2d(channels_in, channels_out, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


class PreActBlock(nn.Module):
    """Twice batch norm, ReLU, 3 x 3 convolution, beside a shortcut that starts behind the first ReLU.

    The shortcut carries the activated input in every block, a 1 x 1 convolution of it where the shape changes. That is
    DivideMix's block; in He et al. 2016 ("Identity mappings") it carries the raw input where the shape stays.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.norm1, self.first = nn.BatchNorm2d(channels_in), bare(channels_in, channels_out, 3, stride)
        self.norm2, self.second = nn.BatchNorm2d(channels_out), bare(channels_out, channels_out, 3)
        same = stride == 1 and channels_in == channels_out
        self.shortcut = nn.Identity() if same else bare(channels_in, channels_out, 1, stride)

    def forward(self, x: Tensor) -> Tensor:
        active = F.relu(self.norm1(x))
        return self.second(F.relu(self.norm2(self.first(active)))) + self.shortcut(active)


def preact_resnet(channels: int, num_classes: int, blocks: tuple[int, int, int, int]) -> nn.Sequential:
    """PreAct ResNet with the CIFAR stem, as DivideMix and the methods after it use it on 32 x 32 images.

    Stem: 3 x 3 convolution of stride 1, batch norm, ReLU. The sum that leaves the last block goes straight to the mean
    over pixels: no batch norm and no ReLU behind it, so the feature map has values of both signs.

    Args:
        channels: of the image.
        num_classes: C.
        blocks: in each of the four stages; (2, 2, 2, 2) is PreAct ResNet-18.

    Returns:
        Module from (B, ch, H, W) float to logits (B, C); its feature map is (B, 512, H / 8, W / 8), rounded up.

    Source: Kuang Liu's layout (pytorch-cifar) as in DivideMix, Li et al. 2020, `PreResNet.py`; blocks of He et al.
    2016. Ours differs in the He initialisation, there torch's default.
    """
    layers: list[nn.Module] = [convolution(channels, 64, 3), nn.ReLU(inplace=True)]
    width = 64
    for stage, count in enumerate(blocks):
        for block in range(count):
            layers.append(PreActBlock(width, 64 * 2**stage, stride=2 if stage > 0 and block == 0 else 1))
            width = 64 * 2**stage
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))


def preact_cnn(channels: int, num_classes: int) -> nn.Sequential:
    """A PreAct network for machines without a GPU: the stem at 32 channels, then one block each of 32, 64, 128.

    Every block halves the image, so a 32 x 32 image has a feature map of (128, 4, 4), as large as that of PreAct
    ResNet-18. 309,098 parameters and 13 million multiply-adds for a 32 x 32 colour image and ten classes.

    Args:
        channels: of the image.
        num_classes: C.

    Returns:
        Module from (B, ch, H, W) float to logits (B, C).
    """
    layers: list[nn.Module] = [convolution(channels, 32, 3), nn.ReLU(inplace=True)]
    width = 32
    for wider in (32, 64, 128):
        layers.append(PreActBlock(width, wider, stride=2))
        width = wider
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, num_classes))
