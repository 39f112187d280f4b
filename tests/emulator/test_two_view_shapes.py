"""csrc's two_view_loss over class counts, types, batches, strides and repeated ids: the reference in float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from truths import distance, same_bits

from fastlnl.ops.row_loss import new_error_word
from fastlnl.ops.two_view_loss import ENTROPY_SCALES, TwoViewInput, cuda_kernel
from fastlnl.ops.two_view_loss.cuda_kernel import two_view_loss
from fastlnl.ops.two_view_loss.reference import two_view_loss as reference

pytestmark = pytest.mark.usefixtures("poison", "device")
CLASSES = [1, 2, 7, 10, 16, 17, 31, 33, 64, 65, 100, 257, 1000, 1024, 1025, 8192, 21841]
# Relative and absolute rounding of a gradient in its type, and as much again for float32 arithmetic.
ROUNDED = {torch.float32: (3e-6, 1e-7), torch.bfloat16: (2.0**-8, 1e-7), torch.float16: (2.0**-10, 2.0**-24)}


def call_of(batch, classes, dtype=torch.float32, scale="sample", samples=5):
    """A call with repeated ids, views that agree in part, and probabilities on both sides of both clamps."""
    weak = 4 * torch.randn(batch, classes)
    weak[::3] *= 4
    strong = weak + torch.randn(batch, classes)
    label = torch.where(torch.rand(batch) < 0.5, weak.argmax(1), torch.randint(classes, (batch,)))
    count = torch.randint(3, (samples,), dtype=torch.int32)
    table = torch.rand(classes, 4, 2)
    index = torch.randint(samples, (batch,))
    return TwoViewInput(
        weak.to(dtype), strong.to(dtype), label, index, count, table, scale, True, 0.5, "none", new_error_word()
    )


def check(call):
    """The kernel against the reference in float64; it may err twice as much as the reference in float32."""

    def reference_of(dtype):
        copy = replace(call, weak=call.weak.to(dtype), strong=call.strong.to(dtype), errors=call.errors.clone())
        copy.wrong_count = call.wrong_count.clone()
        return reference(copy), copy.wrong_count

    (exact, counted), (plain, _) = reference_of(torch.float64), reference_of(torch.float32)
    result = two_view_loss(call)
    assert torch.equal(call.wrong_count, counted)
    assert torch.equal(result.prediction, exact.prediction)
    assert result.dlogits.dtype == call.weak.dtype
    assert distance(result.loss, exact.loss) <= max(1e-6, 2 * distance(plain.loss, exact.loss))
    arithmetic = 2 * float((plain.dlogits - exact.dlogits).abs().max())
    relative, absolute = ROUNDED[call.weak.dtype]
    torch.testing.assert_close(result.dlogits.double(), exact.dlogits, rtol=relative, atol=absolute + arithmetic)
    return result


WIDTHS = [(classes, torch.float32) for classes in CLASSES]
WIDTHS += [(classes, dtype) for classes in (7, 16, 100, 1024, 1101, 8192) for dtype in (torch.bfloat16, torch.float16)]


@pytest.mark.parametrize("scale", ENTROPY_SCALES)
@pytest.mark.parametrize(("classes", "dtype"), WIDTHS)
def test_every_width(classes, scale, dtype):
    check(call_of(9 if classes < 5000 else 3, classes, dtype, scale))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("scale", ENTROPY_SCALES)
def test_rows_that_do_not_fit_shared_memory(scale, dtype, emulator):
    emulator.emulator_shared_limit(4096)
    try:
        check(call_of(3, 8193, dtype, scale))
    finally:
        emulator.emulator_shared_limit(227 * 1024)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["float32", "float16"])
@pytest.mark.parametrize("classes", [7, 100, 1025, 1032])
def test_a_row_gives_the_same_bits_wherever_it_lies(classes, dtype):
    """All heads of both views: rows that begin 0 to 7 elements after a multiple of 16 bytes, and any strides."""
    call = call_of(3, classes, dtype, samples=400)
    call.index = torch.tensor([3, 200, 17])
    views, count = (call.weak, call.strong), call.wrong_count.clone()
    plain = two_view_loss(call)
    for shift, more in itertools.product(range(8), (0, 1, 8)):
        moved = []
        for view, z in enumerate(views):
            start, step = (shift * (1 + 2 * view)) % 8, classes + more * (1 + view)
            moved.append(torch.zeros(3 * step + start, dtype=dtype)[start:].view(3, step)[:, :classes].copy_(z))
        call.weak, call.strong = moved
        call.wrong_count.copy_(count)
        assert all(same_bits(a, b) for a, b in zip(two_view_loss(call), plain, strict=True))


@pytest.mark.parametrize("classes", [5, 40, 100, 1100])
@pytest.mark.parametrize("batch", [1, 2, 31, 33, 130])
def test_batches_over_many_blocks(batch, classes):
    """Ids come one to some ten times, inside of a block and across blocks."""
    call = call_of(batch, classes, samples=max(2, batch // 3), scale="none")
    call.index[: batch // 4] = 0
    check(call)


@pytest.mark.parametrize("classes", [5, 40, 1100])
def test_a_row_gives_the_same_bits_in_any_batch(classes):
    """Repeated or alone, first or last: weights are those of the sample, and nothing else of the batch is seen."""
    call = call_of(37, classes, samples=11)
    call.before, count = False, call.wrong_count.clone()
    together = two_view_loss(call)
    for row in (0, 5, 36):
        one = replace(call, wrong_count=count.clone(), errors=new_error_word())
        for name in ("weak", "strong", "label", "index"):
            setattr(one, name, getattr(call, name)[row : row + 1].contiguous())
        alone = two_view_loss(one)
        assert same_bits(alone.loss, together.loss[row : row + 1])
        assert same_bits(alone.dlogits, together.dlogits[:, row : row + 1])


def test_teams_that_take_several_rows():
    """3 rounds of 4 rows a block: the emulator calls 16 blocks many."""
    check(call_of(4 * 16 * 3 + 5, 65, samples=150, scale="none"))


def test_label_and_id_out_of_range_and_padding():
    call = call_of(40, 12, samples=9)
    call.label[[20, 35]], call.index[3], call.index[4], call.index[20] = 12, 9, -2, -1
    result = check(call)
    assert call.errors.tolist() == [2, 3, 9, 9]
    assert not result.dlogits[:, [3, 4, 20, 35]].any()
    assert not result.loss[[3, 4, 20, 35]].any()


def test_zeros_of_both_signs_are_one_value():
    """The lowest class that attains the maximum, in each thread and between threads."""
    call = call_of(2, 40)
    call.weak.fill_(-1), call.strong.fill_(-1)
    call.weak[0, [5, 6, 30]], call.weak[1, [7, 33]] = torch.tensor([-0.0, 0, 0]), torch.tensor([-0.0, 0])
    assert check(call).prediction.tolist() == [[5, 7], [0, 0]]


def test_modes_are_numbered_as_in_csrc():
    from emulated import CSRC

    names = (CSRC / "kernels.h").read_text().split("enum TwoViewMode : int32_t {")[1].split("}")[0]
    names = names.replace(" ", "").split(",")
    assert [getattr(cuda_kernel, name) for name in names] == list(range(len(names)))
