"""Addresses, atomics and function pointers for numba kernels that are called with plain int64 addresses."""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)


def _pointer(scalar: Any, element: Any) -> Any:
    @intrinsic
    def pointer(typing_context: Any, address: Any) -> Any:
        return types.CPointer(scalar)(types.int64), lambda context, builder, sig, args: builder.inttoptr(
            args[0], element.as_pointer()
        )

    return pointer


as_float32 = _pointer(types.float32, ir.FloatType())
as_float64 = _pointer(types.float64, ir.DoubleType())
as_int64 = _pointer(types.int64, _I64)
as_int8 = _pointer(types.int8, ir.IntType(8))


@intrinsic
def take(typing_context: Any, cursor: Any, count: Any) -> Any:
    """Atomically add `count` to the int64 at address `cursor` and return its value before."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.atomic_rmw("add", builder.inttoptr(args[0], _I64.as_pointer()), args[1], "monotonic")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def call(typing_context: Any, function: Any, first: Any, second: Any, third: Any) -> Any:
    """Call the C function at an address with three addresses."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [_I64] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64, types.int64), codegen


@intrinsic
def keep(typing_context: Any, array: Any) -> Any:
    """Does nothing, as late as it is written: numba frees an array after its last use, addresses are no use."""
    return types.void(array), lambda context, builder, sig, args: context.get_dummy_value()


@intrinsic
def prefetch(typing_context: Any, address: Any) -> Any:
    """Ask for the cache line at an address, to be read and written soon."""

    def codegen(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        byte = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, *[ir.IntType(32)] * 3])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        write, near, data = (ir.Constant(ir.IntType(32), value) for value in (1, 3, 1))
        builder.call(function, [builder.inttoptr(args[0], byte), write, near, data])
        return context.get_dummy_value()

    return types.void(types.int64), codegen
