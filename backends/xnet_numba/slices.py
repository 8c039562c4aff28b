# pyright: basic, reportAttributeAccessIssue=false, reportCallIssue=false
"""Slices in registers: cut, multiplied and added up, in LLVM's own vectors.

What LLVM makes of a loop over the columns of a narrow matrix is mostly what it does before and
after its vectors. Here are the vectors alone, as in `tiles`. What is cut and added up is as
`xnet.exact` has it, nothing contracted or reordered; only products, whose sums are exact, are
fused.
"""

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from xnet_numba.tiles import VECTOR_BYTES, WIDE, Vectors

LANES = VECTOR_BYTES // 8
"""Numbers of float64 in a vector."""

_I64 = ir.IntType(64)


def _loop(builder, count, down=False):
    """A loop over 0 <= s < count, or from count - 1 down to 0: s, and what ends it.

    What goes round is given to that as pairs of a phi of the loop's head and its next value.
    """
    before = builder.block
    head, body, end = (builder.append_basic_block(f"loop.{name}") for name in ("s", "body", "end"))
    one, zero = ir.Constant(_I64, 1), ir.Constant(_I64, 0)
    start = builder.sub(count, one) if down else zero
    builder.branch(head)
    builder.position_at_end(head)
    s = builder.phi(_I64)
    s.add_incoming(start, before)

    def phi(first):
        value = builder.phi(first.type)
        value.add_incoming(first, before)
        return value

    def begin():
        more = builder.icmp_signed(">=", s, zero) if down else builder.icmp_signed("<", s, count)
        builder.cbranch(more, body, end)
        builder.position_at_end(body)

    def finish(*pairs):
        s.add_incoming(builder.sub(s, one) if down else builder.add(s, one), builder.block)
        for value, following in pairs:
            value.add_incoming(following, builder.block)
        builder.branch(head)
        builder.position_at_end(end)

    return s, phi, begin, finish


def _wide(builder, vectors, value):
    """Numbers of either precision as float64."""
    return value if value.type == vectors.type else builder.fpext(value, vectors.type)


@intrinsic
def cut(typingctx, kind, lanes, each, values, back, shift, unit, count, parts, of_slice):
    """Cut `lanes` numbers, a literal, in so many slices, each `of_slice` bytes on from `parts`.

    `values` is the address of numbers of the dtype of `kind`. They are multiplied twice by the
    number at `back`; the first slice is cut by the one at `shift`, each other by `unit` times the
    one before. If `each`, a literal, every number has its own `back` and `shift`.
    """
    n, own = (getattr(x, "literal_value", None) for x in (lanes, each))
    if n is None or own is None:
        return None
    signature = types.void(kind, lanes, each, *[types.int64] * 3, types.float64, *[types.int64] * 3)

    def codegen(context, builder, signature, args):
        _, _, _, values, back, shift, unit, count, parts, of_slice = args
        v, of_kind = Vectors(builder, types.float64, n), Vectors(builder, kind, n)

        def taken(address):
            return v.load(address) if own else v.broadcast(v.load(address, v.element))

        factor = taken(back)
        value = _wide(builder, v, of_kind.load(values))
        value = builder.fmul(builder.fmul(value, factor), factor)
        first, smaller = taken(shift), v.broadcast(unit)
        s, phi, begin, finish = _loop(builder, count)
        rest, by = phi(value), phi(first)
        begin()
        part = builder.fsub(builder.fadd(rest, by), by)
        v.store(part, v.at(parts, s, of_slice))
        finish((rest, builder.fsub(rest, part)), (by, builder.fmul(by, smaller)))
        return context.get_dummy_value()

    return signature, codegen


@intrinsic
def add_up(typingctx, kind, lanes, orders, of_order, count, half, halves, bias, out):
    """The products of each order of `lanes` numbers, a literal, from the smallest, and a bias.

    Of so many orders, each `of_order` bytes on from `orders`. The sum is multiplied twice by `half`
    times the numbers at `halves`, rounded to the dtype of `kind`, and the numbers at `bias`, if
    that is not 0, are added.
    """
    n = getattr(lanes, "literal_value", None)
    if n is None:
        return None
    numbers = types.int64, types.int64, types.int64, types.float64, *[types.int64] * 3

    def codegen(context, builder, signature, args):
        _, _, orders, of_order, count, half, halves, bias, out = args
        v, of_kind = Vectors(builder, types.float64, n), Vectors(builder, kind, n)
        s, phi, begin, finish = _loop(builder, count, down=True)
        total = phi(ir.Constant(v.type, [0.0] * n))
        begin()
        finish((total, builder.fadd(v.load(v.at(orders, s, of_order)), total)))
        both = builder.fmul(v.broadcast(half), v.load(halves))
        found = builder.fmul(builder.fmul(total, both), both)
        if found.type != of_kind.type:
            found = builder.fptrunc(found, of_kind.type)
        before = builder.block
        then, end = (builder.append_basic_block(f"bias.{name}") for name in ("then", "end"))
        builder.cbranch(builder.icmp_signed("!=", bias, ir.Constant(_I64, 0)), then, end)
        builder.position_at_end(then)
        with_bias = builder.fadd(found, of_kind.load(bias))
        builder.branch(end)
        builder.position_at_end(end)
        result = builder.phi(of_kind.type)
        result.add_incoming(found, before)
        result.add_incoming(with_bias, then)
        of_kind.store(result, out)
        return context.get_dummy_value()

    return types.void(kind, lanes, *numbers), codegen


SUMS = 24 if WIDE else 12
"""Of products of slices, kept in registers beside the slices of a number and a row of B."""


def _slices(builder, count, vectors, args):
    """Code of so many vectors of columns of `slices_tile`."""
    a, of_slice, step, word, b, row, c, apart, j = args
    v = Vectors(builder, types.float64, VECTOR_BYTES // 8)
    offsets = [v.at(j, v.constant(n), v.constant(VECTOR_BYTES)) for n in range(vectors)]
    parts = [v.constant(s) for s in range(count)]
    places = [builder.add(v.at(c, order, apart), at) for order in parts for at in offsets]
    starts = [v.load(place) for place in places]
    before = builder.block
    head, body, end = (builder.append_basic_block(f"slice.{name}") for name in ("k", "body", "end"))
    builder.branch(head)
    builder.position_at_end(head)
    n = builder.phi(_I64)
    n.add_incoming(word, before)
    sums = [builder.phi(v.type) for _ in starts]
    for total, start in zip(sums, starts, strict=True):
        total.add_incoming(start, before)
    builder.cbranch(builder.icmp_signed("!=", n, v.constant(0)), body, end)
    builder.position_at_end(body)
    index = builder.cttz(n, ir.Constant(ir.IntType(1), 1))
    number, b_row = v.at(a, index, step), v.at(b, index, row)
    values = [v.broadcast(v.load(v.at(number, s, of_slice), v.element)) for s in parts]
    totals = list(sums)
    for t in range(count):
        for i in range(vectors):
            part = v.load(builder.add(v.at(b_row, parts[t], apart), offsets[i]))
            for s in range(count - t):
                at = (s + t) * vectors + i
                totals[at] = v.multiply_add(values[s], part, totals[at])
    for total, following in zip(sums, totals, strict=True):
        total.add_incoming(following, body)
    n.add_incoming(builder.and_(n, builder.sub(n, v.constant(1))), body)
    builder.branch(head)
    builder.position_at_end(end)
    for place, total in zip(places, sums, strict=True):
        v.store(total, place)


@intrinsic
def slices_tile(typingctx, slices, a, of_slice, step, word, b, row, c, apart, m):
    """C[s + t, j] += A[s, n] B[n, t, j] for all s + t < `slices` and n < 64 whose bit is set.

    All are float64, of so many slices, a literal. Arrays are given by their first element's
    address: A's slices lie `of_slice` bytes apart and its numbers `step`, B's rows `row` and the
    slices of one `apart`, and so C's orders. B and C have m columns, whole vectors.
    """
    count = getattr(slices, "literal_value", None)
    if count is None:
        return None

    def codegen(context, builder, signature, args):
        panel = max(1, min(8, SUMS // count))
        *arrays, m = args[1:]
        whole = builder.mul(m, ir.Constant(_I64, 8))
        before = builder.block
        head, end = (builder.append_basic_block(f"slices.{name}") for name in ("head", "end"))
        builder.branch(head)
        builder.position_at_end(head)
        j = builder.phi(_I64)
        j.add_incoming(ir.Constant(_I64, 0), before)
        left = builder.sub(whole, j)
        for vectors in range(panel, 0, -1):
            then, otherwise = (
                builder.append_basic_block(x) for x in ("slices.then", "slices.else")
            )
            most = ir.Constant(_I64, vectors * VECTOR_BYTES)
            builder.cbranch(builder.icmp_signed(">=", left, most), then, otherwise)
            builder.position_at_end(then)
            _slices(builder, count, vectors, (*arrays, j))
            j.add_incoming(builder.add(j, most), builder.block)
            builder.branch(head)
            builder.position_at_end(otherwise)
        builder.branch(end)
        builder.position_at_end(end)
        return context.get_dummy_value()

    return types.void(slices, *[types.int64] * 9), codegen
