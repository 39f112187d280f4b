"""mix_views against joining, permuting and interpolating, and its laws."""

import pytest
import torch
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.mix_views import mix_views

pytestmark = pytest.mark.usefixtures("poison")


def truth(views, targets, partner, coefficient):
    """Concatenate, permute, interpolate, in float64."""
    x, t = torch.cat([v.double() for v in views]), torch.cat([t.double() for t in targets])
    a = torch.as_tensor(coefficient).double().reshape(-1)
    wide = a.reshape(-1, *[1] * (x.dim() - 1))
    return wide * x + (1 - wide) * x[partner], a[:, None] * t + (1 - a[:, None]) * t[partner]


def problem(batches, sample=(3, 4, 5), classes=7, dtype=torch.float32):
    views = [torch.randn(b, *sample).to(dtype) for b in batches]
    targets = [torch.randn(b, classes).softmax(1) for b in batches]
    return views, targets, torch.randperm(sum(batches))


def mix_on(device, views, targets, partner, coefficient):
    there = coefficient.to(device) if isinstance(coefficient, torch.Tensor) else coefficient
    return mix_views([x.to(device) for x in views], [t.to(device) for t in targets], partner.to(device), there)


@pytest.mark.parametrize("each", [False, True])
@pytest.mark.parametrize(
    ("batches", "sample", "classes"),
    [((1,), (1,), 1), ((2, 2), (3, 4, 5), 10), ((3, 3, 1, 1), (16,), 16), ((1, 0, 2), (33,), 100)],
)
def test_definition(batches, sample, classes, each, device):
    views, targets, partner = problem(batches, sample, classes)
    coefficient = torch.rand(sum(batches)) if each else torch.tensor(0.7)
    images, target = mix_on(device, views, targets, partner, coefficient)
    x, t = truth(views, targets, partner, coefficient)
    torch.testing.assert_close(images.cpu().double(), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.cpu().double(), t, rtol=1e-6, atol=1e-6)


def test_twelve_views_of_two_halves_and_shared_targets(device):
    """SANM: six views of each half, four of them with the target, two with the one that lost mass."""
    x, u = ([torch.randn(b, 3, 2, 2) for _ in range(6)] for b in (1, 2))
    targets = []
    for b in (1, 2):
        t, lost = torch.rand(b, 5).softmax(1), torch.rand(b, 5).softmax(1)
        targets += [t, t, t, t, lost, lost]
    partner = torch.randperm(18)
    images, target = mix_on(device, x + u, targets, partner, 0.6)
    expected, t = truth(x + u, targets, partner, 0.6)
    torch.testing.assert_close(images.cpu().double(), expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.cpu().double(), t, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.sum(1).cpu(), torch.ones(18))


def test_pieces_of_a_row(device):
    """3,072 elements end in the third piece of 1,024, 2,100 inside it; targets wider than one piece."""
    for size, classes in ((3072, 3), (2100, 1030)):
        views, targets, partner = problem((1, 1), (size,), classes)
        images, target = mix_on(device, views, targets, partner, torch.tensor(0.25))
        x, t = truth(views, targets, partner, 0.25)
        torch.testing.assert_close(images.cpu().double(), x, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(target.cpu().double(), t, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images(dtype, device):
    views, targets, partner = problem((2, 3), dtype=dtype)
    images, target = mix_on(device, views, targets, partner, torch.tensor(0.7))
    x, _ = truth(views, targets, partner, torch.tensor(0.7))
    assert (images.dtype, target.dtype) == (dtype, torch.float32)
    torch.testing.assert_close(images.cpu(), x.to(dtype))


@pytest.mark.parametrize("first", [torch.contiguous_format, torch.channels_last])
def test_memory_format_of_the_first_view_and_any_of_the_others(first, device):
    views, targets, partner = problem((2, 2), (3, 4, 5))
    expected, _ = truth(views, targets, partner, 0.4)
    views = [views[0].contiguous(memory_format=first), views[1].contiguous(memory_format=torch.channels_last)]
    images, _ = mix_on(device, views, targets, partner, 0.4)
    assert images.is_contiguous(memory_format=first)
    torch.testing.assert_close(images.cpu().double(), expected, rtol=1e-6, atol=1e-6)


def test_one_returns_the_rows_and_zero_their_partners(device):
    views, targets, partner = problem((2, 3))
    images, target = mix_on(device, views, targets, partner, 1.0)
    assert same_bits(images, torch.cat(views))
    assert same_bits(target, torch.cat(targets))
    images, target = mix_on(device, views, targets, partner, torch.zeros(5))
    assert torch.equal(images.cpu(), torch.cat(views)[partner])
    assert torch.equal(target.cpu(), torch.cat(targets)[partner])


def test_partners_may_repeat_and_one_out_of_range_is_the_row_itself(device):
    views, targets, _ = problem((2, 2))
    partner, whole = torch.tensor([3, 3, -1, 4]), torch.tensor([3, 3, 2, 3])
    images, target = mix_on(device, views, targets, partner, 0.5)
    x, t = truth(views, targets, whole, 0.5)
    torch.testing.assert_close(images.cpu().double(), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.cpu().double(), t, rtol=1e-6, atol=1e-6)


def test_no_rows_and_inputs_untouched(device):
    images, target = mix_on(device, *problem((0, 0)), 0.5)
    assert (images.shape, target.shape) == ((0, 3, 4, 5), (0, 7))
    given = [x.to(device) for x in problem((2,))[0]]
    before = given[0].clone()
    mix_views(given, [torch.ones(2, 1, device=device)], torch.tensor([1, 0], device=device), 0.3)
    assert same_bits(given[0], before)


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    torch.set_num_threads(threads)
    views, targets, partner = problem((40, 40, 30), (3, 32, 32), 10)
    with use_backend("numba"):
        images, target = mix_views(views, targets, partner, torch.tensor(0.8))
    x, t = truth(views, targets, partner, torch.tensor(0.8))
    torch.testing.assert_close(images.double(), x, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(target.double(), t, rtol=1e-6, atol=1e-6)


def test_refused_at_the_door():
    views, targets, partner = problem((2, 2))
    with pytest.raises(ShapeError, match="2 views came with 1 targets"):
        mix_views(views, targets[:1], partner, 0.5)
    with pytest.raises(ShapeError, match=r"a view is \(2, 3, 4\) float32 but the first is \(2, 3, 4, 5\)"):
        mix_views([views[0], views[1][..., 0]], targets, partner, 0.5)
    with pytest.raises(ShapeError, match=r"a target is \(1, 7\) float32; expected \(2, 7\)"):
        mix_views(views, [targets[0], targets[1][:1]], partner, 0.5)
    with pytest.raises(ShapeError, match=r"partner is \(3,\) int64; expected \(4,\)"):
        mix_views(views, targets, partner[:3], 0.5)
    with pytest.raises(ShapeError, match=r"coefficient is \(2,\) float32; expected \(\) or \(4,\)"):
        mix_views(views, targets, partner, torch.rand(2))
    with pytest.raises(ShapeError, match=r"a view is \(2, 3\) uint8; expected \(B, ...\) of a floating type"):
        mix_views([torch.zeros(2, 3, dtype=torch.uint8)], targets[:1], partner[:2], 0.5)
