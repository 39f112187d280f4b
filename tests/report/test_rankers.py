"""Rankers against their definitions written down plainly, on scripted and random runs."""

import numpy as np
import pytest
import torch

from fastlnl.ops.row_loss import RowStats, new_error_word
from fastlnl.ops.row_stats import row_stats
from fastlnl.report import rankers
from fastlnl.state import SampleDynamics


def watched(logits, label, **options):
    """Dynamics that saw logits (T, N, C), in order, in batches of 7."""
    dynamics = SampleDynamics(len(label), logits.shape[2], **options)
    for epoch in logits:
        for index in torch.arange(len(label)).split(7):
            dynamics.update(index, label[index], row_stats(epoch[index], label[index], errors=new_error_word()))
    return dynamics


def random_run(epochs=5, num_samples=40, num_classes=4):
    label = torch.randint(num_classes, (num_samples,))
    return torch.randn(epochs, num_samples, num_classes) + torch.nn.functional.one_hot(label, num_classes), label


def test_aum_is_that_of_the_aum_package(tmp_path):
    package = pytest.importorskip("aum", reason="pip install aum")
    logits, label = random_run()
    calculator = package.AUMCalculator(str(tmp_path))
    for epoch in logits:
        records = calculator.update(epoch, label, list(range(40)))
    ours = watched(logits, label).aum
    np.testing.assert_allclose(ours, [records[i].aum for i in range(40)], rtol=1e-6, atol=1e-6)


def test_aum_is_the_mean_margin_and_ranks_the_lowest_first():
    logits, label = random_run()
    plain = []
    for i, y in enumerate(label.tolist()):
        rows = logits[:, i].double().tolist()
        plain.append(sum(z[y] - max(v for j, v in enumerate(z) if j != y) for z in rows) / len(rows))
    suspicion = rankers.aum(watched(logits, label))
    np.testing.assert_allclose(-suspicion, plain, rtol=1e-5, atol=1e-6)
    assert rankers.ranked(suspicion).tolist() == sorted(range(40), key=lambda i: plain[i])


def test_unseen_samples_rank_last_and_ties_by_id():
    assert rankers.ranked(torch.tensor([1.0, torch.nan, 3.0, 1.0])).tolist() == [2, 0, 3, 1]


def test_aum_flags_are_those_of_the_definition():
    logits, label = random_run(num_samples=60)
    dynamics, threshold = watched(logits, label), torch.tensor([3, 59, 17, 20, 8])
    values = dynamics.aum.tolist()
    for share in (0.0, 0.2, 0.5, 1.0):
        plain = [sum(values[t] > v for t in threshold.tolist()) > share * 5 for v in values]
        assert rankers.aum_flags(dynamics, threshold, share).tolist() == plain


def test_aum_needs_two_classes():
    with pytest.raises(ValueError, match="AUM needs at least 2 classes"):
        rankers.aum(SampleDynamics(3, 1))


def scripted(correct):
    """Dynamics of samples (T, N) that were predicted right or wrong."""
    correct = torch.tensor(correct)
    dynamics, zeros = SampleDynamics(correct.shape[1], 2), torch.zeros(correct.shape[1])
    for right in correct:
        stats = RowStats.of(zeros, zeros, zeros, (~right.bool()).long(), zeros, zeros)
        dynamics.update(torch.arange(len(right)), zeros.long(), stats)
    return dynamics


def plain_forgetting(correct):
    """Per sample: events, first learned, presentations until it stays learned, as the authors' code counts them."""
    result = []
    for accuracy in np.array(correct).T:
        events = int((accuracy[1:] - accuracy[:-1] == -1).sum())
        wrong, right = np.where(accuracy == 0)[0], np.where(accuracy == 1)[0]
        first = int(right[0]) if len(right) else -1
        result.append((events if len(right) else len(accuracy), first, int(wrong[-1]) + 1 if len(wrong) else 0))
    return [list(column) for column in zip(*result, strict=True)]


def test_forgetting_of_scripted_sequences():
    """All four transitions, never learned, never wrong, learned at last."""
    correct = np.array(
        [[0, 0, 0, 0, 0], [1, 1, 1, 1, 1], [0, 1, 0, 1, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 1], [1, 1, 0, 0, 0]]
    ).T.tolist()
    dynamics = scripted(correct)
    suspicion, _first, learned = plain_forgetting(correct)
    assert rankers.forgetting(dynamics).tolist() == suspicion == [5, 0, 2, 2, 0, 1]
    assert dynamics.last_wrong.tolist() == learned
    assert rankers.ranked(rankers.forgetting(dynamics)).tolist() == [0, 2, 3, 5, 1, 4]


def test_forgetting_of_random_sequences():
    correct = np.random.default_rng(0).integers(0, 2, (9, 200)).tolist()
    dynamics = scripted(correct)
    suspicion, _first, learned = plain_forgetting(correct)
    assert rankers.forgetting(dynamics).tolist() == suspicion
    assert dynamics.last_wrong.tolist() == learned


def test_forgetting_of_a_sample_that_never_came_is_zero():
    assert rankers.forgetting(SampleDynamics(2, 3)).tolist() == [0, 0]


def test_data_map_is_mean_deviation_and_share():
    logits, label = random_run()
    p = logits.double().softmax(2)[:, torch.arange(40), label].numpy()
    confidence, variability, correctness = rankers.data_map(watched(logits, label, track="p_label"))
    np.testing.assert_allclose(confidence, p.mean(0), rtol=1e-5)
    np.testing.assert_allclose(variability, p.std(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(correctness, (logits.argmax(2) == label).double().mean(0), rtol=1e-6)


def test_data_map_needs_the_probability():
    with pytest.raises(ValueError, match=r"a data map needs SampleDynamics\(track='p_label'\)"):
        rankers.data_map(SampleDynamics(3, 2))
