"""Sixteen float32 lanes as a numba type: the vector registers the CPU kernels are written with.

LLVM's loop vectoriser leaves a scalar tail (36 of the 100 columns of a CIFAR-100 row) and needs fast-math flags to
vectorise a reduction. Here a row is read sixteen columns at a time, the last piece under a mask, and the arithmetic
is exactly what is written. LLVM splits a value of sixteen lanes into the registers that the machine has (one for
AVX-512, two for AVX2, four for NEON).

Addresses are plain int64: kernels are called with `tensor.data_ptr()`, which keeps the price of a call near 1 us.
Imported by numba kernels only.
"""

import operator
from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic, models, overload, register_model

WIDTH = 16

_F32, _I32, _I16, _F16 = ir.FloatType(), ir.IntType(32), ir.IntType(16), ir.HalfType()
_VEC, _IVEC, _SVEC, _HVEC = (ir.VectorType(t, WIDTH) for t in (_F32, _I32, _I16, _F16))
_MASK = ir.VectorType(ir.IntType(1), WIDTH)
_POINTER = {_F32: _F32.as_pointer(), _I16: _I16.as_pointer()}


class Lanes(types.Type):
    """Sixteen float32 values in a register."""

    def __init__(self) -> None:
        super().__init__("float32x16")


lanes = Lanes()


@register_model(Lanes)
class LanesModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _VEC)


def _constant(value: float, vector: Any = _VEC) -> Any:
    return ir.Constant(vector, [value] * WIDTH)


def _splat(builder: Any, scalar: Any, vector: Any = _VEC) -> Any:
    undefined = ir.Constant(vector, ir.Undefined)
    first = builder.insert_element(undefined, scalar, ir.Constant(_I32, 0))
    return builder.shuffle_vector(first, undefined, _constant(0, _IVEC))


def _call(builder: Any, name: str, result: Any, args: list[Any], **kwargs: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args, **kwargs)


def _address(builder: Any, base: Any, offset: Any, element: Any, vector: Any = None) -> Any:
    pointer = builder.gep(builder.inttoptr(base, _POINTER[element]), [offset])
    return pointer if vector is None else builder.bitcast(pointer, vector.as_pointer())


def _first(builder: Any, count: Any) -> Any:
    """Mask of the first `count` lanes."""
    iota = ir.Constant(_IVEC, list(range(WIDTH)))
    return builder.icmp_signed("<", iota, _splat(builder, builder.trunc(count, _I32), _IVEC))


# -- making and combining ----------------------------------------------------------------------------------------


@intrinsic
def splat(typing_context: Any, scalar: Any) -> Any:
    """The scalar in every lane."""
    return lanes(types.float32), lambda context, builder, sig, args: _splat(builder, args[0])


def _arithmetic(instruction: str) -> Callable[..., Any]:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any) -> Any:
        return lanes(lanes, lanes), lambda context, builder, sig, args: getattr(builder, instruction)(*args)

    return operation


def _overload_operator(symbol: Any, instruction: str) -> None:
    operation = _arithmetic(instruction)

    @overload(symbol)
    def with_lanes(x, y):  # numba compares the names and annotations
        if isinstance(x, Lanes) and isinstance(y, Lanes):
            return lambda x, y: operation(x, y)
        if isinstance(x, Lanes):
            return lambda x, y: operation(x, splat(np.float32(y)))
        if isinstance(y, Lanes):
            return lambda x, y: operation(splat(np.float32(x)), y)
        return None


_overload_operator(operator.add, "fadd")
_overload_operator(operator.sub, "fsub")
_overload_operator(operator.mul, "fmul")


@intrinsic
def fma(typing_context: Any, x: Any, y: Any, z: Any) -> Any:
    """x * y + z, fused where the machine can."""
    return lanes(lanes, lanes, lanes), lambda context, builder, sig, args: _call(
        builder, "llvm.fmuladd.v16f32", _VEC, list(args)
    )


@intrinsic
def larger(typing_context: Any, x: Any, y: Any) -> Any:
    """Lane by lane maximum; a NaN in y is passed over, which makes it one instruction."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(builder.fcmp_ordered(">", args[1], args[0]), args[1], args[0])

    return lanes(lanes, lanes), codegen


@intrinsic
def floored(typing_context: Any, x: Any, floor: Any) -> Any:
    """max(x, floor) that keeps NaN."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        low = _splat(builder, args[1])
        return builder.select(builder.fcmp_ordered("<", args[0], low), low, args[0])

    return lanes(lanes, types.float32), codegen


# -- across lanes ------------------------------------------------------------------------------------------------


@intrinsic
def total(typing_context: Any, x: Any) -> Any:
    """Sum of the lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        start = ir.Constant(_F32, -0.0)
        return _call(builder, "llvm.vector.reduce.fadd.v16f32", _F32, [start, args[0]], fastmath=("reassoc",))

    return types.float32(lanes), codegen


@intrinsic
def largest(typing_context: Any, x: Any) -> Any:
    """Maximum of the lanes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        value = args[0]
        for step in (8, 4, 2, 1):
            order = ir.Constant(_IVEC, [(lane + step) % WIDTH for lane in range(WIDTH)])
            other = builder.shuffle_vector(value, value, order)
            value = builder.select(builder.fcmp_ordered(">", value, other), value, other)
        return builder.extract_element(value, ir.Constant(_I32, 0))

    return types.float32(lanes), codegen


@intrinsic
def first_equal(typing_context: Any, x: Any, value: Any) -> Any:
    """Lowest lane that equals the scalar, or 16."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = builder.bitcast(builder.fcmp_ordered("==", args[0], _splat(builder, args[1])), _I16)
        wide = builder.or_(builder.zext(bits, _I32), ir.Constant(_I32, 1 << WIDTH))
        lane = _call(builder, "llvm.cttz.i32", _I32, [wide, ir.Constant(ir.IntType(1), 1)])
        return builder.zext(lane, ir.IntType(64))

    return types.int64(lanes, types.float32), codegen


@intrinsic
def only_first(typing_context: Any, x: Any, count: Any) -> Any:
    """The first `count` lanes, 0 in the others."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.select(_first(builder, args[1]), args[0], _constant(0.0))

    return lanes(lanes, types.int64), codegen


# -- memory: element offsets, `count` lanes when the row ends inside the register --------------------------------


@intrinsic
def load(typing_context: Any, base: Any, offset: Any) -> Any:
    """Sixteen float32 from base + 4 * offset bytes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(_address(builder, *args, _F32, _VEC), align=4)

    return lanes(types.int64, types.int64), codegen


@intrinsic
def load_first(typing_context: Any, base: Any, offset: Any, count: Any, fill: Any) -> Any:
    """The first `count` lanes from memory, `fill` in the others; nothing past them is read."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        source = [_address(builder, args[0], args[1], _F32, _VEC), ir.Constant(_I32, 4)]
        fill = _splat(builder, args[3])
        return _call(builder, "llvm.masked.load.v16f32.p0", _VEC, [*source, _first(builder, args[2]), fill])

    return lanes(types.int64, types.int64, types.int64, types.float32), codegen


@intrinsic
def store(typing_context: Any, base: Any, offset: Any, value: Any) -> Any:
    """Sixteen float32 to base + 4 * offset bytes."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        builder.store(args[2], _address(builder, args[0], args[1], _F32, _VEC), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, lanes), codegen


@intrinsic
def store_first(typing_context: Any, base: Any, offset: Any, count: Any, value: Any) -> Any:
    """The first `count` lanes to memory; nothing past them is written."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        target = [_address(builder, args[0], args[1], _F32, _VEC), ir.Constant(_I32, 4)]
        _call(
            builder,
            "llvm.masked.store.v16f32.p0",
            ir.VoidType(),
            [args[3], *target, _first(builder, args[2])],
        )
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, lanes), codegen


# -- exp ---------------------------------------------------------------------------------------------------------


@intrinsic
def _two_to(typing_context: Any, mantissa: Any, shifted: Any, x: Any) -> Any:
    """mantissa * 2^k, k the low bits of `shifted`; 0 where x < -87, where k would leave the exponent's range."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        exponent = builder.shl(builder.bitcast(args[1], _IVEC), _constant(23, _IVEC))
        value = builder.bitcast(builder.add(builder.bitcast(args[0], _IVEC), exponent), _VEC)
        return builder.select(builder.fcmp_ordered("<", args[2], _constant(-87.0)), _constant(0.0), value)

    return lanes(lanes, lanes, lanes), codegen


_f = np.float32
_ROUND = _f(1.5 * 2**23)  # adding it leaves round(x) in the low bits
_LOG2_E = _f(1.44269504)
_LN2_HIGH, _LN2_LOW = _f(-0.693359375), _f(2.12194440e-4)
# Polynomial of (exp(r) - 1 - r) / r^2 on |r| <= ln(2)/2, Cephes expf (S. Moshier).
_P0, _P1, _P2 = _f(1.9875691500e-4), _f(1.3981999507e-3), _f(8.3334519073e-3)
_P3, _P4, _P5 = _f(4.1665795894e-2), _f(1.6666665459e-1), _f(5.0000001201e-1)


@njit(inline="always")
def exp(x):
    """exp of x <= 0 to about 1 ulp; 0 below -87; NaN stays NaN."""
    shifted = fma(x, splat(_LOG2_E), splat(_ROUND))
    k = shifted - _ROUND
    r = fma(k, splat(_LN2_LOW), fma(k, splat(_LN2_HIGH), x))
    p = fma(splat(_P0), r, splat(_P1))
    p = fma(p, r, splat(_P2))
    p = fma(p, r, splat(_P3))
    p = fma(p, r, splat(_P4))
    p = fma(p, r, splat(_P5))
    return _two_to(fma(p, r * r, r) + _f(1.0), shifted, x)
