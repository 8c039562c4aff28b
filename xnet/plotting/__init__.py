"""Figures: those of the notes, and those of the job.

Each function draws one, on a new figure or on what it is handed as `ax` or `figure`, and returns
the `matplotlib.figure.Figure`; in a notebook that shows itself. None opens a window or touches
pyplot's state. `look` makes them light or dark and so wide; `save` writes them. Arrays may be of
any backend. Matplotlib is imported when a figure is asked for (`pip install "xnet-nn[plot]"`).

Examples
--------
>>> import xnet
>>> figure = xnet.plotting.sigmoid_and_step()
>>> figure.axes[0].get_xlabel()
'x'
"""

from xnet.plotting.graphs import (
    Edge,
    Graph,
    Node,
    computational_graph,
    fruit_shop,
    fruit_shop_graph,
    network_graph,
    network_layers,
)
from xnet.plotting.job import (
    activation_histograms,
    confusion_matrix,
    decision_boundary,
    first_layer_weights,
    gradient_errors,
    gradient_histograms,
    learning_boundary,
    learning_boundary_animation,
    mistakes,
    parity_ulps,
    predictions,
    training_curves,
)
from xnet.plotting.material import Material, spirals
from xnet.plotting.measured import growth, slices, throughput
from xnet.plotting.notes import (
    activation,
    descent,
    digit,
    digits,
    gates,
    gradient_field,
    image,
    minus_log,
    relu,
    sigmoid,
    sigmoid_and_step,
    sin_cos,
    softmax,
    step,
    surface,
    tangent,
)
from xnet.plotting.source import source_map
from xnet.plotting.style import (
    NARROWEST,
    WIDEST,
    Plot,
    check_format,
    look,
    plots,
    save,
)

__all__ = [
    "NARROWEST",
    "WIDEST",
    "Edge",
    "Graph",
    "Material",
    "Node",
    "Plot",
    "activation",
    "activation_histograms",
    "check_format",
    "computational_graph",
    "confusion_matrix",
    "decision_boundary",
    "descent",
    "digit",
    "digits",
    "first_layer_weights",
    "fruit_shop",
    "fruit_shop_graph",
    "gates",
    "gradient_errors",
    "gradient_field",
    "gradient_histograms",
    "growth",
    "image",
    "learning_boundary",
    "learning_boundary_animation",
    "look",
    "minus_log",
    "mistakes",
    "network_graph",
    "network_layers",
    "parity_ulps",
    "plots",
    "predictions",
    "relu",
    "save",
    "sigmoid",
    "sigmoid_and_step",
    "sin_cos",
    "slices",
    "softmax",
    "source_map",
    "spirals",
    "step",
    "surface",
    "tangent",
    "throughput",
    "training_curves",
]
