"""random_operations: every backend against the reference bit for bit, the reference against checksums, and its laws.

`tests/test_augment_strong.py` compares each operation with Pillow or with its formula.
"""

import zlib

import pytest
import torch

from fastlnl.augment import cut_square
from fastlnl.backend import current_backend, use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.random_operations import GREY, LEVELS, OPERATIONS, random_operations
from fastlnl.philox import uniform

pytestmark = pytest.mark.usefixtures("poison")
TURNS = [(name, 1, 0.9) for name in OPERATIONS[:4]]
TURNS += [(name, level, 0.9) for name in OPERATIONS[4:11] for level in range(1, LEVELS)]
TURNS += [(name, level, sign) for name in OPERATIONS[11:] for level in range(1, LEVELS) for sign in (0.1, 0.9)]


def byte_images(*shape):
    """Noise over part of the range, another part for each image and channel; the last image is constant."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(256, shape, generator=random)
    low = torch.randint(100, (*shape[:2], 1, 1), generator=random)
    high = torch.randint(120, 256, (*shape[:2], 1, 1), generator=random)
    images = low + images * (high - low) // 255
    images[-1:] = 77
    return images.float()


def draws_of(first, second=None):
    """(len(first), 10): what these turns draw; no second one: not applied."""
    rows = []
    for i, turn in enumerate(first):
        row = []
        for name, level, sign in (turn, second[i] if second else (*TURNS[0][:2], 0.9)):
            row += [(OPERATIONS.index(name) + 0.5) / 16, (level - 0.5) / 9, 0.2, sign]
        rows.append([*row, (i % 7) / 7, (i % 5) / 5])
    return torch.tensor(rows, dtype=torch.float64)


def expected_of(*given, **options):
    with use_backend("reference"):
        return random_operations(*given, **options)


def same_on(device, images, draws, table=None, **options):
    expected = expected_of(images, draws, table, **options)
    table = None if table is None else table.to(device)
    made = random_operations(images.to(device), draws.to(device), table, **options)
    assert torch.equal(made.cpu(), expected)
    return made


def interpreted(device):
    return current_backend() == "triton" and device.type == "cpu"


@pytest.mark.parametrize("side", [8, 28, 32])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_operation_at_every_level_and_sign(side, channels, device):
    if interpreted(device):  # a program takes milliseconds
        turns = TURNS if (side, channels) == (8, 3) else TURNS[::11]
        half = len(turns) // 2
        same_on(device, byte_images(half, channels, side, side), draws_of(turns[:half], turns[half : 2 * half]))
        return
    images = byte_images(len(TURNS), channels, side, side)
    one = same_on(device, images, draws_of(TURNS)).cpu()
    assert set(one.unique().tolist()) <= set(range(256))
    changed = (one != images).flatten(1).any(1).tolist()
    names = {name for (name, _, _), different in zip(TURNS, changed, strict=True) if different}
    still = {"identity"} | ({"color"} if channels == 1 else set()) | ({"equalize"} if side == 8 else set())
    assert names == set(OPERATIONS) - still  # 64 pixels are too few to equalize
    same_on(device, images, draws_of(TURNS, TURNS[5:] + TURNS[:5]))
    same_on(device, images, draws_of(TURNS, TURNS[80:] + TURNS[:80]))


@pytest.mark.parametrize(
    ("shape", "checksum"),
    [
        ((9, 1, 8, 8), 0xC8A73113),
        ((9, 3, 8, 8), 0x34E6D131),
        ((6, 1, 28, 28), 0x8AD6E95C),
        ((6, 3, 32, 32), 0xA0CC3FF8),
        ((4, 3, 13, 21), 0x4DE8C716),
    ],
    ids=str,
)
def test_bits_stay_as_they_are(shape, checksum, device):
    draws = uniform(3, "strong", torch.arange(shape[0]), 10, epoch=2)
    draws[:, [2, 6]] /= 2  # both rounds are applied
    made = random_operations(byte_images(*shape).to(device), draws.to(device))
    assert zlib.crc32(made.cpu().byte().numpy().tobytes()) == checksum


@pytest.mark.parametrize("out_last", [False, True])
@pytest.mark.parametrize("images_last", [False, True])
@pytest.mark.parametrize("shape", [(5, 3, 9, 12), (4, 1, 8, 8), (1, 3, 33, 35), (0, 3, 8, 8)], ids=str)
def test_square_floats_and_memory_formats(shape, images_last, out_last, device):
    images, draws = byte_images(*shape), uniform(1, "strong", torch.arange(shape[0]), 12)
    table = torch.randn(shape[1], 256, generator=torch.Generator().manual_seed(1))
    plain = expected_of(images, draws)
    cut = cut_square(plain, draws[:, 8:10], 5, float(GREY)).long()
    expected = torch.stack([table[c][cut[:, c]] for c in range(shape[1])], 1)
    given = images.contiguous(memory_format=torch.channels_last) if images_last else images
    made = same_on(device, given, draws, table, cutout=5, channels_last=out_last)
    assert torch.equal(made.cpu(), expected)
    assert made.is_contiguous(memory_format=torch.channels_last if out_last else torch.contiguous_format)


@pytest.mark.parametrize("shape", [(1, 1), (2, 5), (3, 3), (1, 9), (40, 27)], ids=str)
def test_odd_sizes(shape, device):
    turns = TURNS[:: 20 if interpreted(device) else 3]
    same_on(device, byte_images(len(turns), 3, *shape), draws_of(turns, turns[3:] + turns[:3]), cutout=2)


def test_a_large_image_has_an_exact_mean(device):
    """300 x 300 bright pixels sum to more than 2^24."""
    images = 255 - byte_images(1, 1, 300, 300).fmod(3)
    images[..., :2] = 0
    same_on(device, images, draws_of([("contrast", 3, 0.9)]))


def test_a_sample_does_not_see_its_batch_and_inputs_stay(device):
    images, draws = byte_images(12, 3, 8, 8).to(device), uniform(1, "strong", torch.arange(12), 10).to(device)
    before = images.clone(), draws.clone()
    whole = random_operations(images, draws, cutout=2)
    part = torch.tensor([7, 3, 7, 0], device=device)
    assert torch.equal(random_operations(images[part], draws[part], cutout=2), whole[part])
    assert torch.equal(random_operations(images[5:6], draws[5:6], cutout=2), whole[5:6])
    assert torch.equal(images, before[0])
    assert torch.equal(draws, before[1])


def test_strided_images_and_float_draws(device):
    images, draws = byte_images(6, 3, 8, 16)[..., ::2], draws_of(TURNS[40:46], TURNS[-6:])
    made = random_operations(images.to(device), draws.float().to(device))
    assert torch.equal(made.cpu(), expected_of(images.contiguous(), draws))


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.ops.random_operations.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    count = SERIAL_BELOW // 3072 + 2
    images, draws = byte_images(count, 3, 32, 32), uniform(1, "strong", torch.arange(count), 10)
    with use_backend("numba"):
        assert torch.equal(random_operations(images, draws, cutout=5), expected_of(images, draws, cutout=5))


def test_refused_at_the_door():
    images, draws, table = byte_images(2, 3, 8, 8), torch.zeros(2, 10), torch.zeros(3, 256)

    def refused(error, text, *given, **options):
        with pytest.raises(error, match=text):
            random_operations(*given, **options)

    refused(ShapeError, r"images has shape \(2, 2, 8, 8\).*expected \(B, 1 or 3, H, W\)", images[:, :2], draws)
    refused(ShapeError, r"draws \(2, 9\); expected .* \(B, 10 or more\)", images, draws[:, :9], cutout=1)
    refused(ShapeError, r"images is \(2, 3, 8, 8\) uint8; expected float32", images.byte(), draws)
    refused(ShapeError, r"draws is \(1, 10\) float32; expected a row of floats for each of 2", images, draws[:1])
    refused(ShapeError, r"draws is \(2, 10\) int64; expected a row of floats", images, draws.long())
    refused(ShapeError, r"table is \(1, 256\) float32; expected \(3, 256\) float32", images, draws, table[:1])
    refused(ValueError, r"cutout is -1 but must be at least 0", images, draws, cutout=-1)
