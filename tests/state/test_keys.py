"""KeyTable: rows in the order of appearance, kept in the state_dict, never given twice."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fastlnl.checkpoint import load, save
from fastlnl.errors import LabelError, StateError
from fastlnl.state import KeyTable


@settings(deadline=None, max_examples=50)
@given(st.lists(st.lists(st.text(max_size=3), max_size=6), max_size=8))
def test_rows_are_places_of_first_appearance(batches):
    keys, order = KeyTable(capacity=100), []
    for batch in batches:
        order += [key for key in dict.fromkeys(batch) if key not in order]
        rows = keys.rows(batch)
        assert rows.dtype == torch.int64
        assert rows.tolist() == [order.index(key) for key in batch]
    assert list(keys) == order
    assert len(keys) == len(order)


def test_given_keys_have_their_places_and_admit_no_others():
    keys = KeyTable(["b.jpg", "a.jpg"])
    assert keys.rows(["a.jpg", "b.jpg", "a.jpg"]).tolist() == [1, 0, 1]
    with pytest.raises(LabelError, match=r"'c.jpg' is new but all 2 rows are taken.*larger capacity"):
        keys.rows(["a.jpg", "c.jpg"])
    assert list(keys) == ["b.jpg", "a.jpg"]


def test_rows_survive_a_checkpoint(tmp_path):
    keys = KeyTable(capacity=10)
    before = keys.rows(["x", "y", 7])
    save({"keys": keys.state_dict()}, tmp_path / "c.pt")
    resumed = KeyTable(capacity=10)
    resumed.load_state_dict(load(tmp_path / "c.pt")["keys"])
    assert resumed.rows([7, "y", "new", "x"]).tolist() == [2, 1, 3, 0]
    assert keys.rows(["x", "y", 7]).tolist() == before.tolist()


def test_other_tables_are_refused():
    saved = KeyTable(["a", "b", "c"]).state_dict()
    with pytest.raises(StateError, match=r"3 keys but this one has room for 2; build it with capacity=3"):
        KeyTable(capacity=2).load_state_dict(saved)
    with pytest.raises(StateError, match=r"'c' has row 0 here but row 2 in the saved table"):
        KeyTable(["c", "b", "a"]).load_state_dict(saved)
    with pytest.raises(StateError, match=r"'d' has row 0 here but no row"):
        KeyTable(["d"], capacity=3).load_state_dict(saved)


def test_bad_tables_are_refused():
    with pytest.raises(ValueError, match="neither keys nor a capacity"):
        KeyTable()
    with pytest.raises(ValueError, match=r"key 'a' comes more than once"):
        KeyTable(["a", "b", "a"])
    with pytest.raises(ValueError, match="2 keys but capacity is 1"):
        KeyTable(["a", "b"], capacity=1)
