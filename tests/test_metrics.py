"""The metrics against scikit-learn and plain definitions; degenerate cases have a stated value."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sk
from torch._subclasses.fake_tensor import FakeTensorMode

from fastlnl import metrics
from fastlnl.errors import ShapeError


def ranking(n, kind, seed=0):
    random = torch.Generator().manual_seed(seed)
    scores = torch.randn(n, generator=random)
    if kind == "tied":
        scores = scores.round()
    positive = torch.rand(n, generator=random) < 0.3
    positive[0], positive[1] = True, False
    return scores, positive


@pytest.mark.parametrize("kind", ["distinct", "tied"])
@pytest.mark.parametrize("n", [2, 3, 10, 500, 20_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_auroc_and_average_precision_equal_scikit_learn(n, kind, dtype):
    scores, positive = ranking(n, kind)
    scores = scores.to(dtype)
    auroc, precision = metrics.auroc(scores, positive), metrics.average_precision(scores, positive)
    assert auroc.shape == precision.shape == ()
    assert auroc.dtype == precision.dtype == torch.float64
    assert abs(auroc - sk.roc_auc_score(positive, scores)) <= 1e-15
    assert abs(precision - sk.average_precision_score(positive, scores)) <= 1e-14


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), min_size=1, max_size=30))
def test_auroc_is_a_probability_of_pairs(rows):
    scores, positive = torch.tensor([float(s) for s, _ in rows]), torch.tensor([p for _, p in rows])
    wins = [(a > b) + (a == b) / 2 for a in scores[positive].tolist() for b in scores[~positive].tolist()]
    expected = sum(wins) / len(wins) if wins else 0.5
    assert metrics.auroc(scores, positive).item() == pytest.approx(expected, abs=1e-15)
    assert metrics.auroc(-scores, positive).item() == pytest.approx(1 - expected, abs=1e-15)
    assert metrics.auroc(scores, positive, bins=64).item() == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize("kind", ["distinct", "tied"])
def test_curves_equal_scikit_learn(kind):
    scores, positive = ranking(300, kind)
    fpr, tpr, _ = sk.roc_curve(positive, scores, drop_intermediate=False)
    ours = torch.stack(metrics.roc_curve(scores, positive)).numpy()
    assert ours.shape == (2, 301)
    assert np.allclose(ours[:, : len(fpr)], [fpr, tpr], rtol=0, atol=1e-15)
    assert (ours[:, len(fpr) :] == 1).all()
    precision, recall, _ = sk.precision_recall_curve(positive, scores)
    ours = torch.stack(metrics.precision_recall_curve(scores, positive)).numpy()
    assert np.allclose(ours[:, : len(recall)], [recall[::-1], precision[::-1]], rtol=0, atol=1e-15)


@pytest.mark.parametrize("bins", [3, 50, 2**16])
def test_bins_err_by_no_more_than_half_of_the_pairs_that_share_one(bins):
    scores, positive = ranking(4000, "distinct")
    low, high = scores.min().double(), scores.max().double()
    place = ((high - scores.double()) / (high - low) * (bins - 2)).clamp(0, bins - 3).long()
    hit, miss = place[positive].bincount(minlength=bins), place[~positive].bincount(minlength=bins)
    bound = 0.5 * (hit * miss).sum() / (positive.sum() * (~positive).sum())
    error = (metrics.auroc(scores, positive, bins=bins) - metrics.auroc(scores, positive)).abs()
    assert error <= bound + 1e-15
    if bins == 2**16:
        assert bound < 2e-5


def test_bins_keep_infinite_scores_apart():
    scores = torch.tensor([torch.inf, 1.0, 0.5, 0.0, -torch.inf, torch.nan])
    positive = torch.tensor([True, False, True, False, True, False])
    exact = metrics.auroc(scores, positive)
    assert exact == (3 + 1 + 0.5 + 1) / 9  # NaN ranks with -inf
    assert metrics.auroc(scores, positive, bins=100) == exact
    assert metrics.average_precision(scores, positive, bins=100) == metrics.average_precision(scores, positive)


@pytest.mark.parametrize("bins", [None, 16])
def test_laws_of_rankings(bins):
    scores, positive = ranking(400, "tied")
    order = torch.randperm(400)
    for metric in (metrics.auroc, metrics.average_precision):
        plain = metric(scores, positive, bins=bins)
        assert metric(scores[order], positive[order], bins=bins) == plain  # bit for bit
        assert metric(4 * scores, positive, bins=bins) == plain
        if bins is None:
            assert metric(scores.double().exp(), positive) == plain
    best = positive.float()
    assert metrics.auroc(best, positive, bins=bins) == metrics.average_precision(best, positive, bins=bins) == 1
    assert metrics.auroc(-best, positive, bins=bins) == 0
    assert metrics.auroc(torch.zeros(400), positive, bins=bins) == 0.5
    assert metrics.average_precision(torch.zeros(400), positive, bins=bins) == positive.double().mean()


@pytest.mark.parametrize("bins", [None, 16])
@pytest.mark.parametrize("n", [0, 1, 5])
def test_one_class_only_has_a_stated_value(n, bins):
    scores, everyone = torch.arange(float(n)), torch.ones(n, dtype=torch.bool)
    assert metrics.auroc(scores, everyone, bins=bins) == metrics.auroc(scores, ~everyone, bins=bins) == 0.5
    assert metrics.average_precision(scores, ~everyone, bins=bins) == 0
    assert metrics.average_precision(scores, everyone, bins=bins) == (1 if n else 0)
    for curve in (*metrics.roc_curve(scores, everyone), *metrics.precision_recall_curve(scores, ~everyone)):
        assert curve.isfinite().all()


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_selection_quality_equals_scikit_learn(rows):
    mask, clean = (torch.tensor(column) for column in zip(*rows, strict=True))
    ours = metrics.selection_quality(mask, clean)
    expected = sk.precision_recall_fscore_support(clean, mask, average="binary", zero_division=0)
    assert [ours[name].item() for name in ("precision", "recall", "f1")] == pytest.approx(list(expected[:3]), abs=1e-15)


def test_correction_and_memorisation():
    true = torch.tensor([0, 0, 1, 1, 2, 2])
    label = torch.tensor([0, 1, 1, 0, 2, 0])  # samples 1, 3 and 5 are wrong
    found = torch.tensor([0, 0, 2, 0, 2, 1])
    assert {k: v.item() for k, v in metrics.correction(found, label, true).items()} == pytest.approx(
        {"changed": 3 / 6, "correction_accuracy": 3 / 6, "repair": 1 / 3, "damage": 1 / 3}
    )
    assert {k: v.item() for k, v in metrics.memorisation(found, label, true).items()} == pytest.approx(
        {"memorised": 1 / 3, "wrong_as_true": 1 / 3, "wrong_as_other": 1 / 3, "right_as_true": 2 / 3}
    )
    assert metrics.correction(found, true, true)["repair"].isnan()
    assert metrics.memorisation(found, true, true)["memorised"].isnan()


def test_confusion_matrix_equals_scikit_learn():
    label, prediction = torch.randint(0, 5, (300,)), torch.randint(0, 4, (300,), dtype=torch.int32)
    ours = metrics.confusion_matrix(label, prediction, 6)
    assert torch.equal(ours, torch.from_numpy(sk.confusion_matrix(label, prediction, labels=range(6))))
    label[0], prediction[1] = -1, 6
    assert metrics.confusion_matrix(label, prediction, 6).sum() == 298
    assert not metrics.confusion_matrix(label[:0], prediction[:0], 3).any()


def test_transition_matrix_of_known_noise():
    true, label = torch.tensor([0, 0, 0, 0, 1, 1]), torch.tensor([0, 0, 0, 2, 1, 0])
    matrix = metrics.transition_matrix(true, label, 3)
    assert matrix.tolist() == [[0.75, 0, 0.25], [0.5, 0.5, 0], [0, 0, 1]]  # nothing is known of class 2


def test_transition_from_joint_is_a_column_share():
    joint = torch.tensor([[6, 1, 0], [2, 3, 0], [0, 0, 0]])
    matrix = metrics.transition_from_joint(joint)
    assert matrix.tolist() == [[0.75, 0.25, 0], [0.25, 0.75, 0], [0, 0, 1]]


@pytest.mark.parametrize("q", [1.0, 0.97, 0.5, 0.0])
def test_transition_from_anchors_equals_the_published_rule(q):
    probs = (3 * torch.randn(500, 7)).softmax(1)
    rows = []
    for i in range(7):
        p = probs[:, i].double().numpy().copy()
        if q < 1:
            bound = np.percentile(p, 100 * q, method="higher")
            if (p < bound).any():
                p[p >= bound] = 0.0
        rows.append(probs[int(p.argmax())].double())
    expected = torch.stack(rows)
    assert torch.allclose(
        metrics.transition_from_anchors(probs, q), expected / expected.sum(1, keepdim=True), atol=1e-15
    )


def test_transition_from_anchors_recovers_the_matrix():
    """Where the network is right and every class has a pure sample, the anchors are the rows."""
    matrix = torch.tensor([[0.8, 0.2, 0.0], [0.0, 0.9, 0.1], [0.3, 0.0, 0.7]])
    posterior = torch.cat([torch.eye(3), torch.rand(200, 3).softmax(1)])
    assert torch.allclose(metrics.transition_from_anchors(posterior @ matrix), matrix.double(), atol=1e-6)


def test_nothing_waits_for_the_device():
    with FakeTensorMode():
        scores, flag, label = torch.empty(30), torch.empty(30) > 0, torch.zeros(30, dtype=torch.int64)
        for bins in (None, 64):
            assert metrics.auroc(scores, flag, bins=bins).shape == ()
            assert metrics.average_precision(scores, flag, bins=bins).shape == ()
        metrics.selection_quality(flag, ~flag)
        metrics.correction(label, label, label)
        metrics.transition_matrix(label, label, 4)
        metrics.transition_from_anchors(torch.empty(30, 4), 0.97)


def test_refused_at_the_door():
    with pytest.raises(ShapeError, match=r"scores is \(3,\) int64; expected \(N,\) of a floating type"):
        metrics.auroc(torch.arange(3), torch.ones(3, dtype=torch.bool))
    with pytest.raises(ShapeError, match=r"positive is \(3,\) int64; expected \(3,\) bool, one for each score"):
        metrics.average_precision(torch.zeros(3), torch.ones(3).long())
    with pytest.raises(ShapeError, match="bins is 2; expected 3 at least"):
        metrics.auroc(torch.zeros(3), torch.ones(3, dtype=torch.bool), bins=2)
    with pytest.raises(ShapeError, match=r"label is \(3,\) int64 and prediction \(2,\) int64"):
        metrics.confusion_matrix(torch.zeros(3).long(), torch.zeros(2).long(), 2)
    with pytest.raises(ShapeError, match=r"probs is \(0, 2\) float32; expected \(N, C\)"):
        metrics.transition_from_anchors(torch.zeros(0, 2))
