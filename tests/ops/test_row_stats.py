"""row_stats against float64 truth, its laws and its limits."""

import pytest
import torch
from truths import distance, same_bits

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.row_stats import row_stats

pytestmark = pytest.mark.usefixtures("poison")
CLASSES = [1, 2, 7, 10, 16, 17, 100, 1000, 8192, 8193]


def run(z, y, device, errors=None):
    return row_stats(z.to(device), y.to(device), errors=new_error_word(device) if errors is None else errors)


def truth(z, y):
    """The six statistics in float64, each from its definition."""
    logp = torch.log_softmax(z.double(), 1)
    p, own = logp.exp(), torch.nn.functional.one_hot(y, z.shape[1]).bool()
    z_y = z.double()[own]
    others = z.double().masked_fill(own, -torch.inf).amax(1)
    margin = z_y - others if z.shape[1] > 1 else torch.zeros_like(z_y)
    return -logp[own], p[own], p.amax(1), z.double().argmax(1), margin, -(p * logp).sum(1)


def check(z, y, device):
    for name, ours, exact in zip(row_stats_fields(), run(z, y, device), truth(z, y), strict=True):
        assert ours.shape == (len(z),), name
        if name == "prediction":
            assert ours.dtype == torch.int64
            assert torch.equal(ours.cpu(), exact)
        else:
            assert ours.dtype == torch.float32
            assert distance(ours, exact) <= 5e-7, name


def row_stats_fields():
    return ("nll", "p_label", "confidence", "prediction", "margin", "entropy")


def batch_of(classes, batch=13):
    batch = 3 if classes > 1000 else batch
    return 3 * torch.randn(batch, classes), torch.randint(0, classes, (batch,))


@pytest.mark.parametrize("classes", CLASSES)
def test_statistics(classes, device):
    check(*batch_of(classes), device)


@pytest.mark.parametrize("classes", [21841, 100_000])
@pytest.mark.parametrize("name", ["reference", "numba"])
def test_very_wide_rows(name, classes):
    with use_backend(name):
        check(*batch_of(classes), "cpu")


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", [2, 17, 1000])
def test_half_precision_is_read_exactly(classes, dtype, device):
    z, y = batch_of(classes)
    z = z.to(dtype)
    narrow, wide = run(z, y, device), run(z.float(), y, device)
    assert all(same_bits(x, y) for x, y in zip(narrow, wide, strict=True))


def test_float64_on_the_reference():
    z, y = batch_of(10)
    wide, narrow = run(z.double(), y, "cpu"), truth(z, y)
    for ours, exact in zip(wide, narrow, strict=True):
        assert distance(ours, exact) <= 2.0**-24  # rounded to float32 once


@pytest.mark.parametrize("classes", [1, 10, 37])
def test_strides_change_nothing(classes, device):
    z, y = batch_of(classes)
    plain = run(z, y, device)
    layouts = (
        z.t().contiguous().t(),
        torch.nn.functional.pad(z, (2, 3), value=9.0)[:, 2:-3],
        z.repeat_interleave(2, 0)[::2],
        z.repeat_interleave(2, 1)[:, ::2],
    )
    for view in layouts:
        for ours, expected in zip(run(view, y, device), plain, strict=True):
            assert same_bits(ours, expected)


@pytest.mark.parametrize("threads", [1, 2])
def test_above_the_parallel_threshold(threads):
    from fastlnl.ops.row_loss.numba_kernel import SERIAL_BELOW

    torch.set_num_threads(threads)
    z, y = batch_of(100, batch=2800)
    assert z.numel() > SERIAL_BELOW
    with use_backend("numba"):
        check(z, y, "cpu")


def test_empty_batch(device):
    stats = run(torch.empty(0, 5), torch.empty(0, dtype=torch.int64), device)
    assert all(column.shape == (0,) for column in stats)


@pytest.mark.parametrize("classes", [3, 17, 40, 9000])
def test_the_lowest_of_equal_classes_is_predicted(classes, device):
    z = torch.zeros(3, classes)
    z[1, classes // 2 :] = 1.0
    z[2, -1] = 1.0
    stats = run(z, torch.zeros(3, dtype=torch.int64), device)
    assert stats.prediction.tolist() == [0, classes // 2, classes - 1]
    assert stats.margin.tolist() == [0.0, -1.0, -1.0]


def test_margin_is_positive_where_the_label_wins(device):
    z = torch.tensor([[3.0, 1.0, 2.5], [3.0, 1.0, 2.5], [3.0, 1.0, 2.5]])
    assert run(z, torch.tensor([0, 1, 2]), device).margin.tolist() == [0.5, -2.0, -0.5]


@pytest.mark.parametrize("classes", [2, 10, 9000])
@pytest.mark.parametrize("gap", [1e4, 1e38, 3e38])
def test_wide_gaps_are_finite(classes, gap, device):
    z = torch.randn(2, classes)
    z[0, 0] = z[1, -1] = gap
    z[0, -1] = z[1, 0] = -gap
    stats = run(z, torch.tensor([0, 0]), device)
    assert stats.nll[0] == 0
    assert stats.nll[1] > 1e4
    assert stats.p_label.tolist() == [1.0, 0.0]
    assert stats.confidence.tolist() == [1.0, 1.0]
    assert stats.entropy.tolist() == [0.0, 0.0]
    assert stats.prediction.tolist() == [0, classes - 1]


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("classes", [2, 17, 9000])
def test_a_row_that_is_no_number_stays_alone(classes, bad, device):
    z, y = torch.randn(3, classes), torch.zeros(3, dtype=torch.int64)
    plain = run(z, y, device)
    z[1, 1] = bad
    stats = run(z, y, device)
    for name in ("nll", "p_label", "confidence", "entropy"):
        assert getattr(stats, name)[1].isnan(), name
    assert 0 <= stats.prediction[1] < classes
    for ours, expected in zip(stats, plain, strict=True):
        assert same_bits(ours[[0, 2]], expected[[0, 2]])


@pytest.mark.parametrize("wrong", [-1, 10, 2**40])
def test_label_out_of_range(wrong, device):
    z, y = torch.randn(12, 10), torch.arange(12) % 10
    y[9] = wrong
    errors = new_error_word(device)
    stats = run(z, y, device, errors)
    assert errors.tolist() == [1, 9, 9, wrong]
    assert not any(column[9].any() for column in stats)
    y[2], y[9] = 77, 0
    run(z, y, device, errors)
    assert errors.tolist() == [1, 9, 9, wrong]  # the first stays


def test_inputs_are_not_modified_and_no_graph_is_kept(device):
    z, y = (x.to(device) for x in batch_of(10))
    z.requires_grad_()
    before = z.detach().clone(), y.clone()
    stats = run(z, y, device)
    assert same_bits(z.detach(), before[0])
    assert same_bits(y, before[1])
    assert not any(column.requires_grad for column in stats)


def test_refused_at_the_door():
    errors = new_error_word()
    with pytest.raises(ShapeError, match=r"logits is \(3,\) float32; expected \(B, C\)"):
        row_stats(torch.zeros(3), torch.zeros(3, dtype=torch.int64), errors=errors)
    with pytest.raises(ShapeError, match=r"label is \(2,\) int64; expected \(3,\) of an integer type"):
        row_stats(torch.zeros(3, 4), torch.zeros(2, dtype=torch.int64), errors=errors)
