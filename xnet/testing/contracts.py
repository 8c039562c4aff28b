"""What a backend's methods have to mean (`xnet.backend.Backend`), each tried for itself.

A contract computes on a backend, from a matrix there, arrays that have to be the reference's to the
bit in both modes; what no array can say, `ContractError` does. What operations and networks make of
a backend, the rest of `parity` tries.
"""

import contextvars
import pickle
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from xnet.arithmetic import failures
from xnet.backend import Array, Backend, Run, resolve
from xnet.dtypes import dtype_name
from xnet.operations import Affine, ReLU


@dataclass(frozen=True)
class Contract:
    """What some members of a backend have to mean.

    Attributes
    ----------
    run
        Computes arrays from a matrix on the backend; its docstring says what is promised.
    members
        Of `Backend`: those that keep it.
    mend
        What helps where it is broken.
    """

    run: Callable[[Backend, Array], list[Array]]
    members: str
    mend: str

    @property
    def promise(self) -> str:
        """The first lines of `run`'s docstring, as one."""
        return " ".join((self.run.__doc__ or "").split())


class ContractError(AssertionError):
    """A contract is broken, and how."""


def expect(kept: bool, broken: str) -> None:
    """Raise `ContractError` if a promise is not kept."""
    if not kept:
        raise ContractError(broken)


# -- which backend it is


def selection(b: Backend, x: Array) -> list[Array]:
    """Its label selects it, with its device and in the mode asked for; a pickle keeps it."""
    count = b.device_count()
    expect(b.why_unusable() is None, f"why_unusable says {b.why_unusable()!r} where it is in use")
    devices = range(count) if count else [None]
    expect(b.device in devices, f"device is {b.device}, device_count says {count}")
    for mode in (False, True):
        found = resolve(b.label, mode)
        same = type(found) is type(b) and found.reproducible is mode and found.device == b.device
        expect(same, f"{b.label!r} with reproducible={mode} selects {found!r}")
    expect(pickle.loads(pickle.dumps(b)) is b, "pickled and back it is another one")
    return []


def compiles(b: Backend, x: Array) -> list[Array]:
    """No function that nobody compiled."""
    expect(not b.compiles(expect), "compiles says True of a function of plain Python")
    return []


def thread_count(b: Backend, x: Array) -> list[Array]:
    """None or a number."""
    count = b.threads()
    expect(count is None or count >= 1, f"threads gives {count!r}, expected None or 1 and more")
    return []


# -- arrays


class Lookalike:
    """An array of nobody's."""

    shape, ndim, dtype, device = (2,), 1, np.dtype("float64"), "cpu"

    def __array__(self, *_: Any, **__: Any) -> Any:
        return np.zeros(2)


def _others(b: Backend, x: Array) -> Iterator[tuple[Backend, bool]]:
    """NumPy and the backend's own other devices, with whether x, made here, is theirs, too."""
    numpy = resolve("numpy", b.reproducible)
    yield numpy, numpy.owns(x)
    for device in range(b.device_count()):
        if device != b.device:
            yield resolve(f"{b.name}:{device}", b.reproducible), False


def ownership(b: Backend, x: Array) -> list[Array]:
    """`owns` says True of its own arrays, whatever they come from, and of no others."""
    own = {
        "asarray": b.asarray([1.0]),
        "a slice": x[0, ...],
        "a comparison": x > 0,
        "sum": b.sum(x),
        "matmul": b.matmul(x, b.maths.T(x)),
        "xp.zeros": b.xp.zeros((2,), dtype=x.dtype, device=x.device),
    }
    for source, array in own.items():
        expect(b.owns(array), f"owns denies what {source} gave")
    for stranger in ([1.0], (1.0,), 1.0, "x", None, Lookalike()):
        expect(not b.owns(stranger), f"owns claims a {type(stranger).__name__}")
    for other, shared in _others(b, b.xp.zeros((2,))):
        claimed = b.owns(other.asarray([1.0]))
        expect(claimed == shared, f"owns says {claimed} of an array of {other.label}'s")
    return []


def conversion(b: Backend, x: Array) -> list[Array]:
    """`asarray` takes numbers, lists and any backend's arrays, in the dtype asked for.

    What would lose something it refuses, by the name that it was given.
    """
    dtype = dtype_name(x.dtype)
    whole = np.arange(12).reshape(3, 4)
    host = whole.astype(dtype)
    views = host.T, host[::-1], host[:, ::2], host[1, 2], host[:0], host.reshape(3, 2, 2)
    swapped = host.astype(host.dtype.newbyteorder("S"))
    found = [b.asarray(view) for view in (*views, swapped)]
    found += [b.asarray(whole.astype(kind)) for kind in ("int64", "int32", "uint8", "bool")]
    found += [b.asarray([[0.1, -0.0], [2, 3]], kind) for kind in (dtype, np.dtype(dtype), x.dtype)]
    found += [b.asarray((1, 0), dtype), b.asarray(0.1, dtype), b.asarray([1, 2], "int64")]
    found += [b.asarray(x, kind) for kind in ("float32", "float64")]
    for array in found:
        expect(b.owns(array), "owns denies what asarray gave")
    if b.writable(here := b.xp.asarray(x, copy=True)):
        b.asarray(here, dtype)[...] = 0
        copied = bool(b.xp.any(here != 0))
        expect(not copied, "asarray copies an array that is here in that dtype already")
    for wrong in ([1j], np.asarray(["1"]), np.ma.masked_array([1.0], [True])):
        try:
            b.asarray(wrong, dtype, "bias")
        except (TypeError, ValueError) as error:
            expect("bias" in str(error), f"asarray says not what is wrong with which: {error}")
        else:
            raise ContractError(f"asarray takes {wrong!r}")
    return found


def transport(b: Backend, x: Array) -> list[Array]:
    """`to_numpy` gives NumPy's arrays of any dtype, and `synchronize` may be called at any time."""
    found = [x, x > 0, b.xp.max(x), b.asarray([1, 2], "int64"), x[:0, ...]]
    b.synchronize()
    for array in found:
        host: Any = b.to_numpy(array)
        expect(isinstance(host, np.ndarray), f"to_numpy gives a {type(host).__name__}")
    return found


def values(b: Backend, x: Array) -> list[Array]:
    """What went there comes back: every number as it was."""
    return [x]


def writing(b: Backend, x: Array) -> list[Array]:
    """Where `writable` says so, an array can be written to, and is by that."""
    written = b.xp.asarray(x, copy=True)
    host = np.ones(2)
    host.flags.writeable = False
    for array in (written, b.asarray(host)):
        if b.writable(array):
            array[...] = 0
    return [written if b.writable(written) else b.xp.zeros_like(x)]


def running(b: Backend, x: Array) -> list[Array]:
    """Within `running` infinity and NaN are made in silence, and after it all is as before."""

    def silently() -> list[Array]:
        with warnings.catch_warnings(), np.errstate(all="raise"):
            warnings.simplefilter("error")
            with b.running(), b.running():
                small = (x - x) + float(b.xp.finfo(x.dtype).smallest_normal)
                found = [1 / (x - x), (x - x) / (x - x), 1 / small / small, small * small]
            after = set(np.geterr().values())
        expect(after == {"raise"}, "running leaves NumPy's errstate otherwise than it was")
        return found

    # NumPy keeps its errstate in the context, and who is within `running` already may, too.
    return contextvars.Context().run(silently)


# -- what decides the bits, and more


def arithmetic(b: Backend, x: Array) -> list[Array]:
    """In reproducible mode the arithmetic under it is IEEE 754's."""
    for failure in failures(b) if b.reproducible else ():
        raise ContractError(str(failure))
    return []


def one_hot(b: Backend, x: Array) -> list[Array]:
    """Labels of any dtype and shape, and none that is no class."""
    rows, classes = map(int, x.shape)
    labels = np.arange(rows) * 7 % classes
    found = [b.one_hot(b.asarray(labels.astype(kind)), classes, x.dtype) for kind in LABELS]
    found.append(b.one_hot(b.asarray(labels.reshape(2, -1)), classes, x.dtype))
    found.append(b.one_hot(b.asarray(labels.astype("uint8")), 300, x.dtype))
    for wrong in (-1, classes):
        try:
            b.one_hot(b.asarray([0, wrong], "int64"), classes, x.dtype)
        except ValueError:
            continue
        raise ContractError(f"one_hot takes label {wrong} of {classes} classes")
    return found


LABELS = ("int64", "int32", "uint8")


@dataclass(eq=False)
class _Standing:
    """An optimizer that leaves everything as it is; no `Optimizer`, for such are registered."""

    slots: ClassVar = 1

    def formula(self, m: Any, n: int, W: Any, g: Any, memory: Any) -> tuple[Any, Any]:
        return W, memory


def new_arrays(b: Backend, x: Array) -> list[Array]:
    """What `step` gives may be written, and what it was given stays."""
    given = [b.xp.asarray(x, copy=True) for _ in range(3)]
    W, g, memory = given
    for array in b.step(_Standing(), 1, W, g, [memory]):
        expect(not any(array is one for one in given), "step gives an array that it was given")
        if b.writable(array):
            array[...] = 0
    return given


def run_taken(b: Backend, x: Array) -> list[Array]:
    """`takes` says how many operations of a run it takes, from none to all."""
    W = b.maths.T(x)
    run = Run([Affine(*W.shape), ReLU()], [(W, W[0, ...]), ()])
    count = b.takes(run)
    expect(count in range(len(run.operations) + 1), f"takes gives {count!r} of 2 operations")
    return []


CONTRACTS: dict[str, Contract] = {
    "label, device, mode": Contract(
        selection,
        "name, label, device_count, __init__ and __reduce__",
        "register the class under `name` in the entry-point group xnet.backends, hand `device` and "
        "`reproducible` on to Backend.__init__, and let `label` name the device",
    ),
    "owns: its own, no others": Contract(
        ownership,
        "owns",
        "return isinstance(array, ...) of your library's array types, scalars included, and of "
        "this backend's device alone; never ask for an attribute such as `shape`",
    ),
    "asarray": Contract(
        conversion,
        "asarray",
        "leave what comes from elsewhere to Backend.asarray, which refuses by `name` what would "
        "lose something; your namespace's asarray takes NumPy arrays of any strides, and copies "
        "no array that is there in that dtype",
    ),
    "asarray, to_numpy: values": Contract(
        values,
        "asarray and to_numpy",
        "move the bytes as they are: no detour through float32, no arithmetic on the way (-0, "
        "subnormal numbers, infinity and NaN come back)",
    ),
    "to_numpy, synchronize": Contract(
        transport,
        "to_numpy and synchronize",
        "give a numpy.ndarray of the same dtype and shape, empty and 0-d arrays and truths "
        "included, and let synchronize wait or do nothing",
    ),
    "writable": Contract(
        writing,
        "writable",
        "say True only of arrays for which array[...] = values writes; False is always right, "
        "then parameters are replaced",
    ),
    "running: in silence": Contract(
        running,
        "running",
        'return numpy.errstate(all="ignore") where NumPy computes underneath, or your library\'s '
        "own way to silence it; restore what was set before",
    ),
    "arithmetic": Contract(
        arithmetic,
        "xp, matmul and sum",
        "give xp a function that rounds as IEEE 754 says in place of the one named, turn off "
        "fast-math, contraction, TF32 and flushing to zero, or raise in __init__ where "
        "reproducible=True cannot be had",
    ),
    "threads": Contract(thread_count, "threads", "return None, or a number from 1"),
    "compiles": Contract(
        compiles, "compiles", "return True only of functions that your own compiler made"
    ),
    "one_hot": Contract(
        one_hot,
        "one_hot",
        "raise ValueError of labels outside 0..C-1, and compare in int64: a byte may hold the "
        "labels but not the number of classes",
    ),
    "step: new arrays": Contract(
        new_arrays,
        "step and apart",
        "copy where a result is, or is a view of, an array that it was given, as Backend.apart "
        "does",
    ),
    "takes": Contract(
        run_taken, "takes", "return how many of the run's operations it takes, from 0 to all"
    ),
}
"""By the names that the table has."""
