"""fastlnl against the libraries people use: every contest, answers compared first, then timed in turns."""

from collections.abc import Callable
from typing import Any

from augment_cases import AUGMENT_CONTESTS
from class_cases import CLASS_CONTESTS
from contests import Contest, Entry, Size, WrongAnswer
from dynamics_cases import DYNAMICS_CONTESTS
from mixmatch_cases import MIXMATCH_CONTESTS
from mixture_cases import MIXTURE_CONTESTS
from timing import time_steps
from two_view_cases import TWO_VIEW_CONTESTS

CONTESTS = [
    *MIXTURE_CONTESTS,
    *CLASS_CONTESTS,
    *DYNAMICS_CONTESTS,
    *AUGMENT_CONTESTS,
    *TWO_VIEW_CONTESTS,
    *MIXMATCH_CONTESTS,
]

Record = dict[str, Any]


def against_libraries(
    contests: list[Contest], device: str, seconds: float, say: Callable[[str], None] = print
) -> list[Record]:
    """The records of every contest at each of its sizes."""
    records = []
    for contest in contests:
        for size in contest.sizes:
            say(f"{contest.name} at {' x '.join(map(str, size))}")
            records += hold(contest, size, device, seconds)
    return records


def hold(contest: Contest, size: Size, device: str, seconds: float) -> list[Record]:
    """A record per rival. One that is not installed or gives another answer is refused: a reason in place of its times.

    fastlnl is refused, too, where others answered and all of them differ from it.
    """
    inputs = contest.inputs(size, device)
    target = contest.targets.get(size) if device == "cpu" else None
    records: dict[str, Record] = {}
    able: dict[str, Entry] = {}
    ours: Any = None
    wrong = 0
    for name, build in contest.rivals.items():  # fastlnl first
        record = records[name] = {
            "contest": contest.name,
            "size": list(size),
            "rival": name,
            "test": contest.test,
            "surcharge": contest.surcharge,
            "target": None if name == "fastlnl" else target,
            "refused": None,
        }
        try:
            entry = build(inputs)
            answer = entry.answer()
            if name == "fastlnl":
                ours = answer
            elif "fastlnl" in able:
                record["difference"] = contest.difference(ours, answer)
            else:
                raise WrongAnswer("fastlnl gives no answer to compare with")
        except Exception as error:  # the others can still be measured
            record["refused"] = why_unable(error)
            wrong += isinstance(error, WrongAnswer)
            continue
        able[name] = entry
    if wrong and set(able) == {"fastlnl"}:
        records["fastlnl"]["refused"] = "no rival gives its answer"
        able.clear()
    if able:
        timings = time_steps({name: entry.step for name, entry in able.items()}, device, seconds)
        for name, timing in timings.items():
            records[name] |= timing._asdict() | {
                "seconds_per_sample": timing.median / size[0],
                "speedup": timing.median / timings["fastlnl"].median,
            }
    return list(records.values())


def why_unable(error: Exception) -> str:
    """One sentence for the table."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if isinstance(error, WrongAnswer):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]
