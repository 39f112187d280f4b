"""The coefficient functions as C functions that the CPU kernel calls once per row, in float64."""

import math
from functools import cache, lru_cache

import numpy as np
from numba import cfunc, njit

from fastlnl.ops.row_loss.definition import MAX_PARAMETERS, LossDefinition

ENTROPY_TERM, P_LABEL = 1, 2  # bits of what a loss needs


@njit
def _where(condition, yes, no):
    return yes if condition else no


@njit
def _larger(x, y):
    return x if x > y else y


NAMESPACE = {"log": math.log, "exp": math.exp, "where": _where, "larger": _larger}


@cache
def coefficient_pointer(loss: LossDefinition) -> int:
    """Address of a C function (statistics, parameters, out) that runs the loss's coefficient function in float64."""
    coefficients = njit(error_model="numpy")(loss.with_all_arguments(njit(error_model="numpy")(loss.bind(NAMESPACE))))

    @cfunc("void(CPointer(float64), CPointer(float64), CPointer(float64))", error_model="numpy")
    def compiled(s, q, out):
        r = coefficients(s[0], s[1], s[2], s[3], s[4], s[5], s[6], s[7], q[0], q[1], q[2], q[3])
        out[0], out[1], out[2], out[3], out[4], out[5], out[6] = r[0], r[1], r[2], r[3], r[4], r[5], r[6]

    _KEEP_ALIVE.append(compiled)
    address: int = compiled.address
    return address


_KEEP_ALIVE: list[object] = []


@cache
def needs_of(loss: LossDefinition) -> int:
    """Which parts of the pass this loss needs, as bits."""
    return ENTROPY_TERM * loss.uses("d") | P_LABEL * ("p_label" in loss.statistics)


@lru_cache(maxsize=64)
def parameter_block(parameters: tuple[float, ...]) -> tuple[np.ndarray, int]:
    """The parameters in memory, and their address."""
    block = np.array([*parameters, *[0.0] * (MAX_PARAMETERS - len(parameters))], np.float64)
    return block, block.ctypes.data
