"""Figures of the job: how training goes, what a network says, what it is made of, what is wrong."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from xnet.backend import Array, use_backend
from xnet.gradient_check import differences, gradient_check
from xnet.losses import batch_and_targets
from xnet.measures import are_classes
from xnet.network import Network
from xnet.plotting.notes import show_pixels, square
from xnet.plotting.style import (
    MARKERS,
    axes,
    bar_of_colours,
    blend,
    colour,
    host,
    later,
    panels,
    plot,
    root,
    settle,
    theme,
    width_of,
)
from xnet.testing.parity import Verdict
from xnet.training import History, Training

if TYPE_CHECKING:
    from matplotlib.animation import FuncAnimation
    from matplotlib.axes import Axes

    from xnet.plotting.canvas import Figure

MOST_PROBABLE = 3
"""How many classes are named."""

LEAST = 1e-6
"""Of the largest error, what is told apart from none."""

Plane = tuple[float, float, float, float]
"""From where to where: left, right, bottom, top."""


# -- training


@plot("4.5", lambda m: [m.history])
def training_curves(
    histories: "History | Mapping[str, History]", smooth: int = 1, *, figure: "Figure | None" = None
) -> "Figure":
    """Loss by iteration, and accuracy or R² by epoch, of one or more training runs.

    It is that on the validation data, on the test data where there are none, and without either on
    the training data (§4.5.3).

    Parameters
    ----------
    histories
        What `train` returned; of several runs, each by the name to show.
    smooth
        Show the mean loss of so many mini-batches at a time.
    figure
        Figure to draw on; None for a new one.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on, with two axes. Later runs are dashed, so that equal curves
        both show.

    Raises
    ------
    ValueError
        No runs, one without a loss, or `smooth` below 1.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> x, t = np.eye(2), np.array([0, 1])
    >>> history = xnet.train(net, x, t, epochs=5, batch_size=1, progress=False)
    >>> figure = xnet.plotting.training_curves(history, smooth=2)
    >>> [ax.get_ylabel() for ax in figure.axes]
    ['loss, mean of 2', 'accuracy']
    >>> [len(ax.lines[0].get_xdata()) for ax in figure.axes]
    [5, 5]
    """
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}, expected at least 1")
    if not isinstance(histories, Mapping):
        histories = {"": histories}
    if not histories or not all(history.loss for history in histories.values()):
        raise ValueError("histories: expected at least one, each with at least one loss")
    made, (loss, accuracy) = panels(figure, 2, 2.8, 0.75)
    shown: set[tuple[str, str]] = set()
    for k, (name, history) in enumerate(histories.items()):
        style = {
            "label": name,
            "color": colour(k),
            "linestyle": "-" if k == 0 else (0, (4, 3 + k)),
            "linewidth": (3 - min(k, 4) / 2) if len(histories) > 1 else 1.5,
        }
        starts = range(0, len(history.loss), smooth)
        means = [sum(part) / len(part) for i in starts if (part := history.loss[i : i + smooth])]
        loss.plot([min(i + smooth, len(history.loss)) for i in starts], means, **style)
        part = next(p for p in ("validation", "test", "train") if history.taken(p) or p == "train")
        accuracy.plot(history.epoch_ends, history.taken(part), marker=".", **style)
        shown.add((part, history.metric))
    loss.set(xlabel="iteration", ylabel="loss" if smooth == 1 else f"loss, mean of {smooth}")
    loss.set_ylim(bottom=0)
    parts, metrics = ({*found} for found in zip(*shown, strict=True))
    what = " or ".join(sorted(metrics))
    known = len(parts) == 1 and parts != {"train"}
    accuracy.set(xlabel="iteration", ylabel=f"{parts.pop()} {what}" if known else what)
    for axis in (loss, accuracy):
        if any(histories):
            axis.legend()
        axis.xaxis.get_major_locator().set_params(nbins=5)
    return made


# -- what a network says


def _said(network: Network, x: Any, t: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    """Probabilities (N, C) and the right classes (N,), on the host."""
    backend = network.backend
    with use_backend(backend), backend.running():
        y = network.predict(x)
        _, p, targets = batch_and_targets(y, network.host_to_backend(t, "t"))
        if not are_classes(backend, targets, network.loss_layer.classes):
            raise ValueError("t: expected labels of classes, class indices or one-hot")
        return host(p, "p"), host(targets, "t").argmax(axis=1)


@plot("the job", lambda m: [m.network, m.test[0][:6], m.test[1][:6]])
def predictions(
    network: Network, x: Array, t: Array, *, figure: "Figure | None" = None
) -> "Figure":
    """Pictures, and the most probable classes of each with their probabilities.

    Parameters
    ----------
    network
        Any that tells classes.
    x, t
        Pictures (N, D), D a square number, and labels: a panel each.
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As `Network.loss`; or no classes, or D is no square number.

    Examples
    --------
    >>> import xnet
    >>> _, (x, t) = xnet.datasets.load_digits()
    >>> net = xnet.TwoLayerNet(64, 5, 10, seed=0)
    >>> figure = xnet.plotting.predictions(net, x[:2], t[:2])
    >>> [ax.get_title() for ax in figure.axes[::2]]  # of what is wrong
    ['is 0', 'is 8']
    >>> len(figure.axes[1].patches)
    3
    """
    p, right = _said(network, x, t)
    pictures = square(host(x, "x"))
    made, parts = panels(figure, len(p), 1.9, 0.58, parts=(1, 1.2))
    for k, (picture, row, label) in enumerate(zip(pictures, p, right, strict=True)):
        shown, bars = parts[2 * k : 2 * k + 2]
        show_pixels(shown, picture)
        best = [int(c) for c in np.argsort(-row, kind="stable")[:MOST_PROBABLE]]
        good = best[0] == label
        inks = [theme().good if good else theme().bad, *[theme().faint] * (len(best) - 1)]
        bars.barh(range(len(best)), row[best], color=inks, height=0.7)
        bars.set_yticks(range(len(best)), best)
        bars.set(xlim=(0, 1), ylim=(len(best) - 0.4, -0.6), xticks=[])
        bars.tick_params(axis="y", length=0)
        bars.spines[["bottom"]].set_visible(False)
        bars.grid(visible=False)
        for line, share in enumerate(row[best]):
            inside = share > 0.5
            bars.text(
                *(share, line, f" {share:.0%} "),
                ha="right" if inside else "left",
                va="center",
                color=theme().paper if inside else theme().ink,
            )
        if not good:
            shown.set_title(f"is {label}", color=theme().bad)
    return made


@plot("the job", lambda m: [m.network, *m.test])
def mistakes(
    network: Network, x: Array, t: Array, count: int = 12, *, figure: "Figure | None" = None
) -> "Figure":
    """The mistakes that the network is surest of.

    Parameters
    ----------
    network, x, t
        As in `predictions`.
    count
        How many are shown, at most.
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As in `predictions`; or `count` is below 1.

    Examples
    --------
    >>> import xnet
    >>> _, (x, t) = xnet.datasets.load_digits()
    >>> figure = xnet.plotting.mistakes(xnet.TwoLayerNet(64, 5, 10, seed=0), x, t, count=3)
    >>> figure.get_suptitle()
    '313 of 360 are wrong'
    >>> [ax.get_title().split() for ax in figure.axes]
    [['2:', '10%', 'is', '8'], ['2:', '10%', 'is', '8'], ['2:', '10%', 'is', '8']]
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    p, right = _said(network, x, t)
    said = p.argmax(axis=1)
    sure = np.where(said == right, -1.0, p.max(axis=1))
    worst = [int(k) for k in np.argsort(-sure, kind="stable")[:count] if sure[k] >= 0]
    made, parts = panels(figure, max(1, len(worst)), 0.9, 1.5)
    pictures = square(host(x, "x"))
    for on, k in zip(parts, worst, strict=False):
        show_pixels(on, pictures[k])
        on.set_title(f"{said[k]}: {sure[k]:.0%}\nis {right[k]}", pad=3)
    if not worst:
        parts[0].set_axis_off()
    wrong = int((said != right).sum())
    made.suptitle(f"{wrong} of {len(p)} are wrong")
    return made


@plot("the job", lambda m: [m.network, *m.test])
def confusion_matrix(network: Network, x: Array, t: Array, *, ax: "Axes | None" = None) -> "Figure":
    """How often each class is taken for which.

    Parameters
    ----------
    network
        Any that tells classes.
    x, t
        Samples (N, D) and labels.
    ax
        Axes to draw on; None for those of a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As `Network.loss`; or no classes.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.Network([xnet.layers.Affine.from_params(np.eye(2), np.zeros(2))])
    >>> x, t = np.array([[2.0, 1.0], [1.0, 2.0], [3.0, 1.0]]), np.array([0, 1, 1])
    >>> figure = xnet.plotting.confusion_matrix(net, x, t)
    >>> figure.axes[0].images[0].get_array().tolist()  # rows are the right classes
    [[1.0, 0.0], [0.5, 0.5]]
    """
    p, right = _said(network, x, t)
    classes = p.shape[1]
    counts = np.zeros((classes, classes), np.int64)
    np.add.at(counts, (right, p.argmax(axis=1)), 1)
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    on = axes(ax, shape=0.95)
    drawn = on.imshow(share, cmap=blend(theme().paper, colour(0)), vmin=0, vmax=1)
    on.grid(visible=False)
    on.set(xlabel="said", ylabel="right")
    if classes <= 12:
        on.set(xticks=range(classes), yticks=range(classes))
        for (row, column), n in np.ndenumerate(counts):
            if n:
                ink = theme().paper if share[row, column] > 0.5 else theme().ink
                on.text(column, row, f"{n}", ha="center", va="center", color=ink, size="small")
    bar_of_colours(on, drawn, "share of the right class")
    return root(on)


# -- what it is made of


@plot("the job", lambda m: [m.network])
def first_layer_weights(
    network: Network, count: int = 24, *, figure: "Figure | None" = None
) -> "Figure":
    """What each unit of the first layer looks for: its weights as a picture.

    Parameters
    ----------
    network
        One whose first matrix of weights (D, M) takes a square number D of pixels.
    count
        How many units are shown, at most.
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        There is no such matrix, or `count` is below 1.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(64, 5, 10, seed=0)
    >>> figure = xnet.plotting.first_layer_weights(net, count=3)
    >>> pictures = [ax.images[0].get_array() for ax in figure.axes[:3]]
    >>> bool(np.array_equal(pictures[1].ravel(), net.params["W1"][:, 1]))
    True
    """
    if count < 1:
        raise ValueError(f"count is {count}, expected at least 1")
    matrices = [W for W in network.params.values() if len(W.shape) == 2]
    if not matrices:
        raise ValueError("network has no matrix of weights")
    weights = square(host(matrices[0], "W").T)[:count]
    limit = float(np.abs(weights).max()) or 1.0
    made, parts = panels(figure, len(weights), 0.65, 0.9)
    signs = blend(colour(1), theme().paper, colour(0))
    for on, unit in zip(parts, weights, strict=True):
        show_pixels(on, unit, cmap=signs, vmin=-limit, vmax=limit)
    bar_of_colours(parts, parts[0].images[0], "weight")
    return made


@plot("the job", lambda m: [m.network, m.batch[0]])
def activation_histograms(
    network: Network, x: Array, *, figure: "Figure | None" = None
) -> "Figure":
    """How large the outputs of each layer are.

    Parameters
    ----------
    network
        Any.
    x
        Samples (N, D).
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As `Network.predict`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> figure = xnet.plotting.activation_histograms(net, np.eye(2))
    >>> [ax.get_title() for ax in figure.axes]
    ['1: Affine', '2: Sigmoid', '3: Affine']
    """
    outputs: dict[str, NDArray[Any]] = {}
    with use_backend(network.backend), network.backend.running():
        flowing = network.host_to_backend(x, "x", network.dtype)
        for k, layer in enumerate(network.layers, 1):
            flowing = layer(flowing)
            outputs[f"{k}: {type(layer).__name__}"] = host(flowing, "output")
    return _histograms(outputs, "output", figure)


@plot("the job", lambda m: [m.network, *m.batch])
def gradient_histograms(
    network: Network, x: Array, t: Array, *, figure: "Figure | None" = None
) -> "Figure":
    """How large the gradients by each parameter are.

    Parameters
    ----------
    network
        Any.
    x, t
        Samples (N, D) and labels.
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As `Network.gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> figure = xnet.plotting.gradient_histograms(net, np.eye(2), np.array([0, 1]))
    >>> [ax.get_title() for ax in figure.axes]
    ['W1', 'b1', 'W2', 'b2']
    >>> int(sum(bar.get_height() for bar in figure.axes[0].patches))  # W1 has six weights
    6
    """
    found = {name: host(g, name) for name, g in network.gradient(x, t).items()}
    return _histograms(found, "gradient", figure)


def _histograms(found: Mapping[str, NDArray[Any]], what: str, figure: "Figure | None") -> Any:
    if not found:
        raise ValueError(f"network: no {what}s to show")
    from matplotlib.ticker import NullFormatter

    made, parts = panels(figure, len(found), 1.9, 0.85)
    for on, (name, numbers) in zip(parts, found.items(), strict=True):
        known = numbers[np.isfinite(numbers)]
        on.hist(known.ravel(), bins=40, color=colour(0))
        on.set(title=name, xlabel=what, yscale="log")
        on.xaxis.get_major_locator().set_params(nbins=3)
        on.yaxis.get_major_locator().set_params(numticks=4)
        on.yaxis.set_minor_formatter(NullFormatter())
        on.set_ylim(bottom=0.7)
        if known.size < numbers.size:
            on.set_xlabel(f"{what} ({numbers.size - known.size} not finite)", color=theme().bad)
    parts[0].set_ylabel("how many")
    return made


# -- in the plane


def _plane(x: NDArray[Any]) -> Plane:
    """What holds all points, with some room around them."""
    low, high = x.min(axis=0), x.max(axis=0)
    room = 0.08 * np.maximum(high - low, 1e-6)
    (left, bottom), (right, top) = low - room, high + room
    return float(left), float(right), float(bottom), float(top)


def _probabilities(network: Network, plane: Plane, count: int = 120) -> NDArray[Any]:
    """Of each class on a grid of the plane, (count, count, C)."""
    left, right, bottom, top = plane
    grid = np.meshgrid(np.linspace(left, right, count), np.linspace(bottom, top, count))
    y = host(network.predict(np.stack(grid, axis=-1).reshape(-1, 2)), "y")
    if y.shape[1] == 1:  # the probability of the second of two
        y = np.concatenate([1 - y, y], axis=1).clip(0, 1)
    return y.reshape(count, count, -1)


def _points(network: Network, x: Any, t: Any) -> tuple[NDArray[Any], NDArray[Any]]:
    if network.inputs not in (2, None):
        raise ValueError(f"network takes {network.inputs} features, expected 2: points of a plane")
    points, labels = host(x, "x"), host(t, "t")
    if points.ndim != 2 or points.shape[1] != 2 or not len(points):
        raise ValueError(f"x has shape {points.shape}, expected (N, 2)")
    if labels.ndim == 2:
        labels = labels.argmax(axis=1) if labels.shape[1] > 1 else labels[:, 0]
    if labels.shape != (len(points),):
        raise ValueError(f"t has shape {host(t, 't').shape}, expected ({len(points)},)")
    return points, labels.astype(np.int64)


def _show_boundary(
    ax: Any, p: NDArray[Any], plane: Plane, points: NDArray[Any], labels: NDArray[Any]
) -> None:
    """Colour each point of the plane by the classes' probabilities, and draw where they meet."""
    from matplotlib.colors import to_rgb

    if labels.min() < 0 or labels.max() >= p.shape[2]:
        raise ValueError(
            f"t has labels {labels.min()} to {labels.max()}, expected 0 to {p.shape[2] - 1}"
        )

    colours = np.array([to_rgb(colour(k)) for k in range(p.shape[2])])
    paper = np.array(to_rgb(theme().paper))
    total = np.maximum(p.sum(axis=2, keepdims=True), 1e-12)
    ax.imshow(
        (0.4 * (p / total) @ colours + 0.6 * paper).clip(0, 1),
        extent=plane,
        origin="lower",
        aspect="auto",
        interpolation="bilinear",
    )
    for k in range(p.shape[2] - (p.shape[2] == 2)):
        ahead = p[..., k] - np.delete(p, k, axis=2).max(axis=2)
        if ahead.min() < 0 < ahead.max():
            ax.contour(ahead, [0], extent=plane, colors=[theme().ink], linewidths=1.2)
    for k in range(p.shape[2]):
        ax.plot(
            *points[labels == k].T,
            MARKERS[k % len(MARKERS)],
            color=colour(k),
            markeredgecolor=theme().ink,
            markeredgewidth=0.5,
            markersize=4,
        )
    left, right, bottom, top = plane
    ax.set(xlim=(left, right), ylim=(bottom, top), xlabel="x₀", ylabel="x₁")
    ax.grid(visible=False)


def _trained_on_spirals(training: Training) -> Network:
    training.run(iterations=600, progress=False)
    return training.network


@plot("the job", lambda m: [_trained_on_spirals(m.run_on_spirals()), *m.spirals])
def decision_boundary(
    network: Network, x: Array, t: Array, *, ax: "Axes | None" = None
) -> "Figure":
    """Where a network of two inputs tells one class from another.

    Parameters
    ----------
    network
        One that takes two features. A single output is the probability of class 1.
    x, t
        Points (N, 2) and labels to show: class indices or one-hot.
    ax
        As in `confusion_matrix`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        Another number of features, or points and labels that do not fit.

    Examples
    --------
    >>> import xnet
    >>> x, t = xnet.plotting.spirals(20)
    >>> figure = xnet.plotting.decision_boundary(xnet.TwoLayerNet(2, 3, 2, seed=0), x, t)
    >>> [len(line.get_xdata()) for line in figure.axes[0].lines]  # points of each class
    [10, 10]
    """
    points, labels = _points(network, x, t)
    plane = _plane(points)
    on = axes(ax, shape=0.85)
    _show_boundary(on, _probabilities(network, plane), plane, points, labels)
    return root(on)


STEPS = (0, 20, 60, 150, 300, 600)
"""After how many training steps a boundary is looked at."""


@plot("the job", lambda m: [m.run_on_spirals(), *m.spirals])
def learning_boundary(
    training: Training,
    x: Array,
    t: Array,
    steps: Sequence[int] = STEPS,
    *,
    figure: "Figure | None" = None,
) -> "Figure":
    """How the boundary between classes comes about while a network learns.

    Parameters
    ----------
    training
        A run on points of a plane; it is gone on with.
    x, t
        As in `decision_boundary`.
    steps
        A panel each: after how many of the run's iterations; never fewer than before.
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As in `decision_boundary`; or steps that go back, or none.

    Examples
    --------
    >>> import xnet
    >>> x, t = xnet.plotting.spirals(20)
    >>> run = xnet.Training(xnet.TwoLayerNet(2, 3, 2, seed=0), x, t, batch_size=5)
    >>> figure = xnet.plotting.learning_boundary(run, x, t, steps=(0, 10))
    >>> [ax.get_title() for ax in figure.axes], run.history.iterations
    (['0 steps', '10 steps'], 10)
    """
    made, parts = panels(figure, len(_checked(steps)), 1.9, 1.0)
    points, labels = _points(training.network, x, t)
    plane = _plane(points)
    for k, (on, p) in enumerate(zip(parts, _boundaries(training, plane, steps), strict=True)):
        _show_boundary(on, p, plane, points, labels)
        on.set(xlabel="", ylabel="", xticks=[], yticks=[], title=f"{steps[k]} steps")
    return made


@plot("the job", lambda m: [m.run_on_spirals(), *m.spirals], animated=True)
def learning_boundary_animation(
    training: Training,
    x: Array,
    t: Array,
    steps: Sequence[int] = range(0, 601, 30),
    *,
    ax: "Axes | None" = None,
) -> "FuncAnimation":
    """The boundary between classes while a network learns, as an animation.

    Parameters
    ----------
    training, x, t
        As in `learning_boundary`. The run is gone on with at once, not as the pictures are shown.
    steps
        A picture each.
    ax
        As in `confusion_matrix`.

    Returns
    -------
    matplotlib.animation.FuncAnimation
        `xnet.plotting.save` writes it to a .gif; in a notebook, ``animation.to_jshtml()``.

    Raises
    ------
    ValueError
        As in `learning_boundary`.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import xnet
    >>> x, t = xnet.plotting.spirals(20)
    >>> run = xnet.Training(xnet.TwoLayerNet(2, 3, 2, seed=0), x, t, batch_size=5)
    >>> with xnet.plotting.look(width=200):
    ...     animation = xnet.plotting.learning_boundary_animation(run, x, t, steps=(0, 10))
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "learning.gif")
    ...     xnet.plotting.save(animation, path)
    ...     path.read_bytes()[:6]
    b'GIF89a'
    """
    from matplotlib.animation import FuncAnimation

    _checked(steps)
    points, labels = _points(training.network, x, t)
    plane = _plane(points)
    found = list(_boundaries(training, plane, steps))
    on = axes(ax, shape=0.9)

    def show(k: int) -> list[Any]:
        on.clear()
        _show_boundary(on, found[k], plane, points, labels)
        on.set_title(f"{steps[k]} steps")
        settle(root(on))  # what was laid out for the last one is gone
        return []

    made: Any = FuncAnimation(root(on), later(show), frames=len(found), interval=200)
    return made


def _checked(steps: Sequence[int]) -> Sequence[int]:
    if not steps or min(steps) < 0 or list(steps) != sorted(steps):
        raise ValueError(f"steps is {steps}, expected numbers from 0 that do not fall")
    return steps


def _boundaries(training: Training, plane: Plane, steps: Sequence[int]) -> Iterator[NDArray[Any]]:
    """The probabilities on the plane after so many iterations, in turn."""
    for step in steps:
        more = step - training.history.iterations
        if more < 0:
            raise ValueError(f"steps has {step}, the run has done {step - more} already")
        if more:
            training.run(iterations=more, progress=False)
        yield _probabilities(training.network, plane)


# -- what is wrong


@plot("the job", lambda m: [m.small, *m.batch])
def gradient_errors(
    network: Network, x: Array, t: Array, *, figure: "Figure | None" = None
) -> "Figure":
    """Backpropagation against the numerical gradient: the difference at each weight.

    Parameters
    ----------
    network
        Any; its numerical gradient is taken.
    x, t
        A batch and its labels.
    figure
        As in `training_curves`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        As `xnet.gradient_check`.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> figure = xnet.plotting.gradient_errors(net, np.eye(2), np.array([0, 1]))
    >>> [ax.get_title() for ax in figure.axes[:4]]
    ['W1 2×3: agrees', 'b1 3: agrees', 'W2 3×2: agrees', 'b2 2: agrees']
    """
    from matplotlib.colors import LogNorm

    check = gradient_check(network, x, t)
    errors = {name: host(g, name) for name, g in differences(network, x, t).items()}
    high = max(float(e[np.isfinite(e)].max(initial=1e-16)) for e in errors.values())
    made, parts = panels(figure, len(errors), 1.9, 0.95)
    for on, (name, error) in zip(parts, errors.items(), strict=True):
        flat = error.reshape(len(error), -1) if error.ndim > 1 else error[None, :]
        scale = LogNorm(LEAST * high, high, clip=True)
        on.imshow(np.maximum(flat, LEAST * high), norm=scale, cmap=theme().scale, aspect="auto")
        on.grid(visible=False)
        shape = "×".join(map(str, error.shape))
        on.set_title(f"{name} {shape}: {check.parameters[name].verdict}")
        for axis in (on.xaxis, on.yaxis):
            axis.get_major_locator().set_params(integer=True, nbins=4)
        if len(flat) == 1:
            on.set_yticks([])
    bar_of_colours(parts, parts[0].images[0], "difference")
    return made


@plot("the job", lambda m: [m.verdicts])
def parity_ulps(verdicts: Sequence[Verdict], *, ax: "Axes | None" = None) -> "Figure":
    """How far the backends are from NumPy in fast mode, in units in the last place.

    Parameters
    ----------
    verdicts
        What `xnet.testing.parity.verdict` returned; of one operation and backend the largest
        difference counts. A promise that is broken is a cross.
    ax
        As in `confusion_matrix`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        None of fast mode.

    Examples
    --------
    >>> import xnet
    >>> from xnet.testing.parity import Verdict
    >>> facts = {"reproducible": False, "share": 0.1}
    >>> found = [Verdict(name, "float64", "numba", ulps=2.0, **facts) for name in ("exp", "log")]
    >>> figure = xnet.plotting.parity_ulps(found)
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['exp', 'log']
    >>> figure.axes[0].lines[0].get_label(), figure.axes[0].lines[0].get_xdata().tolist()
    ('numba', [2.0, 2.0])
    """
    fast = [v for v in verdicts if not v.reproducible]
    if not fast:
        raise ValueError(
            "verdicts: none of fast mode; NumPy is the reference, so another backend must be "
            'usable, such as numba (pip install "xnet-nn[numba]")'
        )
    operations = list(dict.fromkeys(v.operation for v in fast))
    finite = [v.ulps for v in fast if math.isfinite(v.ulps)]
    edge = 4 * max([1.0, *finite])
    height = 0.9 + 0.24 * len(operations)
    on = axes(ax, shape=height / width_of(ax))
    for k, name in enumerate(dict.fromkeys(v.backend for v in fast)):
        of = [[v for v in fast if (v.operation, v.backend) == (o, name)] for o in operations]
        worst = [min(edge, max((v.ulps for v in found), default=math.nan)) for found in of]
        lines = range(len(operations))
        marker = MARKERS[k % len(MARKERS)]
        on.plot(worst, lines, marker, color=colour(k), markersize=7 - k % 3, label=name)
        broken = [
            (w, y)
            for w, y, found in zip(worst, lines, of, strict=True)
            if any(not v.kept for v in found)
        ]
        if broken:
            on.plot(*zip(*broken, strict=True), "x", color=theme().bad, markersize=11)
    on.set_xscale("symlog", linthresh=1)
    on.set(xlabel="largest difference, ulp", xlim=(-0.3, edge * 1.2))
    on.set_yticks(range(len(operations)), operations)
    on.set_ylim(len(operations) - 0.5, -0.5)
    on.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, borderaxespad=0.2)
    return root(on)
