"""Sixteen unsigned 32-bit words as a numba type, beside the float32 lanes of `simd`: bits, counters, random numbers.

Imported by numba kernels only.
"""

import operator
from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.extending import intrinsic, models, overload, register_model

from fastlnl.cpu.native import _pointer
from fastlnl.cpu.simd import WIDTH, _call, _constant, _first, _splat, lanes

_I1, _I8, _I16, _I32, _I64 = (ir.IntType(bits) for bits in (1, 8, 16, 32, 64))
_WORDS, _FLOATS = ir.VectorType(_I32, WIDTH), ir.VectorType(ir.FloatType(), WIDTH)

as_uint16 = _pointer(types.uint16, _I16)
as_int32 = _pointer(types.int32, _I32)


class Words(types.Type):
    """Sixteen uint32 values in a register."""

    def __init__(self) -> None:
        super().__init__("uint32x16")


words = Words()


@register_model(Words)
class WordsModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, _WORDS)


# -- arithmetic: modulo 2^32, shifts without sign ----------------------------------------------------------------


@intrinsic
def spread(typing_context: Any, value: Any) -> Any:
    """The low 32 bits of an integer in every word."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _splat(builder, builder.trunc(args[0], _I32), _WORDS)

    return words(types.int64), codegen


def _overload_operator(symbol: Any, instruction: str) -> None:
    @intrinsic
    def operation(typing_context: Any, x: Any, y: Any) -> Any:
        return words(words, words), lambda context, builder, sig, args: getattr(builder, instruction)(*args)

    @overload(symbol)
    def with_words(x, y):  # numba compares the names and annotations
        if isinstance(x, Words) and isinstance(y, Words):
            return lambda x, y: operation(x, y)
        if isinstance(x, Words) and isinstance(y, types.Integer):
            return lambda x, y: operation(x, spread(y))
        return None


for _symbol, _instruction in (
    (operator.add, "add"),
    (operator.sub, "sub"),
    (operator.mul, "mul"),
    (operator.xor, "xor"),
    (operator.rshift, "lshr"),
    (operator.lshift, "shl"),
):
    _overload_operator(_symbol, _instruction)


@intrinsic
def count_from(typing_context: Any, start: Any) -> Any:
    """start, start + 1, ..."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        first = _splat(builder, builder.trunc(args[0], _I32), _WORDS)
        return builder.add(first, ir.Constant(_WORDS, list(range(WIDTH))))

    return words(types.int64), codegen


# -- to and from floats ------------------------------------------------------------------------------------------


def _cast(instruction: str, result: Any, argument: Any, kind: Any) -> Callable[..., Any]:
    @intrinsic
    def cast(typing_context: Any, x: Any) -> Any:
        return result(argument), lambda context, builder, sig, args: getattr(builder, instruction)(args[0], kind)

    return cast


bits_of = _cast("bitcast", words, lanes, _WORDS)
floats_of = _cast("bitcast", lanes, words, _FLOATS)
integers = _cast("fptosi", words, lanes, _WORDS)  # of floats in (-2^31, 2^31), towards zero
numbers = _cast("sitofp", lanes, words, _FLOATS)  # of words below 2^31


@intrinsic
def where_below(typing_context: Any, x: Any, limit: Any, yes: Any, no: Any) -> Any:
    """Lane by lane `yes` where x < limit, as signed words, else `no`."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        limit = _splat(builder, builder.trunc(args[1], _I32), _WORDS)
        return builder.select(builder.icmp_signed("<", args[0], limit), args[2], args[3])

    return words(words, types.int64, words, words), codegen


@intrinsic
def above(typing_context: Any, x: Any, value: Any) -> Any:
    """The lanes with x > value, as the bits of an integer."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        greater = builder.fcmp_ordered(">", args[0], _splat(builder, args[1]))
        return builder.zext(builder.bitcast(greater, _I16), _I64)

    return types.int64(lanes, types.float32), codegen


@intrinsic
def lowest_bit(typing_context: Any, bits: Any) -> Any:
    """Place of the lowest bit that is set in an integer that is not 0."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _call(builder, "llvm.cttz.i64", _I64, [args[0], ir.Constant(_I1, 1)])

    return types.int64(types.int64), codegen


# -- memory: words of 8, 16 or 32 bits at element offsets --------------------------------------------------------


def _memory(bits: int) -> tuple[Callable[..., Any], ...]:
    """Load, load of the first `count`, store and store of the first `count` elements of this size."""
    element = ir.IntType(bits)
    vector, align = ir.VectorType(element, WIDTH), bits // 8

    def place(builder: Any, base: Any, offset: Any) -> Any:
        pointer = builder.gep(builder.inttoptr(base, element.as_pointer()), [offset])
        return builder.bitcast(pointer, vector.as_pointer())

    def widened(builder: Any, value: Any) -> Any:
        return value if bits == 32 else builder.zext(value, _WORDS)

    def narrowed(builder: Any, value: Any) -> Any:
        return value if bits == 32 else builder.trunc(value, vector)

    @intrinsic
    def load(typing_context: Any, base: Any, offset: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return widened(builder, builder.load(place(builder, *args), align=align))

        return words(types.int64, types.int64), codegen

    @intrinsic
    def load_first(typing_context: Any, base: Any, offset: Any, count: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            source = [place(builder, *args[:2]), ir.Constant(_I32, align)]
            zeros = _constant(0, vector)
            name = f"llvm.masked.load.v16i{bits}.p0"
            return widened(builder, _call(builder, name, vector, [*source, _first(builder, args[2]), zeros]))

        return words(types.int64, types.int64, types.int64), codegen

    @intrinsic
    def store(typing_context: Any, base: Any, offset: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            builder.store(narrowed(builder, args[2]), place(builder, *args[:2]), align=align)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, words), codegen

    @intrinsic
    def store_first(typing_context: Any, base: Any, offset: Any, count: Any, value: Any) -> Any:
        def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            target = [place(builder, *args[:2]), ir.Constant(_I32, align)]
            value = narrowed(builder, args[3])
            name = f"llvm.masked.store.v16i{bits}.p0"
            _call(builder, name, ir.VoidType(), [value, *target, _first(builder, args[2])])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, words), codegen

    return load, load_first, store, store_first


load8, load8_first, store8, store8_first = _memory(8)
load16, load16_first, store16, store16_first = _memory(16)
load32 = _memory(32)[0]
