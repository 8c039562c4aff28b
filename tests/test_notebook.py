"""What notebooks show: short, escaped, and true."""

import re
from html.parser import HTMLParser

import numpy as np
import pytest

import xnet
from xnet import notebook
from xnet.backend import BackendInfo
from xnet.layers import Affine, ReLU
from xnet.operations import Pointwise
from xnet.testing.parity import Verdict, Verdicts
from xnet.training import History


class Reader(HTMLParser):
    """The caption and the cells of a table; every tag that opens must close."""

    def __init__(self, html):
        super().__init__()
        self.caption, self.rows, self.open = "", [], []
        self.feed(html)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open[-1] == "caption":
            self.caption += data
        else:
            self.rows[-1][-1] += data


def shown(thing):
    """The table that a notebook shows of something."""
    table = Reader(thing._repr_html_())
    assert len({len(row) for row in table.rows}) == 1
    return table


def test_network(backend):
    net = xnet.Network([Affine(6, 4), ReLU(), Affine(4, 3)], dtype="float32", backend=backend)
    net.layers[0].trainable = False
    table = shown(net)
    assert table.caption == f"Network: 43 parameters, float32, {backend.label}, fast"
    assert table.rows[0] == ["", "layer", "parameters", "count", "outputs"]
    assert table.rows[1] == ["1", repr(net.layers[0]), "W 6×4, b 4 (frozen)", "28", "4"]
    assert table.rows[2] == ["2", "ReLU()", "", "0", "4"]
    assert table.rows[3][2:] == ["W 4×3, b 3", "15", "3"]
    assert table.rows[4][1] == repr(net.loss_layer)
    with xnet.use_backend("numpy", reproducible=True):
        table = shown(xnet.TwoLayerNet(4, 3, 2))
    assert table.caption == "TwoLayerNet: 23 parameters, float64, numpy, reproducible"


def test_a_network_that_takes_any_number_of_features():
    assert shown(xnet.Network([ReLU()])).rows[1] == ["1", "ReLU()", "", "0", "any"]


def test_texts_are_escaped(registered_alone):
    class Odd(Pointwise):
        name: str = "<script>alert(1)</script>"

        def forward(self, m, x):
            return x

        def backward(self, m, dout, x, y):
            return dout

        def __repr__(self):
            return self.name

    html = xnet.Network([Affine(2, 2), Odd()])._repr_html_()
    assert "<script>" not in html
    html = notebook.table(['<i>"', "b"], [["<b>&", 1]], "<u>")
    assert '<th scope="col">&lt;i&gt;&quot;</th>' in html
    table = Reader(html)
    assert (table.caption, table.rows) == ("<u>", [['<i>"', "b"], ["<b>&", "1"]])


def history(n, **more):
    return History(
        loss=[1 / (k + 1) for k in range(n)],
        epoch_ends=list(range(2, n + 1, 2)),
        train_accuracy=[0.5] * (n // 2),
        **more,
    )


def test_history_is_short():
    """After 10,000 iterations a notebook used to show 241,947 characters."""
    run = history(10_000, test_accuracy=[0.25] * 5_000, seconds=2.0)
    assert repr(run) == (
        "History(10,000 iterations in 2.0 s, loss 1.0000 → 0.0001, train accuracy 0.5000, "
        "test accuracy 0.2500; finished)"
    )
    assert repr(History()) == "History(0 iterations in 0.0 s; finished)"
    html = run._repr_html_()
    assert len(html) < 10_000
    table = Reader(html)
    assert table.caption == repr(run)[len("History(") : -1]
    assert table.rows[0] == ["epoch", "iteration", "mean loss", "train accuracy", "test accuracy"]
    assert table.rows[1] == ["1", "2", "0.7500", "0.5000", "0.2500"]
    assert table.rows[31][0] == "… 4940 more"
    assert table.rows[-1][:2] == ["5000", "10,000"]


def test_history_with_validation():
    """The test data are looked at once, at the end."""
    run = history(6, validation_accuracy=[0.1, 0.3, 0.2], test_accuracy=[0.4], kept_epoch=1)
    rows = shown(run).rows
    assert [row[0] for row in rows] == ["epoch", "1", "2 (kept)", "3"]
    assert [row[-1] for row in rows] == ["test accuracy", "", "", "0.4000"]
    assert [row[-2] for row in rows[1:]] == ["0.1000", "0.3000", "0.2000"]
    assert rows[3][2] == f"{(1 / 5 + 1 / 6) / 2:.4f}"


def test_history_of_a_run(rng):
    x, t = rng.normal(size=(20, 3)), rng.integers(0, 2, 20)
    run = xnet.train(xnet.TwoLayerNet(3, 2, 2), x, t, epochs=2, batch_size=10, progress=False)
    rows = shown(run).rows
    assert [row[1] for row in rows] == ["iteration", "2", "4"]
    assert rows[2][3] == f"{run.train_accuracy[-1]:.4f}"


def test_backends():
    found = xnet.backends()
    assert isinstance(found, list)
    rows = shown(found).rows
    assert rows[0] == ["backend", "usable", "why not"]
    assert [row[0] for row in rows[1:]] == [info.name for info in found]
    odd = notebook.Backends([BackendInfo("<x>", False, "no & none")])
    assert shown(odd).rows[1] == ["<x>", "no", "no & none"]


@pytest.mark.parametrize("factor", [1, 2])
def test_gradient_check(factor, monkeypatch):
    net = xnet.TwoLayerNet(3, 2, 2, "he")
    gradient = net.gradient
    monkeypatch.setattr(net, "gradient", lambda x, t: _times(gradient(x, t), factor))
    check = xnet.gradient_check(net, np.eye(3), [0, 1, 1])
    table = shown(check)
    assert table.caption == f"gradient check: {check.verdict}"
    assert [row[0] for row in table.rows[1:]] == ["W1 3×2", "b1 2", "W2 2×2", "b2 2"]
    assert {row[-1] for row in table.rows[1:]} == {check.verdict}
    assert check.passed == (factor == 1)


def _times(gradients, factor):
    return {name: factor * g for name, g in gradients.items()}


def test_parity_verdicts():
    kept = Verdict("exp", "float64", "numba", True, equal=True)
    apart = Verdict("log", "float32", "numba", False, ulps=1234.0, share=3.0)
    failed = Verdict("log", "float32", "<numba>", False, error="a < b")
    table = shown(Verdicts([kept, apart, failed]))
    assert table.caption == "2 of 3 promises broken"
    facts = ["exp", "numba", "float64", "reproducible", "normal", "equal", "yes"]
    assert table.rows[1] == facts
    assert table.rows[2][-2:] == ["1.23e+03 ulp", "NO"]
    assert table.rows[3][-2:] == ["a < b", "NO"]
    assert shown(kept).rows[1] == facts


def test_nothing_is_imported_for_it():
    """`import xnet` and a network do not load what writes HTML."""
    import subprocess
    import sys

    code = "import sys, xnet; xnet.TwoLayerNet(2, 2, 2); assert 'html.entities' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert re.match(r"<table>", xnet.backends()._repr_html_())
