"""The operator two_view_loss of csrc/library.cpp, run by the emulator."""

import ctypes

import emulated
from emulated import READ, WRITE, allow
from structures import structure

MEASURE, COUPLED = 2, 3


def two_view_loss(
    weak, strong, label, index, wrong_count, table, weights, terms, totals, loss, dlogits, prediction, errors, mode,
    before, grad_scale,
):  # fmt: skip
    """Each launch is shown only the memory it may touch; raises EmulatorError."""
    emulator = emulated.library()
    emulator.emulator_forget()
    measures, coupled = mode == MEASURE, mode == COUPLED

    def shown(allowed, **tensors):
        return {name: allow(emulator, x, allowed) for name, x in tensors.items()}

    pointers = shown(READ, logits=weak, label=label, index=index) | shown(READ | WRITE, errors=errors)
    if not measures:
        pointers |= shown(WRITE, loss=loss, dlogits=dlogits)
    if not coupled:
        pointers |= shown(WRITE, prediction=prediction)
    sizes = {"num_samples": len(wrong_count), "grad_scale": grad_scale, **emulated.rows_of(weak)}
    rows = structure("RowArgs")(**pointers, **sizes)
    pointers = shown(READ, strong=strong, totals=totals)
    pointers |= shown(READ if coupled else WRITE, weights=weights) | shown(WRITE, terms=terms)
    if not coupled:
        pointers |= shown(READ | WRITE, wrong_count=wrong_count) | shown(READ, lookup=table)
    groups, depth, _ = table.shape
    sizes = {"strong_stride": strong.stride(0), "groups": groups, "depth": depth}
    args = structure("TwoViewArgs")(rows, **pointers, **sizes, mode=mode, before=before)
    code = emulator.fastlnl_two_view_loss(ctypes.byref(args), None)
    if error := emulator.emulator_error():
        raise emulated.EmulatorError(error.decode())
    if code != 0:
        raise RuntimeError(emulator.fastlnl_error_text(code).decode())
