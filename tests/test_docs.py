"""The pages: every example runs and says what the page says, every command and file is there.

A page's Python blocks run in their order, in one namespace, in a process and a folder of their own,
on the numpy backend unless a block names another, with warnings as errors. None is left out; a page
that reads MNIST is skipped where that is not. Where a block of text follows, the block prints that,
or raises what its last line says; ``...`` stands for anything, and line breaks for spaces. A block
that begins with the name of a file is that file, too.
"""

import contextlib
import doctest
import importlib.util
import io
import math
import os
import re
import shlex
import subprocess
import sys
import tomllib
import traceback
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.main import get_command

import xnet
from xnet import formulas, operations, optimizers
from xnet.tools import cli

ROOT = Path(__file__).parent.parent
README, OPERATIONS = ROOT / "README.md", ROOT / "docs" / "operations.md"
NETWORKS, SOURCE = ROOT / "docs" / "networks.md", ROOT / "docs" / "source.md"
NOTES_NAMES = ROOT / "docs" / "notes" / "names.md"
WRITTEN = {"api.md", "command.md"}
"""By docs/conf.py, when the site is built."""
PAGES = [
    README,
    ROOT / "README.zh-CN.md",
    *sorted(p for p in (ROOT / "docs").rglob("*.md") if p.name not in WRITTEN),
]
NAMES = [page.name for page in PAGES]


@dataclass
class Block:
    """What stands between two fences."""

    language: str
    line: int
    """Of its first line, from 1."""
    text: str
    before: str
    """What stands between it and the block before."""


def blocks(page):
    """The fenced blocks of a page."""
    text, end, found = page.read_text(), 0, []
    for match in re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.DOTALL | re.MULTILINE):
        line = text.count("\n", 0, match.start(2)) + 1
        found.append(Block(match[1], line, match[2], text[end : match.start()]))
        end = match.end()
    return found


def rows(page, heading):
    """The cells of the table whose first line begins so."""
    lines = page.read_text().splitlines()
    start = next(k for k, line in enumerate(lines) if line.startswith(f"| {heading}")) + 2
    stop = next(k for k in range(start, len(lines)) if not lines[k].startswith("|"))
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[start:stop]]


# -- examples


def differences(page):
    """Run a page's blocks; where they do otherwise than it says."""
    found, namespace, wrong = blocks(page), {"__name__": "__main__"}, []
    for block, then in zip(found, [*found, None][1:], strict=True):
        if block.language != "python":
            continue
        if file := re.match(r"# (\w+\.py)\n", block.text):
            Path(file[1]).write_text(block.text)  # what processes that the page starts import
        says = then is not None and then.language == "text" and not then.before.strip()
        out, ending = io.StringIO(), ""
        # Padded, and under the page's name: a traceback has the page's lines, and so have the
        # errors of formulas.
        code = compile("\n" * (block.line - 1) + block.text, page.name, "exec")
        try:
            with contextlib.redirect_stdout(out):
                exec(code, namespace)
        except Exception as error:
            ending = f"{type(error).__name__}: {error}\n"
            if not says:
                ending += traceback.format_exc()
        got, options = out.getvalue() + ending, doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
        if says and not doctest.OutputChecker().check_output(then.text, got, options):
            wrong.append(f"{page.name}, line {then.line}: expected\n{then.text}\ngot\n{got}")
        elif ending and not says:
            wrong.append(f"{page.name}, line {block.line}:\n{got}")
    return wrong


def environment(**more):
    """That of a process which knows of no settings but these."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("XNET_")}
    return kept | {"XNET_BACKEND": "numpy"} | more


@pytest.fixture
def data(page, request):
    """What a page's blocks are told of the data that they read, which then are there."""
    code = "".join(block.text for block in blocks(page) if block.language == "python")
    read = {"mnist": "load_mnist(" in code, "sample_weight": "sample_weight.pkl" in code}
    for fixture in [name for name, needed in read.items() if needed]:
        request.getfixturevalue(fixture)
    folder = os.environ.get("XNET_DATA_DIR")
    return {"XNET_DATA_DIR": str(Path(folder).absolute())} if folder and any(read.values()) else {}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_examples_do_what_the_page_says(page, data, tmp_path):
    copied = tmp_path / page.name
    copied.write_text(page.read_text())  # beside the process, that errors of formulas find lines
    command = [sys.executable, "-W", "error", __file__, page.name]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment(**data), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_a_false_statement_is_found(tmp_path):
    """What the tests above rest on."""
    page = tmp_path / "page.md"
    text = "```python\nprint(2)\n```\n\n```text\n{}\n```\n"
    for said, wrong in {"2": 0, "3": 1, "...": 0, "ValueError: 2": 1}.items():
        page.write_text(text.format(said))
        assert len(differences(page)) == wrong
    page.write_text("```python\nlen(2)\n```\n")
    assert "page.md, line 2" in differences(page)[0]
    page.write_text("```python\nlen(2)\n```\n```text\nTypeError: object of type ...\n```\n")
    assert not differences(page)


# -- what the page on operations says of formulas


def written(code):
    """An operation with this for its `forward`, an expression of `self`, `m` and x."""

    class Tried(operations.Operation, abstract=True):
        alpha: float = 0.5
        whole: int = 1

        def __post_init__(self):
            object.__setattr__(self, "exp_alpha", math.exp(self.alpha))

    scope = {"np": np, "math": math}
    exec(f"def forward(self, m, x):\n    return {code}", scope)
    Tried.forward = scope["forward"]
    return Tried()


@pytest.mark.parametrize(
    ("code", "says", "instead"),
    [[cell.strip("`") for cell in row] for row in rows(OPERATIONS, "written")],
)
def test_what_a_compiled_formula_may_not_do(code, says, instead):
    with pytest.raises(formulas.FormulaError) as caught:
        formulas.trace(written(code).forward, "x")
    what, _, cure = str(caught.value).partition("; ")
    assert says.replace("`", "") in what.replace("`", "")
    assert cure
    one = written(instead)
    formulas.trace(one.forward, "x")
    x = np.array([[0.25, 0.5, 2.0]])
    assert np.isfinite(one.forward(xnet.resolve("numpy").maths, x)).all()


def test_mathematics_is_listed():
    """Every function that a formula may use has its line, and no line is of another."""
    text = OPERATIONS.read_text()
    part = text[text.index("## What m offers") : text.index("## What a compiled formula")]
    listed = set(re.findall(r"m\.(\w+)", part))
    arrays = xnet.resolve("numpy").maths
    offered = {name for name in (*dir(arrays), *vars(arrays)) if not name.startswith("_")}
    assert listed <= offered
    assert offered - listed == {"backend", "draw", "moved"}  # what these are made of


# -- commands, files and names


def commands(page):
    """The lines of a page's shell blocks, without their comments."""
    for block in blocks(page):
        if block.language == "sh":
            for line in block.text.splitlines():
                yield shlex.split(line, comments=True)


def parsed(command, words, **settings):
    """Have a command read its arguments, and not run."""
    return command.make_context(command.name, words, **settings)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_commands_are_known(page, bench):
    """Of `xnet` and of `bench.py` the options and choices, of Python the files."""
    group = get_command(cli.app)
    for words in commands(page):
        words = [word for word in words if "=" not in word]  # of the environment
        if page == OPERATIONS:  # what its package adds is tried below
            words = [next(iter(cli.ACTIVATIONS)) if w == "gaussian" else w for w in words]
        if words[:1] == ["xnet"]:
            context = parsed(group, words[1:2])
            parsed(group.commands[words[1]], words[2:], parent=context)
        elif words and words[0].endswith("python"):
            assert (ROOT / words[1]).is_file(), words
            if words[1] == "benchmarks/bench.py":
                parsed(bench, words[2:])
    named = re.findall(r"`xnet\s+([a-z]+)[\s`]", page.read_text())
    assert set(named) <= set(group.commands)


@pytest.fixture(scope="module")
def bench():
    """The command of benchmarks/bench.py."""
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    app = typer.Typer()
    app.command()(module.main)
    return get_command(app)


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_files_and_links_are_there(page):
    text = page.read_text()
    for path in re.findall(r"\b((?:xnet|backends|benchmarks|docs|tests)/[\w./-]*\w)", text):
        assert (ROOT / path).exists(), path
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link:
            continue
        file, _, part = link.partition("#")
        target = page.parent / file if file else page
        if target.parent.name == "_figures":  # drawn when the site is built
            assert target.name in {f"{name}.svg" for name in xnet.plotting.plots()}
            continue
        if target.parent.name == "examples":  # the gallery, likewise
            continue
        assert target.exists(), link
        headings = re.findall(r"^#+ (.*)$", target.read_text(), re.MULTILINE) if part else []
        slugs = [re.sub(r"[^\w -]", "", h).lower().replace(" ", "-") for h in headings]
        assert not part or part in slugs, link


@pytest.mark.parametrize("heading", ["in the notes", "module of the notes"])
def test_the_notes_names_lead_to_names_of_xnet(heading):
    """Each of them: a field of a dataclass is one, too."""
    for _, here, *_ in rows(NOTES_NAMES, heading):
        named = re.findall(r"`xnet\.([\w.]+)`", here)
        assert named
        assert here.count("`") == 2 * len(named)
        for name in named:
            found = xnet
            for part in name.split("."):
                fields = getattr(found, "__dataclass_fields__", {})
                found = fields[part] if part in fields else getattr(found, part)


def test_every_module_is_in_the_table():
    named = [
        name for row in rows(SOURCE, "in `xnet/`") for name in re.findall(r"`([^`]*)`", row[0])
    ]
    files = [path.name for path in (ROOT / "xnet").glob("*.py") if path.name != "__init__.py"]
    folders = [f"{path.parent.name}/" for path in (ROOT / "xnet").glob("*/__init__.py")]
    assert sorted(named) == sorted([*files, *folders])


def test_every_operation_and_optimizer_is_named():
    text = NETWORKS.read_text()
    part = text[text.index("- Activations:") : text.index("One of your own")]
    named = re.findall(r"`(\w+)`", part)
    own = [cls for cls in operations.OPERATIONS.values() if cls.__module__ == operations.__name__]
    steps = [cls for cls in optimizers.OPTIMIZERS.values() if cls.__module__ == optimizers.__name__]
    assert sorted(named) == sorted(cls.__name__ for cls in (*own, *steps))


def test_names_of_rules_are_those_of_the_code():
    """The constants and functions that the page on speed names."""
    sources = "".join(path.read_text() for path in (ROOT / "backends/xnet_numba").glob("*.py"))
    names = [name.strip("`") for _, name, *_ in rows(ROOT / "docs" / "speed.md", "rule") if name]
    assert names
    for name in names:
        assert re.search(rf"\b{name.rpartition('.')[2]}\b", sources), name


# -- a package with operations


def test_the_package_of_the_page_is_found_by_the_command(tmp_path):
    """The page's module and its pyproject.toml, as installed, and the commands below them."""
    found = blocks(OPERATIONS)
    at = next(k for k, block in enumerate(found) if block.language == "toml")
    module, project, shell = found[at - 1 : at + 2]
    assert (module.language, shell.language) == ("python", "sh")
    facts = tomllib.loads(project.text)["project"]
    name = module.text.partition("\n")[0].removeprefix("# ")
    (tmp_path / name).write_text(module.text)
    metadata = tmp_path / f"{facts['name'].replace('-', '_')}-{facts['version']}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {facts['name']}\nVersion: {facts['version']}\n"
    )
    entries = [
        f"[{group}]\n" + "".join(f"{key} = {value}\n" for key, value in of.items())
        for group, of in facts["entry-points"].items()
    ]
    (metadata / "entry_points.txt").write_text("\n".join(entries))
    path = os.pathsep.join([str(tmp_path), *os.environ.get("PYTHONPATH", "").split(os.pathsep)])
    for line in shell.text.splitlines():
        words = [sys.executable, "-m", "xnet_command", *shlex.split(line)[1:]]
        where = {"cwd": tmp_path, "env": environment(PYTHONPATH=path)}
        done = subprocess.run(words, **where, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    words = [*words[:3], "evaluate", str(tmp_path / "gaussian.safetensors")]
    done = subprocess.run(words, env=environment(), capture_output=True, text=True, check=False)
    assert "unknown operation 'Gaussian'" in done.stderr  # where the package is not installed


if __name__ == "__main__":
    sys.path.insert(0, "")  # as in a folder of one's own
    sys.exit("\n".join(differences(Path(sys.argv[1]))) or 0)
