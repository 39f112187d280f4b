"""The names of augmentations, and what each one asks of a batch."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.augment_batch import Crop

PLAIN = Crop()
IMAGES = {
    # name: (flip, strong, padding in pixels or None for an eighth of the height, side of the cut square)
    "crop_flip": (True, False, 4, 0.0),
    "crop_flip_cutout": (True, False, None, 0.5),
    "shift": (False, False, None, 0.0),
    "strong": (True, True, None, 0.15),
    "strong_shift": (False, True, None, 0.15),
}
ELEMENTS = ("dropout", "noise", "word_dropout")
AUGMENTATIONS = (
    "None",
    "crop_flip",
    "crop_flip_cutout[:side]",
    "shift",
    "strong[:side]",
    "strong_shift[:side]",
    "dropout:rate",
    "noise:sd",
    "word_dropout:rate",
)


@dataclass(frozen=True)
class View:
    """What one view asks for.

    Attributes:
        name: as it was given; None for none.
        crop: crop, flip and cut square of an image; of a strong view only crop and flip.
        strong: RandAugment between the crop and a grey square.
        cutout: side of that grey square in pixels.
        element: "dropout", "noise", "word_dropout" or "", and its `rate`.
    """

    name: str | None
    crop: Crop = PLAIN
    strong: bool = False
    cutout: int = 0
    element: str = ""
    rate: float = 0.0


def parse_view(name: str | None, table: Tensor) -> View:
    """What an augmentation means for the samples of a table.

    - None: the sample as it is.
    - "crop_flip": zero padding by 4, random crop, horizontal flip of every second image.
    - "crop_flip_cutout": the same with padding H / 8 (4 at 32 pixels) and a square of half the height set to the mean.
    - "shift": random crop after padding H / 8, no flip: for digits and letters, which must not be mirrored.
    - "strong": crop and flip with padding H / 8, RandAugment (`random_operations`), a grey square of 15 % of the
      height. "strong_shift": without the flip.
    - "dropout:0.1", "noise:0.1": for floats, see `dropout` and `gaussian_noise`.
    - "word_dropout:0.1": for token ids, see `word_dropout`.

    A number after a colon changes the square, as a share of the height: "strong:0.5", "crop_flip_cutout:0.25".

    Args:
        name: one of these.
        table: all samples: images (N, ch, H, W), features (N, ...) or token ids (N, L).

    Raises:
        ValueError: an unknown name or a number that it cannot have; the text lists what exists.
        ShapeError: the samples are of another kind than the augmentation is for.
    """
    if name is None:
        return View(None)
    word, colon, number = name.partition(":")
    # nan is outside every range below
    try:
        value = float(number) if colon else None
    except ValueError:
        value = float("nan")
    known = word in ELEMENTS and value is not None
    known |= word in IMAGES and (value is None or IMAGES[word][3] > 0)
    if not known or (value is not None and not 0 <= value < (float("inf") if word == "noise" else 1.0)):
        raise ValueError(
            f"augment is {name!r}, expected one of {', '.join(AUGMENTATIONS)}; rates and sides are shares in [0, 1)"
        )
    shape, tokens = tuple(table.shape), not table.is_floating_point() and table.dtype != torch.uint8
    if word in ELEMENTS:
        assert value is not None
        if tokens != (word == "word_dropout") or (tokens and table.ndim != 2):
            what = "token ids (N, L)" if word == "word_dropout" else "features or images"
            raise ShapeError(f"images is {shape} {str(table.dtype)[6:]} but {word} needs {what}; use another augment")
        return View(name, element=word, rate=value)
    if table.ndim != 4 or tokens:
        raise ShapeError(f"images has shape {shape} but {word} needs (N, ch, H, W); use None")
    flip, strong, padding, share = IMAGES[word]
    if strong and table.dtype != torch.uint8:
        raise ShapeError(f"images is {str(table.dtype)[6:]} but {word} needs uint8; pass bytes, or use crop_flip")
    if strong and shape[1] not in (1, 3):
        raise ShapeError(f"images has {shape[1]} channels but {word} needs grey (1) or colour (3) images; use shift")
    side = round((share if value is None else value) * shape[2])
    padding = round(shape[2] / 8) if padding is None else padding
    if strong:
        return View(name, Crop(padding, flip), True, side)
    return View(name, Crop(padding, flip, side))
