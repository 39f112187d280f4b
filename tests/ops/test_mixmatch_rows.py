"""mixmatch_rows against float64 autograd of the card's formulas, and its laws."""

import pytest
import torch
from truths import distance, same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.class_prior import ClassPrior, class_prior
from fastlnl.ops.mixmatch_rows import mixmatch_rows

pytestmark = pytest.mark.usefixtures("poison")


def truth(logits, target, labelled, unlabeled_weight=1.0, prior=None, prior_weight=0.0, number=torch.float64):
    """The three terms, and the gradient of their weighted sum, by autograd in `number`."""
    z = logits.detach().cpu().to(number).requires_grad_()
    t, logp = target.cpu().to(number), torch.log_softmax(z, 1)
    p, classes = logp.exp(), z.shape[1]
    pi = torch.full((classes,), 1 / classes, dtype=number) if prior is None else prior.cpu().to(number)
    zero = (0 * logp).sum()
    lx = -(t * logp)[:labelled].sum(1).mean() if labelled else zero
    lu = (p - t)[labelled:].square().mean() if labelled < len(z) else zero
    pull = torch.xlogy(pi, pi / p.mean(0).clamp(min=1e-12)).sum() if prior_weight else zero
    terms = [lx, unlabeled_weight * lu, prior_weight * pull]
    (gradient,) = torch.autograd.grad(sum(terms), z)
    return [float(x.detach()) for x in terms], gradient


def problem(batch, classes, spread=2.0):
    """Targets with negative entries, as a masked copy has them."""
    target = torch.randn(batch, classes).mul(2).softmax(1)
    if classes > 1:
        target[::3] -= 0.05
    return spread * torch.randn(batch, classes), target


def check(device, logits, target, labelled, unlabeled_weight=1.0, prior=None, prior_weight=0.0, tolerance=2e-6):
    z, t = logits.to(device), target.to(device)
    found = class_prior(z, None if prior is None else prior.to(device)) if prior_weight else None
    rows = mixmatch_rows(z, t, labelled, unlabeled_weight, found, prior_weight)
    terms, gradient = truth(logits, target, labelled, unlabeled_weight, prior, prior_weight)
    loss = rows.loss.cpu().double()
    ours = [float(x) for x in (loss[:labelled].sum(), loss[labelled:-1].sum(), loss[-1])]
    assert ours == pytest.approx(terms, rel=3e-6, abs=1e-6)
    assert rows.dlogits.dtype == logits.dtype
    assert distance(rows.dlogits, gradient) < tolerance
    return rows


@pytest.mark.parametrize(("batch", "classes"), [(1, 1), (2, 2), (9, 10), (7, 17), (12, 100), (3, 1000), (2, 5001)])
def test_loss_and_gradient_with_unequal_halves(batch, classes, device):
    logits, target = problem(batch, classes)
    check(device, logits, target, (2 * batch + 2) // 3, 25.0, None, 1.0)


@pytest.mark.parametrize("labelled", [0, 1, 5])
@pytest.mark.parametrize("prior_weight", [0.0, 0.7])
def test_parts_without_rows_and_without_prior(labelled, prior_weight, device):
    logits, target = problem(5, 23)
    prior = torch.rand(23).softmax(0)
    rows = check(device, logits, target, labelled, 3.0, prior, prior_weight)
    assert bool(rows.loss[-1]) == bool(prior_weight)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits(dtype, device):
    logits, target = problem(8, 37)
    check(device, logits.to(dtype), target, 4, 2.0, None, 1.0, tolerance=1e-2 if dtype == torch.bfloat16 else 2e-3)


def test_weight_on_the_device_and_scale_of_the_gradient(device):
    logits, target = (x.to(device) for x in problem(6, 11))
    plain = mixmatch_rows(logits, target, 3, 0.25)
    ramped = mixmatch_rows(logits, target, 3, torch.tensor(0.25, device=device), grad_scale=4.0)
    assert same_bits(plain.loss, ramped.loss)
    torch.testing.assert_close(4 * plain.dlogits, ramped.dlogits, rtol=1e-6, atol=1e-9)
    nothing = mixmatch_rows(logits, target, 3, torch.zeros((), device=device))
    assert not nothing.dlogits[3:].any()
    assert not nothing.loss[3:].any()


def test_gradients_sum_to_zero_and_a_shift_changes_nothing(device):
    logits, target = (x.to(device) for x in problem(6, 20))
    prior = class_prior(logits)
    rows = mixmatch_rows(logits, target, 3, 1.0, prior)
    torch.testing.assert_close(rows.dlogits.sum(1).cpu(), torch.zeros(6), rtol=0, atol=1e-6)
    shifted = mixmatch_rows(logits + 32, target, 3, 1.0, prior)
    assert distance(shifted.dlogits, rows.dlogits) < 1e-4


def test_no_larger_error_than_eager_float32(device):
    """Confident rows: one probability is nearly 1 and all differences cancel."""
    logits, target = problem(64, 10, spread=6.0)
    ours = check(device, logits, target, 32, 25.0, None, 1.0)
    args = (logits, target, 32, 25.0, None, 1.0)
    exact, eager = truth(*args)[1], truth(*args, number=torch.float32)[1]
    assert distance(ours.dlogits, exact) <= 1.5 * distance(eager, exact)


def test_gaps_of_ten_thousand(device):
    z = torch.tensor([[1e4, 0.0, -1e4], [-torch.inf, 0.0, 1.0]] * 2, device=device)
    target = torch.full((4, 3), 1 / 3, device=device)
    target[[1, 3], 0] = 0.0
    rows = mixmatch_rows(z, target, 2, 1.0, class_prior(z))
    assert rows.loss.isfinite().all()
    assert rows.dlogits.isfinite().all()
    assert float(rows.loss[0]) == pytest.approx(0.5 * (1e4 + 2e4) / 3, rel=1e-5)


def test_nan_stays_in_its_row(device):
    logits, target = (x.to(device) for x in problem(6, 20))
    logits[1, 3] = logits[4, 0] = torch.nan
    rows = mixmatch_rows(logits, target, 3)
    bad = [False, True, False, False, True, False]
    assert rows.loss[:-1].isnan().tolist() == bad
    assert rows.dlogits.isnan().all(1).tolist() == rows.dlogits.isnan().any(1).tolist() == bad


def test_strides_order_and_empty_batch(device):
    logits, target = (x.to(device) for x in problem(6, 13))
    before = logits.clone(), target.clone()
    rows = mixmatch_rows(logits, target, 6)
    strided = mixmatch_rows(logits.t().contiguous().t(), target.t().contiguous().t(), 6)
    assert all(map(same_bits, rows, strided))
    order = torch.randperm(6, device=device)
    assert same_bits(mixmatch_rows(logits[order], target[order], 6).dlogits, rows.dlogits[order])
    assert same_bits(logits, before[0])
    assert same_bits(target, before[1])
    empty = mixmatch_rows(logits[:0], target[:0], 0, 1.0, class_prior(logits[:0]))
    assert empty.loss.tolist() == [0.0]
    assert empty.dlogits.shape == (0, 13)


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    torch.set_num_threads(threads)
    with use_backend("numba"):
        check("cpu", *problem(1500, 200), 700, 25.0, None, 1.0)


def test_float64_on_the_reference():
    logits, target = problem(7, 6)
    with use_backend("reference"):
        check("cpu", logits.double(), target.double(), 4, 25.0, None, 1.0, tolerance=1e-14)


def test_refused_at_the_door():
    z = torch.zeros(4, 3)
    with pytest.raises(ShapeError, match=r"target is \(4, 2\) float32; expected \(4, 3\)"):
        mixmatch_rows(z, z[:, :2], 2)
    with pytest.raises(ShapeError, match=r"labelled is 5; expected a number of rows in \[0, 4\]"):
        mixmatch_rows(z, z, 5)
    with pytest.raises(ShapeError, match=r"unlabeled_weight is \(4,\) float32; expected a number or \(\)"):
        mixmatch_rows(z, z, 2, z[:, 0])
    with pytest.raises(ShapeError, match=r"the ratio of prior is \(4,\) float32; expected \(3,\)"):
        mixmatch_rows(z, z, 2, 1.0, ClassPrior(z[0], z[:, 0]))
