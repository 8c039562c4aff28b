"""The figures of the notes' chapters 1 to 4, each from xnet's own functions."""

import math
import warnings
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xnet import activations, perceptron
from xnet.backend import Array, get_backend
from xnet.errors import RoundingWarning
from xnet.gradient import gradient_descent, numerical_diff, numerical_gradient
from xnet.plotting.style import (
    axes,
    bare,
    blend,
    colour,
    host,
    panels,
    plot,
    root,
    theme,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xnet.plotting.canvas import Figure

SCORES = (0.3, 2.9, 4.0, 0.0)
"""Those of §3.5."""

RATES = (0.1, 10.0, 1e-10)
"""Learning rates of §4.4: a good one, one too large, one too small."""


def quadratic(x: Any) -> Any:
    """0.01 x² + 0.1 x, the curve of §4.3."""
    return 0.01 * x**2 + 0.1 * x


def bowl(x: Any) -> Any:
    """x₀² + x₁², the surface of §4.3.3, of x (2, ...)."""
    return x[0, ...] ** 2 + x[1, ...] ** 2


def _inputs(low: float, high: float, count: int = 400) -> NDArray[np.float64]:
    return np.linspace(low, high, count)


def _named(ax: Any) -> Any:
    """Write the names of the lines above the axes, where no curve runs through them."""
    columns = len(ax.get_lines())
    ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=columns, borderaxespad=0.2)
    return root(ax)


# -- 1.6


@plot("1.6")
def sin_cos(*, ax: "Axes | None" = None) -> "Figure":
    """Sine and cosine over one period.

    Parameters
    ----------
    ax
        Axes to draw on; None for those of a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.sin_cos()
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['sin x', 'cos x']
    >>> figure.axes[0].lines[0].get_ydata().max().round(4).item()
    1.0
    """
    on = axes(ax)
    x = _inputs(0, 2 * math.pi)
    on.plot(x, np.sin(x), color=colour(0), label="sin x")
    on.plot(x, np.cos(x), "--", color=colour(1), label="cos x")
    on.set(xlabel="x", ylabel="y")
    on.set_xticks([k * math.pi / 2 for k in range(5)], ["0", "π/2", "π", "3π/2", "2π"])
    return _named(on)


@plot("1.6.3", lambda m: [_photograph() if m.picture is None else m.picture])
def image(picture: Any, *, ax: "Axes | None" = None) -> "Figure":
    """A picture, as it is.

    Parameters
    ----------
    picture
        Pixels: (H, W) from 0, paper, to the largest, ink; or (H, W, 3) of red, green and blue, 0 to
        1 or whole numbers to 255, as `xnet.tools.pictures.load_pixels` reads them from a file.
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        An array of another shape.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> figure = xnet.plotting.image(np.eye(3))
    >>> figure.axes[0].images[0].get_array().tolist()
    [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
    """
    pixels = host(picture, "picture")
    if pixels.ndim not in (2, 3) or (pixels.ndim == 3 and pixels.shape[2] not in (3, 4)):
        raise ValueError(f"picture has shape {pixels.shape}, expected (H, W) or (H, W, 3)")
    on = axes(ax, shape=pixels.shape[0] / pixels.shape[1], plain=True)
    on.imshow(pixels, cmap=blend(theme().paper, theme().ink))
    return root(on)


def _photograph() -> NDArray[Any]:
    """One that comes with matplotlib."""
    cbook: Any = import_module("matplotlib.cbook")
    path = cbook.get_sample_data("grace_hopper.jpg", asfileobj=False)
    return np.asarray(import_module("matplotlib.image").imread(path))


# -- 2


@plot("2")
def gates(*, figure: "Figure | None" = None) -> "Figure":
    """Decision lines of AND, NAND and OR, and XOR's region between two lines.

    Parameters
    ----------
    figure
        Figure to draw on; None for a new one.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.gates()
    >>> [ax.get_title() for ax in figure.axes]
    ['AND', 'NAND', 'OR', 'XOR']
    >>> [line.get_marker() for line in figure.axes[-1].lines]  # of (0, 0), (0, 1), (1, 0), (1, 1)
    ['o', '^', '^', 'o']
    """
    made, parts = panels(figure, len(perceptron.GATES) + 1, 1.8, 1.0)
    side = _inputs(-0.6, 1.6, 201)
    x = np.stack(np.meshgrid(side, side))
    sums = {name: _weighted(x, *gate) for name, gate in perceptron.GATES.items()}
    # AND of two gates is where both of their sums are above 0.
    sums["XOR"] = np.minimum(sums["NAND"], sums["OR"])
    for on, (name, height) in zip(parts, sums.items(), strict=True):
        gate: Callable[[float, float], int] = getattr(perceptron, name)
        on.contourf(side, side, height, [0, np.inf], colors=[colour(0)], alpha=0.25)
        on.contour(side, side, height, [0], colors=[theme().ink], linewidths=1.5)
        for x1 in (0, 1):
            for x2 in (0, 1):
                one = gate(x1, x2)
                on.plot(
                    *(x1, x2, "^" if one else "o"),
                    color=colour(0) if one else theme().paper,
                    markeredgecolor=colour(0) if one else theme().ink,
                    markersize=9,
                )
        on.set(title=name, xlabel="x₁", ylabel="x₂", aspect="equal", xticks=[0, 1], yticks=[0, 1])
    return made


def _weighted(x: NDArray[Any], weights: Sequence[float], bias: float) -> NDArray[Any]:
    """The weighted sums of a gate's inputs (2, ...)."""
    return np.tensordot(np.asarray(weights), x, 1) + bias


# -- 3.2


@plot("3.2", lambda _: ["sigmoid", "relu", "tanh"])
def activation(*names: str, ax: "Axes | None" = None) -> "Figure":
    """Activation functions by their names.

    Parameters
    ----------
    names
        Of functions in `xnet.activations`: ``"step"``, ``"sigmoid"``, ``"gelu"``, ...
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        No names.
    AttributeError
        No such function.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.activation("relu", "tanh")
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['relu', 'tanh']
    >>> [line.get_ydata()[-1].round(4).item() for line in figure.axes[0].lines]  # at x = 5
    [5.0, 0.9999]
    """
    if not names:
        raise ValueError("activation: no names, expected at least one such as 'relu'")
    on = axes(ax)
    x = _inputs(-5, 5, 501)
    given = get_backend().asarray(x)
    for k, name in enumerate(names):
        y = host(getattr(activations, name)(given), name)
        on.plot(x, y, "-" if k == 0 else "--", color=colour(k), label=name)
    on.set(xlabel="x", ylabel="h(x)")
    return _named(on)


@plot("3.2.3")
def step(*, ax: "Axes | None" = None) -> "Figure":
    """The step function: 1 where x > 0, else 0.

    Parameters
    ----------
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> line = xnet.plotting.step().axes[0].lines[0]
    >>> line.get_label(), sorted(set(line.get_ydata().tolist()))
    ('step', [0, 1])
    """
    return activation("step", ax=ax)


@plot("3.2.4")
def sigmoid(*, ax: "Axes | None" = None) -> "Figure":
    """The sigmoid function, 1 / (1 + exp(−x)).

    Parameters
    ----------
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> line = xnet.plotting.sigmoid().axes[0].lines[0]
    >>> line.get_label(), line.get_ydata()[250].item()  # at x = 0
    ('sigmoid', 0.5)
    """
    return activation("sigmoid", ax=ax)


@plot("3.2.5")
def sigmoid_and_step(*, ax: "Axes | None" = None) -> "Figure":
    """Sigmoid and step function: one is smooth, the other not.

    Parameters
    ----------
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.sigmoid_and_step()
    >>> [line.get_label() for line in figure.axes[0].lines]
    ['sigmoid', 'step']
    """
    return activation("sigmoid", "step", ax=ax)


@plot("3.2.7")
def relu(*, ax: "Axes | None" = None) -> "Figure":
    """ReLU: x where x > 0, else 0.

    Parameters
    ----------
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> line = xnet.plotting.relu().axes[0].lines[0]
    >>> line.get_ydata()[[0, 250, 500]].tolist()  # at x = -5, 0 and 5
    [0.0, 0.0, 5.0]
    """
    return activation("relu", ax=ax)


# -- 3.5 and 3.6


@plot("3.5")
def softmax(scores: Array = SCORES, *, figure: "Figure | None" = None) -> "Figure":
    """Scores, and the probabilities that softmax makes of them.

    Parameters
    ----------
    scores
        (C,)
    figure
        As in `gates`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        Not one row of scores.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.softmax([0.3, 2.9, 4.0])
    >>> [ax.get_title() for ax in figure.axes]
    ['scores', 'softmax']
    >>> [round(float(bar.get_height()), 4) for bar in figure.axes[1].patches]
    [0.0182, 0.2452, 0.7366]
    """
    values = host(scores, "scores")
    if values.ndim != 1:
        raise ValueError(f"scores has shape {values.shape}, expected (C,)")
    made, parts = panels(figure, 2, 2.6, 0.75)
    shown = {"scores": values, "softmax": host(activations.softmax(scores), "softmax")}
    for k, (on, (name, numbers)) in enumerate(zip(parts, shown.items(), strict=True)):
        bars = on.bar(range(len(numbers)), numbers, color=colour(k))
        if len(numbers) <= 6:  # more would run into each other
            on.bar_label(bars, [f"{v:.3g}" for v in numbers], padding=2)
        on.margins(y=0.15)
        on.set(title=name, xlabel="class")
        on.xaxis.get_major_locator().set_params(integer=True)
        on.grid(visible=False, axis="x")
    return made


def square(pixels: NDArray[Any]) -> NDArray[Any]:
    """Pixels (..., D) as pictures (..., side, side).

    Raises
    ------
    ValueError
        D is no square number.
    """
    side = math.isqrt(pixels.shape[-1]) if pixels.ndim else 0
    if not side or side * side != pixels.shape[-1]:
        raise ValueError(
            f"pixels have shape {pixels.shape}, expected a square number of them last, as 64 or 784"
        )
    return pixels.reshape(*pixels.shape[:-1], side, side)


def show_pixels(ax: Any, pixels: NDArray[Any], **settings: Any) -> None:
    """Show a picture (side, side) on axes, ink against paper unless `imshow` is told otherwise."""
    settings = {"cmap": blend(theme().paper, theme().ink), "vmin": 0} | settings
    bare(ax).imshow(pixels, interpolation="nearest", **settings)


@plot("3.6", lambda m: [m.pictures[0][0], m.pictures[1][0]])
def digit(pixels: Array, label: int | None = None, *, ax: "Axes | None" = None) -> "Figure":
    """A handwritten digit.

    Parameters
    ----------
    pixels
        Of one picture, (D,).
    label
        What it is; None says nothing.
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        D is no square number.

    Examples
    --------
    >>> import xnet
    >>> (x, t), _ = xnet.datasets.load_digits()
    >>> figure = xnet.plotting.digit(x[0], t[0])
    >>> figure.axes[0].get_title(), figure.axes[0].images[0].get_array().shape
    ('label 6', (8, 8))
    """
    picture = square(host(pixels, "pixels"))
    on = axes(ax, shape=0.75, plain=True)
    show_pixels(on, picture)
    if label is not None:
        on.set_title(f"label {int(label)}")
    return root(on)


@plot("3.6", lambda m: [m.pictures[0][:24], m.pictures[1][:24]])
def digits(
    pixels: Array, labels: Array | None = None, *, figure: "Figure | None" = None
) -> "Figure":
    """A grid of handwritten digits with their labels.

    Parameters
    ----------
    pixels
        Of pictures, (N, D).
    labels
        (N,); None shows none.
    figure
        As in `gates`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        D is no square number, no pictures, or another number of labels.

    Examples
    --------
    >>> import xnet
    >>> (x, t), _ = xnet.datasets.load_digits()
    >>> figure = xnet.plotting.digits(x[:5], t[:5])
    >>> [ax.get_title() for ax in figure.axes]
    ['6', '6', '6', '2', '5']
    """
    pictures = square(host(pixels, "pixels"))
    names = None if labels is None else host(labels, "labels")
    if pictures.ndim != 3 or not len(pictures):
        raise ValueError(f"pixels: {pictures.shape[:-2]} pictures, expected (N,), N at least 1")
    if names is not None and names.shape != (len(pictures),):
        raise ValueError(f"labels has shape {names.shape}, expected ({len(pictures)},)")
    made, parts = panels(figure, len(pictures), 0.65, 1.35, head=0.1)
    for k, (on, picture) in enumerate(zip(parts, pictures, strict=True)):
        show_pixels(on, picture)
        if names is not None:
            on.set_title(f"{names[k]}", pad=2)
    return made


# -- 4


@plot("4.2")
def minus_log(*, ax: "Axes | None" = None) -> "Figure":
    """−log x: what a probability x of the right class costs.

    Parameters
    ----------
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> line = xnet.plotting.minus_log().axes[0].lines[0]
    >>> abs(line.get_ydata()[-1]).round(4).item(), line.get_ydata().max().round(4).item()
    (0.0, 5.2983)
    """
    on = axes(ax)
    backend = get_backend()
    x = _inputs(0.005, 1)
    on.plot(x, -host(backend.log(backend.asarray(x)), "log"), color=colour(0), label="−log x")
    on.set(xlabel="x, probability of the right class", ylabel="−log x")
    on.set(xlim=(0, 1), ylim=(0, None))
    return root(on)


@plot("4.3")
def tangent(
    f: Callable[[Any], Any] = quadratic,
    at: float = 5.0,
    low: float = 0.0,
    high: float = 20.0,
    *,
    ax: "Axes | None" = None,
) -> "Figure":
    """A curve, and its tangent by the numerical derivative.

    Parameters
    ----------
    f
        A function of one number, elementwise on arrays; by default the notes' 0.01 x² + 0.1 x.
    at
        Where the tangent touches.
    low, high
        From where to where.
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.tangent(lambda x: 0.01 * x**2 + 0.1 * x, at=10.0)
    >>> [line.get_label() for line in figure.axes[0].lines[:2]]
    ['f(x)', 'tangent at 10: slope 0.3']
    """
    on = axes(ax)
    x = _inputs(low, high)
    slope, height = float(numerical_diff(f, at)), float(f(at))
    on.plot(x, f(x), color=colour(0), label="f(x)")
    label = f"tangent at {at:g}: slope {slope:.4g}"
    on.plot(x, height + slope * (x - at), "--", color=colour(1), label=label)
    on.plot(at, height, "o", color=colour(1), markersize=7)
    on.set(xlabel="x", ylabel="f(x)")
    on.legend(loc="upper left")
    return root(on)


def _grid(reach: float, count: int) -> tuple[NDArray[Any], NDArray[Any]]:
    """A side from -reach to reach, and all points of the square, (2, count, count)."""
    side = _inputs(-reach, reach, count)
    return side, np.stack(np.meshgrid(side, side))


@plot("4.3.3")
def surface(
    f: Callable[[Any], Any] = bowl, reach: float = 3.0, *, ax: "Axes | None" = None
) -> "Figure":
    """The surface of x₀² + x₁², or of another function of two numbers.

    Parameters
    ----------
    f
        Of x (2, H, W), (H, W).
    reach
        Both numbers go from -reach to reach.
    ax
        Axes in three dimensions, ``projection="3d"``; None for new ones.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        Axes in two dimensions.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.surface(lambda x: x[0] ** 2 + x[1] ** 2)
    >>> axes = figure.axes[0]
    >>> axes.name, axes.get_zlabel(), round(float(axes.collections[0].get_array().max()), 1)
    ('3d', 'f(x)', 16.8)
    """
    on = axes(ax, shape=0.8, projection="3d")
    if on.name != "3d":
        raise ValueError('surface: ax has two dimensions, expected one with projection="3d"')
    _, x = _grid(reach, 61)
    z = host(f(x), "f(x)")
    on.plot_surface(*x, z, cmap=theme().scale, linewidth=0, antialiased=True, rcount=60, ccount=60)
    on.set(xlabel="x₀", ylabel="x₁", zlabel="f(x)")
    for axis in (on.xaxis, on.yaxis, on.zaxis):
        axis.set_pane_color(theme().paper)
        axis.get_major_locator().set_params(nbins=5)
    on.set_box_aspect(None, zoom=0.85)  # or its labels are cut off
    return root(on)


@plot("4.4")
def gradient_field(
    f: Callable[[Any], Any] = bowl,
    reach: float = 2.0,
    count: int = 11,
    *,
    ax: "Axes | None" = None,
) -> "Figure":
    """Numerical gradients, turned about: each arrow shows the way down, and how steep it is.

    Parameters
    ----------
    f
        A function of x (2,) that returns one number.
    reach
        Both numbers go from -reach to reach.
    count
        Arrows along a side.
    ax
        As in `sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.gradient_field(lambda x: (x**2).sum(), count=3)
    >>> arrows = figure.axes[0].collections[0]
    >>> arrows.XY.tolist()[0], arrows.U.round(4).tolist()[0], arrows.V.round(4).tolist()[0]
    ([-2.0, -2.0], 4.0, 4.0)
    """
    on = axes(ax, shape=0.9)
    _, x = _grid(reach, count)
    points = x.reshape(2, -1)
    slopes = np.stack([numerical_gradient(f, point.copy()) for point in points.T], axis=1)
    on.quiver(*points, *-slopes, angles="xy", color=colour(0), width=0.006)
    on.set(xlabel="x₀", ylabel="x₁", aspect="equal")
    return root(on)


@plot("4.4.1")
def descent(
    f: Callable[[Any], Any] = bowl,
    start: Sequence[float] = (-3.0, 4.0),
    rates: Sequence[float] = RATES,
    steps: int = 100,
    *,
    figure: "Figure | None" = None,
) -> "Figure":
    """Gradient descent on the contours, for learning rates good, too large and too small.

    Parameters
    ----------
    f
        A function of x (2, ...), elementwise along the other axes.
    start
        Where the paths begin.
    rates
        Learning rates, a panel each.
    steps
        How many steps each goes.
    figure
        As in `gates`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        No rates.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.descent(rates=(0.1, 1e-10))
    >>> [ax.get_title().splitlines()[-1] for ax in figure.axes]
    ['ends at (−6.1e−10, 8.1e−10)', 'ends at (−3, 4)']
    """
    if not rates:
        raise ValueError("rates is empty, expected at least one learning rate")
    made, parts = panels(figure, len(rates), 2.3, 1.05)
    reach = 1.25 * max(map(abs, start)) or 1.0
    side, x = _grid(reach, 101)
    heights = host(f(x), "f(x)")
    for on, rate in zip(parts, rates, strict=True):
        path = _path(f, start, rate, steps)
        on.contour(side, side, heights, 10, colors=[theme().faint], linewidths=1)
        on.plot(*path.T, "-", color=colour(0), linewidth=1.2)
        on.plot(*path.T, "o", color=colour(0), markersize=4)
        on.plot(*path[0], "s", color=colour(1), markersize=8)
        end = ", ".join(f"{v:.2g}" for v in path[-1]).replace("-", "−")
        on.set_title(f"learning rate {rate:g}\nends at ({end})".replace("-", "−"))
        on.set(xlabel="x₀", ylabel="x₁", aspect="equal", xlim=(-reach, reach), ylim=(-reach, reach))
        on.grid(visible=False)
    return made


def _path(
    f: Callable[[Any], Any], start: Sequence[float], rate: float, steps: int
) -> NDArray[np.float64]:
    """The points of a descent, (steps + 1, 2)."""
    path: list[Array] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RoundingWarning)  # one that runs away is what is shown
        gradient_descent(f, get_backend().asarray(list(start), "float64"), rate, steps, path)
    return np.stack([host(point, "point") for point in path])
