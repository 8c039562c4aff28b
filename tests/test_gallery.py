"""The gallery: each figure has a script, and every script makes its figure.

The scripts run one after the other in one process, as they do where the site is built, in a folder
of its own, on the numpy backend, with warnings as errors.
"""

import contextlib
import io
import json
import os
import runpy
import subprocess
import sys
import traceback
from pathlib import Path

import pytest

from xnet import plotting

pytest.importorskip("matplotlib", reason="figures need matplotlib")

GALLERY = Path(__file__).parent.parent / "docs" / "gallery"
SCRIPTS = {
    path.stem.removeprefix("plot_").replace("_", "-"): path for path in GALLERY.rglob("plot_*.py")
}
PLOTS = plotting.plots()


def fault(name, path):
    """What is wrong with a script for the figure of this name; "" if nothing is."""
    from matplotlib.animation import Animation

    out, before = io.StringIO(), set(os.listdir())
    try:
        with contextlib.redirect_stdout(out):
            made = runpy.run_path(str(path), run_name="__main__")
    except BaseException:
        return traceback.format_exc()
    drawn, last = made.get("figure", made.get("animation")), path.read_text().split()[-1]
    if PLOTS[name].animated:
        right = isinstance(drawn, Animation) and last == "animation"
    else:
        right = getattr(drawn, "about", None) == PLOTS[name].about and last == "figure"
    if not right:
        return f"ends in {last}, which is {drawn}, expected {PLOTS[name]}"
    if not out.getvalue().strip():
        return "nothing is printed"
    if left := set(os.listdir()) - before:
        return f"leaves {left} behind"
    return "imports pyplot" if "matplotlib.pyplot" in sys.modules else ""


def test_every_figure_has_its_script_and_no_other_is_there():
    assert SCRIPTS.keys() == PLOTS.keys()


@pytest.mark.slow
def test_every_script_draws_its_figure(tmp_path):
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XNET_")}
    command = [sys.executable, "-W", "error", __file__, json.dumps(SCRIPTS, default=str)]
    settings = {"cwd": tmp_path, "env": kept | {"XNET_BACKEND": "numpy"}}
    done = subprocess.run(command, **settings, capture_output=True, text=True, check=False)
    assert not done.stderr  # what is raised where nobody catches it, as by a finalizer
    found = json.loads(done.stdout)
    assert found.keys() == SCRIPTS.keys()
    assert not {name: said for name, said in found.items() if said}


def test_every_script_is_headed_and_names_its_section():
    for name, path in SCRIPTS.items():
        text, section = path.read_text(), PLOTS[name].section
        start, heading, line, blank, *_ = text.split("\n")
        assert (start, line, blank) == ('"""', "=" * len(heading), ""), name
        of_the_notes = section[0].isdigit()
        assert path.parent.name == ("notes" if of_the_notes else "job"), name
        about = text.split('"""')[1]
        assert not of_the_notes or f"§{section.partition('-')[0]}" in about, name


def test_every_folder_is_headed():
    for folder in {GALLERY, *(path.parent for path in SCRIPTS.values())}:
        heading, line, *_ = (folder / "GALLERY_HEADER.rst").read_text().splitlines()
        assert len(heading) == len(line)


@pytest.mark.parametrize(
    ("script", "said"),
    {
        "print(1)\n1 / 0": "ZeroDivisionError",
        "import warnings\nwarnings.warn('old')": "UserWarning: old",
        "print(1)\nfigure = xnet.plotting.sigmoid()\nfigure": "expected Plot(name='relu'",
        "print(1)\nfigure = xnet.plotting.relu()": "ends in xnet.plotting.relu()",
        "figure = xnet.plotting.relu()\nfigure": "nothing is printed",
        "print(1)\nopen('left', 'w').close()\nfigure = xnet.plotting.relu()\nfigure": "leaves",
        "print(1)\nimport matplotlib.pyplot\nfigure = xnet.plotting.relu()\nfigure": "pyplot",
        "print(1)\nfigure = xnet.plotting.relu()\nfigure": "",
    }.items(),
)
def test_a_wrong_script_is_found(script, said, tmp_path, monkeypatch):
    """What the tests above rest on."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)  # so that it is as before then
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot")
    path = tmp_path / "plot_relu.py"
    path.write_text(f"import xnet\n{script}\n")
    found = fault("relu", path)
    assert said in found
    assert bool(said) == bool(found)


if __name__ == "__main__":
    named = json.loads(sys.argv[1])
    print(json.dumps({name: fault(name, Path(path)) for name, path in named.items()}))
