"""RandAugment on the device: each operation against Pillow or against its formula, and what the draws decide."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from fastlnl.augment import STRONG_DRAWS, cut_square, random_operations
from fastlnl.augment.strong import OPERATIONS
from fastlnl.errors import ShapeError
from fastlnl.philox import uniform

LEVEL = 6  # of 1 .. 9


def images_of(shape=(5, 3, 20, 20)):
    """Smooth, so that statistics differ, and not over the whole range."""
    random = torch.Generator().manual_seed(0)
    coarse = torch.rand(*shape[:2], 5, 5, generator=random) * 150 + 40
    noise = torch.randint(0, 20, shape, generator=random)
    return (torch.nn.functional.interpolate(coarse, shape[2:], mode="bilinear") + noise).floor()


def draws_for(*names, batch=5, level=LEVEL, sign=0.9):
    """Draws that ask for these operations, one a round."""
    turns = [((OPERATIONS.index(name) + 0.5) / 16, (level - 0.5) / 9, 0.0, sign) for name in names]
    turns += [(0.5, 0.5, 0.9, 0.9)] * (2 - len(turns))  # not applied
    return torch.tensor([sum(turns, ())], dtype=torch.float64).expand(batch, -1)


def by_pillow(image, operation):
    """(ch, H, W) of bytes -> the same through Pillow."""
    Image = pytest.importorskip("PIL.Image")
    array = image.byte().numpy()
    given = (
        Image.fromarray(array[0])
        if len(array) == 1
        else Image.fromarray(np.ascontiguousarray(array.transpose(1, 2, 0)))
    )
    out = np.asarray(operation(given)).astype(np.float32)
    return torch.from_numpy(out[None] if out.ndim == 2 else out.transpose(2, 0, 1))


def pillow(name, m=LEVEL / 10):
    from PIL import ImageEnhance, ImageOps

    factor = 0.1 + 1.8 * m
    return {
        "identity": lambda image: image,
        "autocontrast": ImageOps.autocontrast,
        "equalize": ImageOps.equalize,
        "invert": ImageOps.invert,
        "posterize": lambda image: ImageOps.posterize(image, 4 + int(4 * m)),
        "solarize": lambda image: ImageOps.solarize(image, math.ceil(256 - 256 * m)),
        "solarize_add": lambda image: image.point(lambda v: min(v + int(110 * m), 255) if v < 128 else v),
        "brightness": lambda image: ImageEnhance.Brightness(image).enhance(factor),
        "contrast": lambda image: ImageEnhance.Contrast(image).enhance(factor),
        "color": lambda image: ImageEnhance.Color(image).enhance(factor),
        "sharpness": lambda image: ImageEnhance.Sharpness(image).enhance(factor),
    }[name]


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("name", OPERATIONS[:11])
def test_values_are_those_of_pillow(name, channels, device):
    images = images_of((5, channels, 20, 18))
    made = random_operations(images.to(device), draws_for(name).to(device)).cpu()
    expected = torch.stack([by_pillow(image, pillow(name)) for image in images])
    # Pillow truncates where we round, and rounds its grey and its smooth image first, in fixed point.
    exact = name in ("identity", "equalize", "invert", "posterize", "solarize", "solarize_add")
    assert (made - expected).abs().max() <= (0 if exact else 2)
    assert name == "identity" or (name == "color" and channels == 1) or not torch.equal(made, images)


def by_formula(image, matrix, move):
    """One pixel after another, from the nearest pixel of the source."""
    height, width = image.shape[1:]
    out = torch.zeros_like(image)
    for y in range(height):
        for x in range(width):
            u, v = x - (width - 1) / 2, y - (height - 1) / 2
            column = math.floor(matrix[0][0] * u + matrix[0][1] * v + move[0] + (width - 1) / 2 + 0.5 + 1e-9)
            row = math.floor(matrix[1][0] * u + matrix[1][1] * v + move[1] + (height - 1) / 2 + 0.5 + 1e-9)
            if 0 <= row < height and 0 <= column < width:
                out[:, y, x] = image[:, row, column]
    return out


@pytest.mark.parametrize("sign", [0.1, 0.9])
@pytest.mark.parametrize("name", OPERATIONS[11:])
def test_moves_are_those_of_the_formula(name, sign, device):
    images, m = images_of((2, 3, 14, 20)), (-1 if sign < 0.5 else 1) * LEVEL / 10
    angle = math.radians(30 * m)
    matrix, move = {
        "rotate": (((math.cos(angle), -math.sin(angle)), (math.sin(angle), math.cos(angle))), (0, 0)),
        "shear_x": (((1, 0.3 * m), (0, 1)), (0, 0)),
        "shear_y": (((1, 0), (0.3 * m, 1)), (0, 0)),
        "translate_x": (((1, 0), (0, 1)), (0.3 * 20 * m, 0)),
        "translate_y": (((1, 0), (0, 1)), (0, 0.3 * 14 * m)),
    }[name]
    made = random_operations(images.to(device), draws_for(name, batch=2, sign=sign).to(device)).cpu()
    for image, result in zip(images, made, strict=True):
        assert torch.equal(result, by_formula(image, matrix, move))


def test_both_rounds_are_applied_one_after_the_other():
    images = images_of()
    twice = random_operations(images, draws_for("invert", "solarize"))
    assert torch.equal(twice, random_operations(random_operations(images, draws_for("invert")), draws_for("solarize")))
    assert not torch.equal(twice, random_operations(images, draws_for("solarize", "invert")))
    # 5 of 10 levels of .3 of 20 pixels are 3 pixels
    moved = random_operations(images, draws_for("translate_x", "translate_y", level=5))
    assert torch.equal(moved[..., :17, :17], images[..., 3:, 3:])
    assert not moved[..., 17:].any()
    turned = random_operations(images, draws_for("rotate", "translate_x", level=5))
    steps = random_operations(
        random_operations(images, draws_for("rotate", level=5)), draws_for("translate_x", level=5)
    )
    assert torch.equal(turned[..., :17], steps[..., :17])


def test_draws_decide_whether_and_which():
    count = 8000
    image = torch.arange(0, 256, 2.0).repeat(2).reshape(1, 1, 16, 16)[..., :8]
    draws = uniform(0, "strong", torch.arange(count), STRONG_DRAWS)
    made = random_operations(image.expand(count, -1, -1, -1), draws)
    same = (made == image).flatten(1).all(1)
    applied = ((draws[:, 2] < 0.5) | (draws[:, 6] < 0.5)) & ~same
    assert applied.sum() == (~same).sum()
    assert abs((draws[:, 2] < 0.5).double().mean() - 0.5) < 4 * 0.5 / count**0.5
    which = (draws[:, 0] * 16).long()
    assert stats.chisquare(which.bincount(minlength=16).numpy()).pvalue > 1e-3
    assert set(made.unique().tolist()) <= set(range(256))  # whole bytes


def test_constant_and_tiny_images_stay_finite():
    for shape in ((1, 3, 1, 1), (1, 3, 2, 5), (1, 1, 8, 8), (0, 3, 8, 8)):
        for value in (0.0, 128.0, 255.0):
            for name in OPERATIONS:
                images = torch.full(shape, value)
                made = random_operations(images, draws_for(name, batch=shape[0]))
                assert made.shape == shape
                assert ((made >= 0) & (made <= 255)).all()


def test_memory_format_and_inputs_stay():
    images = images_of().contiguous(memory_format=torch.channels_last)
    draws = uniform(1, "strong", torch.arange(5), STRONG_DRAWS)
    before = images.clone()
    made = random_operations(images, draws)
    assert made.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(made, random_operations(images.contiguous(), draws))
    assert torch.equal(images, before)


def test_cut_square():
    images = images_of()
    draws = torch.tensor([[0.0, 0.0], [0.5, 0.5], [0.999, 0.999], [0.0, 0.999], [0.25, 0.75]])
    made = cut_square(images, draws, 5, 127.0)
    for image, result, (y, x) in zip(images, made, (draws * 20).long().tolist(), strict=True):
        expected = image.clone()
        expected[:, max(0, y - 2) : y + 3, max(0, x - 2) : x + 3] = 127
        assert torch.equal(result, expected)
    assert torch.equal(cut_square(images, draws, 0, 127.0), images)


def test_refused():
    with pytest.raises(ShapeError, match=r"images has shape \(2, 4, 8, 8\).*\(B, 1 or 3, H, W\)"):
        random_operations(torch.zeros(2, 4, 8, 8), torch.zeros(2, 10))
    with pytest.raises(ShapeError, match=r"draws \(2, 7\)"):
        random_operations(torch.zeros(2, 3, 8, 8), torch.zeros(2, 7))
