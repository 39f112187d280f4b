"""Philox: the published answers, and the promise that a draw depends on its counter alone."""

import pytest
import torch
from scipy import stats

from fastlnl.philox import MASK, box_muller, normal, permutation, philox4x32, uniform, unit_interval, words

# Known answers of Philox4x32-10 published with Random123: counter, key, output.
KNOWN = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((MASK,) * 4, (MASK, MASK), (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN)
def test_known_answers(counter, key, expected):
    assert tuple(philox4x32(torch.tensor(counter), key).tolist()) == expected


def test_leading_dimensions_are_independent_counters():
    counter = torch.tensor([row for row, _, _ in KNOWN])
    whole = philox4x32(counter.reshape(1, 3, 4), (1, 2))
    assert whole.shape == (1, 3, 4)
    for i, row in enumerate(counter):
        assert torch.equal(whole[0, i], philox4x32(row, (1, 2)))


def test_uniform_does_not_depend_on_the_batch():
    ids = torch.arange(1000)
    whole = uniform(7, "test", ids, draws=3, epoch=2, view=1)
    shuffled = torch.randperm(1000, generator=torch.Generator().manual_seed(0))[:100]
    assert torch.equal(uniform(7, "test", shuffled, draws=3, epoch=2, view=1), whole[shuffled])


def test_more_draws_extend_a_row():
    ids = torch.arange(10)
    assert torch.equal(uniform(7, "test", ids, draws=2), uniform(7, "test", ids, draws=5)[:, :2])


@pytest.mark.parametrize(
    "other",
    [{"seed": 8}, {"stream": "other"}, {"epoch": 1}, {"view": 1}, {"index": torch.arange(100) + 2**32}],
    ids=["seed", "stream", "epoch", "view", "high id bits"],
)
def test_every_part_of_the_counter_matters(other):
    first = {"seed": 7, "stream": "test", "index": torch.arange(100)}
    assert not (uniform(**first) == uniform(**(first | other))).any()


def test_uniform_is_uniform():
    draws = uniform(0, "test", torch.arange(100_000), draws=2)
    assert draws.dtype == torch.float64
    assert (draws >= 0).all()
    assert (draws < 1).all()
    for column in draws.T:
        assert stats.kstest(column.numpy(), "uniform").pvalue > 1e-3
    assert abs(torch.corrcoef(draws.T)[0, 1]) < 4 / 100_000**0.5


@pytest.mark.parametrize("index", [torch.arange(0), torch.arange(1)])
def test_smallest(index):
    assert uniform(0, "test", index, draws=3).shape == (len(index), 3)
    assert uniform(0, "test", index, draws=0).shape == (len(index), 0)


@pytest.mark.parametrize("bad", [{"seed": -1}, {"seed": 2**32}, {"epoch": -1}, {"view": 2**16}])
def test_a_number_that_does_not_fit_is_named(bad):
    (name, value), *_ = bad.items()
    with pytest.raises(ValueError, match=f"{name} is {value}"):
        uniform(**({"seed": 0, "stream": "test", "index": torch.arange(2)} | bad))


def test_permutation():
    order = permutation(3, "order", 500, epoch=4)
    assert torch.equal(order.sort().values, torch.arange(500))
    assert torch.equal(order, permutation(3, "order", 500, epoch=4))
    assert not torch.equal(order, permutation(3, "order", 500, epoch=5))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_same_bits_on_the_gpu():
    ids = torch.arange(1000)
    assert torch.equal(uniform(7, "test", ids.cuda(), draws=3).cpu(), uniform(7, "test", ids, draws=3))


def test_normal_numbers_are_normal():
    draws = normal(0, "test", torch.arange(50_000), draws=3)
    assert draws.shape == (50_000, 3)
    for column in draws.T:
        assert stats.kstest(column.numpy(), "norm").pvalue > 1e-3
    assert (torch.corrcoef(draws.T) - torch.eye(3)).abs().max() < 4 / 50_000**0.5
    assert torch.equal(normal(0, "test", torch.tensor([7, 7]), draws=3), draws[[7, 7]])


def test_words_are_what_uniform_is_made_of():
    pairs = words(7, "test", torch.arange(10), 6, epoch=2, view=1)
    assert torch.equal(unit_interval(pairs), uniform(7, "test", torch.arange(10), 3, epoch=2, view=1))
    assert torch.equal(words(7, "test", torch.arange(10), 5, epoch=2, view=1), pairs[:, :5])


def test_box_muller_at_its_ends():
    u = torch.tensor([[0.5 * 2**-32, 1.0, 0.25, 0.5]])
    torch.testing.assert_close(box_muller(u), torch.tensor([[0.0, 0.0, 6.7637, 0.0]]), rtol=0, atol=1e-4)
