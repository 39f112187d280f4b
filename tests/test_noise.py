"""Noise generators: counts, laws, and the promise that labels depend on (seed, id)."""

import math

import pytest
import torch
from scipy import stats
from torch import Tensor

from fastlnl.errors import LabelError
from fastlnl.noise import asymmetric, blocks5, next_class, pairs, similar_digits, symmetric

COUNTS = ["exact", "exact_per_class", "bernoulli"]
RATES = [0.2, 0.45, 0.8]


def labels(num_samples: int, num_classes: int) -> Tensor:
    """Unbalanced: class 0 is about twice as frequent as the others."""
    generator = torch.Generator().manual_seed(1)
    return torch.randint(-1, num_classes, (num_samples,), generator=generator).clamp(min=0)


def assert_share(hits: Tensor, probability: float) -> None:
    """Within four standard errors of a binomial share."""
    error = 4 * math.sqrt(probability * (1 - probability) / len(hits))
    assert abs(hits.double().mean().item() - probability) <= error


# --- how many labels are drawn anew ---


@pytest.mark.parametrize("rate", [*RATES, 0.29])
@pytest.mark.parametrize("num_samples", [100, 1001])
def test_exact_counts(num_samples, rate):
    label = labels(num_samples, 10)
    wrong = symmetric(label, 10, rate, seed=0, include_own=False, count="exact") != label
    assert wrong.sum() == math.floor(round(rate * num_samples, 6))


@pytest.mark.parametrize("rate", RATES)
def test_exact_per_class_counts(rate):
    label = labels(1001, 10)
    wrong = symmetric(label, 10, rate, seed=0, include_own=False, count="exact_per_class") != label
    for c in range(10):
        members = label == c
        assert wrong[members].sum() == math.floor(round(rate * int(members.sum()), 6))


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize("num_classes", [2, 10, 100])
def test_wrong_share_of_symmetric_noise(num_classes, rate, count):
    label = labels(20_000, num_classes)
    exclusive = symmetric(label, num_classes, rate, seed=3, include_own=False, count=count)
    inclusive = symmetric(label, num_classes, rate, seed=3, include_own=True, count=count)
    if count == "bernoulli":
        assert_share(exclusive != label, rate)
    assert_share(inclusive != label, rate * (num_classes - 1) / num_classes)


# --- which labels they become ---


def test_inclusive_labels_are_uniform_over_all_classes():
    label = labels(50_000, 10)
    noisy = symmetric(label, 10, 1.0, seed=0)
    for c in range(10):
        assert stats.chisquare(noisy[label == c].bincount(minlength=10).numpy()).pvalue > 1e-4


def test_exclusive_labels_are_uniform_over_the_other_classes():
    label = labels(50_000, 10)
    noisy = symmetric(label, 10, 1.0, seed=0, include_own=False)
    for c in range(10):
        counts = noisy[label == c].bincount(minlength=10)
        assert counts[c] == 0  # rate 1 leaves no right label
        assert stats.chisquare(counts[torch.arange(10) != c].numpy()).pvalue > 1e-4


def test_counts_of_partial_noise_follow_the_transition_matrix():
    label, rate = labels(50_000, 10), 0.4
    noisy = symmetric(label, 10, rate, seed=0, count="bernoulli")
    for c in range(10):
        counts = noisy[label == c].bincount(minlength=10)
        expected = torch.full((10,), rate / 10, dtype=torch.float64)
        expected[c] += 1 - rate
        assert stats.chisquare(counts.numpy(), (expected * counts.sum()).numpy()).pvalue > 1e-4


def test_two_classes_swap():
    label = labels(100, 2)
    assert torch.equal(symmetric(label, 2, 1.0, seed=0, include_own=False), 1 - label)


def test_every_flip_starts_from_the_true_label():
    # ELR's published code lets cats that became dogs turn back; 40 % of the cats must stay dogs here.
    label = labels(10_000, 10)
    noisy = asymmetric(label, pairs(10), 0.4, seed=0)
    for source, target in enumerate(pairs(10)):
        given = noisy[label == source]
        flipped = 0 if source == target else 2 * len(given) // 5
        assert (given != source).sum() == flipped
        assert set(given.tolist()) <= {source, target}


def test_mappings():
    assert [c for c in range(10) if pairs(10)[c] == c] == [0, 1, 6, 7, 8]
    assert {c: t for c, t in enumerate(similar_digits(10)) if c != t} == {7: 1, 2: 7, 5: 6, 6: 5, 3: 8}
    assert next_class(3) == [1, 2, 0]
    assert blocks5(10) == [1, 2, 3, 4, 0, 6, 7, 8, 9, 5]
    assert sorted(blocks5(100)) == list(range(100))


@pytest.mark.parametrize("mapping", [next_class, blocks5])
def test_wrong_share_of_asymmetric_noise(mapping):
    label = labels(20_000, 100)
    noisy = asymmetric(label, mapping(100), 0.4, seed=0, count="bernoulli")
    assert_share(noisy != label, 0.4)
    wrong = noisy != label
    assert torch.equal(noisy[wrong], torch.tensor(mapping(100))[label[wrong]])


# --- what the labels depend on ---


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("own", [True, False])
def test_order_of_the_samples_does_not_matter(own, count):
    label, index = labels(500, 10), torch.arange(500) * 7
    order = torch.randperm(500, generator=torch.Generator().manual_seed(0))
    whole = symmetric(label, 10, 0.4, seed=5, include_own=own, count=count, index=index)
    assert torch.equal(symmetric(label[order], 10, 0.4, 5, own, count, index[order]), whole[order])


def test_bernoulli_labels_of_a_part_equal_those_of_the_whole():
    label, index = labels(500, 10), torch.arange(500)
    whole = symmetric(label, 10, 0.4, seed=5, count="bernoulli")
    for rank in range(3):
        part = slice(rank, None, 3)
        assert torch.equal(symmetric(label[part], 10, 0.4, 5, count="bernoulli", index=index[part]), whole[part])


@pytest.mark.parametrize("count", COUNTS)
def test_a_higher_rate_keeps_the_wrong_labels_of_a_lower_one(count):
    label = labels(500, 10)
    low, high = (symmetric(label, 10, rate, seed=0, include_own=False, count=count) for rate in (0.2, 0.5))
    wrong = low != label
    assert torch.equal(high[wrong], low[wrong])


def test_seeds_differ_and_repeat():
    label = labels(500, 10)
    first = symmetric(label, 10, 0.4, seed=0)
    assert torch.equal(first, symmetric(label, 10, 0.4, seed=0))
    assert not torch.equal(first, symmetric(label, 10, 0.4, seed=1))


def test_labels_stay_what_they_are_from_version_to_version():
    label = torch.arange(20) % 10
    inclusive = symmetric(label, 10, 0.5, seed=0)
    assert inclusive.tolist() == [7, 1, 2, 3, 4, 5, 6, 5, 8, 9, 0, 1, 1, 8, 9, 3, 9, 7, 2, 6]
    exclusive = symmetric(label, 10, 0.5, seed=0, include_own=False, count="bernoulli")
    assert exclusive.tolist() == [0, 1, 2, 3, 4, 5, 6, 5, 7, 9, 0, 1, 1, 8, 9, 2, 9, 7, 2, 5]


# --- edges ---


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("own", [True, False])
def test_rate_zero_changes_nothing(own, count):
    label = labels(500, 10)
    before = label.clone()
    noisy = symmetric(label, 10, 0.0, seed=0, include_own=own, count=count)
    assert torch.equal(noisy, label)
    symmetric(label, 10, 1.0, seed=0, include_own=own, count=count)
    assert torch.equal(label, before)  # and no rate modifies its input


@pytest.mark.parametrize("count", COUNTS)
def test_no_samples(count):
    empty = torch.zeros(0, dtype=torch.int64)
    assert symmetric(empty, 10, 0.4, seed=0, count=count).shape == (0,)
    assert asymmetric(empty, pairs(10), 0.4, seed=0, count=count).shape == (0,)


@pytest.mark.parametrize("count", COUNTS)
def test_an_absent_class_and_a_single_class(count):
    label = torch.full((50,), 9)
    noisy = symmetric(label, 10, 0.5, seed=0, include_own=False, count=count)
    assert (noisy[noisy != label] < 9).all()
    assert (noisy >= 0).all()
    assert torch.equal(symmetric(torch.zeros(5, dtype=torch.int64), 1, 1.0, seed=0, count=count), torch.zeros(5).long())


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("num_classes", [2, 3, 7, 1000])
def test_no_invalid_label(num_classes, count):
    label = labels(5000, num_classes)
    for own in (True, False):
        noisy = symmetric(label, num_classes, 1.0, seed=0, include_own=own, count=count)
        assert noisy.min() >= 0
        assert noisy.max() < num_classes


@pytest.mark.parametrize("rate", [-0.1, 1.1, 40, float("nan")])
def test_rate_outside_zero_to_one(rate):
    for noise in (lambda: symmetric(labels(9, 10), 10, rate, 0), lambda: asymmetric(labels(9, 10), pairs(10), rate, 0)):
        with pytest.raises(ValueError, match=r"rate is .*\[0, 1\]"):
            noise()


def test_errors_of_the_generators():
    label = labels(9, 10)
    with pytest.raises(ValueError, match="count is 'most', expected one of exact, exact_per_class, bernoulli"):
        symmetric(label, 10, 0.4, 0, count="most")
    with pytest.raises(LabelError, match=r"label has values in \[1, 10\] but there are 10 classes; are labels 1-based"):
        symmetric(torch.arange(1, 11), 10, 0.4, 0)
    with pytest.raises(ValueError, match="num_classes is 1"):
        symmetric(torch.zeros(3, dtype=torch.int64), 1, 0.4, 0, include_own=False)
    with pytest.raises(ValueError, match="mapping sends class 1 to 3"):
        asymmetric(torch.zeros(3, dtype=torch.int64), [0, 3], 0.4, 0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("count", COUNTS)
def test_same_labels_on_the_gpu(count):
    label = labels(1000, 10)
    assert torch.equal(
        symmetric(label.cuda(), 10, 0.4, 0, count=count).cpu(), symmetric(label, 10, 0.4, 0, count=count)
    )
    given = asymmetric(label.cuda(), pairs(10), 0.4, 0, count=count)
    assert torch.equal(given.cpu(), asymmetric(label, pairs(10), 0.4, 0, count=count))
