"""What shows how far a run is, where stderr is no terminal; bars on one are in test_training."""

import itertools
import sys
from types import ModuleType, SimpleNamespace

import pytest

import xnet
from xnet import progress
from xnet.training import History


@pytest.fixture
def clock(monkeypatch):
    """Time as the test says it: ``clock.now``, in seconds."""
    made = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(progress.time, "perf_counter", lambda: made.now)
    return made


def run(shown, clock, iterations, seconds, total=None):
    """A run of so many iterations that take so many seconds each."""
    history = History()
    shown.start(total or iterations)
    for k in range(iterations):
        clock.now += seconds
        history.loss.append(1 / (k + 1))
        if k % 10 == 9:
            history.epoch_ends.append(k + 1)
            history.train_accuracy.append(0.5)
        shown.advance(history)
    shown.stop()
    return history


def test_a_short_run_leaves_no_line(clock, capsys):
    run(progress.ProgressLines(), clock, 99, 0.1)
    assert capsys.readouterr() == ("", "")


def test_a_long_run_leaves_a_line_now_and_then(clock, capsys):
    run(progress.ProgressLines(), clock, 1000, 1.0)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert [line.split("/")[0] for line in lines] == [
        "10",
        "20",
        "40",
        "80",
        "160",
        "320",
        "640",
        "1,000",
    ]
    assert lines[1] == "20/1,000  loss 0.0500  train 0.5000  1/s  0:16:20 left"
    assert lines[-1] == "1,000/1,000  loss 0.0010  train 0.5000  1/s"


def test_a_very_long_run_leaves_one_every_ten_minutes(clock, capsys):
    run(progress.ProgressLines(), clock, 240, 60.0)
    done = [int(line.split("/")[0]) for line in capsys.readouterr().err.splitlines()]
    assert {b - a for a, b in itertools.pairwise(done[4:-1])} == {10}


def test_a_run_that_goes_on_counts_its_own_speed(clock, capsys):
    shown, history = progress.ProgressLines(), History(loss=[1.0] * 500)
    shown.start(520)
    for _ in range(20):
        clock.now += 1
        history.loss.append(1.0)
        shown.advance(history)
    shown.stop()
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "510/520  loss 1.0000  1/s  0:00:10 left"


def test_training_writes_lines_where_stderr_is_a_file(monkeypatch, capsys, rng):
    monkeypatch.setattr(progress, "FIRST_LINE", 0.0)
    x, t = rng.normal(size=(20, 3)), rng.integers(0, 2, 20)
    xnet.train(xnet.TwoLayerNet(3, 2, 2), x, t, epochs=2, batch_size=10)
    assert capsys.readouterr().err.splitlines()[-1].startswith("4/4  loss ")
    xnet.train(xnet.TwoLayerNet(3, 2, 2), x, t, epochs=2, batch_size=10, progress=False)
    assert capsys.readouterr().err == ""


@pytest.fixture
def kernel(monkeypatch):
    """A stand-in for IPython in a notebook's kernel; what it was told to show."""
    told = []

    class Handle:
        def update(self, thing):
            told.append(thing)

    def display(thing, display_id):
        assert display_id is True
        told.append(thing)
        return Handle()

    package, shown = ModuleType("IPython"), ModuleType("IPython.display")
    package.get_ipython = lambda: SimpleNamespace(kernel=object())
    shown.display = display
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", shown)
    return told


def test_a_notebook_shows_a_bar(kernel, clock, capsys):
    shown = progress.suitable()
    run(shown, clock, 20, 0.1)
    assert 4 <= len(kernel) <= 6  # twice a second, and the beginning and the end
    first, last = kernel[0], kernel[-1]
    assert repr(first) == "0/20"
    assert first._repr_html_().startswith('<progress value="0" max="20" aria-label="training">')
    assert repr(last) == "20/20  loss 0.0500  train 0.5000  10/s"
    assert last._repr_html_().endswith(f"<span>{last!r}</span>")
    assert capsys.readouterr() == ("", "")


def test_training_in_a_notebook(kernel, rng):
    x, t = rng.normal(size=(20, 3)), rng.integers(0, 2, 20)
    xnet.train(xnet.TwoLayerNet(3, 2, 2), x, t, epochs=2, batch_size=10)
    assert repr(kernel[-1]).startswith("4/4  loss ")


def test_ipython_on_a_terminal_is_no_notebook(kernel, monkeypatch):
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: SimpleNamespace())
    assert isinstance(progress.suitable(), progress.ProgressLines)
    monkeypatch.setattr(sys.modules["IPython"], "get_ipython", lambda: None)
    assert isinstance(progress.suitable(), progress.ProgressLines)


def test_without_stderr_nothing_is_shown(monkeypatch, clock):
    monkeypatch.setattr(sys, "stderr", None)  # as under pythonw
    shown = progress.suitable()
    run(shown, clock, 100, 10.0)
    assert isinstance(shown, progress.Silent)
