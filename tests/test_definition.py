"""`define_loss` and `check_loss`: a user's loss runs on every backend, and a wrong gradient is named."""

import pytest
import torch
import torch.nn.functional as F

import fastlnl
from fastlnl.arithmetic import log
from fastlnl.losses import Criterion, MemoryCriterion
from fastlnl.ops.row_loss import LOSSES


@fastlnl.define_loss
def taylor(p_label):
    """Taylor cross-entropy of order 2 (Feng et al. 2020): (1 - p) + (1 - p)^2 / 2."""
    rest = 1 - p_label
    pull = p_label * (1 + rest)
    return rest + 0.5 * rest * rest, pull, pull, 0, 0, 0, 0


@fastlnl.define_loss
def pulled(target_sum, target_logp, entropy, weight_of_entropy=0.5):
    return weight_of_entropy * entropy - target_logp, target_sum, 0, 1, -weight_of_entropy, 0, 0


@pytest.mark.parametrize("name", sorted(LOSSES))
def test_every_loss_is_the_integral_of_its_gradient(name):
    assert max(fastlnl.check_loss(LOSSES[name]).values()) < 1e-9


@pytest.mark.parametrize("wrong", ["a", "b", "d", "f"])
def test_the_wrong_coefficient_is_named(wrong):
    scale = {key: 1.1 if key == wrong else 1.0 for key in "abdf"}
    source = fastlnl.define_loss(_sum_of_all)
    with pytest.raises(fastlnl.DefinitionError, match=rf"{wrong} is .* where autograd gives") as caught:
        fastlnl.check_loss(source, **{f"s{key}": value for key, value in scale.items()})
    assert sum(f"{key} is " in str(caught.value) for key in "abcdef") == 1


def _sum_of_all(nll, entropy, logp_sum, num_classes, sa=1.0, sb=1.0, sd=1.0, sf=1.0):
    """nll + H - 0.1 sum log p."""
    return nll + entropy - 0.1 * logp_sum, sa * (1 + 0.1 * num_classes), sb, 0, -sd, 0, -0.1 * sf


def test_a_loss_that_is_not_finite_is_told_so():
    @fastlnl.define_loss
    def infinite(nll, entropy):
        return nll * log(entropy * 0.0), nll, nll, 0, 0, 0, 0

    with pytest.raises(fastlnl.DefinitionError, match="not finite"):
        fastlnl.check_loss(infinite)


@pytest.mark.parametrize("backend", ["reference", "numba", "triton"])
def test_a_users_loss_runs_on_every_backend(backend):
    if not fastlnl.backends()[backend].startswith("works on cpu"):
        pytest.skip(fastlnl.backends()[backend])
    logits, label = torch.randn(6, 5, requires_grad=True), torch.randint(5, (6,))
    p = torch.softmax(logits, 1).gather(1, label[:, None])[:, 0]
    truth = ((1 - p) + 0.5 * (1 - p) ** 2).mean()
    (expected,) = torch.autograd.grad(truth, logits)
    with fastlnl.use_backend(backend):
        loss = Criterion(taylor)(logits, label)
        (gradient,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(loss, truth)
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_a_users_loss_on_a_label_memory():
    label = torch.tensor([0, 2])
    criterion = MemoryCriterion(pulled, 2, 3, label, momentum=0.5, weight_of_entropy=0.0)
    logits = torch.randn(2, 3)
    target = 0.5 * F.one_hot(label, 3) + 0.5 * torch.softmax(logits, 1)
    torch.testing.assert_close(criterion(logits, label, torch.arange(2)), F.cross_entropy(logits, target))


def test_definitions_that_are_none_are_refused():
    with pytest.raises(fastlnl.DefinitionError, match="asks for 'margin'"):

        @fastlnl.define_loss
        def unknown(margin):
            return margin, 0, 0, 0, 0, 0, 0

    with pytest.raises(fastlnl.DefinitionError, match="5 parameters"):

        @fastlnl.define_loss
        def many(nll, a=0, b=0, c=0, d=0, e=0):
            return nll, 1, 1, 0, 0, 0, 0

    scale = torch.rand(1)
    with pytest.raises(fastlnl.DefinitionError, match="closure"):

        @fastlnl.define_loss
        def closed(nll):
            return nll * scale, 1, 1, 0, 0, 0, 0

    @fastlnl.define_loss
    def short(nll):
        return nll, 1, 1

    with pytest.raises(fastlnl.DefinitionError, match="seven numbers"):
        Criterion(short)(torch.zeros(1, 2), torch.tensor([0]))
    with pytest.raises(fastlnl.DefinitionError, match="no parameter temperature"):
        Criterion(taylor, temperature=2.0)
