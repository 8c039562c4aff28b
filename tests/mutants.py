"""Mistakes on purpose: do the test vectors tell them? python tests/mutants.py [MODULE ...]

A mutant is one of xnet's modules with one change: another order of an expression, a product fused
with a sum, a division done by the inverse, a comparison that takes equality for the other side, a
whole number that is 1 more, a number with its last bit flipped. Each is run on the vectors of the
operations that it concerns. What no vector tells is listed, with the reason where there is one.
``python tests/mutants.py bits`` flips every bit of every constant, one at a time.
"""

import ast
import copy
import json
import math
import signal
import sys
import types
from fractions import Fraction
from itertools import islice
from unittest import mock

import make_vectors
import numpy as np

import xnet
from xnet import exact, random
from xnet.backend import Backend

LONGEST = 20
"""Seconds for the vectors of a mutant: some never end."""

MODULES = ("exact", "random", "operations", "optimizers")

NO_FORMULA = {
    "__post_init__", "__setattr__", "__setstate__", "_load_packages", "initial", "kinks", "slots",
    "state", "update", "PIECE", "LARGEST_PIECE",
}  # fmt: skip
"""Where nothing of what the vectors hold is computed."""

SAME = {
    "sigmoid: compared: x >= 0": "at 0 both are 1/2",
    "sigmoid.y: inverse: 1 /": "1 / y is 1 * (1 / y)",
    "LeakyReLU.forward: compared": "at 0 both are 0",
    "ELU.forward": "at 0 both are 0, and above it neither is taken",
    "SELU.forward": "at 0 both are 0, and above it neither is taken",
    "GELU.forward: associated: x * x * x": "the one product of the two is the other's",
    "GELU.backward: plus 1: 10000": "there the slope is long 0 or 1",
    "HardSigmoid.forward: compared": "at the kinks both are the same",
    "HardTanh.forward: compared": "at the kinks both are the same",
    "Mish.gate: compared: x >= 0": "at 0 both are 3/5",
    "Mish.gate: fused": "a product with 2 is exact",
    "SoftmaxWithLoss.label_smoothing: last bit: 0.0": "so little smoothing is none",
    "Huber.forward: compared": "at delta both are delta^2 / 2",
    "Huber.forward: fused: d - 0.5": "half of delta is exact",
    "KullbackLeibler.forward: compared: t > 0": "where t is 0 the term is 0 whatever it was",
    "KullbackLeibler.forward: plus 1: 1": "where t is 0 the term is 0 whatever it was",
    "Focal.backward: plus 1: 0": "it is multiplied by t, which is 0",
    "Focal.log_rest: last bit: 1e-30": "its logarithm is the same number",
    "Adam.step: inverse: 1 / c2": "1 / c2 is 1 * (1 / c2)",
    "Lion.step: fused: W - self.lr * sign": "a product with 1 or -1 is exact",
    "Affine.weight_init_std: last bit": "nothing is drawn; the pages name it, and a test compares",
    "Optimizer.lr: last bit": "every optimizer has its own, and the pages name them",
    "AdamW.weight_decay: last bit": "it is lost in W; the pages name it, and a test compares",
}
"""Mutants of operations and optimizers that give the same bits, or none that a test could see."""


class Plain(Backend):
    """Every generic form on NumPy's arrays, so that a change of a module changes what it gives."""

    name = "plain"
    xp = np

    def owns(self, array):
        return isinstance(array, (np.ndarray, np.generic))

    def running(self):
        return np.errstate(all="ignore")


def fused(a, b, c):
    """A product and a sum rounded once, of arrays or numbers."""
    if isinstance(a, np.ndarray) or isinstance(b, np.ndarray) or isinstance(c, np.ndarray):
        dtype = np.result_type(*(v for v in (a, b, c) if isinstance(v, (np.ndarray, np.generic))))
        arrays = np.broadcast_arrays(*(np.asarray(v, dtype) for v in (a, b, c)))
        flat = [
            _fused(*map(float, of), dtype) for of in zip(*(v.ravel() for v in arrays), strict=True)
        ]
        return np.asarray(flat, dtype).reshape(arrays[0].shape)
    return _fused(float(a), float(b), float(c), np.float64)


def _fused(a, b, c, dtype):
    if not all(map(math.isfinite, (a, b, c))):
        return a * b + c
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    if exact == 0:
        return a * b + c
    if dtype == np.float32:
        near = np.float64(_float(exact))  # rounded to odd, so that rounding again is harmless
        if Fraction(float(near)) != exact and math.isfinite(near) and not near.view(np.int64) & 1:
            near = np.nextafter(near, math.inf if Fraction(float(near)) < exact else -math.inf)
        return near
    return _float(exact)


def _float(exact):
    try:
        return float(exact)
    except OverflowError:
        return math.copysign(math.inf, exact)


# -- changes


def flipped(value):
    """A float64 number with its last bit flipped."""
    return other_bit(value, 0)


def _changes(node):
    """What a node may become, by what that is called."""
    if isinstance(node, ast.BinOp):
        left, op, right = node.left, node.op, node.right
        if isinstance(left, ast.BinOp):
            pair = type(left.op), type(op)
            again = {
                (ast.Add, ast.Add): (ast.Add, ast.Add),
                (ast.Mult, ast.Mult): (ast.Mult, ast.Mult),
                (ast.Add, ast.Sub): (ast.Add, ast.Sub),
                (ast.Sub, ast.Add): (ast.Sub, ast.Sub),
                (ast.Sub, ast.Sub): (ast.Sub, ast.Add),
                (ast.Mult, ast.Div): (ast.Mult, ast.Div),
                (ast.Div, ast.Mult): (ast.Div, ast.Div),
                (ast.Div, ast.Div): (ast.Div, ast.Mult),
            }.get(pair)
            if again:
                inner = ast.BinOp(left.right, again[1](), right)
                yield "associated", ast.BinOp(left.left, again[0](), inner)
        for a, b in ((left, right), (right, left)):
            if (
                isinstance(op, ast.Mult)
                and isinstance(b, ast.BinOp)
                and isinstance(b.op, (ast.Add, ast.Sub))
            ):
                one, two = (ast.BinOp(a, ast.Mult(), part) for part in (b.left, b.right))
                yield "distributed", ast.BinOp(one, b.op, two)
        if isinstance(op, (ast.Add, ast.Sub)):
            for a, b, ours in ((left, right, True), (right, left, False)):
                if isinstance(a, ast.BinOp) and isinstance(a.op, ast.Mult):
                    x, y, c = a.left, a.right, b
                    if isinstance(op, ast.Sub):
                        x, c = (
                            (x, ast.UnaryOp(ast.USub(), c))
                            if ours
                            else (ast.UnaryOp(ast.USub(), x), c)
                        )
                    yield "fused", ast.Call(ast.Name("fused", ast.Load()), [x, y, c], [])
        if isinstance(op, ast.Div):
            yield (
                "inverse",
                ast.BinOp(left, ast.Mult(), ast.BinOp(ast.Constant(1.0), ast.Div(), right)),
            )
    if isinstance(node, ast.Compare) and len(node.ops) == 1:
        other = {ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt}
        if type(node.ops[0]) in other:
            yield "compared", ast.Compare(node.left, [other[type(node.ops[0])]()], node.comparators)
    if (
        isinstance(node, ast.Constant)
        and isinstance(node.value, (int, float))
        and not isinstance(node.value, bool)
    ):
        value = node.value
        if isinstance(value, float):
            yield "last bit", ast.Constant(flipped(value))
        else:
            yield "plus 1", ast.Constant(value + 1)
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and "0x1." in node.value:
        words = node.value.split()
        for k, word in enumerate(words):
            changed = [*words[:k], flipped(float.fromhex(word)).hex(), *words[k + 1 :]]
            yield f"last bit of number {k}", ast.Constant(" ".join(changed))


def _places(tree):
    """Every node that computes, with the class and function that it stands in."""

    def visit(node, where):
        if isinstance(node, (ast.Raise, ast.Assert, ast.arguments, ast.JoinedStr)):
            return
        if isinstance(node, (ast.ClassDef, ast.FunctionDef)):
            where = (*where, node.name)
        if isinstance(node, ast.AnnAssign):  # no annotation is computed
            if node.value is not None:
                yield from visit(node.value, (*where, ast.unparse(node.target)))
            return
        if (
            isinstance(node, ast.Assign)
            and len(where) < 2
            and isinstance(node.targets[0], ast.Name)
        ):
            where = (*where, node.targets[0].id)
        if not NO_FORMULA.isdisjoint(where):
            return
        yield node, where
        for child in ast.iter_child_nodes(node):
            yield from visit(child, where)

    yield from visit(tree, ())


def mutants(module, place=None, every=1):
    """Mutants of a module, or of one class or function there: where, what, and the code."""
    path = sys.modules[f"xnet.{module}"].__file__
    with open(path) as file:
        source = file.read()
    there = ((k, node, where) for k, (node, where) in enumerate(_places(ast.parse(source))))
    found = (
        (k, n, where)
        for k, node, where in there
        if place is None or place in where
        for n in range(len(list(_changes(node))))
    )
    for k, n, where in islice(found, 0, None, every):
        tree = ast.parse(source)
        node = next(islice(_places(tree), k, None))[0]
        what, new = copy.deepcopy(list(_changes(node))[n])
        text = f"{what}: {ast.unparse(node)}  ->  {ast.unparse(new)}"
        node.__class__, node.__dict__ = new.__class__, new.__dict__
        yield where, text, compile(ast.fix_missing_locations(tree), path, "exec")


def module_of(name, code):
    """The module that a mutant's code makes."""
    made = types.ModuleType(f"xnet.{name}")
    made.__file__ = sys.modules[f"xnet.{name}"].__file__
    made.fused = fused
    with mock.patch.dict(sys.modules, {f"xnet.{name}": made}):
        exec(code, vars(made))
    return made


def patched(name, module):
    """Block in which vectors are computed with a module in place of xnet's."""
    places = [mock.patch.object(make_vectors, name, module)]
    if name == "exact":
        places += [
            mock.patch.object(xnet.backend, "exact", module),
            mock.patch.object(xnet.random, "exact", module),
        ]
    if name == "random":
        places.append(mock.patch.object(make_vectors, "Generator", module.Generator))
    return places


def concerned(module, where, operations):
    """The operations whose vectors may tell a change at a place."""
    if module == "exact":
        return [v for v in operations if v in make_vectors.PRIMITIVES or v.endswith("_slices")]
    if module == "random":
        return [v for v in operations if v in make_vectors.HOST and not v.endswith("_slices")]
    names = {v.partition(".")[0] for v in operations} & set(where)
    known = getattr(sys.modules[f"xnet.{module}"], module.upper())
    if not names:
        return [v for v in operations if v.partition(".")[0] in known or v.lower() in known]
    derived = {
        cls.__name__ for cls in known.values() if names & {of.__name__ for of in cls.__mro__}
    }
    return [v for v in operations if v.partition(".")[0] in derived]


def told(module, where, what, code, vectors):
    """The first vector that tells a mutant, or how it fails; None if none does."""
    wanted = concerned(module, where, dict.fromkeys(v["operation"] for v in vectors))
    backend = Plain(reproducible=True)
    signal.signal(signal.SIGALRM, _never_ends)
    signal.alarm(LONGEST)
    try:
        places = patched(module, module_of(module, code))
        with places[0]:
            for place in places[1:]:
                place.start()
            try:
                found = make_vectors.differences(
                    backend, [v for v in vectors if v["operation"] in wanted]
                )
                first = next(found, None)
            finally:
                for place in places[1:]:
                    place.stop()
        return first and f"{first[0]}: {first[1]}"
    except Exception as error:  # it computes nothing at all
        return f"{type(error).__name__}: {error}"
    finally:
        signal.alarm(0)


def _never_ends(*_):
    raise TimeoutError("it never ends")


# -- constants, bit by bit

NAMES = {"LOWEST": "EXP_LOWEST", "HIGHEST": "EXP_HIGHEST"}
TELLING = {"exp": ("exp", "expm1"), "log": ("log", "log1p"), "quantile": ("quantile",)}
"""The operations that each group of the file's constants is of."""


def other_bit(value, bit):
    """A float64 number with one bit flipped, 0 the last."""
    return float(
        (np.float64(value).view(np.int64) ^ (np.int64(1) << np.int64(bit))).view(np.float64)
    )


def altered(of, name, bit):
    """Block in which a constant of xnet has one bit flipped."""
    module, letter, power = (random if of == "quantile" else exact), name[0], name[1:]
    if not power.isdigit():
        attribute = NAMES.get(name, name)
        return mock.patch.object(module, attribute, other_bit(getattr(module, attribute), bit))
    attributes = {"c": "EXP_COEFFICIENTS", "L": "LOG_COEFFICIENTS"}
    if of == "quantile":
        attributes = dict(zip("abcdef", ["CENTRE"] * 2 + ["MIDDLE"] * 2 + ["FAR"] * 2, strict=True))
    kept = getattr(module, attributes[letter])
    row = kept["abcdef".index(letter) % 2] if of == "quantile" else kept
    last = {"c": 13, "L": 11}.get(letter, 7) if of != "quantile" else 7
    k = last - int(power)
    row = (*row[:k], other_bit(row[k], bit), *row[k + 1 :])
    if of == "quantile":
        row = (row, kept[1]) if letter in "ace" else (kept[0], row)
    return mock.patch.object(module, attributes[letter], row)


def bit_told(of, name, bit, vectors):
    """The first vector that tells a flipped bit of a constant; None if none does."""
    wanted = [v for v in vectors if v["operation"] in TELLING[of]]
    try:
        with altered(of, name, bit):
            return next(make_vectors.differences(Plain(reproducible=True), wanted), None)
    except (IndexError, OverflowError) as error:  # a power of two beyond the largest
        return str(error)


def lowest_told(of, name, vectors):
    """The lowest bit of a significand from which on all are told; 52 if the highest is not."""
    untold = (bit for bit in range(51, -1, -1) if bit_told(of, name, bit, vectors) is None)
    return next(untold, -1) + 1


def same(where, what):
    """Why a mutant gives the same bits, if it is known to."""
    mutant = f"{'.'.join(where)}: {what}"
    return next((why for start, why in SAME.items() if mutant.startswith(start)), None)


def main():
    file = json.loads(make_vectors.PATH.read_text())
    vectors = file["vectors"]
    if sys.argv[1:] == ["bits"]:
        for of, values in file["constants"].items():
            print(f"{of}, lowest bit told:", {k: lowest_told(of, k, vectors) for k in values})
        return
    for module in sys.argv[1:] or MODULES:
        found = [(*m[:2], told(module, *m, vectors)) for m in mutants(module)]
        missed = [(where, what) for where, what, by in found if by is None]
        print(f"{module}: {len(found)} mutants, {len(found) - len(missed)} told")
        for where, what in missed:
            why = same(where, what)
            print(f"    {'.'.join(where)}: {what[:200]}" + f" | {why}" * bool(why))


if __name__ == "__main__":
    main()
