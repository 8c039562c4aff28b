"""A figure that a notebook shows. This is the one module that needs matplotlib to be imported."""

import base64
import io
from html import escape
from typing import Any, cast

import matplotlib.figure


class Figure(matplotlib.figure.Figure):
    """A `matplotlib.figure.Figure` that shows itself in a notebook, with a text for the blind.

    Attributes
    ----------
    about
        What the figure shows, in one line: the text alternative of its picture.

    Examples
    --------
    >>> import xnet
    >>> figure = xnet.plotting.relu()
    >>> figure.about
    'ReLU: x where x > 0, else 0'
    >>> figure._repr_png_()[1:4]
    b'PNG'
    """

    about: str = ""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        written = cast(Any, super()).savefig
        written(file, format="png", dpi=self.dpi)
        return file.getvalue()

    def _repr_html_(self) -> str:
        encoded = base64.b64encode(self._repr_png_()).decode()
        alt = escape(self.about, quote=True)
        return f'<img alt="{alt}" src="data:image/png;base64,{encoded}">'
