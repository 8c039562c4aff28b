"""The pages, in a browser: NiceGUI's elements around `sheet` and `classifier`."""

import base64
import io
import math
import socket
from collections.abc import Callable, Mapping
from functools import cache, partial
from html import escape
from typing import Any

import numpy as np
from nicegui import app, core, run
from nicegui import ui as nicegui_ui
from numpy.typing import NDArray
from PIL import Image
from starlette.middleware.trustedhost import TrustedHostMiddleware

from xnet.backend import backends
from xnet.errors import XnetError
from xnet.network import Network
from xnet.operations import registered
from xnet.optimizers import OPTIMIZERS
from xnet.tools.play.classifier import GRID, REACH, Classifier, Settings
from xnet.tools.play.points import PROBLEMS
from xnet.tools.play.sheet import PEN, SIDE, Answer, Sheet, answer

ui: Any = nicegui_ui  # whose methods take whatever JavaScript does: half of its types are unknown

HOST = "127.0.0.1"
"""This machine alone."""

COLOURS = ((0, 114, 178), (213, 94, 0))
"""Of the two classes (Okabe & Ito 2008), which have shapes, too."""

STYLE = """
:root { --paper: #ffffff; --ink: #1a1a1a; --faint: #6b6f76; --line: #b9bdc4; }
@media (prefers-color-scheme: dark) {
  :root { --paper: #16181d; --ink: #f0f0f0; --faint: #a4a9b2; --line: #4a4e57; }
}
body { background: var(--paper); color: var(--ink); }
.nicegui-content { padding: 0.5rem; }
main { width: 100%; min-width: 0; max-width: 62rem; margin: 0 auto; padding: 0.5rem; }
main h1 { font-size: 1.6rem; line-height: 1.2; margin: 0.3rem 0; }
main h2 { font-size: 1.1rem; line-height: 1.2; margin: 0.6rem 0 0.2rem; font-weight: 600; }
main p { margin: 0.2rem 0; max-width: 42rem; }
nav a { margin-right: 1rem; color: var(--ink); text-decoration: underline; }
nav a[aria-current] { font-weight: 700; text-decoration: none; }
.panels { display: flex; flex-wrap: wrap; gap: 1.5rem; align-items: flex-start; }
.sheet { border: 2px solid var(--line); width: 284px; touch-action: none; cursor: crosshair; }
.sheet:focus-visible { outline: 3px solid #e69f00; }
.answers { border-collapse: collapse; }
.answers th, .answers td { padding: 0 0.4rem; text-align: right; font-weight: 400; }
.answers tr.first th, .answers tr.first td { font-weight: 700; }
.answers meter { width: 9rem; height: 0.9rem; }
figure { margin: 0; }
figcaption { font-size: 0.85rem; color: var(--faint); max-width: 18rem; }
.pixels { image-rendering: pixelated; border: 1px solid var(--line); }
.plane { width: min(24rem, 90vw); height: auto; border: 1px solid var(--line); display: block; }
.curve { width: min(24rem, 90vw); height: 5rem; border: 1px solid var(--line); display: block; }
.controls { display: grid; grid-template-columns: repeat(auto-fill, minmax(10rem, 1fr));
            gap: 0.5rem 1rem; max-width: 42rem; margin: 0.6rem 0; }
.buttons { display: flex; gap: 0.6rem; margin: 0.6rem 0; }
"""


def picture(values: NDArray[Any], width: int, alt: str) -> str:
    """Numbers from 0 to 1 as a picture, 1 the lightest, with what it shows in words."""
    pixels = (np.clip(values, 0, 1) * 255).astype(np.uint8)
    source = data_url(Image.fromarray(pixels))
    return (
        f'<img class="pixels" src="{source}" alt="{escape(alt)}" width="{width}" '
        f'height="{round(width * values.shape[0] / values.shape[1])}">'
    )


def data_url(image: Image.Image) -> str:
    """A picture within the page."""
    held = io.BytesIO()
    image.save(held, "png")
    return "data:image/png;base64," + base64.b64encode(held.getvalue()).decode()


def figure(content: str, caption: str) -> str:
    """A picture above what it is."""
    return f"<figure>{content}<figcaption>{escape(caption)}</figcaption></figure>"


def answers(found: Answer) -> str:
    """The probabilities as a table, each with its bar."""
    rows = [
        f'<tr class="{"first" if k == found.digit else ""}"><th scope="row">{k}</th>'
        f'<td><meter min="0" max="1" value="{p:.4f}" aria-hidden="true"></meter></td>'
        f"<td>{100 * p:.1f} %</td></tr>"
        for k, p in enumerate(found.probabilities)
    ]
    return f'<table class="answers" aria-label="Probability of each digit">{"".join(rows)}</table>'


def steps(found: Answer) -> str:
    """What is done to the picture before the network sees it."""
    shown: list[str] = []
    for name, values in found.steps:
        height, width = values.shape
        wide = 96 if width >= height else max(8, round(96 * width / height))
        marked = f"{(values > 0.5).mean():.0%} of it is ink"
        shown.append(figure(picture(values, wide, f"The digit, {name}: {marked}"), name))
    return f'<div class="panels">{"".join(shown)}</div>'


def hidden(found: Answer) -> str:
    """What comes out of the layers before the last, a square for each unit."""
    shown: list[str] = []
    for name, values in found.hidden:
        columns = math.ceil(math.sqrt(values.size * 2))
        cells = np.zeros(-(-values.size // columns) * columns)
        low, high = float(values.min()), float(values.max())
        cells[: values.size] = (values - low) / ((high - low) or 1)
        said = f"{values.size} units, from {low:.2f} (black) to {high:.2f} (white)"
        square = picture(cells.reshape(-1, columns), 12 * columns, f"{name}: {said}")
        shown.append(figure(square, f"{name}, {said}"))
    return f'<div class="panels">{"".join(shown)}</div>'


def plane(classifier: Classifier, said: str) -> str:
    """The points, and what the network says of everywhere between them."""
    first, second = (np.array(colour) for colour in COLOURS)
    share = classifier.plane()[:, :, np.newaxis]
    share = np.where(np.isfinite(share), share, 0.5)
    pixels = (255 - (255 - (first + (second - first) * share)) * 0.55).astype(np.uint8)
    source = data_url(Image.fromarray(pixels))
    marks: list[str] = []
    for (x, y), label in zip(classifier.x.tolist(), classifier.t.tolist(), strict=True):
        column, row = (x + REACH) * GRID / (2 * REACH), (REACH - y) * GRID / (2 * REACH)
        colour = f"rgb{COLOURS[label]}"
        style = f'fill="{colour}" stroke="#000" stroke-width="0.15"'
        if label:
            corner = f'x="{column - 0.6:.2f}" y="{row - 0.6:.2f}"'
            marks.append(f'<rect {corner} width="1.2" height="1.2" {style}/>')
        else:
            marks.append(f'<circle cx="{column:.2f}" cy="{row:.2f}" r="0.7" {style}/>')
    return (
        f'<svg class="plane" viewBox="0 0 {GRID} {GRID}" role="img" aria-label="{escape(said)}">'
        f'<image href="{source}" width="{GRID}" height="{GRID}" preserveAspectRatio="none"/>'
        f"{''.join(marks)}</svg>"
    )


def curve(losses: list[float]) -> str:
    """The loss of each mini-batch so far, thinned to what can be seen."""
    every = max(1, len(losses) // 200)
    means = [float(np.mean(losses[k : k + every])) for k in range(0, len(losses), every)]
    known = [value for value in means if math.isfinite(value)]
    top = max(known, default=1.0) or 1.0
    points = " ".join(
        f"{200 * k / max(len(known) - 1, 1):.1f},{39 - 38 * value / top:.1f}"
        for k, value in enumerate(known)
    )
    said = (
        f"The loss of {len(losses)} steps, from {known[0]:.3f} to {known[-1]:.3f}" if known else ""
    )
    return (
        f'<svg class="curve" viewBox="0 0 200 40" preserveAspectRatio="none" role="img" '
        f'aria-label="{escape(said or "No loss yet")}"><polyline points="{points}" fill="none" '
        'stroke="currentColor" vector-effect="non-scaling-stroke" stroke-width="2"/></svg>'
    )


def head(here: str, title: str) -> None:
    """What every page begins with."""
    ui.add_css(STYLE)
    ui.page_title(f"{title} - xnet")
    links = "".join(
        f'<a href="{path}"{" aria-current=page" if path == here else ""}>{name}</a>'
        for path, name in (("/", "Draw a digit"), ("/train", "Train a classifier"))
    )
    ui.html(f'<nav aria-label="Pages">{links}</nav><h1>{escape(title)}</h1>', sanitize=False)


def choice(label: str, options: Mapping[str, str] | list[str], value: str, change: Any) -> Any:
    """A labelled list to choose from."""
    return ui.select(options, value=value, label=label, on_change=change).props("dense outlined")


def button(label: str, pressed: Any) -> Any:
    """A button that says what it does as it is written here."""
    return ui.button(label, on_click=pressed).props("no-caps")


def usable(chosen: str) -> list[str]:
    """The backends that can compute here, and the one that was chosen, such as cupy:1."""
    found = [info.name for info in backends() if info.usable]
    return found if chosen in found else [chosen, *found]


class DrawPage:
    """Draw a digit, and watch what a network makes of it."""

    def __init__(self, networks: Mapping[str, Callable[[str], Network]], backend: str) -> None:
        self.networks, self.backend = networks, backend
        self.name = next(iter(networks))
        self.network = networks[self.name](backend)  # which `serve` has loaded
        self.sheet = Sheet()
        self.pen: list[float] | None = None
        self.down = self.changed = False
        with ui.element("main"):
            head("/", "Draw a digit")
            ui.html(
                "<p>Draw one with the mouse or a finger. By keyboard: go to the sheet, move the "
                "pen with the arrow keys, put it down and lift it with the space bar.</p>",
                sanitize=False,
            )
            with ui.element("div").classes("controls"):
                choice("Network", list(networks), self.name, self._choose_network)
                choice("Backend", usable(backend), backend, self._choose_backend)
            with ui.element("div").classes("panels"):
                with ui.element("section"):
                    ui.html("<h2>Sheet</h2>", sanitize=False)
                    self.view = (
                        ui.interactive_image(
                            size=(SIDE, SIDE),
                            on_mouse=self._mouse,
                            events=["pointerdown", "pointermove", "pointerup", "pointerleave"],
                        )
                        .classes("sheet")
                        .props('tabindex=0 role=application aria-label="Sheet to draw a digit on"')
                    )
                    keys = ["arrow-left", "arrow-right", "arrow-up", "arrow-down", "space"]
                    for key in keys:
                        self.view.on(f"keydown.{key}.prevent", self._key, ["key"])
                    with ui.element("div").classes("buttons"):
                        button("Clear", self._clear)
                        button("Undo", self._undo)
                with ui.element("section"):
                    ui.html("<h2>Probabilities</h2>", sanitize=False)
                    self.said = ui.label("Nothing is drawn.").props("role=status aria-live=polite")
                    self.shown = ui.html("", sanitize=False)
            ui.html("<h2>What the network sees</h2>", sanitize=False)
            self.steps = ui.html("", sanitize=False)
            ui.html("<h2>Hidden layers</h2>", sanitize=False)
            self.hidden = ui.html("", sanitize=False)
        self._show()
        ui.timer(0.1, self._refresh)

    def _mouse(self, event: Any) -> None:
        x, y, kind = event.image_x, event.image_y, event.type
        if kind == "pointerdown":
            self.down, self.pen = True, None
            self.sheet.begin(x, y)
        elif self.pen is not None:  # the keyboard has it
            return
        elif kind in ("pointerup", "pointerleave"):
            self.down = False
        elif self.down and event.buttons:
            self.sheet.draw(x, y)
        else:
            return
        self._draw()

    def _key(self, event: Any) -> None:
        key, step = event.args["key"], 8.0
        pen = self.pen or [SIDE / 2, SIDE / 4]
        moves = {
            "ArrowLeft": (-1, 0),
            "ArrowRight": (1, 0),
            "ArrowUp": (0, -1),
            "ArrowDown": (0, 1),
        }
        if key in moves:
            pen = [
                min(max(p + step * m, 0), SIDE - 1) for p, m in zip(pen, moves[key], strict=True)
            ]
            if self.down:
                self.sheet.draw(*pen)
        else:
            self.down = not self.down
            if self.down:
                self.sheet.begin(*pen)
        self.pen = pen
        self._draw()

    def _clear(self) -> None:
        self.sheet.clear()
        self.down = False
        self._draw()

    def _undo(self) -> None:
        self.sheet.undo()
        self.down = False
        self._draw()

    async def _choose_network(self, event: Any) -> None:
        self.name = event.value
        await self._load()

    async def _choose_backend(self, event: Any) -> None:
        self.backend = event.value
        await self._load()

    async def _load(self) -> None:
        chosen = self.name, self.backend
        try:
            network: Any = await run.io_bound(self.networks[self.name], self.backend)
        except (XnetError, ValueError, OSError) as error:  # a file that is gone, say
            ui.notify(str(error), type="negative")
            return
        if chosen == (self.name, self.backend):  # nothing else was chosen meanwhile
            self.network, self.changed = network, True

    def _draw(self) -> None:
        """The strokes, and the pen where the keyboard moves it."""
        self.changed = True
        shown = (
            f'<rect width="{SIDE}" height="{SIDE}" fill="#fff"/>'
            f'<path d="{self.sheet.path}" fill="none" stroke="#000" stroke-width="{2 * PEN}" '
            'stroke-linecap="round" stroke-linejoin="round"/>'
        )
        if self.pen is not None:
            x, y = self.pen
            colour = "#d55e00" if self.down else "#0072b2"
            shown += (
                f'<circle cx="{x}" cy="{y}" r="6" fill="none" stroke="{colour}" stroke-width="3"/>'
            )
        self.view.content = shown

    async def _refresh(self) -> None:
        if not self.changed:
            return
        self.changed = False
        found = await run.io_bound(answer, self.network, self.sheet.copy())
        self._show(found)

    def _show(self, found: Answer | None = None) -> None:
        if self.view.content == "":
            self._draw()
        if found is None:
            self.said.text = "Nothing is drawn."
            for part in (self.shown, self.steps, self.hidden):
                part.content = "<p>Draw something.</p>"
            return
        share = found.probabilities[found.digit]
        self.said.text = f"It is a {found.digit}, by {share:.0%} ({self.network.backend.label})."
        self.shown.content = answers(found)
        self.steps.content = steps(found)
        self.hidden.content = hidden(found)


class TrainPage:
    """Train a small classifier, and watch its boundary move."""

    def __init__(self, backend: str) -> None:
        self.chosen: dict[str, Any] = {"backend": backend}
        self.going, self.seed = False, 0
        pointwise = [name for name, kind in registered().items() if kind.fuses == "pointwise"]
        with ui.element("main"):
            head("/train", "Train a classifier")
            ui.html(
                "<p>The network says of every place in the plane to which class it belongs. Watch "
                "where it changes its mind, while it learns from the points.</p>",
                sanitize=False,
            )
            with ui.element("div").classes("controls"):
                base = Settings()
                for name, label, options in (
                    ("problem", "Points", list(PROBLEMS)),
                    ("activation", "Activation", pointwise),
                    (
                        "optimizer",
                        "Optimizer",
                        {name: kind.__name__ for name, kind in OPTIMIZERS.items()},
                    ),
                    (
                        "gradient",
                        "Gradient",
                        {"backprop": "backpropagation", "numerical": "numerical gradient"},
                    ),
                    ("backend", "Backend", usable(backend)),
                ):
                    value = self.chosen.get(name, getattr(base, name))
                    choice(label, options, value, self._setting(name))
                numbers: list[tuple[str, str, float, int, float, Callable[[Any], Any]]] = [
                    ("learning_rate", "Learning rate", 1e-4, 100, 0.01, float),
                    ("width", "Units in a layer", 1, 64, 1, round),
                    ("hidden_layers", "Hidden layers", 1, 3, 1, round),
                ]
                for name, label, low, high, step, kind in numbers:
                    ui.number(
                        label,
                        value=getattr(base, name),
                        min=low,
                        max=high,
                        step=step,
                        precision=0 if step == 1 else None,
                        on_change=self._setting(name, kind),
                    ).props("dense outlined debounce=600")
                self.speed = ui.number(
                    "Steps at a time", value=5, min=1, max=1000, step=1, precision=0
                ).props("dense outlined")
            with ui.element("div").classes("buttons"):
                self.button = button("Start", self._start_or_stop)
                button("One step", self._one_step)
                button("Begin again", self._begin_again)
            self.said = ui.label().props("role=status aria-live=polite")
            with ui.element("div").classes("panels"):
                self.plane, self.curve = (ui.html("", sanitize=False) for _ in range(2))
        self.classifier = Classifier(Settings(**self.chosen), self.seed)
        ui.timer(0.05, partial(self._advance, 0), once=True)
        ui.timer(0.25, self._go_on)

    def _setting(self, name: str, kind: Callable[[Any], Any] = str) -> Any:
        """What a control does when it is changed: a network of that kind, from the beginning."""

        async def change(event: Any) -> None:
            if event.value is None:
                return
            chosen = self.chosen | {name: kind(event.value)}
            try:
                Settings(**chosen)
            except ValueError as error:
                ui.notify(str(error), type="warning")
                return
            self.chosen = chosen
            await self._restart()

        return change

    async def _begin_again(self) -> None:
        """With other weights and other points."""
        self.seed += 1
        await self._restart()

    async def _restart(self) -> None:
        self.classifier = Classifier(Settings(**self.chosen), self.seed)
        await self._advance(0)

    def _start_or_stop(self) -> None:
        self._let_go(not self.going)

    def _let_go(self, going: bool) -> None:
        """Train from now on, or do not; what changes four times a second is not announced."""
        self.going = going
        self.button.text = "Stop" if going else "Start"
        self.said.props(f"aria-live={'off' if going else 'polite'}")

    async def _one_step(self) -> None:
        self._let_go(False)
        await self._advance(1)

    async def _go_on(self) -> None:
        if self.going:
            await self._advance(int(self.speed.value or 1))

    async def _advance(self, steps: int) -> None:
        """Train so many steps, as far as a fifth of a second goes, and show what came of it."""
        classifier = self.classifier
        shown: Any = await run.io_bound(advanced, classifier, steps)
        if classifier is self.classifier:  # which a change of settings replaces
            self._show(shown)
            if shown.diverged:
                self._let_go(False)

    def _show(self, shown: "Shown") -> None:
        self.said.text = shown.said
        self.plane.content, self.curve.content = shown.plane, shown.curve


class Shown:
    """What a page shows of a classifier; computed where no page waits for it."""

    def __init__(self, classifier: Classifier) -> None:
        self.diverged = classifier.diverged
        if self.diverged:
            self.said = (
                f"After {classifier.steps} steps the loss is no longer a number: "
                "take a smaller learning rate, and begin again."
            )
        else:
            self.said = (
                f"Step {classifier.steps}: loss {classifier.loss:.3g}, "
                f"accuracy {classifier.accuracy:.0%} ({classifier.network.backend.label})."
            )
        names = "blue circles and orange squares"
        shown = f"{classifier.settings.problem}, {names}, and the plane in the colours of the two"
        self.plane = figure(plane(classifier, f"{shown}. {self.said}"), shown)
        losses = classifier.run.history.loss
        self.curve = figure(curve(losses), f"Loss of each of {len(losses)} steps")


def advanced(classifier: Classifier, steps: int) -> Shown:
    """A classifier that has been trained for a moment."""
    if steps:
        classifier.advance(0.2, steps)
    return Shown(classifier)


def free_port(port: int = 0) -> int:
    """That port of this machine, or for 0 one that nobody listens on.

    Raises
    ------
    OSError
        Somebody listens there.
    """
    with socket.socket() as listening:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listening.bind((HOST, port))
        except OSError as error:
            raise OSError(error.errno, f"port {port} of {HOST}: {error.strerror}") from error
        return listening.getsockname()[1]


def serve(
    networks: Mapping[str, Callable[[str], Network]], backend: str, port: int, browser: bool
) -> None:
    """Show the pages until Ctrl-C.

    Parameters
    ----------
    networks
        What gives each network on a backend of a name, by the name that is shown; one at least.
        Each is asked once for each backend, and all pages use what it gave.
    backend
        That it begins with.
    port
        On this machine.
    browser
        Whether to open one.
    """
    kept = {name: cache(load) for name, load in networks.items()}
    next(iter(kept.values()))(backend)
    sockets: Any = core.sio
    sockets.eio.cors_allowed_origins = [f"http://{host}:{port}" for host in (HOST, "localhost")]
    # A page of elsewhere whose name leads here by DNS asks for its own name.
    app.add_middleware(TrustedHostMiddleware, allowed_hosts=[HOST, "localhost"])
    ui.page("/")(lambda: DrawPage(kept, backend) and None)
    ui.page("/train")(lambda: TrainPage(backend) and None)
    ui.run(
        host=HOST,
        port=port,
        title="xnet",
        dark=None,
        show=browser,
        reload=False,
        show_welcome_message=False,
    )
