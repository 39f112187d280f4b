"""Contests with libraries: answers are compared, who is wrong or absent gets no number, ratios are told as they are."""

import json
import sys
from pathlib import Path

import pytest
import torch

from fastlnl.state import SampleDynamics

sys.path.insert(0, str(Path(__file__).parents[1] / "benchmarks"))

import cases
import contests
import dynamics_cases
import libraries
import plot
import run
import tables

ROOT = Path(__file__).parents[1]
CONTESTS = {contest.name: contest for contest in libraries.CONTESTS}
TINY = {"N": (600,), "N x C": (600, 5), "B x C": (16, 10)}


def test_contests_are_complete():
    assert len(CONTESTS) == len(libraries.CONTESTS)
    assert {"scikit-learn", "cleanlab", "aum"} <= {rival for contest in CONTESTS.values() for rival in contest.rivals}
    for contest in CONTESTS.values():
        assert next(iter(contest.rivals)) == "fastlnl"
        assert (ROOT / contest.test).is_file()
        assert contest.axes in tables.TO_THE_LEFT
        assert all(len(size) == len(contest.axes.split(" x ")) for size in contest.sizes)
        assert set(contest.targets) | set(contest.quick) <= set(contest.sizes)
        assert contest.byte_model(contest.sizes[0]) > 0
        assert contest.surcharge or set(contest.rivals) <= set(plot.COLOR)
        assert len(contest.rivals) == 2 or not contest.targets  # a target is about the one rival


def test_every_primitive_is_measured():
    folders = {path.parent.name for path in (ROOT / "fastlnl" / "ops").glob("*/__init__.py")}
    measured = {primitive for case in (*cases.CASES, *libraries.CONTESTS) for primitive in case.primitives}
    assert measured == folders, "give it a case in benchmarks/cases.py or a contest beside primitive_cases.py"


@pytest.mark.parametrize(
    ("name", "rival"), [(c.name, r) for c in libraries.CONTESTS for r in c.rivals if r != "fastlnl"]
)
def test_rival_gives_the_answer_and_another_one_is_refused(name, rival):
    contest = CONTESTS[name]
    inputs = contest.inputs(TINY[contest.axes], "cpu")
    try:
        theirs = contest.rivals[rival](inputs).answer()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    ours = contest.rivals["fastlnl"](inputs).answer()
    assert contest.difference(ours, theirs)
    with pytest.raises(contests.WrongAnswer):
        contest.difference(ours, spoilt(theirs))


def spoilt(answer):
    if isinstance(answer, tuple):
        return (*answer[:-1], spoilt(answer[-1]))
    if answer.dtype == torch.bool:
        return torch.cat([~answer[:1], answer[1:]])
    return answer + 2 if answer.dtype == torch.int64 else 1 - answer


def test_aum_steps_bring_other_logits_in_each_round():
    entry = CONTESTS["aum"].rivals["fastlnl"](CONTESTS["aum"].inputs((16, 10), "cpu"))
    after_two = entry.answer()
    assert len(after_two) == 40 * 16
    assert (entry.answer() - after_two).abs().max() > 0.1


def test_only_one_side_of_the_surcharge_keeps_dynamics():
    contest = CONTESTS["dynamics"]
    problem = contest.inputs((16, 10), "cpu")
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dynamics_cases, "SampleDynamics", lambda *a: made.append(SampleDynamics(*a)) or made[-1])
        entries = [build(problem) for build in contest.rivals.values()]
    for entry in entries:
        for _ in range(3):
            entry.step()
    (dynamics,) = made
    assert dynamics.end_epoch().rows == 3 * 16


def contest_of(**rivals):
    def absent(_):
        raise ModuleNotFoundError("No module named 'cleanlab'", name="cleanlab")

    def difference(ours, theirs):
        if ours != theirs:
            raise contests.WrongAnswer(f"{theirs} in place of {ours}")
        return "equal"

    functions = {"fastlnl": lambda x: x, "absent": absent, **rivals}
    built = {name: contests.calling(function) for name, function in functions.items()}
    return contests.Contest(
        "toy",
        "a toy",
        "N",
        ((3,),),
        lambda size, _: size[0],
        built,
        difference,
        "test",
        (),
        lambda size: 8,
        {(3,): 0.5},
    )


def test_contest_refuses_what_is_wrong_or_absent():
    contest = contest_of(right=lambda x: x, wrong=lambda x: x + 1)
    records = {record["rival"]: record for record in libraries.hold(contest, (3,), "cpu", 0.01)}
    assert records["absent"]["refused"] == "cleanlab is not installed"
    assert records["wrong"]["refused"] == "4 in place of 3"
    assert "median" not in records["wrong"]
    right = records["right"]
    assert (right["refused"], right["difference"], right["target"]) == (None, "equal", 0.5)
    assert right["speedup"] == right["median"] / records["fastlnl"]["median"]
    assert right["seconds_per_sample"] == right["median"] / 3


@pytest.mark.parametrize("ours", ["differs", "fails"])
def test_fastlnl_gets_no_number_where_nobody_agrees(ours, monkeypatch, tmp_path, capsys):
    def fails(x):
        raise RuntimeError("not today")

    contest = contest_of(fastlnl=fails if ours == "fails" else lambda x: x + 1, rival=lambda x: x)
    for module in (run, tables):
        monkeypatch.setattr(module, "CONTESTS", [contest])
    assert run.main(["--only", "libraries", "--seconds", "0.01", "--out", str(tmp_path)]) == 1
    printed = capsys.readouterr().out
    assert "| no number: cleanlab is not installed |" in printed
    assert f"| no number: {'RuntimeError: not today' if ours == 'fails' else 'no rival gives its answer'} |" in printed
    (path,) = tmp_path.glob("cpu/*.json")
    assert not any("median" in record for record in json.loads(path.read_text())["libraries"])


@pytest.mark.parametrize(
    ("surcharge", "speedup", "target", "told"),
    [
        (False, 4.0, 3.0, {"fastlnl is": "4.0x faster", "wanted": ">= 3x met"}),
        (False, 405.2, 500.0, {"fastlnl is": "405x faster", "wanted": ">= 500x MISSED"}),
        (True, 0.8, 10.0, {"fastlnl adds": "+25.0 %", "wanted": "<= 10 % MISSED"}),
        (True, 1.0, 10.0, {"fastlnl adds": "+0.0 %", "wanted": "<= 10 % met"}),
        (True, 1.25, None, {"fastlnl adds": "-20.0 %", "wanted": ""}),
    ],
)
def test_ratio_is_told(surcharge, speedup, target, told):
    assert tables.compared({"surcharge": surcharge, "speedup": speedup, "target": target}) == told
