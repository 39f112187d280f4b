"""class_reduce against a plain transcription of its definition, its laws and its limits."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truths import same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.class_reduce import class_reduce, class_thresholds

pytestmark = pytest.mark.usefixtures("poison")
CLASSES = [1, 2, 7, 16, 17, 100, 1000, 2049]


def truth(probs, label, threshold=None):
    """Size, threshold and confident class, row after row in float64."""
    p, y = probs.double().numpy(), label.numpy()
    classes = p.shape[1]
    if threshold is None:
        threshold = np.full(classes, np.inf)
        for c in range(classes):
            if np.any(y == c):
                threshold[c] = max(np.mean(p[y == c, c]), 2e-6)
    confident = []
    for row in p:
        passed = np.flatnonzero(row >= threshold - 1e-6)
        confident.append(-1 if len(passed) == 0 else passed[0] if len(passed) == 1 else np.argmax(row))
    return np.array([np.sum(y == c) for c in range(classes)]), threshold, np.array(confident, np.int64)


def check(probs, label, device, threshold=None):
    """Counts and classes exactly; thresholds to the rounding of each probability to 2^-36."""
    there = None if threshold is None else threshold.to(device)
    ours = class_reduce(probs.to(device), label.to(device), there)
    size, thresholds, confident = truth(probs, label, None if threshold is None else threshold.double().numpy())
    assert ours.size.tolist() == size.tolist()
    assert ours.threshold.dtype == torch.float64
    known = np.isfinite(thresholds)
    threshold = ours.threshold.cpu().numpy()
    assert np.array_equal(np.isfinite(threshold), known)
    assert np.abs(threshold[known] - thresholds[known]).max(initial=0) <= 2.0**-37
    assert ours.confident.dtype == torch.int64
    assert ours.confident.tolist() == confident.tolist()


def problem(samples, classes, noise=0.3):
    """Probabilities of a network that has learnt the true labels, and labels of which some are wrong."""
    true = torch.randint(0, classes, (samples,))
    label = torch.where(torch.rand(samples) < noise, torch.randint(0, classes, (samples,)), true)
    logits = 2 * torch.randn(samples, classes) + 3 * torch.nn.functional.one_hot(true, classes)
    return logits.softmax(1), label


@pytest.mark.parametrize("classes", CLASSES)
def test_definition(classes, device):
    check(*problem(11 if classes > 1000 else 57, classes), device)


@pytest.mark.parametrize("name", ["reference", "numba"])
@pytest.mark.parametrize("classes", [5, 300, 21841])
def test_larger_problems(name, classes):
    with use_backend(name):
        check(*problem(60 if classes > 1000 else 900, classes), "cpu")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.integers(-1, 3), *[st.integers(0, 4)] * 3), max_size=12))
def test_collisions_and_ties(rows, device):
    """Few distinct probabilities, so that several classes pass, or are equal, or are exactly at their threshold."""
    table = torch.tensor(rows, dtype=torch.float32).reshape(-1, 4)
    check(table[:, 1:] / 4, table[:, 0].long(), device)


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ((0.2, 0.2, 0.2), -1),
        ((0.2, 0.55, 0.25), 1),
        ((0.45, 0.2, 0.3), 2),  # the likeliest class does not pass, another one does
        ((0.4, 0.52, 0.3), 1),  # two pass: the likelier
        ((0.6, 0.0, 0.0), -1),
        ((0.9, 0.6, 0.4), 0),  # two pass, and the argmax is neither of them
        ((0.5, 0.5, 0.5), 0),  # equal: the lowest
        ((0.1, 0.4999995, 0.0), 1),  # within the slack
        ((0.1, 0.499998, 0.0), -1),
    ],
)
def test_given_thresholds(row, expected, device):
    threshold = torch.tensor([0.95, 0.5, 0.25])
    ours = class_reduce(torch.tensor([row], device=device), torch.tensor([0], device=device), threshold.to(device))
    assert ours.confident.tolist() == [expected]
    assert same_bits(ours.threshold, threshold.double())


def test_comparisons_are_those_of_float64(device):
    """A threshold between two neighbouring float32 numbers."""
    p = torch.tensor([0.5, np.nextafter(np.float32(0.5), 1)])[:, None].to(device)
    bound = torch.tensor([0.5 + 2.0**-26 + 1e-6], dtype=torch.float64, device=device)
    assert class_reduce(p, torch.zeros(2, dtype=torch.int64, device=device), bound).confident.tolist() == [-1, 0]


def test_a_class_without_samples_is_nobody(device):
    probs, label = problem(40, 6)
    label[label == 4] = 2
    ours = class_reduce(probs.to(device), label.to(device))
    assert ours.size[4] == 0
    assert ours.threshold[4] == torch.inf
    assert not (ours.confident == 4).any()
    check(probs, label, device)


def test_labels_out_of_range_count_nowhere(device):
    probs, label = problem(50, 5)
    label[::7] = torch.tensor([-1, 5, -100, 2**40, 7, 5, -1, 9])
    check(probs, label, device)
    inside = (label >= 0) & (label < 5)
    alone = class_reduce(probs[inside].to(device), label[inside].to(device))
    together = class_reduce(probs.to(device), label.to(device))
    assert same_bits(together.threshold, alone.threshold)


@pytest.mark.parametrize("classes", [3, 40])
def test_not_a_number(classes, device):
    probs, label = problem(40, classes)
    plain = class_reduce(probs.to(device), label.to(device))
    likeliest = int(probs[3].argmax())
    probs[3, likeliest] = torch.nan
    probs[5] = torch.nan
    ours = class_reduce(probs.to(device), label.to(device), plain.threshold)
    assert ours.confident[5] == -1
    assert ours.confident[3] != likeliest
    others = torch.tensor([i for i in range(40) if i not in (3, 5)], device=device)
    assert torch.equal(ours.confident[others], plain.confident[others])
    assert class_thresholds(probs.to(device), label.to(device))[1].isnan().sum() == 0


def test_sizes_and_degenerate_rows(device):
    check(torch.empty(0, 3), torch.empty(0, dtype=torch.int64), device)
    check(torch.ones(1, 1), torch.zeros(1, dtype=torch.int64), device)
    check(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0]), device)  # thresholds at their lowest
    check(torch.eye(4), torch.arange(4), device)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_read_exactly(dtype, device):
    probs, label = problem(45, 20)
    check(probs.to(dtype).float(), label, device)
    narrow = class_reduce(probs.to(dtype).to(device), label.to(device))
    wide = class_reduce(probs.to(dtype).float().to(device), label.to(device))
    assert all(same_bits(x, y) for x, y in zip(narrow, wide, strict=True))


def test_float64_on_the_reference():
    probs, label = problem(300, 9)
    noisy = probs.double() + 1e-9 * torch.rand(300, 9, dtype=torch.float64)
    check(noisy, label, "cpu")


def test_strides_and_types_change_nothing(device):
    probs, label = problem(31, 37)
    plain = class_reduce(probs.to(device), label.to(device))
    layouts = (
        probs.t().contiguous().to(device).t(),
        torch.nn.functional.pad(probs, (2, 3), value=9.0).to(device)[:, 2:-3],
        probs.repeat_interleave(2, 1).to(device)[:, ::2],
    )
    for view in layouts:
        other = class_reduce(view, label.to(torch.uint8).to(device))
        assert all(same_bits(x, y) for x, y in zip(plain, other, strict=True))


def test_the_order_of_the_samples_changes_no_bit(device):
    probs, label = problem(60, 10)
    order = torch.randperm(60)
    plain = class_reduce(probs.to(device), label.to(device))
    moved = class_reduce(probs[order].to(device), label[order].to(device))
    assert same_bits(moved.threshold, plain.threshold)
    assert torch.equal(moved.confident.cpu(), plain.confident.cpu()[order])


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.ops.class_reduce.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    probs, label = problem(2700, 100)
    assert probs.numel() > SERIAL_BELOW
    with use_backend("numba"):
        check(probs, label, "cpu")


def test_inputs_are_not_modified_and_no_graph_is_kept(device):
    probs, label = (x.to(device) for x in problem(20, 5))
    probs.requires_grad_()
    before = probs.detach().clone(), label.clone()
    ours = class_reduce(probs, label)
    assert not any(x.requires_grad for x in ours)
    assert same_bits(probs.detach(), before[0])
    assert same_bits(label, before[1])


@pytest.mark.parametrize(
    ("probs", "label", "threshold", "text"),
    [
        (torch.zeros(3), torch.zeros(3).long(), None, r"probs is \(3,\) float32; expected \(N, C\) of a floating type"),
        (torch.zeros(3, 0), torch.zeros(3).long(), None, "with at least one class"),
        (torch.zeros(3, 2), torch.zeros(2).long(), None, r"label is \(2,\) int64; expected \(3,\) of an integer type"),
        (torch.zeros(3, 2), torch.zeros(3), None, r"label is \(3,\) float32; expected \(3,\) of an integer type"),
        (torch.zeros(3, 2), torch.zeros(3).long().to("meta"), None, "label is on meta but probs is on cpu; move one"),
        (torch.zeros(3, 2), torch.zeros(3).long(), torch.zeros(3), r"threshold is \(3,\) float32; expected \(2,\)"),
    ],
)
def test_refused_at_the_door(probs, label, threshold, text):
    with pytest.raises(ShapeError, match=text):
        class_reduce(probs, label, threshold)
