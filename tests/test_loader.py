"""IndexedLoader: every sample once, the order from (seed, epoch), the right pixels and normalisation."""

import pytest
import torch

from fastlnl.augment import crop_flip
from fastlnl.data import IndexedLoader, load_dataset
from fastlnl.errors import ShapeError
from fastlnl.philox import uniform

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)
IMAGES = torch.randint(0, 256, (103, 3, 8, 8), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABEL = torch.randint(0, 10, (103,), generator=torch.Generator().manual_seed(1))


def loader(**options):
    return IndexedLoader(IMAGES, LABEL, **({"batch_size": 10, "mean": MEAN, "std": STD, "seed": 0} | options))


def normalised(images):
    """The textbook formula in float64."""
    mean, std = (torch.tensor(values, dtype=torch.float64)[:, None, None] for values in (MEAN, STD))
    return (images.double() / 255 - mean) / std


def order(batches):
    return torch.cat([batch.index for batch in batches])


def test_a_pass_shows_every_sample_once_with_its_label_and_pixels():
    batches = list(loader())
    assert torch.equal(order(batches).sort().values, torch.arange(103))
    for index, (images,), label in batches:
        assert index.dtype == label.dtype == torch.int64
        assert images.dtype == torch.float32
        assert torch.equal(label, LABEL[index])
        # float32 rounds twice below |x| < 4
        torch.testing.assert_close(images.double(), normalised(IMAGES[index]), rtol=0, atol=4 * 2**-23)


@pytest.mark.parametrize(
    ("batch_size", "drop_last", "sizes"),
    [
        (10, False, [10] * 10 + [3]),
        (10, True, [10] * 10),
        (103, False, [103]),
        (103, True, [103]),
        (200, False, [103]),
        (200, True, []),
        (1, True, [1] * 103),
    ],
)
def test_sizes(batch_size, drop_last, sizes):
    batches = loader(batch_size=batch_size, drop_last=drop_last)
    assert [len(batch.index) for batch in batches] == sizes
    assert len(batches) == len(sizes)
    assert batches.num_samples == 103


def test_order_depends_on_seed_and_epoch_alone():
    first = loader()
    start = order(first)
    assert torch.equal(order(first), start)  # not on how often it was read
    first.set_epoch(1)
    second = order(first)
    assert not torch.equal(second, start)
    assert not torch.equal(order(loader(seed=1)), start)
    other = loader(batch_size=7, augment="crop_flip")  # nor on batch size or augmentation
    other.set_epoch(1)
    assert torch.equal(order(other), second)


def test_without_shuffle_the_order_is_that_of_the_ids():
    still = loader(shuffle=False)
    still.set_epoch(3)
    assert torch.equal(order(still), torch.arange(103))


def test_views_are_augmented_by_id_epoch_and_view():
    augmented = loader(augment="crop_flip", num_views=2, seed=5)
    augmented.set_epoch(2)
    for index, views, _ in augmented:
        assert len(views) == 2
        for view, images in enumerate(views):
            cropped = crop_flip(IMAGES[index], uniform(5, "crop_flip", index, draws=3, epoch=2, view=view))
            torch.testing.assert_close(images.double(), normalised(cropped), rtol=0, atol=4 * 2**-23)
        assert not torch.equal(*views)


@pytest.mark.parametrize("channels_last", [None, True])
def test_bytes_become_the_bits_of_one_multiply_add(channels_last):
    """The look-up in the kernels gives what addcmul gives on the gathered images."""
    augmented = loader(augment=(None, "crop_flip"), seed=5, channels_last=channels_last)
    scale = torch.tensor([1 / (255 * s) for s in STD])[:, None, None]
    shift = torch.tensor([-m / s for m, s in zip(MEAN, STD, strict=True)])[:, None, None]
    for index, (plain, cropped), _ in augmented:
        draws = uniform(5, "crop_flip", index, draws=3, view=1)
        assert torch.equal(plain, torch.addcmul(shift, IMAGES[index].float(), scale))
        assert torch.equal(cropped, torch.addcmul(shift, crop_flip(IMAGES[index], draws).float(), scale))
        assert cropped.is_contiguous(memory_format=torch.channels_last) == bool(channels_last)


def test_views_without_augmentation_are_equal():
    for batch in loader(num_views=3):
        assert len(batch.views) == 3
        assert torch.equal(batch.views[0], batch.views[2])


def test_features_are_taken_as_they_are():
    features = torch.randn(9, 4)
    plain = IndexedLoader(features, LABEL[:9], batch_size=9, mean=(0,), std=(1,), shuffle=False)
    assert torch.equal(next(iter(plain)).views[0], features)
    each = IndexedLoader(features, LABEL[:9], batch_size=9, mean=(1, 2, 3, 4), std=(2, 2, 4, 4), shuffle=False)
    expected = (features - torch.tensor([1.0, 2, 3, 4])) / torch.tensor([2.0, 2, 4, 4])
    torch.testing.assert_close(next(iter(each)).views[0], expected, rtol=0, atol=2**-22)


def test_the_training_set_is_normalised_to_mean_zero_and_deviation_one():
    data = load_dataset("digits")
    batches = IndexedLoader(data.train_images, data.train_label, batch_size=512, mean=data.mean, std=data.std)
    pixels = torch.cat([batch.views[0] for batch in batches]).double()
    # mean and std are rounded to four digits
    assert abs(pixels.mean()) < 0.5e-4 / data.std[0]
    assert abs(pixels.std() - 1) < 0.5e-4 / data.std[0]


def test_no_samples():
    empty = IndexedLoader(IMAGES[:0], LABEL[:0], batch_size=10, mean=MEAN, std=STD)
    assert len(empty) == 0
    assert list(empty) == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_views": 0}, "num_views is 0"),
        ({"augment": "cutout"}, "augment is 'cutout', expected one of"),
        ({"mean": (0.5, 0.5), "std": (0.5, 0.5)}, "1 or 3 numbers"),
        ({"std": (0.5, 0.5, 0.0)}, "those of std above 0"),
    ],
)
def test_errors(options, text):
    with pytest.raises(ValueError, match=text):
        loader(**options)


def test_shape_errors():
    options = {"batch_size": 2, "mean": (0,), "std": (1,)}
    with pytest.raises(ShapeError, match="images has 103 samples but label has 9"):
        IndexedLoader(IMAGES, LABEL[:9], **options)
    with pytest.raises(ShapeError, match=r"\(103, 192\) but crop_flip needs"):
        IndexedLoader(IMAGES.flatten(1).float(), LABEL, augment="crop_flip", **options)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_the_gpu_sees_the_same_batches_and_never_makes_the_host_wait():
    options = {"augment": "crop_flip", "num_views": 2}
    device = loader(device="cuda", **options)
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(device)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(batches, loader(**options), strict=True):
        assert torch.equal(ours.index.cpu(), theirs.index)
        assert torch.equal(ours.label.cpu(), theirs.label)
        for a, b in zip(ours.views, theirs.views, strict=True):
            torch.testing.assert_close(a.cpu(), b, rtol=0, atol=4 * 2**-23)
