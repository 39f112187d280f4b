"""row_loss where softmax is at its limits: wide gaps, equal logits, -inf, NaN and +inf."""

import pytest
import torch
from truths import LOSS, call, distance, on, same_bits, table_of, targets, truth

from fastlnl.ops.row_loss import LOSSES

pytestmark = pytest.mark.usefixtures("poison")
ALL_CLASSES_MATTER = {"label_smoothing", "nce", "nce_rce"}  # sum log p: an impossible class makes it infinite


def options_for(name, batch, classes, device):
    return {"target": targets(batch, classes).to(device)} if LOSSES[name].needs_target else {}


@pytest.mark.parametrize("gap", [100.0, 1e4])
@pytest.mark.parametrize("classes", [2, 10, 37])
@pytest.mark.parametrize("name", LOSS)
def test_wide_gaps(name, classes, gap, device):
    """One class far above or far below the others, as the given label and as another class."""
    z = torch.randn(6, classes)
    z[:3, 0] += gap
    z[3:, 0] -= gap
    y = torch.arange(6) % classes
    t = targets(6, classes) if LOSSES[name].needs_target else None
    result = call(z.to(device), y.to(device), name, target=on(device, t))
    loss, gradient = truth(name, z, y, t)
    assert distance(result.loss, loss) <= 1e-6
    # exp(-100) is no float32: where the true gradient is that small, one rounding of the coefficients is allowed
    assert (result.dlogits.cpu() - gradient).norm() <= 1e-6 * gradient.norm().clamp(min=1.0)


@pytest.mark.parametrize("largest", [1e4, 1e38, 3e38])
@pytest.mark.parametrize("classes", [1, 2, 10, 9000])
@pytest.mark.parametrize("name", ["cross_entropy", "label_smoothing", "alr", "elr", "nce_rce", "focal"])
def test_finite_for_all_finite_logits(name, classes, largest, device):
    """3e38 - (-3e38) is no float32; the largest logit in the first and in the last columns."""
    z = torch.randn(2, classes)
    z[0, 0] = z[1, -1] = largest
    z[0, -1] = z[1, 0] = -largest
    y = torch.tensor([classes - 1, 0])
    result = call(z.to(device), y.to(device), name, **options_for(name, 2, classes, device))
    assert result.loss.isfinite().all()
    assert result.dlogits.isfinite().all()


@pytest.mark.parametrize("value", [0.0, -3.7, 88.8, 1e4])
@pytest.mark.parametrize("classes", [2, 3, 7, 10, 100, 1000])
def test_equal_logits_prefer_no_class(classes, value, device):
    """The entropy gradient of a uniform prediction is one number for all classes, to the bit."""
    z = torch.full((3, classes), value, device=device)
    nothing = torch.zeros(3, classes, device=device)
    result = call(z, None, "alr", {"entropy_weight": 1.0}, target=nothing)
    assert (result.dlogits == result.dlogits[:, :1]).all()
    # log p + H of two numbers near log C, each rounded, times p
    assert result.dlogits.abs().max() <= 4 * 2.0**-24 * torch.log(torch.tensor(classes)) / classes
    assert distance(result.loss, torch.full((3,), float(classes)).double().log()) <= 2e-7


@pytest.mark.parametrize("classes", [2, 10, 37, 9000])
@pytest.mark.parametrize("name", sorted(set(LOSS) - ALL_CLASSES_MATTER))
def test_minus_infinity_is_a_class_of_probability_zero(name, classes, device):
    """The other classes see what they would see without it, and its own gradient is that of p = 0: -c t."""
    z, y = torch.randn(3, classes), torch.tensor([1, classes - 1, 1])
    z[:, 0] = -torch.inf
    t = targets(3, classes) if LOSSES[name].needs_target else None
    if t is not None:
        t[:, 0] = 0
    result = call(z.to(device), y.to(device), name, target=on(device, t))
    loss, gradient = truth(name, z[:, 1:], y - 1, None if t is None else t[:, 1:])
    assert distance(result.loss, loss) <= 1e-6
    assert distance(result.dlogits[:, 1:], gradient) <= 1e-6
    assert not result.dlogits[:, 0].any()


@pytest.mark.parametrize("classes", [2, 10])
def test_minus_infinity_at_the_given_label(classes, device):
    z, y = torch.randn(2, classes, device=device), torch.zeros(2, dtype=torch.int64, device=device)
    z[:, 0] = -torch.inf
    result = call(z, y, "mae", with_stats=True)
    assert result.loss.tolist() == [1.0, 1.0]
    assert not result.dlogits.any()
    assert result.stats.p_label.tolist() == [0.0, 0.0]
    pushed = call(z, y, "cross_entropy").dlogits
    assert (pushed[:, 0] == -1).all()
    assert distance(pushed[:, 1:], torch.softmax(z[:, 1:].double(), 1)) <= 2e-7


BAD_ROWS = {
    "nan": lambda row: row.index_fill(0, torch.tensor([1]), torch.nan),
    "all nan": lambda row: row * torch.nan,
    "+inf": lambda row: row.index_fill(0, torch.tensor([1]), torch.inf),
    "two +inf": lambda row: row.index_fill(0, torch.tensor([0, 1]), torch.inf),
    "all -inf": lambda row: torch.full_like(row, -torch.inf),
}


@pytest.mark.parametrize("classes", [2, 17, 9000])
@pytest.mark.parametrize("name", ["cross_entropy", "alr", "elr", "nce", "focal", "bootstrapping"])
def test_a_row_that_is_no_number_stays_alone(name, classes, device):
    """NaN in, NaN out, in that row only; its memory row keeps its bits, the others move."""
    count = 2 * len(BAD_ROWS) + 1  # each among good ones
    z, y, index = torch.randn(count, classes), torch.arange(count) % classes, torch.randperm(count + 2)[:count]
    rows = targets(count + 2, classes)
    bad, others = z.clone(), torch.arange(0, count, 2)
    for i, spoil in enumerate(BAD_ROWS.values()):
        bad[2 * i + 1] = spoil(z[2 * i + 1])
    clean_memory, memory = table_of(rows, device), table_of(rows, device)
    clean = call(z.to(device), y.to(device), name, **_memory(name, clean_memory, index.to(device)))
    result = call(bad.to(device), y.to(device), name, **_memory(name, memory, index.to(device)))
    assert result.loss[1::2].isnan().all()
    assert result.dlogits[1::2].isnan().all()
    assert same_bits(result.loss[others], clean.loss[others])
    assert same_bits(result.dlogits[others], clean.dlogits[others])
    if LOSSES[name].needs_target:
        assert same_bits(memory.table[index[1::2]], rows[index[1::2]])
        assert same_bits(memory.table[index[others]], clean_memory.table[index[others]])


def _memory(name, memory, index):
    return {"memory": memory, "index": index} if LOSSES[name].needs_target else {}


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("repeated", [True, False])
def test_a_row_that_is_no_number_leaves_a_fresh_memory_row_fresh(one_hot, repeated, device):
    z = torch.randn(2, 5)
    z[1, 3] = torch.nan  # the last occurrence, which would be the one to store
    index = torch.tensor([1, 1] if repeated else [0, 1])
    memory = table_of(torch.full((3, 5), -1.0), device, one_hot=one_hot)
    call(z.to(device), torch.tensor([2, 2], device=device), "alr", memory=memory, index=index.to(device))
    assert (memory.table[1] == -1).all()
    assert (memory.table[2] == -1).all()
    assert repeated or (memory.table[0] >= 0).all()


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_nan_shows_in_the_reduced_loss(reduction, device):
    z = torch.randn(3, 4, device=device)
    z[2, 0] = torch.nan
    assert call(z, torch.zeros(3, dtype=torch.int64, device=device), "gce", reduction=reduction).loss.isnan()
