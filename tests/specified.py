"""What the pages of docs/reproducible/ say, computed: a second implementation, without xnet.

The pages' code runs as it stands there, on single numbers, and so do their formulas, on arrays:
NumPy adds, subtracts, multiplies, divides and takes roots, all else is the pages'. Random numbers,
which a page defines in words, are programmed here one number at a time. `computed` makes of a
vector of docs/reproducible/vectors.json what the pages say.
"""

import contextlib
import io
import math
import re
from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent.parent / "docs" / "reproducible"
RANDOM = FOLDER / "random.md"

# -- random.md, by one number at a time

WORD, LONG, STATE = 2**32 - 1, 2**64 - 1, 2**128 - 1
MIXING = 0xCA01F9DD, 0x4973F715
FIRST, SECOND = (0x43B0D7E5, 0x931E8875), (0x8B51F9DD, 0x58F38DED)
"""The first h of each hashing, and its factor."""
MULTIPLIER = 0x2360ED051FC65DA44385DF649FCCF645


def words(number):
    """Of 32 bits, the lowest first."""
    found = [number & WORD]
    while number := number >> 32:
        found.append(number & WORD)
    return found


class Hash:
    def __init__(self, start, factor):
        self.h, self.factor = start, factor

    def __call__(self, v):
        v ^= self.h
        self.h = self.h * self.factor & WORD
        v = v * self.h & WORD
        return v ^ v >> 16


def mixed(x, y):
    v = (MIXING[0] * x - MIXING[1] * y) & WORD
    return v ^ v >> 16


def pool(entropy):
    first = Hash(*FIRST)
    found = [first(v) for v in (entropy + [0] * 4)[:4]]
    for k in range(4):
        for j in range(4):
            if j != k:
                found[j] = mixed(found[j], first(found[k]))
    for v in entropy[4:]:
        found = [mixed(p, first(v)) for p in found]
    return found


class Specified:
    """The page's generator, of a seed or of several integers."""

    def __init__(self, *seeds):
        second = Hash(*SECOND)
        w = [second(v) for v in pool([word for seed in seeds for word in words(seed)]) * 2]
        a, b, c, d = (w[k] | w[k + 1] << 32 for k in (0, 2, 4, 6))
        self.inc = ((c << 64 | d) << 1 | 1) & STATE
        self.state = 0
        self.step()
        self.state = self.state + (a << 64 | b) & STATE
        self.step()

    def step(self):
        self.state = self.state * MULTIPLIER + self.inc & STATE

    def raw(self):
        self.step()
        v, by = self.state >> 64 ^ self.state & LONG, self.state >> 122
        return v >> by | v << (64 - by) & LONG

    def uniform(self):
        return float(self.raw() >> 11) / 2.0**53

    def normal(self):
        return quantile(self.uniform() - 0.5 + 2.0**-54)

    def integer(self, bound):
        while (v := self.raw() >> 64 - max(1, (bound - 1).bit_length())) >= bound:
            pass
        return v

    def permutation(self, n):
        while len(set(keys := [self.raw() for _ in range(n)])) < n:
            pass
        return sorted(range(n), key=keys.__getitem__)


def rows(heading):
    """The cells of the page's table that begins so, without their quotes."""
    part = RANDOM.read_text().partition(f"\n| {heading} |")[2].partition("\n\n")[0]
    return [
        [cell.strip(" `") for cell in line.strip("|").split("|")] for line in part.splitlines()[2:]
    ]


def numbers(heading):
    """Of a table, the last column by the first."""
    return {row[0]: float.fromhex(row[-1]) for row in rows(heading)}


COEFFICIENTS, CONSTANTS = numbers("coefficient"), numbers("constant")
A, B, C, D, E, F = (
    [COEFFICIENTS.get(f"{letter}{k}", 1.0) for k in range(8)] for letter in "abcdef"
)


def horner(coefficients, x):
    found = coefficients[-1]
    for c in coefficients[-2::-1]:
        found = found * x + c
    return found


def quantile(q):
    if abs(q) <= 0.425:
        x = 0.180625 - q * q
        return q * (horner(A, x) / horner(B, x))
    r = math.sqrt(-log(0.5 - abs(q)))
    top, bottom, x = (C, D, r - 1.6) if r <= 5 else (E, F, r - 5)
    return math.copysign(horner(top, x) / horner(bottom, x), q)


def log(p):
    m, n = math.frexp(p)
    if m == 0.5:  # a power of two is 1 times itself
        m, n = 1.0, n - 1
    if m < CONSTANTS["Q"]:
        m, n = m + m, n - 1
    f = m - 1
    s = f / (f + 2)
    z = s * s
    R = horner([CONSTANTS[f"L{k}"] for k in range(1, 12)], z)
    h = f * f * 0.5
    return n * CONSTANTS["H"] - ((h - (s * (h + R * z) + n * CONSTANTS["T"])) - f)


# -- arithmetic.md, operations.md, training.md


def blocks(page, language):
    """The fenced blocks of a page in this language."""
    text = (FOLDER / page).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(page, scope):
    """`scope` with what the code of a page defines; what it prints is for test_docs."""
    with contextlib.redirect_stdout(io.StringIO()):
        exec(compile("\n".join(blocks(page, "python")), page, "exec"), scope)
    return scope


class Formula:
    """A heading of a page: the settings that it names, what is remembered, and the blocks."""

    def __init__(self, part):
        facts = re.search(r"^Settings: ((?:[^.]|\.\d)*)\.", part, re.MULTILINE)
        found = re.findall(r"`(\w+)` (-?[\d.]+(?:e-?\d+)?|False)", facts[1] if facts else "")
        self.settings = {k: v == "True" if v == "False" else float(v) for k, v in found}
        kept = re.search(r"Remembered: (.*)\.", part)
        self.kept = re.findall(r"`(\w+)`", kept[1]) if kept else []
        self.blocks = re.findall(r"^```text\n(.*?)^```$", part, re.DOTALL | re.MULTILINE)


def formulas(page):
    """What a page says of each of its headings of the third rank."""
    parts = re.split(r"^### (\w+)$", (FOLDER / page).read_text(), flags=re.MULTILINE)
    ends = (re.split(r"^## ", part, flags=re.MULTILINE)[0] for part in parts[2::2])
    return dict(zip(parts[1::2], map(Formula, ends), strict=True))


ARITHMETIC = run("arithmetic.md", {})
TRAINING = run("training.md", {})
OPERATIONS, OPTIMIZERS = formulas("operations.md"), formulas("training.md")
OPTIMIZERS["AdamW"].blocks = OPTIMIZERS["Adam"].blocks  # as the page says, in words
for _name in ("AdamW", "Nadam"):
    OPTIMIZERS[_name].kept = OPTIMIZERS["Adam"].kept
    OPTIMIZERS[_name].settings = OPTIMIZERS["Adam"].settings | OPTIMIZERS[_name].settings
COUPLED, DECOUPLED = blocks("training.md", "text")[1:3]
SHRINK = "AdamW", "Lion"


def scope(dtype):
    """What the formulas take, of arrays of a dtype."""

    def each(name):
        def call(a):
            found = [ARITHMETIC["rounded"](ARITHMETIC[name](float(v)), dtype) for v in a.ravel()]
            return np.asarray(found, dtype).reshape(a.shape)

        return call

    def where(condition, a, b):
        a, b = (np.asarray(v, dtype) for v in (a, b))
        return np.where(condition, a, b)

    def chosen(compared):
        def call(a, b):
            if isinstance(a, (int, float)):
                a, b = b, a
            return where(compared(a, b) | (a != a), a, b)

        return call

    def rows(function):
        return lambda a: np.asarray([[function(row.tolist())] for row in a], dtype)

    def largest(row):
        return math.nan if any(v != v for v in row) else max(row)

    def sum_of(row):
        return ARITHMETIC["sum_of"](row, dtype)

    return run(
        "operations.md",
        {name: each(name) for name in ("exp", "expm1", "log", "log1p")}
        | {
            "abs": np.abs,
            "sqrt": lambda a: math.sqrt(a) if isinstance(a, float) else np.sqrt(a),
            "where": where,
            "maximum": chosen(lambda a, b: a >= b),
            "minimum": chosen(lambda a, b: a <= b),
            "max": rows(largest),
            "sum": rows(sum_of),
            "total": lambda a: np.asarray([sum_of(column.tolist()) for column in a.T], dtype),
            "T": lambda a: a.T,
            "matmul": lambda a, b: matmul(a, b, dtype),
            "power": TRAINING["power"],
        },
    )


def matmul(a, b, dtype):
    if not len(b):  # a list of no rows says not how many columns there are
        return np.full((len(a), b.shape[1]), ARITHMETIC["dot"]([], [], dtype), dtype)
    found = ARITHMETIC["matmul"](a.tolist(), b.tolist(), dtype)
    return np.asarray(found, dtype).reshape(a.shape[0], b.shape[1])


SCOPES = {dtype: scope(dtype) for dtype in ("float32", "float64")}


def assigned(block, dtype, **given):
    """What the lines of a block assign, from these names on."""
    names = dict(given)
    with np.errstate(all="ignore"):
        exec(block, SCOPES[dtype] | {"__builtins__": {}}, names)
    return names


def operation(name, dtype, settings, given):
    """Forward and backward of an operation or a loss: every name that its block assigns."""
    page = OPERATIONS[name]
    settings = page.settings | settings
    block = page.blocks[not settings.pop("training", True)]
    if isinstance(weights := settings.get("class_weights"), tuple):
        settings["class_weights"] = np.asarray(weights, dtype)
    x = given["x"]
    return assigned(block, dtype, N=len(x), M=x.shape[-1], **(settings | given))


def layer(name, way, dtype, settings, given):
    found = operation(name, dtype, settings, {"dout": given["x"]} | given)
    if way == "forward":
        kept = [key for key in ("mean", "variance", "std") if key in given]
        return {key: found[key] for key in ("y", *kept)}
    parameters = [key for key in ("W", "b", "gamma", "beta") if key in given]
    return {key: found[key] for key in ("dx", *(f"d{p}" for p in parameters))}


def loss(name, way, dtype, settings, given):
    found = operation(name, dtype, settings, given)
    n, y = len(given["x"]), found["y"][:, 0]
    if way == "backward":
        return {"dx": found["dx"] * (1 / n)}
    mean = np.asarray(ARITHMETIC["sum_of"](y.tolist(), dtype), dtype) / n
    more = {"prediction": found["prediction"]} if "prediction" in found else {}
    more |= {"targets": found["t"]} if settings else {}
    return {"y": y, "loss": mean} | more


def step(name, dtype, settings, n, W, g, memory):
    """A parameter's n-th step: the new W and the new memory."""
    page = OPTIMIZERS[name]
    settings, names = page.settings | settings, dict(zip(page.kept, memory, strict=True))
    block = "" if settings.get("weight_decay") is None else COUPLED
    if block and name in SHRINK:
        block = DECOUPLED
    found = assigned(block + page.blocks[0], dtype, n=n, W=W, g=g, **names, **settings)
    return [found[key] for key in ("W", *page.kept)]


def optimizer(name, dtype, settings, given):
    memory = [given[key] for key in sorted(given) if key.startswith("memory")]
    arrays, found = [given["W"], *memory], []
    for n, g in zip(given["n"].tolist(), given["g"], strict=True):
        arrays = step(name, dtype, settings, n, arrays[0], g, arrays[1:])
        found.append(arrays)
    names = ["W", *(f"memory{k}" for k in range(len(memory)))]
    return {key: np.stack(of) for key, of in zip(names, zip(*found, strict=True), strict=True)}


def training(dtype, settings, given):
    """A run from its seeds on: initial weights, mini-batches, steps, hash."""
    stream, places = Specified(settings["seed"]), Specified(settings["batch_seed"])
    layers, arrays, kept = settings["layers"], {}, {}
    for k, (name, facts) in enumerate(layers):
        if name == "Affine":
            shape = facts["inputs"], facts["outputs"]
            std = facts["weight_init_std"]
            std = {"he": 2 / shape[0], "xavier": 2 / sum(shape)}.get(std, std)
            std = math.sqrt(std) if isinstance(facts["weight_init_std"], str) else std
            z = [std * stream.normal() for _ in range(math.prod(shape))]
            arrays[k] = {"W": np.asarray(z).astype(dtype).reshape(shape)}
            arrays[k]["b"] = np.zeros(shape[1], dtype)
        elif name == "BatchNorm":
            ones, zeros = (np.full(facts["units"], v, dtype) for v in (1, 0))
            arrays[k], kept[k] = {"gamma": ones, "beta": zeros}, {"mean": zeros, "variance": ones}
    drawing = any(name == "Dropout" for name, _ in layers)
    masks = Specified(stream.integer(2**63)) if drawing else None
    bits = {"float64": 53, "float32": 24}[dtype]
    memory = {}
    results = {"loss": []}

    def record():
        for prefix, held in (("", arrays), ("state.", kept)):
            for name in dict.fromkeys(name for values in held.values() for name in values):
                of = [values[name] for values in held.values() if name in values]
                for count, array in enumerate(of, start=1):
                    results.setdefault(f"{prefix}{name}{count}", []).append(array)

    record()
    order = []
    for n in range(1, settings["steps"] + 1):
        order = order or places.permutation(len(given["x"]))
        batch, order = order[: settings["batch_size"]], order[settings["batch_size"] :]
        results[f"batch{n}"] = np.asarray(batch)
        x, t = given["x"][batch], np.eye(layers[-1][1]["outputs"], dtype=dtype)[given["t"][batch]]
        inputs, more = [], []
        for k, (name, facts) in enumerate(layers):
            drawn = {}
            if name == "Dropout":
                u = [(masks.raw() >> 64 - bits) / 2**bits for _ in range(x.size)]
                drawn["u"] = np.asarray(u, dtype).reshape(x.shape)
            inputs.append(x)
            more.append(drawn | arrays.get(k, {}) | kept.get(k, {}))
            found = operation(name, dtype, facts, {"x": x, "dout": x} | more[k])
            if k in kept:
                kept[k] = {key: found[key] for key in kept[k]}
            x = found["y"]
        name, facts = settings["loss"]
        results["loss"].append(loss(name, "forward", dtype, facts, {"x": x, "t": t})["loss"])
        dout = loss(name, "backward", dtype, facts, {"x": x, "t": t})["dx"]
        gradients = {}
        for k, (name, facts) in reversed([*enumerate(layers)]):
            found = operation(name, dtype, facts, {"x": inputs[k], "dout": dout} | more[k])
            gradients[k] = {key: found[f"d{key}"] for key in arrays.get(k, {})}
            dout = found["dx"]
        name, facts = settings["optimizer"]
        for k, parameters in arrays.items():
            for key, W in parameters.items():
                zeros = [np.zeros_like(W) for _ in OPTIMIZERS[name].kept]
                held = memory.setdefault((k, key), zeros)
                parameters[key], *held[:] = step(name, dtype, facts, n, W, gradients[k][key], held)
        record()
    last = [
        array.ravel().tolist()
        for held in (arrays, kept)
        for of in held.values()
        for array in of.values()
    ]
    found = {key: np.stack(of) if isinstance(of, list) else of for key, of in results.items()}
    return found | {"sha256": np.asarray(TRAINING["digest"](last, dtype))}


# -- the vectors


def stream_of(settings):
    return Specified(*map(int, settings["seed"]))


def drawn(take, settings):
    g = stream_of(settings)
    return {"out": np.asarray([take(g) for _ in range(settings["count"])], object)}


def slices(function, given, settings):
    found = np.asarray(
        [ARITHMETIC[function](n, settings["dtype"]) for n in given["terms"].tolist()]
    )
    return {"slices": found[:, 0], "bits": found[:, 1]}


def uniform(settings):
    bits = {"float64": 53, "float32": 24}[settings["dtype"]]
    return drawn(lambda g: (g.raw() >> 64 - bits) / 2**bits, settings)


def primitives(dtype, settings, given):
    """What stands in no page's formulas, by name."""

    def sum_along(a):
        a = np.moveaxis(a, settings["axis"], -1) if settings["axis"] is not None else a.reshape(-1)
        flat = a.reshape(math.prod(a.shape[:-1]), a.shape[-1])
        found = [ARITHMETIC["sum_of"](row.tolist(), dtype) for row in flat]
        return np.asarray(found, dtype).reshape(a.shape[:-1])

    return {
        "matmul": lambda: {"out": matmul(given["a"], given["b"], dtype)},
        "sum": lambda: {"out": sum_along(given["a"])},
        **{
            name: lambda name=name: {"out": SCOPES[dtype][name](given["x"])}
            for name in ("exp", "expm1", "log", "log1p")
        },
        "raw": lambda: drawn(Specified.raw, settings),
        "uniform": lambda: uniform(settings),
        "normal": lambda: drawn(Specified.normal, settings),
        "integers": lambda: drawn(lambda g: g.integer(int(settings["bound"])), settings),
        "permutation": lambda: {"out": stream_of(settings).permutation(settings["count"])},
        "quantile": lambda: {"out": np.asarray([quantile(q) for q in given["q"].tolist()])},
        "product_slices": lambda: slices("product_slices", given, settings),
        "sum_slices": lambda: slices("sum_slices", given, settings),
        "train": lambda: training(dtype, settings, given),
    }


def computed(name, dtype, settings, given):
    """What the pages make of a vector, of its settings and inputs as they were before text."""
    known = primitives(dtype, settings, given)
    if name in known:
        return known[name]()
    name, _, way = name.partition(".")
    if not way:
        return optimizer(name, dtype, settings, given)
    return (loss if "t" in given else layer)(name, way, dtype, settings, given)
