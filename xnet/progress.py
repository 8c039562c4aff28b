"""How far a training run is: a bar on a terminal or in a notebook, a line now and then in a log."""

import sys
import time
from importlib import import_module
from typing import Any, Protocol, cast

__all__ = ["Progress", "ProgressBar", "ProgressLines"]

BAR_SECONDS = 0.1
"""Between two drawings of a bar: drawing must not slow the training."""

FIRST_LINE, LONGEST_WAIT = 10.0, 600.0
"""Seconds after which a log gets its first line, and between two at most: each time it is as long
again as the run has taken. So a short run leaves none, and a long one a few."""


class History(Protocol):
    """What a run has recorded: `xnet.training.History`."""

    loss: list[float]
    epoch_ends: list[int]

    @property
    def iterations(self) -> int:
        """How many mini-batches were trained on."""
        ...

    @property
    def metric(self) -> str:
        """What was taken: "R²", or "accuracy"."""
        ...

    def taken(self, part: str) -> list[float]:
        """What was taken on a part of the data."""
        ...


class Progress(Protocol):
    """What `train` tells of its progress.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> class Spoken:
    ...     def start(self, total):
    ...         print("to be done:", total)
    ...     def advance(self, history):
    ...         print("done:", history.iterations)
    ...     def stop(self):
    ...         print("the end")
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> x, t = np.eye(2), np.array([0, 1])
    >>> _ = xnet.train(net, x, t, iterations=2, batch_size=1, progress=Spoken())
    to be done: 2
    done: 1
    done: 2
    the end
    """

    def start(self, total: int) -> None:
        """The run goes on until `total` iterations are done, those of earlier calls included."""
        ...

    def advance(self, history: Any) -> None:
        """One more iteration is done: an `xnet.History`."""
        ...

    def stop(self) -> None:
        """The run has ended."""
        ...


def quality(history: History) -> str:
    """The last accuracies or R², as far as each epoch has one: ``train 0.9812 test 0.9639``."""
    shown = ["R²"] if history.metric == "R²" else []
    for part, word in {"train": "train", "validation": "valid", "test": "test"}.items():
        if (values := history.taken(part)) and len(values) == len(history.epoch_ends):
            shown.append(f"{word} {values[-1]:.4f}")
    return " ".join(shown)


class Watched:
    """What every way to show progress has in common: it does so now and then, and at the end."""

    def __init__(self) -> None:
        self.total = 0
        self._began, self._next, self._before = 0.0, 0.0, -1
        self._history: History | None = None

    def start(self, total: int) -> None:
        """The run begins."""
        self.total, self._began = total, time.perf_counter()
        self._next = self._began + self.wait(0.0)
        self._before, self._history = -1, None
        self.begin()

    def advance(self, history: History) -> None:
        """One more iteration is done; shown if it is time."""
        if self._before < 0:
            self._before = history.iterations - 1  # by earlier calls
        self._history = history
        now = time.perf_counter()
        if now >= self._next:
            self._next = now + self.wait(now - self._began)
            self.show(history)

    def stop(self) -> None:
        """The run has ended."""
        self.end(self._history)

    def speed(self, history: History) -> float:
        """Iterations a second."""
        seconds = time.perf_counter() - self._began
        return (history.iterations - self._before) / seconds if seconds else 0.0

    def line(self, history: History) -> str:
        """All that is known, in one line."""
        facts = [f"{history.iterations:,}/{self.total:,}", f"loss {history.loss[-1]:.4f}"]
        speed = self.speed(history)
        facts += [quality(history), f"{speed:,.0f}/s" if speed >= 10 else f"{speed:.2g}/s"]
        if speed and history.iterations < self.total:
            left = round((self.total - history.iterations) / speed)
            facts.append(f"{left // 3600}:{left // 60 % 60:02}:{left % 60:02} left")
        return "  ".join(fact for fact in facts if fact)

    # -- what each does in its own way

    def wait(self, seconds: float) -> float:
        """For how long to show nothing, so many seconds after the beginning."""
        return BAR_SECONDS if seconds else 0.0

    def begin(self) -> None:
        """Show that the run begins."""

    def show(self, history: History) -> None:
        """Show how far it is."""

    def end(self, history: History | None) -> None:
        """Show how it ended; without a history it did before the first iteration."""
        if history is not None:
            self.show(history)


class ProgressBar(Watched):
    """A line on stderr, a terminal, with loss, accuracy, speed and time left.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> bar = xnet.progress.ProgressBar()
    >>> x, t = np.eye(2), np.array([0, 1])
    >>> history = xnet.train(net, x, t, iterations=2, batch_size=2, progress=bar)
    >>> bar.total, history.iterations
    (2, 2)
    """

    def __init__(self) -> None:
        super().__init__()
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Rich

        self._bar = Rich(
            BarColumn(bar_width=8),  # all of it fits into 80 columns
            MofNCompleteColumn(),
            TextColumn("{task.fields[loss]}"),
            TextColumn("{task.fields[accuracy]}"),
            TextColumn("{task.fields[speed]:,.0f}/s"),
            TimeRemainingColumn(),
            console=Console(stderr=True),
        )

    def begin(self) -> None:
        """Show the bar."""
        self._task = self._bar.add_task("", total=self.total, loss="", accuracy="", speed=0.0)
        self._bar.start()

    def show(self, history: History) -> None:
        """Redraw."""
        self._bar.update(
            self._task,
            completed=history.iterations,
            loss=f"loss {history.loss[-1]:.4f}",
            accuracy=quality(history),
            speed=self.speed(history),
        )

    def end(self, history: History | None) -> None:
        """Draw the last state and leave it on the screen."""
        super().end(history)
        self._bar.stop()


class ProgressLines(Watched):
    """Lines on stderr, which is a file or a pipe: none of a short run, few of a long one.

    Examples
    --------
    >>> import numpy as np
    >>> import xnet
    >>> net = xnet.TwoLayerNet(2, 3, 2, seed=0)
    >>> lines = xnet.progress.ProgressLines()
    >>> history = xnet.train(net, np.eye(2), np.array([0, 1]), iterations=2, progress=lines)
    >>> [lines.wait(seconds) for seconds in (0, 60, 3600)]
    [10.0, 60, 600.0]
    """

    _written = False

    def wait(self, seconds: float) -> float:
        """As long again as the run has taken."""
        return min(max(FIRST_LINE, seconds), LONGEST_WAIT)

    def show(self, history: History) -> None:
        """Write a line."""
        self._written = True
        print(self.line(history), file=sys.stderr, flush=True)

    def end(self, history: History | None) -> None:
        """Write the last one, if there was one before."""
        if self._written:
            super().end(history)
        self._written = False


class NotebookBar(Watched):
    """A bar in a notebook, below the cell that trains."""

    def begin(self) -> None:
        """Show the bar."""
        show = cast(Any, import_module("IPython.display")).display
        self._handle: Any = show(_Bar(0, self.total, ""), display_id=True)

    def wait(self, seconds: float) -> float:
        """Longer than on a terminal: each drawing is a message to the browser."""
        return 0.5

    def show(self, history: History) -> None:
        """Redraw."""
        self._handle.update(_Bar(history.iterations, self.total, self.line(history)))


class _Bar:
    """One state of a notebook's bar."""

    def __init__(self, done: int, total: int, line: str) -> None:
        self._done, self._total, self._line = done, total, line

    def _repr_html_(self) -> str:
        from html import escape

        bar = (
            f'<progress value="{self._done}" max="{self._total}" aria-label="training"></progress>'
        )
        return f"{bar} <span>{escape(self._line)}</span>"

    def __repr__(self) -> str:
        return self._line or f"0/{self._total:,}"


def in_notebook() -> bool:
    """Whether a notebook's kernel runs this process."""
    shell: Any = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return hasattr(shell, "kernel")


class Silent(Watched):
    """Shows nothing."""

    def wait(self, seconds: float) -> float:
        """For ever."""
        return float("inf")

    def end(self, history: History | None) -> None:
        """Nothing."""


def suitable() -> Progress:
    """What suits where stderr goes."""
    if in_notebook():
        return NotebookBar()
    if sys.stderr is None:  # pyright: ignore  (as under pythonw)
        return Silent()
    return ProgressBar() if sys.stderr.isatty() else ProgressLines()
