"""Computational graphs (§5.1-§5.4): values flow forward along the edges, gradients backward.

>>> import xnet
>>> from xnet.layers import Mul
>>> graph = xnet.plotting.Graph()
>>> apples = graph.apply("×", Mul(), graph.leaf("price", 100.0), graph.leaf("count", 2.0))
>>> total = graph.apply("×", Mul(), apples, graph.leaf("tax", 1.1))
>>> graph.backward(total)
>>> round(total.value, 2), [round(edge.gradient, 2) for edge in total.inputs]
(220.0, [1.1, 200.0])
"""

import io
import shutil
import subprocess
from dataclasses import dataclass, field
from html import escape
from itertools import pairwise
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from xnet.layers import Add, Mul
from xnet.network import Network
from xnet.plotting.style import axes, dressed, plot, root, theme, width_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from xnet.plotting.canvas import Figure

Places: TypeAlias = dict[int, tuple[int, float]]
"""Of each node, by its number, how many steps it is from the inputs, and its lane across."""


@dataclass
class Edge:
    """From a node to one that takes what it gives.

    Examples
    --------
    >>> import xnet
    >>> total = xnet.plotting.fruit_shop_graph().nodes[-1]
    >>> [(edge.source.label, round(edge.value, 2), edge.gradient) for edge in total.inputs]
    [('×', 715.0, 1.0)]
    """

    source: "Node"
    value: Any = None
    """What flows forward."""
    gradient: Any = None
    """What flows backward."""


@dataclass
class Node:
    """An input, or what a layer computes.

    Examples
    --------
    >>> import xnet
    >>> for node in xnet.plotting.fruit_shop_graph().nodes[:2]:
    ...     print(node.label.split(), node.value, round(node.gradient, 2))
    ['apple', 'price'] 100.0 2.2
    ['apple', 'count'] 2.0 110.0
    """

    label: str
    number: int
    inputs: list[Edge] = field(default_factory=list[Edge])
    layer: Any = None
    """What computes it; None for an input."""
    value: Any = None
    gradient: Any = None
    box: bool = False
    """Whether it is drawn as a box, which holds more text than a circle."""


class Graph:
    """A computational graph that is computed as it is made, and drawn.

    Attributes
    ----------
    nodes
        In the order in which they were made.

    Examples
    --------
    >>> import xnet
    >>> from xnet.layers import Add, Mul
    >>> graph = xnet.plotting.Graph()
    >>> x, y = graph.leaf("x", 2.0), graph.leaf("y", 3.0)
    >>> total = graph.apply("×", Mul(), graph.apply("+", Add(), x, y), y)
    >>> graph.backward(total)
    >>> total.value, x.gradient, y.gradient
    (15.0, 3.0, 8.0)
    >>> len(graph.draw().axes)
    1
    """

    def __init__(self) -> None:
        self.nodes: list[Node] = []

    def _node(self, label: str, **facts: Any) -> Node:
        node = Node(label, len(self.nodes), **facts)
        self.nodes.append(node)
        return node

    def leaf(self, label: str, value: Any = None) -> Node:
        """An input of this value.

        Parameters
        ----------
        label
            What is written at it.
        value
            What flows from it: a number or an array.

        Returns
        -------
        Node
            Without a layer.
        """
        return self._node(label, value=value)

    def apply(self, label: str, layer: Any, *inputs: Node) -> Node:
        """What a layer, anything with `forward` and `backward`, makes of other nodes' values.

        Parameters
        ----------
        label
            What is written in it, such as ``"×"``.
        layer
            Of its own: it remembers what it has computed.
        inputs
            Nodes of this graph.

        Returns
        -------
        Node
            With the value.
        """
        value = layer.forward(*(node.value for node in inputs))
        edges = [Edge(node, node.value) for node in inputs]
        return self._node(label, inputs=edges, layer=layer, value=value)

    def join(self, label: str, node: Node, flows: Any = None, *, box: bool = True) -> Node:
        """A node that nothing is computed for, after another one; `flows` is written between."""
        return self._node(label, inputs=[Edge(node, flows)], box=box)

    def backward(self, end: Node, dout: Any = 1.0) -> None:
        """Give every node and edge before `end` its gradient (§5.2).

        Parameters
        ----------
        end
            The node that gradients are of.
        dout
            The gradient at it.
        """
        for node in self.nodes:
            node.gradient = None
        end.gradient = dout
        for node in reversed(self.nodes):  # each was made after its inputs
            if node.layer is None or node.gradient is None:
                continue
            found: Any = node.layer.backward(node.gradient)
            if not isinstance(found, tuple):
                found = (found,)
            for edge, gradient in zip(node.inputs, cast(Any, found), strict=True):
                edge.gradient, before = gradient, edge.source.gradient
                edge.source.gradient = gradient if before is None else before + gradient

    def places(self) -> Places:
        """Where each node stands: one step after the last of its inputs, and in their middle.

        Inputs stand one step before what takes them first, below each other in the order in which
        one comes to them from the end: so the edges of a tree do not cross.
        """
        depth: dict[int, int] = {}
        for node in self.nodes:
            depth[node.number] = 1 + max((depth[e.source.number] for e in node.inputs), default=-1)
        for node in self.nodes:
            takers = [depth[n.number] for n in self.nodes for e in n.inputs if e.source is node]
            if not node.inputs and takers:
                depth[node.number] = min(takers) - 1
        across: dict[int, float] = {}

        def place(node: Node) -> None:
            if node.number not in across:
                for edge in node.inputs:
                    place(edge.source)
                sources = [across[edge.source.number] for edge in node.inputs]
                lanes = sum(not self.nodes[number].inputs for number in across)
                across[node.number] = sum(sources) / len(sources) if sources else float(lanes)

        for node in reversed(self.nodes):
            place(node)
        for step in set(depth.values()):
            _part([number for number in across if depth[number] == step], across)
        first = min(across.values(), default=0.0)
        return {number: (depth[number], lane - first) for number, lane in across.items()}

    def dot(self) -> str:
        """The graph in graphviz's language, in the colours of the current look."""
        ink, paper = theme().ink, theme().paper
        colours = f'color="{ink}", fontcolor="{ink}", fontname="sans-serif"'
        lines = [f'digraph {{ rankdir=LR; bgcolor="{paper}"', f"node [{colours}]; edge [{colours}]"]
        for node in self.nodes:
            shape = "box" if node.box else "plain" if node.layer is None else "circle"
            lines.append(f"n{node.number} [label=<{_lines(node.label)}>, shape={shape}]")
            for edge in node.inputs:
                back = f'<br/><font color="{theme().bad}">{_lines(written(edge.gradient))}</font>'
                label = _lines(written(edge.value)) + (back if edge.gradient is not None else "")
                lines.append(f"n{edge.source.number} -> n{node.number} [label=<{label}>]")
        return "\n".join([*lines, "}"])

    # -- drawing

    def draw(self, *, ax: "Axes | None" = None) -> "Figure":
        """Draw the graph: values above the edges, gradients below them, in colour.

        Parameters
        ----------
        ax
            Axes to draw on; None for those of a new figure.

        Returns
        -------
        matplotlib.figure.Figure
            The one that it is drawn on.
        """
        return computational_graph(self, ax=ax)

    def _repr_svg_(self) -> str:
        """By graphviz where its `dot` is, else as `draw` does."""
        program = shutil.which("dot")
        if program is not None:
            command, source = [program, "-Tsvg"], self.dot().encode()
            done = subprocess.run(command, input=source, capture_output=True, check=False)
            if done.returncode == 0:
                svg = done.stdout.decode()
                return svg[svg.index("<svg") :]
        file = io.StringIO()
        cast(Any, self.draw()).savefig(file, format="svg")
        return file.getvalue()


def _part(numbers: list[int], across: dict[int, float]) -> None:
    """Move nodes of one step apart that are less than a lane from each other."""
    numbers = sorted(numbers, key=lambda number: across[number])
    before = sum(across[number] for number in numbers)
    for one, other in pairwise(numbers):
        across[other] = max(across[other], across[one] + 1)
    shift = (sum(across[number] for number in numbers) - before) / max(1, len(numbers))
    for number in numbers:
        across[number] -= shift


def _lines(text: str) -> str:
    """As a label of graphviz's, escaped."""
    return "<br/>".join(escape(line) for line in text.split("\n")) or " "


def written(value: Any) -> str:
    """A value in few characters: a number, an array's shape, or a text as it is."""
    if value is None or isinstance(value, str):
        return value or ""
    shape = tuple(getattr(value, "shape", ()))
    return "×".join(map(str, shape)) if shape else f"{float(value):.6g}"


def fruit_shop_graph() -> Graph:
    """Two apples at 100 and three oranges at 150, with 10 % tax (§5.1, §5.4), both ways.

    Returns
    -------
    Graph
        With values and gradients.

    Examples
    --------
    >>> import xnet
    >>> graph = xnet.plotting.fruit_shop_graph()
    >>> round(graph.nodes[-1].inputs[0].value, 2)
    715.0
    >>> for node in graph.nodes[:5]:
    ...     print(*node.label.split(), round(node.gradient, 2))
    apple price 2.2
    apple count 110.0
    orange count 165.0
    orange price 3.3
    × 1.1
    """
    graph = Graph()
    apple, apples, oranges, orange = (
        graph.leaf(label, value)
        for label, value in {
            "apple\nprice": 100.0,
            "apple\ncount": 2.0,
            "orange\ncount": 3.0,
            "orange\nprice": 150.0,
        }.items()
    )
    fruit = graph.apply("×", Mul(), apple, apples), graph.apply("×", Mul(), oranges, orange)
    before_tax = graph.apply("+", Add(), *fruit)
    total = graph.apply("×", Mul(), before_tax, graph.leaf("tax", 1.1))
    graph.backward(total)
    graph.join("total", total, box=False).inputs[0] = Edge(total, total.value, total.gradient)
    return graph


def network_layers(network: Network) -> Graph:
    """A network's layers, from its input to its loss, with their parameters' shapes.

    Parameters
    ----------
    network
        Any.

    Returns
    -------
    Graph
        To be drawn; nothing is computed in it.

    Examples
    --------
    >>> import xnet
    >>> graph = xnet.plotting.network_layers(xnet.TwoLayerNet(2, 3, 2, seed=0))
    >>> for node in graph.nodes:
    ...     print(*node.label.split())
    input
    Affine W 2×3 b 3
    Sigmoid
    Affine W 3×2 b 2
    SoftmaxWithLoss
    """
    graph = Graph()
    features = network.inputs
    node = graph.leaf("input")
    for layer in network.layers:
        facts = [f"{k} {written(W)}" for k, W in layer.params.items()]
        node = graph.join("\n".join([type(layer).__name__, *facts]), node, _features(features))
        features = layer.gives(features)
    graph.join(type(network.loss_layer).__name__, node, _features(features))
    return graph


def _features(count: int | None) -> str:
    """What flows between two layers."""
    return "N×?" if count is None else f"N×{count}"


# -- drawing


@plot("5.1-5.4")
def fruit_shop(*, ax: "Axes | None" = None) -> "Figure":
    """The fruit shop's computational graph: values forward, gradients backward.

    Parameters
    ----------
    ax
        As in `xnet.plotting.sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.fruit_shop()
    >>> texts = [text.get_text() for text in figure.axes[0].texts]
    >>> [text for text in texts if text in ("715", "2.2", "110", "165", "3.3", "650")]
    ['2.2', '110', '165', '3.3', '650', '650', '715']
    """
    return computational_graph(fruit_shop_graph(), ax=ax)


@dressed
def computational_graph(graph: Graph, *, ax: "Axes | None" = None) -> "Figure":
    """A computational graph: values above its edges, gradients below them, in colour.

    Parameters
    ----------
    graph
        As it was computed.
    ax
        As in `xnet.plotting.sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Raises
    ------
    ValueError
        The graph is empty.

    Examples
    --------
    >>> import xnet
    >>> from xnet.layers import Mul
    >>> graph = xnet.plotting.Graph()
    >>> _ = graph.apply("×", Mul(), graph.leaf("price", 100.0), graph.leaf("count", 2.0))
    >>> figure = xnet.plotting.computational_graph(graph)
    >>> sorted(text.get_text() for text in figure.axes[0].texts)
    ['', '', '100', '2', 'count', 'price', '×']
    """
    if not graph.nodes:
        raise ValueError("graph is empty, expected at least one node")
    return _drawn(graph, ax)


@plot("5.7", lambda m: [m.network])
def network_graph(network: Network, *, ax: "Axes | None" = None) -> "Figure":
    """A network's layers with their parameters' shapes, and how many features go between them.

    Parameters
    ----------
    network
        Any.
    ax
        As in `xnet.plotting.sin_cos`.

    Returns
    -------
    matplotlib.figure.Figure
        The one that it is drawn on.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.network_graph(xnet.TwoLayerNet(2, 3, 2, seed=0))
    >>> [text.get_text().split() for text in figure.axes[0].texts][:3]
    [['input'], ['Affine', 'W', '2×3', 'b', '3'], ['Sigmoid']]
    """
    return _drawn(network_layers(network), ax)


LETTER, LINE = 0.09, 0.17
"""Inches of a letter's width and of a line's height."""

LANE = {True: 1.15, False: 0.95}
"""Inches across the graph that a node needs, of boxes and of circles."""


def _drawn(graph: Graph, ax: "Axes | None") -> Any:
    places = graph.places()
    lanes = max(across for _, across in places.values())
    lane = LANE[any(node.box for node in graph.nodes)]
    inches = width_of(ax)
    *stops, needed = _stops(graph, places)
    # From left to right or, where there is no room for that, from top to bottom.
    lying = needed <= inches
    if lying:
        more = (inches - needed) / len(stops)
        stops = [stop + (k + 0.5) * more for k, stop in enumerate(stops)]
        height = (lanes + 1) * lane
    else:
        height = len(stops) * lane
        stops = [lane * (k + 0.5) for k in range(len(stops))]
        lane = inches / (lanes + 1)
    on = axes(ax, shape=height / inches, plain=True)
    on.set(xlim=(0, inches), ylim=(height, 0))
    at: dict[int, tuple[float, float]] = {}
    for number, (step, across) in places.items():
        along, across = stops[step], lane * (across + 0.5)
        at[number] = (along, across) if lying else (across, along)
    texts = {node.number: _draw_node(on, node, at[node.number]) for node in graph.nodes}
    edges = [(edge, node) for node in graph.nodes for edge in node.inputs]
    for k, (edge, node) in enumerate(edges):
        pair = edge.source.number, node.number
        # Between the two, nearer to the first, where edges are farther apart; of two from one node,
        # at different places.
        alike = [j for j, (other, _) in enumerate(edges) if other.source is edge.source]
        share = 0.9 * (alike.index(k) + 1) / (len(alike) + 1)
        way = abs(at[pair[1]][not lying] - at[pair[0]][not lying])
        first, last = (_size(end)[not lying] / 2 / way for end in (edge.source, node))
        part = first + share * (1 - first - last)
        _draw_edge(on, edge, [at[n] for n in pair], [texts[n] for n in pair], part)
    return root(on)


def _size(node: Node) -> tuple[float, float]:
    """Inches that it is wide and high."""
    lines = node.label.split("\n")
    frame = 0.3 if node.box else 0.2 if node.layer is not None else 0.0
    return LETTER * max(map(len, lines)) + frame, LINE * len(lines) + frame


def _stops(graph: Graph, places: Places) -> list[float]:
    """Inches from the left to the middle of each step's nodes, and to the right end of all."""
    widths: dict[int, float] = {}
    gap = 0.0
    for node in graph.nodes:
        step = places[node.number][0]
        widths[step] = max(_size(node)[0], widths.get(step, 0.0))
        flows = [written(v) for edge in node.inputs for v in (edge.value, edge.gradient)]
        gap = max([gap, *(0.2 + LETTER * len(text) for text in flows)])
    stops, right = list[float](), 0.1
    for _, width in sorted(widths.items()):
        stops.append(right + width / 2)
        right += width + gap
    return [*stops, right - gap + 0.1]


def _draw_node(ax: Any, node: Node, place: tuple[float, float]) -> Any:
    frame: dict[str, Any] = {"facecolor": theme().paper, "edgecolor": theme().ink, "linewidth": 1.2}
    if node.box:
        frame |= {"boxstyle": "round,pad=0.4"}
    elif node.layer is None:
        frame |= {"boxstyle": "round,pad=0.15", "edgecolor": theme().paper}
    else:
        frame |= {"boxstyle": "circle,pad=0.25"}
    size = "large" if node.layer is not None else "medium"
    return ax.text(*place, node.label, ha="center", va="center", size=size, bbox=frame, zorder=3)


def _draw_edge(
    ax: Any,
    edge: Edge,
    ends: list[tuple[float, float]],
    texts: list[Any],
    part: float,
) -> None:
    start, end = ends
    between = dict(zip(("patchA", "patchB"), [t.get_bbox_patch() for t in texts], strict=True))
    arrow = {"arrowstyle": "-|>", "color": theme().ink, "linewidth": 1.2, "shrinkA": 0}
    ax.annotate("", end, start, arrowprops={**arrow, "shrinkB": 1, **between}, zorder=4)
    place = [a + part * (b - a) for a, b in zip(start, end, strict=True)]
    paper = {"facecolor": theme().paper, "edgecolor": "none", "pad": 0.5}
    flows = (edge.value, theme().ink, "bottom", 2), (edge.gradient, theme().bad, "top", -2)
    for value, ink, side, points in flows:
        if text := written(value):
            shift = {"xytext": (0, points), "textcoords": "offset points"}
            looks = {"color": ink, "bbox": paper, "zorder": 5}
            ax.annotate(text, place, ha="center", va=side, **shift, **looks)
