"""Make docs/reproducible/vectors.json anew: python tests/make_vectors.py.

The file is for whoever programs docs/reproducible/ in another language: inputs and results, to the
last bit, of everything that is specified there. `computed` is what a backend makes of one of them.
``python tests/make_vectors.py --check`` computes them all with NumPy and says which are otherwise;
it needs nothing but xnet.
"""

import dataclasses
import json
import math
import sys
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace

import numpy as np

import xnet
from xnet import exact, operations, optimizers, random, samples, training, weights
from xnet.formulas import Arrays
from xnet.random import Generator

PATH = Path(__file__).parents[1] / "docs" / "reproducible" / "vectors.json"
VERSION = 1
ABOUT = (
    "Inputs and results of xnet in reproducible mode, to the last bit: "
    "docs/reproducible/vectors.md says how to read them."
)
DTYPES = ("float64", "float32")


# -- numbers as text


def text(value):
    """A number as the file has it: hexadecimal without zeros at its end, or a whole number."""
    if isinstance(value, (int, np.integer)):
        return str(value)
    if not math.isfinite(value):
        return "nan" if math.isnan(value) else "inf" if value > 0 else "-inf"
    digits, _, exponent = float(value).hex().partition("p")
    if "." in digits:
        digits = digits.rstrip("0").rstrip(".")
    return f"{digits}p{exponent}"


def number(word):
    """What `text` wrote."""
    return int(word) if word.lstrip("-").isdigit() else float.fromhex(word)


def written(array):
    """An array as the file has it."""
    array = np.asarray(array)
    if array.dtype.kind == "U":
        return {"shape": list(array.shape), "values": array.ravel().tolist()}
    flat = array.ravel() if array.dtype.kind in "iuO" else array.ravel().astype(np.float64)
    return {"shape": list(array.shape), "values": [text(v) for v in flat]}


def read(array, dtype):
    """An array of the file, of NumPy: numbers with a point are of `dtype`, others integers."""
    words = array["values"]
    if all(word.lstrip("-").isdigit() for word in words) and words:
        kind = np.uint64 if max(map(int, words)) >= 2**63 else np.int64
        return np.asarray([int(word) for word in words], kind).reshape(array["shape"])
    if words and len(words[0]) == 64:
        return np.asarray(words).reshape(array["shape"])
    values = np.asarray([float.fromhex(word) for word in words], np.float64)
    return values.astype(dtype).reshape(array["shape"])


def setting(value):
    """A setting as the file has it: numbers with a point as text, the rest as JSON has it."""
    if isinstance(value, float):
        return text(value)
    if isinstance(value, (list, tuple)):
        return [setting(v) for v in value]
    if isinstance(value, dict):
        return {k: setting(v) for k, v in value.items()}
    return value


def unset(value):
    """What `setting` was of."""
    if isinstance(value, str) and ("0x" in value or value in ("inf", "-inf", "nan")):
        return float.fromhex(value)
    if isinstance(value, list):
        return tuple(unset(v) for v in value)
    if isinstance(value, dict):
        return {k: unset(v) for k, v in value.items()}
    return value


# -- what a backend makes of them


def computed(backend, operation, dtype, settings, inputs):
    """What a backend makes of one: arrays by their names, on the host.

    Parameters
    ----------
    backend
        In reproducible mode.
    operation, dtype, settings
        As the file has them.
    inputs
        By name, as the file has them.
    """
    given = {name: read(array, dtype) for name, array in inputs.items()}
    kind, _, way = operation.partition(".")
    found = HOST[operation](settings, given) if operation in HOST else None
    if found is not None:
        return {name: np.asarray(value) for name, value in found.items()}
    settings = unset(settings)
    with xnet.use_backend(backend), backend.running():
        here = {name: backend.asarray(array) for name, array in given.items()}
        if operation in PRIMITIVES:
            found = PRIMITIVES[operation](backend, settings, here)
        elif operation == "train":
            found = trained(backend, dtype, settings, given)
        elif kind.lower() in optimizers.OPTIMIZERS:
            found = steps(backend, optimizers.OPTIMIZERS[kind.lower()], settings, here)
        else:
            made = operations.OPERATIONS[kind]
            take = losses if issubclass(made, operations.Loss) else layers
            found = take(backend, made, way, dict(settings), here)
    return {
        name: backend.to_numpy(value) if backend.owns(value) else np.asarray(value)
        for name, value in found.items()
    }


PRIMITIVES = {
    "matmul": lambda b, s, i: {"out": b.matmul(i["a"], i["b"])},
    "sum": lambda b, s, i: {"out": b.sum(i["a"], axis=s["axis"])},
    **{
        name: lambda b, s, i, name=name: {"out": getattr(b, name)(i["x"])}
        for name in exact.ELEMENTARY
    },
}


def seeded(settings):
    return Generator([int(v) for v in settings["seed"]])


HOST = {
    "raw": lambda s, i: {"out": seeded(s).raw(s["count"])},
    "uniform": lambda s, i: {"out": seeded(s).uniform(s["count"], s["dtype"])},
    "integers": lambda s, i: {"out": seeded(s).integers(int(s["bound"]), s["count"])},
    "permutation": lambda s, i: {"out": seeded(s).permutation(s["count"])},
    "normal": lambda s, i: {"out": seeded(s).normal(s["count"])},
    "quantile": lambda s, i: {"out": random._quantile(i["q"])},
    "product_slices": lambda s, i: pair(exact.product_slices, i["terms"], s["dtype"]),
    "sum_slices": lambda s, i: pair(exact.sum_slices, i["terms"], s["dtype"]),
}
"""What is computed on the host, with whole numbers or in float64."""


def pair(function, terms, dtype):
    found = np.asarray([function(int(n), dtype) for n in terms])
    return {"slices": found[:, 0], "bits": found[:, 1]}


def layers(backend, made, way, settings, here):
    """An operation's forward, or its backward after that."""
    m = Arrays(
        backend,
        training=settings.pop("training", False),
        state={name: here[name] for name in made.state},
        draw=lambda shape, dtype: backend.to_numpy(here["u"]),
    )
    operation = made(**settings)
    parameters = [here[name] for name in made.parameters]
    y = backend.run(operation, here["x"], *parameters, m=m)  # backward is of what this gave
    if way == "forward":
        return {"y": y, **{name: m.moved.get(name, m.state[name]) for name in made.state}}
    found = backend.run_backward(operation, here["dout"], here["x"], y, *parameters, m=m)
    return dict(zip(["dx", *(f"d{name}" for name in made.parameters)], found, strict=True))


def losses(backend, made, way, settings, here):
    """A loss's rows, their mean, the prediction; or the gradient of the mean."""
    loss = made(**settings)
    t = loss.targets(backend.maths, here["t"])
    if way == "backward":
        return {"dx": backend.loss_and_delta(loss, here["x"], t)[1]}
    found = {
        "y": backend.row_losses(loss, here["x"], t),
        "loss": backend.loss_and_delta(loss, here["x"], t)[0],
    }
    if settings:
        found["targets"] = t
    if "predict" in vars(made):
        found["prediction"] = backend.predicted(loss, here["x"])
    return found


def steps(backend, made, settings, here):
    """An optimizer's steps: the n-th of these n, with these gradients."""
    optimizer = made(**settings)
    W, memory, found = here["W"], [here[f"memory{k}"] for k in range(made.slots)], []
    for row, n in enumerate(backend.to_numpy(here["n"]).tolist()):
        W, *memory = backend.step(optimizer, n, W, here["g"][row, :], memory)
        found.append([backend.to_numpy(array) for array in (W, *memory)])
    names = ["W", *(f"memory{k}" for k in range(made.slots))]
    return {name: np.stack(of) for name, of in zip(names, zip(*found, strict=True), strict=True)}


def trained(backend, dtype, settings, given):
    """A training run: the mini-batches, losses, and parameters and state before and after each."""
    parts = [operations.OPERATIONS[name](**facts) for name, facts in settings["layers"]]
    name, facts = settings["loss"]
    loss = operations.OPERATIONS[name](**facts)
    name, facts = settings["optimizer"]
    optimizer = optimizers.OPTIMIZERS[name.lower()](**facts)
    net = xnet.Network(parts, loss, seed=settings["seed"], dtype=dtype, backend=backend)
    facts = {"batch_size": settings["batch_size"], "seed": settings["batch_seed"]}
    run = training.Training(net, given["x"], given["t"], optimizer=optimizer, **facts)
    batches = samples.minibatches(len(given["x"]), facts["batch_size"], facts["seed"])
    found = {f"batch{k + 1}": next(batches) for k in range(settings["steps"])}
    kept = []
    for k in range(settings["steps"] + 1):
        if k:
            run.run(iterations=1, progress=False)
        arrays = dict(net.params) | {f"state.{name}": array for name, array in net.state.items()}
        kept.append({name: np.array(backend.to_numpy(a)) for name, a in arrays.items()})
    found["loss"] = np.asarray(run.history.loss)
    found |= {name: np.stack([arrays[name] for arrays in kept]) for name in kept[0]}
    return found | {"sha256": np.asarray(weights.sha256(net))}


# -- the inputs


def special(dtype):
    """The ends of a dtype's range, zeros, infinities, NaN."""
    info = np.finfo(dtype)
    small, tiny, large = (
        float(v) for v in (info.smallest_subnormal, info.smallest_normal, info.max)
    )
    ends = [small, -small, -3 * small, tiny - small, -tiny, large, -large]
    return [0.0, -0.0, math.inf, -math.inf, math.nan, *ends]


def neighbours(value, dtype):
    """A number and the two beside it."""
    one = np.asarray(value, dtype)
    return [float(np.nextafter(one, -np.inf, dtype=dtype)), float(one),
            float(np.nextafter(one, np.inf, dtype=dtype))]  # fmt: skip


class Made:
    """The vectors, one after the other; numbers come from a stream of their own."""

    def __init__(self, backend):
        self.backend, self.vectors, self.names = backend, [], set()

    def add(self, name, operation, dtype, settings=None, **inputs):
        """One more vector: its results are what the backend makes of the inputs."""
        settings = setting(settings or {})
        inputs = {
            k: written(np.asarray(v) if np.asarray(v).dtype.kind in "iu" else np.asarray(v, dtype))
            for k, v in inputs.items()
        }
        name = f"{operation}, {name}, {dtype}" if name else f"{operation}, {dtype}"
        assert name not in self.names, name
        self.names.add(name)
        outputs = computed(self.backend, operation, dtype, settings, inputs)
        self.vectors.append(
            {
                "name": name,
                "operation": operation,
                "dtype": dtype,
                "settings": settings,
                "inputs": inputs,
                "outputs": {k: written(v) for k, v in outputs.items()},
            }
        )


def short(x):
    """Numbers of 32 bits: their products are rounded, and the file is shorter."""
    m, n = np.frexp(x)
    return np.ldexp(np.rint(np.ldexp(m, 32)), n - 32)


def normal(rng, shape):
    """Normal numbers of 32 bits."""
    return short(rng.normal(shape))


def of_all_sizes(rng, shape, dtype, span):
    """Normal numbers times powers of two up to `span` from 1."""
    return np.ldexp(short(rng.normal(shape)), rng.integers(2 * span + 1, shape) - span).astype(
        dtype
    )


def matmul_vectors(made):
    for dtype in DTYPES:
        rng, info = Generator(1), np.finfo(dtype)
        wide = {"float32": 40, "float64": 70}[dtype]
        made.add("ordinary", "matmul", dtype, a=normal(rng, (3, 5)), b=normal(rng, (5, 3)))
        made.add("one term", "matmul", dtype, a=normal(rng, (2, 1)), b=normal(rng, (1, 2)))
        a, b = of_all_sizes(rng, (3, 6), dtype, wide), of_all_sizes(rng, (6, 3), dtype, wide)
        made.add("mixed magnitudes", "matmul", dtype, a=a, b=b)
        tiny = normal(rng, (2, 3)) * 1000 * float(info.smallest_subnormal)
        made.add("subnormal", "matmul", dtype, a=tiny, b=normal(rng, (3, 2)))
        small = np.ldexp(normal(rng, (2, 3)), info.minexp // 2 - info.nmant // 2)
        made.add("subnormal results", "matmul", dtype, a=small, b=small.T[:, ::-1])
        large = normal(rng, (2, 3)) * (float(info.max) / 8)
        made.add("huge", "matmul", dtype, a=large, b=normal(rng, (3, 2)))
        made.add("overflow", "matmul", dtype, a=large, b=large.T)
        if dtype == "float64":  # beyond 2^400 and below 2^-400, with results of all bits
            low, high = normal(rng, (2, 3)) * 2.0**-450, normal(rng, (3, 2)) * 2.0**450
            made.add("far down", "matmul", dtype, a=low, b=high.T[:, ::-1].T * 2.0**-900)
            made.add("far up", "matmul", dtype, a=low * 2.0**900, b=high)
            made.add("far down and up", "matmul", dtype, a=low, b=high)
        specials = [[1, math.inf, 0], [-math.inf, 1, 2], [math.nan, 0, -0.0], [0, -0.0, 0]]
        b = [[1, -1, 0, math.inf], [2, -0.0, math.inf, -math.inf], [0, math.nan, 1, 3]]
        made.add("infinities, NaN, zeros", "matmul", dtype, a=specials, b=b)
        small = {"float32": 2.0**-53, "float64": 2.0**-79}[dtype]  # half of the last slice's unit
        a = [[1, small], [1, 3 * small], [1, -small], [1, 1.25 * small]]
        made.add("halfway to the next unit", "matmul", dtype, a=a, b=[[0.0], [1.0]])
        made.add("nothing to add", "matmul", dtype, a=np.zeros((2, 0)), b=np.zeros((0, 2)))
        for terms in [{"float32": 130, "float64": 100}[dtype]]:
            a, b = np.zeros((1, terms)), np.zeros((terms, 1))
            places = Generator(terms).permutation(terms)[:12]
            a[0, places] = of_all_sizes(rng, 12, dtype, wide // 2)
            b[places, 0] = of_all_sizes(rng, 12, dtype, wide // 2)
            made.add(f"{terms} terms, most of them 0", "matmul", dtype, a=a, b=b)


def sum_vectors(made):
    for dtype in DTYPES:
        rng, info = Generator(2), np.finfo(dtype)
        wide = {"float32": 40, "float64": 70}[dtype]
        made.add("ordinary, of all", "sum", dtype, {"axis": None}, a=normal(rng, (3, 5)))
        for axis in (0, 1):
            a = of_all_sizes(rng, (4, 5), dtype, wide)
            made.add(f"mixed magnitudes, axis {axis}", "sum", dtype, {"axis": axis}, a=a)
        tiny = normal(rng, (2, 4)) * 1000 * float(info.smallest_subnormal)
        made.add("subnormal", "sum", dtype, {"axis": 1}, a=tiny)
        if dtype == "float64":
            made.add("far down", "sum", dtype, {"axis": 0}, a=normal(rng, 5) * 2.0**-450)
        large = normal(rng, (2, 6)) * (float(info.max) / 8)
        made.add("huge", "sum", dtype, {"axis": 1}, a=large)
        made.add("overflow", "sum", dtype, {"axis": 0}, a=[float(info.max) / 2] * 3 + [1.0])
        inf, nan = math.inf, math.nan
        a = [
            [1, inf, 2],
            [-inf, 3, 1],
            [inf, -inf, 0],
            [nan, 1, inf],
            [0, -0.0, 0],
            [-0.0, -0.0, -0.0],
        ]
        made.add("infinities, NaN, zeros", "sum", dtype, {"axis": 1}, a=a)
        made.add("one term", "sum", dtype, {"axis": 0}, a=[[-0.0, 1.5, special(dtype)[5]]])
        made.add("nothing to add", "sum", dtype, {"axis": 0}, a=np.zeros((0, 2)))
        half = float(info.eps) / 2
        a = [
            [1, half, 0],
            [1, half, half / 2**20],
            [1, half, -half / 2**20],
            [1 + 2 * half, half, 0],
        ]
        made.add("halfway", "sum", dtype, {"axis": 1}, a=a)
        small = {"float32": 2.0**-52, "float64": 2.0**-103}[dtype]
        a = [[1, small, -1], [1, 3 * small, -1], [1, -small, -1], [1, 1.25 * small, -1]]
        made.add("halfway to the next unit", "sum", dtype, {"axis": 1}, a=a)
        a = np.zeros(300)
        a[::29] = of_all_sizes(rng, 11, dtype, wide // 2)
        made.add("300 terms, most of them 0", "sum", dtype, {"axis": 0}, a=a)


def slices_vectors(made):
    lengths = [*range(1, 10), 16, 17, 32, 33, 100, 784, 1000, 1638, 1639, 3276, 3277, 6553, 6554]
    lengths += [10**5, 2**21, 2**21 + 1, 10**7]
    for dtype in DTYPES:
        for operation in ("product_slices", "sum_slices"):
            made.add("", operation, dtype, {"dtype": dtype}, terms=lengths)


SEARCHED = {
    "exp": """
        0x1.33955b3c113fep+9 -0x1.39af062c8dd4fp+8 0x1.a40c14bca2a92p+6 -0x1.5bd28b910af9p-2
        -0x1.5ee7dfe5d2a89p+9 -0x1.3e80505cc4883p+9 -0x1.4523eb0295e9p-2 0x1.6230d6054922ep+9
        -0x1.2b52451f49e96p+10 -0x1.595c4f26141ap+9 -0x1.5b9e2f5574bb2p+9 0x1.129ffa5cba18ep+9
        0x1.62b7d369a5aa8p+9
    """,
    "expm1": """
        0x1.94cc46ad56a16p+4 -0x1.56097f82b3466p-2 -0x1.57d9531b722afp-2 0x1.5a92d6d005c93p+5
        0x1.e6aa2aa281568p+2 0x1.d7570faa454f2p+4 -0x1.61d7aa1afcdf1p-2 0x1.446493d10b8f6p+5
    """,
    "log": """
        0x1.6e4104223d347p+0 0x1.66f0e7df8802fp+0 0x1.6b26091badf22p-1 0x1.6a09e667f3bcbp+0
        0x1.6a09e667f3bcep+0 0x1.7386617adbb23p+983 0x1.20e3f27c9e413p-563 0x1.6fe4b3bcbbebp-1
        0x1.73a0a251b20b6p-954
    """,
    "log1p": """
        -0x1.29e0b57997675p-2 0x1.a28d63ffdeeb9p-2 0x1.6a09e665f3bcdp+31 0x1.a827999fcef2cp-2
        0x1.addce1c8110acp+32 -0x1.2bcdb65dc292p-2 -0x1.3174ef9ce6133p-2 -0x1.6568406ce13c1p-2
    """,
    "quantile": """
        0x1.358ec391159ep-7 0x1.ffffffff39da3p-2 0x1.fffffffffffd3p-2 0x1.fffffffffff5fp-2
        0x1.ff8fc0f121a71p-2 0x1.9bf44d0178e57p-2 0x1.fffffffff9a09p-2 0x1.fffffffffc969p-2
        0x1.ffffffe8d637dp-2 -0x1.d254133b3b6b4p-4 0x1.50b90f73346ecp-4 0x1.ffffa610fe727p-2
        -0x1.eb51ee53d6577p-2 0x1.fffffffffd4f3p-2 0x1.01cb34054dd28p-5 0x1.fffffff86173bp-2
        0x1.766fcdff6395p-6 0x1.da1fd492712p-11 0x1.2b7b993c9bdap-7 0x1.ffffffed8900dp-2
        0x1.fffffffd014b7p-2 0x1.fffffffffe615p-2 0x1.fffffffffffd5p-2
    """,
}
"""Arguments at which a flipped bit of a constant shows: the lowest that some of 10^9 tried show.

They are few, for where one shows others often do.
"""

EDGES = {
    "exp": {"float64": [-745.1332191019412, -708.3964185322641, 709.782712893384],
            "float32": [-103.97208, -87.33655, 88.72284]},
    "expm1": {"float64": [-40.0, 40.0, 709.782712893384], "float32": [-40.0, 40.0, 88.72284]},
    "log": {dtype: [0.5, 1.0, 0.7071067811865476] for dtype in DTYPES},
    "log1p": {dtype: [-1.0, -0.5, 1.0] for dtype in DTYPES},
}  # fmt: skip
"""Where one formula ends and another begins, or the range does."""

ARGUMENTS = {
    "exp": [-750.0, -746.0, -104.0, -20.0, 1.0, 89.0, 710.0, 711.0, 1e-8, 1e-17],
    "expm1": [-800.0, -37.0, -1.0, -1e-5, 1e-10, 0.25, 1.0, 41.0, 88.5],
    "log": [2.0, 1.5, 1e-30, 1e30, 10.0, 1e-3, -1.0],
    "log1p": [-1.5, -0.25, 1e-3, 1e-10, 1e-17, 2.0, 1e10, 1e30],
}


def searched(name):
    """Those of one function."""
    return [float.fromhex(word) for word in SEARCHED[name].split()]


def elementary_vectors(made):
    for dtype in DTYPES:
        info = np.finfo(dtype)
        for name, arguments in ARGUMENTS.items():
            rng = Generator(3)
            edges = [v for edge in EDGES[name][dtype] for v in neighbours(edge, dtype)]
            made.add("at the edges", name, dtype, x=[*special(dtype), *edges, *arguments])
            x = np.concatenate([rng.normal(6) * (30 if name == "exp" else 1), rng.normal(6) * 0.3])
            x = abs(x) if name == "log" else np.maximum(x, -0.9) if name == "log1p" else x
            if name == "log":
                x[:4] = x[:4] * 1000 * float(info.smallest_subnormal)
            made.add("ordinary", name, dtype, x=x)
            if dtype == "float64":
                made.add("searched for", name, dtype, x=searched(name))


def random_vectors(made):
    f64 = "float64"
    for seed in ([0], [1], [2**32 - 1], [2**32], [2**200 + 12345], [3, 4]):
        settings = {"seed": [str(s) for s in seed], "count": 3}
        made.add(f"seed {', '.join(settings['seed'])}", "raw", f64, settings)
    for dtype in DTYPES:
        made.add("", "uniform", dtype, {"seed": ["5"], "count": 6, "dtype": dtype})
    for bound in (1, 2, 3, 10, 60_000, 3 * 2**61, 2**63):
        settings = {"seed": ["6"], "count": 5, "bound": str(bound)}
        made.add(f"below {bound}", "integers", f64, settings)
    for count in (0, 1, 2, 12):
        made.add(f"of {count}", "permutation", f64, {"seed": ["7"], "count": count})
    made.add("", "normal", f64, {"seed": ["8"], "count": 20})
    q = [2.0**-54, 0.425, -0.425, math.nextafter(0.425, 1), 0.25, -0.4375, 0.5 - 2.0**-54]
    q += [0.5 - math.exp(-25) + k * 2.0**-54 for k in range(-2, 3)]
    q += [0.5 - 2.0**-k for k in range(4, 54, 7)]
    made.add("at the edges", "quantile", f64, q=q)
    made.add("searched for", "quantile", f64, q=searched("quantile"))
    made.add("ordinary", "quantile", f64, q=Generator(9).uniform(16) - 0.5 + 2.0**-54)


def altered(cls):
    """Its settings: the defaults, and other numbers where it has any."""
    fields = dataclasses.fields(cls)
    numbers = {f.name: 0.7 * f.default + 0.05 for f in fields if type(f.default) is float}
    return [{}, numbers] if numbers else [{}]


SIZES = {"units": 3, "inputs": 3, "outputs": 2}


def arguments_of(cls, dtype, rng):
    """Numbers for an operation: its kinks, the ends of the range, ordinary ones."""
    kinks = cls(**{f: SIZES[f] for f in sizes(cls)}).kinks
    edges = [v for kink in kinks for v in neighbours(kink, dtype)]
    x = [*special(dtype), *edges, 20.0, -20.0, -100.0, 700.0, -800.0]
    return np.asarray([*x, *normal(rng, 6) * 2])


def sizes(cls):
    return [f.name for f in dataclasses.fields(cls) if f.default is dataclasses.MISSING]


def operation_vectors(made):
    for cls in ORDER:
        required = {name: SIZES[name] for name in sizes(cls)}
        for more in altered(cls) if cls.fuses != "product" else [{}]:
            for dtype in DTYPES:
                rng = Generator([10, SEEDS.get(cls.__name__, 0)])
                if issubclass(cls, operations.Loss):
                    loss_vectors(made, cls, dtype, more, rng)
                elif cls.fuses == "pointwise":
                    x = [0.0, -0.0, *normal(rng, 8) * 2] if more else arguments_of(cls, dtype, rng)
                    x = np.asarray(x)[None, :]
                    both_ways(made, "other settings" if more else "", cls, dtype, more, rng, x=x)
                else:
                    layer_vectors(made, cls, dtype, required | more, rng, bool(more))


SEEDS = {"GELU": 6, "SoftmaxWithLoss": 3, "BinaryCrossEntropy": 5, "LayerNorm": 1, "Nadam": 1}
"""Of what is drawn for an operation: where a mistake shows with a few numbers, see mutants.py."""

ORDER = [cls for cls in operations.OPERATIONS.values() if cls.__module__ == operations.__name__]


def both_ways(made, name, cls, dtype, settings, rng, **inputs):
    """Forward, and backward from what that gave."""
    made.add(name, f"{cls.__name__}.forward", dtype, settings, **inputs)
    dout = normal(rng, tuple(made.vectors[-1]["outputs"]["y"]["shape"]))
    dout.ravel()[:: max(1, dout.size // 3)] = 0.0
    last = dout[-1:] if len(dout) > 1 else dout[:, -2:]
    last[...] = normal(rng, last.shape) * 1000 * float(np.finfo(dtype).smallest_subnormal)
    made.add(name, f"{cls.__name__}.backward", dtype, settings, dout=dout, **inputs)


def rows_of(kinds, dtype, rng, columns):
    """Rows of numbers of these kinds."""
    info = np.finfo(dtype)
    kind = {
        "ordinary": lambda n: normal(rng, (n, columns)) * 2,
        "far apart": lambda n: np.resize([0.0, -100.5, -741.0], (n, columns)),
        "mixed magnitudes": lambda n: of_all_sizes(rng, (n, columns), dtype, 12),
        "subnormal": lambda n: normal(rng, (n, columns)) * 1000 * float(info.smallest_subnormal),
        "huge": lambda n: normal(rng, (n, columns)) * (float(info.max) / 64),
        "zeros": lambda n: np.resize([0.0, -0.0, 0.0], (n, columns)),
        "1 apart": lambda n: np.resize([1.0, 2.0**-60, 0.0], (n, columns)),
        "small": lambda n: normal(rng, (n, columns)) / 2**9,
        "inf": lambda n: np.resize([1.0, math.inf, 2.0, 3.0], (n, columns)),
        "-inf": lambda n: np.resize([1.0, 2.0, -math.inf, 5.0], (n, columns)),
        "all -inf": lambda n: np.full((n, columns), -math.inf),
        "NaN": lambda n: np.resize([math.nan, 1.0, 2.0, 3.0], (n, columns)),
    }
    return np.concatenate([kind[name](n) for name, n in kinds.items()])


FINITE = {
    "ordinary": 2,
    "mixed magnitudes": 1,
    "1 apart": 1,
    "far apart": 1,
    "small": 1,
    "subnormal": 1,
}
NOT_FINITE = {"huge": 1, "inf": 1, "-inf": 1, "all -inf": 1, "NaN": 1}
MIXED = [{"ordinary": 3}, {"small": 3}, {"mixed magnitudes": 2, "subnormal": 1},
         {"inf": 1, "NaN": 1, "huge": 1}]  # fmt: skip
"""For what mixes the rows of a batch."""


def layer_vectors(made, cls, dtype, settings, rng, other):
    features = settings.get("inputs", settings.get("units", 3))
    shapes = {name: tuple(settings[size] for size in of) for name, of in cls.parameters.items()}
    by_rows = cls.fuses == "rows" or cls.__name__ == "LayerNorm"
    for mode in [True, False] if cls.random or cls.mixes else [None]:
        for kinds in [FINITE, NOT_FINITE] if by_rows else MIXED:
            if (other or mode is False) and kinds not in (FINITE, MIXED[0]):
                continue
            if (not cls.mixes and kinds in MIXED[1:-1]) or (other and mode is False):
                continue
            if kinds is MIXED[1] and dtype == "float32":  # what it tells is far down in eps
                continue
            x = rows_of(kinds, dtype, rng, features)
            inputs = {"x": x} | {name: normal(rng, shape) for name, shape in shapes.items()}
            if cls.random:
                x[-1] = x[-1] * float(np.finfo(dtype).smallest_subnormal) * 1000
                inputs["u"] = rng.uniform(x.shape, dtype)
                inputs["u"][0, 0] = settings.get("ratio", cls.ratio)
            for name, (of, _) in cls.state.items():
                shape = tuple(settings[size] for size in of)
                drawn = normal(rng, shape)
                inputs[name] = drawn if name == "mean" else abs(drawn)
            words = ["finite" if kinds is FINITE else ", ".join(kinds)]
            words += ["other settings"] * other + {True: ["training"], False: ["predicting"]}.get(
                mode, []
            )
            more = {} if mode is None else {"training": mode}
            both_ways(made, ", ".join(words), cls, dtype, settings | more, rng, **inputs)


def loss_vectors(made, cls, dtype, settings, rng):
    if cls is operations.SoftmaxWithLoss and settings:
        settings = settings | {"class_weights": (0.5, 1.1, 2.0)}
    for kinds in [FINITE] if settings else [FINITE, NOT_FINITE]:
        x = rows_of(kinds, dtype, rng, 3)
        t = np.zeros(x.shape)
        t[np.arange(len(x)), rng.integers(3, len(x))] = 1.0
        for row in range(3):  # probabilities, and a label that is 0
            t[row] = short(rng.uniform(3)) if kinds is FINITE else t[row]
        t[1, 2] = 0.0
        if kinds is FINITE:
            t[3] = [1.0, 0.0, 0.0]  # where numbers are 1 apart, the margin of Hinge
        if not cls.classes and cls is not operations.BinaryCrossEntropy:
            t[0] = normal(rng, 3)
        if not cls.classes:
            t[-1] = [x[-1, 0], 0.0, 0.0]
        words = [
            "finite" if kinds is FINITE else "not finite",
            *["other settings"] * bool(settings),
        ]
        for way in ("forward", "backward"):
            made.add(", ".join(words), f"{cls.__name__}.{way}", dtype, settings, x=x, t=t)


def optimizer_vectors(made):
    own = [cls for cls in optimizers.OPTIMIZERS.values() if cls.__module__ == optimizers.__name__]
    for cls in own:
        numbers = {
            f.name: 0.7 * f.default + 0.05
            for f in dataclasses.fields(cls)
            if type(f.default) is float and f.name != "weight_decay"
        }
        variants = {"": {}, "other settings, weight decay": numbers | {"weight_decay": 7.3}}
        if cls is optimizers.Adam:
            variants["eps before the correction"] = {"epsilon_hat": True, "eps": 1e-7}
        for name, settings in variants.items():
            for dtype in DTYPES:
                rng, info = Generator([11, SEEDS.get(cls.__name__, 0)]), np.finfo(dtype)
                small, large = float(info.smallest_subnormal), float(info.max)
                # Where W is 0, or small, nothing of the step is lost in the difference.
                W = [*normal(rng, 1), *normal(rng, 1) / 2**12, 0, 0, -0.0, 3 * small, large, 1]
                g = normal(rng, (3, 8)) / 8
                g[:, 3] = g[:, 3] / 2**22
                g[:, 4], g[:, 5], g[:, 6] = -0.0, 5 * small, large / 4
                g[1, 7], g[2, 7] = math.inf, math.nan
                memory = {f"memory{k}": np.zeros(8) for k in range(cls.slots)}
                if cls is optimizers.Lion:
                    beta1 = settings.get("beta1", cls.beta1)
                    memory["memory0"][3], g[0, 3] = cancelling(rng, beta1, 1 - beta1, dtype)
                made.add(name, cls.__name__, dtype, settings, W=W, g=g, n=[1, 39, 1000], **memory)


def cancelling(rng, a, b, dtype):
    """Numbers p and q of which a p + b q is 0 as rounded, and would not be if it were fused."""
    kind = np.dtype(dtype).type
    a, b = kind(a), kind(b)
    while True:
        p = kind(rng.normal())
        q = -(a * p) / b
        exact = [Fraction(float(u)) * Fraction(float(v)) for u, v in ((a, p), (b, q))]
        products = [Fraction(float(u * v)) for u, v in ((a, p), (b, q))]
        off = [one - rounded for one, rounded in zip(exact, products, strict=True)]
        if sum(products) == 0 and all(off):
            return float(p), float(q)


def training_vectors(made):
    def affine(inputs, outputs, std=0.01):
        return ["Affine", {"inputs": inputs, "outputs": outputs, "weight_init_std": std}]

    two = [affine(5, 6), ["Sigmoid", {}], affine(6, 3)]
    between = [["BatchNorm", {"units": 4}], ["ReLU", {}], ["Dropout", {"ratio": 0.3}]]
    deep = [affine(4, 4, "he"), *between, affine(4, 3, "xavier")]
    runs = {
        "5-6-3, sigmoid, SGD": (5, two, ["SGD", {"lr": 0.1}], 5),
        "5-6-3, sigmoid, Adam": (5, two, ["Adam", {"lr": 0.01}], 4),
        "4-4-3, batch norm, ReLU, dropout, AdamW": (4, deep, ["AdamW", {"lr": 0.01}], 3),
    }
    for name, (features, stack, optimizer, count) in runs.items():
        for dtype in DTYPES:
            rng = Generator(12)
            settings = {"layers": stack, "loss": ["SoftmaxWithLoss", {}], "optimizer": optimizer,
                        "seed": 0, "batch_size": 4, "batch_seed": 1, "steps": count}  # fmt: skip
            x, t = normal(rng, (10, features)), rng.integers(3, 10)
            made.add(name, "train", dtype, settings, x=x, t=t)


def constants():
    """Every constant of the specification, by the operation that it is of."""
    letters = {"ab": random.CENTRE, "cd": random.MIDDLE, "ef": random.FAR}
    quantile = {
        f"{letter}{k}": c
        for pair, of in letters.items()
        for letter, values in zip(pair, of, strict=True)
        for k, c in enumerate(values[::-1])
    }
    found = {
        "exp": {
            "LOG2_E": exact.LOG2_E, "LN2_HIGH": exact.LN2_HIGH, "LN2_LOW": exact.LN2_LOW,
            "SHIFTER": exact.SHIFTER, "LOWEST": exact.EXP_LOWEST, "HIGHEST": exact.EXP_HIGHEST,
            **{f"c{k}": c for k, c in zip(range(13, 1, -1), exact.EXP_COEFFICIENTS, strict=True)},
        },
        "log": {
            "LN2_HIGH": exact.LN2_HIGH, "LN2_LOW": exact.LN2_LOW, "SQRT_HALF": exact.SQRT_HALF,
            **{f"L{k}": c for k, c in zip(range(11, 0, -1), exact.LOG_COEFFICIENTS, strict=True)},
        },
        "quantile": quantile,
    }  # fmt: skip
    return {of: {k: text(v) for k, v in values.items()} for of, values in found.items()}


def content(backend):
    """What the file holds."""
    made = Made(backend)
    for part in (
        slices_vectors,
        matmul_vectors,
        sum_vectors,
        elementary_vectors,
        random_vectors,
        operation_vectors,
        optimizer_vectors,
        training_vectors,
    ):
        part(made)
    return SimpleNamespace(constants=constants(), vectors=made.vectors)


def dumped(made):
    """The file's text: a line for each vector."""
    rows = ",\n".join(json.dumps(v, separators=(",", ":")) for v in made.vectors)
    head = [("version", VERSION), ("about", ABOUT), ("constants", made.constants)]
    return (
        "{"
        + "".join(f"{json.dumps(k)}: {json.dumps(v)},\n" for k, v in head)
        + (f'"vectors": [\n{rows}\n]}}\n')
    )


def differences(backend, vectors):
    """The names of the vectors that a backend computes otherwise, with the first such output."""
    for v in vectors:
        found = computed(backend, v["operation"], v["dtype"], v["settings"], v["inputs"])
        for name, expected in v["outputs"].items():
            if name not in found or written(found[name]) != expected:
                yield v["name"], name
                break


def main():
    backend = xnet.resolve("numpy", reproducible=True)
    if sys.argv[1:] == ["--check"]:
        wrong = list(differences(backend, json.loads(PATH.read_text())["vectors"]))
        sys.exit("\n".join(f"{name}: {output}" for name, output in wrong) or 0)
    PATH.write_text(dumped(content(backend)))


if __name__ == "__main__":
    main()
