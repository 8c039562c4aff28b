"""What notebooks show of xnet's objects: tables in HTML, every text in them escaped.

A notebook calls `_repr_html_` of what a cell ends with; a class has it by naming one of these
functions. They ask the object alone: this is the ground floor, and imports nothing of xnet.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any, TypeVar

T = TypeVar("T")

ROWS = 60
"""Of a table, at most; of more the first and the last are shown."""


def table(headers: Sequence[str], rows: Iterable[Sequence[Any]], caption: str = "") -> str:
    """A table of plain texts in HTML.

    Parameters
    ----------
    headers
        Of the columns.
    rows
        Cells; numbers and texts alike are written as text, and escaped.
    caption
        Above it.
    """
    from html import escape

    def cells(texts: Iterable[Any], tag: str, more: str = "") -> str:
        return "".join(f"<{tag}{more}>{escape(str(text))}</{tag}>" for text in texts)

    lines = list(rows)
    if len(lines) > ROWS:
        half = ROWS // 2
        left_out = [f"… {len(lines) - 2 * half} more", *[""] * (len(headers) - 1)]
        lines = [*lines[:half], left_out, *lines[-half:]]
    body = "".join(f"<tr>{cells(row, 'td')}</tr>" for row in lines)
    head = cells(headers, "th", ' scope="col"')
    above = f"<caption>{escape(caption)}</caption>" if caption else ""
    return f"<table>{above}<thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _sizes(shape: Iterable[Any]) -> str:
    return "×".join(map(str, shape))


def network(net: Any) -> str:
    """Of a network: its layers with their shapes, how many parameters, and where it computes."""
    rows: list[tuple[Any, ...]] = []
    features, total = net.inputs, 0
    for k, layer in enumerate(net.layers, 1):
        features = layer.gives(features)
        arrays = {name: tuple(W.shape) for name, W in layer.params.items()}
        count = sum(map(math.prod, arrays.values()))
        total += count
        shapes = ", ".join(f"{name} {_sizes(shape)}" for name, shape in arrays.items())
        held = "" if layer.trainable else " (frozen)"
        gives = "any" if features is None else features
        rows.append((k, repr(layer), f"{shapes}{held}", f"{count:,}", gives))
    rows.append(("", repr(net.loss_layer), "", "", ""))
    mode = "reproducible" if net.backend.reproducible else "fast"
    facts = f"{total:,} parameters, {net.dtype}, {net.backend.label}, {mode}"
    headers = ("", "layer", "parameters", "count", "outputs")
    return table(headers, rows, f"{type(net).__name__}: {facts}")


def history(run: Any) -> str:
    """Of a training history: an epoch a row, with the mean loss of each."""
    parts = [part for part in ("train", "validation", "test") if run.taken(part)]
    rows: list[list[Any]] = []
    starts = [0, *run.epoch_ends]
    for k, (start, end) in enumerate(zip(starts, run.epoch_ends, strict=False)):
        mean = sum(run.loss[start:end]) / max(1, end - start)
        kept = " (kept)" if k == run.kept_epoch else ""
        taken = [run.taken(part) for part in parts]
        # With validation data the test data are looked at once, at the end.
        last = k == len(run.epoch_ends) - 1
        values = [v[k] if len(v) == len(run.epoch_ends) else v[-1] if last else "" for v in taken]
        shown = [f"{v:.4f}" if v != "" else "" for v in values]
        rows.append([f"{k + 1}{kept}", f"{end:,}", f"{mean:.4f}", *shown])
    headers = ["epoch", "iteration", "mean loss", *(f"{part} {run.metric}" for part in parts)]
    return table(headers, rows, summary(run))


def summary(run: Any) -> str:
    """A training history in one line."""
    facts = [f"{run.iterations:,} iterations in {run.seconds:.1f} s"]
    if run.loss:
        facts.append(f"loss {run.loss[0]:.4f} → {run.loss[-1]:.4f}")
    facts += [
        f"{part} {run.metric} {values[-1]:.4f}"
        for part in ("train", "validation", "test")
        if (values := run.taken(part))
    ]
    return f"{', '.join(facts)}; {run.stopped}"


def check(found: Any) -> str:
    """Of a gradient check: a parameter a row, with its verdict."""
    rows = [
        (
            f"{c.name} {_sizes(c.shape)}",
            f"{c.mean_difference:.1e}",
            f"{c.absolute_error:.1e}",
            f"{c.name}[{', '.join(map(str, c.worst))}]",
            f"{c.backprop:.6e}",
            f"{c.numerical:.6e}",
            f"{c.tolerance:.1e}",
            c.verdict,
        )
        for c in found.parameters.values()
    ]
    headers = ("parameter", "mean diff", "max diff", "worst element", "backprop", "numerical")
    left_out = f", {len(found.left_out)} sample(s) left out at a kink" if found.left_out else ""
    caption = f"gradient check: {found.verdict}{left_out}"
    return table((*headers, "allowed", "verdict"), rows, caption)


def verdict(one: Any) -> str:
    """Of one parity verdict."""
    return verdicts([one])


def verdicts(found: Any) -> str:
    """Of parity verdicts: one a row."""
    rows = [
        (
            v.operation,
            v.backend,
            v.dtype,
            "reproducible" if v.reproducible else "fast",
            v.numbers,
            v.error or ("equal" if v.equal else f"{v.ulps:,.3g} ulp"),
            "yes" if v.kept else "NO",
        )
        for v in found
    ]
    broken = sum(not v.kept for v in found)
    headers = ("operation", "backend", "dtype", "mode", "numbers", "difference", "kept")
    return table(headers, rows, f"{broken} of {len(rows)} promises broken" if broken else "")


class Backends(list[T]):
    """What `xnet.backends` returns: a list that shows itself as a table."""

    def _repr_html_(self) -> str:
        found: list[Any] = list(self)
        rows = [(v.name, "yes" if v.usable else "no", v.reason or "") for v in found]
        return table(("backend", "usable", "why not"), rows)
