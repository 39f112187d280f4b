"""Label memories that lose digits: the same rows on every backend, and averages that do not stall."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memories import LOSSY, QUANTUM, WIDE, bits, copy_of, dense, make_tiles_small, memory_of, step
from truths import LOSS, same_bits, targets, truth

from fastlnl.backend import use_backend
from fastlnl.errors import ShapeError
from fastlnl.ops.row_loss import LOSSES, Storage
from fastlnl.ops.row_loss.storage import one_hot

pytestmark = pytest.mark.usefixtures("poison")
WITH_MEMORY = [name for name in LOSS if LOSSES[name].needs_target]


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    make_tiles_small(monkeypatch)


# -- the same on every backend -----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_loss_and_gradient_are_those_of_the_decoded_row(name, text, device):
    z, rows, index = 2 * torch.randn(6, 10), targets(8, 10, 0.9), torch.tensor([5, 0, 7, 2, 1, 6])
    y = torch.randint(0, 10, (6,))
    memory = memory_of(rows, text, device)
    old = dense(memory, 10)[index].double()
    result = step(memory, z, y, index, name)
    t = 0.9 * old + 0.1 * torch.softmax(z.double(), 1)
    loss, gradient = truth(name, z, y, t)
    torch.testing.assert_close(result.loss.cpu().double(), loss, rtol=2e-6, atol=2e-6)
    torch.testing.assert_close(result.dlogits.cpu().double(), gradient, rtol=2e-6, atol=2e-6)
    assert memory.step.item() == 1


@settings(max_examples=4, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    seed=st.integers(0, 2**31),
    samples=st.integers(1, 13),
    classes=st.sampled_from([3, 10, 17, WIDE]),
    batch=st.integers(1, 11),
    start=st.sampled_from(["written", "onehot", "first_prediction"]),
)
@pytest.mark.parametrize("text", LOSSY)
def test_steps_are_those_of_the_reference(text, device, seed, samples, classes, batch, start):
    """Repeated ids, rows never written; each step starts from the reference's rows, whose digits it must find again.

    A new row differs by float32 rounding between backends; where that crosses a random number, by one digit.
    """
    torch.manual_seed(seed)
    given_label, rows = torch.randint(0, classes, (samples,)), targets(samples, classes)
    if start != "written":
        rows[torch.rand(samples) < 0.5] = -1
    memory = memory_of(rows, text, "cpu", 0.9, 0.8, start == "onehot")
    other_digits = 0
    for _ in range(2):
        z, index = 2 * torch.randn(batch, classes), torch.randint(0, samples, (batch,))
        ours = copy_of(memory, device)
        result = step(ours, z, given_label[index], index)
        with use_backend("reference"):
            expected = step(memory, z, given_label[index], index)
        torch.testing.assert_close(result.loss.cpu(), expected.loss, rtol=1e-5, atol=2e-6)
        torch.testing.assert_close(result.dlogits.cpu(), expected.dlogits, rtol=1e-5, atol=1e-6)
        assert (dense(ours, classes) - dense(memory, classes)).abs().max() <= QUANTUM[memory.storage.kind]
        assert ours.step.item() == memory.step.item()
        other_digits += int((bits(ours) != bits(memory)).sum())
    assert other_digits <= 2


@pytest.mark.parametrize(
    ("classes", "text"),
    [(c, text) for c in (1, 2, 3) for text in ("bfloat16", "float16", "uint8", *(f"topk:{k + 1}" for k in range(c)))],
)
def test_exact_predictions_give_the_same_bits_on_every_backend(classes, text, device):
    """Softmax of gaps of 0 and 1e4 is exact, so are halves: ten steps in a row, ids repeated."""
    start = torch.full((5, classes), -1.0)
    ours, plain = memory_of(start, text, device, 0.5, 0.5), memory_of(start, text, "cpu", 0.5, 0.5)
    y = torch.randint(0, classes, (5,))
    for _ in range(10):
        z, index = -1e4 * torch.randint(0, 2, (4, classes)).float(), torch.randint(0, 5, (4,))
        z[(z == 0).sum(1) == 3] += torch.tensor([0.0, 0.0, -1e4])[:classes]  # thirds are not exact
        step(ours, z, y[index], index)
        with use_backend("reference"):
            step(plain, z, y[index], index)
        assert torch.equal(bits(ours), bits(plain))


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("classes", [10, WIDE])
def test_fresh_rows_give_the_bits_of_written_one_hots(classes, text, device):
    batch = 3 if classes == WIDE else 6
    z, y = torch.randn(batch, classes), torch.randint(0, classes, (batch,))
    fresh = memory_of(torch.full((batch, classes), -1.0), text, device)
    written = copy_of(fresh, device)
    written.table.copy_(one_hot(written.storage, y, classes))
    for _ in range(2):
        results = [step(m, z, y, torch.arange(batch)) for m in (fresh, written)]
        assert same_bits(results[0].dlogits, results[1].dlogits)
        assert torch.equal(bits(fresh), bits(written))


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("classes", [10, WIDE])
def test_rows_wider_than_a_tile_and_the_last_of_repeated_ids(classes, text, device):
    """Wide rows against the reference; of three occurrences the last is stored, all use the old row."""
    z, y, index = 3 * torch.randn(3, classes), torch.full((3,), 4), torch.tensor([1, 1, 1])
    ours = memory_of(targets(2, classes), text, device, 0.9, 0.5)
    before, only_last = copy_of(ours), copy_of(ours)
    step(ours, z, y, index)
    with use_backend("reference"):
        step(only_last, z[2:], y[2:], index[2:])
    assert torch.equal(bits(ours)[0], bits(before)[0])
    assert (bits(ours) != bits(only_last)).sum() <= 2
    assert (dense(ours, classes) - dense(only_last, classes)).abs().max() <= QUANTUM[ours.storage.kind]


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("classes", [10, WIDE])
def test_rows_that_are_not_finite_leave_the_memory_as_it_was(classes, one_hot, text, device):
    rows = targets(3, classes)
    rows[2] = -1
    memory = memory_of(rows, text, device, one_hot=one_hot)
    before, z = bits(memory).clone(), torch.zeros(3, classes)
    z[:, 1] = torch.tensor([torch.nan, torch.inf, torch.nan])
    result = step(memory, z, torch.zeros(3, dtype=torch.int64), torch.arange(3))
    assert result.loss.isnan().all()
    assert torch.equal(bits(memory), before)


@pytest.mark.parametrize("text", LOSSY)
@pytest.mark.parametrize("classes", [10, WIDE])
def test_a_memory_that_only_reads_keeps_its_bits(classes, text, device):
    """keep = 1; fresh rows start all the same."""
    rows = targets(3, classes)
    rows[2] = -1
    memory = memory_of(rows, text, device, 1.0, 1.0)
    before, y = bits(memory).clone(), torch.tensor([1, 2, 3])
    step(memory, torch.randn(3, classes), y, torch.arange(3))
    assert torch.equal(bits(memory)[:2], before[:2])
    assert torch.equal(dense(memory, classes)[2], torch.eye(classes)[3])


@pytest.mark.parametrize("backend", ["numba", "reference"])
def test_reading_a_million_entries_rounds_none_of_them_again(backend):
    """A level of uint8 that float32 puts a little too low: rounded anew, some eight of a million would fall."""
    pytest.importorskip({"reference": "torch"}.get(backend, backend))
    level = torch.arange(255)
    low = int((254 * (level.float() * (1.0 / 254) * 2.0**24 + 0.5).long() - (level << 24)).argmin())
    memory = memory_of(torch.full((10_000, 100), 0.0), "uint8", "cpu", 1.0, 1.0)
    memory.table.fill_(low)
    with use_backend(backend):
        step(memory, torch.zeros(10_000, 100), torch.zeros(10_000).long(), torch.arange(10_000))
    assert (memory.table == low).all()


def test_two_threads_store_what_one_stores():
    pytest.importorskip("numba")
    from fastlnl.ops.row_loss.numba_kernel import SERIAL_BELOW

    classes, samples = 100, 90
    batch = SERIAL_BELOW // classes + 100
    label, index = torch.randint(0, classes, (samples,)), torch.randint(0, samples, (batch,))
    rows, z = targets(samples, classes), 2 * torch.randn(batch, classes)
    rows[::3] = -1
    for text in ("uint8", "topk:3"):
        tables = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            memory = memory_of(rows, text, "cpu")
            with use_backend("numba"):
                step(memory, z, label[index], index)
            tables.append(bits(memory))
        with use_backend("reference"):
            plain = memory_of(rows, text, "cpu")
            step(plain, z, label[index], index)
        assert torch.equal(tables[0], tables[1])
        assert (tables[0] != bits(plain)).sum() <= 4


# -- moving averages do not stall --------------------------------------------------------------------------------


def test_plain_rounding_stalls():
    """What random rounding is for: in bfloat16 an average on its way to 0.9 stops at 0.707, in uint8 at 0.705."""
    x = torch.zeros((), dtype=torch.bfloat16)
    level = torch.zeros(())
    for _ in range(5000):
        x = (0.99 * x.float() + 0.01 * 0.9).bfloat16()
        level = (254 * (0.99 * level / 254 + 0.01 * 0.9)).round()
    assert x.item() == pytest.approx(0.707, abs=2e-3)
    assert level.item() / 254 == pytest.approx(0.705, abs=2e-3)


@pytest.mark.parametrize("text", ["bfloat16", "float16", "uint8", "topk:1", "topk:2"])
def test_averages_arrive(text):
    """512 averages towards 0.9 with momentum 0.99 from 0: their mean within 0.003, each within 6 deviations.

    A rounding adds at most a quarter of a squared digit to the variance, of which 1 / (1 - 0.99^2) stay.
    """
    z = torch.tensor([0.9, 0.1]).log().expand(512, 2).contiguous()
    memory, ids = memory_of(torch.zeros(512, 2), text, "cpu", 0.99, 0.99), torch.arange(512)
    for _ in range(800):
        step(memory, z, ids * 0, ids)
    first = dense(memory, 2)[:, 0].double()
    deviation = QUANTUM[memory.storage.kind] / 2 / (1 - 0.99**2) ** 0.5
    assert abs(first.mean().item() - 0.9) <= 0.003
    assert (first - 0.9).abs().max() <= 6 * deviation + 0.001


# -- at the door -------------------------------------------------------------------------------------------------

GOOD = memory_of(torch.full((5, 3), -1.0), "topk:2", "cpu")
REFUSED = [
    ({"table": torch.zeros(5, 5)}, r"label memory is \(5, 5\) float32; expected a contiguous \(N, W\) int16 table"),
    ({"table": GOOD.table[:, :4].clone()}, r"label memory is \(5, 4\) int16; expected records of 5 words"),
    ({"storage": Storage("topk", 2, 4)}, r"logits is \(4, 3\) float32 but the label memory has 4 classes"),
    ({"storage": Storage("uint8")}, r"label memory is \(5, 5\) int16; expected a contiguous \(N, C\) uint8 table"),
    ({"step": None}, r"the step of the label memory is None; storage topk:2 needs a counter \(\) int64"),
    ({"step": torch.zeros(1, dtype=torch.int64)}, r"the step of the label memory is \(1,\) int64"),
]


@pytest.mark.parametrize(("change", "text"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_refused_at_the_door(change, text):
    with pytest.raises(ShapeError, match=text):
        step(GOOD._replace(**change), torch.zeros(4, 3), torch.zeros(4).long(), torch.zeros(4).long())


@pytest.mark.parametrize("classes", [10, WIDE])
@pytest.mark.parametrize("text", LOSSY)
def test_one_kernel_a_step(text, classes, monkeypatch):
    pytest.importorskip("triton")
    from fastlnl.ops.row_loss.triton_kernel import row_loss_kernel

    names, kind = [], type(row_loss_kernel)
    run = kind.run
    monkeypatch.setattr(kind, "run", lambda self, *a, **k: (names.append(self.fn.__name__), run(self, *a, **k))[1])
    device = "cuda" if torch.cuda.is_available() else "cpu"
    memory = memory_of(targets(2, classes), text, device)
    with use_backend("triton"):
        step(memory, torch.randn(2, classes), torch.tensor([0, 1]), torch.tensor([0, 1]))
    assert names == ["row_loss_kernel" if classes == 10 else "row_loss_wide_kernel"]
