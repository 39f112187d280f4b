"""The registry under pytest-benchmark, for comparing commits: `pytest benchmarks --benchmark-only`.

Rivals run one after the other here; ratios between them are better taken from run.py, where they take turns.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")

import pytest
from cases import CASES, SHAPES, errors_of
from libraries import CONTESTS
from measuring import why_refused
from timing import num_batches, steps_over

RIVALS = [(contest, rival) for contest in CONTESTS for rival in contest.rivals]
EVERYTHING = [(case, shape, rival) for case in CASES for shape in SHAPES for rival in case.rivals]


@pytest.mark.parametrize(
    ("case", "shape", "rival"), EVERYTHING, ids=[f"{c.name}-{b}x{n}-{r}" for c, (b, n), r in EVERYTHING]
)
def test_step(benchmark, case, shape, rival):
    problem = case.inputs(shape, "cpu", num_batches(case, shape, "cpu"))
    eager = errors_of(case.rivals["eager"](problem), problem)
    built = case.rivals[rival](problem)
    reason = why_refused(rival, errors_of(built, problem), eager._asdict())
    assert reason is None, reason
    benchmark.group = f"{case.name} {shape[0]} x {shape[1]}"
    benchmark(steps_over(built, problem.batches))


@pytest.mark.parametrize(("contest", "rival"), RIVALS, ids=[f"{c.name}-{r}" for c, r in RIVALS])
def test_contest(benchmark, contest, rival):
    """At the cheapest size."""
    inputs = contest.inputs(contest.sizes[0], "cpu")
    try:
        built = contest.rivals[rival](inputs)
        answer = built.answer()
    except ModuleNotFoundError as error:
        pytest.skip(f"{error.name} is not installed")
    contest.difference(contest.rivals["fastlnl"](inputs).answer(), answer)
    benchmark.group = f"{contest.name} {' x '.join(map(str, contest.sizes[0]))}"
    benchmark(built.step)
