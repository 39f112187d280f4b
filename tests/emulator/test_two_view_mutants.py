"""Faults put into csrc's two_view_loss: the emulator finds those of memory, the float64 truth those of arithmetic."""

import ctypes

import emulated
import pytest
import torch
from test_two_view_shapes import call_of, check

pytestmark = pytest.mark.usefixtures("poison", "device")
MEMORY, TRUTH = emulated.EmulatorError, AssertionError
SYNC = "      if (keeps) __syncthreads();  // for what leaves, and before the next row arrives\n"
MUTANTS = {  # file, what stands there, what is put in its place, classes, batch, what notices it and says
    "a column too many": ("row", "width = live ? rows.classes : 0", "width = live ? rows.classes + 1 : 0", 10, 9,
                          MEMORY, "outside of|race|read of an output"),
    "wide rows leave before all is there": ("pass", SYNC, "", 1103, 9, MEMORY, "race"),
    "views share one place": ("row", "kept + view * place_slots(args.rows.classes) * N + shift(view)",
                              "kept + shift(view)", 1101, 9, TRUTH, ""),
    "every lane stores the counter": ("loss", "if (Lanes::lane() == 0) store(args.wrong_count",
                                      "store(args.wrong_count", 100, 9, MEMORY, "race"),
    "every occurrence leads": ("loss", "leads = occurrences.last.get(place) == row;", "leads = true;", 100, 9,
                               MEMORY, "race"),
    "the leader forgets the earlier rows": (
        "loss", "current = live(row) && first < row ? first : Occurrences::NONE", "current = Occurrences::NONE", 10, 9,
        TRUTH, ""),
    "teams part before a reduction": ("loss", "if (Lanes::any(finishes)) {", "if (finishes) {", 10, 40,
                                      MEMORY, "lanes of a warp|not reached"),
    "a counter turns over": ("loss", "sum < LAST_COUNT ? sum : LAST_COUNT", "sum", 10, 9, TRUTH, ""),
    "the last class that attains the maximum": ("row", "if (other > value)", "if (other >= value)", 10, 9, TRUTH, ""),
    "no clamp from above": ("pass", "return fminf(fmaxf(p, LOW), HIGH);", "return fmaxf(p, LOW);", 3, 9, TRUTH, ""),
    "the clamp has a slope": ("pass", "return p >= LOW && p <= HIGH ? p : 0.0f;", "return p;", 10, 9, TRUTH, ""),
    "no slope of the largest q": ("pass", "if (columns.at(i) == best) h += half;", "", 10, 9, TRUTH, ""),
    "views are pulled the same way": ("pass", "(unclamped(ps) * h + d)", "(unclamped(ps) * h - d)", 10, 9, TRUTH, ""),
    "weights of the class before": ("pass", "args.groups > 1 ? label : 0",
                                    "args.groups > 1 && label > 1 ? label - 1 : 0", 10, 9, TRUTH, ""),
}  # fmt: skip
TILES = {3: 0, 10: 0, 100: 2, 1101: None, 1103: None}


def needed(text, classes):
    """Without the kernels that rows of so many classes do not take, which spares the compiler most of its work."""
    for tile in {0, 1, 2, 3} - {TILES[classes]}:
        text = text.replace(f"return launch_two_view_tile<Format, {tile}>(args, geometry, stream);", "return 1;")
    for kind in ("BFloat", "Half"):
        text = text.replace(f"return launch_two_views<{kind}>(*args, stream);", "return 1;")
    return text


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


@pytest.mark.parametrize(("classes", "batch"), sorted({mutant[3:5] for mutant in MUTANTS.values()}))
def test_the_kernel_itself_is_right(classes, batch):
    check(call(classes, batch))


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_is_noticed(name, monkeypatch, tmp_path):
    file, there, instead, classes, batch, error, says = MUTANTS[name]
    for path in emulated.CSRC.glob("two_view_*"):
        text = path.read_text()
        if path.stem == f"two_view_{file}":
            assert text.count(there) == 1, "no such place in the kernel any more"
            text = text.replace(there, instead)
        (tmp_path / path.name).write_text(needed(text, classes))
    error_text = tmp_path / "error_text.cu"
    error_text.write_text('extern "C" const char* fastlnl_error_text(int) { return ""; }\n')
    sources = [tmp_path / "two_view_loss.cu", error_text, emulated.HERE / "emulator.cpp"]
    built = emulated.build(sources, "mutant", f"-iquote{tmp_path}", f"-I{tmp_path}")
    mutant = emulated.prepared(ctypes.CDLL(str(built)))
    monkeypatch.setattr(emulated, "library", lambda: mutant)
    with pytest.raises(error, match=says or None) as told:
        check(call(classes, batch))
    assert isinstance(told.value, emulated.EmulatorError) == (error is MEMORY)
