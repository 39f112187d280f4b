"""LabelMemory in every storage: what it shows of its rows, what is saved, what is refused, where it lives."""

import copy

import pytest
import torch

from fastlnl import losses
from fastlnl.errors import BackendError, ShapeError, StateError
from fastlnl.ops.row_loss import _check_memory
from fastlnl.ops.row_loss.storage import decode, one_hot
from fastlnl.state import LabelMemory, label_memory

N, C = 12, 5
STORAGES = ("float32", "bfloat16", "float16", "uint8", "topk:1", "topk:3", "topk:5")
INITS = ("onehot", "zeros", "first_prediction")
KIND = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "uint8": torch.uint8}


def given_label(samples=N, classes=C):
    return torch.arange(samples) * 3 % classes


def used(storage, init="onehot", label=None, steps=4, seed=0):
    """A criterion whose memory has moved, some rows of it never."""
    torch.manual_seed(1)
    criterion = losses.ALR(N, C, label, storage=storage, init=init, momentum=0.7, seed=seed)
    for _ in range(steps):
        index = torch.randint(0, N - 3, (6,))
        criterion(2 * torch.randn(6, C), given_label()[index], index)
    return criterion


# -- rows, labels, size ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("storage", "classes", "size"),
    [
        ("float32", 100, 400),
        ("bfloat16", 100, 200),
        ("float16", 21_841, 43_682),
        ("uint8", 100, 100),
        ("topk:16", 100, 66),
        ("topk:16", 21_841, 66),
        ("topk:1", 65_536, 6),
        ("topk:16", 65_537, 98),
    ],
)
def test_bytes_of_a_sample(storage, classes, size):
    memory = LabelMemory(7, classes, storage=storage)
    assert memory.bytes_per_sample == size
    assert memory.table.nbytes == 7 * size


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("init", INITS)
def test_rows_start_as_asked_for(init, storage):
    everything, label = torch.arange(N), given_label()
    start = {"onehot": torch.eye(C)[label], "zeros": torch.zeros(N, C), "first_prediction": torch.full((N, C), -1.0)}
    memory = LabelMemory(N, C, label, init, storage)
    assert torch.equal(memory.rows(everything), start[init])
    assert torch.equal(memory.labels(), label if init == "onehot" else torch.full((N,), -1))
    lazy = LabelMemory(N, C, init=init, storage=storage)
    assert torch.equal(lazy.rows(everything), start["zeros" if init == "zeros" else "first_prediction"])
    assert (lazy.labels() == -1).all()


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("init", INITS)
def test_labels_are_the_highest_of_the_rows(init, storage, monkeypatch):
    monkeypatch.setattr(label_memory, "BLOCK", 2 * C)  # two rows at a time, and one at the end
    memory = used(storage, init).memory
    rows = memory.rows(torch.arange(N))
    expected = torch.where(rows.amax(1) > 0, rows.argmax(1), -1)
    assert torch.equal(memory.labels(), expected)
    assert (expected[:-3] >= 0).any()
    assert (expected[-3:] == -1).all()
    assert torch.equal(memory.rows(torch.tensor([3, 3, 0], dtype=torch.int16)), rows[[3, 3, 0]])


def test_a_class_that_shares_the_rest_can_be_the_highest():
    """One kept class of three, rounded below a third: then the lowest of the others is ahead."""
    memory = LabelMemory(4, 3, storage="topk:1")
    values = torch.tensor([[0.333, 0.667], [0.25, 0.5], [0.25, 0.5], [0.0, 0.0]], dtype=torch.float16)
    ids = torch.tensor([[0], [0], [2], [0]], dtype=torch.int16)
    memory.table.copy_(torch.cat((ids, values.view(torch.int16)), 1))
    assert torch.equal(memory.labels()[:3], memory.rows(torch.arange(3)).argmax(1))
    assert memory.labels().tolist() == [1, 0, 0, -1]


# -- asked for what is not there ---------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", ["topk:0", "topk:6", "topk", "topk:x", "topk:-1", "float64", "uint8:3", "", "bf16"])
def test_unknown_storages_are_refused(storage):
    with pytest.raises(ValueError, match=rf"storage is '{storage}'; expected .* K from 1 to the 5 classes"):
        LabelMemory(N, C, storage=storage)


@pytest.mark.parametrize("seed", [-1, 1 << 32])
def test_seeds_fit_their_word(seed):
    with pytest.raises(ValueError, match=rf"seed is {seed}; expected a whole number in \[0, 2\^32\)"):
        LabelMemory(N, C, seed=seed)


# -- where it lives ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_casts_leave_the_records_alone_and_copies_are_their_own(storage):
    memory = used(storage).memory
    table = memory.table.clone()
    for cast in (memory.half, memory.bfloat16, memory.float, memory.double, lambda: memory.to(torch.bfloat16)):
        assert cast().table.dtype == KIND.get(storage, torch.int16)
        assert torch.equal(memory.table, table)
    twin = copy.deepcopy(memory)
    assert twin.storage == memory.storage
    memory.table.zero_()
    assert torch.equal(twin.table, table)
    assert twin.step is None or twin.step.item() == 4
    assert memory.to("meta").table.device.type == "meta"


def test_pin_needs_a_cuda_device():
    if torch.cuda.is_available():
        pytest.skip("there is one")
    with pytest.raises(BackendError, match="pin=True keeps the table in pinned host memory, which needs a CUDA device"):
        LabelMemory(N, C, pin=True)


def test_a_pinned_table_stays_when_the_module_moves(monkeypatch):
    """With a stand-in for pinning: nothing here runs on a device."""
    pinned = []
    monkeypatch.setattr(label_memory, "_pinned", lambda table: pinned.append(table) or table)
    memory = LabelMemory(N, C, storage="topk:2", pin=True)
    copy.deepcopy(memory)
    assert len(pinned) == 2  # a copy is pinned again
    memory.to("meta")
    assert memory.table.device.type == "cpu"
    assert memory.step.device.type == "meta"


def test_the_door_lets_pinned_tables_in_and_no_others(monkeypatch):
    logits, index = torch.zeros(4, C, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    here = LabelMemory(N, C, storage="topk:2").target(0.9, 0.9)
    there = here._replace(step=here.step.to("meta"))
    with pytest.raises(ShapeError, match="the label memory is on cpu but logits is on meta; move one of them"):
        _check_memory(logits, index, None, there)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda self: self.device.type == "cpu")
    _check_memory(logits, index, None, there)
    with pytest.raises(ShapeError, match="the step of the label memory is on cpu but logits is on meta"):
        _check_memory(logits, index, None, here)


# -- saved and loaded --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("storage", STORAGES)
def test_a_run_goes_on_with_the_same_bits(storage, tmp_path):
    first, second = used(storage, label=given_label()), losses.ALR(N, C, given_label(), storage=storage, momentum=0.7)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for _ in range(3):
        z, index = torch.randn(6, C), torch.randint(0, N, (6,))
        label = given_label()[index]
        assert torch.equal(first(z, label, index), second(z, label, index))
    assert torch.equal(first.memory.table, second.memory.table)
    assert first.memory.step is None or torch.equal(first.memory.step, second.memory.step)


OTHERS = [
    ({"num_samples": 11, "label": given_label(11)}, "num_samples 12 but this one has 11; build the criterion for the"),
    ({"num_classes": 6}, "num_classes 5 but this one has 6; build the criterion for the data"),
    ({"init": "zeros"}, "init onehot but this one has zeros"),
    ({"storage": "float32"}, "storage topk:3 but this one has float32; .* memory.load_converted\\(state_dict\\)"),
    ({"storage": "topk:2"}, "storage topk:3 but this one has topk:2; build it with that storage, or convert the rows"),
    ({"seed": 4}, "seed 0 but this one has 4; resume with the seed the run was started with"),
    ({"label": (given_label() + 1) % C}, "made with other given labels"),
]


@pytest.mark.parametrize(("change", "text"), OTHERS, ids=[" ".join(change) for change, _ in OTHERS])
@pytest.mark.parametrize("converted", [False, True])
def test_state_of_something_else_is_refused_and_nothing_is_overwritten(change, text, converted):
    if converted and ("storage" in change or "seed" in change):
        return  # that is what conversion is for
    saved = used("topk:3", label=given_label()).memory.state_dict()
    options = {"num_samples": N, "num_classes": C, "label": given_label(), "init": "onehot", "storage": "topk:3"}
    memory = LabelMemory(**(options | change))
    before = memory.table.clone()
    with pytest.raises(StateError, match=text):
        (memory.load_converted if converted else memory.load_state_dict)(saved)
    assert torch.equal(memory.table, before)


def test_a_state_from_before_storages_is_float32():
    saved = used("float32").memory.state_dict()
    del saved["_extra_state"]["storage"], saved["_extra_state"]["seed"]
    memory = LabelMemory(N, C)
    memory.load_state_dict(saved)
    assert torch.equal(memory.table, saved["table"])
    with pytest.raises(StateError, match="storage float32 but this one has uint8"):
        LabelMemory(N, C, storage="uint8").load_state_dict(saved)
    LabelMemory(N, C, storage="uint8").load_converted(saved)


@pytest.mark.parametrize("target", STORAGES)
@pytest.mark.parametrize("source", STORAGES)
def test_rows_convert_from_any_storage_to_any_other(source, target, monkeypatch):
    """Each value within a digit of what is left of it; rows that were never written stay so."""
    monkeypatch.setattr(label_memory, "BLOCK", 5 * C)  # three blocks, the last of two rows
    old = used(source, label=None)
    new = LabelMemory(N, C, storage=target)
    new.load_converted(old.state_dict(), prefix="memory.")
    everything = torch.arange(N)
    before, after = old.memory.rows(everything), new.rows(everything)
    if target.startswith("topk"):
        kept = int(target[-1])
        largest = before.argsort(dim=1, descending=True, stable=True)
        share = before.gather(1, largest[:, kept:]).mean(1, keepdim=True).nan_to_num()
        before = before.scatter(1, largest[:, kept:], share.expand(-1, C - kept))
    assert torch.equal(after < 0, before < 0)
    digit = {"float32": 0.0, "bfloat16": 2.0**-8, "uint8": 1 / 254}.get(target, 2.0**-11)
    assert (after - before).abs().max() <= digit + 1e-7
    assert new.step is None or new.step.item() == 1
    if source == target and source in ("float32", "bfloat16", "float16", "topk:5"):
        assert torch.equal(after, old.memory.rows(everything))  # nothing to round


def test_conversion_checks_the_labels_and_takes_over_their_hash():
    old = used("float32", label=given_label()).memory
    new = LabelMemory(N, C, storage="uint8")
    new.load_converted(old.state_dict())
    assert new.fingerprint == old.fingerprint


def test_one_hot_records_are_those_of_the_rounding():
    """The direct form of what encode makes of one-hot rows."""
    from fastlnl.ops.row_loss import Storage
    from fastlnl.ops.row_loss.storage import encode, row_key

    label = torch.tensor([0, 2, 4])
    for text in STORAGES:
        storage = Storage.parse(text, C)
        rows = torch.eye(C)[label]
        records = one_hot(storage, label, C)
        assert torch.equal(decode(storage, records, C), rows)
        assert torch.equal(encode(storage, rows, row_key(1, torch.tensor(5), label)), records)
