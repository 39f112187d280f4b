"""A small convolutional network for machines without a GPU."""

from torch import nn

# Output channels of the 3 x 3 convolutions; "pool" halves the image. One convolution at full size is enough there:
# it costs little arithmetic but most of the memory traffic. The weights that memorise sit at the small sizes.
LAYERS: tuple[int | str, ...] = (32, "pool", 64, 64, "pool", 128, 128, "pool", 256, 256)


def cnn(channels: int, num_classes: int) -> nn.Sequential:
    """Seven 3 x 3 convolutions with batch norm and ReLU, three poolings, the mean over pixels, one linear layer.

    1.17 million parameters and 43 million multiply-adds for a 32 x 32 colour image: enough to memorise the noisy
    labels of CIFAR-10, small enough for a CPU. Images from 8 x 8 pixels on.

    Args:
        channels: of the image.
        num_classes: C.

    Returns:
        Module from (B, ch, H, W) float to logits (B, C).
    """
    layers: list[nn.Module] = []
    for layer in LAYERS:
        if isinstance(layer, str):
            layers.append(nn.MaxPool2d(2))
            continue
        convolution = nn.Conv2d(channels, layer, 3, padding=1, bias=False)  # the batch norm has the bias
        nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
        layers += [convolution, nn.BatchNorm2d(layer), nn.ReLU(inplace=True)]
        channels = layer
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))
