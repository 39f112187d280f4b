"""Criteria with a label memory: warm-up, refinement, what is saved and what is refused."""

import pytest
import torch
import torch.nn.functional as F

import fastlnl
from fastlnl import losses
from fastlnl.state import LabelMemory

Z, Y = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([1])
I0 = torch.tensor([0])


def close(actual, expected):
    torch.testing.assert_close(actual, torch.tensor(expected), rtol=0, atol=5e-7)


@pytest.mark.parametrize(
    ("options", "loss", "gradient"),
    [
        ({}, 1.599803601, [[0.513940625, -0.637513269, 0.123572644]]),
        ({"entropy_weight": 0.0}, 1.350084926, [[0.598716860, -0.679744376, 0.081027515]]),
        ({"detach": False}, 1.599803601, [[0.485681880, -0.623436230, 0.137754350]]),
    ],
)
def test_golden_row_of_alr(options, loss, gradient):
    logits = Z.clone().requires_grad_()
    criterion = losses.ALR(1, 3, Y, momentum=0.9, **options)
    value = criterion(logits, Y, I0)
    value.backward()
    close(value.detach(), loss)
    close(logits.grad, gradient)
    close(criterion.memory.table, [[0.066524096, 0.924472847, 0.009003057]])


def test_golden_row_of_elr_from_zeros():
    logits = Z.clone().requires_grad_()
    value = losses.ELR(1, 3, momentum=0.7, elr_weight=3.0)(logits, Y, I0)
    value.backward()
    close(value.detach(), 0.908865117)
    close(logits.grad, [[0.55586899, -0.68613526, 0.13026627]])


@pytest.mark.parametrize("kind", [losses.ALR, losses.SELC, losses.ELR])
def test_warm_up_is_cross_entropy_and_leaves_the_memory_alone(kind):
    label = torch.randint(4, (9,))
    criterion = kind(9, 4, label, warmup_epochs=2)
    before, logits = criterion.memory.table.clone(), torch.randn(9, 4)
    for _ in range(2):
        torch.testing.assert_close(criterion(logits, label, torch.arange(9)), F.cross_entropy(logits, label))
        assert torch.equal(criterion.memory.table, before)
        criterion.end_epoch()
    criterion(logits, label, torch.arange(9))
    assert not torch.equal(criterion.memory.table, before)


def test_rows_that_start_from_the_batch_equal_rows_that_start_from_the_labels_bit_for_bit():
    torch.manual_seed(1)
    label = torch.randint(5, (30,))
    eager, lazy = losses.ALR(30, 5, label), losses.ALR(30, 5)
    for _ in range(6):
        index, logits = torch.randint(30, (20,)), torch.randn(20, 5)  # ids repeat
        assert torch.equal(eager(logits, label[index], index), lazy(logits, label[index], index))
    touched = lazy.memory.table[:, 0] >= 0
    assert torch.equal(eager.memory.table[touched], lazy.memory.table[touched])
    assert (lazy.memory.labels()[~touched] == -1).all()
    assert torch.equal(eager.memory.labels()[touched], lazy.memory.labels()[touched])


def test_first_prediction_starts_a_row_with_what_the_network_says():
    criterion = losses.ALR(2, 3, init="first_prediction")
    criterion(Z, Y, I0)
    torch.testing.assert_close(criterion.memory.table[0], torch.softmax(Z[0], 0))
    assert criterion.memory.labels().tolist() == [0, -1]


def test_update_orders_and_eval_source():
    p, onehot = torch.softmax(Z, 1), F.one_hot(Y, 3).float()
    moved = 0.8 * onehot + 0.2 * p
    for options, target, stored in [
        ({"update_order": "update_then_use"}, moved, moved),
        ({"update_order": "use_then_update"}, onehot, moved),
        ({"target_source": "eval"}, onehot, onehot),
    ]:
        criterion = losses.SELC(1, 3, Y, momentum=0.8, **options)
        torch.testing.assert_close(criterion(Z, Y, I0), F.cross_entropy(Z, target))
        torch.testing.assert_close(criterion.memory.table, stored)
    criterion.refine(Z, I0)
    torch.testing.assert_close(criterion.memory.table, moved)


def test_momentum_one_is_cross_entropy_and_rows_stay():
    criterion = losses.ALR(1, 3, Y, momentum=1.0, entropy_weight=0.0)
    torch.testing.assert_close(criterion(Z, Y, I0), F.cross_entropy(Z, Y))
    assert torch.equal(criterion.memory.table, F.one_hot(Y, 3).float())


def test_one_class_gives_zero_loss_and_gradient():
    logits = torch.randn(4, 1, requires_grad=True)
    zero = torch.zeros(4, dtype=torch.long)
    loss = losses.ALR(4, 1, zero)(logits, zero, torch.arange(4))
    loss.backward()
    assert loss.item() == 0
    assert not logits.grad.any()


def test_half_leaves_the_table_alone_and_to_moves_it():
    criterion = losses.ALR(3, 2, torch.tensor([0, 1, 1]))
    assert criterion.half().memory.table.dtype == torch.float32
    assert criterion.to(torch.bfloat16).memory.table.dtype == torch.float32
    assert criterion.to("meta").memory.table.device.type == "meta"


def test_state_dict_brings_back_epoch_and_memory(tmp_path):
    label = torch.randint(4, (12,))
    first = losses.ALR(12, 4, label, warmup_epochs=1)
    first.end_epoch()
    first(torch.randn(12, 4), label, torch.arange(12))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = losses.ALR(12, 4, label, warmup_epochs=1)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(first.memory.table, second.memory.table)
    assert second.epoch == 1
    logits = torch.randn(12, 4)
    assert torch.equal(first(logits, label, torch.arange(12)), second(logits, label, torch.arange(12)))


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (lambda label: LabelMemory(11, 4, label[:11]), "num_samples 12 but this one has 11"),
        (lambda label: LabelMemory(12, 5, label), "num_classes 4 but this one has 5"),
        (lambda label: LabelMemory(12, 4, (label + 1) % 4), "other given labels"),
        (lambda label: LabelMemory(12, 4, label, init="zeros"), "init onehot but this one has zeros"),
        (lambda label: LabelMemory(12, 4, label, storage="uint8"), "storage float32 but this one has uint8"),
    ],
)
def test_state_of_other_data_is_refused_and_nothing_is_overwritten(other, text):
    label = torch.randint(4, (12,))
    memory = other(label)
    before = memory.table.clone()
    with pytest.raises(fastlnl.StateError, match=text):
        memory.load_state_dict(LabelMemory(12, 4, label).state_dict())
    assert torch.equal(memory.table, before)


STORAGES = ["bfloat16", "float16", "uint8", "topk:2", "topk:4"]


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kind", [losses.ALR, losses.SELC, losses.ELR])
def test_every_criterion_keeps_its_memory_in_the_storage_asked_for(kind, storage):
    """Loss and gradient are, bit for bit, those of a float32 memory with the decoded rows."""
    torch.manual_seed(0)
    label, everything = torch.randint(4, (12,)), torch.arange(12)
    plain, ours = kind(12, 4, label), kind(12, 4, label, storage=storage, seed=5)
    for _ in range(6):
        logits, index = torch.randn(12, 4).mul(3).requires_grad_(), torch.randint(12, (12,))
        plain.memory.table.copy_(ours.memory.rows(everything))
        values = [criterion(logits, label[index], index) for criterion in (plain, ours)]
        gradients = [torch.autograd.grad(value, logits)[0] for value in values]
        assert torch.equal(*values)
        assert torch.equal(*gradients)
        kept = 4 if storage[:4] != "topk" else int(storage[5])
        digit = {"bfloat16": 2.0**-8, "uint8": 1 / 254}.get(storage, 2.0**-11)
        stored = ours.memory.rows(everything).sort(1).values[:, 4 - kept :]
        assert (stored - plain.memory.table.sort(1).values[:, 4 - kept :]).abs().max() <= digit
    assert str(ours.memory.storage) == storage
    assert ours.memory.step.item() == 6
    other_seed = kind(12, 4, label, storage=storage, seed=6)
    other_seed.memory.table.copy_(ours.memory.table)
    z = torch.randn(12, 4)
    for criterion in (ours, other_seed):
        criterion.memory.step.zero_()
        criterion(z, label, torch.arange(12))
    assert not torch.equal(ours.memory.table, other_seed.memory.table)  # the seed reaches the rounding


@pytest.mark.parametrize("storage", ["bfloat16", "topk:2"])
def test_refine_moves_rows_of_any_storage(storage):
    criterion = losses.SELC(1, 3, Y, momentum=0.5, target_source="eval", storage=storage)
    before = criterion.memory.table.clone()
    criterion(Z, Y, I0)
    assert torch.equal(criterion.memory.table, before)
    criterion.refine(Z, I0)
    moved = 0.5 * F.one_hot(Y, 3) + 0.5 * torch.softmax(Z, 1)
    torch.testing.assert_close(criterion.memory.rows(I0)[0, :2], moved[0, :2], rtol=0, atol=2.0**-8)


@pytest.mark.parametrize("storage", ["uint8", "topk:2"])
def test_compiled_criteria_store_the_bits_of_eager_ones(storage):
    """fullgraph, dynamic batch: table, seed and step go through the operator, and the step is counted."""
    torch.manual_seed(0)
    label = torch.randint(4, (12,))
    eager, inside = (losses.ALR(12, 4, label, storage=storage, seed=3) for _ in range(2))
    compiled = torch.compile(lambda *args: inside(*args), fullgraph=True, dynamic=True)
    for rows in (8, 5, 11):
        z, index = torch.randn(rows, 4).requires_grad_(), torch.randint(12, (rows,))
        (a,) = torch.autograd.grad(eager(z, label[index], index), z)
        (b,) = torch.autograd.grad(compiled(z, label[index], index), z)
        torch.testing.assert_close(a, b)
        assert torch.equal(eager.memory.table, inside.memory.table)
    assert eager.memory.step.item() == inside.memory.step.item() == 3


@pytest.mark.parametrize("storage", ["bfloat16", "topk:2"])
def test_operator_passes_opcheck_with_a_storage(storage):
    memory = LabelMemory(6, 4, torch.arange(6) % 4, storage=storage)
    errors, index = torch.zeros(4, dtype=torch.long), torch.arange(5)
    args = (torch.randn(5, 4), index % 4, "alr", [0.3, 0.0], None, memory.table, 0.9, 0.9, True, index, None, 0.2)
    rest = ("mean", errors, *memory.storage, 7, memory.step)
    for check in ("test_schema", "test_faketensor"):
        torch.library.opcheck(torch.ops.fastlnl.row_loss.default, (*args, *rest), test_utils=check)


def test_warm_up_counts_no_step():
    label = torch.randint(4, (9,))
    criterion = losses.ALR(9, 4, label, warmup_epochs=1, storage="uint8")
    criterion(torch.randn(9, 4), label, torch.arange(9))
    assert criterion.memory.step.item() == 0


def test_fingerprint_does_not_depend_on_the_integer_type():
    label = torch.randint(4, (12,))
    assert LabelMemory(12, 4, label).fingerprint == LabelMemory(12, 4, label.to(torch.uint8)).fingerprint
