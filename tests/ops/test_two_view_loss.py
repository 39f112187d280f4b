"""two_view_loss against the formulas in float64 autograd and a plain count, and its laws."""

import importlib.util

import pytest
import torch
from truths import distance

from fastlnl.backend import current_backend, use_backend
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.two_view_loss import COUNTER_ORDERS, ENTROPY_SCALES, FULL, two_view_loss

pytestmark = pytest.mark.usefixtures("poison", "short_tiles")
SHAPES = [(1, 1), (6, 2), (9, 10), (5, 33), (3, 100), (2, 600), (2, 1100)]  # the last is wider than a short tile
SAMPLES, DEPTH = 7, 4


@pytest.fixture
def short_tiles(monkeypatch):
    """Triton's kernel for wide rows takes over at 1,025 columns in place of 4,097: its blocks have 1,024."""
    if importlib.util.find_spec("triton"):
        monkeypatch.setattr("fastlnl.ops.two_view_loss.triton_kernel.TILE_COLUMNS", 1024)


def formula(zw, zs, y, tau, eps, scale):
    """Loss (B,) as the method's card writes it; its mean over the batch is the loss of the card."""
    pw, ps = zw.softmax(1), zs.softmax(1)
    q = (pw.clamp(1e-4, 1 - 1e-4) + ps.clamp(1e-4, 1 - 1e-4)) / 2
    entropy = (1 - tau) * -(q * q.log()).sum(1)
    top = q.max(1).values
    factor = {"none": torch.ones_like(top), "sample": top, "batchmean": top.mean()}[scale]
    ce = sum(torch.nn.functional.cross_entropy(z, y, reduction="none") for z in (zw, zs))
    return tau * ce + eps * (zs - zw).square().mean(1) + factor * entropy


def truth(zw, zs, y, tau, eps, scale):
    """Loss (B,) and gradients (2, B, C) of its sum, in float64."""
    zw, zs = (z.detach().cpu().double().requires_grad_() for z in (zw, zs))
    loss = formula(zw, zs, y.long(), tau.double(), eps.double(), scale)
    return loss.detach(), torch.stack(torch.autograd.grad(loss.sum(), (zw, zs)))


def plain_count(zw, zs, y, index, count, table, before):
    """Weights (B,) and counters as the card says, one row after the other; refused and padding rows left out."""
    count, events = count.clone(), torch.zeros(len(count), dtype=torch.int64)
    rows = [b for b in range(len(y)) if 0 <= index[b] < len(count) and 0 <= y[b] < zw.shape[1]]
    for b in rows:
        for z in (zw, zs):
            events[index[b]] += int(z[b].isfinite().all() and z[b].argmax() != y[b])
    after = (count + events).clamp(max=FULL).int()
    looked = after if before else count
    weights = torch.full((len(y), 2), torch.nan)
    for b in rows:
        weights[b] = table[y[b] if len(table) > 1 else 0, min(int(looked[index[b]]), table.shape[1] - 1)]
    return weights, after


def problem(batch, classes, spread=4.0, pooled=False):
    """Views that agree in part, with probabilities on both sides of both clamps."""
    zw = spread * torch.randn(batch, classes)
    zw[::3] *= 4
    zs = zw + torch.randn(batch, classes)
    y = torch.where(torch.rand(batch) < 0.5, zw.argmax(1), torch.randint(classes, (batch,)))
    table = torch.rand(1 if pooled else classes, DEPTH, 2)
    table[..., 1] *= 2
    return zw, zs, y, torch.randint(SAMPLES, (batch,)), torch.randint(3, (SAMPLES,), dtype=torch.int32), table


def call(given, device, **options):
    errors = options.pop("errors", None)
    moved = [x.to(device) for x in given]
    moved[4] = moved[4].clone()
    result = two_view_loss(*moved, errors=new_error_word(device) if errors is None else errors, **options)
    return result, moved[4].cpu()


@pytest.mark.parametrize(
    ("scale", "loss", "strong", "weak"),
    [
        ("none", 1.686614146, (0.245139620, 0.111566569, 0.043293811), (0.026183202, 0.218255837, 0.022227628)),
        ("batchmean", 1.456262625, (0.272490995, 0.092408335, 0.035100670), None),
        ("sample", 1.437474365, (0.252380743, 0.107023566, 0.040595690), None),
    ],
)
def test_golden_batch(scale, loss, strong, weak, device):
    zw, zs = torch.tensor([[1.0, 1, 0], [0, 2, 1]]), torch.tensor([[2.0, 1, 0], [0, 0, 1]])
    table = torch.tensor([[[0.9, 1.2]], [[0.2, 0.4]], [[0.0, 0.0]]])
    given = zw, zs, torch.tensor([0, 1]), torch.tensor([3, 4]), torch.zeros(5, dtype=torch.int32), table
    result, count = call(given, device, entropy_scale=scale, grad_scale=0.5, reduction="mean")
    assert abs(result.loss.item() - loss) < 3e-7
    torch.testing.assert_close(result.dlogits[1, 0].cpu(), torch.tensor(strong), rtol=0, atol=1e-7)
    if weak is not None:
        torch.testing.assert_close(result.dlogits[0, 1].cpu(), torch.tensor(weak), rtol=0, atol=1e-7)
    assert result.prediction.tolist() == [[0, 1], [0, 2]]
    assert count.tolist() == [0, 0, 0, 0, 1]


@pytest.mark.parametrize("order", COUNTER_ORDERS)
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_loss_gradients_and_counters(shape, scale, order, device):
    """Ids repeat: nine rows share seven samples. The reference shows in float64 that its formulas are right."""
    zw, zs, y, index, before, table = problem(*shape)
    exact = current_backend() == "reference"
    views = (zw.double(), zs.double()) if exact else (zw, zs)
    given = *views, y, index, before, table
    result, count = call(given, device, entropy_scale=scale, counter_order=order, grad_scale=0.25)
    weights, after = plain_count(zw, zs, y, index, before, table, order == "before_weights")
    loss, dlogits = truth(zw, zs, y, *weights.unbind(1), scale)
    assert torch.equal(count, after)
    assert result.prediction.tolist() == [z.argmax(1).tolist() for z in (zw, zs)]
    assert distance(result.loss, loss) <= (1e-13 if exact else 5e-7)
    assert distance(4 * result.dlogits, dlogits) <= (1e-12 if exact else 1e-6)


def test_problems_have_clamped_entries():
    p = torch.stack(problem(9, 10)[:2]).softmax(2)
    assert (p < 1e-4).any()
    assert (p > 1 - 1e-4).any()


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_gradients_are_finite_differences_of_the_loss(scale, pooled):
    zw, zs, y, index, count, table = problem(4, 5, pooled=pooled)
    views = torch.stack([zw, zs]).double()

    def total(views):
        with use_backend("reference"):
            return call((*views, y, index, count, table), "cpu", entropy_scale=scale, reduction="sum")[0]

    dlogits = total(views).dlogits
    step = 1e-5
    for place in torch.cartesian_prod(*map(torch.arange, views.shape)).tolist():
        there = torch.zeros_like(views)
        there[tuple(place)] = step
        slope = (total(views + there).loss - total(views - there).loss) / (2 * step)
        assert abs(slope - dlogits[tuple(place)]) < 1e-7


def test_batchmean_is_the_product_of_two_means_and_the_broadcast(device):
    zw, zs, y, index, count, table = problem(8, 6)
    given = zw, zs, y, index, count, torch.zeros_like(table)  # tau = eps = 0: entropy only
    mean = {s: call(given, device, entropy_scale=s, reduction="mean")[0].loss.item() for s in ENTROPY_SCALES}
    q = torch.stack([zw, zs]).double().softmax(2).clamp(1e-4, 1 - 1e-4).mean(0)
    top, entropy = q.amax(1), -(q * q.log()).sum(1)
    assert mean["batchmean"] == pytest.approx(float(top.mean() * entropy.mean()), rel=5e-7)
    assert mean["batchmean"] == pytest.approx(float((top[:, None] * entropy[None, :]).mean()), rel=5e-7)
    assert mean["sample"] == pytest.approx(float((top * entropy).mean()), rel=5e-7)


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_exchanging_the_views_exchanges_the_gradients(scale, device):
    zw, zs, *rest = problem(5, 10)
    one, count = call((zw, zs, *rest), device, entropy_scale=scale)
    other, count_too = call((zs, zw, *rest), device, entropy_scale=scale)
    torch.testing.assert_close(one.loss, other.loss, rtol=1e-6, atol=0)
    torch.testing.assert_close(one.dlogits, other.dlogits.flip(0), rtol=1e-5, atol=1e-7)
    assert torch.equal(one.prediction, other.prediction.flip(0))
    assert torch.equal(count, count_too)


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_adding_a_constant_to_both_views_changes_nothing(scale, device):
    zw, zs, *rest = problem(6, 12)
    zw, zs = (z.mul(64).round() / 64 for z in (zw, zs))  # so that z + 8 is exact
    plain, moved = (call((zw + c, zs + c, *rest), device, entropy_scale=scale)[0] for c in (0, 8))
    torch.testing.assert_close(plain.loss, moved.loss, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(plain.dlogits, moved.dlogits, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_rows_sum_to_zero_where_views_need_not_agree(scale, device):
    given = problem(6, 12)
    given[5][..., 1] = 0
    dlogits = call(given, device, entropy_scale=scale)[0].dlogits
    assert dlogits.abs().amax() > 0.1
    assert dlogits.sum(2).abs().max() < 2e-6


def test_certain_labels_give_the_cross_entropy_of_both_views(device):
    zw, zs, y, index, count, table = problem(6, 12)
    table[..., 0], table[..., 1] = 1, 0
    result, _ = call((zw, zs, y, index, count, table), device)
    onehot = torch.nn.functional.one_hot(y, 12)
    expected = torch.stack([z.double().softmax(1) - onehot for z in (zw, zs)])
    assert distance(result.dlogits, expected) < 5e-7
    ce = sum(torch.nn.functional.cross_entropy(z.double(), y, reduction="none") for z in (zw, zs))
    assert distance(result.loss, ce) < 5e-7


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize("classes", [7, 1100])
def test_padding_and_refused_rows_are_nothing_and_change_nothing(classes, scale, device):
    zw, zs, y, index, count, table = given = problem(4, classes)
    index[0] = index[3]  # the second is the leader of a repeated id
    alone, counted = call(given, device, entropy_scale=scale)
    rows = torch.tensor([0, 0, 1, 2, 2, 3, 3])
    nothing, right = [0, 3, 6], [1, 2, 4, 5]
    y, index = y[rows], index[rows]
    index[0] = -1
    y[0] = 2**40  # not looked at
    y[3], index[6] = classes, SAMPLES + 3
    zs, zw = zs[rows], zw[rows]
    zw[0] = torch.nan
    errors = new_error_word(device)
    result, count = call((zw, zs, y, index, count, table), device, entropy_scale=scale, errors=errors)
    first, second = [1, 3, int(index[3]), classes], [2, 6, SAMPLES + 3, SAMPLES + 3]
    assert errors.tolist() in ([first, second] if errors.is_cuda else [first])
    assert torch.equal(count, counted)
    for x, all_of_them in ((result.loss[None], alone.loss[None]), (result.prediction, alone.prediction)):
        assert not x[:, nothing].any()
        torch.testing.assert_close(x[:, right], all_of_them, rtol=1e-6, atol=0)
    assert not result.dlogits[:, nothing].any()
    torch.testing.assert_close(result.dlogits[:, right], alone.dlogits, rtol=1e-6, atol=1e-7)


def test_a_batch_of_one_sample_counts_every_occurrence(device):
    """Eleven rows are three programs of the GPU kernel: the id repeats inside of one and across them."""
    zw = torch.zeros(11, 3).index_fill(1, torch.tensor([1]), 1.0)
    zs = zw.clone()
    zs[4:, 0] = 2.0
    y, index = torch.ones(11, dtype=torch.long), torch.full((11,), 2)
    table = torch.stack([torch.arange(40.0), torch.zeros(40)], 1).expand(3, 40, 2).contiguous() / 40
    for order, seen in (("before_weights", 7 + 5), ("after_weights", 5)):
        given = zw, zs, y, index, torch.full((4,), 5, dtype=torch.int32), table
        result, count = call(given, device, counter_order=order)
        assert count.tolist() == [5, 5, 12, 5]
        tau = torch.full((11,), seen / 40)
        assert distance(result.loss, truth(zw, zs, y, tau, 0 * tau, "none")[0]) < 5e-7


def test_counters_stop_at_the_end_and_any_counter_finds_a_row(device):
    zw, _, _, _, _, table = problem(5, 3)
    y = (zw.argmax(1) + 1) % 3
    count = torch.tensor([FULL, FULL - 1, FULL - 1, -4], dtype=torch.int32)
    given = zw, zw, y, torch.tensor([0, 1, 2, 2, 3]), count, table
    result, after = call(given, device)
    assert after.tolist() == [FULL, FULL, FULL, -2]
    weights = torch.cat([table[y[:4], DEPTH - 1], table[y[4:], 0]])
    assert distance(result.loss, truth(zw, zw, y, *weights.unbind(1), "none")[0]) < 5e-7
