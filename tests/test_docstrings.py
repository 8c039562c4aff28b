"""The docstrings: every public name has one with an example, and examples print what they say.

Public is what the package names in its `__all__`, and what a module names in one of its own.
Examples are read from the source, so that none is passed over, whatever is made of what it stands
at. Each docstring's run in a namespace of their own, on the numpy backend, with warnings as errors,
in an empty folder that is empty again behind them. ``...`` stands for anything.
"""

import ast
import doctest
import importlib
import inspect
import os
import warnings
from pathlib import Path

import pytest

import xnet
from xnet import backend, schedules, threads

PACKAGE = Path(xnet.__file__).parent
PARSER = doctest.DocTestParser()
OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def module_name(path):
    """By which a file of the package is imported."""
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


SOURCES = {module_name(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def missing(error):
    """What an error comes of the want of, if it is something that xnet can do without."""
    while error is not None:
        name = getattr(error, "name", None) if isinstance(error, ModuleNotFoundError) else None
        if name and name.partition(".")[0] != "xnet":
            return name
        if isinstance(error, ImportError) and "pip install" in str(error):
            return str(error)
        error = error.__cause__ or error.__context__
    return None


# -- there are examples


def is_told(value):
    """Whether it has a docstring and, where it is called, an example there or at a method."""
    said = value.__doc__ or ""
    if inspect.ismodule(value):
        return bool(said)
    if inspect.isclass(value):
        methods = [each for each in vars(value).values() if hasattr(each, "__get__")]
        said = said and said + "".join(str(method.__doc__) for method in methods)
    elif not inspect.isroutine(value):
        return True  # a constant, which has the docstring of its type
    return ">>> " in said or not value.__module__.startswith("xnet")  # as `Any`, what an array is


@pytest.mark.parametrize("name", SOURCES)
def test_public_names_have_docstrings_with_examples(name):
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if missing(error) is None:
            raise
        pytest.skip(f"{name} needs {missing(error)}")
    public = getattr(module, "__all__", ())
    assert [each for each in public if not is_told(getattr(module, each))] == []
    assert len(set(public)) == len(public)


def test_a_name_without_an_example_is_found():
    """What the test above rests on."""

    class Bare:
        """Said, and not shown."""

        slots = 1  # whose docstring has an example, that of int

        def method(self):
            """Neither."""

    class Shown(Bare):
        """Shown at its method."""

        def method(self):
            """>>> 1 + 1"""

    Bare.__module__ = Shown.__module__ = "xnet.bare"
    assert [is_told(value) for value in (Bare, Shown, Bare.method)] == [False, True, True]
    Bare.method.__module__ = "xnet.bare"
    assert not is_told(Bare.method)
    assert is_told(xnet.train)
    assert is_told(xnet.layers)


# -- they are true


def placed(node, place):
    """What a piece of source consists of, each with the name of what it stands in."""
    yield place, node
    for child in ast.iter_child_nodes(node):
        named = isinstance(child, ast.ClassDef | ast.FunctionDef)
        yield from placed(child, f"{place}.{child.name}" if named else place)


def docstrings(path, name):
    """The docstrings of a file that hold examples, as tests."""
    for place, node in placed(ast.parse(path.read_text()), name):
        text = node.value if isinstance(node, ast.Expr) else None
        if isinstance(text, ast.Constant) and isinstance(text.value, str):
            test = PARSER.get_doctest(text.value, {}, place, str(path), node.lineno - 1)
            if test.examples:
                yield test


def outcome(test):
    """What of a docstring's examples is wrong, and which library they lack."""
    runner = doctest.DebugRunner(optionflags=OPTIONS)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            runner.run(test)
    except doctest.DocTestFailure as failure:
        got, example = failure.got, failure.example
    except doctest.UnexpectedException as failure:
        error, example = failure.exc_info[1], failure.example
        if lacking := missing(error):
            return "", lacking
        got = f"{type(error).__name__}: {error}"
    else:
        return "", None
    line = test.lineno + example.lineno + 1
    said = f"{example.source}expected\n{example.want}got\n{got}"
    return f"{test.filename}, line {line}, {test.name}:\n{said}", None


@pytest.fixture
def alone(monkeypatch, tmp_path):
    """On the default backend, in an empty folder; what examples choose ends with them."""
    for variable in [name for name in os.environ if name.startswith("XNET_")]:
        monkeypatch.delenv(variable)
    monkeypatch.setattr(backend, "_default", None)
    monkeypatch.setattr(threads, "_chosen", threads._chosen)
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", SOURCES)
def test_examples_print_what_they_say(name, alone):
    found = [outcome(test) for test in docstrings(SOURCES[name], name)]
    assert [wrong for wrong, _ in found if wrong] == []
    if lacking := {library for _, library in found if library}:
        pytest.skip(f"examples of {name} need {', '.join(sorted(lacking))}")


@pytest.mark.parametrize(
    ("example", "wrong", "lacking"),
    [
        (">>> 1 + 1\n2", "", None),
        (">>> 1 + 1\n3", "expected\n3\ngot\n2", None),
        (">>> 1 + 1", "expected\ngot\n2", None),
        (">>> len(2)", "TypeError", None),
        (">>> import warnings\n>>> warnings.warn('so', stacklevel=1)", "UserWarning: so", None),
        (">>> np.zeros(1)", "NameError", None),  # what the module imports is not there
        (">>> import no_such_library", "", "no_such_library"),
        (">>> import xnet.no_such_module", "ModuleNotFoundError", None),
        (">>> from ast import no_such_name", "ImportError", None),
        (">>> raise ImportError('pip install it')", "", "pip install it"),
    ],
)
def test_a_false_example_is_found(tmp_path, example, wrong, lacking):
    """What the test above rests on."""
    text = f'import numpy as np\n\n\n@str\nclass Shown:\n    """Shown.\n\n{example}\n"""\n'
    (tmp_path / "shown.py").write_text(text)
    [test] = docstrings(tmp_path / "shown.py", "shown")
    found = outcome(test)
    assert found[1] == lacking
    assert wrong in found[0]
    assert bool(wrong) == bool(found[0])
    if wrong:
        assert f"shown.py, line {7 + example.count('>>> ')}, shown.Shown:" in found[0]
