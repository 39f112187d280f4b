"""Criteria in anybody's loop: autograd, reductions, weights, half precision, graphs that are kept."""

import pytest
import torch
import torch.nn.functional as F

import fastlnl
from fastlnl import losses

N, B, C = 40, 16, 7

STATELESS = [
    losses.CrossEntropy,
    losses.LabelSmoothing,
    losses.GCE,
    losses.SCE,
    losses.MAE,
    losses.NCE,
    losses.NCERCE,
    losses.Focal,
    losses.Poly1,
    losses.Bootstrapping,
    losses.ConfidencePenalty,
]
WITH_MEMORY = [losses.ALR, losses.SELC, losses.ELR]


def batch(seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = (2 * torch.randn(B, C, generator=generator)).to(dtype).requires_grad_()
    label = torch.randint(C, (N,), generator=generator)
    index = torch.randperm(N, generator=generator)[:B]
    return logits, label, index


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("kind", STATELESS)
def test_gradient_is_the_one_of_the_float64_reference(kind, reduction):
    logits, label, index = batch()
    criterion = kind(reduction=reduction)
    weight = torch.linspace(0.5, 2, B) if reduction == "none" else torch.ones(())
    (criterion(logits, label[index], index) * weight).sum().backward()
    exact = logits.detach().double().requires_grad_()
    with fastlnl.use_backend("reference"):
        (criterion(exact, label[index], index) * weight).sum().backward()
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-5, atol=1e-7)


def test_cross_entropy_is_torchs_with_any_reduction_and_smoothing():
    logits, label, index = batch()
    y = label[index]
    for reduction in ("mean", "sum", "none"):
        torch.testing.assert_close(
            losses.CrossEntropy(reduction)(logits, y), F.cross_entropy(logits, y, reduction=reduction)
        )
        torch.testing.assert_close(
            losses.LabelSmoothing(0.2, reduction)(logits, y),
            F.cross_entropy(logits, y, reduction=reduction, label_smoothing=0.2),
        )
    target = torch.softmax(torch.randn(B, C), 1)
    torch.testing.assert_close(losses.SoftCrossEntropy()(logits, target=target), F.cross_entropy(logits, target))


@pytest.mark.parametrize("kind", [*STATELESS, *WITH_MEMORY])
def test_weights_multiply_loss_and_gradient_and_have_a_gradient_of_their_own(kind):
    logits, label, index = batch()

    def make():
        if kind in WITH_MEMORY:
            return kind(N, C, label, reduction="none")
        return kind(reduction="none")

    rows = make()(logits, label[index], index)
    (gradient,) = torch.autograd.grad(rows.sum(), logits)
    weight = torch.linspace(0, 2, B)
    constant = make()(logits, label[index], index, weight)
    torch.testing.assert_close(constant, rows * weight)
    (weighted,) = torch.autograd.grad(constant.sum(), logits)
    torch.testing.assert_close(weighted, gradient * weight[:, None], rtol=1e-5, atol=1e-7)
    weight.requires_grad_()
    learned = make()(logits, label[index], index, weight)
    both = torch.autograd.grad(learned.sum(), [logits, weight])
    torch.testing.assert_close(both[0], weighted, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(both[1], rows.detach())


def test_mean_with_weights_divides_by_the_batch_size():
    logits, label, index = batch()
    weight = torch.rand(B)
    mean = losses.CrossEntropy()(logits, label[index], weight=weight)
    torch.testing.assert_close(mean, (F.cross_entropy(logits, label[index], reduction="none") * weight).sum() / B)


def test_retain_graph_gives_the_same_gradient_twice_and_without_it_a_second_backward_is_refused():
    logits, label, index = batch()
    loss = losses.GCE()(logits, label[index])
    (first,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    (second,) = torch.autograd.grad(3 * loss, logits, retain_graph=True)
    assert torch.equal(first, second)
    (third,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(3 * third, first)
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(loss, logits)


def test_a_gradient_that_was_handed_out_is_not_changed_by_later_steps():
    logits, label, index = batch()
    criterion = losses.CrossEntropy()
    criterion(logits, label[index]).backward()
    kept, copy = logits.grad, logits.grad.clone()
    (5 * criterion(logits, label[index])).backward()
    torch.testing.assert_close(kept, 6 * copy)  # accumulated, the buffer of the second step left alone


def test_gradient_accumulation_equals_one_large_batch():
    logits, label, index = batch()
    whole, parts = losses.ALR(N, C, label), losses.ALR(N, C, label)
    whole(logits, label[index], index).backward()
    expected, logits.grad = logits.grad, None
    for piece in torch.arange(B).split(4):
        (parts(logits[piece], label[index[piece]], index[piece]) / 4).backward()
    torch.testing.assert_close(logits.grad, expected, rtol=1e-5, atol=1e-8)
    assert torch.equal(whole.memory.table, parts.memory.table)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_and_loss_scale(dtype):
    """The gradient of a scaled float16 loss keeps what 1/B would have pushed below the smallest float16."""
    torch.manual_seed(0)
    net = torch.nn.Linear(20, C)
    images, label, index = torch.randn(B, 20), torch.randint(C, (N,)), torch.arange(B)
    criterion = losses.ALR(N, C, label)
    with torch.autocast("cpu", dtype):
        logits = net(images)
        loss = criterion(logits, label[index], index)
    assert logits.dtype == dtype
    assert loss.dtype == torch.float32
    (1024 * loss).backward()
    exact = losses.ALR(N, C, label)
    plain = logits.detach().float().requires_grad_()
    exact(plain, label[index], index).backward()
    (half,) = torch.autograd.grad(
        1024 * losses.ALR(N, C, label)(again := logits.detach().requires_grad_(), label[index], index), again
    )
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(half.float(), 1024 * plain.grad, rtol=2 * eps, atol=1024 / B * 1e-7)
    assert torch.isfinite(net.weight.grad).all()


def test_tiny_float16_gradients_survive_the_mean():
    logits = torch.zeros(4096, 2, dtype=torch.float16)
    logits[:, 0] = 8.0  # p of the other class is 3.4e-4; divided by 4096 it is 8e-8, one unit of float16 at most
    logits.requires_grad_()
    (4096 * losses.CrossEntropy()(logits, torch.zeros(4096, dtype=torch.long))).backward()
    expected = torch.softmax(torch.tensor([8.0, 0.0]), 0)[1]
    torch.testing.assert_close(logits.grad[:, 1].float(), expected.expand(4096), rtol=1e-3, atol=0)


def test_grad_scaler_skips_a_step_that_overflowed_and_the_memory_is_not_poisoned():
    label = torch.zeros(4, dtype=torch.long)
    criterion = losses.ALR(4, 3, label)
    before = criterion.memory.table.clone()
    parameter = torch.nn.Parameter(torch.tensor([[1.0, 2.0, float("inf")], [0.0, 1.0, 2.0]]))
    criterion(parameter, label[:2], torch.tensor([2, 3])).backward()
    assert parameter.grad[0].isnan().all()
    assert parameter.grad[1].isfinite().all()
    assert torch.equal(criterion.memory.table[2], before[2])
    assert not torch.equal(criterion.memory.table[3], before[3])


def test_no_gradient_is_asked_for_without_grad_mode():
    logits, label, index = batch()
    with torch.no_grad():
        assert not losses.CrossEntropy()(logits, label[index]).requires_grad
    assert not losses.CrossEntropy()(logits.detach(), label[index]).requires_grad


def test_empty_batch():
    criterion = losses.ALR(N, C, torch.zeros(N, dtype=torch.long))
    logits = torch.zeros(0, C, requires_grad=True)
    none = torch.zeros(0, dtype=torch.long)
    loss = criterion(logits, none, none)
    loss.backward()
    assert loss.item() == 0
    assert logits.grad.shape == (0, C)


@pytest.mark.parametrize("kind", [losses.CrossEntropy, losses.ALR])
def test_fullgraph_compile_with_dynamic_batch(kind):
    logits, label, index = batch()
    make = (lambda: kind(N, C, label)) if kind is losses.ALR else kind
    eager, inside = make(), make()
    compiled = torch.compile(lambda *args: inside(*args), fullgraph=True, dynamic=True)
    for rows in (B, 5, 9):
        z = logits.detach()[:rows].clone().requires_grad_()
        (a,) = torch.autograd.grad(2 * eager(z, label[index[:rows]], index[:rows]), z)
        (b,) = torch.autograd.grad(2 * compiled(z, label[index[:rows]], index[:rows]), z)
        torch.testing.assert_close(a, b)
    if kind is losses.ALR:
        assert torch.equal(eager.memory.table, inside.memory.table)


def test_operator_passes_opcheck():
    logits, label, index = batch()
    table = torch.softmax(torch.randn(N, C), 1)
    errors = torch.zeros(4, dtype=torch.long)
    args = (logits.detach(), label[index], "alr", [0.3, 0.0], None, table, 0.9, 0.9, True, index, None, 1 / B, "mean")
    torch.library.opcheck(torch.ops.fastlnl.row_loss.default, (*args, errors), test_utils="test_schema")
    torch.library.opcheck(torch.ops.fastlnl.row_loss.default, (*args, errors), test_utils="test_faketensor")


def test_checkpointed_network_moves_the_memory_once_and_a_recomputed_criterion_is_refused():
    from torch.utils.checkpoint import checkpoint

    torch.manual_seed(0)
    net = torch.nn.Linear(5, C)
    images, label, index = torch.randn(B, 5), torch.randint(C, (N,)), torch.arange(B)
    plain, kept = losses.ALR(N, C, label), losses.ALR(N, C, label)
    plain(net(images), label[index], index).backward()
    kept(checkpoint(net, images, use_reentrant=False), label[index], index).backward()
    assert torch.equal(plain.memory.table, kept.memory.table)
    loss = checkpoint(lambda x: kept(net(x), label[index], index), images.requires_grad_(), use_reentrant=True)
    with pytest.raises(RuntimeError, match="checkpoint the network only"):
        loss.backward()


def test_bad_labels_and_ids_are_named_by_check_and_end_epoch():
    logits, label, index = batch()
    criterion = losses.CrossEntropy()
    y = label[index].clone()
    y[3] = C
    criterion(logits, y)
    with pytest.raises(fastlnl.LabelError, match=f"position 3.*is {C} but logits has {C} classes.*1-based"):
        criterion.check()
    criterion.check()  # told once
    memory = losses.ALR(N, C, label)
    memory(logits, label[index], torch.where(torch.arange(B) == 2, N + 5, index))
    with pytest.raises(fastlnl.LabelError, match=f"position 2.*is {N + 5}.*{N} samples"):
        memory.end_epoch()


def test_debug_variable_checks_at_once(monkeypatch):
    monkeypatch.setenv("FASTLNL_DEBUG", "1")
    logits, label, index = batch()
    with pytest.raises(fastlnl.LabelError, match="position 0"):
        losses.CrossEntropy()(logits, label[index] - 100)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: losses.GCE(q=2.0), "q is 2.0"),
        (lambda: losses.ALR(10, 3, momentum=1.5), "momentum is 1.5"),
        (lambda: losses.ALR(10, 3, init="ones"), "init is 'ones'"),
        (lambda: losses.CrossEntropy(reduction="avg"), "reduction is 'avg'"),
        (lambda: losses.ALR(10, 3, torch.tensor([0, 1])), r"expected \(10,\)"),
        (lambda: losses.ALR(3, 3, torch.tensor([1, 2, 3])), "label of sample 2 is 3.*1-based"),
        (lambda: losses.ALR(3, 3)(torch.zeros(2, 3), torch.tensor([0, 1])), "index is None"),
        (lambda: losses.ALR(3, 4)(torch.zeros(1, 3), torch.tensor([0]), torch.tensor([0])), "label memory has 4"),
        (lambda: losses.CrossEntropy()(torch.zeros(2, 3), torch.zeros(3, dtype=torch.long)), r"expected \(2,\)"),
        (lambda: losses.CrossEntropy()(torch.zeros(2, 3), torch.zeros(2)), "integer type"),
        (lambda: losses.CrossEntropy()(torch.zeros(2, 3, 4), torch.zeros(2)), r"expected \(B, C\)"),
        (lambda: losses.SoftCrossEntropy()(torch.zeros(2, 3), target=torch.zeros(2, 4)), r"\(2, 4\)"),
        (lambda: losses.SoftCrossEntropy()(torch.zeros(2, 3)), "needs soft targets"),
    ],
)
def test_bad_arguments_say_what_came_and_what_was_expected(make, text):
    with pytest.raises(ValueError, match=text):
        make()
