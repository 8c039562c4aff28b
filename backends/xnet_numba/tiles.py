# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Products in registers: tiles of a matrix product, written in LLVM's own vectors.

LLVM vectorises the loops of `kernels.py` well, but does not keep a tile of a product in registers.
Here a tile, some rows by some vectors of columns, is accumulated in registers alone, each vector of
B loaded once for all its rows, one product after the other: a number is the same bits whichever
tile it falls into, so a row's result does not depend on how many rows came with it.
"""

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

WIDE = llvm.get_host_cpu_features().get("avx512f", False)
VECTOR_BYTES = 64 if WIDE else 32
"""Bytes of a vector: a register of AVX-512 or AVX2, two of an older or of an ARM processor."""
ROWS = 6
"""Rows of a tile where there are so many; else it has 2, or 1."""
PANEL = {ROWS: 4 if WIDE else 2, 2: 4, 1: 8}
"""Vectors, at most, in a row of a tile, by its rows. The 24 sums of ROWS rows, or 12, fill 32
registers with a row of B beside them, or AVX2's 16. Smaller tiles have 8 sums, for each waits four
cycles for its next number and two can be added to in one."""
BITS = 64
"""Columns of A that a word says of which to take."""

_I64, _I32 = ir.IntType(64), ir.IntType(32)


class Vectors:
    """What the code of a tile is made of: vectors of `count` numbers at addresses."""

    def __init__(self, builder, kind, count):
        self.builder, self.count = builder, count
        self.element = ir.FloatType() if kind == types.float32 else ir.DoubleType()
        self.size = kind.bitwidth // 8
        self.type = ir.VectorType(self.element, count)

    def at(self, address, index, stride):
        """The address `index` times `stride` bytes on."""
        return self.builder.add(address, self.builder.mul(index, stride))

    def constant(self, value):
        return ir.Constant(_I64, value)

    def load(self, address, kind=None):
        value = self.builder.load(self.builder.inttoptr(address, (kind or self.type).as_pointer()))
        value.align = self.size
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


def _tile(builder, kind, rows, vectors, count, by_bits, args):
    """Code of one tile of `rows` rows and `vectors` vectors of `count` numbers; see `tile`."""
    a, row, step, k, b, ldb, start, start_row, c, ldc, j, m = args
    v = Vectors(builder, kind, count)
    last = builder.sub(m, v.constant(count))
    offsets = []
    for n in range(vectors):
        column = builder.add(j, v.constant(n * count))
        column = builder.select(builder.icmp_signed("<", column, last), column, last)
        offsets.append(builder.mul(column, v.constant(v.size)))
    a_rows, start_rows, c_rows = (
        [v.at(address, v.constant(r), stride) for r in range(rows)]
        for address, stride in ((a, row), (start, start_row), (c, ldc))
    )
    starts = [v.load(builder.add(at, offset)) for at in start_rows for offset in offsets]
    before = builder.block
    head, body, end = (builder.append_basic_block(f"tile.{name}") for name in ("k", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    n = builder.phi(_I64)
    n.add_incoming(k if by_bits else v.constant(0), before)
    sums = [builder.phi(v.type) for _ in starts]
    for total, start in zip(sums, starts, strict=True):
        total.add_incoming(start, before)
    more = builder.icmp_signed("!=" if by_bits else "<", n, v.constant(0) if by_bits else k)
    builder.cbranch(more, body, end)
    builder.position_at_end(body)
    index, one = builder.cttz(n, ir.Constant(ir.IntType(1), 1)) if by_bits else n, v.constant(1)
    b_row = v.at(b, index, ldb)
    b_vectors = [v.load(builder.add(b_row, offset)) for offset in offsets]
    along = builder.mul(index, step)
    for r in range(rows):
        value = v.broadcast(v.load(builder.add(a_rows[r], along), v.element))
        for i in range(vectors):
            total = sums[r * vectors + i]
            total.add_incoming(v.multiply_add(value, b_vectors[i], total), body)
    following = builder.and_(n, builder.sub(n, one)) if by_bits else builder.add(n, one)
    n.add_incoming(following, body)
    builder.branch(head)
    builder.position_at_end(end)
    for r in range(rows):
        for i in range(vectors):
            v.store(sums[r * vectors + i], builder.add(c_rows[r], offsets[i]))
    return v.constant(vectors * count)


@intrinsic
def tile(typingctx, kind, rows, by_bits, a, row, step, k, b, ldb, start, start_row, c, ldc, j, m):
    """C[r, j..] = start[r, j..] + sum over n < k of A[r, n] B[n, j..], for `rows` rows.

    If `by_bits`, the sum is over those n < 64 whose bit in the word k is set. Returns how many
    columns from j it has dealt with; it touches no others, and start may be C.

    `kind` is a number of the arrays' dtype; `rows` and `by_bits` are literals. Arrays are given by
    their first element's address, their rows lie `row`, `ldb`, `start_row` and `ldc` bytes apart
    (a bias has one row, 0 bytes apart), A's columns `step`; B and C have m columns.
    """
    n_rows, bits = (getattr(x, "literal_value", None) for x in (rows, by_bits))
    if n_rows is None or bits is None:
        return None
    signature = types.int64(kind, rows, by_bits, *[types.int64] * 12)

    def codegen(context, builder, signature, args):
        full, panel = VECTOR_BYTES * 8 // kind.bitwidth, PANEL[n_rows]
        j, m = args[-2:]
        left = builder.sub(m, j)

        def more_than(columns, than=left):
            return builder.icmp_signed(">", than, ir.Constant(_I64, columns))

        # As many vectors as the columns that are left fill, up to a panel; one less where the
        # next tile would have less than a vector. The last vector begins earlier to end in time.
        ways = []
        for vectors in range(panel, 0, -1):
            fits = builder.and_(more_than((vectors - 1) * full), more_than(full - 1, m))
            if vectors == panel and panel > 1:
                little_more = builder.and_(
                    more_than(panel * full), builder.not_(more_than((panel + 1) * full - 1))
                )
                fits = builder.and_(fits, builder.not_(little_more))
            ways.append((vectors, full, fits))
        # Fewer columns in all than a vector holds: two shorter ones, or one.
        shorter = [full >> shift for shift in range(1, full.bit_length())]
        ways += [(min(2, count), count, more_than(count - 1, m)) for count in shorter]
        done = builder.append_basic_block("tile.done")
        results = []
        for vectors, count, fits in ways:
            then, otherwise = (builder.append_basic_block(x) for x in ("tile.then", "tile.else"))
            builder.cbranch(fits, then, otherwise)
            builder.position_at_end(then)
            columns = _tile(builder, kind, n_rows, vectors, count, bits, args[3:])
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
def transpose_square(typingctx, kind, side, a, row, out, out_row):
    """out[j, i] = a[i, j] for `side` rows and columns, a power of two and a literal.

    Arrays are given by their first element's address, their rows lie so many bytes apart.
    """
    n = getattr(side, "literal_value", None)
    if n is None:
        return None

    def codegen(context, builder, signature, args):
        v = Vectors(builder, kind, n)
        _, _, source, row, target, target_row = args
        rows = [v.load(v.at(source, v.constant(i), row)) for i in range(n)]
        # Each turn, row i and the one half of them on give their numbers alternately to rows 2 i
        # and 2 i + 1; after log2(n) turns a row holds a column.
        halves = [
            ir.Constant(ir.VectorType(_I32, n), [i // 2 + first + i % 2 * n for i in range(n)])
            for first in (0, n // 2)
        ]
        for _ in range(n.bit_length() - 1):
            rows = [
                builder.shuffle_vector(rows[i], rows[i + n // 2], half)
                for i in range(n // 2)
                for half in halves
            ]
        for j in range(n):
            v.store(rows[j], v.at(target, v.constant(j), target_row))
        return context.get_dummy_value()

    return types.void(kind, side, *[types.int64] * 4), codegen


@intrinsic
def bits_not_zero(typingctx, kind, count, address):
    """Which of `count` numbers at an address are not 0: a bit each, the first the lowest.

    NaN is not 0.
    """
    n_count = getattr(count, "literal_value", None)
    if n_count is None:
        return None

    def codegen(context, builder, signature, args):
        v = Vectors(builder, kind, n_count)
        found = builder.fcmp_unordered("!=", v.load(args[2]), ir.Constant(v.type, [0.0] * n_count))
        return builder.zext(builder.bitcast(found, ir.IntType(n_count)), _I64)

    return types.int64(kind, count, types.int64), codegen


@intrinsic
def ones(typingctx, word):
    """How many bits of the word are set."""

    def codegen(context, builder, signature, args):
        return builder.ctpop(args[0])

    return types.int64(types.int64), codegen
