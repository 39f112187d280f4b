"""history_weight on the CPU: a piece of every row at a time, sums in the first-level cache."""

from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic
from torch import Tensor

from fastlnl.cpu import team
from fastlnl.cpu.native import as_float32, as_int64, take
from fastlnl.cpu.native import keep as keep_alive

PIECE = 1024
SERIAL_BELOW = 1 << 18  # entries
_f = np.float32


@intrinsic
def load_float16(typing_context: Any, base: Any, offset: Any) -> Any:
    """The float16 at base + 2 * offset bytes, as float32."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(args[0], ir.HalfType().as_pointer()), [args[1]])
        return builder.fpext(builder.load(pointer, align=2), ir.FloatType())

    return types.float32(types.int64, types.int64), codegen


@njit("void(int64,int64,int64,int64,boolean,int64,float32,int64)", cache=True, nogil=True, error_model="numpy")
def weigh(cursor, num_samples, rows, history, half, position_, decay, out_):
    position, out = as_int64(position_), as_float32(out_)
    total, weight = np.empty(PIECE, np.float32), np.empty(PIECE, np.float32)
    width = 2 if half else 4
    while True:
        begin = take(cursor, PIECE)
        if begin >= num_samples:
            break
        count = min(PIECE, num_samples - begin)
        for i in range(count):
            out[begin + i], total[i], weight[i] = _f(0.0), _f(0.0), _f(1.0)
        for age in range(position[1]):
            row = history + width * ((position[0] - 1 - age + rows) % rows * num_samples + begin)
            entries = as_float32(row)
            for i in range(count):
                h = load_float16(row, i) if half else entries[i]
                a = weight[i] if h == h else _f(0.0)
                out[begin + i] += a * h if h == h else _f(0.0)
                total[i] += a
                weight[i] *= decay if total[i] > _f(0.0) else _f(1.0)
        for i in range(count):
            out[begin + i] = out[begin + i] / total[i] if total[i] > _f(0.0) else _f(0.0)
    keep_alive(total)
    keep_alive(weight)


def history_weight(history: Tensor, position: Tensor, decay: float) -> Tensor:
    rows, num_samples = history.shape
    out = torch.empty(num_samples)
    run = team.alone if rows * num_samples < SERIAL_BELOW else team.team.run
    half = history.dtype == torch.float16
    run(weigh, num_samples, rows, history.data_ptr(), half, position.data_ptr(), decay, out.data_ptr())
    return out
