"""Dropout of features, Gaussian noise and word dropout: what the words decide, and what stays."""

import pytest
import torch
from scipy import stats

from fastlnl.augment import dropout, gaussian_noise, word_dropout
from fastlnl.ops.random_words import random_words

LOWEST, HIGHEST = -(2**31), 2**31 - 1


def draws_for(batch, elements):
    return random_words(torch.arange(batch), elements, seed=0, stream="x")


def assert_share(hits, probability):
    """Within four standard errors of a binomial share."""
    error = 4 * (probability * (1 - probability) / hits.numel()) ** 0.5
    assert abs(hits.double().mean().item() - probability) <= error


@pytest.mark.parametrize("rate", [0.0, 0.1, 0.5, 0.95])
def test_dropout_keeps_the_mean(rate):
    x = torch.rand(200, 3, 50) + 1
    made = dropout(x, draws_for(200, 150), rate)
    kept = made != 0
    assert_share(~kept, rate)
    assert torch.equal(made[kept], (x * (1 / (1 - rate)))[kept])


def test_the_ends_of_the_words():
    ends = torch.tensor([[LOWEST, HIGHEST, -1, 0]], dtype=torch.int32)
    ones = torch.ones(1, 4)
    assert dropout(ones, ends, 0.0).tolist() == [[1, 1, 1, 1]]
    assert dropout(ones, ends, 0.5).tolist() == [[0, 2, 0, 2]]
    assert word_dropout(torch.tensor([[5, 6, 0, 7]]), ends, 0.5).tolist() == [[1, 6, 0, 7]]
    assert word_dropout(torch.tensor([[5, 6, 0, 7]]), ends, 0.0).tolist() == [[5, 6, 0, 7]]
    assert gaussian_noise(ones, ends, 1.0).isfinite().all()


@pytest.mark.parametrize("elements", [1, 7, 64])
def test_gaussian_noise_is_normal_and_independent_of_x(elements):
    x = torch.randn(3000, elements)
    draws = draws_for(3000, elements + elements % 2)
    added = gaussian_noise(x, draws, 0.5) - x
    assert stats.kstest(added.flatten().double().numpy() / 0.5, "norm").pvalue > 1e-3
    assert torch.equal(gaussian_noise(torch.zeros_like(x), draws, 0.5), gaussian_noise(x * 0, draws, 0.5))
    assert torch.equal(gaussian_noise(x, draws, 0.0), x)
    columns = torch.corrcoef(added.T).reshape(elements, elements) - torch.eye(elements)
    assert columns.abs().max() < 5 / 3000**0.5


def test_word_dropout_leaves_padding_and_its_share():
    tokens = torch.randint(2, 100, (400, 40))
    tokens[:, 30:] = 0
    made = word_dropout(tokens, draws_for(400, 40), 0.2)
    assert not made[:, 30:].any()
    assert_share(made[:, :30] == 1, 0.2)
    changed = made != tokens
    assert (made[changed] == 1).all()


def test_inputs_stay():
    x, tokens, draws = torch.randn(4, 6), torch.full((4, 6), 9), draws_for(4, 6)
    before = x.clone(), tokens.clone(), draws.clone()
    dropout(x, draws, 0.5), gaussian_noise(x, draws, 0.5), word_dropout(tokens, draws, 0.5)
    assert all(torch.equal(a, b) for a, b in zip((x, tokens, draws), before, strict=True))
