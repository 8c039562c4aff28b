"""Each contract of a backend is caught where one backend breaks just that one."""

import contextlib
from types import SimpleNamespace

import numpy as np
import pytest

import xnet
from xnet import backend as registry
from xnet import operations
from xnet.arithmetic import unchecked
from xnet.backend import Backend
from xnet.tools import parity
from xnet.tools.contracts import CONTRACTS


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


def forgets_its_mode(self, device=None, *, reproducible=False):
    Backend.__init__(self, device)


def forgets_its_device(self, device=None, *, reproducible=False):
    Backend.__init__(self, None, reproducible=reproducible)


def copies(self, values, dtype=None, name="values"):
    return np.array(Backend.asarray(self, values, dtype, name))


def of_one_dtype(self, values, dtype=None, name="values"):
    return Backend.asarray(self, values, name=name)


def of_real_parts(self, values, dtype=None, name="values"):
    return np.asarray(np.real(values), dtype)


def of_nobody(self, values, dtype=None, name="values"):
    return Backend.asarray(self, values, dtype)


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


@contextlib.contextmanager
def silent_for_ever(self):
    np.seterr(all="ignore")
    yield


def unchecked_one_hot(self, t, classes, dtype):
    return np.eye(classes, dtype=dtype)[t]


def one_hot_of_one_more(self, t, classes, dtype):
    return Backend.one_hot(self, t, classes + 1, dtype)[..., :-1]


BREAKS = [
    ("label, device, mode", {"label": "numpy"}, "selects"),
    ("label, device, mode", {"__init__": forgets_its_mode}, "reproducible=True selects"),
    ("label, device, mode", {"__reduce__": lambda self: (str, ())}, "pickled"),
    (
        "label, device, mode",
        {"device_count": classmethod(lambda cls: 1), "__init__": forgets_its_device},
        "device is None, device_count says 1",
    ),
    ("owns: its own, no others", {"owns": lambda self, array: False}, "denies what asarray"),
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
    with np.errstate():
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
