"""Every figure: what it shows is xnet's, and all of it can be read."""

import itertools
import math
import subprocess
import sys

import numpy as np
import pytest

import xnet
from xnet import activations, datasets, perceptron, plotting
from xnet.layers import Add, Affine, BinaryCrossEntropy, Mul, ReLU, Sigmoid, SoftmaxWithLoss
from xnet.plotting import style
from xnet.testing.parity import Verdict
from xnet.tools import pictures

pytest.importorskip("matplotlib")

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

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


PLOTS = plotting.plots()


def without_animation(made):
    """The figure of an animation, which then is not complained of as never shown."""
    if isinstance(made, Figure):
        return made
    made._func(0)
    made._draw_was_started = True
    return made._fig


@pytest.mark.slow
@pytest.mark.parametrize("name", PLOTS)
def test_everything_can_be_read(name, material):
    """At both widths: no text overlaps another, leaves the figure, or is small."""
    for width in (400, 1200):
        figure = without_animation(drawn(name, material, width=width, dark=width == 400))
        assert list(faults(figure)) == []
        assert round(figure.get_figwidth() * figure.dpi) == width
        sizes = [text.get_size() * figure.dpi / 72 for text, _ in shown_texts(figure)]
        assert not sizes or min(sizes) >= 10
        background = to_hex(figure.get_facecolor())
        assert background == (style.DARK if width == 400 else style.LIGHT).paper


def test_what_cannot_be_read_is_found():
    """What the test above rests on."""
    figure = plotting.sin_cos()
    assert list(faults(figure)) == []
    figure.axes[0].text(1, 0.5, "one text")
    figure.axes[0].text(1.1, 0.52, "another")
    assert list(faults(figure)) == ["'one text' overlaps 'another'"]
    figure = plotting.sin_cos()
    figure.text(0.99, 0.5, "far right")
    assert [fault.partition(":")[0] for fault in faults(figure)] == [
        "'far right' leaves the figure"
    ]


def lines(axes):
    """The curves of some axes by their names."""
    return {line.get_label(): np.stack(line.get_data()) for line in axes.get_lines()}


# -- what is shown


def test_curves_are_those_of_the_functions(backend):
    with xnet.use_backend(backend):
        (axes,) = plotting.activation("sigmoid", "step", "gelu").axes
    shown = lines(axes)
    for name, (x, y) in shown.items():
        expected = getattr(activations, name)(x)
        assert np.allclose(y, expected, rtol=1e-12, atol=1e-12)
    assert list(shown) == ["sigmoid", "step", "gelu"]
    assert [t.get_text() for t in axes.get_legend().get_texts()] == list(shown)
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("x", "h(x)")


def test_the_notes_curves():
    x, y = lines(plotting.sin_cos().axes[0])["cos x"]
    assert np.array_equal(y, np.cos(x))
    x, y = lines(plotting.minus_log().axes[0])["−log x"]
    assert np.allclose(y, -np.log(x), rtol=1e-14)
    curve, tangent, _ = plotting.tangent().axes[0].get_lines()
    assert tangent.get_label() == "tangent at 5: slope 0.2"
    slope = np.diff(tangent.get_ydata()) / np.diff(tangent.get_xdata())
    assert np.allclose(slope, 0.1999999999990898)
    assert (curve.get_ydata() - tangent.get_ydata()).min() == pytest.approx(0, abs=1e-4)


def test_gates_are_coloured_as_they_answer():
    figure = plotting.gates()
    assert [axes.get_title() for axes in figure.axes] == ["AND", "NAND", "OR", "XOR"]
    for axes in figure.axes:
        gate = getattr(perceptron, axes.get_title())
        (path,) = axes.collections[0].get_paths()
        for x1, x2 in itertools.product((0, 1, 0.3, 1.45), repeat=2):
            assert path.contains_point((x1, x2)) == bool(gate(x1, x2)), (axes.get_title(), x1, x2)
        for line in axes.get_lines():
            x1, x2 = (float(v[0]) for v in line.get_data())
            assert line.get_marker() == ("^" if gate(x1, x2) else "o")


def test_softmax_shows_scores_and_probabilities(backend):
    scores, found = plotting.softmax(backend.asarray([0.3, 2.9, 4.0, 0.0])).axes
    assert [bar.get_height() for bar in scores.patches] == [0.3, 2.9, 4.0, 0.0]
    expected = [0.01796885, 0.2419279, 0.72679159, 0.01331165]  # the notes' (§3.5)
    assert [bar.get_height() for bar in found.patches] == pytest.approx(expected, abs=1e-8)
    with pytest.raises(ValueError, match=r"scores has shape \(1, 2\), expected \(C,\)"):
        plotting.softmax([[1.0, 2.0]])


def test_descent_goes_as_the_notes_do():
    figure = plotting.descent()
    ends = []
    for axes in figure.axes:
        path = np.stack(axes.get_lines()[0].get_data(), axis=1)
        assert len(path) == 101
        assert path[0].tolist() == [-3, 4]
        ends.append(path[-1])
    notes = [-6.11110793e-10, 8.14814391e-10], [-2.58983747e13, -1.29524862e12]
    for end, expected in zip(ends, (*notes, [-2.99999994, 3.99999992]), strict=True):
        assert end == pytest.approx(expected, rel=1e-7)
    assert figure.axes[1].get_title() == "learning rate 10\nends at (−2.6e+13, −1.3e+12)"
    with pytest.raises(ValueError, match="rates is empty"):
        plotting.descent(rates=())


def test_gradients_point_down():
    (arrows,) = plotting.gradient_field(count=5).axes[0].collections
    assert np.allclose(np.stack([arrows.U, arrows.V]), -2 * np.stack([arrows.X, arrows.Y]))


def test_surface_takes_axes_of_three_dimensions():
    assert plotting.surface().axes[0].get_zlabel() == "f(x)"
    with pytest.raises(ValueError, match='expected one with projection="3d"'):
        plotting.surface(ax=Figure().subplots())


# -- pictures


def test_digits(backend):
    (x, t), _ = datasets.load_digits()
    figure = plotting.digits(backend.asarray(x[:5]), backend.asarray(t[:5]))
    for axes, picture, label in zip(figure.axes, x[:5], t[:5], strict=True):
        assert np.array_equal(axes.images[0].get_array(), picture.reshape(8, 8))
        assert axes.get_title() == str(label)
    (axes,) = plotting.digit(x[0], int(t[0])).axes
    assert axes.get_title() == f"label {t[0]}"


def test_pictures_are_refused_that_are_none():
    with pytest.raises(ValueError, match=r"pixels have shape \(65,\), expected a square number"):
        plotting.digit(np.zeros(65))
    with pytest.raises(ValueError, match="a square number"):
        plotting.digit(1.0)
    with pytest.raises(ValueError, match=r"labels has shape \(3,\), expected \(2,\)"):
        plotting.digits(np.zeros((2, 64)), [1, 2, 3])
    with pytest.raises(ValueError, match="N at least 1"):
        plotting.digits(np.zeros((0, 64)))
    with pytest.raises(ValueError, match=r"picture has shape \(2,\), expected \(H, W\)"):
        plotting.image([1.0, 2.0])


def test_an_image_file(tmp_path):
    pixels = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    Image.fromarray(pixels).save(tmp_path / "small.png")
    (axes,) = plotting.image(pictures.load_pixels(tmp_path / "small.png")).axes
    assert np.array_equal(axes.images[0].get_array()[..., :3], pixels)
    assert np.array_equal(plotting.image(pixels).axes[0].images[0].get_array(), pixels)
    (tmp_path / "no.png").write_bytes(b"none")
    with pytest.raises(xnet.DatasetError, match="cannot be read as a picture"):
        pictures.load_pixels(str(tmp_path / "no.png"))


# -- graphs


def test_fruit_shop_has_the_notes_values():
    graph = plotting.fruit_shop_graph()
    found = {node.label: (node.value, node.gradient) for node in graph.nodes if not node.inputs}
    assert found["apple\nprice"] == (100, 2.2)
    assert found["apple\ncount"] == (2, 110.00000000000001)
    assert found["orange\nprice"] == (150, 3.3000000000000003)
    assert found["orange\ncount"] == (3, 165.0)
    assert found["tax"] == (1.1, 650)
    assert graph.nodes[-1].inputs[0].value == 715.0000000000001
    texts = [text.get_text() for text in graph.draw().axes[0].texts]
    assert {"100", "2.2", "110", "165", "3.3", "650", "715", "apple\nprice", "×", "+"} <= {*texts}


def test_values_that_are_used_twice():
    """(x + y) (x y): gradients add up, and the two nodes of one step stand apart."""
    graph = plotting.Graph()
    x, y = graph.leaf("x", 2.0), graph.leaf("y", 3.0)
    total = graph.apply("+", Add(), x, y)
    end = graph.apply("×", Mul(), graph.apply("×", Mul(), x, y), total)
    for _ in range(2):  # anew, not on top
        graph.backward(end)
        assert (x.gradient, y.gradient) == (2 * 2 * 3 + 3**2, 2 * 2 * 3 + 2**2)
    places = graph.places()
    assert len(set(places.values())) == len(places)
    for width in (400, 1200):
        with plotting.look(width=width):
            assert list(faults(graph.draw())) == []


def test_a_graph_of_any_layers(backend):
    graph = plotting.Graph()
    layer = Affine.from_params(backend.asarray([[1.0, 2.0]]), backend.asarray([0.0, 0.0]))
    x = graph.leaf("x", backend.asarray([[1.0], [2.0]]))
    end = graph.apply("Affine", layer, x)
    graph.backward(end, backend.asarray([[1.0, 1.0], [0.0, 1.0]]))
    assert backend.to_numpy(x.gradient).tolist() == [[3.0], [2.0]]
    assert "2×1" in [text.get_text() for text in graph.draw().axes[0].texts]
    with pytest.raises(ValueError, match="graph is empty"):
        plotting.Graph().draw()


def test_graphs_show_themselves(monkeypatch, tmp_path):
    """By graphviz where it is: here a stand-in that says what it was given."""
    monkeypatch.setenv("PATH", str(tmp_path))
    graph = plotting.fruit_shop_graph()
    assert "<svg" in graph._repr_svg_()
    program = tmp_path / "dot"
    text = "import sys; sys.stdout.write('<?xml?><svg>' + sys.argv[1] + sys.stdin.read())"
    program.write_text(f"#!{sys.executable}\n{text}")
    program.chmod(0o755)
    said = graph._repr_svg_()
    assert said.startswith("<svg>-Tsvgdigraph {")
    assert '100<br/><font color="#d55e00">2.2</font>' in said
    program.write_text(f"#!{sys.executable}\nraise SystemExit(1)")
    assert "<svg" in graph._repr_svg_()
    graph.leaf("<b>&")
    assert "&lt;b&gt;&amp;" in graph.dot()


def test_a_network_as_a_graph():
    net = xnet.Network([Affine(6, 4), ReLU(), Affine(4, 3)], SoftmaxWithLoss())
    texts = [text.get_text() for text in plotting.network_graph(net).axes[0].texts]
    boxes = ["input", "Affine\nW 6×4\nb 4", "ReLU", "Affine\nW 4×3\nb 3", "SoftmaxWithLoss"]
    assert [text for text in texts if text] == [*boxes, "N×6", "N×4", "N×4", "N×3"]


# -- networks at work


@pytest.fixture(scope="module")
def said(material):
    """The probabilities of the test data, and what is right."""
    x, t = material.test
    return material.network.predict(x), t


def test_predictions_are_the_networks(material, said):
    figure = plotting.predictions(material.network, material.test[0][:3], material.test[1][:3])
    for k in range(3):
        bars = figure.axes[2 * k + 1]
        best = np.argsort(-said[0][k])[:3]
        assert [int(label.get_text()) for label in bars.get_yticklabels()] == best.tolist()
        widths = [bar.get_width() for bar in bars.patches]
        assert widths == pytest.approx(said[0][k][best].tolist())


def test_mistakes_come_by_how_sure_they_are(material, said):
    p, t = said
    wrong = np.flatnonzero(p.argmax(axis=1) != t)
    worst = wrong[np.argsort(-p[wrong].max(axis=1))][:4]
    figure = plotting.mistakes(material.network, *material.test, count=4)
    titles = [axes.get_title() for axes in figure.axes]
    assert titles == [f"{p[k].argmax()}: {p[k].max():.0%}\nis {t[k]}" for k in worst]
    assert figure.get_suptitle() == f"{len(wrong)} of {len(t)} are wrong"
    right = np.flatnonzero(p.argmax(axis=1) == t)[:5]
    none = plotting.mistakes(material.network, material.test[0][right], t[right])
    assert none.get_suptitle() == "0 of 5 are wrong"
    assert list(faults(none)) == []
    with pytest.raises(ValueError, match="count is 0"):
        plotting.mistakes(material.network, *material.test, count=0)


def test_confusion_matrix_counts(material, said):
    x, t = material.test
    axes, _ = plotting.confusion_matrix(material.network, x, t).axes
    shown = {text.get_position(): int(text.get_text()) for text in axes.texts}
    found = {}
    for row, label in zip(said[0], t, strict=True):
        place = int(row.argmax()), int(label)
        found[place] = found.get(place, 0) + 1
    assert shown == found
    one_hot = plotting.confusion_matrix(material.network, x, np.eye(10)[t])
    assert len(one_hot.axes[0].texts) == len(found)


def test_figures_of_classes_need_classes():
    net = xnet.Network([Affine(4, 2)], xnet.layers.IdentityWithLoss(), backend="numpy")
    with pytest.raises(ValueError, match="t: expected labels of classes"):
        plotting.confusion_matrix(net, np.ones((3, 4)), np.full((3, 2), 0.5))


def test_figures_of_a_network_on_every_backend(backend):
    (x, t), _ = datasets.load_digits()
    net = xnet.Network([Affine(64, 5), Sigmoid(), Affine(5, 10)], dtype="float32", backend=backend)
    x, t = backend.asarray(x[:8], "float32"), backend.asarray(t[:8])
    weights = plotting.first_layer_weights(net, count=2).axes
    for k, axes in enumerate(weights[:2]):
        expected = backend.to_numpy(net.params["W1"])[:, k].reshape(8, 8)
        assert np.array_equal(axes.images[0].get_array(), expected)
    gradients = plotting.gradient_histograms(net, x, t).axes
    assert [axes.get_title() for axes in gradients] == ["W1", "b1", "W2", "b2"]
    assert sum(bar.get_height() for bar in gradients[0].patches) == 64 * 5
    outputs = plotting.activation_histograms(net, x).axes
    assert [axes.get_title() for axes in outputs] == ["1: Affine", "2: Sigmoid", "3: Affine"]
    edges = [bar.get_x() for bar in outputs[1].patches]
    assert 0 < min(edges) < max(edges) < 1
    assert plotting.predictions(net, x[:2, ...], t[:2, ...]).axes
    assert plotting.confusion_matrix(net, x, t).axes


def test_weights_need_pixels():
    with pytest.raises(ValueError, match="expected a square number"):
        plotting.first_layer_weights(xnet.Network([Affine(6, 4)]))
    with pytest.raises(ValueError, match="no matrix of weights"):
        plotting.first_layer_weights(xnet.Network([ReLU()]))
    with pytest.raises(ValueError, match="count is 0"):
        plotting.first_layer_weights(xnet.Network([Affine(4, 4)]), count=0)


def test_what_is_not_finite_is_said():
    net = xnet.Network([Affine(2, 2)])
    (axes,) = plotting.activation_histograms(net, [[1.0, math.nan], [1.0, 1.0]]).axes
    assert axes.get_xlabel() == "output (2 not finite)"


# -- in the plane


def separating(columns):
    """A network that tells x₀ above 0 from below, by as many outputs."""
    W = np.array([[-3.0, 3.0], [0.0, 0.0]])[:, -columns:]
    loss = BinaryCrossEntropy() if columns == 1 else SoftmaxWithLoss()
    layer = Affine.from_params(np.ascontiguousarray(W), np.zeros(columns))
    return xnet.Network([layer], loss, backend="numpy")


@pytest.mark.parametrize("columns", [1, 2])
def test_boundary_is_where_the_classes_meet(columns):
    x, t = [[-1.0, -1.0], [1.0, 1.0], [1.0, 0.0]], [0, 1, 1]
    (axes,) = plotting.decision_boundary(separating(columns), x, t).axes
    (contour,) = axes.collections
    (path,) = contour.get_paths()
    assert np.abs(path.vertices[:, 0]).max() < 0.02
    first, second = axes.get_lines()
    assert first.get_color() != second.get_color()
    assert [len(line.get_xdata()) for line in (first, second)] == [1, 2]
    pixels = axes.images[0].get_array()
    assert pixels[0, 0].tolist() != pixels[0, -1].tolist()


def test_planes_are_checked():
    net = separating(2)
    with pytest.raises(ValueError, match=r"x has shape \(1, 3\), expected \(N, 2\)"):
        plotting.decision_boundary(net, [[1.0, 2.0, 3.0]], [0])
    with pytest.raises(ValueError, match=r"t has shape \(2,\), expected \(1,\)"):
        plotting.decision_boundary(net, [[1.0, 2.0]], [0, 1])
    with pytest.raises(ValueError, match="t has labels 0 to 2, expected 0 to 1"):
        plotting.decision_boundary(net, [[1.0, 2.0], [1.0, 1.0]], [0, 2])
    with pytest.raises(ValueError, match="network takes 64 features, expected 2"):
        plotting.decision_boundary(xnet.TwoLayerNet(64, 2, 2), [[1.0, 2.0]], [0])


def test_learning_is_shown_after_so_many_steps(material):
    run = material.run_on_spirals()
    figure = plotting.learning_boundary(run, *material.spirals, steps=(0, 3, 7))
    assert [axes.get_title() for axes in figure.axes] == ["0 steps", "3 steps", "7 steps"]
    assert run.history.iterations == 7
    with pytest.raises(ValueError, match="the run has done 7 already"):
        plotting.learning_boundary(run, *material.spirals, steps=(3,))
    for steps in ((), (5, 3), (-1,)):
        with pytest.raises(ValueError, match="expected numbers from 0 that do not fall"):
            plotting.learning_boundary(run, *material.spirals, steps=steps)


def test_spirals_are_learnt(material):
    x, t = plotting.spirals(100)
    assert (x.shape, t.tolist()) == ((100, 2), [0, 1] * 50)
    assert np.array_equal(x, plotting.spirals(100)[0])
    run = material.run_on_spirals()
    run.run(iterations=600, progress=False)
    assert run.network.accuracy(*material.spirals) > 0.97
    with pytest.raises(ValueError, match="n is 1"):
        plotting.spirals(1)


# -- what is wrong


def test_gradient_errors_are_the_differences(material):
    net = xnet.TwoLayerNet(64, 3, 10, "he", backend="numpy")
    x, t = (a[:5] for a in material.batch)
    *maps, _ = plotting.gradient_errors(net, x, t).axes
    shapes = {"W1": "64×3", "b1": "3", "W2": "3×10", "b2": "10"}
    titles = [f"{name} {shape}: agrees" for name, shape in shapes.items()]
    assert [axes.get_title() for axes in maps] == titles
    apart = np.abs(net.gradient(x, t)["W2"] - net.numerical_gradient(x, t)["W2"])
    shown = maps[2].images[0].get_array()
    assert np.allclose(shown, np.maximum(apart, shown.min()), rtol=1e-12, atol=0)


class Crooked(ReLU):
    """Its gradient is wrong."""

    def backward(self, dout):
        return 1.01 * super().backward(dout)


def test_a_wrong_gradient_is_seen(material):
    net = xnet.Network([Affine(64, 3, "he"), Crooked(), Affine(3, 10, "he")], backend="numpy")
    x, t = (a[:5] for a in material.batch)
    with pytest.warns(xnet.NaiveGradientWarning):
        *maps, _ = plotting.gradient_errors(net, x, t).axes
    assert [axes.get_title().split()[-1] for axes in maps] == ["wrong", "wrong", "agrees", "agrees"]
    largest = [axes.images[0].get_array().max() for axes in maps]
    assert largest[0] > 1e3 * largest[2]


def test_parity_shows_the_largest_difference_of_each():
    (axes,) = plotting.parity_ulps(VERDICTS).axes
    names = [label.get_text() for label in axes.get_yticklabels()]
    assert names == ["exp", "Softmax", "SoftmaxWithLoss"]
    shown = lines(axes)
    assert shown["numba"][0].tolist() == [0, 3, 1e4]
    assert shown["cupy:0"][0][:2].tolist() == [1, 4e4]  # an error is at the edge
    crosses = [line for line in axes.get_lines() if line.get_marker() == "x"]
    assert [list(line.get_ydata()) for line in crosses] == [[2], [1]]
    with pytest.raises(ValueError, match="none of fast mode"):
        plotting.parity_ulps(VERDICTS[-1:])


# -- the look


def test_figures_are_drawn_on_what_is_given():
    figure = Figure(facecolor="#000000")
    left, right = figure.subplots(1, 2)
    left.set_facecolor("#101010")
    right.set_facecolor("none")
    for axes in (left, right):
        assert plotting.sigmoid(ax=axes) is figure
        assert axes.get_lines()[0].get_color() == style.DARK.colours[0]
    part = Figure(layout="constrained").subfigures(1, 2)[1]
    assert plotting.gates(figure=part) is part
    assert len(part.axes) == 4
    assert plotting.sigmoid(ax=part.axes[0]) is part.figure


def test_looks_end_with_their_block():
    import matplotlib

    before = dict(matplotlib.rcParams)
    with plotting.look(dark=True, width=600):
        assert to_hex(plotting.relu().get_facecolor()) == style.DARK.paper
    assert to_hex(plotting.relu().get_facecolor()) == style.LIGHT.paper
    assert dict(matplotlib.rcParams) == before
    for width in (199, 10_001):
        message = rf"width is {width}, expected 200 to 10,000"
        with pytest.raises(ValueError, match=message), plotting.look(width=width):
            pass


def luminance(colour):
    """Relative, of a colour "#rrggbb" (WCAG 2.1)."""
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.03928 else ((v + 0.055) / 1.055) ** 2.4 for v in parts]
    return sum(weight * v for weight, v in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("theme", [style.LIGHT, style.DARK], ids=["light", "dark"])
def test_colours_stand_out(theme):
    def contrast(colour):
        darker, lighter = sorted(luminance(c) for c in (colour, theme.paper))
        return (lighter + 0.05) / (darker + 0.05)

    assert contrast(theme.ink) > 12
    assert min(map(contrast, (theme.good, theme.bad))) > 3.5
    assert min(map(contrast, theme.colours)) > 2


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_files_are_the_same_every_time(suffix, tmp_path):
    paths = [tmp_path / f"{k}.{suffix}" for k in range(2)]
    for path in paths:
        plotting.save(plotting.sigmoid(), path)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    assert len(first) > 1000
    if suffix == "png":
        with Image.open(paths[0]) as picture:
            assert picture.width == 800


def test_animations_are_written_as_gif(material, tmp_path):
    with plotting.look(width=300):
        made = plotting.learning_boundary_animation(
            material.run_on_spirals(), *material.spirals, steps=(0, 2, 4)
        )
    plotting.save(made, tmp_path / "a.gif")
    with Image.open(tmp_path / "a.gif") as animation:
        assert (animation.n_frames, animation.width) == (3, 300)
    with pytest.raises(ValueError, match=r"expected one of \.gif for an animation"):
        plotting.save(made, tmp_path / "a.png")
    with pytest.raises(ValueError, match=r"b.gif ends in '.gif', expected one of .* for a figure"):
        plotting.save(plotting.sigmoid(), tmp_path / "b.gif")
    assert [path.name for path in tmp_path.iterdir()] == ["a.gif"]


def test_figures_show_themselves_in_notebooks():
    figure = plotting.sigmoid()
    assert figure._repr_png_().startswith(b"\x89PNG")
    html = figure._repr_html_()
    assert html.startswith('<img alt="The sigmoid function, 1 / (1 + exp(−x))" src="data:image/png')


def test_the_registry_says_what_there_is():
    assert all(plot.about and plot.section for plot in PLOTS.values())
    sections = [plot.section for plot in PLOTS.values()]
    assert sections == sorted(sections)
    assert {name.replace("-", "_") for name in PLOTS} <= set(plotting.__all__)
    assert [name for name, plot in PLOTS.items() if plot.animated] == [
        "learning-boundary-animation"
    ]


def test_without_matplotlib(monkeypatch):
    monkeypatch.setattr(style, "find_spec", lambda name: None)
    for call in (plotting.sigmoid, lambda: plotting.check_format("a.png")):
        with pytest.raises(ImportError, match=r'pip install "xnet-nn\[plot\]"'):
            call()


def test_matplotlib_is_imported_when_a_figure_is_asked_for():
    code = (
        "import sys, xnet; xnet.plotting.plots(); assert 'matplotlib' not in sys.modules; "
        "xnet.plotting.sigmoid(); assert 'matplotlib.pyplot' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_material_is_the_digits_where_mnist_is_not(monkeypatch, tmp_path):
    monkeypatch.setenv("XNET_DATA_DIR", str(tmp_path))
    assert plotting.Material().pictures[0].shape[1] == 64
    monkeypatch.delenv("XNET_DATA_DIR")
    assert plotting.Material().pictures[0].shape[1] == 64


def test_material_is_mnist_where_that_is(mnist):
    assert plotting.Material().pictures[0].shape[1] == 784
