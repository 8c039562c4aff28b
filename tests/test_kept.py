"""What Numba compiles is kept on disk, where there is a place, and taken only if it is right."""

import ast
import os
import pickle
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("numba")

import xnet_numba
from numba.core import event
from xnet_numba import kept
from xnet_numba.compiling import compiled


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """An empty folder for what is compiled."""
    monkeypatch.setattr(kept, "folder", lambda: tmp_path)
    return tmp_path


def twice(x):
    return 2 * x


def thrice(x):
    return 3 * x


def compiles(function, argument=1.5, **options):
    """Whether a call of it has to compile, as in a new process; it must be right in any case."""
    listener = event.RecordingListener()
    with event.install_listener("numba:compile", listener):
        found = compiled(**options)(function)(argument)
    assert found == function(argument)
    return bool(listener.buffer)


def test_what_was_compiled_is_taken(folder):
    assert compiles(twice)
    assert not compiles(twice)
    assert compiles(thrice)
    assert compiles(twice, 1)  # another type
    assert compiles(twice, fastmath={"contract", "reassoc"})
    assert not compiles(twice, fastmath={"reassoc", "contract"})
    assert len(list(folder.iterdir())) == 4


def scaled(by):
    def scale(x):
        return by * x

    return scale


def test_what_a_function_encloses_tells_it_apart(folder):
    assert compiles(scaled(2.0))
    assert compiles(scaled(3.0))
    assert not compiles(scaled(2.0))


def cut_off(content):
    return content[:-100]


def flipped(content, at=-1000):
    altered = bytearray(content)
    altered[at] ^= 1
    return bytes(altered)


@pytest.mark.parametrize(
    "damage",
    [lambda content: b"", lambda content: b"\x80", cut_off, flipped, lambda c: flipped(c, 3)],
)
def test_a_damaged_file_is_compiled_anew(folder, damage):
    compiles(twice)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    path.write_bytes(damage(content))
    assert compiles(twice)
    assert not compiles(twice)


def test_a_file_in_the_place_of_another_is_not_taken(folder):
    """Numba's own cache runs what it finds there."""
    compiles(twice)
    (path,) = folder.iterdir()
    content = path.read_bytes()
    compiles(thrice)
    (other,) = set(folder.iterdir()) - {path}
    other.write_bytes(content)
    assert compiles(thrice)
    assert not compiles(thrice)


def test_what_cannot_be_loaded_is_compiled_anew_and_says_which_folder_to_delete(
    folder, monkeypatch
):
    def fail(*_):
        raise ImportError("LLVM knows it not")

    compiles(twice)
    with monkeypatch.context() as patch:
        patch.setattr(kept.CompileResult, "_rebuild", fail)
        with pytest.warns(RuntimeWarning, match=rf"twice cannot be .*; .* delete {folder}"):
            assert compiles(twice)
    assert not compiles(twice)


class Runs:
    """An object whose pickle has the reader make a folder."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.mark.parametrize(
    "forged",
    [
        lambda folder: pickle.dumps(Runs(folder / "ran")),
        lambda folder: b"cnumba.core.serialize\n_unpickle__CustomPickled\n.",
        lambda folder: b"cnumba.core.types.abstract\n_typecache\n.",
        lambda folder: b"\x80\x04\x8c\x19numba.core.types.abstract\x8c\x0fitertools.count\x93.",
    ],
    ids=["a function", "Numba's own", "no type", "what a module imports"],
)
def test_a_whole_file_that_names_what_no_compiled_code_does_runs_nothing(
    folder, monkeypatch, tmp_path_factory, forged
):
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    with monkeypatch.context() as patch:
        patch.setattr(kept, "dumps", lambda _: forged(elsewhere))
        compiles(twice)
    with pytest.warns(RuntimeWarning, match=r"it names .*, which nothing compiled does"):
        assert compiles(twice)
    assert not list(elsewhere.iterdir())
    assert not compiles(twice)


@pytest.mark.parametrize("function", ["mkstemp", "replace"])
def test_what_cannot_be_written_is_not_kept(folder, monkeypatch, function):
    """As where a disk is full, or was made read-only after this process looked."""

    def fail(*_, **__):
        raise OSError("no space left")

    monkeypatch.setattr(os if function == "replace" else kept.tempfile, function, fail)
    assert compiles(twice)
    assert compiles(twice)
    assert list(folder.iterdir()) == []


def test_a_folder_that_another_process_deleted_is_made_again(folder, monkeypatch):
    monkeypatch.setattr(kept, "folder", lambda: folder / "gone")
    assert compiles(twice)
    assert not compiles(twice)


class Interrupting(event.Listener):
    begun = 0

    def on_start(self, event):
        self.begun += 1
        if self.begun == 1:
            signal.raise_signal(signal.SIGINT)

    def on_end(self, event):
        pass


def test_ctrl_c_while_numba_compiles_spoils_nothing(folder, ctrl_c):
    """Numba's own is lost to the process where one comes as it sets itself up."""
    dispatcher, listener = compiled()(twice), Interrupting()
    with event.install_listener("numba:compile", listener):
        with pytest.raises(KeyboardInterrupt):
            dispatcher(1.5)
        assert dispatcher(1.5) == 3
    assert listener.begun == 1
    assert not compiles(twice)


# -- a folder for each state of the sources


def test_an_edit_to_any_source_is_another_state(monkeypatch):
    before, read = kept._state.__wrapped__(), Path.read_bytes
    assert kept._state.__wrapped__() == before
    package = list(Path(xnet_numba.__file__).parent.glob("*.py"))
    assert len(package) > 10
    states = {before}
    for edited in [*package, *(Path(module.__file__) for module in kept.SOURCES)]:
        monkeypatch.setattr(
            Path, "read_bytes", lambda path, e=edited: read(path) + b"#" * (path == e)
        )
        states.add(kept._state.__wrapped__())
    assert len(states) == 1 + len(package) + len(kept.SOURCES)


def test_another_numba_is_another_state(monkeypatch):
    before = kept._state.__wrapped__()
    monkeypatch.setattr(kept.numba, "__version__", "0.0")
    assert kept._state.__wrapped__() != before


def test_the_sources_are_all_that_compiled_modules_import_of_the_library():
    named = set()
    for path in Path(xnet_numba.__file__).parent.glob("*.py"):
        if path.name in ("__init__.py", "kept.py"):  # nothing there is compiled
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "xnet":
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module.startswith("xnet."):
                named.add(node.module.removeprefix("xnet."))
            elif isinstance(node, ast.Import):
                assert "xnet" not in {alias.name for alias in node.names}, path
    assert named <= {module.__name__.removeprefix("xnet.") for module in kept.SOURCES}


def test_old_states_do_not_pile_up(monkeypatch, tmp_path):
    """Those last in use are left, and nothing else of ours is touched."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    find = kept.folder.__wrapped__
    (tmp_path / "xnet" / "mnist").mkdir(parents=True)
    now = time.time()
    for k in range(kept.STATES + 5):
        monkeypatch.setattr(kept, "_state", lambda k=k: f"state {k}")
        made = find()
        (made / "compiled").write_bytes(b"")
        used = now - 1000 + k
        os.utime(made, (used, used))
        if k == kept.STATES - 2:
            monkeypatch.setattr(kept, "_state", lambda: "state 0")
            assert find() == made.parent / "state 0"  # in use again
    left = {path.name for path in (tmp_path / "xnet" / "numba").iterdir()}
    newest = {f"state {k}" for k in range(6, kept.STATES + 5)}
    assert left == newest | {"state 0"}
    assert (tmp_path / "xnet" / "mnist").exists()


# -- where


def test_a_folder_of_somebody_else_is_not_taken(tmp_path, monkeypatch):
    """Whoever owns it could have compiled code run that is none of ours."""
    if not hasattr(os, "getuid"):
        pytest.skip("this system knows no owners")
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    find = kept.folder.__wrapped__
    assert find().parent.parent == tmp_path / "xnet"
    if os.getuid() == 0:
        os.chown(tmp_path / "xnet", 1, 1)
    else:
        monkeypatch.setattr(os, "getuid", lambda: 1 + os.stat(tmp_path).st_uid)
    assert find().parent.parent != tmp_path / "xnet"


def test_a_folder_that_came_with_an_image_is_read(tmp_path, monkeypatch):
    """It was filled when a container was built, and cannot be written now."""
    monkeypatch.setenv("NUMBA_CACHE_DIR", str(tmp_path))
    filled = kept.folder.__wrapped__()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr(os, "utime", lambda *_: (_ for _ in ()).throw(PermissionError()))
    assert kept.folder.__wrapped__() == filled
    monkeypatch.setattr(kept, "folder", lambda: filled)
    assert not kept.writable()


TRIED = """
import os, tempfile
from pathlib import Path

def without_home():
    raise RuntimeError("Could not determine home directory.")

if "home" in {missing!r}:
    Path.home = without_home
if "temporary folder" in {missing!r}:
    tempfile._candidate_tempdir_list = lambda: []

from xnet_numba import kept
from xnet_numba.pool import _serve

assert _serve(0, 0, 7, 0) == 7  # one that is compiled soon
print(kept.folder())
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("missing", "where"),
    [
        ("home", "temporary folder"),
        ("a writable home", "temporary folder"),
        ("a writable NUMBA_CACHE_DIR", "home"),
        ("a writable NUMBA_CACHE_DIR, a writable home", "temporary folder"),
        ("home, temporary folder", None),
        ("a writable NUMBA_CACHE_DIR, a writable home, temporary folder", None),
    ],
)
def test_compiles_without(tmp_path, missing, where):
    """Whatever is missing there is another place, and at last the process's own memory."""
    nowhere = tmp_path / "file"
    nowhere.write_text("what is in a file cannot be a folder, not for root either")
    places = {"home": tmp_path / "home", "temporary folder": tmp_path / "temporary"}
    for path in places.values():
        path.mkdir()
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("NUMBA", "XDG"))}
    environment |= {"HOME": str(places["home"]), "TMPDIR": str(places["temporary folder"])}
    if "writable NUMBA_CACHE_DIR" in missing:
        environment["NUMBA_CACHE_DIR"] = str(nowhere / "numba")
    if "writable home" in missing:
        environment["HOME"] = str(nowhere / "home")
    ran = subprocess.run(
        [sys.executable, "-c", TRIED.format(missing=missing)],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stderr
    found = ran.stdout.strip()
    said = "no folder to keep them in can be written" if where is None else "kept for the next"
    assert ran.stderr.count("xnet: compiling") == ran.stderr.count(said) == 1
    if where is None:
        assert found == "None"
    else:
        assert Path(found).is_relative_to(places[where])
        assert any(Path(found).iterdir())


USERS = """
import numba
from xnet_numba.compiling import compiled

@compiled()
def ours(x):
    return 2 * x

@numba.njit
def users(x):
    return ours(x) + 1

print(users(3))
"""


def test_a_users_function_that_calls_one_of_ours_compiles_it(tmp_path):
    """Its own compilation has Numba's lock: no other thread may compile what it calls."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    ran = subprocess.run(
        [sys.executable, "-c", USERS], env=environment, capture_output=True, text=True, timeout=120
    )
    assert ran.stdout == "7\n", ran.stderr
