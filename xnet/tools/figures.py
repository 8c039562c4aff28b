"""Every figure. Matplotlib is imported when a figure is asked for (`pip install "xnet-nn[plot]"`).

Each function returns a `matplotlib.figure.Figure`; `figure.savefig(path)` writes it. None opens a
window or touches pyplot's state.
"""

import math
import os
from collections.abc import Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from xnet import exact

if TYPE_CHECKING:
    from xnet.training import History

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
"""Told apart by the colour-blind too (Okabe & Ito 2008)."""
MARKERS = ("o", "s", "^", "D", "v", "P")


def _figure(columns: int, width: float, height: float) -> tuple[Any, list[Any]]:
    """A figure with so many axes in a row, sizes in inches."""
    if find_spec("matplotlib") is None:
        raise ImportError('figures need matplotlib: pip install "xnet-nn[plot]"')
    figure = import_module("matplotlib.figure").Figure((width, height), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.grid(alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    return figure, list(axes)


def check_format(path: str | os.PathLike[str]) -> None:
    """Raise ValueError if matplotlib writes no figure under such a name.

    So that it is known before hours go into what the figure shows.

    Raises
    ------
    ValueError
        The name's suffix is none of a format that matplotlib writes.
    ImportError
        matplotlib is not installed.
    """
    figure, _ = _figure(1, 1, 1)
    formats = figure.canvas.get_supported_filetypes()
    suffix = Path(path).suffix
    if suffix.lower().removeprefix(".") not in formats:
        raise ValueError(
            f"{path} ends in {suffix!r}, expected one of .{', .'.join(sorted(formats))}"
        )


def training_curves(histories: "Mapping[str, History]", smooth: int = 1) -> Any:
    """Loss by iteration, and accuracy or R² by epoch (§4.5.3), of one or more training runs.

    It is that on the validation data, on the test data where there are none, and without either on
    the training data.

    Parameters
    ----------
    histories
        What `train` returned, by the name to show.
    smooth
        Show the mean loss of so many mini-batches at a time.

    Returns
    -------
    matplotlib.figure.Figure
        Two axes. Later runs are dashed, so that equal curves both show.

    Raises
    ------
    ValueError
        No runs, one without a loss, or `smooth` below 1.
    ImportError
        matplotlib is not installed.
    """
    if smooth < 1:
        raise ValueError(f"smooth is {smooth}, expected at least 1")
    if not histories or not all(history.loss for history in histories.values()):
        raise ValueError("histories: expected at least one, each with at least one loss")
    figure, (loss, accuracy) = _figure(2, 9, 3.4)
    shown: set[tuple[str, str]] = set()
    for k, (name, history) in enumerate(histories.items()):
        style = {
            "label": name,
            "color": COLOURS[k % len(COLOURS)],
            "linestyle": "-" if k == 0 else (0, (4, 3 + k)),
            "linewidth": 3 - min(k, 4) / 2,
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
        axis.legend(frameon=False)
    return figure


def growth(
    panels: Mapping[str, Mapping[str, Sequence[tuple[float, float, float]]]],
    what: str = "one gradient",
) -> Any:
    """Measured cost against what it should depend on, with the formula it should follow.

    Parameters
    ----------
    panels
        By what varies, by series (a backend), the points (value, measured s, expected s).
    what
        What takes that long.

    Returns
    -------
    matplotlib.figure.Figure
        One pair of logarithmic axes for each panel: points measured, lines by the formula.

    Raises
    ------
    ValueError
        No panels.
    ImportError
        matplotlib is not installed.
    """
    if not panels:
        raise ValueError("panels is empty, expected at least one")
    figure, axes = _figure(len(panels), 3.4 * len(panels), 3.2)
    for axis, (varied, series) in zip(axes, panels.items(), strict=True):
        for k, (name, points) in enumerate(series.items()):
            values, measured, expected = zip(*points, strict=True)
            colour = COLOURS[k % len(COLOURS)]
            axis.plot(values, [1e3 * s for s in expected], color=colour, alpha=0.6)
            axis.plot(
                values,
                [1e3 * s for s in measured],
                MARKERS[k % len(MARKERS)],
                color=colour,
                label=name,
            )
        axis.set(xscale="log", yscale="log", xlabel=varied)
        ticks = sorted({point[0] for points in series.values() for point in points})
        ticks = ticks[:: 1 + (len(ticks) - 1) // 8]  # more labels would run into each other
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.legend(frameon=False)
    axes[0].set_ylabel(f"{what}, ms")
    return figure


def slices(values: Sequence[float], contracted: int, dtype: str = "float32") -> Any:
    """How reproducible mode cuts the numbers of one row: which bits of which fall into which slice.

    Parameters
    ----------
    values
        Numbers of a row, not all 0.
    contracted
        Length of the product, which decides how wide the slices are.
    dtype
        ``"float32"`` or ``"float64"``: how many bits the numbers have.

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
    """
    if not any(values):
        raise ValueError("values: expected a number other than 0")
    count, width = exact.product_slices(contracted, dtype)
    figure, (axis,) = _figure(1, 9, 0.9 + 0.28 * len(values))
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
                colour = COLOURS[s] if s < count else "#bbbbbb"
                axis.barh(line, end - begin, left=begin, color=colour, height=0.7)
        axis.text(-0.4, line, f"{value:+.2e}", ha="right", va="center", family="monospace", size=8)
    for s in range(count + 1):
        axis.axvline(s * width, color="black", linewidth=0.8)
        if s < count:
            label = f"slice {s + 1}: an integer of {width} bits"
            axis.text((s + 0.5) * width, -0.8, label, ha="center", va="bottom", size=9)
    axis.text(count * width + 0.4, -0.8, "cut off", ha="left", va="bottom", size=9)
    axis.set_xlim(0, max(last, (count + 0.3) * width))
    axis.set_ylim(len(values) - 0.4, -1.6)
    axis.set(xlabel="bits below the largest number of the row", yticks=[])
    axis.spines[["left"]].set_visible(False)
    axis.grid(visible=False)
    return figure


def throughput(
    found: Mapping[str, Mapping[str, Mapping[str, float]]], floor: float | None = None
) -> Any:
    """Images a second against batch size, one line for each contender.

    Parameters
    ----------
    found
        By batch size, by contender, a summary in seconds: as benchmarks/bench.py gives it.
    floor
        Seconds that an image takes at least; drawn in.

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
    """
    if not found:
        raise ValueError("found is empty, expected at least one batch size")
    figure, (axis,) = _figure(1, 7, 4.4)
    batches = [int(n) for n in found]
    for k, name in enumerate(next(iter(found.values()))):
        rates = [int(n) / found[n][name]["median"] for n in found]
        marker = MARKERS[k % len(MARKERS)]
        style = "-" if k < len(COLOURS) else "--"
        axis.plot(batches, rates, style, marker=marker, color=COLOURS[k % len(COLOURS)], label=name)
    if floor is not None:
        label = "dense floor: every product at the peak measured"
        axis.axhline(1 / floor, color="black", linestyle=":", label=label)
    axis.set(xscale="log", yscale="log", xlabel="batch size", ylabel="images a second")
    axis.legend(frameon=False, fontsize=8)
    return figure
