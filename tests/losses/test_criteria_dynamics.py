"""Criteria that keep sample dynamics: one pass over the logits for loss, gradient, label memory and bookkeeping."""

import copy
import pickle

import pytest
import torch
from torch.utils.checkpoint import checkpoint

import fastlnl
from fastlnl import losses
from fastlnl.backend import use_backend
from fastlnl.ops.dynamics import layout
from fastlnl.ops.row_loss import catalogue, new_error_word, row_loss
from fastlnl.ops.row_loss.numba_kernel import ROW_WORK, SERIAL_BELOW
from fastlnl.ops.row_stats import row_stats
from fastlnl.state import SampleDynamics

N, C = 23, 4
LABEL = torch.arange(N) % C


def criterion_of(name, **options):
    return losses.ALR(N, C, LABEL, warmup_epochs=1, **options) if name == "ALR" else getattr(losses, name)(**options)


def batches(count=3, size=9):
    random = torch.Generator().manual_seed(0)
    for _ in range(count):
        index = torch.randint(N, (size,), generator=random)  # ids repeat
        yield torch.randn(size, C, generator=random), LABEL[index], index


ROBUST = [
    "CrossEntropy",
    "LabelSmoothing",
    "GCE",
    "SCE",
    "MAE",
    "NCE",
    "NCERCE",
    "Focal",
    "Poly1",
    "Bootstrapping",
    "ConfidencePenalty",
]


@pytest.mark.parametrize("name", [*ROBUST, "ALR"])
def test_dynamics_are_those_of_row_stats_and_the_loss_stays(name):
    tracked, plain = criterion_of(name, dynamics=SampleDynamics(N, C, history=2)), criterion_of(name)
    expected = SampleDynamics(N, C, history=2)
    for _ in range(2):  # ALR: one epoch of warm-up, one on the label memory
        for z, label, index in batches():
            given, other = z.clone().requires_grad_(), z.clone().requires_grad_()
            loss = tracked(given, label, index)
            loss.backward()
            value = plain(other, label, index)
            value.backward()
            assert torch.equal(loss, value)
            assert torch.equal(given.grad, other.grad)
            expected.update(index, label, row_stats(z, label, errors=new_error_word()))
        tracked.end_epoch()
        plain.end_epoch()
        assert tracked.dynamics.summary == expected.end_epoch()
    assert torch.equal(tracked.dynamics.records, expected.records)
    assert torch.equal(tracked.dynamics.history.view(torch.int16), expected.history.view(torch.int16))


def strange(batch, case):
    """Logits, labels, ids that the pass has to treat alike whether it enters them itself or writes them down first."""
    z, label, index = 3 * torch.randn(batch, C), torch.randint(C, (batch,)), torch.randperm(2 * batch)[:batch]
    if case == "repeated":
        index[batch // 2 :] = index[: batch - batch // 2].flip(0)
    if case == "padding":
        index[::3] = -1
    if case == "refused":
        index[1], index[5], label[3] = 2 * batch + 7, -2, C
    if case == "not finite":
        z[::4, 1] = torch.inf
        z[1::4, 0] = torch.nan
    return z, label, index


@pytest.mark.parametrize("name", ["CrossEntropy", "ALR"])
@pytest.mark.parametrize("case", ["distinct", "repeated", "padding", "refused", "not finite"])
@pytest.mark.parametrize("batch", [1, 8, 61, 6001])
def test_a_pass_that_enters_its_rows_itself(name, case, batch, poison):
    """Bit for bit what `update` makes of `row_stats`; 6,001 rows of 4 go to several threads."""
    torch.set_num_threads(3)
    batch = max(batch, 8) if case == "refused" else batch
    assert name == "ALR" or 6001 * (C + ROW_WORK) > SERIAL_BELOW
    options = {"track": ("entropy", "confidence"), "history": 2, "history_dtype": torch.float32}
    dynamics, expected = SampleDynamics(2 * batch, C, **options), SampleDynamics(2 * batch, C, **options)
    more = {"num_samples": 2 * batch, "num_classes": C} if name == "ALR" else {}
    criterion = getattr(losses, name)(dynamics=dynamics, **more)
    for _ in range(3):
        z, label, index = strange(batch, case)
        criterion(z, label, index)
        expected.update(index, label, row_stats(z, label, errors=new_error_word()))
    assert torch.equal(dynamics.records, expected.records)
    assert torch.equal(dynamics.counters, expected.counters)
    assert torch.equal(dynamics.history.view(torch.int32), expected.history.view(torch.int32))


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_statistics_are_written_and_entered_where_both_are_asked_for(backend):
    z, label, index = next(batches())
    entered, expected = SampleDynamics(N, C), SampleDynamics(N, C)
    with use_backend(backend):
        for with_stats in (True, False):
            stats = row_loss(
                z,
                label,
                catalogue.gce,
                (0.7,),
                index=index,
                book=entered,
                with_stats=with_stats,
                errors=new_error_word(),
            ).stats
            expected.update(index, label, row_stats(z, label, errors=new_error_word()))
            assert torch.equal(entered.records, expected.records)
            if with_stats:
                assert torch.equal(stats.nll, row_stats(z, label, errors=new_error_word()).nll)


@pytest.mark.parametrize("case", ["distinct", "repeated"])
def test_one_native_call_does_it(case, monkeypatch):
    monkeypatch.setattr(SampleDynamics, "update", lambda *args: pytest.fail("the pass left it to update()"))
    criterion = losses.CrossEntropy(dynamics=SampleDynamics(122, C))
    criterion(*strange(61, case))
    assert criterion.dynamics.counters[layout.ROWS] == 61


def test_a_book_needs_ids_and_labels():
    z, label, index = next(batches())
    dynamics, errors = SampleDynamics(N, C), new_error_word()
    with pytest.raises(fastlnl.ShapeError, match="the book needs the sample ids"):
        row_loss(z, label, catalogue.cross_entropy, book=dynamics, errors=errors)
    with pytest.raises(fastlnl.ShapeError, match="needs labels"):
        row_loss(z, None, catalogue.soft_cross_entropy, index=index, target=z, book=dynamics, errors=errors)


def test_addresses_follow_the_records():
    """A copy, a load, another momentum or moved memory: the pass never writes where the records were."""
    z, label, index = next(batches())
    first = losses.CrossEntropy(dynamics=SampleDynamics(N, C, history=1))
    first(z, label, index)
    before = first.dynamics.records.clone()
    copies = [
        copy.deepcopy(first),
        losses.CrossEntropy(dynamics=pickle.loads(pickle.dumps(first.dynamics))),
        losses.CrossEntropy(dynamics=SampleDynamics(N, C, history=1)),
    ]
    copies[2].load_state_dict(first.state_dict())
    copies[0].dynamics.records.share_memory_()
    expected = copy.deepcopy(first.dynamics)
    for other in (expected, *(c.dynamics for c in copies)):
        other.ema_momentum = 0.5
    expected.update(index, label, row_stats(z, label, errors=new_error_word()))
    for criterion in copies:
        criterion(z, label, index)
        assert torch.equal(criterion.dynamics.records, expected.records)
        assert torch.equal(first.dynamics.records, before)


def test_soft_targets_and_weights_that_learn():
    dynamics = SampleDynamics(N, C)
    criterion, weight = losses.SoftCrossEntropy(dynamics=dynamics), torch.rand(9, requires_grad=True)
    for z, label, index in batches(1):
        criterion(z.requires_grad_(), label, index, target=z.detach().softmax(1), weight=weight).backward()
    assert dynamics.counters[3] == 9  # rows


@pytest.mark.parametrize("name", ["CrossEntropy", "ALR"])
def test_compiled_step_is_the_eager_step(name):
    records = []
    for compiled in (False, True):
        criterion = criterion_of(name, dynamics=SampleDynamics(N, C, history=2))

        def step(z, label, index, criterion=criterion):
            return criterion(z, label, index)

        run = torch.compile(step, fullgraph=True, backend="aot_eager") if compiled else step
        for _ in range(2):
            for z, label, index in [*batches(2), *batches(1, size=5)]:
                run(z.requires_grad_(), label, index).backward()
            criterion.end_epoch()
        records.append((criterion.dynamics.records, criterion.dynamics.counters, criterion.dynamics.summary))
    assert torch.equal(records[0][0], records[1][0])
    assert torch.equal(records[0][1], records[1][1])
    assert records[0][2] == records[1][2]


def test_operator_says_what_it_writes():
    dynamics = SampleDynamics(N, C, history=2)
    z, label, index = next(batches())
    stats = row_stats(z, label, errors=new_error_word())
    entered = (index, label, stats.numbers, stats.prediction, C, ["nll", "nll"])
    args = (dynamics.records, dynamics.counters, *entered, 0.9, None, dynamics.history)
    for check in ("test_schema", "test_faketensor"):
        torch.library.opcheck(torch.ops.fastlnl.dynamics.default, (*args, "nll"), test_utils=check)


def test_they_are_saved_with_the_criterion():
    first = losses.CrossEntropy(dynamics=SampleDynamics(N, C, label=LABEL))
    for batch in batches():
        first(*batch)
    second = losses.CrossEntropy(dynamics=SampleDynamics(N, C, label=LABEL))
    second.load_state_dict(first.state_dict())
    assert torch.equal(second.dynamics.records, first.dynamics.records)
    with pytest.raises(fastlnl.StateError, match="num_classes 4 but this one has 5"):
        losses.CrossEntropy(dynamics=SampleDynamics(N, C + 1)).load_state_dict(first.state_dict())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits(dtype):
    dynamics, expected = SampleDynamics(N, C), SampleDynamics(N, C)
    criterion = losses.CrossEntropy(dynamics=dynamics)
    for z, label, index in batches():
        criterion(z.to(dtype), label, index)
        expected.update(index, label, row_stats(z.to(dtype), label, errors=new_error_word()))
    assert torch.equal(dynamics.records, expected.records)


def test_an_overflow_is_no_presentation_but_a_skipped_step_is():
    """What a GradScaler does with the gradients comes after the criterion: the network did predict."""
    criterion = losses.CrossEntropy(dynamics=SampleDynamics(N, C))
    z, label = torch.zeros(2, C), LABEL[:2]
    z[1] = torch.inf
    criterion(z, label, torch.arange(2))
    assert criterion.dynamics.visits[:2].tolist() == [1, 0]
    criterion.end_epoch()
    assert criterion.dynamics.summary.skipped == 1


def test_ids_are_needed_and_checked():
    criterion = losses.CrossEntropy(dynamics=SampleDynamics(N, C))
    z, label, index = next(batches())
    with pytest.raises(fastlnl.ShapeError, match="the dynamics need the ids and labels"):
        criterion(z, label)
    criterion(z, label, index + N)
    with pytest.raises(fastlnl.LabelError, match="but the dynamics have 23 samples"):
        criterion.end_epoch()
    criterion(z, label + C, index)
    with pytest.raises(fastlnl.LabelError, match="label of sample"):
        criterion.end_epoch()
    criterion.end_epoch()  # said once


def test_recomputation_is_refused():
    criterion = losses.CrossEntropy(dynamics=SampleDynamics(N, C))
    z, label, index = next(batches())
    loss = checkpoint(lambda z: criterion(z, label, index), z.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="the dynamics would count a presentation twice"):
        loss.backward()
