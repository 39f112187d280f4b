"""csrc's row kernels over class counts, types, targets, batches and strides, against the reference in float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from truths import distance, same_bits, targets

from fastlnl.errors import BackendError
from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word
from fastlnl.ops.row_loss.contract import RowLossInput
from fastlnl.ops.row_loss.cuda_kernel import KINDS, row_loss
from fastlnl.ops.row_loss.reference import row_loss as reference

pytestmark = pytest.mark.usefixtures("poison", "device")
CLASSES = [1, 2, 7, 10, 16, 17, 31, 33, 64, 65, 100, 257, 1000, 1024, 1025, 8192, 21841]
TARGETS = {"cross_entropy": "none", "gce": "none", "soft_cross_entropy": "dense", "alr": "table", "elr": "table"}
# Relative and absolute rounding of a gradient in its type, and as much again for float32 arithmetic.
ROUNDED = {torch.float32: (3e-6, 1e-7), torch.bfloat16: (2.0**-8, 1e-7), torch.float16: (2.0**-10, 2.0**-24)}


def call_of(name, logits, samples=5, with_stats=True, weight=True):
    """A call with repeated ids, a row that was never written and weights."""
    batch, classes = logits.shape
    loss, kind = LOSSES[name], TARGETS[name]
    index = torch.randint(0, samples, (batch,))
    label = torch.randint(0, classes, (samples,))[index]
    memory = None
    if kind == "table":
        rows = targets(samples, classes)
        rows[samples // 2] = -1
        memory = TableTarget(rows, 0.7, 0.9, name == "alr")
    target = targets(batch, classes, 0.9) if kind == "dense" else None
    weights = torch.rand(batch) if weight else None
    errors = new_error_word()
    return RowLossInput(
        logits, label, loss, loss.parameters(), target, memory, index, weights, 0.5, "none", with_stats, errors, None
    )


def check(call):
    """The kernel against the reference in float64; it may err twice as much as the reference in float32."""
    exact, table = reference_of(call, torch.float64)
    plain, _ = reference_of(call, torch.float32)
    result = row_loss(call)
    assert result.dlogits.dtype == call.logits.dtype
    assert distance(result.loss, exact.loss) <= max(3e-6, 2 * distance(plain.loss, exact.loss))
    arithmetic = 2 * float((plain.dlogits - exact.dlogits).abs().max())
    relative, absolute = ROUNDED[call.logits.dtype]
    torch.testing.assert_close(result.dlogits.double(), exact.dlogits, rtol=relative, atol=absolute + arithmetic)
    if call.with_stats:
        assert torch.equal(result.stats.prediction, exact.stats.prediction)
        for name in ("nll", "p_label", "confidence", "margin", "entropy"):
            assert distance(getattr(result.stats, name), getattr(exact.stats, name)) <= 3e-6, name
    if table is not None:
        assert distance(call.memory.table, table) <= 1e-6
    return result


def reference_of(call, dtype):
    """What the reference makes of these logits in `dtype`, and the label memory it leaves."""
    memory = call.memory and call.memory._replace(table=call.memory.table.clone())
    call = replace(call, logits=call.logits.to(dtype), memory=memory, errors=call.errors.clone())
    return reference(call), memory and memory.table


WIDTHS = [(classes, torch.float32) for classes in CLASSES]
WIDTHS += [(classes, dtype) for classes in (7, 16, 100, 1024, 1101, 8192) for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.parametrize(("classes", "dtype"), WIDTHS)
def test_every_width(classes, name, dtype):
    batch = 9 if classes < 5000 else 3
    check(call_of(name, (3 * torch.randn(batch, classes)).to(dtype)))


@pytest.mark.parametrize("name", ["cross_entropy", "soft_cross_entropy", "alr"])
@pytest.mark.parametrize("classes", [2049, 21841])
def test_rows_that_do_not_fit_shared_memory(classes, name, emulator):
    emulator.emulator_shared_limit(4096)
    try:
        check(call_of(name, 3 * torch.randn(3, classes)))
    finally:
        emulator.emulator_shared_limit(227 * 1024)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("classes", [7, 100, 1025, 1032])
def test_a_row_gives_the_same_bits_wherever_it_lies(classes, dtype):
    """All heads: rows that begin 0 to 7 elements after a multiple of 16 bytes, and any stride."""
    z = torch.randn(3, classes).to(dtype)
    call = call_of("cross_entropy", z)
    plain = row_loss(call)
    for shift, more in itertools.product(range(8), (0, 1, 8)):
        place = torch.zeros(3 * (classes + more) + shift, dtype=dtype)
        call.logits = place[shift:].view(3, classes + more)[:, :classes]
        call.logits.copy_(z)
        moved = row_loss(call)
        assert same_bits(moved.loss, plain.loss)
        assert same_bits(moved.dlogits, plain.dlogits)
        assert all(same_bits(a, b) for a, b in zip(moved.stats, plain.stats, strict=True))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["cross_entropy", "soft_cross_entropy", "alr"])
@pytest.mark.parametrize("classes", [7, 10, 60, 100, 250, 1000, 1023, 1101, 2056])
def test_half_precision_gives_the_bits_of_its_values_in_float32(classes, name, dtype):
    """The order of additions is that of the columns, in every type: only the gradient is rounded once more."""
    half = call_of(name, 3 * torch.randn(3, classes).to(dtype))
    full = replace(half, logits=half.logits.float(), errors=new_error_word())
    if half.memory is not None:
        full.memory = half.memory._replace(table=half.memory.table.clone())
    ours, plain = row_loss(half), row_loss(full)
    assert same_bits(ours.loss, plain.loss)
    assert all(same_bits(x, y) for x, y in zip(ours.stats, plain.stats, strict=True))
    assert same_bits(ours.dlogits, plain.dlogits.to(dtype))
    assert half.memory is None or same_bits(half.memory.table, full.memory.table)


@pytest.mark.parametrize("classes", [5, 40, 100, 1100])
@pytest.mark.parametrize("batch", [1, 2, 31, 33, 130])
def test_batches_over_many_blocks(batch, classes):
    check(call_of("alr", torch.randn(batch, classes), samples=max(2, batch // 3)))


def test_teams_that_take_several_rows():
    """3 rounds of 4 rows a block: the emulator calls 16 blocks many."""
    z = torch.randn(4 * 16 * 3 + 5, 65)
    check(call_of("alr", z, samples=150, with_stats=False))


@pytest.mark.parametrize("name", TARGETS)
def test_neither_statistics_nor_weights(name):
    result = check(call_of(name, torch.randn(4, 37), with_stats=False, weight=False))
    assert result.stats is None


def test_label_and_id_out_of_range():
    call = call_of("alr", torch.randn(40, 12), samples=9)
    call.label[35], call.index[3], call.index[20] = 12, -2, 9
    before = call.memory.table.clone()
    result = check(call)
    assert call.errors.tolist() == [2, 3, -2, -2]
    assert not result.dlogits[[3, 20, 35]].any()
    assert not result.loss[[3, 20, 35]].any()
    assert not torch.equal(call.memory.table, before)


def test_padding_touches_nothing():
    call = call_of("alr", torch.randn(40, 12), samples=9)
    call.index[[3, 20]], call.label[20] = -1, 12
    result = check(call)
    assert not call.errors.any()
    assert not result.dlogits[[3, 20]].any()


def test_what_is_not_served_is_named():
    call = call_of("alr", torch.randn(4, 6))
    call.loss = LOSSES["focal"]
    with pytest.raises(BackendError, match=r"backend 'cuda' has no loss 'focal', it has cross_entropy, .*'triton'"):
        row_loss(call)


def test_losses_are_numbered_as_in_csrc(emulator):
    from emulated import CSRC

    text = (CSRC / "kernels.h").read_text()
    names = text.split("enum Loss : int32_t {")[1].split("}")[0].replace(" ", "").split(",")
    assert {names[number].lower() for number in KINDS.values()} == {loss.name for loss in KINDS} - {"selc"}
    assert [names.index(loss.name.upper()) for loss in KINDS if loss.name != "selc"] == [0, 1, 2, 3, 4]
