"""Passes over parts of the data: their order, their streams, their views, and cycles without end."""

from itertools import islice

import pytest
import torch

from fastlnl.augment import AUGMENTATIONS
from fastlnl.data import IndexedLoader
from fastlnl.errors import ShapeError

IMAGES = torch.randint(0, 256, (60, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
LABEL = torch.randint(0, 10, (60,), generator=torch.Generator().manual_seed(1))
IDS = torch.tensor([50, 3, 17, 4, 33, 58, 21])
NAMES = (None, "crop_flip", "crop_flip_cutout", "shift", "strong", "strong_shift", "dropout:0.2", "noise:0.1")


def loader(images=IMAGES, **options):
    options = {"batch_size": 8, "mean": (0.5,), "std": (0.2,), "seed": 4} | options
    made = IndexedLoader(images, LABEL[: len(images)], **options)
    made.set_epoch(2)
    return made


def order(batches):
    return torch.cat([batch.index for batch in batches])


def by_id(batches, view=0):
    return {int(i): x for batch in batches for i, x in zip(batch.index, batch.views[view], strict=True)}


def assert_equal_batches(ours, theirs):
    for a, b in zip(ours, theirs, strict=True):
        assert torch.equal(a.index, b.index)
        assert torch.equal(a.label, b.label)
        assert len(a.views) == len(b.views)
        assert all(torch.equal(x, y) for x, y in zip(a.views, b.views, strict=True))


def test_iterating_is_a_pass_over_all():
    both = loader(augment="crop_flip", num_views=2)
    assert_equal_batches(both, both.batches())
    assert_equal_batches(both, both.batches(torch.arange(60), stream="order", augment=("crop_flip", "crop_flip")))


def test_a_part_comes_in_the_order_of_the_whole_with_the_same_views():
    whole = loader(augment="crop_flip")
    expected = [i for i in order(whole).tolist() if i in IDS.tolist()]
    for ids in (IDS, IDS.flip(0)):
        batches = list(whole.batches(ids, batch_size=3))
        assert [len(batch.index) for batch in batches] == [3, 3, 1]
        assert order(batches).tolist() == expected
        assert all(torch.equal(batch.label, LABEL[batch.index]) for batch in batches)
        views = by_id(whole)
        assert all(torch.equal(x, views[i]) for i, x in by_id(batches).items())


@pytest.mark.parametrize("name", NAMES)
def test_views_do_not_depend_on_the_batch(name):
    whole = by_id(loader(augment=(None, name)), 1)
    for batch_size in (1, 7):
        part = by_id(loader(augment=(None, name), shuffle=False).batches(IDS, batch_size=batch_size), 1)
        assert all(torch.equal(x, whole[i]) for i, x in part.items())


@pytest.mark.parametrize("name", NAMES[1:])
def test_stream_epoch_and_place_key_the_views(name):
    one = loader(augment=(name, name))
    first = by_id(one)
    others = [by_id(one, 1), by_id(one.batches(stream="second network"))]
    one.set_epoch(3)
    others.append(by_id(one))
    for other in others:
        same = sum(torch.equal(x, first[i]) for i, x in other.items())
        assert same < 15  # a strong view may change nothing, a shift is one of 25


def test_streams_have_orders_of_their_own():
    one = loader()
    assert not torch.equal(order(one.batches(stream="unlabelled")), order(one))
    assert torch.equal(order(one.batches(stream="unlabelled")).sort().values, torch.arange(60))


def test_options_of_a_pass():
    one = loader(shuffle=True, augment=("crop_flip", "crop_flip"))
    assert torch.equal(order(one.batches(IDS, shuffle=False)), IDS)
    assert [len(batch.index) for batch in one.batches(IDS, batch_size=2, drop_last=True)] == [2, 2, 2]
    (batch,) = one.batches(IDS, augment=None, shuffle=False)
    assert len(batch.views) == 1
    assert torch.equal(batch.views[0], loader().batches(IDS, shuffle=False).__next__().views[0])
    assert len(next(one.batches(augment=(None, "shift", "crop_flip"))).views) == 3
    assert list(one.batches(IDS[:0])) == []
    repeated = torch.tensor([5, 5, 9])
    assert order(one.batches(repeated)).sort().values.tolist() == [5, 5, 9]


def test_a_tuple_names_the_views():
    assert loader(augment=(None, "crop_flip")).num_views == 2
    assert loader(augment="crop_flip", num_views=3).num_views == 3
    index, (plain, moved), _ = next(iter(loader(augment=(None, "shift"))))
    assert torch.equal(plain, next(loader().batches(index, shuffle=False)).views[0])
    assert not torch.equal(moved, plain)


def test_cycle_begins_with_the_pass_and_goes_on_in_other_orders():
    one = loader(augment="crop_flip")
    rounds = list(islice(one.cycle(IDS, batch_size=4), 6))
    assert [len(batch.index) for batch in rounds] == [4, 3] * 3
    assert_equal_batches(rounds[:2], one.batches(IDS, batch_size=4))
    passes = [order(rounds[i : i + 2]) for i in (0, 2, 4)]
    assert all(torch.equal(p.sort().values, IDS.sort().values) for p in passes)
    assert not torch.equal(passes[0], passes[1])
    assert not torch.equal(passes[1], passes[2])
    assert not torch.equal(by_id(rounds[:2])[50], by_id(rounds[2:4])[50])
    again = list(islice(one.cycle(IDS, batch_size=4), 6))
    assert_equal_batches(rounds, again)
    assert [len(batch.index) for batch in islice(one.cycle(IDS, batch_size=4, drop_last=True), 3)] == [4, 4, 4]


def test_nothing_to_cycle_over():
    with pytest.raises(ValueError, match=r"ids has 0 samples for batches of 8.*nothing to repeat"):
        loader().cycle(IDS[:0])
    with pytest.raises(ValueError, match=r"ids has 7 samples for batches of 8 \(drop_last is True\)"):
        loader().cycle(IDS, drop_last=True)


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32])
def test_token_ids_pass_through(dtype):
    tokens = torch.randint(2, 900, (60, 30), generator=torch.Generator().manual_seed(0)).to(dtype)
    tokens[:, 20:] = 0
    index, (plain, dropped), _ = next(iter(loader(tokens, mean=(), std=(), augment=(None, "word_dropout:0.3"))))
    assert plain.dtype == dropped.dtype == dtype
    assert torch.equal(plain, tokens[index])
    assert not dropped[:, 20:].any()
    kept = dropped[:, :20] == plain[:, :20]
    assert ((dropped[:, :20] == 1) | kept).all()
    assert 0 < (~kept).sum() < kept.sum()


def test_features():
    features = torch.randn(60, 15, generator=torch.Generator().manual_seed(0))
    _, (plain, dropped, noisy), _ = next(iter(loader(features, augment=(None, "dropout:0.5", "noise:0.1"))))
    assert ((dropped == 0) | (dropped == 2 * plain)).all()
    assert 0.3 < (dropped == 0).double().mean() < 0.7
    assert 0.05 < (noisy - plain).std() < 0.2


def test_float_images_are_cropped_and_cut_like_bytes():
    """The same draws decide; black is 0 before normalising, and the square is 0 after it."""
    names = ("crop_flip", "shift", "crop_flip_cutout")
    bytes_, floats = loader(augment=names), loader(IMAGES.float() / 255, augment=names)
    for a, b in zip(bytes_, floats, strict=True):
        for x, y in zip(a.views, b.views, strict=True):
            torch.testing.assert_close(x, y, rtol=0, atol=1e-5)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_no_view_makes_the_host_wait_and_all_are_those_of_the_cpu():
    one, ids = loader(device="cuda", augment=NAMES), IDS.cuda()
    list(one)  # compiles
    torch.cuda.set_sync_debug_mode("error")
    try:
        batches = list(islice(one.cycle(ids), 2))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    for ours, theirs in zip(batches, loader(augment=NAMES).cycle(IDS), strict=False):
        assert torch.equal(ours.index.cpu(), theirs.index)
        for name, a, b in zip(NAMES, ours.views, theirs.views, strict=True):
            close = (a.cpu() - b).abs() <= 1e-5
            assert close.double().mean() >= (0.99 if "strong" in str(name) else 1), name  # a sine may round otherwise


@pytest.mark.parametrize(
    "name", ["cutout", "dropout", "dropout:1", "dropout:x", "crop_flip:3", "noise:-1", "strong:1.5"]
)
def test_unknown_names_list_what_exists(name):
    for ask in (lambda: loader(augment=name), lambda: loader().batches(augment=(None, name))):
        with pytest.raises(ValueError, match=f"augment is {name!r}, expected one of {AUGMENTATIONS[0]}, crop_flip, "):
            ask()


@pytest.mark.parametrize(
    ("images", "name", "text"),
    [
        (IMAGES.float(), "strong", "images is float32 but strong needs uint8"),
        (IMAGES.repeat(1, 2, 1, 1), "strong_shift", "6 channels but strong_shift needs grey"),
        (IMAGES.flatten(1).long(), "shift", r"\(60, 768\) but shift needs \(N, ch, H, W\)"),
        (IMAGES.flatten(1).long(), "dropout:0.1", "int64 but dropout needs features or images"),
        (IMAGES, "word_dropout:0.1", r"uint8 but word_dropout needs token ids \(N, L\)"),
    ],
)
def test_an_augmentation_for_other_samples(images, name, text):
    with pytest.raises(ShapeError, match=text):
        loader(images, augment=name)


def test_errors():
    with pytest.raises(ShapeError, match=r"ids is \(7,\) int32 on cpu; expected \(n,\) int64 on cpu"):
        loader().batches(IDS.int())
    with pytest.raises(ValueError, match="batch_size is 0 but must be at least 1"):
        loader().batches(IDS, batch_size=0)
    with pytest.raises(ValueError, match=r"augment is \(\) but a batch needs at least one view"):
        loader(augment=())
    with pytest.raises(ValueError, match="augment names 2 views but num_views is 3"):
        loader(augment=(None, None), num_views=3)
