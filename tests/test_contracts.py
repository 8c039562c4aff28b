"""Each contract of a backend is caught where one backend breaks just that one."""

import contextlib
import warnings
from types import SimpleNamespace

import numpy as np
import pytest

import xnet
from xnet import backend as registry
from xnet import operations
from xnet.arithmetic import unchecked
from xnet.backend import Backend
from xnet.testing import parity
from xnet.testing.contracts import CONTRACTS


class Sound(Backend):
    """NumPy's arrays, and every promise kept."""

    name = "sound"
    xp = np

    def owns(self, array):
        return isinstance(array, np.ndarray | np.generic)

    def writable(self, array):
        return array.flags.writeable

    def running(self):
        return np.errstate(all="ignore")


class Namespace:
    """NumPy's, with functions of one's own."""

    def __init__(self, **own):
        vars(self).update(own)

    def __getattr__(self, name):
        return getattr(np, name)


TRIALS = {trial.name: trial for trial in parity.trials({}, {})}
"""The contracts, and what operations are made of."""
for operation in (operations.Softmax(), operations.Affine(parity.D, parity.M)):
    TRIALS[type(operation).__name__] = parity.operation_trial(operation)


ROWS = [TRIALS[name] for name in CONTRACTS]


@pytest.fixture
def broken(monkeypatch):
    """What `parity` calls broken of a backend that has these members besides `Sound`'s."""

    load = registry._load.__wrapped__  # which keeps nothing

    def broken(members, base=Sound, trials=ROWS, dtypes=("float64",)):
        plug_in = type("PlugIn", (base,), {"name": "plug-in", **members})
        entry = SimpleNamespace(name="plug-in", value="here:PlugIn", load=lambda: plug_in)
        entries = {**registry._registry(), "plug-in": entry}  # over that of a call before
        monkeypatch.setattr(registry, "_registry", lambda: entries)
        monkeypatch.setattr(registry, "_load", load)
        monkeypatch.setattr(registry, "_instances", {})
        with unchecked():  # as the command does: that it is refused is a row
            pairs = [
                [xnet.resolve(name, mode) for name in ("plug-in", "numpy")]
                for mode in (True, False)
            ]
            return [
                v
                for trial in trials
                for pair in pairs
                for dtype in dtypes
                for kind in trial.numbers
                if not (
                    v := parity.verdict(trial, *pair, dtype, parity.numbers(kind, dtype), kind)
                ).kept
            ]

    return broken


def test_a_sound_backend_breaks_nothing(broken):
    assert broken({}, trials=TRIALS.values(), dtypes=("float32", "float64")) == []


@pytest.mark.parametrize(
    "members",
    [
        {"threads": lambda self: 1},
        {"writable": lambda self, array: False},  # as of arrays that nothing can change
        {"takes": lambda self, run: 1},
    ],
)
def test_a_backend_may_answer_otherwise_than_that(broken, members):
    assert broken(members) == []


def forgets_its_mode(self, device=None, *, reproducible=False):
    Backend.__init__(self, device)


def forgets_its_device(self, device=None, *, reproducible=False):
    Backend.__init__(self, None, reproducible=reproducible)


def of_one_mode(self, device=None, *, reproducible=False):
    Backend.__init__(self, device, reproducible=True)


@classmethod
def taken_by_now(cls):
    """As a device that serves so many and no more: there are two modes of two backends."""
    return "it is taken" if len(registry._instances) == 4 else None


OTHER_DEVICE = {
    "device_count": classmethod(lambda cls: 2),
    "label": property(lambda self: f"plug-in:{1 - self.device}"),
}


class Other(np.ndarray):
    """What another library may make."""


def owned_where(holds):
    """An `owns` that knows its own arrays only where `holds` does, too."""
    return lambda self, array: Sound.owns(self, array) and bool(holds(array))


NO_OTHER = owned_where(lambda array: not isinstance(array, Other))


def copies(self, values, dtype=None, name="values"):
    return np.array(Backend.asarray(self, values, dtype, name))


def of_one_dtype(self, values, dtype=None, name="values"):
    return Backend.asarray(self, values, name=name)


def of_real_parts(self, values, dtype=None, name="values"):
    return np.asarray(np.real(values), dtype)


def of_nobody(self, values, dtype=None, name="values"):
    return Backend.asarray(self, values, dtype)


def spoilt_where(holds, spoil=lambda found: found + 1):
    """An `asarray` that gives other numbers of such values as these."""

    def asarray(self, values, dtype=None, name="values"):
        found = Backend.asarray(self, values, dtype, name)
        return spoil(found) if holds(values) else found

    return asarray


def backwards(values):
    return isinstance(values, np.ndarray) and min(values.strides, default=0) < 0


def with_gaps(values):
    return isinstance(values, np.ndarray) and values.strides[-1:] > (values.itemsize,)


def empty(values):
    return isinstance(values, np.ndarray) and not values.size


def fails(found):
    raise ValueError("min() of nothing")


def listed(values):
    return isinstance(values, list)


def taken_where(holds):
    """An `asarray` that leaves it to NumPy what such values are."""

    def asarray(self, values, dtype=None, name="values"):
        if holds(values):
            return np.asarray(np.asarray(values), dtype)
        return Backend.asarray(self, values, dtype, name)

    return asarray


def in_float32(self, values, dtype=None, name="values"):
    """As JAX does unless told otherwise."""
    found = Backend.asarray(self, values, dtype, name)
    return found.astype("float32") if found.dtype == "float64" else found


def without_strides(self, values, dtype=None, name="values"):
    """The memory as it is, as a library would take it that was handed an address."""
    found = Backend.asarray(self, values, dtype, name)
    return found.ravel(order="K").reshape(found.shape)


def changing(change):
    """An `asarray` that changes the numbers that come from elsewhere."""

    def asarray(self, values, dtype=None, name="values"):
        found = Backend.asarray(self, values, dtype, name)
        return change(found) if found.dtype.kind == "f" else found

    return asarray


def without_subnormals(a):
    return np.where(abs(a) < np.finfo(a.dtype).smallest_normal, a.dtype.type(0), a)


def unavailable(self):
    raise OSError("the device is gone")


def of_some(self, array):
    return np.asarray(array) if array.size else fails(array)


class Ignoring(np.ndarray):
    """Writing to it is no error, and does nothing."""

    def __setitem__(self, where, values):
        pass


def ignoring_copies(values, *, copy=None, **options):
    found = np.asarray(values, copy=copy, **options)
    return found.view(Ignoring) if copy else found


def not_silent(kind):
    return lambda self: np.errstate(**{"all": "ignore", kind: "raise"})


@contextlib.contextmanager
def silent_for_ever(self):
    np.seterr(all="ignore")
    yield


def unchecked_one_hot(self, t, classes, dtype):
    return np.eye(classes, dtype=dtype)[t]


def one_hot_of_one_more(self, t, classes, dtype):
    return Backend.one_hot(self, t, classes + 1, dtype)[..., :-1]


def one_hot_of_flat_labels(self, t, classes, dtype):
    return Backend.one_hot(self, t.ravel(), classes, dtype)


def one_hot_in_bytes(self, t, classes, dtype):
    """The classes in the labels' own dtype, which may not hold so many."""
    Backend.one_hot(self, t, classes, dtype)
    return (t[..., None] == np.arange(classes).astype(t.dtype)).astype(dtype)


def views(self, found, given):
    return tuple(v.view() if any(v is one for one in given) else v for v in found)


BREAKS = [
    ("label, device, mode", {"why_unusable": taken_by_now}, "says 'it is taken' where it is in"),
    ("label, device, mode", {"__init__": of_one_mode}, "reproducible=False selects"),
    ("label, device, mode", OTHER_DEVICE, "'plug-in:1' with reproducible=False selects"),
    *(
        ("owns: its own, no others", {"owns": owned_where(holds)}, f"denies what {source} gave")
        for source, holds in {
            "asarray": lambda array: array.shape != (1,),
            "a slice": lambda array: array.base is None,
            "a comparison": lambda array: array.dtype != bool,
        }.items()
    ),
    (
        "owns: its own, no others",
        {"owns": NO_OTHER, "matmul": lambda self, a, b: Backend.matmul(self, a, b).view(Other)},
        "denies what matmul gave",
    ),
    (
        "owns: its own, no others",
        {"owns": NO_OTHER, "xp": Namespace(zeros=lambda *a, **o: np.zeros(*a, **o).view(Other))},
        "denies what xp.zeros gave",
    ),
    ("asarray", {"owns": owned_where(lambda a: a.dtype.kind in "fb")}, "denies what asarray gave"),
    ("asarray", {"asarray": spoilt_where(backwards)}, None),
    ("asarray", {"asarray": spoilt_where(with_gaps)}, None),
    ("asarray", {"asarray": spoilt_where(empty, fails)}, "min() of nothing"),
    ("asarray", {"asarray": spoilt_where(listed, lambda found: found + 0)}, None),  # -0 is 0 then
    (
        "asarray",
        {"asarray": taken_where(lambda v: getattr(v, "dtype", np.dtype("f8")).kind == "U")},
        "asarray takes array(['1']",
    ),
    ("asarray", {"asarray": taken_where(np.ma.isMaskedArray)}, "asarray takes masked_array"),
    ("to_numpy, synchronize", {"to_numpy": of_some}, "min() of nothing"),
    ("writable", {"xp": Namespace(asarray=ignoring_copies)}, None),
    ("running: in silence", {"running": lambda self: np.errstate(all="warn")}, "RuntimeWarning"),
    *(
        ("running: in silence", {"running": not_silent(kind)}, "FloatingPointError")
        for kind in ("divide", "invalid", "over", "under")
    ),
    ("one_hot", {"one_hot": one_hot_of_flat_labels}, None),
    ("one_hot", {"one_hot": one_hot_in_bytes}, None),
    ("step: new arrays", {"apart": views}, None),
    ("label, device, mode", {"label": "numpy"}, "selects"),
    ("label, device, mode", {"__init__": forgets_its_mode}, "reproducible=True selects"),
    ("label, device, mode", {"__reduce__": lambda self: (str, ())}, "pickled"),
    (
        "label, device, mode",
        {"device_count": classmethod(lambda cls: 1), "__init__": forgets_its_device},
        "device is None, device_count says 1",
    ),
    ("owns: its own, no others", {"owns": lambda self, array: False}, "denies what asarray gave"),
    ("owns: its own, no others", {"owns": lambda self, array: True}, None),
    (
        "owns: its own, no others",
        {"owns": lambda self, array: hasattr(array, "shape")},
        "claims a Lookalike",
    ),
    (
        "owns: its own, no others",
        {"owns": lambda self, array: isinstance(array, np.ndarray)},
        "denies what sum gave",  # which is no ndarray where it has no axes
    ),
    (
        "owns: its own, no others",
        {"device_count": classmethod(lambda cls: 2)},
        "owns says True of an array of plug-in:1's",
    ),
    ("asarray", {"asarray": copies}, "copies an array that is here"),
    ("asarray", {"asarray": of_one_dtype}, None),
    ("asarray", {"asarray": of_real_parts}, "asarray takes [1j]"),
    ("asarray", {"asarray": of_nobody}, "says not what is wrong with which: values"),
    ("asarray", {"asarray": without_strides}, None),
    ("asarray, to_numpy: values", {"asarray": in_float32}, "other numbers"),
    ("asarray, to_numpy: values", {"asarray": changing(lambda a: a + 0.0)}, "other numbers"),
    ("asarray, to_numpy: values", {"asarray": changing(np.nan_to_num)}, "other numbers"),
    ("asarray, to_numpy: values", {"asarray": changing(without_subnormals)}, "other numbers"),
    ("to_numpy, synchronize", {"to_numpy": lambda self, array: array.tolist()}, "gives a list"),
    ("to_numpy, synchronize", {"to_numpy": lambda self, a: np.asarray(a, "float64")}, None),
    ("to_numpy, synchronize", {"synchronize": unavailable}, "OSError: the device is gone"),
    ("writable", {"writable": lambda self, array: True}, "read-only"),
    ("running: in silence", {"running": Backend.running}, "FloatingPointError"),
    ("running: in silence", {"running": silent_for_ever}, "errstate"),
    ("arithmetic", {"xp": Namespace(where=lambda c, a, b: np.where(c, a, b) + 0.0)}, "where of"),
    ("threads", {"threads": lambda self: 0}, "threads gives 0"),
    ("compiles", {"compiles": classmethod(lambda cls, f: True)}, "plain Python"),
    ("one_hot", {"one_hot": unchecked_one_hot}, "takes label -1 of 30"),
    ("one_hot", {"one_hot": one_hot_of_one_more}, "takes label 30 of 30"),
    ("step: new arrays", {"apart": lambda self, found, given: found}, "that it was given"),
    ("takes", {"takes": lambda self, run: 3}, "takes gives 3 of 2"),
]


FUNDAMENTAL = (
    *("label, device, mode", "owns: its own, no others"),
    *("asarray", "asarray, to_numpy: values", "to_numpy, synchronize", "running: in silence"),
)
"""The other contracts rest on these."""


@pytest.mark.parametrize(("row", "members", "said"), BREAKS)
def test_a_broken_contract_is_a_row_of_its_own(broken, row, members, said):
    with np.errstate(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # as it may be where no test turns them into errors
        every = broken(members)
    found = [v for v in every if v.operation == row]
    assert found
    assert len({v.operation for v in every}) == 1 or row in FUNDAMENTAL
    assert said is None or any(said in (v.error or "") for v in found), found


def test_every_contract_has_a_backend_that_breaks_it():
    assert {row for row, _, _ in BREAKS} == set(CONTRACTS)


def test_arrays_of_another_backend_are_not_its_own(broken):
    """A backend with arrays of its own type that claims NumPy's moves them in silence."""
    strict = type(xnet.resolve("strict"))
    claims = {"owns": lambda self, a: strict.owns(self, a) or isinstance(a, np.ndarray)}
    ownership = [TRIALS["owns: its own, no others"]]
    assert broken({}, strict, ownership) == []
    assert broken(claims, strict, ownership)


# -- what operations are made of


def reversed_strides(self, operation, x, *parameters, m=None):
    """As a kernel that takes an address and a shape."""
    return Backend.run(self, operation, x.ravel(order="K").reshape(x.shape), *parameters, m=m)


def writes_to_its_input(self, operation, x, *parameters, m=None):
    x -= 1
    return Backend.run(self, operation, x, *parameters, m=m)


def unshifted_softmax(self, operation, x, *parameters, m=None):
    """Good for ordinary numbers: exp overflows beyond 709."""
    if self.reproducible or not isinstance(operation, operations.Softmax):
        return Backend.run(self, operation, x, *parameters, m=m)
    with self.running():
        return np.exp(x) / np.exp(x).sum(axis=-1, keepdims=True)


def matmul_without_subnormals(self, a, b):
    return without_subnormals(Backend.matmul(self, a, b))


def matmul_of_limited_range(self, a, b):
    """Numbers beyond 1e100 are taken for 1e100."""
    return Backend.matmul(self, np.clip(a, -1e100, 1e100), b)


def scaled(self, a, axis=None, keepdims=False):
    """As one would scale in order to be safe from overflow: subnormals are lost."""
    return Backend.sum(self, a * 2.0**-20, axis, keepdims) * 2.0**20


def erring(ufunc, when=lambda *_: True):
    """An `asarray` of arrays whose operator of this function's name errs, in one bit of one."""

    def wrong(self, *others):
        plain = [np.asarray(v) if isinstance(v, np.ndarray) else v for v in (self, *others)]
        found = np.array(ufunc(*plain))
        if when(*others):
            one = found.flat[:1]
            found.flat[:1] = ~one if found.dtype == bool else np.nextafter(one, np.inf)
        return found.view(type(self))

    name = {"divide": "truediv", "less": "lt", "greater_equal": "ge", "equal": "eq"}
    name |= {"not_equal": "ne", "negative": "neg", "subtract": "sub", "multiply": "mul"}
    cls = type("Erring", (np.ndarray,), {f"__{name.get(ufunc.__name__, ufunc.__name__)}__": wrong})

    def asarray(self, values, dtype=None, name="values"):
        return Backend.asarray(self, values, dtype, name).view(cls)

    return {"asarray": asarray}


def off(f):
    """A function that errs in one bit of each number."""
    return lambda *arrays: np.nextafter(f(*arrays), np.inf)


@pytest.mark.parametrize(
    ("row", "members"),
    [
        *(("+ - * / sqrt", erring(f)) for f in (np.add, np.subtract, np.multiply, np.divide)),
        ("+ - * / sqrt", erring(np.divide, lambda other: isinstance(other, float))),
        *(
            ("comparisons, where, max", erring(f))
            for f in (np.less, np.equal, np.greater_equal, np.not_equal, np.negative)
        ),
        ("comparisons, where, max", {"xp": Namespace(where=off(np.where))}),
    ],
)
def test_a_fault_of_one_operator_is_found(broken, row, members):
    assert broken({}, trials=[TRIALS[row]]) == []
    assert broken(members, trials=[TRIALS[row]])


def test_results_that_are_missing_are_found(broken):
    """The last ones, so that those before them agree."""

    def short(self, operation, *arrays):
        return Backend.parameter_gradients(self, operation, *arrays)[:-1]

    found = broken({"parameter_gradients": short}, trials=[TRIALS["Affine"]])
    assert all("zip()" in v.error for v in found)
    assert len(found) == 2 * len(parity.NUMBERS)


def test_what_is_equal_differs_by_nothing():
    numpy = xnet.resolve("numpy")
    for name in ("threads", "Softmax", "sum"):  # the first gives no arrays
        v = parity.verdict(TRIALS[name], numpy, numpy, "float32", parity.standard_normal())
        assert (v.equal, v.ulps, v.share, v.error) == (True, 0, 0, None)


@pytest.mark.parametrize(
    ("row", "kinds", "members"),
    [
        ("+ - * / sqrt", None, {"xp": Namespace(sqrt=lambda a: np.sqrt(a) * (1 + 2.0**-52))}),
        ("comparisons, where, max", {"not finite"}, {"xp": Namespace(max=np.nanmax)}),
        ("matmul", None, {"matmul": lambda self, a, b: np.matmul(a, b)}),
        ("matmul", {"subnormal"}, {"matmul": matmul_without_subnormals}),
        ("matmul", {"huge", "of all sizes", "not finite"}, {"matmul": matmul_of_limited_range}),
        ("sum", {"subnormal"}, {"sum": scaled}),
        ("exp", None, {"exp": lambda self, a: np.exp(a)}),
        ("arrays of any strides", None, {"run": reversed_strides}),
        ("Affine", None, {"run": writes_to_its_input}),
        ("Softmax", {"huge", "of all sizes"}, {"run": unshifted_softmax}),
    ],
)
def test_a_fault_on_some_numbers_alone_is_found(broken, row, kinds, members):
    found = broken(members, trials=[TRIALS[row]])
    assert found
    assert kinds is None or {v.numbers for v in found} == kinds
