"""Noise by name: what a specification means, and which presets fit a data set."""

import pytest
import torch

from fastlnl.data import Dataset
from fastlnl.noise import PRESETS, apply_noise, symmetric


def dataset(name: str = "cifar10", num_samples: int = 1000, num_classes: int = 10) -> Dataset:
    label = torch.randint(num_classes, (num_samples,), generator=torch.Generator().manual_seed(1))
    human = {"cifar10n_worst": label.roll(1)} if name == "cifar10" else {}
    return Dataset(
        name=name,
        train_images=torch.zeros(num_samples, 1, 1, 1, dtype=torch.uint8),
        train_label=label,
        test_images=torch.zeros(0, 1, 1, 1, dtype=torch.uint8),
        test_label=torch.zeros(0, dtype=torch.int64),
        num_classes=num_classes,
        class_names=tuple(str(c) for c in range(num_classes)),
        mean=(0.5,),
        std=(0.5,),
        human_labels=human,
    )


@pytest.mark.parametrize(
    ("spec", "mode", "count"),
    [
        ("symmetric:0.4", "symmetric/inclusive", "exact"),
        ("symmetric/inclusive:0.4:bernoulli", "symmetric/inclusive", "bernoulli"),
        ("symmetric/exclusive:0.4", "symmetric/exclusive", "bernoulli"),
        ("symmetric/exclusive:0.4:exact", "symmetric/exclusive", "exact"),
        ("asymmetric:0.4", "asymmetric/pairs", "exact_per_class"),
        ("asymmetric/next:0.4", "asymmetric/next", "bernoulli"),
        ("asymmetric/blocks5:0.4", "asymmetric/blocks5", "bernoulli"),
    ],
)
def test_specs(spec, mode, count):
    data = dataset()
    noisy = apply_noise(spec, data, seed=0)
    assert (noisy.mode, noisy.count, noisy.nominal_rate) == (mode, count, 0.4)
    wrong = (noisy.label != data.train_label).sum().item()
    assert 0 < wrong == round(noisy.realised_rate * 1000)
    assert noisy.counts.sum() == 1000
    assert noisy.counts.diagonal().sum() == 1000 - wrong
    assert torch.equal(noisy.counts.sum(1), data.train_label.bincount(minlength=10))
    assert torch.equal(noisy.counts.sum(0), noisy.label.bincount(minlength=10))
    assert str(noisy) == f"{mode}:0.4:{count}: {wrong / 10:.2f} % of 1,000 labels are wrong"


def test_rows_of_counts_are_true_classes():
    noisy = apply_noise("asymmetric/pairs:1.0", dataset(), seed=0)
    assert noisy.counts[9, 9] == 0
    assert noisy.counts[9, 1] > 0
    assert noisy.counts[1, 9] == 0


def test_none_and_human_labels():
    data = dataset()
    clean = apply_noise("none", data, seed=0)
    assert torch.equal(clean.label, data.train_label)
    assert (clean.mode, clean.nominal_rate, clean.realised_rate) == ("none", 0, 0)
    human = apply_noise("human/cifar10n_worst", data, seed=0)
    assert torch.equal(human.label, data.human_labels["cifar10n_worst"])
    share = (human.label != data.train_label).double().mean().item()
    assert human.nominal_rate == human.realised_rate == pytest.approx(share, abs=1e-12)
    human.label[0] = -1
    assert data.human_labels["cifar10n_worst"][0] >= 0


def test_given_labels_equal_the_plain_generator():
    data = dataset()
    assert torch.equal(apply_noise("symmetric:0.4", data, 7).label, symmetric(data.train_label, 10, 0.4, 7))


@pytest.mark.parametrize(
    ("name", "num_classes", "spec"),
    [
        ("digits", 10, "asymmetric/pairs:0.4"),
        ("digits", 10, "asymmetric:0.4"),
        ("cifar10", 10, "asymmetric/mnist:0.4"),
        ("other", 7, "asymmetric/blocks5:0.4"),
        ("digits", 10, "human/cifar10n_worst"),
        ("cifar10", 10, "human/cifar10n_best"),
        ("cifar10", 10, "uniform:0.4"),
    ],
)
def test_a_preset_that_does_not_fit_lists_what_fits(name, num_classes, spec):
    data = dataset(name, num_classes=num_classes)
    with pytest.raises(ValueError, match=f"does not fit {name}; what fits is none, symmetric/inclusive") as error:
        apply_noise(spec, data, seed=0)
    fitting = str(error.value).split("what fits is ")[1].split(", ")
    assert spec.split(":")[0] not in fitting
    for mode in fitting:
        apply_noise(f"{mode}:0.4" if mode in PRESETS else mode, data, seed=0)


@pytest.mark.parametrize(
    ("spec", "text"),
    [
        ("symmetric", "needs a rate"),
        ("symmetric:0.4:exact:1", "needs a rate and at most a count"),
        ("symmetric:forty", "has the rate 'forty'; write a number"),
        ("symmetric:1.5", r"rate is 1.5 but must be in \[0, 1\]"),
        ("symmetric:0.4:most", "count is 'most'"),
        ("none:0.4", "has a rate but these labels are fixed; write 'none'"),
        ("human/cifar10n_worst:0.4", "has a rate"),
    ],
)
def test_errors_of_specs(spec, text):
    with pytest.raises(ValueError, match=text):
        apply_noise(spec, dataset(), seed=0)
