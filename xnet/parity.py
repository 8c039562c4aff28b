"""Do the backends agree? Every operation of the library on each of them, against NumPy.

In reproducible mode two results are equal or they are not: the bits are compared. In fast mode
they may differ by what rounding can do, no more; how much that is follows from the shapes and the
numbers by rounding-error analysis, with u half the distance from 1 to the next number and
gamma_n = n u / (1 - n u), the relative error of n operations (Higham 2002, "Accuracy and Stability
of Numerical Algorithms", §3.1).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np

from xnet import activations, losses, optimizers, weights
from xnet.backend import LOG_OFFSET, Array, Backend, use_backend
from xnet.layers import ACTIVATIONS, LOSSES, Add, Affine, Mul
from xnet.network import Network
from xnet.training import train

Host: TypeAlias = np.ndarray[Any, Any]
Draw: TypeAlias = Callable[[int, int], Host]
"""Makes a float64 matrix of the shape asked for: the kind of numbers an operation is tried on."""

LIBRARY_ULPS = 4
"""How far, in units in the last place, two libraries' exp or log may be apart."""

N, D, M, C = 20, 30, 12, 10
"""Samples, inputs, units and classes of the operations' arrays."""

ROW_LOSSES = ("cross_entropy", "squared_error")

STEP = 1e-4
"""The h of the numerical gradient."""


@dataclass(frozen=True)
class Operation:
    """Something that the library computes.

    Attributes
    ----------
    name
        As the table has it.
    arrays
        Makes the inputs, float64, from `Draw`.
    run
        Computes on a backend, from those inputs there in the dtype tried, a list of arrays.
    bound
        How far two fast backends' results may be apart: arrays that broadcast against the results,
        from u, the inputs and the reference's results, all float64. By default nothing: the
        operation takes numbers one by one and rounds each correctly, in one order.
    dtypes
        What it is tried in.
    """

    name: str
    arrays: Callable[[Draw], list[Host]]
    run: Callable[[Backend, list[Array]], list[Array]]
    bound: Callable[[float, list[Host], list[Host]], list[Any]] = lambda u, i, o: [0.0 for _ in o]
    dtypes: tuple[str, ...] = ("float32", "float64")


@dataclass(frozen=True)
class Verdict:
    """How a backend's result of one operation compares with the reference's.

    `ulps` is the largest difference in units in the last place, `share` the largest share of the
    bound that a difference takes; inf where only one of the two is finite, or the bound is 0.
    """

    operation: str
    dtype: str
    backend: str
    reproducible: bool
    equal: bool
    ulps: float
    share: float

    @property
    def kept(self) -> bool:
        """Whether the mode's promise is kept."""
        return self.equal if self.reproducible else self.share <= 1


def verdict(
    operation: Operation, backend: Backend, reference: Backend, dtype: str, draw: Draw
) -> Verdict:
    """Run `operation` on both backends and compare."""
    inputs = [array.astype(dtype) for array in operation.arrays(draw)]
    expected, actual = results(operation, reference, inputs), results(operation, backend, inputs)
    wide = [[array.astype(np.float64) for array in arrays] for arrays in (inputs, expected)]
    with np.errstate(all="ignore"):
        bounds = operation.bound(float(np.finfo(dtype).eps) / 2, *wide)
        pairs = list(zip(expected, actual, strict=True))
        return Verdict(
            operation.name,
            dtype,
            backend.label,
            backend.reproducible,
            equal=all(same_bits(*pair) for pair in pairs),
            ulps=max(_ulps(*pair) for pair in pairs),
            share=max(_share(*pair, b) for pair, b in zip(pairs, bounds, strict=True)),
        )


def results(operation: Operation, backend: Backend, inputs: list[Host]) -> list[Host]:
    """What `operation` gives on `backend`, brought to the host."""
    with use_backend(backend), backend.running():
        outputs = operation.run(backend, [backend.asarray(array) for array in inputs])
        return [np.asarray(backend.to_numpy(array)) for array in outputs]


def same_bits(a: Host, b: Host) -> bool:
    """Whether two arrays are the same: dtype, shape and every bit, the sign of 0 included.

    NaN is NaN: which of its many patterns a processor makes is not IEEE 754's to say.
    """
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    integer = f"i{a.dtype.itemsize}"
    same = np.atleast_1d(a).view(integer) == np.atleast_1d(b).view(integer)
    return bool(np.all(same | np.atleast_1d(np.isnan(a) & np.isnan(b))))


def _difference(a: Host, b: Host) -> Host:
    """|a - b| in float64, 0 where both are the same infinity or NaN."""
    if a.shape != b.shape:
        return np.array(np.inf)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    difference = np.where(same, 0.0, np.abs(a.astype(np.float64) - b.astype(np.float64)))
    return np.nan_to_num(difference, nan=np.inf, posinf=np.inf)


def _ulps(a: Host, b: Host) -> float:
    difference = _difference(a, b)
    spacing = np.spacing(np.maximum(np.abs(a), np.abs(b))).astype(np.float64)
    ulps = np.where(difference == 0, 0.0, difference / spacing)
    return float(np.nan_to_num(ulps, nan=np.inf, posinf=np.inf).max(initial=0))


def _share(a: Host, b: Host, bound: Any) -> float:
    difference = _difference(a, b)
    share = np.where(difference == 0, 0.0, difference / np.maximum(bound, 0))
    return float(np.nan_to_num(share, nan=np.inf, posinf=np.inf).max(initial=0))


# -- bounds


def _gamma(n: int, u: float) -> float:
    return n * u / (1 - n * u)


def _product_bound(u: float, a: Host, b: Host) -> Host:
    return _gamma(a.shape[1] + 1, u) * (np.abs(a) @ np.abs(b))


def _softmax_error(u: float, y: Host) -> Host:
    """Of a softmax of exact scores: exp, the sum and the division, all relative to y."""
    return (2 * LIBRARY_ULPS * u + _gamma(y.shape[-1] + 1, u)) * y


def _cross_entropy_error(u: float, y: Host, e_y: Host, t: Host) -> Host:
    """Of each row's -sum(t log(y + delta)), where y is off by e_y."""
    log = np.abs(np.log(y + LOG_OFFSET))
    of_log = e_y / (y + LOG_OFFSET) + 2 * u + 2 * LIBRARY_ULPS * u * log
    return np.sum(np.abs(t) * (of_log + _gamma(y.shape[-1] + 1, u) * log), axis=-1)


def _mean_error(u: float, errors: Host, values: Host) -> Any:
    """Of the mean of `values` that are off by `errors`."""
    return (errors.sum() + _gamma(values.size + 2, u) * np.abs(values).sum()) / values.size


def _softmax_backward_error(u: float, y: Host, e_y: Host, t: Host) -> Host:
    """Of (y sum(r) - r) / N with r = t y / (y + delta), where y is off by e_y."""
    r = np.abs(t) * y / (y + LOG_OFFSET)
    e_r = np.abs(t) * e_y / (y + LOG_OFFSET) + _gamma(3, u) * r
    total = r.sum(axis=-1, keepdims=True)
    e_total = e_r.sum(axis=-1, keepdims=True) + _gamma(y.shape[-1], u) * total
    e = e_y * total + y * e_total + e_r + _gamma(4, u) * (y * total + r)
    return e / y.shape[0]


def _network_error(
    u: float, x: Host, t: Host, params: list[Host], activation: str, loss: str
) -> tuple[Host, Any, list[Host], list[Host]]:
    """Of a network's predictions, loss and gradients; and the gradients themselves.

    A running error analysis (Higham 2002, §3.3) of Affine, activation, Affine, loss: what each
    step makes of the errors before it, and adds.
    """
    W1, b1, W2, b2 = params
    a = x @ W1 + b1
    e_a = _gamma(x.shape[1] + 1, u) * (np.abs(x) @ np.abs(W1) + np.abs(b1))
    if activation == "sigmoid":
        z = 1 / (1 + np.exp(-a))
        e_z = e_a / 4 + (2 * LIBRARY_ULPS + 3) * u * z
        slope, e_slope = z * (1 - z), e_z + 2 * u
    else:
        z, e_z = np.maximum(a, 0), e_a
        slope, e_slope = 1.0 * (a > 0), 1.0 * (np.abs(a) <= e_a)
    s = z @ W2 + b2
    e_s = e_z @ np.abs(W2) + _gamma(z.shape[1] + 1, u) * ((z + e_z) @ np.abs(W2) + np.abs(b2))
    if loss == "IdentityWithLoss":
        y, e_y, difference = s, e_s, np.abs(s - t)
        rows = 0.5 * np.sum(difference**2, axis=1)
        e_rows = np.sum((e_s + _gamma(C + 2, u) * difference) * difference + e_s**2, axis=1)
        d2, e_d2 = (s - t) / len(x), (e_s + _gamma(3, u) * difference) / len(x)
    else:
        y = np.exp(s - s.max(axis=1, keepdims=True))
        y /= y.sum(axis=1, keepdims=True)
        e_y = 2 * e_s.max(axis=1, keepdims=True) * y + _softmax_error(u, y)
        rows = -np.sum(t * np.log(y + LOG_OFFSET), axis=1)
        e_rows = _cross_entropy_error(u, y, e_y, t)
        r = t * y / (y + LOG_OFFSET)
        d2 = (y * r.sum(axis=1, keepdims=True) - r) / len(x)
        e_d2 = _softmax_backward_error(u, y, e_y, t)
    e_loss = _mean_error(u, e_rows, rows)
    d1 = d2 @ W2.T * slope
    e_d1 = e_d2 @ np.abs(W2.T) + _gamma(W2.shape[1] + 3, u) * (np.abs(d2) @ np.abs(W2.T))
    e_d1 = e_d1 * slope + (np.abs(d2) @ np.abs(W2.T)) * e_slope
    gradients: list[Host] = []
    errors: list[Host] = []
    for v, e_v, d, e_d in ((x, 0 * x, d1, e_d1), (z, e_z, d2, e_d2)):
        g = _gamma(x.shape[0], u)
        gradients += [v.T @ d, d.sum(axis=0)]
        errors.append(np.abs(v.T) @ e_d + e_v.T @ (np.abs(d) + e_d) + g * (np.abs(v.T) @ np.abs(d)))
        errors.append(e_d.sum(axis=0) + g * np.abs(d).sum(axis=0))
    return e_y, e_loss, gradients, errors


# -- the operations


def _one_hot(rows: int, classes: int = C) -> Host:
    return np.eye(classes)[np.arange(rows) * 7 % classes]


def _probabilities(draw: Draw) -> Host:
    y = np.exp(np.clip(draw(N, C), -30, 0))
    return y / y.sum(axis=1, keepdims=True)


def _elementwise(name: str, arrays: int, relative: int) -> Operation:
    """A kernel whose results may be off by `relative` u of their own size each."""

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        return [getattr(backend, name)(*inputs)]

    return Operation(
        name,
        lambda draw: [draw(N, C) for _ in range(arrays)],
        run,
        lambda u, _, outputs: [2 * relative * u * np.abs(outputs[0])],
    )


def _parameters(draw: Draw) -> list[Host]:
    scaled = 1 / np.sqrt(D)
    return [draw(D, M) * scaled, draw(1, M)[0], draw(M, C) * scaled, draw(1, C)[0]]


def _network(params: list[Array], activation: str, loss: str = "SoftmaxWithLoss") -> Network:
    layers = [Affine.from_params(*params[:2]), ACTIVATIONS[activation]()]
    return Network([*layers, Affine.from_params(*params[2:])], LOSSES[loss]())


def _network_operation(activation: str, loss: str) -> Operation:
    """Predictions, loss and gradients."""

    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        x, t, *params = inputs
        network = _network(params, activation, loss)
        found, gradients = network.loss_and_gradient(x, t)
        value = backend.asarray(found, network.dtype)
        return [network.predict(x), value, *gradients.values()]

    def bound(u: float, inputs: list[Host], _: list[Host]) -> list[Any]:
        x, t, *params = inputs
        e_y, e_loss, _, errors = _network_error(u, x, t, params, activation, loss)
        return [2 * e for e in (e_y, e_loss, *errors)]

    return Operation(
        f"network, {activation}, {loss}",
        lambda draw: [draw(N, D), _one_hot(N), *_parameters(draw)],
        run,
        bound,
    )


def _numerical_operation(loss: str) -> Operation:
    def run(_: Backend, inputs: list[Array]) -> list[Array]:
        x, t, *params = inputs
        network = _network(params, "sigmoid", loss)
        return list(network.numerical_gradient(x, t, STEP).values())

    def bound(u: float, inputs: list[Host], outputs: list[Host]) -> list[Any]:
        """Of (L(w + h) - L(w - h)) / 2h on two backends, where each L is off by e.

        That makes 2 e / h. Evaluating only what a perturbation changes rounds the scores once more
        on the way, which at most doubles e.
        """
        x, t, *params = inputs
        _, e_loss, _, _ = _network_error(u, x, t, params, "sigmoid", loss)
        return [4 * e_loss / STEP + 2 * u * np.abs(output) for output in outputs]

    return Operation(
        f"numerical gradient, {loss}",
        lambda draw: [draw(6, D), _one_hot(6), *_parameters(draw)],
        run,
        bound,
        dtypes=("float64",),
    )


TRAINING_STEPS, LEARNING_RATE = 10, 0.1


def _train(backend: Backend, inputs: list[Array]) -> list[Array]:
    x, t, *params = inputs
    network, optimizer = _network(params, "sigmoid"), optimizers.SGD(LEARNING_RATE)
    for _ in range(TRAINING_STEPS):
        network.train_step(x, t, optimizer)
    return list(network.params.values())


def _training_bound(u: float, inputs: list[Host], outputs: list[Host]) -> list[Any]:
    """Each step's errors, twice: for two backends, and for what later steps make of earlier errors.

    Those grow by 1 + lr |second derivative| a step, here by less than 1.07: not to twice in ten.
    """
    x, t, *params = inputs
    errors = [np.zeros_like(output) for output in outputs]
    for _ in range(TRAINING_STEPS):
        _, _, gradients, steps = _network_error(u, x, t, params, "sigmoid", "SoftmaxWithLoss")
        params = [p - LEARNING_RATE * g for p, g in zip(params, gradients, strict=True)]
        errors = [
            e + LEARNING_RATE * s + 2 * u * np.abs(p)
            for e, s, p in zip(errors, steps, params, strict=True)
        ]
    return [4 * e for e in errors]


def _optimizer_operation(name: str) -> Operation:
    def run(backend: Backend, inputs: list[Array]) -> list[Array]:
        W, *gradients = inputs
        params = {"W": backend.xp.asarray(W, copy=True)}  # an update writes to it
        optimizer = optimizers.OPTIMIZERS[name](lr=0.01)
        for gradient in gradients:
            optimizer.update(params, {"W": gradient})
        return [params["W"]]

    return Operation(
        f"optimizer {name}, 3 steps",
        lambda draw: [draw(D, M) for _ in range(4)],
        run,
    )


def _softmax_with_loss_bound(u: float, inputs: list[Host], outputs: list[Host]) -> list[Any]:
    bounds: list[Any] = []
    for t, y in zip(inputs[1:], outputs[1::2], strict=True):
        e_y = _softmax_error(u, y)
        rows = np.sum(np.abs(t * np.log(y + LOG_OFFSET)), axis=1)
        bounds += [2 * _mean_error(u, _cross_entropy_error(u, y, e_y, t), rows), 2 * e_y]
    return bounds


def _row_losses_bound(u: float, inputs: list[Host], outputs: list[Host]) -> list[Any]:
    s, t = inputs
    y = np.exp(s - s.max(axis=1, keepdims=True))
    y /= y.sum(axis=1, keepdims=True)
    return [
        2 * _cross_entropy_error(u, y, _softmax_error(u, y), t),
        2 * _gamma(C + 3, u) * outputs[1],
    ]


def _affine_backward_bound(u: float, inputs: list[Host], _: list[Host]) -> list[Any]:
    dout, x, W = inputs
    of_b = _gamma(len(dout), u) * np.abs(dout).sum(axis=0)
    return [2 * _product_bound(u, dout, W.T), 2 * _product_bound(u, x.T, dout), 2 * of_b]


def _forward_and_backward(layer: Mul, x: Array, y: Array) -> list[Array]:
    return [layer.forward(x, y), *layer.backward(x)]


OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "step, Add, Mul",
        lambda draw: [draw(N, D), draw(N, D)],
        lambda _, i: [
            activations.step(i[0]),
            Add().forward(*i),
            *_forward_and_backward(Mul(), *i),
        ],
    ),
    Operation(
        "matmul",
        lambda draw: [draw(N, D), draw(D, M)],
        lambda b, i: [b.matmul(*i), b.matmul(i[1].T, i[0].T)],
        lambda u, i, o: [2 * _product_bound(u, *i), 2 * _product_bound(u, i[1].T, i[0].T)],
    ),
    Operation(
        "sum",
        lambda draw: [draw(N, D)],
        lambda b, i: [b.sum(*i), b.sum(*i, axis=0), b.sum(*i, axis=-1, keepdims=True)],
        lambda u, i, o: [
            2 * _gamma(i[0].size, u) * np.abs(i[0]).sum(),
            2 * _gamma(N, u) * np.abs(i[0]).sum(axis=0),
            2 * _gamma(D, u) * np.abs(i[0]).sum(axis=1, keepdims=True),
        ],
    ),
    Operation(
        "one_hot",
        lambda draw: [np.arange(N) * 7.0 % C],  # labels, whatever numbers are drawn
        lambda b, i: [b.one_hot(b.xp.astype(i[0], b.xp.int64), C, i[0].dtype)],
    ),
    _elementwise("exp", 1, LIBRARY_ULPS),
    Operation(
        "log",
        lambda draw: [np.abs(draw(N, D))],
        lambda b, i: [b.log(*i)],
        lambda u, _, o: [2 * LIBRARY_ULPS * u * np.abs(o[0])],
    ),
    Operation(
        "affine",
        lambda draw: [draw(N, D), draw(D, M), draw(1, M)[0]],
        lambda b, i: [b.affine(*i)],
        lambda u, i, _: [2 * _gamma(D + 1, u) * (np.abs(i[0]) @ np.abs(i[1]) + np.abs(i[2]))],
    ),
    Operation(
        "affine_backward",
        lambda draw: [draw(N, M), draw(N, D), draw(D, M)],
        lambda b, i: list(b.affine_backward(*i)),
        _affine_backward_bound,
    ),
    Operation(
        "affine_gradients",
        lambda draw: [draw(N, M), draw(N, D)],
        lambda b, i: list(b.affine_gradients(*i)),
        lambda u, i, _: [
            2 * _product_bound(u, i[1].T, i[0]),
            2 * _gamma(N, u) * np.abs(i[0]).sum(axis=0),
        ],
    ),
    _elementwise("sigmoid", 1, 2 * LIBRARY_ULPS + 3),
    _elementwise("sigmoid_backward", 2, 3),
    _elementwise("relu", 1, 0),
    Operation(
        "relu_backward",
        lambda draw: [draw(N, C), draw(N, C)],
        lambda b, i: [b.relu_backward(i[0], i[1] <= 0)],
    ),
    Operation(
        "softmax",
        lambda draw: [draw(N, C)],
        lambda b, i: [b.softmax(*i)],
        lambda u, _, o: [2 * _softmax_error(u, o[0])],
    ),
    Operation(
        "softmax_with_loss",
        lambda draw: [draw(N, C), _one_hot(N), draw(N, C)],
        lambda b, i: [*b.softmax_with_loss(i[0], i[1]), *b.softmax_with_loss(i[0], i[2])],
        _softmax_with_loss_bound,
    ),
    Operation(
        "softmax_with_loss_backward",
        lambda draw: [_probabilities(draw), _one_hot(N), draw(N, C)],
        lambda b, i: [b.softmax_with_loss_backward(i[0], t) for t in i[1:]],
        lambda u, i, _: [2 * _softmax_backward_error(u, i[0], 0 * i[0], t) for t in i[1:]],
    ),
    Operation(
        "row_losses",
        lambda draw: [draw(N, C), _one_hot(N)],
        lambda b, i: [
            b.row_losses(i[0], loss, i[1]) for loss in ("cross_entropy", "squared_error")
        ],
        _row_losses_bound,
    ),
    Operation(
        "mean_squared_error",
        lambda draw: [draw(N, C), draw(N, C)],
        lambda _, i: [losses.mean_squared_error(*i)],
        lambda u, i, o: [2 * _gamma(N * C + 4, u) * o[0]],
    ),
    Operation(
        "cross_entropy_error",
        lambda draw: [_probabilities(draw), _one_hot(N)],
        lambda _, i: [losses.cross_entropy_error(*i)],
        lambda u, i, o: [
            2 * _mean_error(u, _cross_entropy_error(u, i[0], 0 * i[0], i[1]), np.full(N, o[0]))
        ],
    ),
    *(_network_operation(activation, loss) for activation in ACTIVATIONS for loss in LOSSES),
    *map(_numerical_operation, LOSSES),
    *map(_optimizer_operation, optimizers.OPTIMIZERS),
    Operation(
        f"training, {TRAINING_STEPS} steps",
        lambda draw: [draw(N, D), _one_hot(N), *_parameters(draw)],
        _train,
        _training_bound,
    ),
)


def standard_normal(seed: int = 0) -> Draw:
    """Numbers as a network meets them."""
    rng = np.random.default_rng(seed)
    return lambda rows, columns: rng.standard_normal((rows, columns))


def training_hash(backend: Backend, dtype: str, steps: int = 200) -> str:
    """SHA-256 of the weights after `steps` steps of Adam on made-up data: see `weights.sha256`."""
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((500, 64)), rng.integers(0, 10, 500)
    layers = [Affine(64, 50, "he"), ACTIVATIONS["relu"](), Affine(50, 10, "he")]
    network = Network(layers, dtype=dtype, backend=backend)
    optimizer = optimizers.Adam(lr=0.01)
    train(network, x, t, optimizer=optimizer, iterations=steps, batch_size=50, progress=False)
    return weights.sha256(network)
