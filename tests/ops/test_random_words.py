"""random_words: the bits of fastlnl.philox.words on every backend."""

import pytest
import torch
from scipy import stats

from fastlnl.errors import ShapeError
from fastlnl.ops.random_words import random_words
from fastlnl.philox import words

pytestmark = pytest.mark.usefixtures("poison")
IDS = torch.tensor([0, 7, 7, 2**33 + 5, -1])
KEY = {"seed": 2**32 - 1, "stream": "high", "epoch": 2**31 + 3, "view": 2**16 - 1}  # the highest bits are set


@pytest.mark.parametrize("draws", [0, 1, 2, 3, 4, 30, 1031])
@pytest.mark.parametrize("key", [KEY, {"seed": 1, "stream": "zz", "epoch": 1, "view": 1}, {"seed": 0, "stream": "x"}])
def test_bits_of_philox(draws, key, device):
    made = random_words(IDS.to(device), draws, **key)
    assert made.dtype == torch.int32
    expected = words(key["seed"], key["stream"], IDS, draws, key.get("epoch", 0), key.get("view", 0))
    assert torch.equal(made.cpu().long() + 2**31, expected)


def test_a_row_does_not_see_its_batch(device):
    whole = random_words(torch.arange(20, device=device), 9, seed=3, stream="x")
    part = torch.tensor([11, 0, 11], device=device)
    assert torch.equal(random_words(part, 9, seed=3, stream="x"), whole[part])


def test_uniform_over_all_of_int32():
    made = random_words(torch.arange(20_000), 2, seed=0, stream="x")
    for column in made.T:
        assert stats.kstest((column.double() + 2**31).numpy() / 2**32, "uniform").pvalue > 1e-3


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.backend import use_backend
    from fastlnl.ops.random_words.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    index = torch.arange(SERIAL_BELOW // 1000 + 1)
    with use_backend("reference"):
        expected = random_words(index, 1000, seed=4, stream="x")
    with use_backend("numba"):
        assert torch.equal(random_words(index, 1000, seed=4, stream="x"), expected)


def test_no_ids(device):
    assert random_words(torch.zeros(0, dtype=torch.int64, device=device), 5, seed=0, stream="x").shape == (0, 5)


def test_refused_at_the_door():
    with pytest.raises(ShapeError, match=r"index is \(2,\) int32; expected \(B,\) int64"):
        random_words(IDS[:2].int(), 3, seed=0, stream="x")
    for bad in ({"seed": -1}, {"epoch": 2**32}, {"view": 2**16}):
        ((name, value),) = bad.items()
        with pytest.raises(ValueError, match=f"{name} is {value} but must be in"):
            random_words(IDS, 3, **({"seed": 0, "stream": "x"} | bad))
    with pytest.raises(ValueError, match="draws is 262144 but must be in"):
        random_words(IDS, 2**18, seed=0, stream="x")
