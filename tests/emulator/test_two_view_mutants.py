"""Faults put into csrc's two_view_loss: the emulator finds those of memory, the float64 truth those of arithmetic."""

import emulated
import faults
import pytest
import torch
from faults import Fault
from test_two_view_shapes import call_of, check

pytestmark = pytest.mark.usefixtures("poison", "device")
MEMORY, TRUTH = emulated.EmulatorError, AssertionError
ROW, PASS, LOSS = "two_view_row.cuh", "two_view_pass.cuh", "two_view_loss.cu"
MUTANTS = {  # the fault, classes, batch, what notices it and says
    "a column too many": (Fault(ROW, "live ? rows.classes : 0", "live ? rows.classes + 1 : 0"), 10, 9,
                          MEMORY, "outside of|race|read of an output"),
    "wide rows leave before all is there": (Fault(PASS, "__syncthreads();", ""), 1103, 9, MEMORY, "race"),
    "views share one place": (Fault(ROW, "kept + view * place_slots(args.rows.classes) * SLOT + shift(view)",
                                    "kept + shift(view)"), 1101, 9, TRUTH, ""),
    "every lane stores the counter": (
        Fault(LOSS, "if (Lanes::lane() == 0) store(args.wrong_count + sample, stopped);",
              "store(args.wrong_count + sample, stopped);"), 100, 9, MEMORY, "race"),
    "every occurrence leads": (Fault(LOSS, "occurrences.last.get(place) == row", "true"), 100, 9, MEMORY, "race"),
    "the leader forgets the earlier rows": (
        Fault(LOSS, "live(row) && first < row ? first : Occurrences::NONE", "Occurrences::NONE"), 10, 9, TRUTH, ""),
    "teams part before a reduction": (Fault(LOSS, "Lanes::any(finishes)", "finishes"), 10, 40,
                                      MEMORY, "lanes of a warp|not reached"),
    "a counter turns over": (Fault(LOSS, "sum < LAST_COUNT ? sum : LAST_COUNT", "sum"), 10, 9, TRUTH, ""),
    "the last class that attains the maximum": (Fault(ROW, "other > value", "other >= value"), 10, 9, TRUTH, ""),
    "no clamp from above": (Fault(PASS, "fminf(fmaxf(p, LOW), HIGH)", "fmaxf(p, LOW)"), 3, 9, TRUTH, ""),
    "the clamp has a slope": (Fault(PASS, "p >= LOW && p <= HIGH ? p : 0.0f", "p"), 10, 9, TRUTH, ""),
    "no slope of the largest q": (Fault(PASS, "if (columns.at(i) == best) h += half;", ""), 10, 9, TRUTH, ""),
    "views are pulled the same way": (Fault(PASS, "unclamped(ps) * h + d", "unclamped(ps) * h - d"), 10, 9, TRUTH, ""),
    "weights of the class before": (Fault(PASS, "args.groups > 1 ? label : 0",
                                          "args.groups > 1 && label > 1 ? label - 1 : 0"), 10, 9, TRUTH, ""),
}  # fmt: skip
faults.register(*(mutant[0] for mutant in MUTANTS.values()))


def call(classes, batch):
    """Row 3 has its largest logit three times, sample 2 is about to stop; of 3 classes one is certain."""
    made = call_of(batch, classes, samples=max(5, batch // 3))
    if classes > 5:
        made.weak[3, [1, 2, 5]] = made.weak[3].amax() + 1
    else:
        made.weak = made.strong = 40 * torch.eye(classes)[torch.randint(classes, (batch,))]
        made.table.zero_()
    made.index[4], made.label[4] = 2, (made.weak[4].argmax() + 1) % classes
    made.wrong_count[2] = 2**31 - 1
    made.index[7] = made.index[3]
    return made


@pytest.mark.parametrize(("classes", "batch"), sorted({mutant[1:3] for mutant in MUTANTS.values()}))
def test_the_kernel_itself_is_right(classes, batch, monkeypatch):
    faults.notice(monkeypatch, None, lambda: check(call(classes, batch)))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_noticed(name, monkeypatch):
    fault, classes, batch, error, says = MUTANTS[name]
    with pytest.raises(error, match=says or None) as told:
        faults.notice(monkeypatch, fault, lambda: check(call(classes, batch)))
    assert isinstance(told.value, emulated.EmulatorError) == (error is MEMORY)
