"""The weight rules of the credibility history against golden numbers, laws and plain lists."""

import itertools
import math

import pytest
import torch

from fastlnl.state.credibility_history import WEIGHT_RULES, CredibilityHistory

ALL = torch.tensor(True)


def logit(g):
    return math.log(g / (1 - g))


def odds_weight(posteriors, device="cpu", **options):
    """The weight after these posteriors, oldest first."""
    history = CredibilityHistory(1, device=torch.device(device), **{"dtype": torch.float32, **options})
    for g in posteriors:
        history.push(torch.tensor([logit(g)], device=device), ALL.to(device))
    return history.weight(torch.zeros(1, device=device)).item()


def test_golden_weight(device):
    assert abs(odds_weight([0.2, 0.5, 0.8, 0.9], device) - 0.669924935) < 1e-6
    assert abs(odds_weight([0.2, 0.5, 0.8, 0.9], device, dtype=torch.float16) - 0.669924935) < 1e-3


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.float16, 1e-3)])
def test_one_epoch_gives_the_posterior_back(dtype, tolerance):
    for g in (0.0025, 0.1, 0.5, 0.77, 0.9975):
        assert abs(odds_weight([0.5, 0.9, g], length=1, dtype=dtype) - g) < tolerance


def test_laws_of_the_log_odds_rule():
    for decay in (0.0, 0.5, 1.0):
        assert abs(odds_weight([0.7] * 4, decay=decay) - 0.7) < 1e-6
    assert abs(odds_weight([0.1, 0.9, 0.3], decay=0.0) - 0.3) < 1e-6
    base = [0.3, 0.5, 0.6]
    for j in range(3):
        assert odds_weight([g + 0.2 * (i == j) for i, g in enumerate(base)]) > odds_weight(base)
    history = CredibilityHistory(2)
    history.push(torch.tensor([1e3, -1e3]), ALL)
    low, high = 1 / (1 + math.exp(6)), 1 / (1 + math.exp(-6))
    torch.testing.assert_close(history.weight(torch.zeros(2)), torch.tensor([high, low]))  # in (0, 1)
    history = CredibilityHistory(2, limit=20.0)
    history.push(torch.tensor([12.0, 30.0]), ALL)
    assert history.ring[0].tolist() == [12.0, 20.0]


def by_list(rule, entries, decay, fluctuation):
    """The rules of the table on one sample's entries, oldest first."""
    newest_first, count = entries[::-1], len(entries)
    mean = sum(entries) / count
    if rule == "logodds":
        powers = [decay**j for j in range(count)]
        odds = sum(a * h for a, h in zip(powers, newest_first, strict=True)) / sum(powers)
        return 1 / (1 + math.exp(-odds))
    if rule == "mean":
        return mean
    if rule == "mean_minus_std":
        return mean * math.exp(-fluctuation * math.sqrt(sum((c - mean) ** 2 for c in entries) / count))
    forgotten = any(before > 0 and after == 0 for before, after in itertools.pairwise(entries))
    return (sum(entries) + (not forgotten)) / (count + 1)


@pytest.mark.parametrize("rule", ["logodds", "mean", "mean_minus_std", "streak"])
def test_25_epochs_of_a_ring_of_ten_equal_lists(device, rule):
    samples, length = 7, 10
    history = CredibilityHistory(samples, rule, length=length, decay=0.8, dtype=torch.float32, device=device)
    history.ring.fill_(torch.inf)  # rows that are not written yet must not be read
    generator = torch.Generator().manual_seed(0)
    kept = [[] for _ in range(samples)]
    for _ in range(25):
        entry = torch.rand(samples, generator=generator)
        if rule == "logodds":
            entry = 8 * entry - 4
        if rule == "streak":
            entry = torch.where(torch.rand(samples, generator=generator) < 0.15, 0.0, entry)
        history.push(entry.to(device), ALL.to(device))
        for entries, value in zip(kept, entry.tolist(), strict=True):
            entries.append(value)
        expected = [by_list(rule, entries[-length:], 0.8, 2.0) for entries in kept]
        weight = history.weight(torch.zeros(samples, device=device))
        torch.testing.assert_close(weight.cpu(), torch.tensor(expected), rtol=0, atol=2e-6)


def test_rules_without_a_ring():
    g = torch.tensor([0.2, 0.9])
    for rule, expected in (("posterior", g), ("none", torch.ones(2))):
        history = CredibilityHistory(2, rule)
        history.push(torch.zeros(2), ALL)
        assert history.ring is None
        assert torch.equal(history.weight(g), expected)


def test_errors_say_what_to_do():
    with pytest.raises(ValueError, match=f"weight_rule is 'median'; expected one of {', '.join(WEIGHT_RULES)}"):
        CredibilityHistory(2, "median")
    with pytest.raises(ValueError, match="history_length is 0"):
        CredibilityHistory(2, length=0)
    with pytest.raises(ValueError, match=r"history_decay is 1\.5"):
        CredibilityHistory(2, decay=1.5)
