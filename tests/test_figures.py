import dataclasses

import pytest

from xnet import plotting
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
    figure = plotting.training_curves({"one": history(10), "two": history(6)}, smooth=4)
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


def test_equal_training_curves_both_show(tmp_path):
    figure = plotting.training_curves({str(k): history(4) for k in range(8)})
    png(figure, tmp_path / "curves.png")
    for axis in figure.axes:
        lines = axis.get_lines()
        assert [line.get_linestyle() for line in lines] == ["-"] + ["--"] * 7
        assert len({(line.get_color(), str(line._dash_pattern)) for line in lines}) == 8
        assert all(gap > 0 for line in lines[1:] for gap in line._dash_pattern[1])
        widths = [line.get_linewidth() for line in lines]
        assert widths[:5] == sorted(set(widths), reverse=True)  # what is below shows beside
        assert (max(widths), min(widths)) == (3, 1)
        assert [text.get_text() for text in axis.get_legend().get_texts()] == [*"01234567"]


def test_axes_of_training_curves_say_what_they_show():
    run = history(4)
    for smooth, label in {1: "loss", 2: "loss, mean of 2"}.items():
        loss, accuracy = plotting.training_curves({"run": run}, smooth).axes
        assert (loss.get_xlabel(), loss.get_ylabel()) == ("iteration", label)
        assert (accuracy.get_xlabel(), accuracy.get_ylabel()) == ("iteration", "test accuracy")
        assert loss.get_ylim()[0] == 0
    loss, _ = plotting.training_curves({"run": run}).axes
    assert loss.get_lines()[0].get_ydata().tolist() == run.loss
    validated = dataclasses.replace(run, validation_accuracy=[0.1, 0.2])
    _, accuracy = plotting.training_curves({"run": run, "validated": validated}).axes
    assert accuracy.get_ylabel() == "accuracy"  # one shows the test's, one the validation's
    assert accuracy.get_lines()[1].get_ydata().tolist() == [0.1, 0.2]
    _, accuracy = plotting.training_curves({"before the first epoch's end": history(1)}).axes
    assert accuracy.get_lines()[0].get_ydata().tolist() == []


def test_training_curves_without_test_data():
    figure = plotting.training_curves({"run": history(4, test=False)})
    assert figure.axes[1].get_ylabel() == "accuracy"
    assert figure.axes[1].get_lines()[0].get_ydata().tolist() == [0.5, 0.75]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (({},), "expected at least one"),
        (({"run": History()},), "each with at least one loss"),
        (({"run": history(3), "other": History()},), "each with at least one loss"),
        (({"run": history(3)}, 0), "smooth is 0, expected at least 1"),
    ],
)
def test_training_curves_refuse(arguments, message):
    with pytest.raises(ValueError, match=message):
        plotting.training_curves(*arguments)


def test_growth(tmp_path):
    points = [(1, 1e-3, 2e-3), (10, 1e-2, 2e-2)]
    figure = plotting.growth({"samples": {"numpy": points}, "units": {"numpy": points[:1]}})
    first, second = figure.axes
    line, markers = first.get_lines()
    assert (line.get_ydata().tolist(), markers.get_ydata().tolist()) == ([2, 20], [1, 10])
    assert (first.get_xlabel(), second.get_xlabel()) == ("samples", "units")
    assert first.get_xscale() == first.get_yscale() == "log"
    png(figure, tmp_path / "growth.png")
    with pytest.raises(ValueError, match="measured is empty"):
        plotting.growth({})


def test_axes_of_growth_say_what_they_show():
    points = [(n, n * 1e-3, n * 1e-3) for n in (1, 3, 10)]
    figure = plotting.growth({"samples": {"numpy": points}, "units": {"numba": points}}, "a step")
    first, second = figure.axes
    assert (first.get_ylabel(), second.get_ylabel()) == ("a step, ms", "")
    assert [text.get_text() for text in second.get_legend().get_texts()] == ["numba"]
    assert [text.get_text() for text in first.get_xticklabels()] == ["1", "3", "10"]
    assert first.get_xticks().tolist() == [1, 3, 10]
    assert first.get_xticks(minor=True).tolist() == []
    for count, shown in {8: 8, 9: 5, 40: 8}.items():  # what is labelled: more would run together
        many = [(n, 1.0, 1.0) for n in range(1, count + 1)]
        (axis,) = plotting.growth({"samples": {"numpy": many}}).axes
        assert len(axis.get_xticks()) == shown


def test_slices_are_told_apart():
    numbers = [1.0, 0.0, -(2.0**-10), 2.0**-40]
    (axis,) = plotting.slices(numbers, 784).axes
    cut_off = [bar.get_x() >= 42 for bar in axis.patches]
    colours = {(bar.get_facecolor(), bar.get_x() // 21) for bar in axis.patches if bar.get_x() < 42}
    assert len({colour for colour, _ in colours}) == len(colours) == 2
    assert len({bar.get_facecolor() for bar in axis.patches}) == 3
    assert sum(cut_off) == 1
    assert [line.get_xdata()[0] for line in axis.get_lines()] == [0, 21, 42]
    names = [f"{number:+.1e}".replace("-", "−") for number in numbers]
    assert [text.get_text() for text in axis.get_yticklabels()] == names
    assert axis.get_yticks().tolist() == [0, 1, 2, 3]
    texts = {text.get_text(): text.get_position() for text in axis.texts}
    above = texts["cut off"][1]
    assert texts["slice 1:\n21 bits"] == (10.5, above)
    assert texts["slice 2:\n21 bits"] == (31.5, above)
    assert texts["cut off"][0] > 42
    assert len(texts) == 3
    bottom, top = axis.get_ylim()
    assert top < above < -0.35  # above the bars, the first number on top
    assert bottom > 3.35
    assert all(0 < bar.get_height() < 1 for bar in axis.patches)  # beside its neighbours
    assert axis.get_xlim()[0] == 0
    assert axis.get_xlabel() == "bits below the largest number of the row"
    (axis,) = plotting.slices([1.0], 784).axes  # no bar is long: what is cut off has its place
    assert axis.get_xlim()[1] > 45


@pytest.mark.parametrize("name", ["a.png", "a.PDF", "b.c/a.svg"])
def test_formats_that_matplotlib_writes(name):
    plotting.check_format(name)


@pytest.mark.parametrize(("name", "suffix"), [("a.docx", ".docx"), ("a", ""), ("png", "")])
def test_other_formats_are_refused(name, suffix):
    with pytest.raises(ValueError, match=rf"{name} ends in '{suffix}', expected one of .*\.png, "):
        plotting.check_format(name)


def test_throughput():
    names = [str(k) for k in range(8)]
    found = {n: {name: {"median": 1e-3 * int(n)} for name in names} for n in ("1", "10")}
    (axis,) = plotting.throughput(found).axes
    lines = axis.get_lines()
    assert len({(v.get_color(), v.get_linestyle(), v.get_marker()) for v in lines}) == len(names)
    assert [line.get_xdata().tolist() for line in lines] == [[1, 10]] * 8
    assert [line.get_ydata().tolist() for line in lines] == [[1000, 1000]] * 8
    assert (axis.get_xscale(), axis.get_yscale()) == ("log", "log")
    assert (axis.get_xlabel(), axis.get_ylabel()) == ("batch size", "images a second")
    assert [text.get_text() for text in axis.get_legend().get_texts()] == names
    floor = plotting.throughput(found, 1e-4).axes[0].get_lines()[-1]
    assert floor.get_ydata() == pytest.approx([1e4, 1e4])
    with pytest.raises(ValueError, match="found is empty"):
        plotting.throughput({})


def test_slices(tmp_path):
    figure = plotting.slices([1.0, 0.0, -(2.0**-10), 2.0**-40], 784)
    (axis,) = figure.axes
    bars = [(bar.get_y() + 0.35, bar.get_x(), bar.get_width()) for bar in axis.patches]
    cut = [(0, 0, 21), (0, 21, 3), (2, 10, 11), (2, 21, 13), (3, 40, 2), (3, 42, 22)]
    assert [tuple(map(round, bar)) for bar in bars] == cut
    png(figure, tmp_path / "slices.png")
    (axis,) = plotting.slices([2.0**-40, 1.0], 784).axes  # the small one first, and shown whole
    assert axis.get_xlim()[1] >= max(bar.get_x() + bar.get_width() for bar in axis.patches)
    with pytest.raises(ValueError, match="a number other than 0"):
        plotting.slices([0.0], 784)
