"""Part-dependent noise against a plain transcription with the same draws, its laws, and its memory."""

import numpy as np
import pytest
import torch
from scipy import special, stats

from fastlnl.data import Dataset
from fastlnl.errors import LabelError, ShapeError
from fastlnl.noise import apply_noise, instance, parts
from fastlnl.philox import normal, uniform

MOMENTS = (0.5, 0.4, 0.3), (0.2, 0.3, 0.25)


def samples(num_samples=300, num_classes=4, shape=(3, 12, 11)):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (num_samples, *shape), generator=random, dtype=torch.uint8)
    return images, torch.randint(num_classes, (num_samples,), generator=random)


def plain(images, label, num_classes, rate, seed, moments=None, shared=False):
    """The recipe as it is written, with the whole (C, F, C) tensor, one sample after another, in float64."""
    x = images.double().numpy()
    if moments is not None:
        x = (x / 255 - np.reshape(moments[0], (-1, 1, 1))) / np.reshape(moments[1], (-1, 1, 1))
    x = x.reshape(len(images), -1)
    features = x.shape[1]
    index = torch.arange(num_classes * features)
    weights = normal(seed, "noise/parts", index, num_classes).numpy().reshape(num_classes, features, num_classes)
    draws = uniform(seed, "noise", torch.arange(len(label)), draws=2).numpy()
    low, high = stats.norm.cdf((0 - rate) / 0.1), stats.norm.cdf((1 - rate) / 0.1)
    given = []
    for i, y in enumerate(label.tolist()):
        q = rate + 0.1 * stats.norm.ppf(low + draws[i, 0] * (high - low))
        scores = x[i] @ weights[0 if shared else y]
        scores[y] = -np.inf
        probs = q * special.softmax(scores)
        probs[y] += 1 - q
        given.append(int(np.searchsorted(probs.cumsum(), draws[i, 1] * probs.sum(), side="right")))
    return torch.tensor(given)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("moments", [None, MOMENTS], ids=["raw", "standardised"])
@pytest.mark.parametrize("rate", [0.2, 0.45, 1.0])
def test_equals_the_recipe_given_the_same_draws(rate, moments, shared):
    images, label = samples()
    noisy = instance(images, label, 4, rate, 3, moments=moments, shared=shared)
    assert torch.equal(noisy, plain(images, label, 4, rate, 3, moments, shared))
    assert (noisy != label).any()


def test_weights_are_drawn_in_blocks_and_never_as_a_whole(monkeypatch):
    sizes = []

    def watched(*args, **options):
        made = normal(*args, **options)
        sizes.append(made.shape)
        return made

    monkeypatch.setattr(parts, "normal", watched)
    images, label = samples(40, 10, (3, 20, 20))
    instance(images, label, 10, 0.4, 0)
    assert max(rows * columns for rows, columns in sizes) == parts.FEATURES * 10
    assert sum(rows * columns for rows, columns in sizes) == 10 * 1200 * 10  # each weight once


@pytest.mark.parametrize("rate", [0.2, 0.4, 0.6])
def test_wrong_share_is_the_mean_of_the_truncated_normal(rate):
    images, label = samples(20_000, 10, (6,))
    wrong = (instance(images, label, 10, rate, 1) != label).double().mean().item()
    q = stats.truncnorm((0 - rate) / 0.1, (1 - rate) / 0.1, rate, 0.1).mean()
    assert abs(wrong - q) < 4 * (q * (1 - q) / 20_000) ** 0.5


def test_raw_pixels_leave_one_wrong_class_and_standardised_ones_more():
    """A hundred copies of each image: on raw pixels all wrong copies agree."""
    images, label = (x.repeat_interleave(100, 0) for x in samples(20, 10, (3, 16, 16)))
    kinds = {}
    for name, moments in (("raw", None), ("standardised", MOMENTS)):
        noisy = instance(images, label, 10, 0.5, 0, moments=moments)
        kinds[name] = [len(set(noisy[100 * i : 100 * i + 100].tolist()) - {int(label[100 * i])}) for i in range(20)]
    assert max(kinds["raw"]) == 1
    assert sum(kinds["standardised"]) > sum(kinds["raw"])


def test_order_and_parts_do_not_matter():
    images, label = samples()
    whole = instance(images, label, 4, 0.4, 5)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))[:120]
    assert torch.equal(instance(images[order], label[order], 4, 0.4, 5, index=order), whole[order])
    assert not torch.equal(instance(images, label, 4, 0.4, 6), whole)


def test_edges():
    images, label = samples(50, 4)
    assert torch.equal(instance(images, label, 4, 0.0, 0), label)
    assert instance(images[:0], label[:0], 4, 0.4, 0).shape == (0,)
    two = instance(images, label % 2, 2, 1.0, 0)
    assert set(two.tolist()) <= {0, 1}
    absent = instance(images, torch.full((50,), 3), 5, 0.9, 0)  # classes 0, 1, 2, 4 have no sample
    assert absent.min() >= 0
    assert absent.max() < 5
    black = instance(torch.zeros(500, 4), torch.zeros(500, dtype=torch.int64), 5, 0.8, 0)
    assert stats.chisquare(black[black > 0].bincount(minlength=5)[1:].numpy()).pvalue > 1e-4  # all scores equal
    huge = instance(torch.full((50, 4), 1e30), label, 4, 0.5, 0)
    assert huge.min() >= 0
    assert huge.max() < 4
    before = images.clone()
    instance(images, label, 4, 0.4, 0)
    assert torch.equal(images, before)


def data(images, label, name="cifar10"):
    return Dataset(name, images, label, images[:0], label[:0], 4, tuple("abcd"), *MOMENTS)


@pytest.mark.parametrize(
    ("spec", "mode", "options"),
    [
        ("instance:0.4", "instance/pdn", {}),
        ("instance/pdn:0.4", "instance/pdn", {}),
        ("instance/pdn_standardised:0.4", "instance/pdn_standardised", {"moments": MOMENTS}),
        ("instance/shared_w:0.4", "instance/shared_w", {"shared": True}),
    ],
)
def test_by_name(spec, mode, options):
    images, label = samples()
    noisy = apply_noise(spec, data(images, label), seed=2)
    assert (noisy.mode, noisy.count, noisy.nominal_rate) == (mode, "each", 0.4)
    assert torch.equal(noisy.label, instance(images, label, 4, 0.4, 2, **options))
    assert str(noisy).startswith(f"{mode}:0.4:each: ")


def test_errors():
    images, label = samples(20, 4)
    with pytest.raises(ValueError, match=r"rate is 1.5 but must be in \[0, 1\]"):
        instance(images, label, 4, 1.5, 0)
    with pytest.raises(ValueError, match="num_classes is 1 but a label of another class needs 2"):
        instance(images, label, 1, 0.4, 0)
    with pytest.raises(ShapeError, match=r"label \(3,\); expected one label for each sample"):
        instance(images, label[:3], 4, 0.4, 0)
    with pytest.raises(ShapeError, match="int64 and label"):
        instance(images.long(), label, 4, 0.4, 0)
    with pytest.raises(LabelError, match="4 classes; are labels 1-based"):
        instance(images, label + 1, 4, 0.4, 0)
    with pytest.raises(ValueError, match=r"has a count but each sample draws its own label; write 'instance/pdn:0.4'"):
        apply_noise("instance/pdn:0.4:exact", data(images, label), seed=0)
    with pytest.raises(ValueError, match="does not fit trec; what fits is none, symmetric/inclusive"):
        apply_noise("instance/pdn:0.4", data(images[:, 0, 0].long(), label, "trec"), seed=0)
