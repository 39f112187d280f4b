"""A record needs three seeds and their logs, or it is refused in a sentence."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import curves
import records
import train


def kept(folder, method, seed, epochs=4, log_epochs=None):
    run = folder / "toy_none" / f"{method}-seed{seed}"
    run.mkdir(parents=True)
    made_with = {"processor": "CPU, 1 threads", "torch": "2.13.0", "commit": "abc1234"}
    settings = {"method": method, "seed": seed, "epochs": epochs, "dataset": "toy", "noise_mode": "symmetric"}
    settings |= {"network": "mlp", "realised_noise": 0.4, "made_with": made_with}
    (run / "run.json").write_text(json.dumps(settings))
    lines = [
        {"epoch": t, "seconds": 2.0, "test_accuracy": 0.5 + 0.01 * seed, "memorised": 0.1, "right_as_true": 0.9}
        for t in range(1, (log_epochs or epochs) + 1)
    ]
    (run / "log.jsonl").write_text("".join(json.dumps(line | {"wrong_as_true": 0.3}) + "\n" for line in lines))
    return run


def test_three_seeds_make_a_record(tmp_path):
    runs = [kept(tmp_path, "ce", seed) for seed in (0, 1, 2)]
    found, refused = records.write({("toy_none", "ce"): runs}, tmp_path)
    assert refused == []
    (record,) = found
    assert (record["n"], record["seeds"], record["seconds"], record["commit"]) == (3, [0, 1, 2], 8.0, "abc1234")
    assert record["accuracy"] == pytest.approx(51.0)
    assert record["std"] == pytest.approx(1.0)
    text = (tmp_path / "records.md").read_text()
    assert (
        "| ce | toy | symmetric, 40.0 % wrong | mlp, 4 | 51.00 ± 1.00 | 3 | 8 | CPU, 1 threads | 2.13.0 | abc1234"
        in text
    )
    assert json.loads((tmp_path / "records.json").read_text()) == found


def test_a_record_is_refused(tmp_path):
    two = [kept(tmp_path / "two", "ce", seed) for seed in (0, 1)]
    same = [*two, kept(tmp_path / "again", "ce", 1)]
    unlogged = [*two, kept(tmp_path / "unlogged", "ce", 2)]
    (unlogged[2] / "log.jsonl").unlink()
    short = [*two, kept(tmp_path / "short", "ce", 2, log_epochs=3)]
    for runs, reason in (
        (two, "ce has 2 seeds .0, 1., expected 3 at least"),
        (same, "ce has 2 seeds"),
        (unlogged, "ce-seed2 has no log.jsonl; keep the run with its log"),
        (short, "ce-seed2 ends after epoch 3 of 4"),
    ):
        with pytest.raises(records.Refused, match=reason):
            records.record_of("ce", runs)


def test_command_writes_records_and_curves_of_kept_runs(tmp_path, monkeypatch, capsys):
    for module in (train, curves):
        monkeypatch.setattr(module, "RESULTS", tmp_path / "training")
    for method in ("ce", "alr"):
        for seed in (0, 1, 2):
            kept(tmp_path / "training", method, seed)
    kept(tmp_path / "training", "crema", 0)
    monkeypatch.setattr(sys, "argv", ["train.py", "--record"])
    train.main()
    printed = capsys.readouterr().out
    assert "2 records in" in printed
    assert "no record: toy_none: crema has 1 seed (0), expected 3 at least" in printed
    assert [row["method"] for row in json.loads((tmp_path / "records.json").read_text())] == ["ce", "alr"]
    pytest.importorskip("matplotlib")
    (picture,) = curves.write_plots(tmp_path)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_committed_records_have_their_logs():
    committed = json.loads((records.ROOT / "benchmarks" / "results" / "records.json").read_text())
    assert committed
    for record in committed:
        assert record["n"] >= 3
        assert all((records.ROOT / log).is_file() for log in record["logs"])
