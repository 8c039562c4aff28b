# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Products in registers: tiles of a matrix product, written in LLVM's own vectors.

LLVM vectorises the loops of `kernels.py` well, but does not keep a tile of a product in registers.
Here a tile, some rows by some vectors of columns, is accumulated in registers alone, from the bias
on, each vector of B loaded once for all its rows. A tile that would end beyond the last column
starts earlier instead: what two tiles hold is computed twice, to the same bits. On the processors
measured this is as fast as OpenBLAS from 6 rows on, faster below, and needs no thread of its own.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

_WIDE = llvm.get_host_cpu_features().get("avx512f", False)
VECTOR_BYTES = 64 if _WIDE else 32
"""Bytes of a vector: a register of AVX-512 or AVX2, two of an older or of an ARM processor."""
PANEL = 4 if _WIDE else 2
"""Vectors in a row of a tile. With ROWS rows and a row of B it fills 32 registers, or AVX2's 16."""
ROWS = 6

_I64, _I32 = ir.IntType(64), ir.IntType(32)


class _Vectors:
    """What the code of a tile is made of: vectors of `count` numbers at addresses."""

    def __init__(self, builder, kind, count):
        self.builder, self.count = builder, count
        self.element = ir.FloatType() if kind == types.float32 else ir.DoubleType()
        self.size = kind.bitwidth // 8
        self.type = ir.VectorType(self.element, count)

    def at(self, address, index, size=None):
        """The address `index` times `size` bytes on, by default a number's."""
        size = self.constant(size or self.size) if not isinstance(size, ir.Value) else size
        return self.builder.add(address, self.builder.mul(index, size))

    def constant(self, value):
        return ir.Constant(_I64, value)

    def load(self, address, kind=None):
        kind = kind or self.type
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = self.size if kind is not _I32 else 4
        return value

    def store(self, value, address):
        pointer = self.builder.inttoptr(address, self.type.as_pointer())
        self.builder.store(value, pointer).align = self.size

    def broadcast(self, value):
        undefined = ir.Constant(self.type, ir.Undefined)
        one = self.builder.insert_element(undefined, value, ir.Constant(_I32, 0))
        zeros = ir.Constant(ir.VectorType(_I32, self.count), [0] * self.count)
        return self.builder.shuffle_vector(one, undefined, zeros)

    def multiply_add(self, a, b, c):
        contract = ("contract",)  # one fused operation where the processor has it
        return self.builder.fadd(self.builder.fmul(a, b, flags=contract), c, flags=contract)


def _tile(builder, kind, rows, vectors, count, listed, args):
    """Code of one tile of `rows` rows and `vectors` vectors of `count` numbers; see `tile`."""
    chosen, a, row, step, k, b, ldb, bias, c, ldc, j, m = args
    v = _Vectors(builder, kind, count)
    last = builder.sub(m, v.constant(count))
    offsets = []
    for n in range(vectors):
        column = builder.add(j, v.constant(n * count))
        column = builder.select(builder.icmp_signed("<", column, last), column, last)
        offsets.append(builder.mul(column, v.constant(v.size)))
    starts = [v.load(builder.add(bias, offset)) for offset in offsets]
    a_rows = [v.at(a, v.constant(r), row) for r in range(rows)]
    before = builder.block
    head, body, end = (builder.append_basic_block(f"tile.{name}") for name in ("k", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    n = builder.phi(_I64)
    n.add_incoming(v.constant(0), before)
    sums = [builder.phi(v.type) for _ in range(rows * vectors)]
    for i, total in enumerate(sums):
        total.add_incoming(starts[i % vectors], before)
    builder.cbranch(builder.icmp_signed("<", n, k), body, end)
    builder.position_at_end(body)
    index = builder.zext(v.load(v.at(chosen, n, 4), _I32), _I64) if listed else n
    b_row = v.at(b, builder.mul(index, ldb))
    b_vectors = [v.load(builder.add(b_row, offset)) for offset in offsets]
    along = builder.mul(index, step)
    for r in range(rows):
        value = v.broadcast(v.load(builder.add(a_rows[r], along), v.element))
        for i in range(vectors):
            total = sums[r * vectors + i]
            total.add_incoming(v.multiply_add(value, b_vectors[i], total), body)
    n.add_incoming(builder.add(n, v.constant(1)), body)
    builder.branch(head)
    builder.position_at_end(end)
    for r in range(rows):
        c_row = v.at(c, builder.mul(v.constant(r), ldc))
        for i in range(vectors):
            v.store(sums[r * vectors + i], builder.add(c_row, offsets[i]))
    return v.constant(vectors * count)


@intrinsic
def tile(typingctx, kind, rows, listed, chosen, a, row, step, k, b, ldb, bias, c, ldc, j, m):
    """C[r, j..] = bias[j..] + sum over k of A[r, k] B[k, j..], for `rows` rows.

    Returns how many columns from j it has dealt with. `kind` is a number of the arrays' dtype;
    `rows` and `listed` are literals. Arrays are given by their first element's address, m is the
    number of columns of B and C, `ldb` and `ldc` how many numbers their rows are apart. A's rows
    are `row` bytes apart, its columns `step`. If `listed`, the sum is over those `k` columns of A
    that the int32 at `chosen` name.
    """
    n_rows, is_listed = (getattr(x, "literal_value", None) for x in (rows, listed))
    if n_rows is None or is_listed is None:
        return None
    signature = types.int64(kind, rows, listed, *[types.int64] * 12)

    def codegen(context, builder, signature, args):
        full = VECTOR_BYTES * 8 // kind.bitwidth
        j, m = args[-2:]
        left = builder.sub(m, j)
        # A whole panel; half of one; fewer columns than a vector holds: shorter vectors.
        ways = [(PANEL, full, builder.icmp_signed(">", left, ir.Constant(_I64, 2 * full)))]
        ways = ways if PANEL > 2 else []
        for count in (full >> shift for shift in range(full.bit_length())):
            ways.append(
                (min(2, count), count, builder.icmp_signed(">=", m, ir.Constant(_I64, count)))
            )
        done = builder.append_basic_block("tile.done")
        results = []
        for vectors, count, fits in ways:
            then, otherwise = (builder.append_basic_block(x) for x in ("tile.then", "tile.else"))
            builder.cbranch(fits, then, otherwise)
            builder.position_at_end(then)
            columns = _tile(builder, kind, n_rows, vectors, count, is_listed, args[3:])
            results.append((columns, builder.block))
            builder.branch(done)
            builder.position_at_end(otherwise)
        results.append((left, builder.block))  # no columns
        builder.branch(done)
        builder.position_at_end(done)
        columns = builder.phi(_I64)
        for result in results:
            columns.add_incoming(*result)
        return columns

    return signature, codegen


@intrinsic
def nonzero_lanes(typingctx, kind, count, address):
    """Which of `count` numbers at an address are not 0: a bit each, the first the lowest.

    NaN is not 0.
    """
    n_count = getattr(count, "literal_value", None)
    if n_count is None:
        return None

    def codegen(context, builder, signature, args):
        v = _Vectors(builder, kind, n_count)
        found = builder.fcmp_unordered("!=", v.load(args[2]), ir.Constant(v.type, [0.0] * n_count))
        return builder.zext(builder.bitcast(found, ir.IntType(n_count)), _I64)

    return types.int64(kind, count, types.int64), codegen


@intrinsic
def trailing_zeros(typingctx, word):
    """How many bits lie below the lowest that is set."""

    def codegen(context, builder, signature, args):
        return builder.cttz(args[0], ir.Constant(ir.IntType(1), 1))

    return types.int64(types.int64), codegen


@intrinsic
def take_next(typingctx, counter):
    """What the int64 at an address was, before it is raised by 1, by one thread at a time."""

    def codegen(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], _I64.as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(_I64, 1), "monotonic")

    return types.int64(types.int64), codegen


@intrinsic
def pointer_to(typingctx, kind, address):
    """The address as a pointer to numbers of the dtype of `kind`, for `numba.carray`."""

    def codegen(context, builder, signature, args):
        return builder.inttoptr(args[1], context.get_value_type(kind).as_pointer())

    return types.CPointer(kind)(kind, types.int64), codegen


@intrinsic
def size_of(typingctx, kind):
    """Bytes of a number of the dtype of `kind`."""

    def codegen(context, builder, signature, args):
        return ir.Constant(_I64, kind.bitwidth // 8)

    return types.int64(kind), codegen
