"""fastlnl against the libraries people use: every contest, answers compared first, then timed in turns."""

import time
from collections.abc import Callable
from typing import Any

from augment_cases import AUGMENT_CONTESTS
from class_cases import CLASS_CONTESTS
from contests import Contest, Entry, Size, WrongAnswer, error_of
from dynamics_cases import DYNAMICS_CONTESTS
from mixmatch_cases import MIXMATCH_CONTESTS
from mixture_cases import MIXTURE_CONTESTS
from primitive_cases import PRIMITIVE_CONTESTS
from timing import peak_of, time_steps
from two_view_cases import TWO_VIEW_CONTESTS

CONTESTS = [
    *MIXTURE_CONTESTS,
    *CLASS_CONTESTS,
    *DYNAMICS_CONTESTS,
    *AUGMENT_CONTESTS,
    *TWO_VIEW_CONTESTS,
    *MIXMATCH_CONTESTS,
    *PRIMITIVE_CONTESTS,
]
COMPILED = ("fastlnl", "torch.compile")  # whose first call may compile and says nothing of the others
SLOW = 0.5  # seconds of a step from which on five samples are all it gets

Record = dict[str, Any]


def against_libraries(
    contests: list[Contest],
    device: str,
    seconds: float,
    full: bool = True,
    copy: float | None = None,
    say: Callable[[str], None] = print,
) -> list[Record]:
    """The records of every contest at each of its sizes; without `full` at those of a short run."""
    records = []
    for contest in contests:
        for size in contest.sizes_of(full):
            say(f"{contest.name} at {' x '.join(map(str, size))}")
            records += hold(contest, size, device, seconds, copy)
    return records


def hold(contest: Contest, size: Size, device: str, seconds: float, copy: float | None = None) -> list[Record]:
    """A record per rival. One that is not installed or gives another answer is refused: a reason in place of its times.

    fastlnl is refused, too, where others answered and all of them differ from it. `copy` is the copy rate, bytes a
    second.
    """
    inputs = contest.inputs(size, device)
    target = contest.targets.get(size) if device == "cpu" else None
    truth = contest.truth(inputs) if contest.truth else None
    records: dict[str, Record] = {}
    able: dict[str, Entry] = {}
    slow: set[str] = set()
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
            started = time.perf_counter()
            answer = entry.answer()
            if time.perf_counter() - started > SLOW and name not in COMPILED:
                slow.add(name)
            if name == "fastlnl":
                ours = answer
            elif "fastlnl" in able:
                record["difference"] = contest.difference(ours, answer)
            else:
                raise WrongAnswer("fastlnl gives no answer to compare with")
            if truth is not None:
                record["error"] = error_of(answer, truth)
            record["peak_bytes"] = peak_of(entry.step, device)
        except Exception as error:  # the others can still be measured
            record["refused"] = why_unable(error)
            wrong += isinstance(error, WrongAnswer)
            continue
        able[name] = entry
    if wrong and set(able) == {"fastlnl"}:
        records["fastlnl"]["refused"] = "no rival gives its answer"
        able.clear()
    if able:
        timings = time_steps({name: entry.step for name, entry in able.items()}, device, seconds, slow=slow)
        moved = contest.byte_model(size)
        for name, timing in timings.items():
            rate = moved / timing.median
            records[name] |= timing._asdict() | {
                "seconds_per_sample": timing.median / size[0],
                "speedup": timing.median / timings["fastlnl"].median,
                "bytes": moved,
                "bytes_per_second": rate,
                "of_copy": rate / copy if copy else None,
            }
    return list(records.values())


def why_unable(error: Exception) -> str:
    """One sentence for the table."""
    if isinstance(error, ModuleNotFoundError):
        return f"{error.name} is not installed"
    if isinstance(error, WrongAnswer):
        return str(error)
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0][:120]
