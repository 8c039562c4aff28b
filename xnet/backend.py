"""Backends: an array namespace plus the kernels it runs faster than the generic ones.

A backend is a subclass of :class:`Backend` with a `name`, an array-API namespace `xp` and
`owns`. Everything else has a generic form here, in terms of `xp` and the four operations that
decide the bits (`matmul`, `sum`, `exp`, `log`); a backend overrides what it runs faster, with the
same signature and the same meaning. A package registers its class under the entry-point group
``xnet.backends``; the three that come with xnet use that same door and no other.
"""

import contextlib
import contextvars
import difflib
import os
from collections.abc import Generator, Iterator
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, ClassVar, TypeAlias

from xnet import exact, perturbation, threads
from xnet.errors import BackendError
from xnet.perturbation import Step

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

    import numpy as np

Array: TypeAlias = Any
"""An array of any backend's library. The libraries share no static type, so none is claimed."""

ENTRY_POINT_GROUP = "xnet.backends"
AUTO_ORDER = ("cupy", "numba", "numpy")
"""What ``"auto"`` tries, fastest first."""

BLOCK = 1 << 20
"""Numbers in the widest array of a block of rows: 8 MiB in float64."""

LOG_OFFSET = 1e-7
"""The delta inside the logarithm of the cross-entropy error, so that log never sees 0 (§4.2.2)."""


@dataclass(eq=False)
class Stack:
    """The layers of a network as the kernels that they are, for the fused kernels of `Backend`.

    Attributes
    ----------
    steps
        From input to scores, as in `Backend.loss_differences`; they never change.
    prepared
        For the backend to keep what it makes of the steps.
    widest
        Columns of the widest array that a step makes.
    """

    steps: list[Step]
    prepared: Any = None

    def __post_init__(self) -> None:
        affine = (step[1].shape[1] for step in self.steps if step[0] == "affine")
        self.widest: int = max(affine, default=1)


class Backend:
    """An array library seen through the few operations that xnet needs.

    Parameters
    ----------
    device
        Index of the device, for a backend whose `device_count` is not 0.
    reproducible
        Whether the four operations give the same bits on every backend.
    """

    name: ClassVar[str]
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

    def asarray(self, values: Any, dtype: Any = None) -> Array:
        """`values` (numbers, nested lists, or an array of any backend) as an array here.

        This and `to_numpy` are the only ways across devices. No copy is made of an array that
        is here already and has the dtype asked for.
        """
        if not isinstance(values, list | tuple | bool | int | float) and not self.owns(values):
            values = owner_of(values).to_numpy(values)
        if dtype is None:
            return self.xp.asarray(values)
        return self.xp.asarray(values, dtype=getattr(self.xp, dtype_name(dtype)))

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

        That is on its device, and with infinity and NaN made in silence, as IEEE 754 has them.
        """
        return contextlib.nullcontext()

    # -- the four operations that decide the bits; in reproducible mode those of `xnet.exact`.
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
        return exact.exp(self.xp, a) if self.reproducible else self.xp.exp(a)

    def log(self, a: Array) -> Array:
        """Natural logarithm of each element."""
        return exact.log(self.xp, a) if self.reproducible else self.xp.log(a)

    # -- kernels: generic forms. Arrays are floating point, of one dtype, and checked by the caller

    def affine(self, x: Array, W: Array, b: Array) -> Array:
        """x W + b for x (N, D), W (D, M), b (M,): (N, M), §5.6."""
        return self.matmul(x, W) + b

    def affine_backward(self, dout: Array, x: Array, W: Array) -> tuple[Array, Array, Array]:
        """Gradients (N, D), (D, M), (M,) of x W + b by x, W, b, from `dout` (N, M), §5.6."""
        return self.matmul(dout, W.T), *self.affine_gradients(dout, x)

    def affine_gradients(self, dout: Array, x: Array) -> tuple[Array, Array]:
        """Those by W and b alone, for a first layer: nobody asks for the one by x."""
        return self.matmul(x.T, dout), self.sum(dout, axis=0)

    def sigmoid(self, x: Array) -> Array:
        """1 / (1 + exp(-x)) elementwise (§3.2.4); exp only ever sees -|x|: it cannot overflow."""
        z = self.exp(-self.xp.abs(x))
        y = 1 / (1 + z)
        return self.xp.where(x >= 0, y, z * y)

    def sigmoid_backward(self, dout: Array, y: Array) -> Array:
        """Gradient of the sigmoid by its input, from its output `y`: dout (1 - y) y, §5.5.2."""
        return dout * (1 - y) * y

    def relu(self, x: Array) -> Array:
        """0 where x <= 0, x elsewhere (§3.2.7); NaN stays NaN."""
        return self.xp.where(x <= 0, self.xp.zeros_like(x), x)

    def relu_backward(self, dout: Array, mask: Array) -> Array:
        """`dout` with zeros where `mask` (the input was <= 0), §5.5.1."""
        return self.xp.where(mask, self.xp.zeros_like(dout), dout)

    def softmax(self, x: Array) -> Array:
        """exp(x) / sum of exp(x) over the last axis; the maximum goes first (§3.5.3)."""
        e = self.exp(x - self.xp.max(x, axis=-1, keepdims=True))
        return e / self.sum(e, axis=-1, keepdims=True)

    def softmax_with_loss(self, x: Array, t: Array) -> tuple[Array, Array]:
        """Mean cross-entropy error of softmax(x) against targets t, and softmax(x).

        x and t are (N, C); the error, §4.2.4, is 0-d: -sum(t log(y + 1e-7)) / N.
        """
        y = self.softmax(x)
        return -self.sum(t * self.log(y + LOG_OFFSET)) / x.shape[0], y

    def softmax_with_loss_backward(self, y: Array, t: Array, dout: float = 1.0) -> Array:
        """Gradient of `softmax_with_loss` by x, from its y, times the number `dout`.

        With r = t y / (y + 1e-7) it is (y sum(r) - r) dout / N. Without the 1e-7, which the
        book's (y - t) / N leaves out, r is t and the two are the same.
        """
        r = t * y / (y + LOG_OFFSET)
        return (y * self.sum(r, axis=-1, keepdims=True) - r) * (dout / y.shape[0])

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
            bad = low if low < 0 else high
            raise ValueError(f"t has label {bad}, expected 0..{classes - 1}")
        every_class = xp.arange(classes, dtype=t.dtype, device=t.device)
        return xp.astype(xp.expand_dims(t, axis=-1) == every_class, dtype)

    def overwrite(self, old: Array, new: Array) -> Array:
        """`new` in the place of `old`, of its shape and dtype: whichever array holds it then.

        That is `old` where a backend's arrays can be written, as here they need not be.
        """
        return new

    def descend(self, W: Array, g: Array, lr: float) -> Array:
        """W - lr g, one step of gradient descent, in the place of W as by `overwrite`."""
        return self.overwrite(W, W - lr * g)

    # -- fused kernels: a whole stack of layers in one call

    def forward(self, x: Array, stack: Stack, probabilities: bool) -> Array:
        """The scores (N, C) of x (N, D), or with `probabilities` their softmax.

        Rows go through all layers in blocks, so that what lies between two layers stays small
        however long x is: a row's result does not depend on its neighbours but by rounding, and
        in reproducible mode not at all.
        """
        # The widest array of a block holds BLOCK numbers.
        widest = max(x.shape[1], stack.widest)
        if x.shape[0] * widest <= BLOCK:
            return self.through(x, stack, probabilities)
        rows = max(1, BLOCK // widest)
        starts = range(0, x.shape[0], rows)
        blocks = (x[start : min(start + rows, x.shape[0]), ...] for start in starts)
        return self.xp.concat([self.through(block, stack, probabilities) for block in blocks])

    def through(self, x: Array, stack: Stack, probabilities: bool) -> Array:
        """One block of rows of `forward`."""
        with self.running():
            for kernel, *arrays in stack.steps:
                x = getattr(self, kernel)(x, *arrays)
            return self.softmax(x) if probabilities else x

    def loss_and_gradients(
        self, x: Array, t: Array, stack: Stack, loss: str
    ) -> tuple[Array, list[tuple[Array, Array]]]:
        """The mean loss, 0-d, and its gradients by W and b of each affine step, in their order.

        Backpropagation (§5.7), as the layers' own `forward` and `backward` do it.

        Parameters
        ----------
        x
            (N, D).
        stack
            Its steps are ``("affine", W, b)``, ``("sigmoid",)`` and ``("relu",)``, the first of
            them affine.
        loss, t
            As in `row_losses`, t (N, C) of x's dtype.
        """
        with self.running():
            outputs = [x]  # of the steps so far
            for kernel, *arrays in stack.steps:
                outputs.append(getattr(self, kernel)(outputs[-1], *arrays))
            if loss == "cross_entropy":
                value, y = self.softmax_with_loss(outputs[-1], t)
                dout = self.softmax_with_loss_backward(y, t)
            else:
                difference = outputs[-1] - t
                value = self.sum(difference * difference) * (0.5 / t.shape[0])
                dout = difference * (1 / t.shape[0])
            gradients: list[tuple[Array, Array]] = []
            for k in reversed(range(1, len(stack.steps))):
                kernel, *arrays = stack.steps[k]
                if kernel == "affine":
                    dout, dW, db = self.affine_backward(dout, outputs[k], arrays[0])
                    gradients.append((dW, db))
                elif kernel == "sigmoid":
                    dout = self.sigmoid_backward(dout, outputs[k + 1])
                else:
                    dout = self.relu_backward(dout, outputs[k] <= 0)
            gradients.append(self.affine_gradients(dout, x))
            return value, gradients[::-1]

    def train_step(self, x: Array, t: Array, stack: Stack, loss: str, lr: float) -> Array | None:
        """The mean loss, 0-d; and each W and b of the stack is moved as by `descend`, in its place.

        All of them or, if Ctrl-C comes, none. Parameters as in `loss_and_gradients`. None where
        an array cannot be written, and then nothing is.
        """
        return None

    def row_losses(self, scores: Array, loss: str, t: Array) -> Array:
        """The loss of each row, (...), of `scores` (..., C) against targets t of that shape.

        `loss` is ``"cross_entropy"``, of the softmax of the scores, or ``"squared_error"``.
        """
        if loss == "cross_entropy":
            return -self.sum(t * self.log(self.softmax(scores) + LOG_OFFSET), axis=-1)
        difference = scores - t
        return 0.5 * self.sum(difference * difference, axis=-1)

    def loss_differences(
        self, x: Array, a: Array, steps: list[Step], loss: str, t: Array, h: float
    ) -> Array:
        """L(w + h) - L(w - h) for every weight and bias w of one affine layer, (D + 1, M).

        Each loss is really evaluated at the perturbed weight; the mean over the N samples of
        `row_losses`. Row i holds the weights from input i, the last row the biases.

        Parameters
        ----------
        x, a
            The layer's input (N, D) and its output (N, M).
        steps
            What lies between that output and the scores: ``("sigmoid",)``, ``("relu",)`` or
            ``("affine", W, b)``, each a kernel of this class with the arrays it takes.
        loss, t
            As in `row_losses`, t (N, C).
        h
            Size of the perturbation.
        """
        return perturbation.loss_differences(self, x, a, steps, loss, t, h)

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
    """One registered backend: its name, whether it works here, and if not, why and what helps."""

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
    """Every registered backend, with whether it is usable here and why not."""
    reasons = {name: _why_unusable(name) for name in _registry()}
    return [BackendInfo(name, reason is None, reason) for name, reason in reasons.items()]


_instances: dict[tuple[str, int | None, bool], Backend] = {}


def _instance(name: str, device: int | None, reproducible: bool) -> Backend:
    """The one instance for these arguments, made on first use."""
    cls = _load(name)
    reason = _why_unusable(name)
    if reason is not None:
        usable = ", ".join(info.name for info in backends() if info.usable)
        raise BackendError(f"backend {name!r} cannot be used here: {reason}. Usable: {usable}")
    count = cls.device_count()
    if count and device is None:
        device = 0
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

    Raises
    ------
    BackendError
        Unknown name (the near miss is suggested), or not usable here (with what would help).
    """
    if backend is None:
        backend = get_backend()
    if isinstance(backend, Backend):
        if reproducible is None or reproducible == backend.reproducible:
            return backend
        return _instance(backend.name, backend.device, reproducible)
    if not isinstance(backend, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"backend is a {type(backend).__name__}, expected a name or a Backend")
    if reproducible is None:
        reproducible = _current_mode()
    if backend == "auto":
        usable = [name for name in AUTO_ORDER if name in _registry() and not _why_unusable(name)]
        return _instance(usable[0], None, reproducible)
    name, colon, index = backend.partition(":")
    if colon and not (index.isascii() and index.isdigit()):
        raise BackendError(f"backend {backend!r}: {index!r} is not a device index (0, 1, ...)")
    return _instance(name, int(index) if colon else None, reproducible)


# -- selection

_default: Backend | None = None
_current: contextvars.ContextVar[Backend | None] = contextvars.ContextVar("backend", default=None)


def _reproducible_from_environment() -> bool:
    value = os.environ.get("XNET_REPRODUCIBLE", "").strip()
    if value not in ("", "0", "1"):
        raise BackendError(f"XNET_REPRODUCIBLE is {value!r}, expected 0 or 1")
    return value == "1"


def _current_mode() -> bool:
    current = _current.get() or _default
    return _reproducible_from_environment() if current is None else current.reproducible


def get_backend() -> Backend:
    """The current backend.

    That of the innermost `use_backend` block, else the process's own (`set_backend`), else the
    one XNET_BACKEND names, else numpy. The environment is read when it is first needed.
    """
    global _default
    current = _current.get()
    if current is not None:
        return current
    if _default is None:
        name = os.environ.get("XNET_BACKEND", "").strip() or "numpy"
        reproducible = _reproducible_from_environment()
        try:
            _default = resolve(name, reproducible)
        except BackendError as error:
            if "XNET_BACKEND" not in os.environ:
                raise
            raise BackendError(f"XNET_BACKEND={name}: {error}") from error
    return _default


def set_backend(backend: str | Backend, reproducible: bool | None = None) -> Backend:
    """Make `backend` the process's own, wherever no `use_backend` block says otherwise."""
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

    Without a name it is the current backend in the mode asked for.
    """
    chosen = resolve(backend, reproducible)
    token = _current.set(chosen)
    try:
        yield chosen
    finally:
        _current.reset(token)


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
    raise TypeError(
        f"{name} is a {type(array).__name__}, expected an array of a usable backend "
        f"(xnet.get_backend().asarray(...) makes one)"
    )


def _every_backend(reproducible: bool) -> Iterator[Backend]:
    """Every backend whose arrays there can be, the reference first, those in use before others."""
    names = list(_registry())
    in_use = [b for b in list(_instances.values()) if b.reproducible == reproducible]
    yield from sorted(in_use, key=lambda backend: names.index(backend.name))
    for name in names:
        if _why_unusable(name) is None:
            count = _load(name).device_count()
            for device in range(count) if count else [None]:
                yield _instance(name, device, reproducible)


def backend_of(**arrays: Array) -> Backend:
    """The backend that owns all the `arrays`, given by the names that an error should use.

    Raises
    ------
    BackendError
        The arrays live on two devices.
    TypeError
        One of them is no backend's array.
    """
    current = get_backend()
    for array in arrays.values():
        if not current.owns(array):
            break
    else:
        return current
    owners = {name: owner_of(array, name) for name, array in arrays.items()}
    distinct = list(dict.fromkeys(owners.values()))
    if len(distinct) == 1:
        return distinct[0]
    where = ", ".join(f"{name} is on {backend.label}" for name, backend in owners.items())
    raise BackendError(
        f"arrays of two devices in one call: {where}. Nothing moves silently: move one with "
        f"asarray of the backend it should be on, "
        f'as in xnet.resolve("{distinct[0].label}").asarray(...)'
    )


def compiler_of(f: object, x: Array) -> Backend | None:
    """The usable backend that has compiled f and owns x; None if there is none."""
    for name in _registry():
        try:
            compiles = _load(name).compiles(f)
        except BackendError:  # a broken plug-in compiles nothing
            continue
        if compiles and _why_unusable(name) is None:
            backend = _instance(name, None, False)
            if backend.owns(x):
                return backend
    return None


def dtype_name(dtype: Any) -> str:
    """``"float32"`` from that string or from any library's dtype object."""
    if isinstance(dtype, str):
        return dtype
    name = getattr(dtype, "name", None) or getattr(dtype, "__name__", None) or str(dtype)
    return str(name).rsplit(".", 1)[-1]


def float_dtype(dtype: Any, name: str = "dtype") -> str:
    """`dtype` as ``"float32"`` or ``"float64"``; anything else is refused."""
    found = dtype_name(dtype)
    if found not in ("float32", "float64"):
        raise ValueError(f"{name} is {found}, expected float32 or float64")
    return found
