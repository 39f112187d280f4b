"""crop_flip against a loop over images, and its independence of batch and memory format."""

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastlnl.augment import crop_flip
from fastlnl.errors import ShapeError
from fastlnl.philox import uniform


def batch_of(shape: tuple[int, ...], dtype: torch.dtype = torch.uint8) -> Tensor:
    return torch.randint(1, 256, shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def draws_for(index: Tensor, epoch: int = 0, view: int = 0) -> Tensor:
    return uniform(0, "crop_flip", index, draws=3, epoch=epoch, view=view)


def one_by_one(images: Tensor, draws: Tensor, padding: int) -> Tensor:
    """The same by slicing one padded image after another."""
    _, channels, height, width = images.shape
    result = torch.empty_like(images)
    for i, (image, (top, left, flip)) in enumerate(zip(images, draws.tolist(), strict=True)):
        padded = torch.zeros(channels, height + 2 * padding, width + 2 * padding, dtype=images.dtype)
        padded[:, padding : padding + height, padding : padding + width] = image
        y, x = int(top * (2 * padding + 1)), int(left * (2 * padding + 1))
        crop = padded[:, y : y + height, x : x + width]
        result[i] = crop.flip(-1) if flip < 0.5 else crop
    return result


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(64, 3, 32, 32), (5, 1, 7, 9), (1, 2, 1, 1), (0, 3, 8, 8)])
@pytest.mark.parametrize("padding", [0, 2, 4])
def test_equals_one_by_one(shape, dtype, padding):
    images = batch_of(shape, dtype)
    draws = draws_for(torch.arange(shape[0]))
    result = crop_flip(images, draws, padding)
    assert result.dtype == dtype
    assert torch.equal(result, one_by_one(images, draws, padding))


def test_channels_last_is_kept():
    images = batch_of((8, 3, 6, 5))
    draws = draws_for(torch.arange(8))
    result = crop_flip(images.contiguous(memory_format=torch.channels_last), draws)
    assert result.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(result, crop_flip(images, draws))


def test_a_sample_does_not_see_its_batch():
    images, index = batch_of((50, 3, 8, 8)), torch.arange(50)
    whole = crop_flip(images, draws_for(index))
    part = torch.tensor([40, 3, 17])
    assert torch.equal(crop_flip(images[part], draws_for(part)), whole[part])


def test_epochs_and_views_differ():
    images, index = batch_of((200, 1, 8, 8)), torch.arange(200)
    first = crop_flip(images, draws_for(index))
    for other in (draws_for(index, epoch=1), draws_for(index, view=1)):
        same = (crop_flip(images, other) == first).flatten(1).all(1).double().mean()
        # 2 flips x 9 x 9 shifts: one in 162 images is the same by chance.
        assert same < 1 / 162 + 4 * (1 / 162 / 200) ** 0.5


def test_all_shifts_are_equally_likely():
    image = torch.zeros(1, 1, 9, 9)
    image[..., 4, 4] = 1  # shifted by -4 .. 4 it reaches each of the 81 pixels
    count = 16_200
    place = crop_flip(image.expand(count, -1, -1, -1), draws_for(torch.arange(count))).flatten(1).argmax(1)
    assert stats.chisquare(place.bincount(minlength=81).numpy()).pvalue > 1e-3


def test_every_second_image_is_flipped():
    image = torch.tensor([0.0, 1.0]).reshape(1, 1, 1, 2)
    count = 10_000
    result = crop_flip(image.expand(count, -1, -1, -1), draws_for(torch.arange(count)), padding=0)
    flipped = result[:, 0, 0, 0].double().mean()
    assert abs(flipped - 0.5) < 4 * 0.5 / count**0.5


def test_images_are_not_modified():
    images = batch_of((4, 3, 8, 8))
    before = images.clone()
    crop_flip(images, draws_for(torch.arange(4)))
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("images", "draws", "text"),
    [
        (torch.zeros(4, 64), torch.zeros(4, 3), r"images has shape \(4, 64\).*\(B, ch, H, W\)"),
        (torch.zeros(4, 1, 8, 8), torch.zeros(4, 2), r"draws has shape \(4, 2\).*\(4, 3\)"),
    ],
)
def test_errors(images, draws, text):
    with pytest.raises(ShapeError, match=text):
        crop_flip(images, draws)
