"""Backends: an array namespace plus the operations it runs faster than the generic way.

A backend is a subclass of :class:`Backend` with a `name`, an array-API namespace `xp` and
`owns`. Everything else has a generic form here, in terms of `xp` and what decides the bits
(`matmul`, `sum`, `exp`, `log` and their kin): operations are interpreted on its arrays. A backend
overrides what it runs faster, with the same signature and the same meaning. A package registers its
class under the entry-point group ``xnet.backends``; the three that come with xnet use that same
door and no other.
"""

import contextlib
import contextvars
import difflib
import operator
import os
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from itertools import starmap
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from xnet import exact, notebook, perturbation, threads
from xnet.arithmetic import sound
from xnet.arrays import arrived, check_real, narrowed, refusal
from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.formulas import Arrays, as_tuple, check_step
from xnet.operations import Loss, Operation
from xnet.ranks import ALONE, Ranks

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import numpy as np

__all__ = ["Array", "Backend", "BackendInfo", "Run", "assign", "backend_of"]
__all__ += ["backends", "get_backend", "resolve", "set_backend", "use_backend"]

Array: TypeAlias = Any
"""An array of any backend's library. The libraries share no static type, so none is claimed."""

ENTRY_POINT_GROUP = "xnet.backends"
AUTO_ORDER = ("cupy", "numba", "numpy")
"""What ``"auto"`` tries, fastest first."""

BLOCK = 1 << 20
"""Numbers in the widest array of a block of rows: 8 MiB in float64."""


@dataclass(eq=False)
class Run:
    """Neighbouring layers that a backend takes in one call.

    Attributes
    ----------
    operations
        From input to output; they never change.
    parameters
        The arrays that each of them takes after its input.
    prepared
        For the backend to keep what it makes of them.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> from xnet.operations import ReLU, Sigmoid
    >>> run = xnet.backend.Run([ReLU(), Sigmoid()], [(), ()])
    >>> xnet.resolve("numpy").forward(run, np.array([[-1.0, 0.0]])).tolist()
    [[0.5, 0.5]]
    """

    operations: list[Operation]
    parameters: list[tuple[Array, ...]]
    prepared: Any = None

    def __iter__(self) -> Iterator[tuple[Operation, tuple[Array, ...]]]:
        return zip(self.operations, self.parameters, strict=True)

    @cached_property
    def widest(self) -> int:
        """Numbers of a sample in the widest array between two layers."""
        return max((operation.widths[1] or 1 for operation in self.operations), default=1)


def assign(places: Iterable[tuple[Any, Any, Any]], *calls: tuple[Any, ...]) -> None:
    """``container[key] = value`` for each, all of them or, if Ctrl-C comes before, none.

    After them the calls, each a function written in C and its arguments. All is one call in C:
    between two of its assignments Python hears no signal.

    Parameters
    ----------
    places
        Containers, keys and values: ``(W, ..., new)`` writes to an array, and
        ``(params, name, new)`` to a dictionary.
    *calls
        Functions and their arguments, each a tuple.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet.backend import assign
    >>> W, steps = np.zeros(2), {}
    >>> assign([(W, ..., [1.0, 2.0]), (steps, "W", 1)])
    >>> W.tolist(), steps
    ([1.0, 2.0], {'W': 1})
    """
    assignments = [(operator.setitem, *place) for place in places]
    deque(starmap(operator.call, [*assignments, *calls]), maxlen=0)


Gradients: TypeAlias = list[tuple[Array, ...]]
"""Of each operation of a run, the gradient by each of its parameters."""


class Backend:
    """An array library seen through the few operations that xnet needs.

    Parameters
    ----------
    device
        Index of the device, for a backend whose `device_count` is not 0.
    reproducible
        Whether operations give the same bits on every backend.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> class Own(xnet.Backend):
    ...     name, xp = "own", np
    ...     def owns(self, array):
    ...         return isinstance(array, np.ndarray)
    >>> with xnet.use_backend(Own()) as backend:
    ...     print(backend, xnet.activations.relu([-1.0, 2.0]).tolist())
    <backend own> [0.0, 2.0]
    """

    name: ClassVar[str]
    compiled: ClassVar[bool] = False
    """Whether its own methods are compiled when first called, and so not tried by `arithmetic`."""
    flushes: ClassVar[tuple[str, ...]] = ()
    """Precisions in which its array code, not its kernels, takes subnormal numbers for zeros."""
    tried: bool = False
    """Whether `arithmetic` has found the arithmetic under it sound, or another's of its kind."""
    ranks: Ranks = ALONE
    """The processes over which batches are spread: see `xnet.sharded`."""
    xp: Any
    """The array-API namespace."""

    def __init__(self, device: int | None = None, *, reproducible: bool = False) -> None:
        self.device = device
        self.reproducible = reproducible

    @classmethod
    def why_unusable(cls) -> str | None:
        """Why this backend cannot run here and how to make it run; None if it can."""
        return None

    @classmethod
    def device_count(cls) -> int:
        """How many devices ``"name:index"`` can choose from; 0 if there is no choice."""
        return 0

    @property
    def label(self) -> str:
        """The name that selects this backend: ``"numba"``, ``"cupy:1"``."""
        return self.name if self.device is None else f"{self.name}:{self.device}"

    def __repr__(self) -> str:
        return f"<backend {self.label}{' reproducible' if self.reproducible else ''}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return resolve, (self.label, self.reproducible)

    # -- arrays: what they are and where they live

    def owns(self, array: object) -> bool:
        """Whether `array` is one of this backend's, on this backend's device."""
        raise NotImplementedError

    def asarray(self, values: Any, dtype: Any = None, name: str = "values") -> Array:
        """`values` (an array of any backend, or what `xnet.arrays.on_host` takes) as an array here.

        This and `to_numpy` are the only ways across devices. No copy is made of an array that
        is here already and has the dtype asked for.

        Parameters
        ----------
        values
            What is to be an array here.
        dtype
            A dtype, or its name; None for the one that `values` have.
        name
            What errors call it.

        Returns
        -------
        Array
            On this backend's device.

        Raises
        ------
        TypeError, ValueError
            What holds no real numbers, or masked ones, by its `name`: see `xnet.arrays`.

        Examples
        --------
        >>> import xnet
        >>> xnet.resolve("numpy").asarray([[1, 2], [3, 4]], "float32").dtype.name
        'float32'
        >>> xnet.resolve("numpy").asarray([1j], name="x")
        Traceback (most recent call last):
            ...
        TypeError: x is complex128, expected real numbers: take .real, or abs of it
        """
        values = arrived(self, values, name)
        owner = self if self.owns(values) else owner_of(values, name)
        check_real(owner.xp, values, name)
        values = values if owner is self else narrowed(owner.to_numpy(values), dtype)
        kind = {} if dtype is None else {"dtype": getattr(self.xp, dtype_name(dtype))}
        return self.xp.asarray(values, **kind)

    def to_numpy(self, array: Array) -> "np.ndarray[Any, Any]":
        """`array` on the host: the only way back."""
        import numpy as np

        return np.asarray(array)

    def threads(self) -> int | None:
        """How many threads its kernels may use; None if that is not for the backend to say."""
        return None

    def synchronize(self) -> None:
        """Wait until the device has finished everything it was asked for."""

    def running(self) -> contextlib.AbstractContextManager[object]:
        """Block within which the array library itself runs as this backend means it to.

        That is on its device, and with infinity, NaN and underflow made in silence, as IEEE 754 has
        them, whatever was set around it.
        """
        return contextlib.nullcontext()

    # -- what decides the bits; in reproducible mode that of `xnet.exact`.
    # All else (+ - * / sqrt, comparisons, where) is correctly rounded by IEEE 754, and so the same
    # everywhere as long as nothing fuses a multiplication with an addition.

    def matmul(self, a: Array, b: Array) -> Array:
        """Matrix product (N, K) by (K, M)."""
        return exact.matmul(self.xp, a, b) if self.reproducible else self.xp.matmul(a, b)

    def sum(self, a: Array, axis: int | None = None, keepdims: bool = False) -> Array:
        """Sum of the elements along `axis`, or of all."""
        if self.reproducible:
            return exact.sum(self.xp, a, axis, keepdims)
        return self.xp.sum(a, axis=axis, keepdims=keepdims)

    def exp(self, a: Array) -> Array:
        """e to the power of each element."""
        return self._elementary("exp", a)

    def log(self, a: Array) -> Array:
        """Natural logarithm of each element."""
        return self._elementary("log", a)

    def expm1(self, a: Array) -> Array:
        """exp(a) - 1 of each element, accurate near 0."""
        return self._elementary("expm1", a)

    def log1p(self, a: Array) -> Array:
        """log(1 + a) of each element, accurate near 0."""
        return self._elementary("log1p", a)

    def _elementary(self, name: str, a: Array) -> Array:
        if self.reproducible:
            return exact.elementary(self.xp, name, a)
        return getattr(self.xp, name)(a)

    # -- operations: generic forms. Arrays are floating point, of one dtype, and checked by the
    # caller; an override gives in reproducible mode the very bits of the formula

    @cached_property
    def maths(self) -> Arrays:
        """What interprets a formula on this backend's arrays, outside training."""
        return Arrays(self)

    def trainer(self, state: Any = None, draw: Any = None) -> Arrays:
        """What interprets a formula in training, with this state and source of random numbers."""
        return Arrays(self, True, state, draw)

    def mean(self, a: Array) -> Array:
        """Over the batch of numbers a (N,) or (N, C), of all ranks."""
        return self.sum(a, axis=0) / a.shape[0]

    def run(
        self, operation: Operation, x: Array, *parameters: Array, m: Arrays | None = None
    ) -> Array:
        """The operation's `forward`; m where it trains or has state."""
        with self.running():
            return operation.forward(m or self.maths, x, *parameters)

    def run_backward(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        """Its `backward`: the gradient by x, then those by the parameters."""
        with self.running():
            return as_tuple(operation.backward(m or self.maths, dout, x, y, *parameters))

    def parameter_gradients(
        self,
        operation: Operation,
        dout: Array,
        x: Array,
        y: Array,
        *parameters: Array,
        m: Arrays | None = None,
    ) -> tuple[Array, ...]:
        """Those by the parameters alone, for a first layer: nobody asks for the one by x."""
        if not parameters:
            return ()
        if not operation.parts_backward:
            return self.run_backward(operation, dout, x, y, *parameters, m=m)[1:]
        with self.running():
            return operation.backward_parameters(m or self.maths, dout, x)

    def predicted(self, loss: Loss, x: Array) -> Array:
        """What a network that ends in this loss says where its scores are x (..., C)."""
        with self.running():
            return loss.predict(self.maths, x)

    def row_losses(self, loss: Loss, x: Array, t: Array) -> Array:
        """The loss of each row, (...), of scores x (..., C) against targets t that broadcast."""
        with self.running():
            return loss.forward(self.maths, x, t)[..., 0]

    def loss_and_delta(self, loss: Loss, x: Array, t: Array) -> tuple[Array, Array]:
        """The mean loss, 0-d, of scores x (N, C), and its gradient by them."""
        with self.running():
            dx = loss.backward(self.maths, x, t) * (1 / self.ranks.count(x.shape[0]))
            return self.mean(self.row_losses(loss, x, t)), dx

    def step(
        self, update: Any, n: int, W: Array, g: Array, memory: Sequence[Array]
    ) -> tuple[Array, ...]:
        """An optimizer's n-th step: the new W, then the new memory, all of them new arrays."""
        with self.running():
            found = as_tuple(update.formula(self.maths, n, W, g, *memory))
            check_step(update, len(found))
            return self.apart(found, (W, g, *memory))

    def apart(self, found: tuple[Array, ...], given: Sequence[Array]) -> tuple[Array, ...]:
        """What a formula found, its own input as a copy: that may be written meanwhile."""
        inputs = set(map(id, given))
        return tuple([self.xp.asarray(v, copy=True) if id(v) in inputs else v for v in found])

    def one_hot(self, t: Array, classes: int, dtype: Any) -> Array:
        """Class indices t (...) as rows (..., C) of `dtype`: 1 at the index, 0 elsewhere.

        Raises
        ------
        ValueError
            An index that is not one of 0..C-1.
        """
        xp = self.xp
        t = xp.astype(t, xp.int64)  # a byte may hold the labels but not the number of classes
        low, high = int(xp.min(t)), int(xp.max(t))
        if low < 0 or high >= classes:
            raise ValueError(f"t has label {low if low < 0 else high}, expected 0..{classes - 1}")
        every_class = xp.arange(classes, dtype=t.dtype, device=t.device)
        return xp.astype(xp.expand_dims(t, axis=-1) == every_class, dtype)

    def writable(self, array: Array) -> bool:
        """Whether ``array[...] = values`` writes to this array; if not, it is replaced."""
        return False

    # -- runs: several layers in one call

    def takes(self, run: Run) -> int:
        """How many of these operations, from the first on, it takes as one run; 0 for none.

        Only such are asked about as treat each row on its own, keep nothing and draw nothing.
        """
        return len(run.operations)

    def forward(self, run: Run, x: Array, loss: Loss | None = None) -> Array:
        """The run's output for x (N, D), or with a loss what that predicts.

        Rows go through all layers in blocks, so that what lies between two layers stays small
        however long x is: a row's result does not depend on its neighbours but by rounding, and
        in reproducible mode not at all.
        """
        widest = max(x.shape[1], run.widest)  # the widest array of a block holds BLOCK numbers
        if x.shape[0] * widest <= BLOCK:
            return self.through(run, x, loss)
        rows = max(1, BLOCK // widest)
        blocks = (x[k : min(k + rows, x.shape[0]), ...] for k in range(0, x.shape[0], rows))
        return self.xp.concat([self.through(run, block, loss) for block in blocks])

    def through(self, run: Run, x: Array, loss: Loss | None) -> Array:
        """One block of rows of `forward`."""
        with self.running():
            for operation, parameters in run:
                x = self.run(operation, x, *parameters)
            return x if loss is None else self.predicted(loss, x)

    def forward_keeping(self, run: Run, x: Array) -> tuple[Array, Any]:
        """The run's output, and what `backward` needs of this pass."""
        with self.running():
            outputs, maths = [x], list[Arrays | None]()
            for operation, parameters in run:
                # Of what no backend compiles `forward` may leave something for `backward`.
                maths.append(self.trainer() if operation.fuses is None else None)
                outputs.append(self.run(operation, outputs[-1], *parameters, m=maths[-1]))
            return outputs[-1], (outputs, maths)

    def backward(
        self, run: Run, kept: Any, dout: Array, first: bool
    ) -> tuple[Array | None, Gradients]:
        """The gradient by the run's input, None if it is the `first`, and by its parameters (§5.7).

        Parameters
        ----------
        kept
            What `forward_keeping` left.
        dout
            The gradient by the run's output.
        first
            Whether the run begins the network, so that nobody asks for the gradient by its input.
        """
        gradients: Gradients = []
        outputs, maths = kept
        with self.running():
            for k in reversed(range(len(run.operations))):
                operation, parameters = run.operations[k], run.parameters[k]
                arrays = outputs[k], outputs[k + 1], *parameters
                if first and k == 0:
                    gradients.append(self.parameter_gradients(operation, dout, *arrays, m=maths[k]))
                    return None, gradients[::-1]
                dout, *found = self.run_backward(operation, dout, *arrays, m=maths[k])
                gradients.append(tuple(found))
        return dout, gradients[::-1]

    def loss_and_gradients(
        self, run: Run, x: Array, t: Array, loss: Loss, first: bool
    ) -> tuple[Array, Array | None, Gradients]:
        """The mean loss, 0-d, of a network that ends in this run, and `backward` from it."""
        with self.running():
            scores, kept = self.forward_keeping(run, x)
            mean, dout = self.loss_and_delta(loss, scores, t)
            return mean, *self.backward(run, kept, dout, first)

    def train_step(
        self, run: Run, x: Array, t: Array, loss: Loss, update: Any, names: Sequence[str]
    ) -> Array | None:
        """A whole training step of a network that is this run: the loss before it, 0-d.

        All of the step is done or, if Ctrl-C comes, none. None if it is not done in one call here,
        and then nothing is: the network asks for gradients and has the optimizer take its step.

        Parameters
        ----------
        run, x, t, loss
            As in `loss_and_gradients`.
        update
            The optimizer, of which `step` is the formula and `memory_of` what it remembers.
        names
            By which it knows the parameters, in their order.
        """
        return None

    def loss_differences(
        self, x: Array, a: Array, rest: Run, loss: Loss, t: Array, h: float
    ) -> Array:
        """L(w + h) - L(w - h) for every weight and bias w of one product x W + b, (D + 1, M).

        Each loss is really evaluated at the perturbed weight; the mean over the N samples of
        `row_losses`. Row i holds the weights from input i, the last row the biases.

        Parameters
        ----------
        x, a
            The layer's input (N, D) and its output (N, M).
        rest
            What lies between that output and the scores.
        loss, t
            As in `row_losses`, t (N, C).
        h
            Size of the perturbation.
        """
        return perturbation.loss_differences(self, x, a, rest, loss, t, h)

    @classmethod
    def compiles(cls, f: object) -> bool:
        """Whether f is compiled by what this backend compiles with, so `compiled_values` takes it.

        Asked of every f, and of a backend that may be unusable: it must import nothing.
        """
        return False

    def compiled_values(
        self, f: Any, x: Array, up: Array, down: Array, span: range
    ) -> tuple[Array, Array]:
        """F at x with one element as in `up`, and as in `down`, by a compiled loop.

        For each element of `span`, in C order: two arrays of float64, (len(span),). x is left
        alone. Only for an f that `compiles` accepts.
        """
        raise NotImplementedError


# -- the registry


@dataclass(frozen=True)
class BackendInfo:
    """One registered backend: its name, whether it works here, and if not, why and what helps.

    Attributes
    ----------
    name
        By which it is registered and selected.
    usable
        Whether it can run here.
    reason
        Why not, and what would help; None where it can.

    Examples
    --------
    >>> import xnet
    >>> info = xnet.backends()[0]
    >>> info.name, info.usable, info.reason
    ('numpy', True, None)
    """

    name: str
    usable: bool
    reason: str | None


@cache
def _registry() -> dict[str, "EntryPoint"]:
    from importlib.metadata import entry_points

    found: dict[str, EntryPoint] = {}
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        known = found.setdefault(entry.name, entry)
        if known.value != entry.value:
            raise BackendError(
                f"two packages register a backend named {entry.name!r}: "
                f"{known.value} and {entry.value}; uninstall one"
            )
    if not found:
        raise BackendError("no backend is registered: xnet is not installed (pip install xnet-nn)")
    # The reference first: where several own an array and none is current, it is the one.
    return dict(sorted(found.items(), key=lambda item: (item[0] != "numpy", item[0])))


@cache
def _load(name: str) -> type[Backend]:
    """The class registered under `name`."""
    registry = _registry()
    if name not in registry:
        near = difflib.get_close_matches(name, [*registry, "auto"], n=1)
        hint = f"; did you mean {near[0]!r}?" if near else "."
        known = ", ".join([*registry, "auto"])
        raise BackendError(f"unknown backend {name!r}{hint} Backends: {known}")
    try:
        return registry[name].load()
    except Exception as error:
        # A broken plug-in, whatever it raised, must not take the other backends with it.
        raise BackendError(f"backend {name!r} failed to load: {error!r}") from error


def _why_unusable(name: str) -> str | None:
    try:
        return _load(name).why_unusable()
    except BackendError as error:
        return str(error)
    except Exception as error:  # as above: one plug-in's fault is not the others'
        return f"asking whether it is usable failed: {error!r}"


def backends() -> list[BackendInfo]:
    """Every registered backend, with whether it is usable here and why not.

    Returns
    -------
    list of BackendInfo
        The reference, numpy, first, the others in the order of their names.

    Raises
    ------
    BackendError
        None is registered, for xnet is not installed; or two packages take one name.

    Examples
    --------
    >>> import xnet
    >>> known = [info.name for info in xnet.backends()]
    >>> [name in known for name in ("numpy", "numba", "cupy")]
    [True, True, True]
    """
    reasons = {name: _why_unusable(name) for name in _registry()}
    return notebook.Backends(BackendInfo(n, why is None, why) for n, why in reasons.items())


_instances: dict[tuple[str, int | None, bool], Backend] = {}


def _instance(name: str, device: int | None, reproducible: bool) -> Backend:
    """The one instance for these arguments, made on first use."""
    cls = _load(name)
    if (reason := _why_unusable(name)) is not None:
        usable = ", ".join(info.name for info in backends() if info.usable)
        raise BackendError(f"backend {name!r} cannot be used here: {reason}. Usable: {usable}")
    count = cls.device_count()
    device = 0 if count and device is None else device
    if device is not None and device >= count:
        has = f"has {count} device(s), numbered from 0" if count else "takes no device index"
        raise BackendError(f"backend '{name}:{device}': {name} {has}")
    key = (name, device, reproducible)
    if key not in _instances:
        try:
            threads.set_from_environment()
        except ValueError as error:
            raise BackendError(str(error)) from error
        _instances.setdefault(key, cls(device, reproducible=reproducible))
    return _instances[key]


def resolve(backend: "str | Backend | None" = None, reproducible: bool | None = None) -> Backend:
    """The backend that an argument `backend` names.

    Parameters
    ----------
    backend
        ``"numpy"``, ``"numba"``, ``"cupy"``, ``"cupy:1"``, any registered name, or ``"auto"``
        (cupy if a GPU works, else numba if installed, else numpy); a `Backend`; or None for the
        current one.
    reproducible
        None keeps a `Backend`'s own mode, and for a name the current one: that of
        `get_backend`, which XNET_REPRODUCIBLE sets from outside.

    Returns
    -------
    Backend
        The one instance for that name, device and mode.

    Raises
    ------
    BackendError
        Unknown name (the near miss is suggested), or not usable here (with what would help); in
        reproducible mode also one whose arithmetic is not IEEE 754's: see `xnet.arithmetic`.

    Examples
    --------
    >>> import xnet
    >>> xnet.resolve("numpy", reproducible=True)
    <backend numpy reproducible>
    >>> xnet.resolve("nunpy")
    Traceback (most recent call last):
        ...
    xnet.errors.BackendError: unknown backend 'nunpy'; did you mean 'numpy'? ...
    """
    return sound(_chosen(get_backend() if backend is None else backend, reproducible))


def _chosen(backend: str | Backend, reproducible: bool | None) -> Backend:
    """That backend, whatever its arithmetic."""
    if isinstance(backend, Backend):
        if reproducible is None or reproducible == backend.reproducible:
            return backend
        return _instance(backend.name, backend.device, reproducible)
    if not isinstance(backend, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"backend is a {type(backend).__name__}, expected a name or a Backend")
    if reproducible is None:
        reproducible = _current_mode()
    if backend == "auto":
        usable = [name for name in AUTO_ORDER if not _why_unusable(name)]
        return _instance(usable[0], None, reproducible)
    name, colon, index = backend.partition(":")
    if colon and not (index.isascii() and index.isdigit()):
        raise BackendError(f"backend {backend!r}: {index!r} is not a device index (0, 1, ...)")
    return _instance(name, int(index) if colon else None, reproducible)


# -- selection

_default: Backend | None = None
_current = contextvars.ContextVar["Current | None"]("backend", default=None)


def _of_block() -> Backend | None:
    """That of the innermost block, unless it is over: a generator's may be ended from elsewhere."""
    while (block := _current.get()) and block.over:
        _current.set(block.before)
    return block and block.backend


def _reproducible_from_environment() -> bool:
    value = os.environ.get("XNET_REPRODUCIBLE", "").strip()
    if value not in ("", "0", "1"):
        raise BackendError(f"XNET_REPRODUCIBLE is {value!r}, expected 0 or 1")
    return value == "1"


def _current_mode() -> bool:
    current = _of_block() or _default
    return _reproducible_from_environment() if current is None else current.reproducible


def get_backend() -> Backend:
    """The current backend.

    That of the innermost `use_backend` block, else the process's own (`set_backend`), else the
    one XNET_BACKEND names, else numpy. The environment is read when it is first needed.

    Returns
    -------
    Backend
        What is used where no argument names one.

    Raises
    ------
    BackendError
        The environment names one that is unknown or cannot be used here, or no mode.

    Examples
    --------
    >>> import xnet
    >>> with xnet.use_backend("numpy", reproducible=True):
    ...     print(xnet.get_backend())
    <backend numpy reproducible>
    """
    global _default
    current = _of_block() or _default
    if current is None:
        name = os.environ.get("XNET_BACKEND", "").strip() or "numpy"
        reproducible = _reproducible_from_environment()
        try:
            current = _default = resolve(name, reproducible)
        except BackendError as error:
            if "XNET_BACKEND" not in os.environ:
                raise
            raise BackendError(f"XNET_BACKEND={name}: {error}") from error
    return sound(current)


def set_backend(backend: str | Backend, reproducible: bool | None = None) -> Backend:
    """Make `backend` the process's own, wherever no `use_backend` block says otherwise.

    Parameters
    ----------
    backend, reproducible
        As in `resolve`, but None names no backend here.

    Returns
    -------
    Backend
        The one that is the process's own now.

    Raises
    ------
    BackendError
        As in `resolve`; the process's own stays what it was.
    TypeError
        It is neither a name nor a `Backend`.

    Examples
    --------
    >>> import xnet
    >>> xnet.set_backend("numpy", reproducible=False)
    <backend numpy>
    """
    global _default
    if not isinstance(backend, str | Backend):  # pyright: ignore[reportUnnecessaryIsInstance]
        # None would make the current block's backend the process's.
        raise TypeError(f"backend is a {type(backend).__name__}, expected a name or a Backend")
    _default = resolve(backend, reproducible)
    return _default


@contextlib.contextmanager
def use_backend(
    backend: str | Backend | None = None, reproducible: bool | None = None
) -> Generator[Backend]:
    """Make `backend` current within the block, in this thread or asyncio task alone.

    Without a name it is the current backend in the mode asked for. Around a generator's ``yield``
    the block holds for the caller too, until the generator is finished or closed.

    Parameters
    ----------
    backend, reproducible
        As in `resolve`.

    Yields
    ------
    Backend
        The one that is current within the block.

    Raises
    ------
    BackendError
        As in `resolve`.

    Examples
    --------
    >>> import xnet
    >>> with xnet.use_backend("numpy", reproducible=True) as backend:
    ...     print(backend, xnet.activations.sigmoid([1.0]).tolist())
    <backend numpy reproducible> [0.7310585786300049]
    """
    block = Current(resolve(backend, reproducible))
    token = _current.set(block)
    try:
        yield block.backend
    finally:
        # A task begun in the block goes on in it. But a generator may be closed within a later one,
        # or by an event loop in another context: then the block is over wherever it is met.
        block.over = True
        with contextlib.suppress(ValueError):
            if _current.get() is block:
                _current.reset(token)
                block.over = False


class Current:
    """Block in which a backend is current, and runs as it means to: for what is entered often.

    A Ctrl-C within it or on its way in leaves what was current before; one in the very moment in
    which Python begins `__exit__` does not.
    """

    __slots__ = ("backend", "before", "over", "running")

    def __init__(self, backend: Backend) -> None:
        self.backend, self.before, self.over = sound(backend), _current.get(), False

    def __enter__(self) -> None:
        try:
            _current.set(self)
            self.running = self.backend.running()
            self.running.__enter__()
        except BaseException:
            _current.set(self.before)
            raise

    def __exit__(self, *error: Any) -> None:
        try:
            self.running.__exit__(*error)
        finally:
            _current.set(self.before)


# -- arrays decide, the current backend breaks ties


def owner_of(array: Array, name: str = "array") -> Backend:
    """The backend that owns `array`; where several do, the current one, else the reference."""
    current = get_backend()
    if current.owns(array):
        return current
    if type(array).__module__ != "builtins":
        for candidate in _every_backend(current.reproducible):
            if candidate.owns(array):
                return candidate
    raise refusal(array, name, "a usable backend")


def _every_backend(reproducible: bool) -> Iterator[Backend]:
    """Every backend whose arrays there can be, the reference first, those in use before others."""
    names = list(_registry())
    in_use = [b for b in list(_instances.values()) if b.reproducible == reproducible]
    yield from sorted(in_use, key=lambda backend: names.index(backend.name))
    for name in names:
        if _why_unusable(name) is None:
            for device in range(_load(name).device_count()) or [None]:
                yield _instance(name, device, reproducible)


def backend_of(**arrays: Array) -> Backend:
    """The backend that owns all the `arrays`, given by the names that an error should use.

    Parameters
    ----------
    **arrays
        By their names; one at least.

    Returns
    -------
    Backend
        In the mode of the current one.

    Raises
    ------
    BackendError
        The arrays live on two devices.
    TypeError
        One of them is no backend's array.

    Examples
    --------
    >>> import numpy as np
    >>> from xnet.backend import backend_of
    >>> backend_of(x=np.ones(3), t=np.zeros(3))
    <backend numpy>
    >>> backend_of(x="one")
    Traceback (most recent call last):
        ...
    TypeError: x is a str, expected an array of a usable backend ...
    """
    current = get_backend()
    if all(map(current.owns, arrays.values())):
        return current
    owners = {name: owner_of(array, name) for name, array in arrays.items()}
    distinct = list(dict.fromkeys(owners.values()))
    if len(distinct) == 1:
        return sound(distinct[0])
    where = ", ".join(f"{name} is on {backend.label}" for name, backend in owners.items())
    raise BackendError(
        f"arrays of two devices in one call: {where}. Nothing moves silently: move one, as with "
        f'xnet.resolve("{distinct[0].label}").asarray(...)'
    )


def compiler_of(f: object, x: Array) -> Backend | None:
    """The usable backend that has compiled f and owns x; None if there is none."""
    for name in _registry():
        try:
            compiles = _load(name).compiles(f)
        except BackendError:  # a broken plug-in compiles nothing
            continue
        if compiles and _why_unusable(name) is None and _instance(name, None, False).owns(x):
            return _instance(name, None, False)
    return None
