"""TwoViewLoss in a training loop: gradients through autograd, counts, table, checkpoints, torch.compile."""

import copy

import pytest
import torch

import fastlnl
from fastlnl import losses
from fastlnl.ops.row_loss import new_error_word, row_loss
from fastlnl.ops.two_view_loss import ENTROPY_SCALES, two_view_loss
from fastlnl.state import SampleDynamics

N, C, B, MAX_COUNT = 20, 6, 8, 5


def batch(dtype=torch.float32, rows=B):
    weak, strong = (2 * torch.randn(rows, C)).to(dtype), (2 * torch.randn(rows, C)).to(dtype)
    label = torch.randint(C, (N,))
    index = torch.randint(N, (rows,))
    return weak.requires_grad_(), strong.requires_grad_(), label[index], index


def criterion_of(label=None, table=True, **options):
    criterion = losses.TwoViewLoss(N, C, label, max_count=MAX_COUNT, **options)
    if table:
        groups = C if options.get("per_class", True) else 1
        criterion.set_table(torch.rand(groups, MAX_COUNT + 1, 2, generator=torch.Generator().manual_seed(1)))
    return criterion


@pytest.mark.parametrize("per_class", [True, False])
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_gradients_are_those_of_the_primitive(scale, per_class):
    weak, strong, label, index = batch()
    criterion = criterion_of(entropy_scale=scale, per_class=per_class)
    count = criterion.wrong_count.clone()
    expected = two_view_loss(
        weak.detach(), strong.detach(), label, index, count, criterion.table, entropy_scale=scale, grad_scale=1 / B,
        reduction="mean", errors=new_error_word(),
    )  # fmt: skip
    loss = criterion(weak, strong, label, index)
    loss.backward()
    assert torch.equal(loss, expected.loss)
    assert torch.equal(weak.grad, expected.dlogits[0])
    assert torch.equal(strong.grad, expected.dlogits[1])
    assert torch.equal(criterion.wrong_count, count)
    assert count.any()


def test_the_incoming_gradient_scales_both():
    weak, strong, label, index = batch()
    grads = []
    for factor in (1.0, 3.0):
        loss = criterion_of()(weak, strong, label, index)
        grads.append(torch.autograd.grad(factor * loss, (weak, strong)))
    for one, three in zip(*grads, strict=True):
        torch.testing.assert_close(3 * one, three)


def test_one_forward_of_both_views():
    """A network without batch norm may see both views as one batch of 2B rows."""
    weak, strong, label, index = batch()
    both = torch.cat([weak, strong]).detach().requires_grad_()
    criterion_of()(weak, strong, label, index).backward()
    criterion_of()(*both.chunk(2), label, index).backward()
    assert torch.equal(both.grad, torch.cat([weak.grad, strong.grad]))


def test_a_view_may_be_a_constant():
    weak, strong, label, index = batch()
    (expected,) = torch.autograd.grad(criterion_of()(weak, strong, label, index), strong)
    (alone,) = torch.autograd.grad(criterion_of()(weak.detach(), strong, label, index), strong)
    assert torch.equal(expected, alone)
    with torch.no_grad():
        assert not criterion_of()(weak, strong, label, index).requires_grad


def test_float16_keeps_the_mean_for_backward():
    weak, strong, label, index = batch(torch.float16)
    loss = criterion_of()(weak, strong, label, index)
    (1024 * loss).backward()
    expected = two_view_loss(
        weak.detach(), strong.detach(), label, index, torch.zeros(N, dtype=torch.int32), criterion_of().table,
        errors=new_error_word(),
    )  # fmt: skip
    assert weak.grad.dtype == torch.float16
    torch.testing.assert_close(weak.grad, expected.dlogits[0] * (1024 / B), rtol=2e-3, atol=0)


def test_backward_twice_and_second_derivatives():
    weak, strong, label, index = batch()
    loss = criterion_of()(weak, strong, label, index)
    first = torch.autograd.grad(loss, weak, retain_graph=True)[0]
    assert torch.equal(torch.autograd.grad(loss, weak)[0], first)
    with pytest.raises(RuntimeError, match="a second time"):
        torch.autograd.grad(loss, weak)
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(criterion_of()(weak, strong, label, index), weak, create_graph=True)


def test_counts_come_from_the_dynamics_of_the_first_stage():
    """Stage 1 is cross-entropy with dynamics; its wrong events are where stage 2 goes on counting."""
    label = torch.randint(C, (N,))
    dynamics, index = SampleDynamics(N, C), torch.arange(N)
    first = losses.CrossEntropy(dynamics=dynamics)
    z = torch.randn(3, N, C)
    first(z[0], label, index)
    second = criterion_of(label)
    second.wrong_count.copy_(dynamics.wrong_events)
    second(z[1], z[2], label, index)
    assert torch.equal(second.wrong_count, (z.argmax(2) != label).sum(0).int())


def test_without_a_table_it_is_cross_entropy_of_both_views_with_consistency():
    weak, strong, label, index = batch()
    criterion = criterion_of(table=False)
    assert criterion.table_is_empty
    ce = sum(row_loss(z, label, fastlnl.ops.row_loss.LOSSES["cross_entropy"], reduction="mean",
                      errors=new_error_word()).loss for z in (weak.detach(), strong.detach()))  # fmt: skip
    expected = ce + (weak - strong).detach().square().mean()
    torch.testing.assert_close(criterion(weak, strong, label, index).detach(), expected)


def test_set_table_keeps_its_place_and_fills_up():
    criterion = criterion_of(table=False, per_class=False)
    place = criterion.table.data_ptr()
    criterion.set_table(torch.tensor([[0.9, 1.5], [0.2, 0.3]], dtype=torch.float64))
    assert criterion.table.data_ptr() == place
    assert not criterion.table_is_empty
    criterion.wrong_count[:4] = torch.tensor([0, 1, 3, 99])
    label = torch.zeros(N, dtype=torch.long)
    assert criterion.clean_prob(label)[:4].tolist() == pytest.approx([0.9, 0.2, 0.2, 0.2])
    by_class = criterion_of()
    assert torch.equal(by_class.clean_prob(label + 2), by_class.table[2, 0, 0].expand(N))
    with pytest.raises(fastlnl.ShapeError, match=r"table is \(6, 7, 2\) float32; expected \(6, 1..6, 2\)"):
        by_class.set_table(torch.ones(C, MAX_COUNT + 2, 2))


def test_resuming_gives_the_same_bits():
    torch.manual_seed(0)
    label = torch.randint(C, (N,))
    z, ids = torch.randn(6, 2, B, C), torch.randint(N, (6, B))

    def run(criterion, steps):
        return [criterion(*z[i], label[ids[i]], ids[i]) for i in steps]

    whole = criterion_of(label)
    expected = run(whole, range(6))
    half = criterion_of(label)
    run(half, range(3))
    half.end_epoch()
    resumed = criterion_of(label, table=False)
    resumed.load_state_dict(copy.deepcopy(half.state_dict()))
    assert (resumed.epoch, resumed.table_is_empty) == (1, False)
    assert run(resumed, range(3, 6)) == expected[3:]
    assert torch.equal(resumed.wrong_count, whole.wrong_count)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda label: losses.TwoViewLoss(N, C, (label + 1) % C, max_count=MAX_COUNT), "other given labels"),
        (lambda label: losses.TwoViewLoss(N + 1, C, max_count=MAX_COUNT), "num_samples 20 but this one has 21"),
        (lambda label: losses.TwoViewLoss(N, C, label, max_count=9), "max_count 5 but this one has 9"),
        (lambda label: losses.TwoViewLoss(N, C, max_count=5, per_class=False), "per_class True but .* False"),
    ],
)
def test_counts_of_other_data_are_refused(other, text):
    label = torch.randint(C, (N,))
    with pytest.raises(fastlnl.StateError, match=text):
        other(label).load_state_dict(criterion_of(label).state_dict())


def test_half_leaves_counts_and_weights_alone():
    criterion = criterion_of()
    table = criterion.table.clone()
    criterion.half()
    assert criterion.wrong_count.dtype == torch.int32
    assert torch.equal(criterion.table, table)


def test_bad_labels_and_ids_are_named(monkeypatch):
    weak, strong, label, index = batch()
    criterion = criterion_of()
    criterion(weak, strong, torch.where(torch.arange(B) == 3, C, label), index)
    with pytest.raises(fastlnl.LabelError, match=f"position 3.*is {C} but logits has {C} classes.*1-based"):
        criterion.check()
    criterion(weak, strong, label, torch.where(torch.arange(B) == 2, N, index))
    with pytest.raises(fastlnl.LabelError, match=f"position 2 of a batch is {N} but the criterion has {N} samples"):
        criterion.end_epoch()
    monkeypatch.setenv("FASTLNL_DEBUG", "1")
    with pytest.raises(fastlnl.LabelError, match="position 0"):
        criterion_of()(weak, strong, label - 100, index)


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"num_samples": 0}, fastlnl.ShapeError, "0 samples"),
        ({"label": torch.zeros(3, dtype=torch.long)}, fastlnl.ShapeError, r"label is \(3,\); expected \(20,\)"),
        ({"label": torch.full((N,), C)}, fastlnl.LabelError, "label of sample 0 is 6"),
        ({"entropy_scale": "mean"}, ValueError, "entropy_scale is 'mean'; expected one of none"),
        ({"counter_order": "never"}, ValueError, "counter_order is 'never'"),
    ],
)
def test_refused_when_built(options, error, text):
    with pytest.raises(error, match=text):
        losses.TwoViewLoss(**({"num_samples": N, "num_classes": C, "max_count": MAX_COUNT} | options))


def test_other_widths_and_recomputation_are_refused():
    from torch.utils.checkpoint import checkpoint

    weak, strong, label, index = batch()
    with pytest.raises(fastlnl.ShapeError, match=r"\(8, 5\) float32 but the criterion has 6 classes"):
        criterion_of()(weak[:, 1:], strong[:, 1:], label, index)
    criterion = criterion_of()
    loss = checkpoint(lambda w, s: criterion(w, s, label, index), weak, strong, use_reentrant=True)
    with pytest.raises(RuntimeError, match="counted twice"):
        loss.backward()


def test_compiled_step_with_dynamic_batch_is_the_eager_step():
    eager, inside = criterion_of(entropy_scale="sample"), criterion_of(entropy_scale="sample")
    compiled = torch.compile(lambda *args: inside(*args), fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (B, 5, 9):
        weak, strong, label, index = batch(rows=rows)
        expected = torch.autograd.grad(2 * eager(weak, strong, label, index), (weak, strong))
        found = torch.autograd.grad(2 * compiled(weak, strong, label, index), (weak, strong))
        for x, y in zip(expected, found, strict=True):
            torch.testing.assert_close(x, y)
        assert torch.equal(eager.wrong_count, inside.wrong_count)


def test_operator_passes_opcheck():
    weak, strong, label, index = batch()
    state = (torch.zeros(N, dtype=torch.int32), torch.ones(1, 3, 2), "none", "before_weights", 1 / B, "mean")
    args = (weak.detach(), strong.detach(), label, index, *state, new_error_word())
    for check in ("test_schema", "test_faketensor"):
        torch.library.opcheck(torch.ops.fastlnl.two_view_loss.default, args, test_utils=check)
