"""Laws of row_loss that hold without knowing the right numbers, and a search for inputs that break the contract."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from truths import LOSS, call, distance, on, same_bits, table_of, targets

from fastlnl.backend import use_backend
from fastlnl.ops.row_loss import LOSSES, new_error_word
from fastlnl.ops.row_stats import row_stats

pytestmark = pytest.mark.usefixtures("poison")


def batch_of(name, classes, batch=9):
    z, y = torch.randn(batch, classes) * 3, torch.randint(0, classes, (batch,))
    return z, y, targets(batch, classes, 0.7) if LOSSES[name].needs_target else None


@pytest.mark.parametrize("classes", [2, 10, 100])
@pytest.mark.parametrize("name", LOSS)
def test_gradient_rows_sum_to_zero(name, classes, device):
    """Softmax does not see a shift of its row: a - b - c sum t + e <p, t> + C f = 0."""
    z, y, t = batch_of(name, classes)
    dlogits = call(z.to(device) / 3, y.to(device), name, target=on(device, t)).dlogits.double()
    largest_coefficient = 10 if name in ("sce", "nce_rce", "elr") else 2
    assert dlogits.sum(1).abs().max() <= 2.0**-22 * largest_coefficient
    assert dlogits.abs().max() >= 1e-3


@pytest.mark.parametrize("name", LOSS)
def test_a_shift_of_the_row_changes_no_bit(name, device):
    """Logits and shift are multiples of 1/64, so that z + 64 is exact."""
    z, y, t = batch_of(name, 10)
    z = (z * 64).round() / 64
    plain = call(z.to(device), y.to(device), name, target=on(device, t))
    shifted = call((z + 64).to(device), y.to(device), name, target=on(device, t))
    assert same_bits(shifted.loss, plain.loss)
    assert same_bits(shifted.dlogits, plain.dlogits)


@pytest.mark.parametrize("classes", [10, 100, 1000])
@pytest.mark.parametrize("name", LOSS)
def test_a_permuted_batch_gives_permuted_results(name, classes, device):
    z, y, _ = batch_of(name, classes)
    order, index = torch.randperm(9), torch.randperm(12)[:9]
    rows = targets(12, classes)
    memory, permuted = table_of(rows, device), table_of(rows, device)
    uses = LOSSES[name].needs_target

    def run(at, table):
        options = {"memory": table, "index": index[at].to(device)} if uses else {}
        return call(z[at].to(device), y[at].to(device), name, with_stats=True, **options)

    straight, other = run(torch.arange(9), memory), run(order, permuted)
    assert same_bits(other.loss, straight.loss[order])
    assert same_bits(other.dlogits, straight.dlogits[order])
    assert all(same_bits(x, y[order]) for x, y in zip(other.stats, straight.stats, strict=True))
    assert same_bits(memory.table, permuted.table)


@pytest.mark.parametrize("name", ["cross_entropy", "soft_cross_entropy", "alr", "mae", "bootstrapping"])
def test_permuted_classes_give_permuted_gradients(name, device):
    z, y, t = batch_of(name, 17)
    order = torch.randperm(17)
    place = order.argsort()
    plain = call(z.to(device), y.to(device), name, target=on(device, t))
    moved = call(
        z[:, order].to(device), place[y].to(device), name, target=on(device, None if t is None else t[:, order])
    )
    assert distance(moved.loss, plain.loss) <= 2e-7
    assert distance(moved.dlogits, plain.dlogits[:, order]) <= 4e-7


@pytest.mark.parametrize("name", LOSS)
def test_the_same_call_gives_the_same_bits(name, device):
    z, y, t = batch_of(name, 37)
    first, second = (call(z.to(device), y.to(device), name, target=on(device, t)) for _ in range(2))
    assert same_bits(first.loss, second.loss)
    assert same_bits(first.dlogits, second.dlogits)


@pytest.mark.parametrize("name", LOSS)
def test_a_row_does_not_see_its_batch(name, device):
    z, y, t = batch_of(name, 10, batch=20)
    together = call(z.to(device), y.to(device), name, target=on(device, t))
    alone = call(z[13:14].to(device), y[13:14].to(device), name, target=on(device, None if t is None else t[13:14]))
    assert same_bits(alone.dlogits[0], together.dlogits[13])
    assert same_bits(alone.loss[0], together.loss[13])


@pytest.mark.parametrize("name", LOSS)
def test_a_step_against_the_gradient_lowers_the_loss(name, device):
    """Unless the target moves, the losses of all backends are what their gradients say."""
    z, y, t = batch_of(name, 10)
    z = z.to(device)
    before = call(z, y.to(device), name, target=on(device, t))
    after = call(z - 1e-2 * before.dlogits, y.to(device), name, target=on(device, t))
    assert after.loss.sum() < before.loss.sum()


CASES = st.fixed_dictionaries(
    {
        "name": st.sampled_from(sorted(LOSS)),
        "batch": st.integers(0, 20),
        "classes": st.one_of(st.integers(1, 40), st.sampled_from([64, 127, 128, 129, 1000])),
        "dtype": st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
        "layout": st.sampled_from(["plain", "transposed", "columns", "rows"]),
        "spread": st.sampled_from([0.0, 1.0, 30.0, 1e4]),
        "source": st.sampled_from(["dense", "table", "fresh table"]),
        "samples": st.integers(1, 12),
        "one_hot": st.booleans(),
        "wrong": st.sampled_from(["nothing", "labels", "ids"]),
        "weighted": st.booleans(),
        "seed": st.integers(0, 2**31),
    }
)


@pytest.mark.parametrize("name", ["numba", "triton"])
def test_kernels_agree_with_the_reference_in_float64(name):
    where = "cuda" if name == "triton" and torch.cuda.is_available() else "cpu"

    @settings(max_examples=100, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck))
    @given(CASES)
    def search(case):
        expected, expected_table, expected_errors = run_case(case, "reference", "cpu", exact=True)
        result, table, errors = run_case(case, name, where, exact=False)
        assert errors.tolist() == expected_errors.tolist()
        unit = {torch.float32: 0.0, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}[case["dtype"]]
        assert result.dlogits.dtype == case["dtype"]
        assert distance_within(result.loss, expected.loss, 2e-6)
        assert distance_within(result.dlogits, expected.dlogits, 2e-6 + unit)
        assert distance_within(table, expected_table, 2e-7)
        for ours, exact in zip(result.stats, expected.stats, strict=True):
            assert distance_within(ours, exact, 2e-6)

    search()


def distance_within(ours, exact, tolerance):
    """Finite, and within the tolerance of the largest value, which is at least 1."""
    ours, exact = ours.cpu().double(), exact.double()
    if exact.numel() == 0:
        return ours.shape == exact.shape
    return bool(((ours - exact).abs().max() <= tolerance * exact.abs().max().clamp(min=1.0)).item())


def run_case(case, backend, where, exact):
    """One case of the search: result, table and error word; `exact` computes in float64."""
    random = torch.Generator().manual_seed(case["seed"])
    batch, classes, samples, loss = case["batch"], case["classes"], case["samples"], case["name"]
    z = (case["spread"] * torch.randn(batch, classes, generator=random)).to(case["dtype"])
    given_label = torch.randint(0, classes, (samples,), generator=random)
    index = torch.randint(0, samples, (batch,), generator=random)
    y = given_label[index]
    rows = torch.softmax(torch.randn(samples, classes, generator=random), 1)
    if case["source"] == "fresh table":
        rows[torch.rand(samples, generator=random) < 0.5] = -1
    dense = torch.rand(batch, classes, generator=random) / classes
    weight = torch.rand(batch, generator=random)
    wrong = torch.rand(batch, generator=random) < 0.2
    if case["wrong"] == "labels":
        y = torch.where(wrong, torch.where(index % 2 == 0, -1 - index, classes + index), y)
    elif case["wrong"] == "ids" and case["source"] != "dense":
        index = torch.where(wrong, torch.where(index % 2 == 0, -1 - index, samples + index), index)
    z = {
        "plain": lambda: z,
        "transposed": lambda: z.t().contiguous().t(),
        "columns": lambda: torch.nn.functional.pad(z, (1, 3), value=7.0)[:, 1 : 1 + classes],
        "rows": lambda: z.repeat_interleave(3, 0)[::3],
    }[case["layout"]]()
    memory = table_of(rows, where, 0.8, 0.9, case["one_hot"])
    options = {"index": index.to(where)}
    if LOSSES[loss].needs_target:
        options |= {"target": dense.to(where)} if case["source"] == "dense" else {"memory": memory}
    if case["weighted"]:
        options["weight"] = weight.to(where)
    errors = new_error_word(where)
    z = z.double() if exact else z.to(where)
    with use_backend(backend):
        result = call(z, y.to(where), loss, errors=errors, with_stats=True, **options)
        stats = row_stats(z, y.to(where), errors=new_error_word(where))
    for ridden, alone in zip(result.stats, stats, strict=True):
        valid = ((index >= 0) & (index < samples)).to(where) if "memory" in options else slice(None)
        assert distance_within(ridden[valid], alone[valid].cpu(), 1e-6)
    return result, memory.table, errors
