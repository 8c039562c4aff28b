"""Every figure: what it shows is xnet's, and all of it can be read."""

import itertools

import pytest

from xnet.tools.parity import Verdict

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text

from xnet import plotting

VERDICTS = [
    Verdict("exp", "float64", "numba", False, equal=True, ulps=0, share=0),
    Verdict("Softmax", "float64", "numba", False, ulps=3, share=0.2),
    Verdict("SoftmaxWithLoss", "float64", "numba", False, ulps=1e4, share=2),
    Verdict("exp", "float64", "cupy:0", False, ulps=1, share=0.5),
    Verdict("Softmax", "float64", "cupy:0", False, error="no memory"),
    Verdict("exp", "float64", "cupy:0", True, ulps=9),
]


class Known(plotting.Material):
    """What the figures are drawn of here: backends are compared elsewhere."""

    verdicts = VERDICTS


@pytest.fixture(scope="module")
def material():
    return Known(backend="numpy")


def drawn(name, material, **settings):
    with plotting.look(**settings):
        return plotting.plots()[name].draw(material)


def shown_texts(figure):
    """The texts that a figure shows, and where they are, in pixels."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw_without_rendering()
    undrawn = set()
    for axes in figure.axes:
        for axis in axes._axis_map.values():  # an axis has more ticks than it draws
            drawn = axis._update_ticks() if axes.axison and axis.get_visible() else []
            hidden = {*axis.majorTicks, *axis.minorTicks} - {*drawn}
            undrawn |= {label for tick in hidden for label in (tick.label1, tick.label2)}
    for text in figure.findobj(lambda artist: isinstance(artist, Text) and artist not in undrawn):
        if text.get_visible() and text.get_text().strip():
            box = text.get_window_extent(renderer)
            if box.width and box.height:
                yield text, box


def faults(figure):
    """Texts that overlap each other or leave the figure."""
    found, whole = list(shown_texts(figure)), figure.bbox
    for text, box in found:
        if box.x0 < 0 or box.y0 < 0 or box.x1 > whole.x1 or box.y1 > whole.y1:
            yield f"{text.get_text()!r} leaves the figure: {box}"
    for (one, a), (other, b) in itertools.combinations(found, 2):
        wide = min(a.x1, b.x1) - max(a.x0, b.x0)
        high = min(a.y1, b.y1) - max(a.y0, b.y0)
        if wide > 0.5 and high > 2:  # a line's box holds room above and below its letters
            yield f"{one.get_text()!r} overlaps {other.get_text()!r}"


@pytest.mark.parametrize("name", plotting.plots())
def test_everything_can_be_read(name, material):
    for width in (400, 1200):
        made = drawn(name, material, width=width, dark=width == 400)
        figure = made if isinstance(made, Figure) else made._fig
        if made is not figure:
            made._func(0)
            made._draw_was_started = True
        assert list(faults(figure)) == []
        assert round(figure.get_figwidth() * figure.dpi) == width
        sizes = [text.get_size() * figure.dpi / 72 for text, _ in shown_texts(figure)]
        assert not sizes or min(sizes) >= 10
