"""The site: sphinx-build -W docs site.

What it shows is computed while it is built: every figure that a page names is drawn by
`xnet.plotting`, every script of docs/gallery is run, the reference is read from the docstrings of
what the package says is public, and that of the command from the command.
"""

import importlib
import pkgutil
import re
import shutil
import subprocess
import sys
import zlib
from pathlib import Path
from types import ModuleType
from typing import Any

from docutils import nodes
from docutils.utils.math import latex2mathml
from matplotlib.animation import Animation
from matplotlib.figure import Figure
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.transforms import SphinxTransform
from sphinx.writers.html5 import HTML5Translator
from sphinx_gallery.scrapers import figure_rst
from sphinx_gallery.sorting import ExplicitOrder

import xnet
from xnet import plotting
from xnet.plotting.material import Material

HERE = Path(__file__).parent
FIGURES = HERE / "_figures"
"""Drawn for the pages that show them: light and, by another name, dark."""

project = "xnet"
author = copyright = "The xnet developers"
version = release = xnet.__version__

extensions = [
    "myst_parser",
    "numpydoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["gallery/*.rst", "gallery/*/*.rst", "_templates"]
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]  # the gallery's scraper is a function, which has no hash

# -- pages

myst_enable_extensions = ["dollarmath", "attrs_block"]
myst_heading_anchors = 4
myst_links_external_new_tab = False
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_math_renderer = "mathml"


def inline_mathml(self: HTML5Translator, node: nodes.math) -> None:
    """Formulas as browsers know them: no script is fetched to set them."""
    self.body.append(latex2mathml.tex2mathml(node.astext(), as_block=False))
    raise nodes.SkipNode


def block_mathml(self: HTML5Translator, node: nodes.math_block) -> None:
    """The same, on lines of their own."""
    self.body.append(
        f"<div class='math'>{latex2mathml.tex2mathml(node.astext(), as_block=True)}</div>"
    )
    raise nodes.SkipNode


# -- the look: nothing is fetched from elsewhere

html_theme = "pydata_sphinx_theme"
html_title = "xnet"
html_show_sourcelink = False
html_static_path = ["_static"]
html_css_files = ["site.css"]
html_sidebars = {"start": [], "index": []}
html_theme_options: dict[str, Any] = {
    "navbar_align": "left",
    "show_prev_next": True,
    "navigation_with_keys": False,
    "footer_start": ["copyright"],
    "footer_end": [],
    "secondary_sidebar_items": ["page-toc"],
}

# -- the reference

default_role = "py:obj"  # what stands between single backticks in a docstring
autosummary_generate = True
autosummary_ignore_module_all = False
autosummary_imported_members = True
autosummary_context = {"top": xnet.__all__}
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = True
python_maximum_signature_line_length = 80
python_use_unqualified_type_names = True
numpydoc_show_class_members = False
numpydoc_class_members_toctree = False


def public() -> tuple[list[str], list[str]]:
    """The names that `xnet` itself has, and the modules that have more."""
    names = [n for n in xnet.__all__ if not isinstance(getattr(xnet, n), ModuleType)]
    modules: list[str] = []
    for found in pkgutil.walk_packages(xnet.__path__, "xnet."):
        own = getattr(importlib.import_module(found.name), "__all__", ())
        if set(own) - set(names) and found.name.removeprefix("xnet.") not in names:
            modules.append(found.name)
    return sorted(names), sorted(modules)


def write_reference() -> None:
    """What the reference consists of, from what the package and the command say of themselves."""
    names, modules = public()
    listed = [
        "```{eval-rst}",
        ".. autosummary::\n   :toctree: api\n   :nosignatures:\n",
        *(f"   xnet.{name}" for name in names),
        "",
        ".. autosummary::\n   :toctree: api\n   :template: autosummary/module.rst\n",
        *(f"   {name}" for name in modules),
        "```\n",
    ]
    (HERE / "reference" / "api.md").write_text("# The library\n\n" + "\n".join(listed))
    shown = [sys.executable, "-m", "typer", "xnet.tools.cli", "utils", "docs", "--name", "xnet"]
    text = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    text = re.sub(r"^# .*$", "# The command", text, count=1, flags=re.MULTILINE)
    text = re.sub(r"\[/?bold\]", "`", text)  # of its examples, as the terminal shows them
    (HERE / "reference" / "command.md").write_text(text)


# -- other projects' names

ELSEWHERE = {
    "python": ("https://docs.python.org/3/", {}),
    "numpy": (
        "https://numpy.org/doc/stable/",
        {
            "numpy.ndarray": "py:class 1 reference/generated/numpy.ndarray.html#$ -",
            "numpy.typing.ArrayLike": "py:data 1 reference/typing.html#$ -",
        },
    ),
    "matplotlib": (
        "https://matplotlib.org/stable/",
        {
            "matplotlib.figure.Figure": "py:class 1 api/_as_gen/$.html#$ -",
            "matplotlib.axes.Axes": "py:class 1 api/_as_gen/$.html#$ -",
        },
    ),
}
"""Where their pages are, and what is linked there where their inventories cannot be had."""

intersphinx_timeout = 5
intersphinx_mapping = {
    name: (address, (None, f"_inventories/{name}.inv")) for name, (address, _) in ELSEWHERE.items()
}


def write_inventories() -> None:
    """So that the site is built without a network, too."""
    folder = HERE / "_inventories"
    folder.mkdir(exist_ok=True)
    for name, (_, entries) in ELSEWHERE.items():
        head = f"# Sphinx inventory version 2\n# Project: {name}\n# Version: \n# zlib\n"
        lines = "".join(f"{entry} {where}\n" for entry, where in entries.items())
        (folder / f"{name}.inv").write_bytes(head.encode() + zlib.compress(lines.encode()))


# -- figures


def draw_figures() -> None:
    """Those that pages show, as they are written by `xnet plot`."""
    shutil.rmtree(FIGURES, ignore_errors=True)
    FIGURES.mkdir()
    text = "".join(page.read_text() for page in HERE.rglob("*.md"))
    material = Material()
    for name in set(re.findall(r"_figures/([\w-]+)\.svg", text)):
        for dark in False, True:
            path = FIGURES / f"{name}{'-dark' * dark}.svg"
            with plotting.look(dark=dark, width=700):
                plotting.save(plotting.plots()[name].draw(material), path)


class LightAndDark(SphinxTransform):
    """Beside each drawn figure the dark one: the reader's browser shows one of them."""

    default_priority = 500

    def apply(self, **_: Any) -> None:
        for image in list(self.document.findall(nodes.image)):
            path = Path(image["uri"])
            if path.parent.name == FIGURES.name:
                dark = image.deepcopy()
                dark["uri"] = str(path.with_stem(f"{path.stem}-dark"))
                dark["classes"].append("only-dark")
                image["classes"].append("only-light")
                image.parent.insert(image.parent.index(image) + 1, dark)


def scrape(block: Any, variables: dict[str, Any], settings: dict[str, Any]) -> str:
    """The figures and animations that a block of a script has made, for the gallery."""
    made, shown = variables["example_globals"], variables.setdefault("shown", [])
    paths = []
    for value in made.values():
        if isinstance(value, Figure | Animation) and all(value is not other for other in shown):
            shown.append(value)
            path = Path(next(variables["image_path_iterator"]))
            if isinstance(value, Animation):
                path = path.with_suffix(".gif")
            plotting.save(value, path)
            paths.append(str(path))
    return figure_rst(paths, settings["src_dir"])


def as_listed(script: str) -> int:
    """What sorts scripts as `xnet plot --list` has their figures: in the order of the notes."""
    name = Path(script).stem.removeprefix("plot_").replace("_", "-")
    return list(plotting.plots()).index(name)


sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "examples",
    "subsection_order": ExplicitOrder(["gallery/notes", "gallery/job"]),
    "within_subsection_order": as_listed,
    "filename_pattern": r"/plot_",
    "ignore_pattern": r"__init__",
    "image_scrapers": (scrape,),
    "capture_repr": (),  # a figure that a script ends in is shown once, by the scraper
    "reset_modules": (),
    "download_all_examples": False,
    "show_memory": False,
    "show_signature": False,
    "write_computation_times": False,
    "remove_config_comments": True,
    "abort_on_example_error": True,
}

# -- the page that trains in the browser stands beside the pages that describe it

PAGE = ("index.html", "page_data.js", "xnet.js", "vectors.json")


class LinkPage(SphinxTransform):
    """Have links to its files lead to them, where they would be downloads."""

    default_priority = 500

    def apply(self, **_: Any) -> None:
        for link in list(self.document.findall(addnodes.download_reference)):
            if Path(link["reftarget"]).name in PAGE:
                plain = nodes.reference(refuri=link["reftarget"], internal=True)
                plain.extend(link.children)
                link.replace_self(plain)


def copy_page(app: Sphinx, error: Exception | None) -> None:
    """Its files, as they are."""
    if error is None and app.builder.format == "html":
        folder = Path(app.outdir) / "reproducible"
        folder.mkdir(exist_ok=True)
        for name in PAGE:
            shutil.copy(HERE / "reproducible" / name, folder / name)
        page = folder / "index.html"
        page.write_text(page.read_text().replace("reproducible.md", "reproducible.html"))


def prepare(app: Sphinx, config: Any) -> None:
    """Make what pages are made of."""
    write_inventories()
    write_reference()
    draw_figures()


def skip_requests(app: Sphinx, what: str, name: str, obj: Any, skip: bool, options: Any) -> Any:
    """Leave out the methods that scikit-learn gives every estimator by itself."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def setup(app: Sphinx) -> None:
    """Called by Sphinx."""
    app.connect("config-inited", prepare, priority=1)
    app.connect("autodoc-skip-member", skip_requests)
    app.add_transform(LightAndDark)
    app.add_transform(LinkPage)
    app.add_html_math_renderer("mathml", (inline_mathml, None), (block_mathml, None))
    app.connect("build-finished", copy_page)
