"""csrc's row pass enters its rows in the records of their samples: the bits that a launch of its own gives them."""

import emulated
import pytest
import torch
from test_row_shapes import call_of
from truths import same_bits

from fastlnl.ops.dynamics import layout
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.row_loss.cuda_kernel import row_loss
from fastlnl.ops.row_stats import row_stats
from fastlnl.state import SampleDynamics

pytestmark = pytest.mark.usefixtures("poison", "device")
OPTIONS = {"track": ("entropy", "confidence"), "history": 2}


def same_state(ours, expected):
    return all(same_bits(x, y) for x, y in zip(ours.buffers(), expected.buffers(), strict=True))


def strange(call, case):
    """The call with ids, labels or logits that the records have to stand."""
    batch, classes = call.logits.shape
    if case == "distinct":
        call.index = torch.randperm(2 * batch)[:batch]
    if case == "padding":
        call.index[::3] = -1
    if case == "refused":
        call.index[1], call.index[5], call.label[3] = 2 * batch + 7, -2, classes
    if case == "not finite":
        call.logits[::4, -1] = torch.inf
        call.logits[1::4, 0] = torch.nan
    return call


def entered(call, dynamics):
    """One launch enters the batch, or two where there is no book."""
    result = row_loss(call)
    if call.book is None:
        stats = row_stats(call.logits, call.label, errors=new_error_word())
        dynamics.update(call.index, call.label, stats)
    else:
        assert result.stats is None
    return result


@pytest.mark.parametrize("case", ["repeated", "distinct", "padding", "refused", "not finite"])
@pytest.mark.parametrize(("name", "classes", "dtype"), [
    ("cross_entropy", 3, torch.float32), ("alr", 40, torch.float16), ("soft_cross_entropy", 100, torch.float32),
    ("elr", 257, torch.float32), ("gce", 1030, torch.bfloat16), ("alr", 1101, torch.float32),
])  # fmt: skip
def test_one_launch_enters_what_two_did(name, classes, dtype, case):
    batch = 40 if classes < 257 else 11
    ours, expected = (SampleDynamics(2 * batch, classes, **OPTIONS) for _ in range(2))
    calls = [0, 0]
    for step in range(2):
        for i, dynamics in enumerate((expected, ours)):
            torch.manual_seed(step)
            call = call_of(name, 3 * torch.randn(batch, classes), samples=batch // 3, with_stats=False)
            call.logits = call.logits.to(dtype)
            if call.memory is not None:  # a table for every id
                rows = torch.softmax(torch.randn(2 * batch, classes), 1)
                call.memory = call.memory._replace(table=rows)
            call = strange(call, case)
            call.with_stats, call.book = i > 0, dynamics if i > 0 else None
            result = entered(call, dynamics)
            calls[i] = (result.loss, result.dlogits, call.errors, torch.zeros(1) if not call.memory else rows)
        assert all(same_bits(x, y) for x, y in zip(*calls, strict=True))
        assert same_state(ours, expected)
    assert ours.counters[layout.ROWS] > 0


def test_it_is_one_launch(monkeypatch):
    monkeypatch.setattr(emulated.Operators, "dynamics", lambda *args: pytest.fail("a second launch"))
    monkeypatch.setattr(SampleDynamics, "update", lambda *args: pytest.fail("the pass left it to update()"))
    call = call_of("cross_entropy", torch.randn(9, 7))
    dynamics = SampleDynamics(5, 7)
    call.book = dynamics
    row_loss(call)
    assert dynamics.counters[layout.ROWS] == 9


def test_the_average_starts_from_its_value_before_the_batch():
    """Of three occurrences the last one moves it once; the last one is not finite: the second."""
    for last in (2, 1):
        dynamics = SampleDynamics(5, 7, track="nll", ema_momentum=0.75)
        before = 0.0
        for step in range(2):
            call = call_of("gce", torch.randn(3, 7))
            call.index, call.label = torch.tensor([4, 4, 4]), torch.tensor([1, 1, 1])
            if last == 1:
                call.logits[2, 0] = torch.nan
            nll = row_stats(call.logits, call.label, errors=new_error_word()).nll[last]
            call.book = dynamics
            row_loss(call)
            before = float(nll) if step == 0 else 0.75 * before + 0.25 * float(nll)
        assert dynamics.ema[4].item() == pytest.approx(before, rel=1e-6)
        assert dynamics.visits[4] == 2 * (last + 1)


def test_labels_of_another_number_of_classes_are_reported():
    call = call_of("cross_entropy", torch.randn(6, 9))
    call.label, call.index, call.book = torch.full((6,), 8), torch.arange(6), SampleDynamics(6, 8)
    row_loss(call)
    assert not call.errors.any()
    assert call.book.counters[layout.ERRORS :].tolist() == [1, 0, 0, 8]
    assert not call.book.records.any()
