"""erase_peaks against a plain transcription that visits image after image, and the laws of its card."""

import pytest
import torch
import torch.nn.functional as F
from plain_erasing import peaks_of, plain
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.erase_peaks import Masking, draws_of, erase_peaks
from fastlnl.philox import uniform

pytestmark = pytest.mark.usefixtures("poison")


def problem(batch, features=(8, 4, 4), images=(3, 32, 32), classes=10, draws=10):
    return (
        torch.randn(batch, *features),
        torch.randn(batch, *images),
        torch.randn(batch, classes).mul(2).softmax(1),
        torch.rand(batch),
        torch.rand(batch, draws, dtype=torch.float64),
    )


def check(device, given, masking, black=None):
    peaks, boxes, high, low, target, low_target = plain(*given, masking, black)
    there = None if black is None else black.to(device)
    ours = erase_peaks(*(x.to(device) for x in given), masking, black=there)
    assert ours.peaks.tolist() == peaks.tolist()
    assert ours.boxes.tolist() == boxes.tolist()
    for erased, image in ((ours.high, high), (ours.low, low)):
        assert erased.dtype == image.dtype
        if image.dtype == torch.float32:
            assert same_bits(erased, image)
        torch.testing.assert_close(erased.cpu(), image)  # interpreted Triton cuts off where bfloat16 rounds
    torch.testing.assert_close(ours.target.cpu().double(), target, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(ours.low_target.cpu().double(), low_target, rtol=1e-6, atol=1e-7)
    return ours


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"mask_anchor": "center", "mask_fill": "mean", "target_floor": "clamp"},
        {"separate_low_box": True, "area_factor": 1.0, "mask_ratio": (0.06, 0.13, 0.1), "target_floor": "clip"},
        {"quantise_attention": False, "mask_fill": "black", "mask_ratio": (0.3, 0.9, 0.1), "mask_anchor": "center"},
    ],
)
def test_as_the_loop_over_images(options, device):
    masking = Masking(**options)
    black = torch.tensor([-2.0, -1.5, -1.0]) if masking.mask_fill == "black" else None
    check(device, problem(6), masking, black)


@pytest.mark.parametrize(
    ("features", "images", "classes"),
    [
        ((5, 7, 7), (3, 56, 56), 3),
        ((3, 1, 1), (1, 6, 4), 1),
        ((2, 3, 5), (2, 9, 11), 1030),
        ((40, 4, 2), (3, 16, 8), 2),
    ],
)
def test_other_shapes(features, images, classes, device):
    """Odd sizes, one cell, a map that is not square, targets wider than a block; one class keeps its mass."""
    masking = Masking(mask_ratio=(0.1, 0.4, 0.1))
    given = problem(3, features, images, classes, draws_of(images[0]))
    if classes == 1:
        ours = erase_peaks(*(x.to(device) for x in given), masking)
        assert ours.target.tolist() == given[2].tolist()
    else:
        check(device, given, masking)


def test_an_image_of_imagenet_size():
    """7 x 7 -> 224 x 224 on the backends that do not interpret."""
    given = problem(4, (16, 7, 7), (3, 224, 224), 14, 8)
    for name in ("reference", "numba"):
        with use_backend(name):
            check("cpu", given, Masking())


def test_planted_ties_and_flat_maps(device):
    """Two equal highest and two equal lowest cells: the first in row-major order; a flat map: the first pixel."""
    features = torch.ones(5, 1, 4, 4)
    features[0, 0, 1, 2] = features[0, 0, 3, 0] = 3.0
    features[0, 0, 2, 3] = features[0, 0, 2, 1] = 0.5
    features[2] = 0.0
    features[3] = torch.randint(1, 3, (1, 4, 4)).float()
    features[4] = -features[3]
    given = (features, *problem(5)[1:])
    ours = check(device, given, Masking())
    assert ours.peaks[1:3].tolist() == [[[0, 0], [0, 0]]] * 2
    assert torch.equal(ours.peaks[3], ours.peaks[4])


def test_peaks_of_many_random_maps():
    """And what the authors' float32 would choose: the rounding of its interpolation decides between equal pixels."""
    features = torch.randn(300, 4, 4, 4)
    given = (features, torch.zeros(300, 1, 32, 32), *problem(300)[2:])
    found = {}
    for name in ("numba", "reference"):
        with use_backend(name):
            found[name] = erase_peaks(*given).peaks
    assert found["numba"].tolist() == [[list(p) for p in peaks_of(f, (32, 32))] for f in features]
    assert torch.equal(*found.values())
    rounded = torch.tensor([peaks_of(f, (32, 32), number=torch.float32) for f in features])
    assert (rounded[:, 1] == found["numba"][:, 1]).all(1).double().mean() > 0.99  # a floor apart in few maps
    exact = features.double().square().sum(1).float().double()
    exact = F.interpolate(exact[:, None], (32, 32), mode="bilinear")[:, 0]
    heights = [exact[torch.arange(300), at[:, 0, 0].long(), at[:, 0, 1].long()] for at in (rounded, found["numba"])]
    torch.testing.assert_close(*heights, rtol=1e-6, atol=0)


@pytest.mark.parametrize("quantise", [True, False])
@pytest.mark.parametrize("nan", [torch.nan, torch.inf])
def test_a_map_that_is_not_finite_is_masked_at_the_first_pixel(nan, quantise, device):
    given = [x.to(device) for x in problem(2)]
    given[0][0, 3, 1, 2] = nan
    ours = erase_peaks(*given, Masking(quantise_attention=quantise))
    assert ours.peaks[0].tolist() == [[0, 0], [0, 0]]
    assert ours.high.isfinite().all()
    assert ours.target.isfinite().all()


@pytest.mark.parametrize(
    ("ratio", "rho", "size"), [(0.05, 1.0, [5, 5]), (0.10, 1.25, [8, 6]), (0.02, 0.8, [3, 4]), (0.0, 1.0, [0, 0])]
)
def test_box_sizes_and_places(ratio, rho, size, device):
    """At all four corners, at the edges and inside, by either anchor."""
    cells = [(0, 0), (0, 3), (3, 0), (3, 3), (0, 1), (1, 3), (2, 2)]
    features = torch.rand(len(cells), 1, 4, 4)
    for b, (i, j) in enumerate(cells):
        features[b, 0, i, j] = 4.0
    given = [features, *problem(len(cells))[1:]]
    given[3], given[4][:, 1] = torch.ones(len(cells)), (rho - 0.8) / 0.45
    boxes = {}
    for anchor in ("corner", "center"):
        masking = Masking(mask_anchor=anchor, mask_ratio=(ratio, ratio, 0.0))
        boxes[anchor] = check(device, given, masking).boxes[:, 0]
        assert boxes[anchor][:, 2:].tolist() == [size] * len(cells)
        assert (boxes[anchor][:, :2] + boxes[anchor][:, 2:]).max() <= 32
        assert boxes[anchor].min() >= 0
    if ratio == 0.05:
        # The lower right corner cell peaks at pixel 28 = (3 + .5) 8: both anchors are moved; at 27 by corner alone.
        assert boxes["corner"][3].tolist() == [27, 27, 5, 5]
        assert boxes["center"][0].tolist() == boxes["corner"][0].tolist() == [0, 0, 5, 5]


@pytest.mark.parametrize(
    ("target", "ratio", "floor", "expected"),
    [
        ((0.7, 0.2, 0.1), 0.05, "none", (0.65, 0.225, 0.125)),
        ((0.7, 0.3), 0.05, "none", (0.65, 0.35)),
        ((0.2, 0.4, 0.4), 0.1, "none", (0.25, 0.3, 0.45)),
        ((0.7, 0.2, 0.1), 0.9, "clip", (0.0, 0.65 / 1.2, 0.55 / 1.2)),
        ((0.7, 0.2, 0.1), 0.9, "clamp", (1 / 3, 0.2 + 0.55 / 3, 0.1 + 0.55 / 3)),
    ],
)
def test_label_shift(target, ratio, floor, expected, device):
    given = problem(1, classes=len(target))
    given = [given[0], given[1], torch.tensor([target]), torch.ones(1), given[4]]
    masking = Masking(mask_ratio=(ratio, ratio, 0.0), target_floor=floor)
    before = given[2].clone()
    given = [x.to(device) for x in given]
    ours = erase_peaks(*given, masking)
    torch.testing.assert_close(ours.target.cpu(), torch.tensor([expected]), rtol=1e-6, atol=1e-7)
    assert same_bits(given[2], before)
    assert ours.target.data_ptr() != given[2].data_ptr()


def test_shift_beyond_the_highest_entry_of_a_hundred_classes(device):
    """max t = .03 < r = .1: negative without a floor, limited to .02 with "clamp"."""
    target = torch.full((1, 100), 0.97 / 99)
    target[0, 5] = 0.03
    given = [x.to(device) for x in (*problem(1)[:2], target, torch.ones(1), problem(1)[4])]
    for floor, top in (("none", -0.07), ("clamp", 0.01)):
        out = erase_peaks(*given, Masking(mask_ratio=(0.1, 0.1, 0.0), target_floor=floor)).target.cpu()
        assert abs(float(out[0, 5]) - top) < 1e-7
        assert abs(float(out.double().sum()) - 1) < 1e-5


def test_outside_the_box_nothing_changes_and_inside_channels_are_constant(device):
    given = [x.to(device) for x in problem(3)]
    ours = erase_peaks(*given, Masking(mask_ratio=(0.2, 0.2, 0.0)))
    for i, erased in enumerate((ours.high, ours.low)):
        for b, (top, left, tall, wide) in enumerate(ours.boxes[:, i].tolist()):
            inside = torch.zeros(32, 32, dtype=torch.bool, device=device)
            inside[top : top + tall, left : left + wide] = True
            assert same_bits(erased[b][:, ~inside], given[1][b][:, ~inside])
            box = erased[b][:, inside]
            assert (box == box[:, :1]).all()
            assert ((box >= 0) & (box < 1)).all()


def test_the_same_draws_in_any_batch_order(device):
    """Draws keyed by id: a permuted batch gives the permuted results."""
    given = list(problem(5))[:4]
    index, order = torch.tensor([7, 3, 100, 4, 0]), torch.tensor([4, 2, 0, 3, 1])
    results = []
    for keys in (torch.arange(5), order):
        draws = uniform(1, "erase", index[keys], draws=8, epoch=2, view=1)
        results.append(erase_peaks(*(x[keys].to(device) for x in given), draws.to(device)))
    for first, second in zip(*results, strict=True):
        assert torch.equal(first[order.to(device)], second)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype, device):
    given = list(problem(4))
    given[0], given[1] = given[0].to(dtype), given[1].to(dtype)
    check(device, given, Masking())


def test_memory_formats_and_strides(device):
    """Channels last in and out; a map that is a slice of a larger one; one that cannot be read flat."""
    given = [x.to(device) for x in problem(3)]
    ours = erase_peaks(*given)
    last = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in given]
    theirs = erase_peaks(*last)
    assert theirs.high.is_contiguous(memory_format=torch.channels_last)
    wide = torch.zeros(3, 8, 4, 6, device=device)
    wide[..., 1:5] = given[0]
    sliced = erase_peaks(wide[..., 1:5], *given[1:])
    for a, b, c in zip(ours, theirs, sliced, strict=True):
        assert torch.equal(a, b)
        assert torch.equal(a, c)


def test_empty_batch(device):
    ours = erase_peaks(*(x.to(device) for x in problem(0)))
    assert (ours.high.shape, ours.boxes.shape, ours.target.shape) == ((0, 3, 32, 32), (0, 2, 4), (0, 10))


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    torch.set_num_threads(threads)
    given = problem(64, (64, 4, 4))
    with use_backend("numba"):
        check("cpu", given, Masking())


def test_refused_at_the_door():
    given = problem(2)
    with pytest.raises(ShapeError, match=r"images is \(2, 10\) float32; expected \(B, ch, H, W\)"):
        erase_peaks(given[0], given[2], *given[2:])
    with pytest.raises(ShapeError, match=r"features is \(1, 8, 4, 4\) float32; expected a map \(2, Cf, h, w\)"):
        erase_peaks(given[0][:1], *given[1:])
    with pytest.raises(ShapeError, match=r"draws is \(2, 7\) float64; expected \(2, 8\) float64"):
        erase_peaks(*given[:4], given[4][:, :7])
    with pytest.raises(ShapeError, match=r"expected \(2, 10\) float64"):
        erase_peaks(*given[:4], given[4][:, :9], Masking(separate_low_box=True))
    with pytest.raises(ShapeError, match="black is the value"):
        erase_peaks(*given, Masking(mask_fill="black"))
    with pytest.raises(ValueError, match="mask_anchor is 'middle'; expected one of corner, center"):
        erase_peaks(*given, Masking(mask_anchor="middle"))
    with pytest.raises(ValueError, match=r"mask_ratio is \(0.5, 0.1, 0.0\)"):
        erase_peaks(*given, Masking(mask_ratio=(0.5, 0.1, 0.0)))
