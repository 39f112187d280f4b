"""The table of where an epoch's time goes: every method, parts that add up, a setting left out with the reason."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import profiles

from fastlnl.data import load_dataset
from fastlnl.methods import METHODS


def columns(text):
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("| ")]
    return {name: {row[0]: row[1 + i] for row in rows[1:]} for i, name in enumerate(rows[0][1:])}


def test_parts_of_every_method_add_up(tmp_path, capsys):
    path = tmp_path / "profiles.md"
    profiles.main(["--dataset", "digits", "--samples", "300", "--out", str(path)])
    text = path.read_text()
    assert capsys.readouterr().out == text
    assert "PreAct CNN, crop and flip: skipped, the images of digits are too small." in text
    table = columns(text)
    assert set(table) == set(METHODS) - {"sanm"}
    for name, column in table.items():
        assert float(column.pop("epoch, s")) > 0
        shares = sum(float(cell.removesuffix(" %")) for cell in column.values() if cell)
        assert shares == pytest.approx(100, abs=0.5 + 1e-9)  # of ten, each rounded to 0.1
        assert column["network, forward"]
        assert bool(column["scoring and split"]) == (name not in ("ce", "alr"))  # ALR asks once, after its warm-up


def test_gain_is_a_ratio_of_two_runs():
    setting = profiles.SETTINGS[0]
    ratios = profiles.gain("ce", setting, load_dataset("digits").first(256), rounds=2)
    assert len(ratios) == 2
    assert min(ratios) > 0


def test_smaller_keeps_the_share_of_test_samples():
    data = load_dataset("digits")
    small = profiles.smaller(data, data.num_samples // 4)
    assert small.num_samples == data.num_samples // 4
    assert (
        len(small.test_label) == len(small.test_images) == len(data.test_label) * small.num_samples // data.num_samples
    )
