"""row_loss against float64 truth: every loss, backend, width, type and stride; reductions, weights, statistics."""

import math

import pytest
import torch
from truths import LOSS, call, distance, focal, on, same_bits, table_of, targets, truth

from fastlnl.backend import current_backend, use_backend
from fastlnl.ops.row_loss import LOSSES, new_error_word
from fastlnl.ops.row_stats import row_stats

pytestmark = pytest.mark.usefixtures("poison")
BATCH = 13  # no multiple of the rows a program takes
CLASSES = (2, 7, 10, 16, 17, 100, 1000)
UNIT = {torch.float16: 2.0**-11, torch.bfloat16: 2.0**-8}  # half the distance of neighbours, relative


def batch_of(classes, batch=BATCH, spread=3.0, dtype=torch.float32):
    return (spread * torch.randn(batch, classes)).to(dtype), torch.randint(0, classes, (batch,))


def interpreted():
    return current_backend() == "triton" and not torch.cuda.is_available()


def target_for(name, batch, classes, total=0.8):
    return targets(batch, classes, total) if LOSSES[name].needs_target else None


def errors_of(name, z, y, t, device):
    """Relative errors of loss and gradient: ours, and those of the formula in eager float32."""
    result = call(z.to(device), y.to(device), name, target=on(device, t))
    exact, eager = truth(name, z, y, t), truth(name, z, y, t, torch.float32)
    return [(distance(o, x), distance(e, x)) for o, e, x in zip(result[:2], eager, exact, strict=True)]


def check_against_truth(*case):
    """1e-6 of the truth, and no less exact than what torch computes in float32.

    Rounding errors of two float32 formulas for a few rows differ by about a factor of 2 either way; over many rows, in
    `test_never_less_exact_than_eager_over_many_rows`, the factor is 1.
    """
    for ours, eager in errors_of(*case):
        assert ours <= min(max(2 * eager, 2e-7), 1e-6)


def test_every_loss_has_a_truth():
    assert set(LOSS) <= set(LOSSES)
    assert {name for name in LOSSES if LOSSES[name].function.__module__.startswith("fastlnl.")} == set(LOSS)


@pytest.mark.parametrize("classes", CLASSES)
@pytest.mark.parametrize("name", LOSS)
def test_loss_and_gradient(name, classes, device):
    z, y = batch_of(classes)
    check_against_truth(name, z, y, target_for(name, BATCH, classes), device)


WIDTHS = [("numba", 2048, c) for c in (2, 7, 10, 32, 33, 100)] + [("numba", 256, 1000)]
WIDTHS += [("triton", 256, 10)]  # wider rows: too slow to interpret in such numbers


@pytest.mark.parametrize(("backend", "batch", "classes"), WIDTHS)
@pytest.mark.parametrize("name", LOSS)
def test_never_less_exact_than_eager_over_many_rows(name, backend, batch, classes):
    """The gradient. Triton gets parameters such as 0.1 in float32, which may cost half a unit of the last place."""
    where = torch.device("cuda" if backend == "triton" and torch.cuda.is_available() else "cpu")
    z, y = batch_of(classes, batch)
    with use_backend(backend):
        _, (ours, eager) = errors_of(name, z, y, target_for(name, batch, classes), where)
    assert ours <= (eager if backend == "numba" else max(eager, 2.0**-24))


def test_on_the_whole_at_least_as_exact_as_eager(device):
    logs = [[], []]
    for name in LOSS:
        for classes in (10, 100, 1000):
            z, y = batch_of(classes)
            for log, (ours, eager) in zip(
                logs, errors_of(name, z, y, target_for(name, BATCH, classes), device), strict=True
            ):
                log.append(math.log(ours / eager))
    loss, gradient = (sum(log) / len(log) for log in logs)
    assert loss <= 0
    assert gradient <= 0


@pytest.mark.parametrize("name", LOSS)
def test_one_class_has_no_gradient(name, device):
    z, y = batch_of(1)
    t = torch.ones(BATCH, 1) if LOSSES[name].needs_target else None
    result = call(z.to(device), y.to(device), name, target=on(device, t))
    loss, _ = truth(name, z, y, t)
    assert distance(result.loss, loss) <= 1e-7
    # a - b - c s + f of coefficients up to 9.4, each rounded once
    assert result.dlogits.abs().max() <= 9.4 * 2.0**-23


@pytest.mark.parametrize("classes", [8192, 8193, 21841, 100_000])
@pytest.mark.parametrize(
    "name", ["cross_entropy", "label_smoothing", "soft_cross_entropy", "elr", "alr", "bootstrapping"]
)
def test_wide_rows(name, classes, device):
    """From 8,193 classes on Triton reads a row in blocks."""
    if interpreted() and classes == 100_000:
        pytest.skip("interpreted: 21,841 classes take the same path")
    z, y = batch_of(classes, batch=2)
    y[0] = classes - 1
    check_against_truth(name, z, y, target_for(name, 2, classes), device)


@pytest.mark.parametrize("dtype", UNIT)
@pytest.mark.parametrize("classes", [10, 17, 1000])
@pytest.mark.parametrize("name", LOSS)
def test_half_precision_rounds_the_gradient_once(name, classes, dtype, device):
    z, y = batch_of(classes, dtype=dtype)
    t = target_for(name, BATCH, classes)
    result = call(z.to(device), y.to(device), name, target=on(device, t))
    loss, gradient = truth(name, z, y, t)
    assert result.loss.dtype == torch.float32
    assert result.dlogits.dtype == dtype
    assert distance(result.loss, loss) <= 1e-6
    error = (result.dlogits.cpu().double() - gradient).abs()
    unit = UNIT[dtype] * (2 if dtype == torch.bfloat16 and interpreted() else 1)  # the interpreter cuts bits off
    float32_error = 1e-6 * gradient.norm(dim=1, keepdim=True)
    smallest = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps / 2  # half of the smallest float16
    assert (error <= unit * gradient.abs() + float32_error + smallest).all()


@pytest.mark.parametrize("name", LOSS)
def test_float64_on_the_reference(name):
    z, y = batch_of(10, dtype=torch.float64)
    t = target_for(name, BATCH, 10)
    result = call(z, y, name, target=t)
    for ours, exact in zip(result[:2], truth(name, z, y, t), strict=True):
        assert ours.dtype == torch.float64
        assert distance(ours, exact) <= 1e-14


LAYOUTS = {
    "transposed": lambda z: z.t().contiguous().t(),
    "column slice": lambda z: torch.nn.functional.pad(z, (3, 2), value=99.0)[:, 3:-2],
    "every second row": lambda z: z.repeat_interleave(2, 0)[::2],
    "every second column": lambda z: z.repeat_interleave(2, 1)[:, ::2],
    "odd start": lambda z: torch.cat([z.new_full((1,), 99.0), z.flatten()])[1:].view(z.shape),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("classes", [1, 10, 37])
def test_strides_change_nothing(classes, layout, dtype, device):
    z, y = batch_of(classes, dtype=dtype)
    z, y = z.to(device), y.to(device)
    plain = call(z, y, "bootstrapping", with_stats=True)
    view = LAYOUTS[layout](z)
    assert torch.equal(view, z)
    strided = call(view, y, "bootstrapping", with_stats=True)
    for ours, expected in zip((*strided[:2], *strided.stats), (*plain[:2], *plain.stats), strict=True):
        assert same_bits(ours, expected)
    assert strided.dlogits.is_contiguous()


def test_one_row_repeated_by_a_stride_of_zero(device):
    z, y = batch_of(10, batch=1)
    result = call(z.to(device).expand(5, 10), y.to(device).expand(5), "cross_entropy")
    single = call(z.to(device), y.to(device), "cross_entropy")
    assert same_bits(result.dlogits, single.dlogits.expand(5, 10))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.int32])
def test_any_integer_type(dtype, device):
    z, y = batch_of(10)
    z, y, index = z.to(device), y.to(device), torch.arange(BATCH, device=device)
    rows = targets(BATCH, 10)
    wide, narrow = table_of(rows, device), table_of(rows, device)
    expected = call(z, y, "alr", memory=wide, index=index)
    result = call(z, y.to(dtype), "alr", memory=narrow, index=index.to(dtype))
    assert same_bits(result.dlogits, expected.dlogits)
    assert same_bits(narrow.table, wide.table)


@pytest.mark.parametrize("name", ["cross_entropy", "alr", "elr"])
@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
def test_empty_batch(name, reduction, device):
    z, y = torch.empty(0, 10, device=device), torch.empty(0, dtype=torch.int64, device=device)
    memory = table_of(targets(4, 10), device)
    before = memory.table.clone()
    options = {"memory": memory, "index": y} if LOSSES[name].needs_target else {}
    result = call(z, y, name, reduction=reduction, with_stats=True, **options)
    assert result.loss.shape == ((0,) if reduction == "none" else ())
    assert not result.loss.any()  # the mean of nothing is 0, not NaN
    assert result.dlogits.shape == (0, 10)
    assert all(column.shape == (0,) for column in result.stats)
    assert same_bits(memory.table, before)


@pytest.mark.parametrize("name", ["cross_entropy", "nce", "elr", "alr"])
def test_weights_and_scale(name, device):
    z, y = batch_of(10)
    t, w = target_for(name, BATCH, 10), torch.rand(BATCH) * 3
    w[4] = 0
    result = call(z.to(device), y.to(device), name, target=on(device, t), weight=w.to(device), grad_scale=0.25)
    loss, gradient = truth(name, z, y, t)
    assert distance(result.loss, loss * w) <= 2e-7
    assert distance(result.dlogits, gradient * w[:, None] / 4) <= 2e-7
    assert result.loss[4] == 0
    assert not result.dlogits[4].any()
    half = call(z.to(device), y.to(device), name, target=on(device, t), weight=w.half().to(device))
    assert distance(half.loss, loss * w.half()) <= 2e-7
    ones = call(z.to(device), y.to(device), name, target=on(device, t), weight=torch.ones(BATCH, device=device))
    assert same_bits(ones.dlogits, call(z.to(device), y.to(device), name, target=on(device, t)).dlogits)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_reduction_touches_the_loss_only(reduction, device):
    z, y = batch_of(10)
    each, together = (call(z.to(device), y.to(device), "gce", reduction=r) for r in ("none", reduction))
    expected = each.loss.double().sum() / (BATCH if reduction == "mean" else 1)
    assert together.loss.shape == ()
    assert together.loss.dtype == torch.float32
    assert distance(together.loss, expected) <= 2e-7
    assert same_bits(each.dlogits, together.dlogits)


@pytest.mark.parametrize("classes", [1, 2, 17, 1000])
def test_statistics_ride_along(classes, device):
    """The statistics are those of row_stats and cost the loss nothing, not even a bit."""
    z, y = batch_of(classes)
    z, y = z.to(device), y.to(device)
    without, result = call(z, y, "sce"), call(z, y, "sce", with_stats=True)
    assert without.stats is None
    assert same_bits(result.dlogits, without.dlogits)
    assert same_bits(result.loss, without.loss)
    alone = row_stats(z, y, errors=new_error_word(device))
    for ours, other in zip(result.stats, alone, strict=True):
        assert distance(ours, other) <= 2e-7


@pytest.mark.parametrize("parameters", [{"gamma": 0.5}, {"gamma": 3.0}])
def test_parameters_reach_the_kernel(parameters, device):
    z, y = batch_of(10)
    x = z.double().requires_grad_()
    loss = focal(torch.log_softmax(x, 1), y, **parameters)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    result = call(z.to(device), y.to(device), "focal", parameters)
    assert distance(result.loss, loss) <= 2e-7
    assert distance(result.dlogits, gradient) <= 4e-7


def test_inputs_are_not_modified(device):
    z, y = batch_of(10)
    given = [x.to(device) for x in (z, y, torch.randperm(BATCH), targets(BATCH, 10), torch.rand(BATCH))]
    before = [x.clone() for x in given]
    logits, label, index, target, weight = given
    call(logits, label, "alr", target=target, weight=weight, with_stats=True)
    call(logits, label, "alr", memory=table_of(targets(20, 10), device), index=index, weight=weight)
    assert all(same_bits(x, y) for x, y in zip(given, before, strict=True))


def test_results_carry_no_graph(device):
    """A primitive is numbers in, numbers out."""
    z, y = batch_of(10)
    memory = table_of(targets(BATCH, 10), device)
    z = z.to(device).requires_grad_()
    result = call(z, y.to(device), "alr", memory=memory, index=torch.arange(BATCH, device=device), with_stats=True)
    assert not any(x.requires_grad for x in (*result[:2], *result.stats, memory.table))
