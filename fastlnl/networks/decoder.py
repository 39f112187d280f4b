"""From a feature map back to the image: the decoder behind the reconstruction loss of SANM."""

from __future__ import annotations

from torch import nn

from fastlnl.errors import ShapeError

# (height of the feature map, height of the image): kernel, stride, padding, output padding of each layer.
LAYOUTS = {
    (4, 32): ((4, 2, 0, 0), (6, 1, 0, 0), (4, 2, 0, 0)),  # 4 -> 10 -> 15 -> 32
    (7, 224): ((6, 3, 0, 1), (2, 3, 0, 1), (2, 3, 0, 0)),  # 7 -> 25 -> 75 -> 224
}
HIDDEN = (256, 128)


def decoder(feature_shape: tuple[int, ...], image_shape: tuple[int, ...]) -> nn.Sequential:
    """Three transposed convolutions, nothing between them, from a feature map to an image of the given size.

    4 x 4 to 32 x 32 (3.28 million parameters from 512 channels) and 7 x 7 to 224 x 224 (19.0 million from 2048) are the
    published layouts. Any other pair is doubled, or left as it is, in each layer as the ratio asks, and the last layer
    ends at the size of the image: ours.

    Args:
        feature_shape: (Cf, h, w) of the feature map; image_shape: (ch, H, W), squares, H at least h.

    Returns:
        Module from (B, Cf, h, w) to (B, ch, H, W). It is linear: no normalisation, no activation.

    Raises:
        ShapeError: not a square, or an image smaller than its feature map.

    Source: Tu et al. 2023 (SANM), the decoder of its code.
    """
    (channels, height, width), (channels_out, image_height, image_width) = feature_shape, image_shape
    if height != width or image_height != image_width or image_height < height:
        raise ShapeError(
            f"feature_shape is {feature_shape} and image_shape {image_shape}; expected squares, the image at least as "
            "large as its feature map; crop the images, or switch the reconstruction off"
        )
    layout = LAYOUTS.get((height, image_height)) or doubling(height, image_height)
    widths = (channels, *HIDDEN, channels_out)
    return nn.Sequential(
        *(
            nn.ConvTranspose2d(before, after, kernel, stride, padding, output_padding)
            for before, after, (kernel, stride, padding, output_padding) in zip(
                widths, widths[1:], layout, strict=False
            )
        )
    )


def doubling(height: int, image_height: int) -> tuple[tuple[int, int, int, int], ...]:
    """Layers that grow `height` to `image_height`: each by the largest whole factor that leaves room for the rest.

    A layer of kernel k and stride s turns n pixels into (n - 1) s + k. With k = s + 2, padding 1 and s the factor that
    is n s; the last layer has k = image_height - (n - 1) s.
    """
    layers, now = [], height
    for left in (3, 2):
        factor = max(1, round((image_height / now) ** (1 / left)))
        while now * factor > image_height:
            factor -= 1
        layers.append((factor + 2, factor, 1, 0))
        now *= factor
    stride = max(1, image_height // now)
    return (*layers, (image_height - (now - 1) * stride, stride, 0, 0))
