"""Confident learning: equal to cleanlab where it is installed, and to its definition written out everywhere."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fastlnl import confident
from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError

DATA = Path(os.environ.get("FASTLNL_DATA", Path(__file__).resolve().parents[2] / "shared" / "data")) / "label_errors"
pytestmark = pytest.mark.filterwarnings("ignore:May not flag all label issues", "ignore:The supplied `confident_joint`")


def problem(samples, classes, seed=0):
    random = torch.Generator().manual_seed(seed)
    true = torch.randint(0, classes, (samples,), generator=random)
    other = torch.randint(0, classes, (samples,), generator=random)
    label = torch.where(torch.rand(samples, generator=random) < 0.25, other, true)
    logits = 2 * torch.randn(samples, classes, generator=random) + 4 * torch.nn.functional.one_hot(true, classes)
    return logits.softmax(1), label


def test_set(name):
    """Probabilities and labels of a published test set."""
    path = DATA / f"{name}_test.npz"
    if not path.exists():
        pytest.skip(f"{path} is not there; set FASTLNL_DATA to the data folder")
    with np.load(path, allow_pickle=False) as arrays:
        return torch.from_numpy(arrays["pyx"]), torch.from_numpy(arrays["given"])


test_set.__test__ = False
PROBLEMS = {
    "mnist": lambda: test_set("mnist"),
    "cifar10": lambda: test_set("cifar10"),
    **{f"{n}x{c}": lambda n=n, c=c: problem(n, c) for n, c in ((60, 2), (300, 5), (2000, 20), (3000, 100))},
}


@pytest.fixture(params=PROBLEMS)
def data(request):
    return PROBLEMS[request.param]()


def joint_by_definition(probs, label, calibrate):
    """Northcutt et al. 2021, equations 1 and 2, and the calibration after them, in plain numpy."""
    p, y, classes = probs.double().numpy(), label.long().numpy(), probs.shape[1]
    threshold = np.array([p[y == c, c].mean() if (y == c).any() else np.inf for c in range(classes)])
    joint = np.zeros((classes, classes), np.int64)
    for row, given in zip(p, y, strict=True):
        passed = np.flatnonzero(row >= threshold - 1e-6)
        if len(passed):
            joint[given, passed[0] if len(passed) == 1 else row.argmax()] += 1
    np.fill_diagonal(joint, joint.diagonal().clip(min=1))
    if not calibrate:
        return joint
    for c in range(classes):
        exact = joint[c] / joint[c].sum() * (y == c).sum()
        joint[c] = exact.round()
        lacking = int((y == c).sum() - joint[c].sum())
        step = np.sign(lacking)
        joint[c, np.argsort((joint[c] - exact).astype(np.float32) * step, kind="stable")[: abs(lacking)]] += step
    return joint


@pytest.mark.parametrize("calibrate", [False, True])
def test_joint_equals_its_definition(data, calibrate):
    ours = confident.confident_joint(*data, calibrate=calibrate)
    assert np.array_equal(ours.numpy(), joint_by_definition(*data, calibrate))


def test_thresholds_and_joint_equal_cleanlab(data):
    count = pytest.importorskip("cleanlab.count", reason="cleanlab is not installed")
    probs, label = data[0].double().numpy(), data[1].numpy().astype(int)
    thresholds = confident.confident_thresholds(*data)
    assert np.allclose(thresholds, count.get_confident_thresholds(label, probs), rtol=0, atol=1e-11)
    theirs = count.compute_confident_joint(label, probs, calibrate=False)
    assert np.array_equal(confident.confident_joint(*data, calibrate=False), theirs)
    calibrated, raw = confident.confident_joint(*data).numpy(), theirs
    theirs = count.compute_confident_joint(label, probs)
    for row, our, their in zip(raw, calibrated, theirs, strict=True):
        for number in np.unique(row):  # which of equal counts is rounded up is left to numpy's sort
            assert np.array_equal(np.sort(our[row == number]), np.sort(their[row == number]))


@pytest.mark.parametrize("rule", ["off_diagonal_issues", "prune_by_class", "prune_by_noise_rate"])
def test_issues_equal_cleanlab(data, rule):
    """Given cleanlab's joint, so that its rounding does not matter; where the joint is used at all."""
    pytest.importorskip("cleanlab", reason="cleanlab is not installed")
    from cleanlab.count import compute_confident_joint
    from cleanlab.filter import find_label_issues

    probs, label = data[0].double().numpy(), data[1].numpy().astype(int)
    name = "confident_learning" if rule == "off_diagonal_issues" else rule
    joint = compute_confident_joint(label, probs)
    theirs = find_label_issues(label, probs, filter_by=name, confident_joint=joint, n_jobs=1)
    given = {} if rule == "off_diagonal_issues" else {"joint": torch.from_numpy(joint)}
    ours = getattr(confident, rule)(data[0].double(), data[1], **given)
    assert ours.dtype == torch.bool
    assert np.array_equal(ours.numpy(), theirs)


def test_every_backend_gives_the_same(device):
    probs, label = problem(120, 6)
    with use_backend("reference"):
        plain = confident.confident_joint(probs, label), confident.prune_by_class(probs, label)
    there = probs.to(device), label.to(device)
    assert torch.equal(confident.confident_joint(*there).cpu(), plain[0])
    assert torch.equal(confident.prune_by_class(*there).cpu(), plain[1])


def test_calibration_keeps_the_counts():
    joint = torch.randint(0, 9, (30, 30)) + torch.eye(30).long()
    count = torch.randint(0, 300, (30,))
    calibrated = confident.calibrate_joint(joint, count)
    assert torch.equal(calibrated.sum(1), count)
    exact = joint.double() / joint.sum(1, keepdim=True) * count[:, None]
    assert (calibrated - exact).abs().max() < 1.5
    assert torch.equal(confident.calibrate_joint(joint, joint.sum(1)), joint)
    assert (calibrated >= 0).all()


def test_calibration_of_equal_remainders_prefers_lower_classes():
    joint = torch.tensor([[1, 1, 1], [0, 1, 1], [0, 0, 0]])
    assert confident.calibrate_joint(joint, torch.tensor([4, 3, 0])).tolist() == [[2, 1, 1], [0, 1, 2], [0, 0, 0]]
    with pytest.raises(ShapeError, match=r"joint is \(3, 3\) int64 and count \(2,\) int64; expected \(C, C\) and"):
        confident.calibrate_joint(joint, torch.tensor([4, 3]))


@pytest.mark.parametrize("q", [0.125, 0.5, 0.75, 1.0])
def test_quantile_thresholds_are_those_of_numpy(q, device):
    probs, label = problem(200, 5)
    label[label == 3] = 1
    label[:4] = torch.tensor([-1, 5, 7, -3])
    ours = confident.quantile_thresholds(probs.to(device), label.to(device), q).cpu()
    for c in range(5):
        own = probs[label == c, c].numpy()
        assert ours[c] == (np.quantile(own, q, method="inverted_cdf") if len(own) else np.inf)


def test_planted_errors_are_found():
    """Where the network knows the truth, the issues are the planted errors."""
    true = torch.arange(300) % 5
    probs = 0.02 + 0.9 * torch.nn.functional.one_hot(true, 5)
    label = true.clone()
    label[::10] = (label[::10] + 1) % 5
    for rule in (confident.off_diagonal_issues, confident.prune_by_class, confident.prune_by_noise_rate):
        assert torch.equal(rule(probs, label), label != true)
    clean = torch.zeros(300, dtype=torch.bool)
    for rule in (confident.off_diagonal_issues, confident.prune_by_class, confident.prune_by_noise_rate):
        assert torch.equal(rule(probs, true), clean)


def test_rows_without_a_label_and_empty_data_have_no_issues():
    probs, label = problem(50, 4)
    label[7], label[9] = -1, 4
    for rule in (confident.off_diagonal_issues, confident.prune_by_class, confident.prune_by_noise_rate):
        assert not rule(probs, label)[[7, 9]].any()
        assert rule(probs[:0], label[:0]).shape == (0,)
    assert confident.confident_joint(probs[:0], label[:0], calibrate=False).tolist() == torch.eye(4).tolist()
    assert not confident.confident_joint(probs[:0], label[:0]).any()


def test_nothing_waits_for_the_device():
    with use_backend("reference"), FakeTensorMode():
        probs, label = torch.empty(40, 3), torch.zeros(40, dtype=torch.int64)
        assert confident.confident_joint(probs, label).shape == (3, 3)
        assert confident.quantile_thresholds(probs, label, 0.5).shape == (3,)
        for rule in (confident.off_diagonal_issues, confident.prune_by_class, confident.prune_by_noise_rate):
            assert rule(probs, label).shape == (40,)
