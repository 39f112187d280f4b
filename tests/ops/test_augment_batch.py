"""augment_batch against slicing one padded image after another, bit for bit on every backend, and its laws."""

import pytest
import torch
from torch import Tensor

from fastlnl.errors import ShapeError
from fastlnl.ops.augment_batch import Crop, augment_batch
from fastlnl.philox import uniform

pytestmark = pytest.mark.usefixtures("poison")
VIEWS = (Crop(), Crop(4, True, number=1), Crop(2, False, 5, number=1), Crop(9, True, 3, number=7), Crop(0, True))
KEY = {"seed": 5, "stream": "crop_flip", "epoch": 3}


def byte_images(shape, device="cpu"):
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8).to(device)


def table_of(channels, device="cpu"):
    """No affine map: nothing but a look-up gives these floats."""
    return torch.randn(channels, 256, generator=torch.Generator().manual_seed(1)).to(device)


def one_by_one(images: Tensor, index: Tensor, view: Crop, table: Tensor, key=KEY) -> Tensor:
    """Textbook steps on one image after another: pad, slice, mirror, look up, cut."""
    num_samples, channels, height, width = images.shape
    draws = uniform(key["seed"], key["stream"], index, 5, key["epoch"], view.number)
    result = torch.zeros(len(index), channels, height, width)
    for b, (i, (top, left, flip, *centre)) in enumerate(zip(index.tolist(), draws.tolist(), strict=True)):
        if not 0 <= i < num_samples:
            continue
        p = view.padding
        padded = torch.zeros(channels, height + 2 * p, width + 2 * p, dtype=torch.uint8)
        padded[:, p : p + height, p : p + width] = images[i]
        y, x = int(top * (2 * p + 1)), int(left * (2 * p + 1))
        crop = padded[:, y : y + height, x : x + width]
        crop = crop.flip(-1) if view.flip and flip < 0.5 else crop
        result[b] = torch.stack([table[c][crop[c].long()] for c in range(channels)])
        y, x = int(centre[0] * height) - view.cutout // 2, int(centre[1] * width) - view.cutout // 2
        result[b, :, max(0, y) : max(0, y + view.cutout), max(0, x) : max(0, x + view.cutout)] = 0
    return result


@pytest.mark.parametrize("out_last", [False, True])
@pytest.mark.parametrize("images_last", [False, True])
@pytest.mark.parametrize(
    "shape", [(11, 3, 8, 8), (5, 1, 7, 9), (3, 4, 33, 32), (2, 2, 1, 1)], ids=lambda shape: "x".join(map(str, shape))
)
def test_equals_one_by_one_bit_for_bit(shape, images_last, out_last, device):
    images, table = byte_images(shape, device), table_of(shape[1], device)
    images = images.contiguous(memory_format=torch.channels_last) if images_last else images
    index = torch.randint(shape[0], (6,), generator=torch.Generator().manual_seed(2)).to(device)  # some twice
    made = augment_batch(images, index, VIEWS, table, channels_last=out_last, **KEY)
    assert len(made) == len(VIEWS)
    for out, view in zip(made, VIEWS, strict=True):
        assert torch.equal(out.cpu(), one_by_one(images.cpu(), index.cpu(), view, table.cpu()))
        assert out.is_contiguous(memory_format=torch.channels_last if out_last else torch.contiguous_format)


def test_a_sample_does_not_see_its_batch(device):
    images, table = byte_images((20, 3, 8, 8), device), table_of(3, device)
    index = torch.arange(20, device=device)
    (whole,) = augment_batch(images, index, VIEWS[3:4], table, **KEY)
    part = torch.tensor([17, 3, 17, 0], device=device)
    (again,) = augment_batch(images, part, VIEWS[3:4], table, **KEY)
    assert torch.equal(again, whole[part])


def test_large_keys_and_ids(device):
    """Words with the highest bit set, and an id that is far beyond the images: zeros, nothing read."""
    images, table = byte_images((4, 1, 5, 5), device), table_of(1, device)
    key = {"seed": 2**32 - 1, "stream": "high", "epoch": 2**32 - 1}  # the stream's checksum is above 2^31
    view = Crop(4, True, 2, number=2**16 - 1)
    index = torch.tensor([3, -1, 2, 4, 2**40, -(2**62)], device=device)
    (out,) = augment_batch(images, index, [view], table, **key)
    assert torch.equal(out.cpu(), one_by_one(images.cpu(), index.cpu(), view, table.cpu(), key))
    assert not out[[1, 3, 4, 5]].any()


def test_seed_stream_epoch_number_and_id_all_matter(device):
    images, table = byte_images((1, 1, 9, 9)).expand(40, -1, -1, -1).contiguous().to(device), table_of(1, device)
    index, view = torch.arange(20, device=device), Crop(4, True)
    (first,) = augment_batch(images, index, [view], table, **KEY)
    others = [
        augment_batch(images, index, [view], table, **(KEY | other))[0]
        for other in ({"seed": 6}, {"stream": "other"}, {"epoch": 4})
    ]
    others += augment_batch(images, index, [view._replace(number=1)], table, **KEY)
    others += augment_batch(images, index + 20, [view], table, **KEY)
    for other in others:
        # one in 162 is the same by chance
        assert (other == first).flatten(1).all(1).sum() <= 3


def test_nothing_to_do(device):
    images, table = byte_images((4, 3, 8, 8), device), table_of(3, device)
    (empty,) = augment_batch(images, torch.zeros(0, dtype=torch.int64, device=device), [Crop(4)], table, **KEY)
    assert empty.shape == (0, 3, 8, 8)
    assert augment_batch(images, torch.zeros(2, dtype=torch.int64, device=device), [], table, **KEY) == ()
    padding = torch.full((2,), -1, device=device)
    (none,) = augment_batch(images[:0], padding, [Crop(4, True, 2)], table, **KEY)
    assert torch.equal(none.cpu(), torch.zeros(2, 3, 8, 8))


def test_images_are_not_modified(device):
    images, table = byte_images((4, 3, 8, 8), device), table_of(3, device)
    before = images.clone(), table.clone()
    augment_batch(images, torch.arange(4, device=device), VIEWS, table, **KEY)
    assert torch.equal(images, before[0])
    assert torch.equal(table, before[1])


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.backend import use_backend
    from fastlnl.ops.augment_batch.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    images, table = byte_images((50, 3, 32, 32)), table_of(3)
    index = torch.arange(SERIAL_BELOW // 3072 + 2) % 50
    with use_backend("reference"):
        expected = augment_batch(images, index, VIEWS[:3], table, **KEY)
    with use_backend("numba"):
        for ours, theirs in zip(augment_batch(images, index, VIEWS[:3], table, **KEY), expected, strict=True):
            assert torch.equal(ours, theirs)


def test_refused_at_the_door():
    images, index, table = byte_images((4, 3, 8, 8)), torch.arange(4), table_of(3)

    def refused(error, text, *given, **key):
        with pytest.raises(error, match=text):
            augment_batch(*given, **(KEY | key))

    refused(ShapeError, r"images is \(4, 3, 8, 8\) float32; expected \(N, ch, H, W\)", images.float(), index, [], table)
    refused(ShapeError, r"images has strides", images[:, :, ::2], index, [], table)
    refused(ShapeError, r"index is \(4,\) int32; expected \(B,\) int64", images, index.int(), [], table)
    refused(ShapeError, r"table is \(1, 256\) float32; expected \(3, 256\)", images, index, [], table[:1])
    refused(ValueError, r"seed is -1 but must be in \[0, 2\^32\)", images, index, [], table, seed=-1)
    refused(ValueError, r"epoch is 4294967296 but", images, index, [], table, epoch=2**32)
    refused(ValueError, r"padding=-1.*padding and cutout must be at least 0", images, index, [Crop(-1)], table)
    refused(ValueError, r"number=65536", images, index, [Crop(number=2**16)], table)
