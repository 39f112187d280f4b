"""Wrong values and wrong shapes: what row_loss records, what it leaves alone, what it says."""

import pytest
import torch
from truths import call, same_bits, table_of, targets

from fastlnl.backend import use_backend
from fastlnl.errors import DefinitionError, ShapeError
from fastlnl.ops.row_loss import LOSSES, TableTarget, new_error_word, row_loss

SAMPLES, FAR = 6, 2**40  # far enough to leave any address space when multiplied by the bytes of a row


@pytest.fixture(autouse=True)
def _poisoned(poison):
    pass


def guarded_table(classes, device):
    """A table inside a larger one, and the larger one: what is written beside the table is seen."""
    whole = torch.full((SAMPLES + 8, classes), 1 / classes, device=device)
    return whole, TableTarget(whole[4:-4], 0.9, 0.9, True)


def assert_rows_are_nothing(result, rows):
    assert not result.loss[rows].any()
    assert not result.dlogits[rows].any()
    assert not any(column[rows].any() for column in result.stats)


def assert_reported(errors, first, other):
    """The first of two offenders of a batch; on a GPU the one whose program came first."""
    assert errors.tolist() in ([first, other] if errors.is_cuda else [first])


@pytest.mark.parametrize("wrong", [-1, 10, 11, FAR, -FAR])
@pytest.mark.parametrize("name", ["cross_entropy", "alr"])
def test_label_out_of_range(name, wrong, device):
    z, y, index = torch.randn(20, 10), torch.arange(20) % 10, torch.arange(20) % 5
    y[[13, 17]] = wrong
    index[[13, 17]] = 5  # row 5 of the table is met by wrong labels only
    whole, memory = guarded_table(10, device)
    whole[4 + 5] = -1  # fresh: a wrong label must not become its one-hot either
    before = whole.clone()
    errors = new_error_word(device)
    options = {"memory": memory} if name == "alr" else {}
    result = call(z.to(device), y.to(device), name, errors=errors, index=index.to(device), with_stats=True, **options)
    assert_reported(errors, [1, 13, 5, wrong], [1, 17, 5, wrong])
    assert_rows_are_nothing(result, [13, 17])
    right = [b for b in range(20) if b not in (13, 17)]
    assert result.dlogits[right].any(1).all()
    beside = [0, 1, 2, 3, 4 + 5, 10, 11, 12, 13]
    assert same_bits(whole[beside], before[beside])


@pytest.mark.parametrize("wrong", [-2, SAMPLES, SAMPLES + 1, FAR, -FAR])
@pytest.mark.parametrize("classes", [10, 9000])
def test_id_out_of_range(classes, wrong, device):
    batch = 20 if classes == 10 else 4
    z, y, index = torch.randn(batch, classes), torch.arange(batch) % 10, torch.arange(batch) % SAMPLES
    index[2] = index[-1] = wrong
    whole, memory = guarded_table(classes, device)
    before = whole.clone()
    errors = new_error_word(device)
    result = call(
        z.to(device), y.to(device), "elr", errors=errors, memory=memory, index=index.to(device), with_stats=True
    )
    assert_reported(errors, [2, 2, wrong, wrong], [2, batch - 1, wrong, wrong])
    assert_rows_are_nothing(result, [2, batch - 1])
    assert same_bits(whole[:4], before[:4])
    assert same_bits(whole[-4:], before[-4:])


def test_label_is_reported_before_id(device):
    _whole, memory = guarded_table(10, device)
    errors = new_error_word(device)
    z, y = torch.randn(2, 10, device=device), torch.tensor([3, 12], device=device)
    call(z, y, "alr", errors=errors, memory=memory, index=torch.tensor([0, 99], device=device))
    assert errors.tolist() == [1, 1, 99, 12]


def test_position_stands_for_the_id_where_there_is_none(device):
    errors = new_error_word(device)
    call(torch.randn(3, 4, device=device), torch.tensor([0, 1, 4], device=device), "gce", errors=errors)
    assert errors.tolist() == [1, 2, 2, 4]


def test_the_first_offender_stays(device):
    errors = new_error_word(device)
    z = torch.randn(3, 4, device=device)
    for label in ([0, 1, 2], [0, 7, 2], [9, 1, 2], [0, 1, 2]):
        call(z, torch.tensor(label, device=device), "cross_entropy", errors=errors)
    assert errors.tolist() == [1, 1, 1, 7]


def test_right_values_record_nothing(device):
    errors = new_error_word(device)
    index = torch.tensor([0, SAMPLES - 1], device=device)
    memory = table_of(targets(SAMPLES, 10), device)
    call(torch.randn(2, 10, device=device), torch.tensor([0, 9], device=device), "alr", errors=errors,
         memory=memory, index=index)  # fmt: skip
    assert errors.tolist() == [0, 0, 0, 0]


def test_labels_are_not_looked_at_without_need(device):
    """Soft cross-entropy has no given labels; none may be asked for."""
    result = call(torch.randn(2, 3, device=device), None, "soft_cross_entropy", target=targets(2, 3).to(device))
    assert result.dlogits.isfinite().all()


@pytest.mark.parametrize("where", ["first", "middle", "last"])
def test_wrong_rows_above_the_parallel_threshold(where):
    """The team of threads treats them like a single thread does."""
    from fastlnl.ops.row_loss.numba_kernel import SERIAL_BELOW

    classes = 100
    batch = SERIAL_BELOW // classes + 100
    bad = {"first": 0, "middle": batch // 2, "last": batch - 1}[where]
    z, y, index = torch.randn(batch, classes), torch.arange(batch) % classes, torch.arange(batch) % 300
    y[bad] = -5
    results = []
    with use_backend("numba"):
        for threads in (1, 2):
            torch.set_num_threads(threads)
            errors, memory = new_error_word(), table_of(torch.full((300, classes), 1 / classes), "cpu")
            results.append(call(z, y, "alr", errors=errors, memory=memory, index=index, with_stats=True))
            assert errors.tolist() == [1, bad, bad % 300, -5]
            assert_rows_are_nothing(results[-1], [bad])
    assert same_bits(results[0].dlogits, results[1].dlogits)


Z, Y = torch.zeros(4, 3), torch.zeros(4, dtype=torch.int64)
TABLE = TableTarget(torch.zeros(5, 3), 0.9, 0.9, True)
REFUSED = [
    ({"logits": torch.zeros(4)}, r"logits is \(4,\) float32; expected \(B, C\)"),
    ({"logits": torch.zeros(4, 0)}, r"logits is \(4, 0\) float32; .* at least one class"),
    ({"logits": torch.zeros(4, 3, dtype=torch.int64)}, r"logits is \(4, 3\) int64; expected \(B, C\) of a floating"),
    ({"label": torch.zeros(5, dtype=torch.int64)}, r"label is \(5,\) int64; expected \(4,\) of an integer type"),
    ({"label": torch.zeros(4)}, r"label is \(4,\) float32; expected \(4,\) of an integer type"),
    ({"label": torch.zeros(4, dtype=torch.bool)}, r"label is \(4,\) bool; expected \(4,\) of an integer type"),
    ({"label": torch.zeros(4, 1, dtype=torch.int64)}, r"label is \(4, 1\) int64; expected \(4,\)"),
    ({"label": None}, r"label is None, but loss 'cross_entropy' .* needs labels \(B,\)"),
    ({"weight": torch.ones(3)}, r"weight is \(3,\) float32; expected \(4,\) of a floating type"),
    ({"weight": torch.ones(4, dtype=torch.int64)}, r"weight is \(4,\) int64; expected \(4,\) of a floating type"),
    ({"name": "selc"}, r"loss 'selc' needs soft targets; pass target \(B, C\) or memory"),
    ({"name": "selc", "target": torch.zeros(4, 2)}, r"target is \(4, 2\) float32; expected \(4, 3\)"),
    ({"name": "selc", "target": torch.zeros(4, 3, dtype=torch.int64)}, r"target is \(4, 3\) int64"),
    ({"name": "selc", "memory": TABLE}, r"index is None; the label memory needs the sample ids \(B,\)"),
    (
        {"name": "selc", "memory": TABLE, "index": torch.zeros(3, dtype=torch.int64)},
        r"index is \(3,\) int64; expected \(4,\)",
    ),
    ({"name": "selc", "memory": TABLE, "index": Y, "target": torch.zeros(4, 3)}, "target and memory were both given"),
    ({"name": "selc", "memory": TABLE, "index": Y, "label": None}, "label is None, but loss 'selc'"),
    (
        {"name": "selc", "memory": TABLE._replace(table=torch.zeros(5, 7)), "index": Y},
        r"logits is \(4, 3\) float32 but the label memory has 7 classes; build it with num_classes",
    ),
    (
        {"name": "selc", "memory": TABLE._replace(table=torch.zeros(5, 3).double()), "index": Y},
        r"label memory is \(5, 3\) float64; expected a contiguous \(N, C\) float32",
    ),
    (
        {"name": "selc", "memory": TABLE._replace(table=torch.zeros(3, 5).t()), "index": Y},
        r"label memory is \(5, 3\) float32; expected a contiguous",
    ),
    ({"reduction": "average"}, "reduction is 'average'; expected one of mean, sum, none"),
    ({"weight": torch.ones(4, device="meta")}, "weight is on meta but logits is on cpu; move one of them"),
    ({"label": Y.to("meta")}, "label is on meta but logits is on cpu; move one of them"),
]


@pytest.mark.parametrize(("change", "text"), REFUSED, ids=lambda x: x if isinstance(x, str) else "")
def test_refused_at_the_door(change, text):
    given = {"logits": Z, "label": Y, "name": "cross_entropy"} | change
    with pytest.raises(ShapeError, match=text):
        call(given.pop("logits"), given.pop("label"), given.pop("name"), **given)


@pytest.mark.parametrize("parameters", [(), (0.7, 1.0)])
def test_wrong_number_of_parameters(parameters):
    with pytest.raises(DefinitionError, match=rf"loss 'gce' got {len(parameters)} parameters but has q"):
        row_loss(Z, Y, LOSSES["gce"], parameters, errors=new_error_word())


def test_unknown_parameter():
    with pytest.raises(DefinitionError, match="loss 'gce' has no parameter gamma; it has q"):
        LOSSES["gce"].parameters(gamma=2.0)
