"""Numerical differentiation (§4.3), gradients and gradient descent by it (§4.4).

A central difference (f(x + h) - f(x - h)) / 2h is wrong by about ``h^2 |f'''| / 6``, for it cuts a
series, and by about ``u |f| / h``, for f is rounded to a unit of u (Nocedal & Wright, Numerical
Optimization, §8.1). The sum is least near ``h = (3 u |f| / |f'''|)^(1/3)``, the cube root of u
where f and its derivatives are of one size (Numerical Recipes, §5.7): 5e-6 in float64, 4e-3 in
float32.
"""

import itertools
import math
import numbers
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeAlias

from xnet import perturbation
from xnet.backend import Array, Backend, Run, backend_of, compiler_of, resolve
from xnet.dtypes import dtype_name
from xnet.errors import RoundingWarning
from xnet.losses import batch_and_targets
from xnet.operations import Loss

__all__ = [
    "DEFAULT_STEPS",
    "gradient_descent",
    "numerical_diff",
    "numerical_gradient",
    "partial_derivative",
]

DEFAULT_STEPS = {"float64": 1e-4, "float32": 5e-3}
"""h where none is given: the notes' own in float64, where it leaves f's rounding, ``1e-12 |f|``,
far below the truncation, ``2e-9 |f'''|``; in float32 the cube root of the rounding, as above."""

SMALLEST_FLOAT32_STEP = 1e-3
"""With a smaller h, the rounding of f in float32 (6e-8 f / h) leaves fewer than four digits."""

ROUNDINGS = 8
"""A difference of no more units of u |f| than this may be nothing but the rounding of f."""

FARTHEST = 2048
"""Steps by which an element near 0 is moved, at most, to see whether f has a slope at all."""

Index: TypeAlias = tuple[int, ...]
Values: TypeAlias = Callable[[Array, Array, Array, range], tuple[Array, Array]]
"""A way to evaluate f; see below."""


def numerical_diff(f: Callable[[Any], Any], x: Any, h: float | None = None) -> Any:
    """Central difference (f(x + h) - f(x - h)) / 2h, an estimate of df/dx (§4.3.2).

    Parameters
    ----------
    f
        A function of one number, or elementwise on an array.
    x
        Where: a number, or an array of float64 or float32.
    h
        Step; None for the one that suits x's dtype, `DEFAULT_STEPS`: 1e-4 for a number.

    Returns
    -------
    number or Array
        As f returns them: a number for a number.

    Raises
    ------
    ValueError
        h is not a positive number, or too small for float32.

    Warns
    -----
    RoundingWarning
        x + h or x - h is rounded to something else, x itself at worst; or rounding drowns
        f(x + h) - f(x - h), as in `numerical_gradient`.

    Examples
    --------
    >>> import xnet
    >>> def f(x):
    ...     return 0.01 * x * x + 0.1 * x
    >>> round(xnet.numerical_diff(f, 5.0), 8), round(xnet.numerical_diff(f, 10.0), 8)
    (0.2, 0.3)
    """
    dtype = dtype_name(getattr(x, "dtype", "float64"))
    h = checked_step(h, dtype if dtype == "float32" else "float64")
    up, down = x + h, x - h
    number = isinstance(x, numbers.Real)
    backend = resolve("numpy") if number else backend_of(x=x)
    with backend.running():
        moved = backend.asarray(up), backend.asarray(down)
        lost = _warn_of_lost_steps(backend, *moved, h)
    above = f(up)
    if backend.owns(above):  # f may write its next value there
        above = backend.xp.asarray(above, copy=True)
    below = f(down)
    if not lost and _is_real(backend, above) and _is_real(backend, below):
        with backend.running():

            def at(v: Array) -> Array:
                return backend.asarray(f(float(v) if number else v))

            here = (moved[0] + moved[1]) / 2  # x, if that is whole numbers, too
            values = backend.asarray(above), backend.asarray(below)
            _warn_of_rounding(backend, at, here, None, *values, h)
    return (above - below) / (2 * h)


def _is_real(backend: Backend, values: Any) -> bool:
    """Whether f returned real numbers that this backend can look at."""
    if not backend.owns(values):
        return isinstance(values, numbers.Real)
    return backend.xp.isdtype(values.dtype, ("integral", "real floating"))


def numerical_gradient(
    f: Callable[[Array], Any], x: Array, h: float | None = None, *, method: str | None = None
) -> Array:
    """Gradient of f at x by central differences, one element at a time (§4.4).

    Parameters
    ----------
    f
        Function of x that returns one number: of Python, or a 0-d array where x is.
    x
        float64 or float32, any shape.
    h
        Step; None for the one that suits x's dtype, `DEFAULT_STEPS`.
    method
        How f is evaluated 2 x.size times; the values are the same.

        ``"loop"`` calls f with x itself, perturbed in place: f may ignore its argument and read
        x by closure, as the notes do. x is restored to the bit whatever f raises, and on Ctrl-C.
        Nothing moves between host and device, unless f does it.

        ``"stacked"`` calls f with copies of x, each with one element perturbed, along a new first
        axis: f takes (K, ...) for an x of shape (...) and returns (K,). A stack holds at most
        `perturbation.LARGEST_STACK` numbers, or one copy. x is left alone: it may be read-only.

        ``"compiled"`` is for an f that a backend has compiled, `numba.njit`: the loop around it
        is compiled too and runs on all of Numba's threads, each with its own copy of x. So f must
        use its argument: what compiled code knows of an array outside it is a copy from when it
        was compiled. x may be read-only.

        None takes ``"compiled"`` for such an f, ``"loop"`` for any other.

    Returns
    -------
    Array
        The shape and dtype of x.

    Raises
    ------
    ValueError
        x is neither float32 nor float64; h is not a positive number, or below 1e-3 for float32,
        for then the answer is noise; x cannot be written in a loop; f changes its argument, which
        all that it is called with afterwards would follow from; an unknown method, or compiled
        for an f that is not.
    TypeError
        f returns something other than one number; or, stacked, other than K numbers; or it does
        not compile for an array like x.

    Warns
    -----
    RoundingWarning
        x + h or x - h is rounded to something else, x itself at worst; f returns float32 numbers
        for an x of float64, and h is below 1e-3; or all differences are of the size of f's own
        rounding, or 0, and a longer step shows a slope that they do not.

    Notes
    -----
    Memory: seven arrays of the shape of x, in a loop; two stacks; or a copy of x for each thread.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([3.0, 4.0])
    >>> xnet.numerical_gradient(lambda x: (x * x).sum(), x).round(6).tolist()
    [6.0, 8.0]
    >>> stacked = xnet.numerical_gradient(lambda x: (x * x).sum(axis=1), x, method="stacked")
    >>> stacked.round(6).tolist()
    [6.0, 8.0]
    """
    backend = backend_of(x=x)
    h = checked_step(h, dtype_name(x.dtype))
    if method not in (None, "loop", "stacked", "compiled"):
        raise ValueError(f"method is {method!r}, expected 'loop', 'stacked', 'compiled' or None")
    compiler = compiler_of(f, x) if method in (None, "compiled") else None
    if method == "compiled" and compiler is None:
        raise ValueError(
            "method='compiled': no backend has compiled f for x; make it with numba.njit"
        )

    def values(base: Array, up: Array, down: Array, span: range) -> tuple[Array, Array]:
        if compiler is not None:
            return compiler.compiled_values(f, base, up, down, span)
        if method == "stacked":
            above, below = (_stacked(backend, f, base, moved, span) for moved in (up, down))
            return above, below
        return _looped(backend, f, x, base, up, down, span)

    slopes = _slopes(backend, values, x, h, range(math.prod(x.shape)))
    with backend.running():
        return backend.xp.reshape(slopes, x.shape)


def partial_derivative(
    f: Callable[[Array], Any], x: Array, index: int | Index, h: float | None = None
) -> Array:
    """Derivative of f by one element of x, the others fixed (§4.3.3).

    Parameters
    ----------
    f, x, h
        As in `numerical_gradient`, which perturbs x in place and restores it likewise.
    index
        The element's index: for an x of one axis a number, else one for each axis.

    Returns
    -------
    Array
        0-d, of x's dtype.

    Raises
    ------
    IndexError
        x has no such element.
    ValueError, TypeError
        As `numerical_gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> x = np.array([3.0, 4.0])
    >>> round(xnet.partial_derivative(lambda x: (x * x).sum(), x, 1).item(), 6)
    8.0
    """
    backend = backend_of(x=x)
    h = checked_step(h, dtype_name(x.dtype))
    place = index if isinstance(index, tuple) else (index,)
    flat = 0
    try:
        for k, n in zip(place, x.shape, strict=True):
            flat = flat * n + range(n)[k]
    except (IndexError, ValueError):
        raise IndexError(f"index is {index}, x has shape {tuple(x.shape)}") from None
    values = partial(_looped, backend, f, x)
    slopes = _slopes(backend, values, x, h, range(flat, flat + 1))
    with backend.running():
        return slopes[0, ...]


def checked_step(h: float | None, dtype: str = "float64") -> float:
    """`h`, or the default for this dtype; ValueError if it is no step for such numbers."""
    if dtype not in DEFAULT_STEPS:
        raise ValueError(
            f"numerical_gradient: x is {dtype}, too coarse to hold x + h; expected float64"
        )
    if h is None:
        return DEFAULT_STEPS[dtype]
    if not (math.isfinite(h) and h > 0):
        raise ValueError(f"h is {h}, expected a positive number")
    if dtype == "float32" and h < SMALLEST_FLOAT32_STEP:
        raise ValueError(
            f"numerical_gradient: x is float32, where h={h} gives noise; use float64, "
            f"or h of {SMALLEST_FLOAT32_STEP} or more ({DEFAULT_STEPS['float32']} is about best)"
        )
    return h


def _slopes(backend: Backend, values: Values, x: Array, h: float, span: range) -> Array:
    """The central differences over 2h for a span of x's elements, (len(span),), of x's dtype."""
    xp = backend.xp
    with backend.running():
        up, down = x + h, x - h
        asked = [xp.reshape(v, (-1,))[span.start : span.stop] for v in (up, down)]
        lost = _warn_of_lost_steps(backend, asked[0], asked[1], h, stacklevel=4)
        above, below = values(x, up, down, span)

        def at(z: Array) -> Array:
            above, _ = values(z, z, z, range(1))
            return above[0, ...]

        if span and not lost:
            _warn_of_rounding(backend, at, x, span, above, below, h, stacklevel=4)
        return xp.astype((above - below) / (2 * h), x.dtype)


# -- the ways to evaluate f: at `base` with one element as in `up`, then as in `down`, for a span of
# elements in C order; two arrays of float64, (len(span),)


def _looped(
    backend: Backend,
    f: Callable[[Array], Any],
    x: Array,
    base: Array,
    up: Array,
    down: Array,
    span: range,
) -> tuple[Array, Array]:
    xp = backend.xp
    above, below = (xp.zeros(len(span), dtype=xp.float64) for _ in range(2))
    original = xp.asarray(x, copy=True)
    base = original if base is x else base
    try:
        x[...] = base
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"numerical_gradient: x cannot be written in place: {error}; "
            "method='stacked' leaves x alone"
        ) from error
    indices = itertools.islice(itertools.product(*map(range, x.shape)), span.start, span.stop)
    try:
        # Elements are copied from array to array: on a device, none leaves it.
        for k, index in enumerate(indices):
            x[index] = up[index]
            handed = None if k else xp.asarray(x, copy=True)
            above[k] = _number(backend, f(x))
            if handed is not None:  # what is changed now may be changed back by the next call
                refuse_changed(xp, x, handed)
            x[index] = down[index]
            below[k] = _number(backend, f(x))
            x[index] = base[index]
        refuse_changed(xp, x, base)
    finally:
        _restore(x, original)
    return above, below


def _restore(x: Array, original: Array) -> None:
    """Write `original` back to x, even if Ctrl-C is pressed once more meanwhile."""
    try:
        x[...] = original
    except KeyboardInterrupt:
        x[...] = original
        raise


def refuse_changed(xp: Any, x: Array, before: Array) -> None:
    """ValueError if f has left its argument x other than it was `before`."""
    if not bool(xp.all((x == before) | ((x != x) & (before != before)))):
        raise ValueError(
            "f changes its argument in place, so later differences would be taken at other points; "
            "have it work on a copy"
        )


def _number(backend: Backend, result: Any) -> Any:
    """What f returned, if it is one real number or a 0-d array of this backend."""
    if isinstance(result, float):  # NumPy's float64 is one
        return result
    if getattr(result, "shape", ()) != ():
        raise TypeError(f"f returned an array of shape {tuple(result.shape)}, expected one number")
    if isinstance(result, numbers.Real):
        return float(result)
    if not backend.owns(result) or "complex" in dtype_name(result.dtype):
        raise TypeError(
            f"f returned {result!r}, expected one real number, "
            f"or a 0-d array of backend {backend.label}"
        )
    return result


def _stacked(
    backend: Backend, f: Callable[[Array], Any], x: Array, moved: Array, span: range
) -> Array:
    xp, size = backend.xp, math.prod(x.shape)
    x_row, moved_row = xp.reshape(x, (1, size)), xp.reshape(moved, (1, size))
    count = max(1, perturbation.LARGEST_STACK // max(1, size))
    parts = [xp.zeros(0, dtype=xp.float64)]
    for start in range(span.start, span.stop, count):
        n = min(count, span.stop - start)
        rows = xp.where(xp.eye(n, size, k=start, dtype=xp.bool), moved_row, x_row)
        values = f(xp.reshape(rows, (n, *x.shape)))
        if not backend.owns(values) or tuple(values.shape) != (n,):
            got = f"shape {tuple(values.shape)}" if hasattr(values, "shape") else repr(values)
            raise TypeError(
                f"method='stacked': f of a stack {(n, *x.shape)} returned {got}, "
                f"expected an array of shape ({n},) of backend {backend.label}"
            )
        parts.append(xp.astype(values, xp.float64))
    return xp.concat(parts)


# -- where rounding drowns the difference


def _is_lost(up: Array, down: Array, h: float) -> Array:
    """Where x + h and x - h are a tenth farther from 2h apart, or nearer, than they should be."""
    return abs((up - down) - 2 * h) > 0.2 * h


def _warn_of_lost_steps(
    backend: Backend, up: Array, down: Array, h: float, stacklevel: int = 3
) -> bool:
    """Whether there are any."""
    lost = int(backend.xp.count_nonzero(_is_lost(up, down, h)))  # what comes back from the device
    if lost:
        warnings.warn(
            f"h={h} is lost in x + h: rounded, the step is wrong by over a tenth in {lost} of "
            f"{math.prod(up.shape)} element(s), and so is the derivative; take a larger h or "
            "scale x",
            RoundingWarning,
            stacklevel=stacklevel,
        )
    return lost > 0


def _warn_of_rounding(
    backend: Backend,
    at: Callable[[Array], Array],
    x: Array,
    span: range | None,
    above: Array,
    below: Array,
    h: float,
    stacklevel: int = 3,
) -> None:
    """Warn if f's values, `above` at x + h and `below` at x - h, are too coarse for h.

    They are one for each element of x in the span, whose slopes are those of one number f(x);
    or, where that is None, f is elementwise. `at` evaluates f anywhere.
    """
    xp = backend.xp
    above, below = (xp.astype(v, xp.float64) for v in (above, below))
    differences, u = xp.abs(above - below), float(xp.finfo(x.dtype).eps) / 2
    if dtype_name(x.dtype) == "float64" and _are_float32(xp, above) and _are_float32(xp, below):
        u = float(xp.finfo(xp.float32).eps) / 2
        if h < SMALLEST_FLOAT32_STEP and bool(xp.any(differences > 0)):
            warnings.warn(
                f"f returns float32 numbers, of which f(x + h) - f(x - h) is noise with h={h}: "
                f"compute f in float64, or take h of {SMALLEST_FLOAT32_STEP} or more "
                f"({DEFAULT_STEPS['float32']} is about best)",
                RoundingWarning,
                stacklevel=stacklevel,
            )
            return
    sizes = xp.abs(above) if span is None else xp.max(xp.abs(above))
    warn_if_drowned(backend, at, x, span, differences, sizes, u, h, stacklevel + 1)


def _are_float32(xp: Any, values: Array) -> bool:
    """Whether numbers of float64 have no more digits than float32 holds."""
    rounded = xp.astype(xp.astype(values, xp.float32), xp.float64)
    return bool(xp.all((rounded == values) | (values != values)))


def warn_if_drowned(
    backend: Backend,
    at: Callable[[Array], Array],
    x: Array,
    span: range | None,
    differences: Array,
    sizes: Array,
    u: float,
    h: float,
    stacklevel: int = 3,
) -> None:
    """Warn if all differences are of the size of f's rounding, though there is a slope.

    As `_warn_of_rounding`, for differences |f(x + h) - f(x - h)| and sizes |f|, rounded to u.
    """
    xp = backend.xp
    noise = ROUNDINGS * u * sizes
    drowned = (differences <= noise) if span is None else xp.all(differences <= noise)
    drowned = drowned & (noise > 0) & (noise < math.inf)
    if bool(xp.any(drowned)) and bool(
        xp.any(drowned & _hides_a_slope(backend, at, x, span, noise, h))
    ):
        warnings.warn(
            f"rounding drowns the differences: f(x + h) - f(x - h) is at most "
            f"{float(xp.max(differences)):.1e} with h={h}, of the size of the rounding of f, which "
            f"is about {float(xp.max(sizes)):.3g}; take a larger h, or take what is constant from "
            "f",
            RoundingWarning,
            stacklevel=stacklevel,
        )


def _hides_a_slope(
    backend: Backend,
    at: Callable[[Array], Array],
    x: Array,
    span: range | None,
    noise: Array,
    h: float,
) -> Array:
    """Where f has a slope that differences of no more than `noise` do not show.

    A gradient that is zero looks the same. So x is moved farther and farther, until f rises out
    of its rounding. A slope that was drowned then comes out alike for the step and its half, above
    the curvature, and no steeper than what can drown; where there is none, what the series leaves
    grows fourfold, or f bends; and where curvature prevails, f has its extremum within the step,
    and the slope is 0 by right. An element moves by half its size at most, so it keeps its sign,
    or by FARTHEST steps if that is more. What f cannot take there proves nothing.
    """
    xp = backend.xp
    reach = xp.maximum(xp.abs(x) / 2, FARTHEST * h + 0 * x)
    if span is not None:
        reach = reach * unlike(xp, x, span)
    halvings = math.ceil(math.log2(max(2.0, float(xp.max(reach)) / (32 * h))))
    undecided, hides = noise > 0, noise < 0
    try:
        here, short = at(x), None
        for k in range(halvings, -1, -1):
            step = reach / 2**k
            up, down = at(x + step), at(x - step)
            long, curvature = up - down, xp.abs(up + down - 2 * here)
            if short is not None:
                moved = step if span is None else xp.sum(step)
                rises = undecided & (xp.abs(long) > 2 * noise)
                straight = xp.abs(long - 2 * short) < xp.abs(long) / 2
                drowns = xp.abs(long) <= 2 * noise * moved / h
                hides = hides | (rises & straight & drowns & (xp.abs(long) > curvature))
                undecided = undecided & ~rises
            short = long
    except Exception:
        return hides
    return hides


GOLDEN = (math.sqrt(5) - 1) / 2
"""Its multiples, less their whole parts, lie as far from each other as can be."""


def unlike(xp: Any, x: Array, span: range, ratio: float = GOLDEN) -> Array:
    """Factors within 1/2 and 1 for the elements of a span, 0 for others: no two slopes cancel.

    They are others for another `ratio`, an irrational number within 0 and 1.
    """
    k = xp.arange(math.prod(x.shape), dtype=xp.float64, device=x.device)
    places = (k + 1) * ratio
    factors = (1 + places - xp.floor(places)) / 2
    factors = xp.where((k >= span.start) & (k < span.stop), factors, 0 * k)
    return xp.reshape(xp.astype(factors, x.dtype), x.shape)


def gradient_descent(
    f: Callable[[Array], Any],
    init_x: Array,
    lr: float = 0.01,
    step_num: int = 100,
    path: list[Array] | None = None,
    *,
    h: float | None = None,
    method: str | None = None,
) -> Array:
    """Walk down the numerical gradient of f: x - lr grad f(x), `step_num` times (§4.4.1).

    Parameters
    ----------
    f
        Function of an array that returns one number.
    init_x
        Where to start: float64 or float32, any shape. It is not changed.
    lr
        Learning rate.
    step_num
        How many steps.
    path
        A list to which every point is appended, the start included.
    h, method
        As in `numerical_gradient`.

    Returns
    -------
    Array
        The last point.

    Raises
    ------
    ValueError, TypeError
        As `numerical_gradient`; or `step_num` is negative.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> path = []
    >>> x = xnet.gradient_descent(lambda x: (x * x).sum(), np.array([-3.0, 4.0]), 0.1, 10, path)
    >>> x.round(4).tolist()
    [-0.3221, 0.4295]
    >>> [x.round(4).tolist() for x in path[:3]]
    [[-3.0, 4.0], [-2.4, 3.2], [-1.92, 2.56]]
    """
    if step_num < 0:
        raise ValueError(f"step_num is {step_num}, expected 0 or more")
    backend = backend_of(init_x=init_x)
    xp = backend.xp
    with backend.running():
        x = xp.asarray(init_x, copy=True)
        if path is not None:
            path.append(xp.asarray(x, copy=True))
        for _ in range(step_num):
            x = x - lr * numerical_gradient(f, x, h, method=method)
            if path is not None:
                path.append(xp.asarray(x, copy=True))
        return x


def incremental_gradient(
    backend: Backend,
    steps: Sequence[Any],
    wanted: Sequence[bool],
    loss: Loss,
    x: Array,
    t: Array,
    h: float,
) -> list[Array]:
    """The central difference (L(w + h) - L(w - h)) / 2h for the parameters w of a network.

    Where batches are spread over ranks, each has the whole of this one, and a share of the w.

    Parameters
    ----------
    steps
        The network's operations with their parameters, from x (N, D) to the scores.
    wanted
        Of each of them, whether it is asked about its parameters.
    loss, t
        A `Loss`, and labels as it is trained with.
    """
    x, t = (backend.ranks.whole(backend, rows) for rows in (x, t))
    inputs = [x]
    for step in steps:
        inputs.append(perturbation.through(backend, [step], inputs[-1]))
    xp, targets = backend.xp, loss.targets(backend.maths, batch_and_targets(inputs[-1], t)[2])
    losses = backend.row_losses(loss, inputs[-1], targets)
    if not bool(xp.all(xp.isfinite(losses))):
        # Their mean is no number, whatever is perturbed.
        asked = [v for step, yes in zip(steps, wanted, strict=True) if yes for v in step[1]]
        return [xp.full_like(v, float("nan")) for v in asked]
    found: list[Array] = []
    size, u = xp.abs(backend.sum(losses)) / x.shape[0], float(xp.finfo(x.dtype).eps) / 2
    for k, (operation, parameters) in enumerate(steps):
        if not (wanted[k] and parameters):
            continue
        if operation.fuses == "product":
            rest = Run([o for o, _ in steps[k + 1 :]], [p for _, p in steps[k + 1 :]])
            arrays = inputs[k], inputs[k + 1], rest
            together = backend.loss_differences(*arrays, loss, targets, h)
            differences = [together[:-1, :], together[-1, :]]
        else:
            differences = perturbation.parameter_differences(
                backend, inputs[k], list(steps[k:]), loss, targets, h
            )
        for i, (W, by_W) in enumerate(zip(parameters, differences, strict=True)):

            def at(moved: Array, i: int = i, k: int = k) -> Array:
                operation, parameters = steps[k]
                changed = operation, (*parameters[:i], moved, *parameters[i + 1 :])
                scores = perturbation.through(backend, [changed, *steps[k + 1 :]], inputs[k])
                return backend.sum(backend.row_losses(loss, scores, targets)) / x.shape[0]

            span = range(math.prod(W.shape))
            warn_if_drowned(backend, at, W, span, xp.abs(by_W), size, u, h, stacklevel=4)
        found += [by_W / (2 * h) for by_W in differences]
    return found
