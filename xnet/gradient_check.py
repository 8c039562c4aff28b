"""Backpropagation against the numerical gradient (§5.7.3), with a verdict that can be relied on.

Each element g of a gradient is compared with central differences g(h) for several steps h, in
float64. It may differ from one by

- truncation. g(2h) - g(h) holds three times that where it is h^2 |f'''| / 6 (Richardson; Numerical
  Recipes §5.7), and as much as that where the curvature jumps within the step, as ELU's does; twice
  the difference is allowed;
- rounding of the loss L, 8 sqrt(K) u (|L| + c max|s|) / h for scores s. K is the length of the
  longest chain of additions, the sum of the layers' inputs and the classes; the rounding errors of
  a sum grow as its square root (Higham & Mary 2019, A new approach to probabilistic rounding error
  analysis), and 8 leaves such a bound to chance one time in many millions. A sample's loss moves by
  2c times what its scores do, the sum of its slopes by them; with targets that add up to 1 that is
  2 at most. c is taken as 1 at least, and here as the samples' mean;
- rounding of the perturbed weight w, u max|w| / h of g, and of backpropagation itself,
  8 sqrt(K) u of g, with the largest g of the parameter for g; or four times what backpropagation
  itself moves by where all weights do by a rounding error, if that is more: a normalization of what
  does not vary multiplies rounding by 1 / sqrt(eps);
- a hundred-thousandth of g in any case: where the curvature of several samples jumps, g(2h) - g(h)
  may vanish by chance.

Of the steps, the one says most of an element whose difference and allowance are least together: a
kink crossed by a long step, as ReLU's at 0, is not by a short one.

Samples that lie at a kink have no derivative, and are left out. They are found by moving all of a
parameter at once, in two directions v, both ways: f(w + hv) + f(w - hv) - 2 f(w) falls as h^2 for
the loss f of a sample where it is smooth, and as h at a kink, by the shortest step; what four
roundings of its loss explain shows nothing. What is wrong is said by steps within which no sample
bends.

There is no verdict where what is allowed nears the gradient itself, or where such steps are
wanting.
"""

import copy
import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import product
from typing import Any, Protocol

from xnet import notebook
from xnet.arrays import labels
from xnet.backend import Array, backend_of
from xnet.errors import KinkWarning, RoundingWarning
from xnet.gradient import GOLDEN, Index, checked_step, unlike
from xnet.losses import batch_and_targets
from xnet.ranks import ALONE

__all__ = ["GradientCheck", "ParameterCheck", "Verdict", "differences", "gradient_check"]

STEPS = (1e-4, 1e-6, 1e-2, 1e-5, 1e-3)
"""The notes' own; one that crosses few kinks; one that rounding hardly shows of; and between."""

FINEST = 1 / 200
"""What may be allowed of a gradient: half of one percent, so that one percent off is noticed."""

UNSEEN = 1e-5
"""What of an element may always be off."""

NO_SLOPE = 1e-6
"""Where all slopes are 0, what may be allowed of the loss for a weight that moves by 1."""

NO_GRADIENT = 1e-10
"""Of the largest slope of a network, what counts as none, as of a bias before a normalization."""

BENDS = 4
"""Steps within which a sample must not bend: each element is moved by half of them or more."""


class Verdict(StrEnum):
    """What a check found.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, seed=0)
    >>> xnet.gradient_check(net, [[0.0, 1.0], [1.0, 0.0]], [0, 1]).verdict.value
    'agrees'
    """

    AGREES = "agrees"
    WRONG = "wrong"
    INCONCLUSIVE = "inconclusive"


class Differentiable(Protocol):
    """What `gradient_check` needs of a network."""

    dtype: str

    @property
    def layers(self) -> Any:
        """The layers."""
        ...

    @property
    def loss_layer(self) -> Any:
        """The loss."""
        ...

    def held(self) -> Any:
        """A block in which training always computes one function."""
        ...

    @property
    def params(self) -> Any:
        """The parameters by name."""
        ...

    def host_to_backend(self, values: Any, name: str, dtype: Any = None) -> Array:
        """`values` on the network's backend."""
        ...

    def scores(self, x: Any) -> Array:
        """What enters the loss layer."""
        ...

    def loss(self, x: Any, t: Any) -> float:
        """The loss."""
        ...

    def training_loss(self, x: Any, t: Any) -> float:
        """The loss in training."""
        ...

    def gradient(self, x: Any, t: Any) -> dict[str, Array]:
        """Gradients by backpropagation."""
        ...

    def numerical_gradient(self, x: Any, t: Any, h: float | None = None) -> dict[str, Array]:
        """Gradients by central differences."""
        ...


@dataclass(frozen=True)
class ParameterCheck:
    """Backpropagation against the numerical gradient for one parameter.

    The errors are of all elements, each by the step that says most of it.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, seed=0)
    >>> found = xnet.gradient_check(net, [[0.0, 1.0], [1.0, 0.0]], [0, 1]).parameters["W1"]
    >>> found.shape, found.passed, abs(found.backprop - found.numerical) <= found.tolerance
    ((2, 3), True, True)
    """

    name: str
    shape: Index
    verdict: Verdict
    mean_difference: float
    """Mean of the absolute differences, what the notes print."""
    absolute_error: float
    """The largest absolute difference."""
    relative_error: float
    """That over the largest element of either gradient; 0 if both are 0 throughout."""
    worst: Index
    """Index of the worst element, the one whose difference most exceeds its tolerance."""
    backprop: float
    """The worst element by backpropagation."""
    numerical: float
    """The worst element by central differences."""
    tolerance: float
    """How far these two may be apart."""

    @property
    def passed(self) -> bool:
        """Whether the two gradients agree."""
        return self.verdict == Verdict.AGREES


@dataclass(frozen=True)
class GradientCheck(Mapping[str, float]):
    """What `gradient_check` found; as a mapping, the mean absolute difference by parameter.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, seed=0)
    >>> found = xnet.gradient_check(net, [[0.0, 1.0], [1.0, 0.0]], [0, 1])
    >>> {name: difference < 1e-8 for name, difference in found.items()}
    {'W1': True, 'b1': True, 'W2': True, 'b2': True}
    >>> print(str(found).splitlines()[-1])
    backpropagation agrees with the numerical gradient (h=0.0001)
    """

    parameters: dict[str, ParameterCheck]
    left_out: tuple[int, ...]
    """Which samples lie at a kink."""
    steps: tuple[float, ...]
    """The steps that were taken, in turn."""

    @property
    def verdict(self) -> Verdict:
        """Wrong if a parameter is; else inconclusive if one is."""
        found = {check.verdict for check in self.parameters.values()}
        return next(
            (v for v in (Verdict.WRONG, Verdict.INCONCLUSIVE) if v in found), Verdict.AGREES
        )

    @property
    def passed(self) -> bool:
        """Whether backpropagation agrees in every parameter."""
        return self.verdict == Verdict.AGREES

    @property
    def h(self) -> float:
        """The first step."""
        return self.steps[0]

    def __getitem__(self, name: str) -> float:
        return self.parameters[name].mean_difference

    def __iter__(self) -> Iterator[str]:
        return iter(self.parameters)

    def __len__(self) -> int:
        return len(self.parameters)

    _repr_html_ = notebook.check

    def __str__(self) -> str:
        head = ("parameter", "mean diff", "max diff", "relative", "worst element", "backprop")
        rows = [(*head, "numerical", "apart", "allowed", "verdict")]
        rows += [
            (
                f"{c.name} {'x'.join(map(str, c.shape))}",
                f"{c.mean_difference:.1e}",
                f"{c.absolute_error:.1e}",
                f"{c.relative_error:.1e}",
                f"{c.name}[{', '.join(map(str, c.worst))}]",
                f"{c.backprop: .9e}",
                f"{c.numerical: .9e}",
                f"{abs(c.backprop - c.numerical):.1e}",
                f"{c.tolerance:.1e}",
                _SHOWN[c.verdict],
            )
            for c in self.parameters.values()
        ]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
        if self.left_out:
            lines.append(f"{len(self.left_out)} sample(s) left out, which lie at a kink")
        steps = ", ".join(map(str, self.steps))
        lines.append(f"{_SAID[self.verdict]} the numerical gradient (h={steps})")
        return "\n".join(lines)


_SHOWN = {Verdict.AGREES: "ok", Verdict.WRONG: "WRONG", Verdict.INCONCLUSIVE: "inconclusive"}
_SAID = {
    Verdict.AGREES: "backpropagation agrees with",
    Verdict.WRONG: "backpropagation DOES NOT AGREE with",
    Verdict.INCONCLUSIVE: "inconclusive: rounding or kinks leave too little of",
}


def gradient_check(
    network: Differentiable, x: Any, t: Any, h: float | None = None
) -> GradientCheck:
    """Compare `gradient` with `numerical_gradient`, parameter by parameter (§5.7.3).

    Both are taken in float64, of a copy of a network of float32.

    Parameters
    ----------
    network
        A `Network`.
    x, t
        A batch and its labels.
    h
        Step of the numerical gradient; None for 1e-4, and others of `STEPS` where that leaves
        something open.

    Returns
    -------
    GradientCheck
        `verdict`, `passed`, and for each parameter its verdict, the errors, the worst element and
        what is allowed there; printed, a table. As a mapping it gives the mean absolute
        differences, as in the notes.

        ``"agrees"``: every element is within what truncation and rounding explain, and that is
        below 1/200 of the gradient. ``"wrong"``: an element is not. ``"inconclusive"``: more than
        that is allowed, so a wrong gradient might pass; or there are kinks too near to tell.

    Raises
    ------
    ValueError
        h is not a positive number; the network's batches are spread over ranks; or as
        `Network.loss`.

    Warns
    -----
    KinkWarning
        Samples are left out: they lie at a kink, as ReLU's at 0, where the loss has no derivative.

    Examples
    --------
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, seed=0)
    >>> found = xnet.gradient_check(net, [[0.0, 1.0], [1.0, 0.0]], [0, 1])
    >>> found.passed, list(found)
    (True, ['W1', 'b1', 'W2', 'b2'])
    """
    steps = STEPS if h is None else (checked_step(h),)
    backend: Any = getattr(network, "backend", None)
    if getattr(backend, "ranks", ALONE).size > 1:
        raise ValueError(
            f"gradient_check: the network is on {backend}: check one that is on one rank, as "
            "copy.deepcopy(net).to(...) makes"
        )
    checked = _in_float64(network)
    with checked.held():
        x, t, left_out, smooth = _without_kinks(checked, x, t, steps)
        taken, largest = list[float](), 0.0
        gradients = checked.gradient(x, t)
        noise = _noise(checked, x, t, gradients)
        found = {k: _Comparison(checked, x, t, k, g, noise[k]) for k, g in gradients.items()}
        for step in steps:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", RoundingWarning)  # the verdict says it
                near, far = (checked.numerical_gradient(x, t, k) for k in (step, 2 * step))
            taken.append(step)
            slopes = [c.add(step, near[k], far[k], smooth[step]) for k, c in found.items()]
            largest = max(slopes, default=0.0)
            verdicts = {comparison.verdict(largest) for comparison in found.values()}
            settled = all(comparison.is_settled() for comparison in found.values())
            # A second opinion, before anything is called wrong.
            if (verdicts <= {Verdict.AGREES} and settled) or (
                len(taken) > 1 and Verdict.INCONCLUSIVE not in verdicts
            ):
                break
    if left_out:
        kinked = {v.operation for v in checked.layers if v.operation and v.operation.kinks}
        where = ", ".join(sorted({type(operation).__name__ for operation in kinked}))
        warnings.warn(
            f"gradient_check leaves out {len(left_out)} of {len(left_out) + x.shape[0]} samples: "
            f"they lie at a kink, of {where or 'the loss'}, where there is no derivative",
            KinkWarning,
            stacklevel=2,
        )
    checks = {name: comparison.result(largest) for name, comparison in found.items()}
    return GradientCheck(checks, left_out, tuple(taken))


def differences(
    network: Differentiable, x: Any, t: Any, h: float | None = None
) -> dict[str, Array]:
    """How far backpropagation and the numerical gradient are apart, element by element.

    What `gradient_check` sums up, for one step h: parameters and errors as there. Samples that lie
    at a kink are left out.

    Returns
    -------
    dict
        Absolute differences, float64, of the names and shapes of `Network.gradient`.

    Examples
    --------
    >>> import xnet
    >>> from xnet.gradient_check import differences
    >>> net = xnet.TwoLayerNet(2, 3, 2, weight_init_std=1.0, seed=0)
    >>> found = differences(net, [[0.0, 1.0], [1.0, 0.0]], [0, 1])
    >>> found["W1"].shape, bool(found["W1"].max() < 1e-8)
    ((2, 3), True)
    """
    checked = _in_float64(network)
    with checked.held():
        x, t, _, _ = _without_kinks(checked, x, t, (checked_step(h),))
        numerical = checked.numerical_gradient(x, t, checked_step(h))
        xp = backend_of(**numerical).xp
        return {k: xp.abs(g - numerical[k]) for k, g in checked.gradient(x, t).items()}


def _without_kinks(
    network: Differentiable, x: Any, t: Any, steps: Sequence[float]
) -> tuple[Array, Array, tuple[int, ...], dict[float, bool]]:
    """The samples that lie at no kink, the numbers of the others, and which steps bend no sample.

    If most lie at one, nothing is left out, and every step bends some.
    """
    x = network.host_to_backend(x, "x", network.dtype)
    t = network.host_to_backend(labels(t, "t"), "t")
    if x.ndim == 1:
        x, t = x[None, ...], t[None, ...]
    backend = backend_of(x=x)
    xp = backend.xp
    with backend.running():
        rounding = _rounding(network, x)
        scores = float(xp.max(xp.abs(network.scores(x))))
        here, moved = _losses(network, x, t), copy.deepcopy(network)
        c = _steepness(network, x, t)
        if here.shape != c.shape:  # of all samples together
            c = backend.sum(c, keepdims=True) / c.shape[0]
        noise = 4 * rounding * (xp.abs(here) + c * scores / here.shape[0])
        bends: dict[float, Array] = dict.fromkeys(steps, noise < 0)
        for name, W in network.params.items():
            for factors, step in product(_directions(xp, W), steps):
                limit = xp.zeros_like(here)  # what a bend at half of the step leaves room for
                for h in (BENDS / 4 * step, BENDS / 2 * step, BENDS * step, 2 * BENDS * step):
                    total = -2 * here
                    for sign in (1, -1):
                        moved.params[name] = W + sign * h * factors
                        total = total + _losses(moved, x, t)
                    second = xp.abs(total) / h
                    bends[step] = bends[step] | (second < limit)
                    limit = xp.where(second > noise / h, 1.5 * second, xp.zeros_like(here))
            moved.params[name] = W
        lies = bends[min(steps)]
        count = int(xp.count_nonzero(lies))
        if 2 * count > lies.shape[0]:
            return x, t, (), dict.fromkeys(steps, False)
        smooth = {step: not bool(xp.any(bent & ~lies)) for step, bent in bends.items()}
        if not count:
            return x, t, (), smooth
        kept = xp.nonzero(~lies)[0]
        left_out = tuple(int(k) for k in xp.nonzero(lies)[0])
        return xp.take(x, kept, axis=0), xp.take(t, kept, axis=0), left_out, smooth


def _directions(xp: Any, W: Array) -> tuple[Array, Array]:
    """By how much each element is moved: all up, or by other factors in turns up and down.

    What bends may cancel in one of the two, as the slopes of scores do that add up to 0; and a
    `LayerNorm` sees next to nothing of biases that go up together.
    """
    size = math.prod(W.shape)
    up, other = (unlike(xp, W, range(size), ratio) for ratio in (GOLDEN, math.sqrt(2) - 1))
    odd = xp.reshape(xp.arange(size, device=W.device) % 2 == 1, W.shape)
    return up, xp.where(odd, -other, other)


def _rounding(network: Differentiable, x: Array) -> float:
    """8 sqrt(K) u, see above, in float64."""
    widths = (v.operation.widths[0] for v in network.layers if v.operation is not None)
    chain = sum(width for width in widths if width is not None)
    return 8 * math.sqrt(chain + network.scores(x).shape[-1]) * 2.0**-53


def _steepness(network: Differentiable, x: Array, t: Array) -> Array:
    """c of each sample, see above; 1 for a loss of which no slopes by the scores are known."""
    backend, loss = backend_of(x=x), network.loss_layer
    xp = backend.xp
    if loss.opaque or loss.operation is None:
        return xp.ones_like(network.scores(x)[:, 0])
    _, y, targets = batch_and_targets(network.scores(x), t)
    targets = loss.operation.targets(backend.maths, targets)
    _, delta = backend.loss_and_delta(loss.operation, y, targets)
    c = backend.sum(xp.abs(delta), axis=-1) * (y.shape[0] / 2)
    return xp.where(c > 1, c, xp.ones_like(c))


def _noise(
    network: Differentiable, x: Array, t: Array, gradients: Mapping[str, Array]
) -> dict[str, float]:
    """By how much each gradient moves, at most, where all parameters do by a rounding error or two.

    0 for one that moves by more than rounding would have it.
    """
    moved, found = copy.deepcopy(network), dict.fromkeys(gradients, 0.0)
    backend = backend_of(x=x)
    xp, largest = backend.xp, 0.0
    with backend.running():
        for error in (2.0**-52, -(2.0**-53), 2.0**-51):
            for name, W in network.params.items():
                moved.params[name] = W * (1 + error)
            for name, g in moved.gradient(x, t).items():
                apart = xp.abs(g - gradients[name])
                apart = xp.where(xp.isfinite(apart), apart, xp.zeros_like(apart))
                found[name] = max(found[name], float(xp.max(apart)))
                largest = max(largest, float(xp.max(xp.abs(g))))
    return {name: apart if apart <= UNSEEN * largest else 0.0 for name, apart in found.items()}


def _losses(network: Differentiable, x: Array, t: Array) -> Array:
    """What each sample adds to the loss, (N,); or the loss itself, (1,).

    That is where training computes another loss than prediction, of which no more is known.
    """
    backend, loss = backend_of(x=x), network.loss_layer
    plain = all(v.operation is None or v.operation.is_plain() for v in network.layers)
    if loss.opaque or loss.operation is None or not plain:
        return backend.xp.asarray([network.training_loss(x, t)])
    _, y, targets = batch_and_targets(network.scores(x), t)
    targets = loss.operation.targets(backend.maths, targets)
    return backend.row_losses(loss.operation, y, targets) / y.shape[0]


def _in_float64(network: Differentiable) -> Differentiable:
    """The network itself, or a copy of one of float32: the formulas are the same."""
    if network.dtype == "float64":
        return network
    twin = copy.deepcopy(network)
    twin.dtype = "float64"
    for layer in twin.layers:
        arrays = [
            {name: twin.host_to_backend(W, name, "float64") for name, W in held.items()}
            for held in (layer.params, layer.state)
        ]
        layer.hold(*arrays)
    return twin


class _Comparison:
    """The gradient by one parameter against its numerical ones, step by step.

    Of each element what the best step says: its difference, `apart`, how much is `allowed`, and
    whether no sample bends within the step.
    """

    def __init__(
        self, network: Differentiable, x: Array, t: Array, name: str, g: Array, noise: float
    ) -> None:
        self.name, self.exact, self.noise = name, g, 4 * noise
        self.backend = backend_of(gradient=g)
        xp, W, scores = self.backend.xp, network.params[name], network.scores(x)
        with self.backend.running():
            rounding = _rounding(network, x)
            self.of_backprop = rounding * float(xp.finfo(g.dtype).eps) * 2.0**52
            loss, most = abs(network.loss(x, t)), float(xp.max(xp.abs(scores)))
            self.size = loss + most
            c = _steepness(network, x, t)
            self.of_loss = rounding * (loss + float(self.backend.sum(c)) / c.shape[0] * most)
            self.of_weight = 2.0**-53 * float(xp.max(xp.abs(W)))
            self.numerical = xp.full_like(g, math.nan)
            self.apart, self.allowed = (xp.full_like(g, math.inf) for _ in range(2))
            self.smooth = xp.zeros_like(g) > 0

    def add(self, h: float, near: Array, far: Array, smooth: bool) -> float:
        """Take notice of the central differences for h and for 2h; the largest slope."""
        xp = self.backend.xp
        with self.backend.running():
            known = xp.isfinite(near) & xp.isfinite(far)
            zero, infinite = xp.zeros_like(near), xp.full_like(near, math.inf)
            slope = float(xp.max(xp.where(known, xp.abs(near), zero)))
            rounding = (self.of_loss + self.of_weight * slope) / h
            rounding += max(self.of_backprop * slope, self.noise)
            apart = xp.where(known, xp.abs(self.exact - near), zero)
            apart = xp.where(xp.isnan(apart), infinite, apart)
            allowed = xp.where(known, 2 * xp.abs(far - near) + rounding, infinite)
            better = (apart + allowed < self.apart + self.allowed) | xp.isnan(self.numerical)
            self.numerical = xp.where(better, near, self.numerical)
            self.apart = xp.where(better, apart, self.apart)
            self.allowed = xp.where(better, allowed, self.allowed)
            self.smooth = (better & (zero == float(not smooth))) | (~better & self.smooth)
        return slope

    def _refuted(self, largest: float) -> Array:
        """Of which elements backpropagation is known to be wrong."""
        xp = self.backend.xp
        none = NO_GRADIENT * largest
        some = (xp.abs(self.exact) > none) | (xp.abs(self.numerical) > none) | xp.isnan(self.exact)
        return some & self.smooth & ~self._explained()

    def _explained(self) -> Array:
        """Of which elements the difference is within what is allowed."""
        xp = self.backend.xp
        little = self.apart <= UNSEEN * xp.abs(self.numerical)
        return little | (self.apart <= self.allowed)

    def verdict(self, largest: float) -> Verdict:
        """What can be said by now, where the network's largest slope is this."""
        xp = self.backend.xp
        with self.backend.running():
            if bool(xp.any(self._refuted(largest))):
                return Verdict.WRONG
            allowed, most = float(xp.sum(self.allowed)), float(xp.max(self.allowed))
            gradient = float(xp.sum(xp.abs(self.numerical)))
            either = xp.maximum(xp.abs(self.exact), xp.abs(self.numerical))
            if float(xp.max(either)) <= NO_GRADIENT * largest and most <= NO_SLOPE * self.size:
                return Verdict.AGREES
            if bool(xp.all(self._explained())) and allowed <= FINEST * gradient:
                return Verdict.AGREES
        return Verdict.INCONCLUSIVE

    def is_settled(self) -> bool:
        """Whether of no element much of the largest is allowed, as where steps cross a kink."""
        xp = self.backend.xp
        with self.backend.running():
            size = max(FINEST * float(xp.max(xp.abs(self.numerical))), NO_SLOPE * self.size)
            return not float(xp.max(self.allowed)) > size

    def result(self, largest: float) -> ParameterCheck:
        """What is said of this parameter."""
        xp = self.backend.xp
        with self.backend.running():
            differences = xp.abs(self.exact - self.numerical)
            excess = xp.where(self.allowed < math.inf, self.apart - self.allowed, self.apart)
            excess = xp.where(self._refuted(largest), xp.full_like(excess, math.inf), excess)
            worst = _unravel(int(xp.argmax(excess)), self.exact.shape)
            most = float(xp.max(differences))
            scale = max(float(xp.max(xp.abs(g))) for g in (self.exact, self.numerical))
            return ParameterCheck(
                name=self.name,
                shape=tuple(self.exact.shape),
                verdict=self.verdict(largest),
                mean_difference=float(self.backend.sum(differences)) / math.prod(differences.shape),
                absolute_error=most,
                relative_error=most / scale if scale else 0.0,
                worst=worst,
                backprop=float(self.exact[worst]),
                numerical=float(self.numerical[worst]),
                tolerance=float(self.allowed[worst]),
            )


def _unravel(flat: int, shape: Index) -> Index:
    """The index of the element that is number `flat` in C order."""
    return tuple(flat // math.prod(shape[k + 1 :]) % n for k, n in enumerate(shape))
