"""two_view_loss at the edges: empty, one class, wide gaps, logits that are not finite, types, strides, refusals."""

import pytest
import torch
from test_two_view_loss import SAMPLES, call, formula, problem, short_tiles, truth  # noqa: F401
from truths import distance, same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.two_view_loss import ENTROPY_SCALES, two_view_loss

pytestmark = pytest.mark.usefixtures("poison", "short_tiles")


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_empty_batch(scale, reduction, device):
    result, count = call(given := problem(0, 3), device, entropy_scale=scale, reduction=reduction)
    assert result.dlogits.shape == (2, 0, 3)
    assert result.prediction.shape == (2, 0)
    assert result.loss.shape == ((0,) if reduction == "none" else ())
    assert not result.loss.any()
    assert torch.equal(count, given[4])


def test_one_class_has_nothing_to_learn_but_agreement(device):
    zw, zs, _, index, count, table = given = problem(4, 1)
    result, after = call(given, device, entropy_scale="sample")
    eps = table[0, count[index].clamp(max=3).long(), 1]
    expected = torch.stack([2 * eps * (zw - zs)[:, 0], 2 * eps * (zs - zw)[:, 0]])[..., None]
    torch.testing.assert_close(result.dlogits.cpu(), expected, rtol=1e-6, atol=0)
    assert torch.equal(after, count)


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize("classes", [2, 37, 1100])
def test_wide_gaps(classes, scale, device):
    """One class far above or far below the others, in one view or in both; the same class or another."""
    zw, zs, y, index, _, table = problem(4, classes, spread=1.0)
    zw[:2, 0] += 1e4
    zs[1:3, -1] -= 1e4
    zs[3, classes // 2] += 1e4
    count = torch.zeros(SAMPLES, dtype=torch.int32)
    table[...] = torch.tensor([0.3, 0.5])
    result, _ = call((zw, zs, y, index, count, table), device, entropy_scale=scale)
    weights = torch.tensor([[0.3, 0.5]]).expand(4, 2)
    loss, dlogits = truth(zw, zs, y, *weights.unbind(1), scale)
    assert distance(result.loss, loss) <= 5e-7
    assert distance(result.dlogits, dlogits) <= 1e-6


@pytest.mark.parametrize(("classes", "value"), [(10, torch.nan), (10, torch.inf), (10, -torch.inf), (1100, torch.nan)])
def test_a_row_that_is_not_finite_is_nan_and_not_counted(classes, value, device):
    zw, zs, y, index, count, table = problem(4, classes)
    index[:] = torch.tensor([5, 5, 1, 2])  # a leader, one it serves, and two that come once
    plain, _ = call((zw, zs, y, index, count, table), device, counter_order="after_weights")
    zw[1, 3] = zs[2, classes - 1] = value
    result, after = call((zw, zs, y, index, count, table), device, counter_order="after_weights")
    assert result.loss.isnan().tolist() == [False, True, True, False]
    assert result.dlogits[:, 1:3].isnan().all()
    assert torch.equal(result.dlogits[:, [0, 3]], plain.dlogits[:, [0, 3]])
    assert not result.prediction[:, 1:3].any()
    events = (plain.prediction.cpu() != y).sum(0)
    expected = count.clone()
    expected[5] += events[0]
    expected[2] += events[3]
    assert torch.equal(after, expected)
    spread, _ = call((zw, zs, y, index, count, table), device, entropy_scale="batchmean")
    assert spread.loss.isnan().all()
    assert spread.dlogits.isnan().all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_half_precision_is_computed_in_float32(scale, dtype, device):
    zw, zs, *rest = problem(5, 12)
    zw, zs = zw.to(dtype), zs.to(dtype)
    half, count = call((zw, zs, *rest), device, entropy_scale=scale)
    full, counted = call((zw.float(), zs.float(), *rest), device, entropy_scale=scale)
    assert half.dlogits.dtype == dtype
    assert half.loss.dtype == torch.float32
    assert same_bits(half.loss, full.loss)
    # Triton's interpreter cuts bfloat16 off where a GPU rounds: one step.
    step = torch.finfo(dtype).eps if dtype == torch.bfloat16 else 0
    torch.testing.assert_close(half.dlogits.float(), full.dlogits.to(dtype).float(), rtol=step, atol=0)
    assert torch.equal(count, counted)


def test_any_strides_and_integer_types(device):
    zw, zs, y, index, count, table = problem(6, 12)
    plain, counted = call((zw, zs, y, index, count, table), device)
    turned, part = zw.t().contiguous().t(), torch.cat([zs, zw], 1)[:, :12]
    y, index = y.to(torch.uint8).repeat_interleave(2)[::2], index.to(torch.int32)
    moved = [x.to(device) for x in (count.clone(), table)]
    other = two_view_loss(
        turned.to(device), part.to(device), y.to(device), index.to(device), *moved, errors=new_error_word(device)
    )
    assert all(same_bits(a, b) for a, b in zip(plain, other, strict=True))
    assert torch.equal(moved[0].cpu(), counted)


def test_inputs_are_not_modified_and_nothing_beside_the_counters_is(device):
    zw, zs, y, index, _, table = given = [x.to(device) for x in problem(6, 9)]
    index[2], y[3] = 2**40, -(2**40)
    whole = torch.full((SAMPLES + 20,), 7, dtype=torch.int32, device=device)
    given[4] = whole[10:-10]
    before = [x.clone() for x in (zw, zs, y, index, table)]
    errors = new_error_word(device)
    two_view_loss(*given, errors=errors)
    assert all(torch.equal(x, b) for x, b in zip((zw, zs, y, index, table), before, strict=True))
    assert (whole[:10] == 7).all()
    assert (whole[-10:] == 7).all()
    assert errors[0] != 0


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize("threads", [1, 2])
def test_large_batches_give_the_bits_of_small_ones(threads, scale, monkeypatch):
    from fastlnl.ops.two_view_loss import numba_kernel

    torch.set_num_threads(threads)
    given = problem(97, 33)
    results = []
    with use_backend("numba"):
        for limit in (numba_kernel.SERIAL_BELOW, 0):
            monkeypatch.setattr(numba_kernel, "SERIAL_BELOW", limit)
            monkeypatch.setattr(numba_kernel, "CHUNK_ELEMENTS", 200)
            result, count = call(given, "cpu", entropy_scale=scale, reduction="mean")
            results.append((*result, count))
    assert all(same_bits(a, b) for a, b in zip(*results, strict=True))


@pytest.mark.parametrize(
    ("place", "value", "text"),
    [
        (1, torch.zeros(3, 5), r"logits_strong is \(3, 5\) float32 but logits_weak is \(3, 4\) float32"),
        (1, torch.zeros(3, 4).half(), r"logits_strong is \(3, 4\) float16 but"),
        (2, torch.zeros(2, dtype=torch.int64), r"label is \(2,\) int64; expected \(3,\)"),
        (3, torch.zeros(3), r"index is \(3,\) float32; expected \(3,\) of an integer type"),
        (4, torch.zeros(5, dtype=torch.int64), r"wrong_count is \(5,\) int64; expected contiguous \(N,\) int32"),
        (4, torch.zeros(0, dtype=torch.int32), r"wrong_count is \(0,\) int32; .*N at least 1"),
        (5, torch.zeros(3, 2, 2), r"table is \(3, 2, 2\) float32; expected .* G = 4 .* or 1, and K at least 1"),
        (5, torch.zeros(4, 0, 2), r"table is \(4, 0, 2\)"),
        (5, torch.zeros(4, 2), r"table is \(4, 2\)"),
        (5, torch.zeros(4, 2, 2).double(), r"table is \(4, 2, 2\) float64"),
    ],
)
def test_refused_at_the_door(place, value, text):
    given = [torch.zeros(3, 4), torch.zeros(3, 4), torch.zeros(3, dtype=torch.int64), torch.arange(3)]
    given += [torch.zeros(5, dtype=torch.int32), torch.ones(4, 2, 2)]
    given[place] = value
    with pytest.raises(ShapeError, match=text):
        two_view_loss(*given, errors=new_error_word())


@pytest.mark.parametrize("option", ["entropy_scale", "counter_order", "reduction"])
def test_unknown_options_are_refused(option):
    with pytest.raises(ShapeError, match=f"{option} is 'other'; expected one of"):
        call(problem(2, 3), "cpu", **{option: "other"})


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize("classes", [2, 3, 10, 100, 1000])
def test_errs_no_more_than_plain_torch(classes, scale):
    """Over many rows, in float32 against float64; Triton's interpreter would take too long."""
    zw, zs, y, index, count, table = problem(512, classes)
    weights = torch.tensor([[0.4, 1.2]]).expand(512, 2)
    table[...] = weights[0]
    views = [z.clone().requires_grad_() for z in (zw, zs)]
    eager = formula(*views, y, *weights.unbind(1), scale)
    gradients = torch.stack(torch.autograd.grad(eager.sum(), views))
    loss, dlogits = truth(zw, zs, y, *weights.unbind(1), scale)
    with use_backend("numba"):
        result, _ = call((zw, zs, y, index, count, table), "cpu", entropy_scale=scale)
    assert distance(result.loss, loss) <= distance(eager, loss)
    assert distance(result.dlogits, dlogits) <= distance(gradients, dlogits)


@pytest.mark.parametrize(("scale", "launches"), [("none", 1), ("sample", 1), ("batchmean", 2)])
@pytest.mark.parametrize("classes", [10, 1100])
def test_launches_of_a_step(classes, scale, launches, monkeypatch):
    """Counters, look-up, loss and gradients, repeated ids included; "batchmean" has to know its means first."""
    pytest.importorskip("triton")
    from fastlnl.ops.two_view_loss.triton_kernel import two_view_loss_kernel

    names, kind = [], type(two_view_loss_kernel)
    run = kind.run
    monkeypatch.setattr(kind, "run", lambda self, *a, **k: names.append(self.fn.__name__) or run(self, *a, **k))
    given = problem(5, classes)
    given[3][:] = 2
    with use_backend("triton"):
        call(given, "cuda" if torch.cuda.is_available() else "cpu", entropy_scale=scale)
    assert names == [f"two_view_loss_{'wide_' if classes > 1024 else ''}kernel"] * launches
