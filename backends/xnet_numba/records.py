# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Records with named fields, which compiled code reads and writes by their address."""

import numpy as np
from numba import carray, njit, types  # pyright: ignore[reportPrivateImportUsage]
from numba.extending import intrinsic


@intrinsic
def _void_pointer(typingctx, address):
    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), codegen


@njit(inline="always")
def record_at(address, layout):
    """The record at an address, of a `layout`, which is a global variable of who asks."""
    return carray(_void_pointer(address), 1, layout)[0]


def layout(fields):
    """The dtype of the fields, of int or float, that are annotated in a NamedTuple.

    ``np.array([Fields(name=value, ...)], layout(Fields))`` is such a record. Addresses are int.
    """
    kinds = {int: np.int64, float: np.float64}
    annotated = fields.__annotations__.items()
    return np.dtype([(name, kinds[kind]) for name, kind in annotated], align=True)


def address(array):
    """Where an array's first number is; who hands it on keeps the array alive."""
    return array.__array_interface__["data"][0]
