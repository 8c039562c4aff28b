# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""What compiled code needs of LLVM that Numba has no words for: addresses, calls, atomics."""

import llvmlite.binding as llvm
import numpy as np
from llvmlite import ir
from numba import carray, from_dtype, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.core import cgutils
from numba.extending import intrinsic

_I64 = ir.IntType(64)


def _pointer(builder, address):
    return builder.inttoptr(address, _I64.as_pointer())


@intrinsic
def address_of(typingctx, array):
    """The address of an array's first number, as int64: sums of it with int64 stay integers."""

    def codegen(context, builder, signature, args):
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, _I64)

    return types.int64(array), codegen


@intrinsic
def lives_until_here(typingctx, arrays):
    """Use them, so that their memory is not given up before: an address does not hold an array."""

    def codegen(context, builder, signature, args):
        return context.get_dummy_value()

    return types.void(arrays), codegen


@intrinsic
def pointer_to(typingctx, kind, address):
    """The address as a pointer to numbers of the dtype of `kind`, for `numba.carray`."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(kind).as_pointer())

    return types.CPointer(kind)(kind, types.int64), codegen


def record_pointer(dtype):
    """What makes of an address a pointer to records of a NumPy dtype, for `numba.carray`."""
    kind = from_dtype(dtype)

    @intrinsic
    def pointer(typingctx, address):
        def codegen(context, builder, signature, args):
            return builder.inttoptr(args[0], context.get_data_type(kind).as_pointer())

        return types.CPointer(kind)(types.int64), codegen

    return pointer


@intrinsic
def room_on_stack(typingctx, words):
    """The address of so many int64, a literal, on the stack of the function that calls this.

    They are there until it returns.
    """
    count = getattr(words, "literal_value", None)
    if count is None:
        return None

    def codegen(context, builder, signature, args):
        return builder.ptrtoint(cgutils.alloca_once(builder, _I64, size=count), _I64)

    return types.int64(words), codegen


@intrinsic
def size_of(typingctx, kind):
    """Bytes of a number of the dtype of `kind`."""

    def codegen(context, builder, signature, args):
        return ir.Constant(_I64, kind.bitwidth // 8)

    return types.int64(kind), codegen


@intrinsic
def call(typingctx, address, arguments):
    """Call the routine without result at an address, with a number and int64s, in a tuple."""
    if any(types.unliteral(kind) != types.int64 for kind in list(arguments)[1:]):
        return None

    def codegen(context, builder, signature, args):
        kinds = [context.get_value_type(kind) for kind in arguments]
        routine = ir.FunctionType(ir.VoidType(), kinds)
        values = [builder.extract_value(args[1], k) for k in range(len(kinds))]
        builder.call(builder.inttoptr(args[0], routine.as_pointer()), values)
        return context.get_dummy_value()

    return types.void(types.int64, arguments), codegen


@intrinsic
def on_stack(typingctx, values):
    """The address of int64s, of a tuple, on the stack of the function that calls this.

    They are there until it returns, and change when this line of it runs again.
    """

    def codegen(context, builder, signature, args):
        place = cgutils.alloca_once(builder, _I64, size=len(values))
        for k, kind in enumerate(values):
            value = builder.extract_value(args[0], k)
            value = context.cast(builder, value, kind, types.int64)
            builder.store(value, builder.gep(place, [_I64(k)]))
        return builder.ptrtoint(place, _I64)

    return types.int64(values), codegen


@intrinsic
def atomic_load(typingctx, address):
    """The int64 at an address, as the last thread to write it left it."""

    def codegen(context, builder, signature, args):
        return builder.load_atomic(_pointer(builder, args[0]), "seq_cst", 8)

    return types.int64(types.int64), codegen


@intrinsic
def atomic_add(typingctx, address, number):
    """Raise the int64 at an address by a number; returns what it was.

    Whoever sees the new number sees all that this thread wrote before.
    """

    def codegen(context, builder, signature, args):
        return builder.atomic_rmw("add", _pointer(builder, args[0]), args[1], "seq_cst")

    return types.int64(types.int64, types.int64), codegen


@intrinsic
def pause(typingctx):
    """Tell the processor that this thread is looking on in a loop."""

    def codegen(context, builder, signature, args):
        if llvm.get_process_triple().startswith(("x86_64", "i686")):
            kind = ir.FunctionType(ir.VoidType(), [])
            builder.call(builder.module.declare_intrinsic("llvm.x86.sse2.pause", (), kind), [])
        return context.get_dummy_value()

    return types.void(), codegen


@intrinsic
def bits_to_float(typingctx, bits):
    """The float whose bits are those of the integer."""
    result = types.float32 if bits.bitwidth == 32 else types.float64

    def codegen(context, builder, signature, args):
        kind = ir.FloatType() if bits.bitwidth == 32 else ir.DoubleType()
        return builder.bitcast(args[0], kind)

    return result(bits), codegen


@intrinsic
def float_to_bits(typingctx, value):
    """The integer whose bits are those of the float."""
    result = types.int32 if value == types.float32 else types.int64

    def codegen(context, builder, signature, args):
        return builder.bitcast(args[0], ir.IntType(result.bitwidth))

    return result(value), codegen


@njit(inline="always")
def int64s_at(address, count):
    """The int64 at an address as an array (count,)."""
    return carray(pointer_to(np.int64(0), address), count)
