import subprocess
import sys

import pytest

from xnet.tools import figures
from xnet.training import History

pytest.importorskip("matplotlib")


def history(n, test=True):
    loss = [1 / (k + 1) for k in range(n)]
    ends = list(range(2, n + 1, 2))
    accuracy = [1 - 1 / end for end in ends]
    return History(
        loss=loss,
        train_accuracy=accuracy,
        test_accuracy=accuracy if test else [],
        epoch_ends=ends,
    )


def png(figure, path):
    figure.savefig(path)
    assert path.read_bytes().startswith(b"\x89PNG")


def test_training_curves(tmp_path):
    figure = figures.training_curves({"one": history(10), "two": history(6)}, smooth=4)
    loss, accuracy = figure.axes
    first, second = loss.get_lines()
    assert first.get_xdata().tolist() == [4, 8, 10]
    expected = [sum(1 / k for k in part) / len(part) for part in ((1, 2, 3, 4), (5, 6, 7, 8))]
    assert first.get_ydata()[:2].tolist() == pytest.approx(expected)
    assert first.get_ydata()[2] == pytest.approx((1 / 9 + 1 / 10) / 2)
    assert second.get_xdata().tolist() == [4, 6]
    assert accuracy.get_lines()[0].get_xdata().tolist() == [2, 4, 6, 8, 10]
    assert accuracy.get_ylabel() == "test accuracy"
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["one", "two"]
    png(figure, tmp_path / "curves.png")


def test_training_curves_without_test_data():
    figure = figures.training_curves({"run": history(4, test=False)})
    assert figure.axes[1].get_ylabel() == "accuracy"
    assert figure.axes[1].get_lines()[0].get_ydata().tolist() == [0.5, 0.75]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "expected at least one"),
        (({"run": History()},), "each with at least one loss"),
        (({"run": history(3)}, 0), "smooth is 0, expected at least 1"),
    ],
)
def test_training_curves_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        figures.training_curves(*arguments)


def test_growth(tmp_path):
    points = [(1, 1e-3, 2e-3), (10, 1e-2, 2e-2)]
    figure = figures.growth({"samples": {"numpy": points}, "units": {"numpy": points[:1]}})
    first, second = figure.axes
    line, markers = first.get_lines()
    assert (line.get_ydata().tolist(), markers.get_ydata().tolist()) == ([2, 20], [1, 10])
    assert (first.get_xlabel(), second.get_xlabel()) == ("samples", "units")
    assert first.get_xscale() == first.get_yscale() == "log"
    png(figure, tmp_path / "growth.png")
    with pytest.raises(ValueError, match="panels is empty"):
        figures.growth({})


def test_slices(tmp_path):
    figure = figures.slices([1.0, 0.0, -(2.0**-10), 2.0**-40], 784)
    (axis,) = figure.axes
    bars = [(bar.get_y() + 0.35, bar.get_x(), bar.get_width()) for bar in axis.patches]
    cut = [(0, 0, 21), (0, 21, 3), (2, 10, 11), (2, 21, 13), (3, 40, 2), (3, 42, 22)]
    assert [tuple(map(round, bar)) for bar in bars] == cut
    png(figure, tmp_path / "slices.png")
    (axis,) = figures.slices([2.0**-40, 1.0], 784).axes  # the small one first, and shown whole
    assert axis.get_xlim()[1] >= max(bar.get_x() + bar.get_width() for bar in axis.patches)
    with pytest.raises(ValueError, match="a number other than 0"):
        figures.slices([0.0], 784)


def test_without_matplotlib(monkeypatch):
    monkeypatch.setattr(figures, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match=r'pip install "xnet-nn\[plot\]"'):
        figures.training_curves({"run": history(3)})


def test_matplotlib_is_imported_when_called_only():
    code = "import sys, xnet.tools.figures; assert 'matplotlib' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
