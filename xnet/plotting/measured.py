"""Figures of what was measured: cost by size, and speed; how reproducible mode cuts numbers."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from xnet import exact
from xnet.plotting.style import MARKERS, axes, colour, dressed, panels, plot, root, theme

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xnet.plotting.canvas import Figure


@dressed
def growth(
    measured: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    what: str = "one gradient",
    *,
    figure: "Figure | None" = None,
) -> "Figure":
    """Measured cost against what it should depend on, with the formula it should follow.

    Parameters
    ----------
    measured
        By what varies, by series (a backend), the points (value, measured s, expected s).
    what
        What takes that long.
    figure
        Figure to draw on; None for a new one.

    Returns
    -------
    matplotlib.figure.Figure
        One pair of logarithmic axes for each panel: points measured, lines by the formula.

    Raises
    ------
    ValueError
        Nothing was measured.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import xnet
    >>> measured = {"hidden units": {"numpy": [(10, 0.001, 0.001), (100, 0.012, 0.01)]}}
    >>> figure = xnet.plotting.growth(measured)
    >>> figure.axes[0].get_xlabel(), figure.axes[0].get_ylabel()
    ('hidden units', 'one gradient, ms')
    >>> [line.get_ydata().tolist() for line in figure.axes[0].lines]
    [[1.0, 10.0], [1.0, 12.0]]
    """
    if not measured:
        raise ValueError("measured is empty, expected at least one")
    made, parts = panels(figure, len(measured), 2.4, 0.95)
    for axis, (varied, series) in zip(parts, measured.items(), strict=True):
        for k, (name, points) in enumerate(series.items()):
            values, seconds, expected = zip(*points, strict=True)
            axis.plot(values, [1e3 * s for s in expected], color=colour(k), alpha=0.6)
            found, marker = [1e3 * s for s in seconds], MARKERS[k % len(MARKERS)]
            axis.plot(values, found, marker, color=colour(k), label=name)
        axis.set(xscale="log", yscale="log", xlabel=varied)
        ticks = sorted({point[0] for points in series.values() for point in points})
        ticks = ticks[:: 1 + (len(ticks) - 1) // 8]  # more labels would run into each other
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend()
    parts[0].set_ylabel(f"{what}, ms")
    return made


ROW = (0.91, -0.4, 0.063, -2.1e-3, 1.7e-5, -3e-7, 8e-10)
"""Numbers of a row, from large to small."""


@plot("reproducible mode")
def slices(
    values: Sequence[float] = ROW,
    contracted: int = 784,
    dtype: str = "float32",
    *,
    ax: "Axes | None" = None,
) -> "Figure":
    """How reproducible mode cuts the numbers of one row: which bits of which fall into which slice.

    Parameters
    ----------
    values
        Numbers of a row, not all 0.
    contracted
        Length of the product, which decides how wide the slices are.
    dtype
        ``"float32"`` or ``"float64"``: how many bits the numbers have.
    ax
        Axes to draw on; None for those of a new figure.

    Returns
    -------
    matplotlib.figure.Figure
        One axis: a bar for each number, from its highest bit to its last.

    Raises
    ------
    ValueError
        Every number is 0.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.slices([1.0, 0.001], contracted=784)
    >>> [text.get_text().split() for text in figure.axes[0].texts]
    [['slice', '1:', '21', 'bits'], ['slice', '2:', '21', 'bits'], ['cut', 'off']]
    >>> [label.get_text() for label in figure.axes[0].get_yticklabels()]
    ['+1.0e+00', '+1.0e−03']
    """
    if not any(values):
        raise ValueError("values: expected a number other than 0")
    count, width = exact.product_slices(contracted, dtype)
    axis = axes(ax, shape=0.18 + 0.05 * len(values))
    # frexp counts from the bit above the highest: a number in [1, 2) begins at 0.
    top = max(math.frexp(value)[1] for value in values if value)
    last = 0
    for line, value in enumerate(values):
        start = top - math.frexp(value)[1]
        end_of_all = start + exact.DIGITS[dtype]
        last = max(last, end_of_all if value else 0)
        for s in range(count + 1):
            begin = max(start, s * width)
            end = min(end_of_all, (s + 1) * width) if s < count else end_of_all
            if value and begin < end:
                ink = colour(s) if s < count else theme().faint
                axis.barh(line, end - begin, left=begin, color=ink, height=0.7)
    for s in range(count + 1):
        axis.axvline(s * width, color=theme().ink, linewidth=0.8)
        if s < count:
            label = f"slice {s + 1}:\n{width} bits"
            axis.text((s + 0.5) * width, -0.6, label, ha="center", va="bottom")
    axis.text(count * width + 0.6, -0.6, "cut off", ha="left", va="bottom")
    axis.set_xlim(0, max(last, (count + 0.4) * width))
    axis.set_ylim(len(values) - 0.4, -2.2)
    axis.set(xlabel="bits below the largest number of the row")
    axis.set_yticks(range(len(values)), [f"{value:+.1e}".replace("-", "−") for value in values])
    axis.tick_params(axis="y", length=0)
    axis.spines[["left"]].set_visible(False)
    axis.grid(visible=False)
    return root(axis)


@dressed
def throughput(
    found: Mapping[str, Mapping[str, Mapping[str, float]]],
    floor: float | None = None,
    *,
    ax: "Axes | None" = None,
) -> "Figure":
    """Images a second against batch size, one line for each contender.

    Parameters
    ----------
    found
        By batch size, by contender, a summary in seconds: as benchmarks/bench.py gives it.
    floor
        Seconds that an image takes at least; drawn in.
    ax
        As in `slices`.

    Returns
    -------
    matplotlib.figure.Figure
        One pair of logarithmic axes.

    Raises
    ------
    ValueError
        Nothing was found.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import xnet
    >>> found = {"1": {"numpy": {"median": 1e-4}}, "100": {"numpy": {"median": 1e-3}}}
    >>> figure = xnet.plotting.throughput(found)
    >>> [round(rate) for rate in figure.axes[0].lines[0].get_ydata()]
    [10000, 100000]
    """
    if not found:
        raise ValueError("found is empty, expected at least one batch size")
    axis = axes(ax)
    batches = [int(n) for n in found]
    for k, name in enumerate(next(iter(found.values()))):
        rates = [int(n) / found[n][name]["median"] for n in found]
        marker = MARKERS[k % len(MARKERS)]
        style = "-" if k < len(theme().colours) else "--"
        axis.plot(batches, rates, style, marker=marker, color=colour(k), label=name)
    if floor is not None:
        label = "dense floor: every product at the peak measured"
        axis.axhline(1 / floor, color=theme().ink, linestyle=":", label=label)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="images a second")
    axis.legend(fontsize="small")
    return root(axis)
