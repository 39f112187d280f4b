"""The benchmarks tell the truth: rivals compute what they say, wrong ones get no number, reports are written."""

import argparse
import dataclasses
import json
import shutil
import sys
import time
from pathlib import Path

import pytest
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import cases
import compare
import epochs
import libraries
import measuring
import run
import steps
import summary
import tables
import timing

ROOT = Path(__file__).parents[1]
CASES = {case.name: case for case in cases.CASES}
TINY = {"N": (600,), "N x C": (600, 5), "B x C": (16, 10)}
WITHOUT_COMPILER = [(c.name, r) for c in cases.CASES for r in c.rivals if r != "torch.compile"]


@pytest.fixture
def quick(monkeypatch):
    """No torch.compile, which takes seconds a shape; contests at a tiny size."""
    short = [
        dataclasses.replace(case, rivals={name: r for name, r in case.rivals.items() if name != "torch.compile"})
        for case in cases.CASES
    ]
    monkeypatch.setattr(run, "CASES", short)
    monkeypatch.setattr(timing, "TURN_SECONDS", 1e-3)
    tiny = [dataclasses.replace(contest, sizes=(TINY[contest.axes],), quick=()) for contest in libraries.CONTESTS]
    tiny = [contest for contest in tiny if "torch.compile" not in contest.rivals]
    monkeypatch.setattr(run, "CONTESTS", tiny)
    monkeypatch.setattr(steps, "QUICK", (steps.Setting("mlp", "tiny MLP", (8,), 16, 5, False, 3),))
    monkeypatch.setattr(steps, "NUM_SAMPLES", 2000)
    monkeypatch.setattr(epochs, "QUICK", (3000,))
    monkeypatch.setattr(epochs, "DATA_SETS", epochs.DATA_SETS[:2])
    return short


def test_registry_is_complete():
    assert list(CASES) == ["P1", "P2", "P3"]
    for case in CASES.values():
        assert {"fastlnl", "eager", "torch.compile"} <= set(case.rivals)
        assert (ROOT / case.test).is_file()
    assert "F.cross_entropy" in CASES["P1"].rivals
    assert "F.cross_entropy" in CASES["P3"].rivals
    assert [CASES["P3"].target(shape, "torch.compile") for shape in cases.SHAPES] == [2.5, 1.7, 1.7, 2.0]
    assert [CASES["P3"].target(shape, "eager") for shape in cases.SHAPES] == [3, 3, 5, 5]
    assert CASES["P3"].target((16, 10), "eager") is None


@pytest.mark.parametrize(("name", "floats_each"), [("P1", 2), ("P2", 3), ("P3", 4)])
def test_byte_model_counts_each_matrix_once(name, floats_each):
    rows = 12 * 4096 if name != "P2" else 0
    assert CASES[name].bytes_moved((4096, 1000), "fastlnl") == floats_each * 4 * 4096 * 1000 + rows
    assert CASES[name].bytes_moved((4096, 1000), "F.cross_entropy") == 2 * 4 * 4096 * 1000 + 12 * 4096


@pytest.mark.parametrize("shape", [(16, 10), (33, 101), (4, 21841)])
@pytest.mark.parametrize(("name", "rival"), WITHOUT_COMPILER)
def test_rival_agrees_with_float64(name, rival, shape):
    problem = CASES[name].inputs(shape, "cpu", 2)
    eager = cases.errors_of(CASES[name].rivals["eager"](problem), problem)
    errors = cases.errors_of(CASES[name].rivals[rival](problem), problem)
    assert measuring.why_refused(rival, errors, eager._asdict()) is None


@pytest.mark.skipif(not any(map(shutil.which, ("g++", "clang++", "c++"))), reason="no C++ compiler")
@pytest.mark.parametrize("name", CASES)
def test_compiled_rival_agrees_with_float64(name):
    problem = CASES[name].inputs((16, 10), "cpu", 2)
    errors = cases.errors_of(CASES[name].rivals["torch.compile"](problem), problem)
    assert measuring.why_refused("torch.compile", errors, None) is None


@pytest.mark.parametrize("entropy_weight", [0.0, 0.3])
def test_closed_form_is_what_autograd_gives(entropy_weight):
    z = (3 * torch.randn(7, 13, dtype=torch.float64)).requires_grad_()
    target = torch.rand(7, 13, dtype=torch.float64)  # rows do not sum to one
    logp = z.log_softmax(1)
    loss = (-(target * logp).sum(1) - entropy_weight * (logp.exp() * logp).sum(1)).mean()
    loss.backward()
    found_loss, found_dlogits = cases.closed_form(z.detach(), target, entropy_weight)
    torch.testing.assert_close(found_loss, loss.detach(), rtol=1e-13, atol=0)
    torch.testing.assert_close(found_dlogits, z.grad, rtol=1e-11, atol=1e-14)


def test_rivals_remember_the_same():
    problem = CASES["P3"].inputs((64, 12), "cpu", 3)
    built = {name: CASES["P3"].rivals[name](problem) for name in ("fastlnl", "eager")}
    for rival in built.values():
        step = timing.steps_over(rival, problem.batches)
        for _ in range(7):  # two rounds over the batches and one more
            step()
    memory = built["eager"].memory
    assert (memory != cases.given_label_memory(problem)).any(1).sum() == 3 * 64
    torch.testing.assert_close(built["fastlnl"].memory, memory, rtol=0, atol=5e-7)


def test_inputs_share_no_sample():
    problem = CASES["P2"].inputs((32, 10), "cpu", 4)
    index = torch.cat([batch.index for batch in problem.batches])
    assert len(index.unique()) == 4 * 32
    for batch in problem.batches:
        assert torch.equal(batch.label, problem.label[batch.index])
        torch.testing.assert_close(batch.target.sum(1), torch.ones(32))


def test_wrong_gradient_gets_no_number(quick, monkeypatch, tmp_path, capsys):
    class Wrong(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss):
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            return grad * 1.00001

    def build(problem):
        right = cases.fastlnl_cross_entropy(problem)
        return cases.Rival(lambda batch: Wrong.apply(right.loss(batch)))

    monkeypatch.setattr(run, "CASES", [dataclasses.replace(quick[0], rivals={**quick[0].rivals, "fastlnl": build})])
    monkeypatch.setattr(run.plot, "write_plots", lambda *_: [])
    assert run.main(["--only", "row_loss", "--shapes", "16x10", "--seconds", "0.01", "--out", str(tmp_path)]) == 1
    line = next(line for line in capsys.readouterr().out.splitlines() if "| fastlnl" in line)
    assert "no number: relative error of dlogits is 1.0e-05" in line
    record = next(r for r in saved(tmp_path)["row_loss"] if r["rival"] == "fastlnl")
    assert "median" not in record


def test_rival_that_cannot_run_does_not_stop_the_others(quick):
    def build(problem):
        raise RuntimeError("no compiler here\nand a long trace")

    case = dataclasses.replace(quick[0], rivals={**quick[0].rivals, "torch.compile": build})
    records = {record["rival"]: record for record in measuring.measure(case, (16, 10), "cpu", 0.01)}
    assert records["torch.compile"]["refused"] == "RuntimeError: no compiler here"
    assert records["fastlnl"]["refused"] is None
    assert records["eager"]["speedup"] == records["eager"]["median"] / records["fastlnl"]["median"]


@pytest.mark.parametrize(
    ("rival", "error", "eager", "refused"),
    [
        ("fastlnl", 9e-7, 1e-8, False),
        ("fastlnl", 2e-6, 1e-8, True),
        ("fastlnl", 2e-6, 3e-6, False),
        ("fastlnl", float("nan"), 1e-8, True),
        ("eager", 2e-5, 2e-5, True),
    ],
)
def test_limit_of_the_error(rival, error, eager, refused):
    reason = measuring.why_refused(rival, cases.Errors(0.0, error, 0.0), cases.Errors(0.0, eager, 0.0)._asdict())
    assert (reason is not None) == refused


def test_rivals_take_turns():
    asked = []
    samplers = {name: lambda name=name: asked.append(name) or float(len(asked)) for name in "abc"}
    timings = timing.take_turns(samplers, seconds=0, fewest=10)
    assert [sorted(asked[i : i + 3]) for i in range(0, 30, 3)] == [["a", "b", "c"]] * 10
    assert len({tuple(asked[i : i + 3]) for i in range(0, 30, 3)}) > 1
    assert [timings[name].samples for name in "abc"] == [10, 10, 10]
    assert timings["a"].low <= timings["a"].median <= timings["a"].high


def test_peak_counts_the_gradient_and_what_is_kept_for_it():
    problem = CASES["P1"].inputs((256, 100), "cpu", 1)
    matrix = 4 * 256 * 100
    peak = {
        name: timing.peak_bytes(CASES["P1"].rivals[name](problem), problem.batches[0]) for name in ("fastlnl", "eager")
    }
    assert matrix <= peak["fastlnl"] < 1.2 * matrix  # the gradient and a few numbers per row
    assert peak["eager"] >= 2 * matrix  # log p as well


def test_a_turn_gives_short_steps_more_samples():
    waits = {"short": 1e-3, "long": 0.03}
    samplers = {name: lambda wait=wait: time.sleep(wait) or wait for name, wait in waits.items()}
    timings = timing.take_turns(samplers, seconds=0, fewest=3, turn=0.02)
    assert timings["long"].samples == 3
    assert timings["short"].samples > 3


def test_report_is_written(quick, tmp_path, capsys):
    pytest.importorskip("matplotlib")
    small = ["--shapes", "16x10", "8x33", "--batches", "16", "32", "--seconds", "0.01", "--seeds", "2", "--epochs", "2"]
    assert run.main([*small, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    report = saved(tmp_path)
    stem = f"{report['machine']['date']}-{report['machine']['commit']}"
    ends = [".json", ".md", "-speedup.png", "-bandwidth.png", "-batch-size.png", "-accuracy.png", "-libraries.png"]
    ends += ["-mixture.png", "-split.png", "-detection.png"]
    assert {path.name for path in (tmp_path / "cpu").iterdir()} == {f"{stem}{end}" for end in ends}
    for image in tmp_path.glob("cpu/*.png"):
        assert image.read_bytes().startswith(b"\x89PNG")
    text = (tmp_path / "cpu" / f"{stem}.md").read_text()
    for case in quick:
        assert f"### {case.name}: {case.title}" in text
        assert f"### {case.name}: {case.title}" in printed
    assert len(report["row_loss"]) == 2 * sum(len(case.rivals) for case in quick)
    assert len(report["batch_size"]) == 4 * len(quick[2].rivals)
    for contest in run.CONTESTS:
        assert f"### {contest.name}: {contest.title}" in text
    assert len(report["libraries"]) == sum(len(contest.rivals) for contest in run.CONTESTS)
    assert not [r for r in report["libraries"] if r["refused"] and "not installed" not in r["refused"]]
    for record in report["row_loss"]:
        assert 0 < record["low"] <= record["median"] <= record["high"]
    assert {(r["method"], r["by"]) for r in report["step"]} >= {("alr", "fastlnl"), ("crema", "research code")}
    assert not [r for r in report["step"] + report["epoch"] if r["refused"]]
    assert "### tiny MLP, batch 16, C = 5" in text
    assert printed.rsplit(" s in all", 1)[1].count("\n") <= 27  # one screen
    ce, alr = report["accuracy"]
    assert (ce["method"], alr["method"], ce["seeds"], ce["epochs"]) == ("ce", "alr", 2, 2)
    assert [len(curve) for curve in ce["curves"]] == [2, 2]
    assert 35 < ce["realised_noise"] < 45
    assert f"{alr['last']:.2f} +- {alr['last_std']:.2f}" in text


@pytest.mark.parametrize(
    ("only", "cases_left", "contests_left"),
    [
        ("P3", ["P3"], []),
        ("row_loss", ["P1", "P2", "P3"], []),
        ("select", [], ["small_loss", "class_balanced"]),
        ("p1,Mixture", ["P1"], ["mixture"]),
        ("accuracy", [], []),
    ],
)
def test_only_takes_sections_cases_and_primitives(only, cases_left, contests_left):
    words = run.words(only)
    assert [case.name for case in run.chosen(words, run.CASES)] == cases_left
    assert [contest.name for contest in run.chosen(words, run.CONTESTS)] == contests_left
    with pytest.raises(argparse.ArgumentTypeError, match="p4 came"):
        run.words("P4")


def record(rival, median, **more):
    times = {"median": median, "low": 0.9 * median, "high": 1.1 * median, "refused": None}
    return {"case": "P3", "shape": [16, 10], "rival": rival, **times, **more}


def test_summary_says_where_fastlnl_is_slower():
    records = [
        record("fastlnl", 1e-4),
        *(record(name, 1e-4 * x, speedup=x) for name, x in (("eager", 3.0), ("F", 0.5))),
    ]
    report = {"machine": run.machine("cpu"), "row_loss": records}
    lines = summary.summary_lines(report)
    assert len(lines) <= 25
    assert max(map(len, lines)) <= 120
    text = " ".join(lines)
    assert "eager 3.0x, F 0.50x" in text
    assert "Faster in 1 of 2 comparisons, slower in 1, undecided (quartiles overlap) in 0." in text
    assert "Slower: P3 16 x 10 against F (0.50x)." in text


def test_compare_names_both_commits_and_machines_that_differ():
    here = run.machine("cpu")
    first = {"machine": {**here, "commit": "aaa1111"}, "row_loss": [record("fastlnl", 1e-3), record("eager", 5e-3)]}
    second = {"machine": {**here, "commit": "bbb2222", "cores": 128}, "row_loss": [record("fastlnl", 2e-3)]}
    text = "\n".join(compare.compare_lines(first, second))
    assert "commit aaa1111" in text
    assert "commit bbb2222" in text
    assert f"machines differ (cores: {here['cores']} and 128)" in text
    assert "| 1.000 | 2.000 |  2.00 |" in " ".join(text.split("\n"))
    assert "Timed in A alone: 1, in B alone: 0." in text


def test_table_aligns_and_leaves_out_empty_columns():
    rows = [{"rival": "a", "us": "1,234", "wanted": ""}, {"rival": "long", "us": "5", "wanted": ""}]
    assert tables.table(rows) == ["| rival |    us |", "| ----- | ----: |", "| a     | 1,234 |", "| long  |     5 |"]


def saved(folder):
    """The one report below the folder."""
    (path,) = folder.glob("*/*.json")
    return json.loads(path.read_text())
