"""What a topk label memory does to a row: which classes it keeps, what the others share, where it is exact."""

import pytest
import torch
from memories import LOSSY, WIDE, bits, copy_of, dense, make_tiles_small, memory_of, step
from truths import same_bits, targets

from fastlnl.backend import use_backend
from fastlnl.ops.row_loss.storage import topk_parts

pytestmark = pytest.mark.usefixtures("poison")


@pytest.fixture(autouse=True)
def _small_tiles(monkeypatch):
    make_tiles_small(monkeypatch)


def best(row, kept):
    """Classes of the largest entries, of equal ones the lowest first, in plain Python."""
    return sorted(range(len(row)), key=lambda j: (-row[j], j))[:kept]


@pytest.mark.parametrize(("classes", "kept"), [(10, 3), (10, 1), (10, 10), (WIDE, 3), (WIDE, 20)])
def test_classes_enter_and_leave_the_top(classes, kept, device):
    """The new record is the top of the moved dense row; the others share what is left; mass is preserved."""
    text, batch = f"topk:{kept}", 5 if classes == 10 else 1
    memory = memory_of(targets(batch, classes), text, device, 0.6, 0.6)
    entered = 0
    for _ in range(3 if classes == 10 else 1):
        z = 3 * torch.randn(batch, classes)
        before = dense(memory, classes)
        ids_before = topk_parts(memory.storage, memory.table.cpu())[0]
        step(memory, z, torch.zeros(batch, dtype=torch.int64), torch.arange(batch))
        moved = 0.6 * before.double() + 0.4 * torch.softmax(z.double(), 1)
        ids, values, rest = topk_parts(memory.storage, memory.table.cpu())
        for b in range(batch):
            expected = best(moved[b].tolist(), kept)
            assert ids[b].tolist() == expected
            entered += len(set(expected) - set(ids_before[b].tolist()))
            exact = torch.cat((moved[b][expected], moved[b].sum()[None] - moved[b][expected].sum()))
            stored = torch.cat((values[b], rest[b])).double()
            assert ((stored - exact).abs() <= 2.0**-10 * exact.abs() + 2.0**-24 + 1e-7).all()
            assert abs(dense(memory, classes)[b].double().sum() - moved[b].sum()) <= 2.0**-10 + 1e-6
    assert entered > 0 or kept == classes


@pytest.mark.parametrize(("classes", "label"), [(6, 5), (WIDE, 20)])
def test_ties_keep_the_lowest_classes(classes, label, device):
    """Of 1, 2 and 4, which come first, the highest makes room for the label."""
    memory = memory_of(torch.full((1, classes), -1.0), "topk:3", device, 0.5, 0.5)
    z = torch.full((1, classes), -1e4)
    z[0, [1, 2, 4, label]] = 0.0
    step(memory, z, torch.tensor([label]), torch.tensor([0]))
    ids, values, rest = topk_parts(memory.storage, memory.table.cpu())
    assert ids.tolist() == [[label, 1, 2]]
    assert values.tolist() == [[0.625, 0.125, 0.125]]
    assert rest.tolist() == [[0.125]]
    assert dense(memory, classes)[0, 0].item() == pytest.approx(0.125 / (classes - 3))


@pytest.mark.parametrize(("classes", "kept"), [(12, 3), (12, 12), (2, 2)])
def test_topk_is_float16_while_at_most_k_classes_have_mass(classes, kept, device):
    """Bit for bit, since both round a class by the same word; with K = C always."""
    ours = memory_of(torch.full((4, classes), -1.0), f"topk:{kept}", device)
    plain = memory_of(torch.full((4, classes), -1.0), "float16", device)
    y, ids = torch.arange(4) % classes, torch.arange(4)
    for _ in range(6):
        if kept == classes:
            z = torch.randn(4, classes)
        else:  # the given class and the two behind it
            z = torch.full((4, classes), -1e4)
            z[ids[:, None], (y[:, None] + torch.arange(3)) % classes] = torch.randn(4, 3)
        results = [step(memory, z, y, ids) for memory in (ours, plain)]
        assert same_bits(results[0].dlogits, results[1].dlogits)
        assert torch.equal(dense(ours, classes), dense(plain, classes))


@pytest.mark.parametrize("classes", [65_536, 70_000])
def test_class_ids_of_more_than_sixteen_bits(classes, device, monkeypatch):
    from fastlnl.ops.row_loss import triton_wide

    monkeypatch.setattr(triton_wide, "TOPK_BLOCK", 1 << 13)
    y, z = torch.tensor([classes - 1, 65_535]), torch.full((2, classes), -1e4)
    z[:, 3] = 0.0
    memory = memory_of(torch.full((2, classes), -1.0), "topk:2", device, 0.75, 0.75)
    assert memory.table.shape[1] == (5 if classes == 65_536 else 7)
    step(memory, z, y, torch.arange(2))
    ids, values, rest = topk_parts(memory.storage, memory.table.cpu())
    assert ids.tolist() == [[classes - 1, 3], [65_535, 3]]
    assert values.tolist() == [[0.75, 0.25]] * 2
    assert not rest.any()


@pytest.mark.parametrize("text", LOSSY)
def test_the_widths_that_a_gpu_gets(text, device, monkeypatch):
    """9,000 classes in the blocks of a real launch."""
    monkeypatch.undo()
    z, y, index = 3 * torch.randn(2, 9000), torch.tensor([4, 8999]), torch.tensor([1, 0])
    ours = memory_of(targets(2, 9000), text, device, 0.9, 0.5)
    plain = copy_of(ours)
    step(ours, z, y, index)
    with use_backend("reference"):
        step(plain, z, y, index)
    assert (bits(ours) != bits(plain)).sum() <= 4
