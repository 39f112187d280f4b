"""The MixMatch criterion: autograd, float16, priors, and the confidence penalty of the warm-up."""

import pytest
import torch

import fastlnl
from fastlnl import losses
from fastlnl.ops.class_prior import class_prior
from fastlnl.ops.mixmatch_rows import mixmatch_rows

B, C = 12, 7


def problem(dtype=torch.float32):
    logits = (2 * torch.randn(B, C)).to(dtype).requires_grad_()
    return logits, torch.randn(B, C).softmax(1)


def by_formula(logits, target, labelled, weight, prior=None):
    z = logits.detach().double().requires_grad_()
    logp = z.log_softmax(1)
    pi = torch.full((C,), 1 / C).double() if prior is None else prior.double()
    lx = -(target * logp)[:labelled].sum(1).mean()
    lu = (logp.exp() - target)[labelled:].square().mean()
    loss = lx + weight * lu + (pi * (pi / logp.exp().mean(0)).log()).sum()
    loss.backward()
    return loss.detach(), z.grad


@pytest.mark.parametrize("prior", [None, torch.arange(1.0, C + 1) / 28])
def test_loss_and_gradient(prior):
    logits, target = problem()
    loss = losses.MixMatch(prior=prior)(logits, target, 5, 25.0)
    (3 * loss).backward()
    exact, gradient = by_formula(logits, target, 5, 25.0, prior)
    assert float(loss.detach()) == pytest.approx(float(exact), rel=1e-6)
    torch.testing.assert_close(logits.grad.double(), 3 * gradient, rtol=1e-5, atol=1e-7)


def test_golden_squared_error():
    """p = (.5, .25, .25), t = (1, 0, 0): mean (p - t)^2 = .125, <p, p - t> = -.125, gradient 2/3 p ((p - t) + .125)."""
    logits = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_()
    loss = losses.MixMatch(prior_weight=0)(logits, torch.tensor([[1.0, 0.0, 0.0]]), 0)
    loss.backward()
    assert float(loss.detach()) == pytest.approx(0.125)
    torch.testing.assert_close(logits.grad, torch.tensor([[-0.125, 0.0625, 0.0625]]))


def test_without_a_prior_labelled_rows_are_soft_cross_entropy():
    logits, target = problem()
    ours = losses.MixMatch(prior_weight=0)(logits, target, B)
    theirs = losses.SoftCrossEntropy()(logits, target=target)
    torch.testing.assert_close(ours, theirs)


def test_prior_alone_by_finite_differences():
    """No labelled rows, no weight on the rest: the derivative of the prior in float64 on the reference."""
    logits = torch.randn(4, 5, dtype=torch.float64)
    with fastlnl.use_backend("reference"):
        rows = mixmatch_rows(logits, logits, 0, 0.0, class_prior(logits))
        for b, c in ((0, 0), (3, 4), (1, 2)):
            step = torch.zeros_like(logits)
            step[b, c] = 1e-6
            rise = (class_prior(logits + step).loss - class_prior(logits - step).loss) / 2e-6
            assert float(rise) == pytest.approx(float(rows.dlogits[b, c]), abs=1e-8)


def test_float16_keeps_small_gradients_until_backward():
    """A loss scale of 1024: gradients / B would vanish in float16 before it is multiplied in."""
    logits, target = problem(torch.float16)
    loss = losses.MixMatch()(logits, target, 5, 1e-3)
    (1024 * loss).backward()
    _, gradient = by_formula(logits, target, 5, 1e-3)
    torch.testing.assert_close(logits.grad.double(), 1024 * gradient, rtol=5e-3, atol=2e-3)


def test_without_gradient_and_graphs_that_are_kept():
    logits, target = problem()
    criterion = losses.MixMatch()
    with torch.no_grad():
        assert not criterion(logits, target, 5).requires_grad
    loss = criterion(logits, target, 5)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)
    with pytest.raises(RuntimeError, match="a second time"):
        loss.backward()


def test_prior_moves_with_the_module_and_is_not_saved():
    criterion = losses.MixMatch(prior=torch.full((C,), 1 / C))
    assert criterion.state_dict() == {}
    assert criterion.to(torch.float64).prior.dtype == torch.float64
    with pytest.raises(ValueError, match="prior_weight is -1"):
        losses.MixMatch(-1)


def test_confidence_penalty_is_cross_entropy_less_entropy_without_nan():
    logits = torch.tensor([[2.0, 1.0, 0.0], [1e4, 0.0, -1e4]], requires_grad=True)
    label = torch.tensor([1, 0])
    loss = losses.ConfidencePenalty(reduction="none")(logits, label)
    loss.sum().backward()
    p = torch.tensor([2.0, 1.0, 0.0]).double().softmax(0)
    expected = -p[1].log() + (p * p.log()).sum()
    assert float(loss[0].detach()) == pytest.approx(float(expected), rel=1e-6)
    pull = p * (p.log() - (p * p.log()).sum())
    torch.testing.assert_close(logits.grad[0].double(), p - torch.tensor([0.0, 1.0, 0.0]) + pull, rtol=1e-5, atol=1e-7)
    assert logits.grad[1].tolist() == [0.0, 0.0, 0.0]
    assert float(loss[1].detach()) == 0.0
    fastlnl.check_loss(losses.ConfidencePenalty(0.3).definition, penalty=0.3)
