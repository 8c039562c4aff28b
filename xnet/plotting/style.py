"""One look for every figure: light or dark, in colours that the colour-blind tell apart.

A figure is as wide as it is asked to be, and its text is of one size all the same: what does not
fit beside each other goes below each other.
"""

import contextlib
import math
import os
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from functools import wraps
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from xnet.arguments import taken
from xnet.files import replaced

if TYPE_CHECKING:
    from matplotlib.animation import Animation
    from matplotlib.axes import Axes

    from xnet.plotting.canvas import Figure
    from xnet.plotting.material import Material

P = ParamSpec("P")
R = TypeVar("R")

MARKERS: Final = ("o", "s", "^", "D", "v", "P")
"""So that lines are told apart without colours, too."""

NARROWEST = 200
"""Pixels: below, nothing can be read."""

WIDEST = 10_000
"""Pixels: beyond, memory for a picture runs into gigabytes."""


@dataclass(frozen=True)
class Theme:
    """Colours of a figure."""

    ink: str
    """Of text and axes."""
    paper: str
    """Of the background."""
    faint: str
    """Of grids, and of what is there only to compare with."""
    colours: tuple[str, ...]
    """Of lines, in turn."""
    good: str
    bad: str
    scale: str = "cividis"
    """Name of the colour map for magnitudes (Nuñez, Anderton & Renslow 2018)."""


LIGHT: Final = Theme(
    ink="#1a1a1a",
    paper="#ffffff",
    faint="#c8c8c8",
    # Okabe & Ito 2008, Color Universal Design; the first six that show on white.
    colours=("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"),
    good="#0072b2",
    bad="#d55e00",
)
DARK: Final = Theme(
    ink="#f0f0f0",
    paper="#16181d",
    faint="#4a4e57",
    # The same, with those in front that show on black.
    colours=("#56b4e9", "#e69f00", "#1fc79b", "#e39ac4", "#f0e442", "#ff8a4c"),
    good="#56b4e9",
    bad="#ff8a4c",
)


@dataclass(frozen=True)
class Look:
    """How figures are drawn that are made in a `look` block."""

    theme: Theme = LIGHT
    width: int = 800
    """Pixels."""

    @property
    def inches(self) -> float:
        """Width in inches: text grows with the figure, though less than it."""
        return 2 + self.width / 200

    @property
    def settings(self) -> dict[str, Any]:
        """Matplotlib's."""
        theme = self.theme
        inked = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color")
        return {
            **dict.fromkeys(inked, theme.ink),
            **dict.fromkeys(("figure.facecolor", "axes.facecolor"), theme.paper),
            "axes.titlecolor": theme.ink,
            "grid.color": theme.faint,
            "grid.alpha": 0.5,
            "axes.grid": True,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.titlesize": "medium",
            "axes.titleweight": "bold",
            "figure.titlesize": "medium",
            "figure.titleweight": "bold",
            "figure.constrained_layout.h_pad": 0.09,
            "figure.constrained_layout.w_pad": 0.09,
            "font.family": "sans-serif",
            "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, and has the mathematics
            "font.size": 10,
            "legend.frameon": False,
            "legend.labelcolor": theme.ink,
            "lines.linewidth": 2,
            "text.usetex": False,
            "savefig.facecolor": "auto",
            "savefig.bbox": None,
            **WRITTEN,
        }


WRITTEN: Final = {"pdf.fonttype": 42, "svg.fonttype": "path", "svg.hashsalt": "xnet"}
"""How files are written: a PDF with letters that can be searched, an SVG with their outlines, which
need no font; and the same bytes every time."""

_look: ContextVar[Look] = ContextVar("look", default=Look())  # noqa: B039 (it is frozen)


@contextlib.contextmanager
def look(*, dark: bool = False, width: int = 800) -> Generator[None]:
    """Block in which figures are made light or dark, and so wide.

    Parameters
    ----------
    dark
        Light lines on a dark background.
    width
        Pixels. Text has about one size however wide the figure is.

    Raises
    ------
    ValueError
        The width is below 200 or above 10,000.

    Examples
    --------
    >>> import xnet
    >>> with xnet.plotting.look(dark=True, width=400):
    ...     figure = xnet.plotting.sin_cos()
    >>> round(figure.get_figwidth() * figure.dpi), max(figure.get_facecolor()[:3]) < 0.5
    (400, True)
    """
    if not NARROWEST <= width <= WIDEST:
        raise ValueError(f"width is {width}, expected {NARROWEST} to {WIDEST:,} pixels")
    token = _look.set(Look(DARK if dark else LIGHT, width))
    try:
        yield
    finally:
        _look.reset(token)


def theme() -> Theme:
    """The colours of the figure that is being drawn."""
    return _look.get().theme


def colour(k: int) -> str:
    """Of line number k."""
    colours = theme().colours
    return colours[k % len(colours)]


def blend(*colours: str) -> Any:
    """A colour map that runs through these."""
    return cast(Any, import_module("matplotlib.colors")).LinearSegmentedColormap.from_list(
        "blend", colours
    )


def check_matplotlib() -> None:
    """Raise ImportError, which says what helps, where there is no matplotlib."""
    if find_spec("matplotlib") is None:
        raise ImportError('figures need matplotlib: pip install "xnet-nn[plot]"')


# -- the registry


@dataclass(frozen=True)
class Plot:
    """A figure that can be asked for by its name.

    Examples
    --------
    >>> import xnet
    >>> plot = xnet.plotting.plots()["relu"]
    >>> plot.name, plot.section, plot.animated
    ('relu', '3.2.7', False)
    >>> figure = plot.draw(xnet.plotting.Material())
    >>> figure.axes[0].get_ylabel()
    'h(x)'
    """

    name: str
    section: str
    """Of the notes, or what else it belongs to."""
    about: str
    """What it shows, in one line."""
    draw: "Callable[[Material], Any]"
    """Draws it with the data and network at hand: a figure, or an animation."""
    animated: bool = False
    """Whether it is an animation."""


_plots: dict[str, Plot] = {}


def plots() -> dict[str, Plot]:
    """Every figure that `xnet plot` draws, by name, in the order of the notes.

    Returns
    -------
    dict of Plot
        Names are the functions', with hyphens.

    Examples
    --------
    >>> import xnet
    >>> plots = xnet.plotting.plots()
    >>> [name for name, plot in plots.items() if plot.section.startswith("3.2")]
    ['activation', 'step', 'sigmoid', 'sigmoid-and-step', 'relu']
    >>> plots["relu"].about
    'ReLU: x where x > 0, else 0'
    """
    return dict(sorted(_plots.items(), key=lambda item: item[1].section))


def dressed(function: Callable[P, R]) -> Callable[P, R]:
    """Have what a function draws look as is current, or as suits the axes that it is handed."""
    about = (function.__doc__ or "").partition("\n")[0].rstrip(".")

    @wraps(function)
    def drawn(*args: P.args, **kwargs: P.kwargs) -> R:
        check_matplotlib()
        from xnet.plotting.canvas import Figure

        with _drawing(_suited(kwargs.get("ax") or kwargs.get("figure"))):
            made = function(*args, **kwargs)
        if isinstance(made, Figure):
            made.about = about
            settle(made)
        return made

    return drawn


def plot(
    section: str,
    example: "Callable[[Material], Sequence[Any]]" = lambda _: (),
    animated: bool = False,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Register a function that draws: its name is the figure's, its first line says what it shows.

    Whatever it makes is `dressed`.

    Parameters
    ----------
    section
        Of the notes, or what else it belongs to.
    example
        From what is at hand, the arguments to draw it with where nobody says otherwise.
    animated
        Whether it makes an animation.
    """

    def register(function: Callable[P, R]) -> Callable[P, R]:
        call: Callable[..., Any] = dressed(function)
        name = function.__name__.replace("_", "-")
        about = (function.__doc__ or "").partition("\n")[0].rstrip(".")

        def draw(material: "Material") -> Any:
            return call(*example(material))

        _plots[name] = Plot(name, section, about, draw, animated)
        return call

    return register


def _suited(given: Any) -> Look:
    """The look of the axes or figure given; the current one where there are none."""
    from matplotlib.colors import to_rgba

    if given is None:
        return _look.get()
    red, green, blue, opacity = to_rgba(given.get_facecolor())
    if opacity < 0.5:
        red, green, blue, opacity = to_rgba(root(given).get_facecolor())
    dark = opacity >= 0.5 and (red + green + blue) / 3 < 0.5
    return Look(DARK if dark else LIGHT, round(200 * (width_of(given) - 2)))


@contextlib.contextmanager
def _drawing(now: Look) -> Generator[None]:
    """Block in which matplotlib makes everything so."""
    token = _look.set(now)
    try:
        with _settings(now.settings):
            yield
    finally:
        _look.reset(token)


def _settings(settings: Mapping[str, Any]) -> contextlib.AbstractContextManager[None]:
    """Block in which matplotlib has these."""
    return cast(Any, import_module("matplotlib")).rc_context(settings)


def later(function: Callable[P, R]) -> Callable[P, R]:
    """The function, run with the look of now whenever it is called."""
    now = _look.get()

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with _drawing(now):
            return function(*args, **kwargs)

    return run


# -- figures and axes


def new_figure(height: float) -> Any:
    """A figure of the current look, its height in inches."""
    from xnet.plotting.canvas import Figure

    now = _look.get()
    dpi = now.width / now.inches
    return Figure((now.inches, height), dpi=dpi, layout="constrained")


def axes(
    ax: "Axes | None", shape: float = 0.65, projection: str | None = None, plain: bool = False
) -> Any:
    """The axes to draw on: those given, or new ones.

    Parameters
    ----------
    ax
        Given ones.
    shape
        Height of the figure over its width, where one is made.
    projection
        Of the axes, where they are made.
    plain
        Without grid, ticks and frame, as pictures are shown.
    """
    made: Any = ax
    if made is None:
        made = new_figure(shape * _look.get().inches).add_subplot(projection=projection)
    if plain:
        bare(made)
    return made


def width_of(drawn: Any) -> float:
    """Inches that there are, on axes or a figure; None is one that is still to be made."""
    return _look.get().inches if drawn is None else drawn.bbox.width / root(drawn).dpi


def bare(ax: Any) -> Any:
    """Take grid, ticks and frame from axes; returns them."""
    ax.set(xticks=[], yticks=[])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
    return ax


def panels(
    figure: "Figure | None",
    count: int,
    least: float,
    height: float,
    *,
    head: float = 0.3,
    parts: Sequence[float] = (1.0,),
) -> tuple[Any, list[Any]]:
    """So many panels of a figure, as many beside each other as there is room for.

    Parameters
    ----------
    figure
        Where to: a figure or a part of one; None makes one.
    count
        How many.
    least
        Width in inches that one needs.
    height
        Of one over its width, where the figure is made.
    head
        Inches above them for a title.
    parts
        Each panel's axes beside each other: their shares of its width.

    Returns
    -------
    figure, list
        The axes of the first panel, then of the second, ...
    """
    made: Any = figure
    inches = width_of(made)
    columns = max(1, min(count, int(inches / least)))
    rows = math.ceil(count / columns)
    columns = math.ceil(count / rows)  # as even as can be
    if made is None:
        made = new_figure(head + rows * height * inches / columns)
    widths = [*parts] * columns
    found: list[Any] = list(
        made.subplots(rows, len(widths), squeeze=False, width_ratios=widths).flat
    )
    used = count * len(parts)
    for ax in found[used:]:
        ax.remove()
    return made, found[:used]


def settle(figure: Any) -> None:
    """Have a figure's layout found once: the next time it is drawn, what needs two turns fits."""
    figure.draw_without_rendering()


def root(drawn: Any) -> Any:
    """The figure that axes, or a part of a figure, belong to."""
    return drawn.figure.figure


def host(values: Any, name: str) -> NDArray[Any]:
    """Arrays of any backend, lists and numbers as a NumPy array."""
    backend, array = taken(**{name: values})
    return np.asarray(backend.to_numpy(array))


def bar_of_colours(axes: Any, drawn: Any, label: str) -> None:
    """A bar beside axes, or a list of them, that says what the colours mean."""
    bar = root(drawn).colorbar(drawn, ax=axes, fraction=0.05, pad=0.02)
    bar.set_label(label)
    bar.outline.set_visible(False)
    bar.ax.grid(visible=False)


# -- files


def check_format(path: str | os.PathLike[str], animated: bool = False) -> str:
    """The format that a file's name asks for, such as ``"png"``.

    So that a wrong one is known before hours go into what the figure shows.

    Parameters
    ----------
    path
        Where it is to be written.
    animated
        Whether it is an animation.

    Returns
    -------
    str
        In small letters, without the dot.

    Raises
    ------
    ValueError
        The name's suffix is none of a format that figures, or animations, are written in.
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import xnet
    >>> xnet.plotting.check_format("relu.SVG")
    'svg'
    >>> xnet.plotting.check_format("learning.gif", animated=True)
    'gif'
    >>> xnet.plotting.check_format("learning.png", animated=True)
    Traceback (most recent call last):
        ...
    ValueError: learning.png ends in '.png', expected one of .gif for an animation
    """
    check_matplotlib()
    from matplotlib.backend_bases import FigureCanvasBase

    still = set(FigureCanvasBase.get_supported_filetypes()) - {"gif", "pgf"}  # pgf needs a TeX
    formats = {"gif"} if animated else still
    suffix = Path(path).suffix
    found = suffix.lower().removeprefix(".")
    if found not in formats:
        expected = ", .".join(sorted(formats))
        what = "an animation" if animated else "a figure"
        raise ValueError(f"{path} ends in {suffix!r}, expected one of .{expected} for {what}")
    return found


def save(drawn: "Figure | Animation", path: str | os.PathLike[str]) -> None:
    """Write a figure or an animation to a file, whole or not at all.

    Parameters
    ----------
    drawn
        What a function of this package returned.
    path
        Its suffix says the format: .png, .svg, .pdf, ...; .gif for an animation.

    Raises
    ------
    ValueError
        No such format.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import xnet
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "relu.svg")
    ...     xnet.plotting.save(xnet.plotting.relu(), path)
    ...     "<svg" in path.read_text()
    True
    """
    from matplotlib.animation import Animation, PillowWriter

    animated = isinstance(drawn, Animation)
    kind = check_format(path, animated)
    with _settings(WRITTEN), replaced(path) as file:
        if isinstance(drawn, Animation):
            with tempfile.TemporaryDirectory() as folder:
                frames = Path(folder) / "frames.gif"
                drawn.save(frames, writer=PillowWriter(fps=5))
                file.write(frames.read_bytes())
        else:
            written = cast(Any, drawn).savefig
            undated = {"svg": {"Date": None}, "pdf": {"CreationDate": None}}
            written(file, format=kind, dpi=drawn.dpi, metadata=undated.get(kind))
