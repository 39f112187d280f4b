"""What only the Triton kernels have: launches, tiles, the scan for repeated ids. The contract itself is tested for all
backends together; without a CUDA device its Triton cases run under the interpreter."""

import pytest
import torch
from truths import LOSS, call, distance, same_bits, table_of, targets

from fastlnl.backend import use_backend
from fastlnl.ops.row_loss import LOSSES, new_error_word
from fastlnl.ops.row_stats import row_stats
from fastlnl.ops.scale_rows import scale_rows_

pytest.importorskip("triton")
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
pytestmark = pytest.mark.usefixtures("poison", "triton")


@pytest.fixture
def triton():
    with use_backend("triton"):
        yield


@pytest.fixture
def launches(monkeypatch):
    """Names of the kernels launched, in order."""
    from fastlnl.ops.row_loss.triton_kernel import row_loss_kernel

    names, kind = [], type(row_loss_kernel)
    run = kind.run

    def counted(self, *args, **kwargs):
        names.append(self.fn.__name__)
        return run(self, *args, **kwargs)

    monkeypatch.setattr(kind, "run", counted)
    return names


def batch_of(classes, batch=9):
    y = torch.randint(0, classes, (batch,), device=DEVICE)
    return torch.randn(batch, classes, device=DEVICE), y, torch.arange(batch, device=DEVICE)


@pytest.mark.parametrize("source", ["given", "memory"])
@pytest.mark.parametrize("name", LOSS)
def test_one_kernel_a_step(name, source, launches):
    """Loss, gradient, weights, statistics, checks, label memory and repeated ids: one launch."""
    z, y, index = batch_of(10)
    options = {"memory": table_of(targets(9, 10), DEVICE)} if source == "memory" else {}
    if source == "given" and LOSSES[name].needs_target:
        options["target"] = targets(9, 10).to(DEVICE)
    call(z, y, name, index=index // 2, weight=torch.rand(9, device=DEVICE), with_stats=True, **options)
    assert launches == ["row_loss_kernel"]


def test_one_kernel_for_wide_rows_too(launches):
    z, y, index = batch_of(9000, batch=2)
    call(z, y, "alr", memory=table_of(targets(2, 9000), DEVICE), index=index, with_stats=True)
    row_stats(z, y, errors=new_error_word(DEVICE))
    scale_rows_(z, torch.tensor(2.0, device=DEVICE))
    assert launches == ["row_loss_wide_kernel", "row_stats_kernel", "scale_rows_kernel"]


def test_an_empty_batch_launches_nothing(launches):
    z, y, index = batch_of(10, batch=0)
    call(z, y, "alr", memory=table_of(targets(2, 10), DEVICE), index=index)
    row_stats(z, y, errors=new_error_word(DEVICE))
    scale_rows_(z, torch.tensor(2.0, device=DEVICE))
    assert launches == []


@pytest.mark.parametrize("classes", [1, 2, 3, 10, 16, 100, 127, 128, 129, 511, 513, 1000, 1024, 1025, 4096, 8192])
def test_tiles_cover_the_batch(classes):
    """Every row and column is in one tile, tiles are powers of two that registers can hold."""
    from fastlnl.ops.row_loss.triton_kernel import TILE_COLUMNS, tile_launch

    assert classes <= TILE_COLUMNS
    for batch in (1, 7, 8, 9, 1000):
        _, (programs,), shape = tile_launch(batch, classes)
        rows, block, warps = shape["ROWS"], shape["BLOCK"], shape["num_warps"]
        assert (programs - 1) * rows < batch <= programs * rows
        assert classes <= block < 2 * classes or classes == block == 1
        assert all(x & (x - 1) == 0 for x in (rows, block, warps, shape["SCAN"]))
        assert rows * block <= 16 * 32 * warps or warps == 1
        assert rows * block <= 32 * 32 * warps  # 32 elements a thread and tensor


@pytest.mark.parametrize("batch", [1, 7, 8, 9, 17])
@pytest.mark.parametrize("classes", [3, 128, 129])
def test_batches_that_end_inside_a_tile(classes, batch):
    """`poison` sees what is left out and what is written behind the outputs; the table has guard rows."""
    z, y, index = batch_of(classes, batch)
    rows = targets(batch, classes)
    whole = torch.cat([torch.full((8, classes), 7.0), rows, torch.full((8, classes), 7.0)]).to(DEVICE)
    memory = table_of(rows, DEVICE)._replace(table=whole[8:-8])
    result = call(z, y, "alr", memory=memory, index=index, with_stats=True)
    with use_backend("reference"):
        expected = call(z.double(), y, "alr", memory=table_of(rows, DEVICE), index=index, with_stats=True)
    assert distance(result.dlogits, expected.dlogits) <= 1e-6
    assert distance(result.loss, expected.loss) <= 1e-6
    assert all(distance(ours, exact) <= 1e-6 for ours, exact in zip(result.stats, expected.stats, strict=True))
    assert (whole[:8] == 7).all()
    assert (whole[-8:] == 7).all()


@pytest.mark.parametrize("classes", [10, 9000])
@pytest.mark.parametrize("distance_apart", [1, 8, 33, 70])
def test_repeated_ids_far_apart(classes, distance_apart):
    """In one program, in neighbours, and further apart than one step of the scan: the leader serves both."""
    if classes == 9000 and distance_apart > 1:
        distance_apart = 3  # a row is a program there
    batch = distance_apart + 1
    z, y, index = batch_of(classes, batch)
    index[-1] = index[0]
    y[-1] = y[0]
    rows = targets(batch, classes)
    tables = []
    results = []
    for name, logits in (("triton", z), ("reference", z.double())):
        memory = table_of(rows, DEVICE)
        with use_backend(name):
            results.append(call(logits, y, "alr", memory=memory, index=index))
        tables.append(memory.table)
    assert distance(results[0].dlogits, results[1].dlogits) <= 1e-6
    assert (tables[0] - tables[1]).abs().max() <= 2.5e-7
    assert not same_bits(tables[0][0], rows[0])


def test_a_wrong_last_occurrence_does_not_lead():
    """The highest position of an id has a label out of range: the one before it stores."""
    z, y, index = batch_of(10, batch=12)
    index[[2, 5, 11]] = 3
    index[3] = 4
    y[11] = 10
    rows = targets(12, 10)
    memory = table_of(rows, DEVICE, keep=0.0)
    result = call(z, y, "alr", memory=memory, index=index)
    assert distance(memory.table[3], torch.softmax(z[5].double(), 0)) <= 3e-7
    assert not result.dlogits[11].any()
    assert result.dlogits[[2, 5]].any(1).all()
