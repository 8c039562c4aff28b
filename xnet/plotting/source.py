"""A map of the source: one equation, and what follows from it."""

from typing import TYPE_CHECKING, Final

from xnet.plotting.style import axes, bare, plot, theme, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xnet.plotting.canvas import Figure

FOLLOWS: Final = (
    ("arrays of any library", "xnet/backend.py"),
    ("lines of NumPy", "backends/xnet_numpy/generated.py"),
    ("compiled loops", "backends/xnet_numba/generated.py"),
    ("CUDA kernels", "backends/xnet_cupy/kernels.cu"),
    ("the same bits everywhere", "xnet/exact.py"),
    ("bounds of fast mode", "xnet/bounds.py"),
    ("numerical gradients", "xnet/perturbation.py"),
    ("layers and networks", "xnet/layers.py, network.py, plan.py"),
    ("files and ONNX", "xnet/weights.py, spellings.py"),
    ("checks of a backend", "xnet/testing/"),
)
"""What is made of an operation, and where."""

EQUATION: Final = ("an equation:", "forward,", "backward,", "and facts")


@plot("how it works")
def source_map(*, ax: "Axes | None" = None) -> "Figure":
    """One equation, and what follows from it: which file makes what of an operation.

    Parameters
    ----------
    ax
        Axes to draw on; None makes a figure.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ImportError
        matplotlib is not installed.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.source_map()
    >>> "compiled loops" in [text.get_text() for text in figure.axes[0].texts]
    True
    """
    made = bare(axes(ax, 0.44 * len(FOLLOWS) / width_of(ax)))
    now, rows = theme(), len(FOLLOWS)
    made.set(xlim=(0, 1), ylim=(rows - 0.4, -0.6))
    middle, left, right = (rows - 1) / 2, 0.34, 0.46
    box = {"boxstyle": "round,pad=0.4", "facecolor": now.paper, "edgecolor": now.colours[0]}
    beside = {"ha": "right", "va": "center", "multialignment": "center"}
    made.text(left - 0.04, middle, "\n".join(EQUATION), bbox={**box, "linewidth": 2}, **beside)
    for place, said in ((-2.3, "xnet/operations.py"), (2.3, "read by\nxnet/formulas.py")):
        made.text(left - 0.02, middle + place, said, fontsize="small", **beside)
    for row, (what, where) in enumerate(FOLLOWS):
        made.annotate(
            *("", (right - 0.01, row), (left - 0.02, middle)),
            arrowprops={"arrowstyle": "->", "color": now.colours[0], "linewidth": 1.2},
        )
        made.text(right, row - 0.17, what, va="center", fontweight="bold")
        made.text(right, row + 0.23, where, va="center", fontsize="small")
    return made.figure
