"""The label memory inside row_loss: what a row's target is, what is stored, repeated ids, fresh rows."""

import pytest
import torch
from truths import LOSS, call, distance, same_bits, table_of, targets, truth

from fastlnl.backend import use_backend
from fastlnl.ops.row_loss import LOSSES, new_error_word

pytestmark = pytest.mark.usefixtures("poison")
WITH_MEMORY = [name for name in LOSS if LOSSES[name].needs_target]
# use, keep: update then use; use then update; read only; never remember; the prediction alone
MOVES = [(0.9, 0.9), (1.0, 0.9), (1.0, 1.0), (0.5, 0.0), (0.0, 0.7)]


def walk(rows, z, y, index, use, keep, one_hot):
    """Targets (B, C) and the moved table in float64, one row after the other, straight from the contract."""
    p = torch.softmax(z.double(), 1)
    before, after = rows.double(), rows.double().clone()
    t = torch.empty_like(p)
    for b, i in enumerate(index.tolist()):
        old, row_use, row_keep = before[i], use, keep
        if old[0] < 0 and one_hot:
            old = torch.nn.functional.one_hot(y[b], z.shape[1]).double()
        elif old[0] < 0:
            old, row_use, row_keep = p[b], 0.0, 0.0
        t[b] = row_use * old + (1 - row_use) * p[b]
        after[i] = row_keep * old + (1 - row_keep) * p[b]
    return t, after


def check_walk(name, z, y, index, rows, device, use, keep, one_hot):
    memory = table_of(rows, device, use, keep, one_hot)
    result = call(z.to(device), y.to(device), name, memory=memory, index=index.to(device))
    t, after = walk(rows, z, y, index, use, keep, one_hot)
    # ELR's log(1 - <t, p>) magnifies the rounding of <t, p>
    condition = 1 / (1 - (t * torch.softmax(z.double(), 1)).sum(1)).min() if name == "elr" else 1.0
    for ours, exact in zip(result[:2], truth(name, z, y, t), strict=True):
        # p - t may vanish: then one rounding of each is left
        assert (ours.cpu() - exact).norm() <= condition * (1e-6 * exact.norm() + 2.0**-23 * len(z) ** 0.5)
    untouched = torch.ones(len(rows), dtype=torch.bool).index_fill(0, index, False)
    assert same_bits(memory.table.cpu()[untouched], rows[untouched])
    assert (memory.table.cpu() - after).abs().max() <= 2.5e-7  # four roundings below 1
    return result, memory


@pytest.mark.parametrize(
    ("classes", "use", "keep"), [(c, *move) for c in (2, 10, 17, 100) for move in MOVES] + [(9000, 0.9, 0.8)]
)
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_target_and_table(name, classes, use, keep, device):
    batch = 3 if classes == 9000 else 11
    z, y = 2 * torch.randn(batch, classes), torch.randint(0, classes, (batch,))
    check_walk(name, z, y, torch.randperm(20)[:batch], targets(20, classes, 0.9), device, use, keep, True)


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("classes", [2, 10, 100, 9000])
@pytest.mark.parametrize("name", WITH_MEMORY)
def test_fresh_rows(name, classes, one_hot, device):
    """A row that was never written is the given label, or the first prediction it meets."""
    z, given = 2 * torch.randn(4, classes), torch.randint(0, classes, (9,))
    index = torch.tensor([4, 0, 7, 2])
    rows = targets(9, classes)
    rows[[0, 4, 5]] = -1
    check_walk(name, z, given[index], index, rows, device, 0.9, 0.8, one_hot)


def test_a_fresh_row_gives_the_bits_of_a_written_one_hot(device):
    z, y = torch.randn(6, 10, device=device), torch.arange(6, device=device)
    fresh = table_of(torch.full((6, 10), -1.0), device)
    written = table_of(torch.eye(10)[:6], device)
    results = [call(z, y, "alr", memory=m, index=y) for m in (fresh, written)]
    assert same_bits(results[0].dlogits, results[1].dlogits)
    assert same_bits(results[0].loss, results[1].loss)
    assert same_bits(fresh.table, written.table)


@pytest.mark.parametrize("one_hot", [True, False])
@pytest.mark.parametrize("classes", [10, 100, 9000])
@pytest.mark.parametrize("name", ["alr", "elr"])
def test_repeated_ids(name, classes, one_hot, device):
    """Each occurrence uses the old row, fresh or not; the one with the highest position is stored."""
    batch = 6 if classes == 9000 else 40  # 40 positions are more than Triton scans at once for 10 classes
    given = torch.randint(0, classes, (5,))
    index = torch.randint(0, 4, (batch,))
    rows = targets(5, classes)
    rows[1] = -1
    z = 2 * torch.randn(batch, classes)
    check_walk(name, z, given[index], index, rows, device, 0.9, 0.8, one_hot)


def test_a_batch_of_one_sample(device):
    z, index = torch.randn(33, 7), torch.full((33,), 2)
    check_walk("alr", z, torch.full((33,), 3), index, targets(4, 7), device, 0.7, 0.7, True)


def test_position_of_a_repeated_id_decides(device):
    """Swapping two occurrences swaps what is stored."""
    z, index = torch.randn(2, 5), torch.zeros(2, dtype=torch.int64, device=device)
    y, rows = torch.zeros(2, dtype=torch.int64, device=device), targets(1, 5)
    stored = []
    for order in ([0, 1], [1, 0]):
        memory = table_of(rows, device, keep=0.0)
        call(z[order].to(device), y, "alr", memory=memory, index=index)
        stored.append(memory.table[0])
    assert distance(stored[0], torch.softmax(z[1], 0)) <= 2e-7
    assert distance(stored[1], torch.softmax(z[0], 0)) <= 2e-7


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("one_hot", [True, False])
def test_large_batches_with_many_repetitions_are_deterministic(threads, one_hot):
    """Above the size from which numba takes several threads; twenty runs, the same bits as the first."""
    from fastlnl.ops.row_loss.numba_kernel import SERIAL_BELOW

    classes, samples = 100, 90
    batch = SERIAL_BELOW // classes + 100
    given, index = torch.randint(0, classes, (samples,)), torch.randint(0, samples, (batch,))
    rows = targets(samples, classes)
    rows[::3] = -1
    z = 2 * torch.randn(batch, classes)
    torch.set_num_threads(threads)
    with use_backend("numba"):
        first, table = check_walk("alr", z, given[index], index, rows, torch.device("cpu"), 0.9, 0.8, one_hot)
        for _ in range(20):
            memory = table_of(rows, "cpu", 0.9, 0.8, one_hot)
            again = call(z, given[index], "alr", memory=memory, index=index)
            assert same_bits(again.dlogits, first.dlogits)
            assert same_bits(again.loss, first.loss)
            assert same_bits(memory.table, table.table)


@pytest.mark.parametrize("momentum", [0.7, 0.9])
def test_undetached_alr_is_autograd_through_the_target(momentum, device):
    """The gradient through p inside t is that of a larger entropy weight; the loss keeps the user's."""
    z, rows = torch.randn(5, 10), targets(5, 10)
    x = z.double().requires_grad_()
    logp = torch.log_softmax(x, 1)
    t = momentum * rows.double() + (1 - momentum) * logp.exp()
    loss = -(t * logp).sum(1) - 0.3 * (logp.exp() * logp).sum(1)
    (gradient,) = torch.autograd.grad(loss.sum(), x)
    index = torch.arange(5, device=device)
    memory = table_of(rows, device, momentum, momentum)
    result = call(z.to(device), index, "alr", {"undetached": 1 - momentum}, memory=memory, index=index)
    assert distance(result.loss, loss) <= 2e-7
    assert distance(result.dlogits, gradient) <= 4e-7


@pytest.mark.parametrize(("momentum", "flips_after"), [(0.9, 7), (0.7, 2)])
def test_argmax_flips_when_half_is_forgotten(momentum, flips_after, device):
    """Constant predictions of another class: the memory follows the closed form, and flips when m^n < 1/2."""
    z = torch.tensor([[60.0, 0.0, 0.0]], device=device)  # one-hot in float32
    y, index = torch.tensor([2], device=device), torch.zeros(1, dtype=torch.int64, device=device)
    memory = table_of(torch.full((1, 3), -1.0), device, momentum, momentum)
    labels = []
    for _ in range(20):
        call(z, y, "alr", memory=memory, index=index)
        labels.append(int(memory.table.argmax()))
    assert labels == [2] * (flips_after - 1) + [0] * (21 - flips_after)
    assert distance(memory.table, torch.tensor([[1 - momentum**20, 0.0, momentum**20]])) <= 1e-6


def test_rows_keep_their_sum_and_stay_probabilities(device):
    rows, index = targets(8, 10), torch.arange(8, device=device)
    memory = table_of(rows, device)
    for _ in range(30):
        call(3 * torch.randn(8, 10, device=device), index, "alr", memory=memory, index=index)
    assert (memory.table >= 0).all()
    assert (memory.table <= 1).all()
    assert (memory.table.sum(1) - 1).abs().max() <= 1e-6


def test_momentum_one_without_entropy_is_cross_entropy(device):
    z, y = torch.randn(6, 10, device=device), torch.arange(6, device=device)
    memory = table_of(torch.full((6, 10), -1.0), device, 1.0, 1.0)
    ours = call(z, y, "alr", {"entropy_weight": 0.0}, memory=memory, index=y)
    plain = call(z, y, "cross_entropy")
    assert distance(ours.loss, plain.loss) <= 1e-7
    assert distance(ours.dlogits, plain.dlogits) <= 1e-7


def test_weights_do_not_reach_the_memory(device):
    z, index, rows = torch.randn(4, 6, device=device), torch.arange(4, device=device), targets(4, 6)
    plain, weighted = table_of(rows, device), table_of(rows, device)
    call(z, index, "alr", memory=plain, index=index)
    call(z, index, "alr", memory=weighted, index=index, weight=torch.zeros(4, device=device), grad_scale=0.1)
    assert same_bits(plain.table, weighted.table)


@pytest.mark.parametrize("classes", [10, 9000])
def test_padding_changes_nothing(classes, device):
    """Rows of id -1 in front, between and behind: whatever their labels are, the others see nothing of them."""
    z, y, index = torch.randn(4, classes), torch.randint(0, classes, (4,)), torch.tensor([2, 0, 2, 1])
    rows = targets(3, classes, 0.9)
    rows[1] = -1.0  # fresh
    alone, filled = table_of(rows, device), table_of(rows, device)
    expected = call(z.to(device), y.to(device), "elr", memory=alone, index=index.to(device), with_stats=True)
    at = torch.tensor([1, 2, 4, 5])
    padded_z, padded_y, padded_index = torch.randn(7, classes), torch.full((7,), 10**9), torch.full((7,), -1)
    padded_z[at], padded_y[at], padded_index[at] = z, y, index
    errors = new_error_word(device)
    batch = (padded_z.to(device), padded_y.to(device))
    result = call(*batch, "elr", memory=filled, index=padded_index.to(device), with_stats=True, errors=errors)
    assert not errors.any()
    assert same_bits(filled.table, alone.table)
    for ours, other in zip((*result[:2], *result.stats), (*expected[:2], *expected.stats), strict=True):
        assert same_bits(ours[at.to(device)], other)
        assert not ours[torch.tensor([0, 3, 6], device=device)].any()
