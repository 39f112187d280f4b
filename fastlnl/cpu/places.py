"""Which column is the highest, found in the sweep that finds how high it is. Imported by numba kernels only."""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

from fastlnl.cpu.rows import first_column
from fastlnl.cpu.simd import WIDTH, _constant, _splat, lanes, larger, largest, load, load_first, splat

_f = np.float32
_LOWEST, _NOWHERE = _f(-np.inf), _f(np.inf)


@intrinsic
def _place_above(typing_context: Any, x: Any, best: Any, place: Any, places: Any) -> Any:
    """The scalar `place` in the lanes where x > best, `places` in the others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        above = builder.fcmp_ordered(">", args[0], args[1])
        return builder.select(above, _splat(builder, args[2]), args[3])

    return lanes(lanes, lanes, types.float32, lanes), codegen


@intrinsic
def _lowest_place(typing_context: Any, x: Any, value: Any, places: Any) -> Any:
    """The lowest of places + lane over the lanes where x equals the scalar; inf where none does."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        found = builder.fadd(args[2], ir.Constant(args[2].type, [float(lane) for lane in range(WIDTH)]))
        equal = builder.fcmp_ordered("==", args[0], _splat(builder, args[1]))
        found = builder.select(equal, found, _constant(float("inf")))
        for step in (8, 4, 2, 1):
            order = ir.Constant(ir.VectorType(ir.IntType(32), WIDTH), [(lane + step) % WIDTH for lane in range(WIDTH)])
            other = builder.shuffle_vector(found, found, order)
            found = builder.select(builder.fcmp_ordered("<", found, other), found, other)
        return builder.extract_element(found, ir.Constant(ir.IntType(32), 0))

    return types.float32(lanes, types.float32, lanes), codegen


@njit
def largest_with_column(z, columns):
    """`rows.largest_between` of a whole row, and the first column that holds it; column 0 if none does.

    Places are float32 on the way, which is exact up to 2^24 columns.
    """
    top, places = splat(_LOWEST), splat(_NOWHERE)
    whole = columns - columns % WIDTH
    for j in range(0, whole, WIDTH):
        x = load(z, j)
        places, top = _place_above(x, top, _f(j), places), larger(top, x)
    if whole < columns:
        x = load_first(z, whole, columns - whole, _LOWEST)
        places, top = _place_above(x, top, _f(whole), places), larger(top, x)
    value = largest(top)
    place = _lowest_place(top, value, places)
    return value, np.int64(place) if place < columns else first_column(z, columns, value)
