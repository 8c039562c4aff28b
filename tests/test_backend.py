import ast
import asyncio
import gc
import inspect
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import cuda_on_host
import numpy as np
import pytest
from conftest import require_host_cuda

import xnet
from xnet import backend as registry
from xnet import exact
from xnet.backend import Backend, Run, backend_of, owner_of, resolve
from xnet.dtypes import float_dtype
from xnet.errors import BackendError
from xnet.operations import Affine
from xnet.testing.parity import same_bits

PACKAGES = Path(__file__).parent / "packages"


@pytest.fixture(autouse=True)
def _fresh_default(monkeypatch):
    """Each test decides on its own what the process and the environment select."""
    monkeypatch.setattr(registry, "_default", None)
    monkeypatch.delenv("XNET_BACKEND", raising=False)
    monkeypatch.delenv("XNET_REPRODUCIBLE", raising=False)


def run_python(code, **environment):
    import os

    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, **environment},
        check=False,
    )


# -- the registry


def test_backends_says_which_are_usable_and_why_not():
    found = {info.name: info for info in xnet.backends()}
    assert {"numpy", "numba", "cupy"} <= set(found)
    assert found["numpy"].usable
    assert found["numpy"].reason is None
    for info in found.values():
        assert info.usable == (info.reason is None)


def test_unknown_backend_suggests_the_near_miss_and_lists_all():
    with pytest.raises(BackendError, match=r"unknown backend 'nunpy'; did you mean 'numpy'\?"):
        resolve("nunpy")
    with pytest.raises(BackendError, match=r"unknown backend 'q'. Backends: numpy.*numba.*auto$"):
        resolve("q")
    with pytest.raises(BackendError, match=r"unknown backend 'atuo'; did you mean 'auto'\?"):
        resolve("atuo")
    assert next(iter(registry._registry.__wrapped__())) == "numpy"  # the reference first


@pytest.mark.parametrize("name", ["numpy:x", "numpy:", "numpy:-1", "cupy:1.5"])
def test_device_index_must_be_a_number(name):
    with pytest.raises(BackendError, match="is not a device index"):
        resolve(name)


def test_device_index_where_there_are_no_devices():
    with pytest.raises(BackendError, match="'numpy:0': numpy takes no device index"):
        resolve("numpy:0")


def test_backend_argument_of_a_wrong_type():
    with pytest.raises(TypeError, match="backend is a int, expected a name or a Backend"):
        resolve(3)


def test_one_instance_for_each_name():
    assert resolve("numpy") is resolve("numpy")
    assert resolve(resolve("numba")) is resolve("numba")
    assert resolve("numpy") is not resolve("numba")


def test_broken_plug_in_leaves_the_others_usable(monkeypatch):
    def load():
        raise RuntimeError("its own fault")

    entry = SimpleNamespace(name="broken", value="broken:B", load=load)
    numpy_class = type(resolve("numpy"))
    numpy = SimpleNamespace(name="numpy", value="a:B", load=lambda: numpy_class)
    monkeypatch.setattr(registry, "_registry", lambda: {"numpy": numpy, "broken": entry})
    registry._load.cache_clear()
    try:
        info = {info.name: info for info in xnet.backends()}
        assert info["numpy"].usable
        assert "its own fault" in info["broken"].reason
        with pytest.raises(BackendError, match="'broken' failed to load"):
            resolve("broken")
    finally:
        registry._load.cache_clear()


def test_two_packages_with_one_name_are_an_error(monkeypatch):
    import importlib.metadata

    pair = [SimpleNamespace(name="numpy", value=f"{module}:B") for module in ("one", "two")]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: pair)
    with pytest.raises(BackendError, match=r"two packages register .*'numpy': one:B and two:B"):
        registry._registry.__wrapped__()


def test_without_any_registered_backend(monkeypatch):
    import importlib.metadata

    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: [])
    with pytest.raises(BackendError, match="xnet is not installed"):
        registry._registry.__wrapped__()


def test_cupy_without_cuda_says_what_would_help():
    reason = {info.name: info.reason for info in xnet.backends()}["cupy"]
    if reason is None:
        pytest.skip("there is a GPU here: nothing is missing")
    with pytest.raises(BackendError, match=r"'cupy' cannot be used here: .*Usable: numpy") as error:
        resolve("cupy")
    assert "pip install" in str(error.value) or "driver" in str(error.value)
    assert "cupy" not in str(error.value).partition("Usable: ")[2]


def test_numba_without_its_packages_says_what_to_install(monkeypatch):
    import xnet_numba

    monkeypatch.setattr(
        xnet_numba, "find_spec", lambda name: None if name == "threadpoolctl" else name
    )
    message = r"'numba' cannot be used here: threadpoolctl not installed: pip install \"xnet-nn\["
    with pytest.raises(BackendError, match=message):
        resolve("numba")


def test_auto_takes_the_fastest_that_works(monkeypatch):
    reasons = {"cupy": None, "numba": None, "numpy": None}
    monkeypatch.setattr(registry, "_why_unusable", reasons.get)
    made = {name: SimpleNamespace(reproducible=False) for name in reasons}
    monkeypatch.setattr(registry, "_instance", lambda name, device, reproducible: made[name])
    assert resolve("auto") is made["cupy"]
    reasons["cupy"] = "no GPU"
    assert resolve("auto") is made["numba"]
    reasons["numba"] = "not installed"
    assert resolve("auto") is made["numpy"]


def test_reproducible_mode_by_every_way_of_selecting():
    assert not xnet.get_backend().reproducible
    assert resolve("numba", reproducible=True).reproducible
    with xnet.use_backend("numba", reproducible=True) as backend:
        assert backend.reproducible
        assert xnet.TwoLayerNet(2, 3, 2).backend is backend
        # A backend named within keeps the mode, unless it is said otherwise.
        assert resolve("numpy").reproducible
        assert not resolve("numpy", reproducible=False).reproducible
    with xnet.use_backend(reproducible=True) as backend:
        assert backend is resolve("numpy", reproducible=True)
    xnet.set_backend("strict", reproducible=True)  # and so does one that is the process's own
    assert resolve("numpy").reproducible
    with xnet.use_backend("numpy", reproducible=False):
        assert not resolve("strict").reproducible


def test_reproducible_mode_from_outside(monkeypatch):
    monkeypatch.setenv("XNET_REPRODUCIBLE", "1")
    assert xnet.get_backend() is resolve("numpy", reproducible=True)
    assert resolve("numba").reproducible
    assert xnet.set_backend("numba", reproducible=False) is resolve("numba")
    assert not xnet.get_backend().reproducible


def test_moving_a_network_keeps_its_mode():
    network = xnet.TwoLayerNet(2, 3, 2, backend=resolve("numpy", reproducible=True))
    assert network.to("numba").backend is resolve("numba", reproducible=True)
    assert network.to(resolve("numba")).backend is resolve("numba")


# -- selection


def test_the_default_is_numpy():
    assert xnet.get_backend().name == "numpy"


def test_selection_by_environment(monkeypatch):
    monkeypatch.setenv("XNET_BACKEND", "numba")
    assert xnet.get_backend().name == "numba"


def test_wrong_environment_is_an_error(monkeypatch):
    monkeypatch.setenv("XNET_BACKEND", "nummba")
    with pytest.raises(BackendError, match=r"XNET_BACKEND=nummba: unknown backend.*'numba'"):
        xnet.get_backend()
    monkeypatch.setenv("XNET_BACKEND", "numpy")
    monkeypatch.setenv("XNET_REPRODUCIBLE", "yes")
    with pytest.raises(BackendError, match="XNET_REPRODUCIBLE is 'yes', expected 0 or 1"):
        xnet.get_backend()


def test_environment_reproducible_off_is_fine(monkeypatch):
    monkeypatch.setenv("XNET_REPRODUCIBLE", "0")
    assert not xnet.get_backend().reproducible


def test_block_over_process_over_environment(monkeypatch):
    monkeypatch.setenv("XNET_BACKEND", "strict")
    assert xnet.get_backend().name == "strict"
    assert xnet.set_backend("numpy") is resolve("numpy")
    assert xnet.get_backend().name == "numpy"
    with xnet.use_backend("numba") as outer:
        assert xnet.get_backend() is outer
        with xnet.use_backend("strict"):
            xnet.set_backend("numpy")
            assert xnet.get_backend().name == "strict"
        assert xnet.get_backend() is outer
    assert xnet.get_backend().name == "numpy"


def test_block_ends_when_it_raises():
    with pytest.raises(KeyError), xnet.use_backend("numba"):
        raise KeyError
    assert xnet.get_backend().name == "numpy"


def test_selection_by_argument():
    assert xnet.TwoLayerNet(2, 3, 2, backend="numba").backend.name == "numba"
    with xnet.use_backend("strict"):
        assert xnet.TwoLayerNet(2, 3, 2).backend.name == "strict"


def test_eight_threads_never_see_each_others_choice():
    names = ["numpy", "numba", "strict"]
    barrier = threading.Barrier(8)
    wrong = []

    def switch(index):
        barrier.wait()
        for turn in range(1000):
            name = names[(index + turn) % len(names)]
            with xnet.use_backend(name) as chosen:
                x = chosen.asarray([1.0, -1.0])
                if xnet.get_backend().name != name or backend_of(x=x).name != name:
                    wrong.append((index, turn))

    threads = [threading.Thread(target=switch, args=(index,)) for index in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert xnet.get_backend().name == "numpy"


def test_asyncio_tasks_never_see_each_others_choice():
    names = ["numpy", "numba", "strict"]

    async def switch(index):
        for turn in range(1000):
            name = names[(index + turn) % len(names)]
            with xnet.use_backend(name):
                await asyncio.sleep(0)
                if xnet.get_backend().name != name:
                    return False
        return True

    async def all_of_them():
        return await asyncio.gather(*(switch(index) for index in range(8)))

    assert asyncio.run(all_of_them()) == [True] * 8


async def in_a_block(name="strict"):
    """A generator within a block, as for a stream of predictions."""
    with xnet.use_backend(name):
        yield
        yield


@pytest.mark.parametrize("how", ["finished", "closed", "left to the event loop", "in another task"])
def test_an_async_generators_block_ends_with_it(how):
    async def finish(generator):
        return [item async for item in generator]

    async def unfinished():
        generator = in_a_block()
        await anext(generator)
        assert xnet.get_backend().name == "strict"  # its block is around this, too
        if how == "finished":
            await finish(generator)
        elif how == "closed":
            await generator.aclose()
        elif how == "in another task":
            await asyncio.create_task(finish(generator))
        del generator
        gc.collect()
        for _ in range(3):  # the event loop closes it in a task of its own
            await asyncio.sleep(0)
        return xnet.get_backend().name

    failures = []

    async def main():
        asyncio.get_running_loop().set_exception_handler(lambda _, fault: failures.append(fault))
        return await unfinished()

    assert asyncio.run(main()) == "numpy"
    assert failures == []


def test_a_generator_closed_within_another_block_ends_its_own_alone():
    def in_a_block():
        with xnet.use_backend("strict"):
            yield

    for mode in (False, True):
        generator = in_a_block()
        next(generator)
        with xnet.use_backend("numba", reproducible=mode) as inner:
            generator.close()
            assert xnet.get_backend() is inner
        assert xnet.get_backend() is resolve("numpy")
    assert registry._current.get() is None


def test_a_task_goes_on_in_the_block_that_it_was_begun_in():
    async def main():
        begun = asyncio.Event()

        async def later():
            await begun.wait()
            return xnet.get_backend().name

        with xnet.use_backend("strict"):
            task = asyncio.create_task(later())
        begun.set()
        return await task, xnet.get_backend().name

    assert asyncio.run(main()) == ("strict", "numpy")


def test_networks_in_threads_run_on_their_own_backend():
    x = np.linspace(-1, 1, 12).reshape(3, 4)
    nets = [xnet.TwoLayerNet(4, 5, 3, 0.5, backend=name) for name in ("numpy", "numba", "strict")]
    expected = nets[0].predict(x)
    results = {}

    def run(index, net):
        for _ in range(50):
            results[index] = net.backend.to_numpy(net.predict(x))

    threads = [threading.Thread(target=run, args=item) for item in enumerate(nets)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(3):
        np.testing.assert_allclose(results[index], expected, rtol=1e-14)


# -- arrays decide


@pytest.mark.parametrize("where", ["in", "out"])
def test_ctrl_c_on_the_way_leaves_what_was_current(monkeypatch, where):
    """While a network's backend begins, or ends, what it does around a call."""

    class Interrupted:
        def __enter__(self):
            if where == "in":
                raise KeyboardInterrupt

        def __exit__(self, *error):
            raise KeyboardInterrupt

    net = xnet.Network([xnet.layers.Affine(2, 3)], backend=resolve("numpy", True))
    xnet.set_backend("strict")
    monkeypatch.setattr(type(net.backend), "running", lambda self: Interrupted())
    with pytest.raises(KeyboardInterrupt):
        net.loss(np.ones((1, 2)), [0])
    assert xnet.get_backend().label == "strict"


def test_arrays_decide_and_the_current_backend_breaks_ties():
    host = np.ones(2)
    strict = resolve("strict").asarray([1.0, 1.0])
    assert backend_of(x=host).name == "numpy"
    assert backend_of(x=strict).name == "strict"
    with xnet.use_backend("numba"):
        assert backend_of(x=host).name == "numba"
        assert backend_of(x=strict).name == "strict"
    with xnet.use_backend("strict"):
        assert backend_of(x=host, y=host).name == "numpy"  # the reference, none being current


def test_arrays_of_two_devices_are_an_error_that_names_both():
    strict = resolve("strict").asarray([[1.0]])
    with pytest.raises(BackendError, match=r'x is on numpy, W is on strict.*resolve\("numpy"\)'):
        backend_of(x=np.ones((1, 1)), W=strict)


@pytest.mark.parametrize(
    "value", [[1.0], (1.0,), 1.0, "x", None, {"a": 1}, object(), SimpleNamespace()]
)
def test_what_is_no_array_is_named(value):
    with pytest.raises(TypeError, match=f"x is a {type(value).__name__}, expected an array"):
        backend_of(x=value)


def test_owner_of_a_current_array_asks_no_other_backend(monkeypatch):
    monkeypatch.setattr(registry, "backends", lambda: pytest.fail("asked"))
    assert owner_of(np.ones(1)).name == "numpy"


def test_asarray_and_to_numpy_cross_devices(backend, dtype):
    host = np.array([[1.5, -2.0]], dtype=dtype)
    here = backend.asarray(host)
    assert backend.owns(here)
    back = backend.to_numpy(here)
    assert isinstance(back, np.ndarray)
    assert back.dtype == dtype
    np.testing.assert_array_equal(back, host)
    elsewhere = resolve("strict").asarray(here)
    assert resolve("strict").owns(elsewhere)
    np.testing.assert_array_equal(backend.to_numpy(backend.asarray(elsewhere)), host)
    assert registry.dtype_name(backend.asarray([1, 2], "float32").dtype) == "float32"


def test_asarray_of_a_stranger():
    with pytest.raises(TypeError, match="values is a set"):
        resolve("numpy").asarray({1})


def test_float_dtype():
    assert float_dtype(np.float32) == "float32"
    assert float_dtype(np.dtype("float64")) == "float64"
    for bad in ("float16", np.int64, "complex128"):
        with pytest.raises(ValueError, match=r"dtype is .*, expected float32 or float64"):
            float_dtype(bad)


def test_repr_label_and_pickle():
    import copy
    import pickle

    numba = resolve("numba")
    assert repr(numba) == "<backend numba>"
    assert repr(resolve("numba", True)) == "<backend numba reproducible>"
    assert pickle.loads(pickle.dumps(numba)) is numba
    assert copy.deepcopy(numba) is numba


# -- the generic forms


def test_fast_mode_is_the_librarys_own(rng):
    """What reproducible mode computes otherwise is in fast mode what the library makes of it."""
    fast, exactly = resolve("strict"), resolve("strict", reproducible=True)
    a = fast.asarray(rng.normal(size=(60, 60)))
    computed = {
        "matmul": lambda backend: backend.matmul(a, a),
        "sum": lambda backend: backend.sum(a, axis=1, keepdims=True),
        **{
            name: lambda backend, name=name: getattr(backend, name)(fast.xp.abs(a))
            for name in ("exp", "log", "expm1", "log1p")
        },
    }
    own = {name: getattr(fast.xp, name) for name in ("exp", "log", "expm1", "log1p")}
    expected = {name: f(fast.xp.abs(a)) for name, f in own.items()}
    expected["matmul"] = fast.xp.matmul(a, a)
    expected["sum"] = fast.xp.sum(a, axis=1, keepdims=True)
    for name, compute in computed.items():
        assert same_bits(fast.to_numpy(compute(fast)), fast.to_numpy(expected[name]))
        assert not same_bits(fast.to_numpy(compute(exactly)), fast.to_numpy(expected[name]))


@pytest.mark.parametrize("rows", [1, 4, 5, 9])
@pytest.mark.parametrize("widths", [(6, 3, 2), (2, 6, 3), (3, 2, 6)])
def test_rows_go_through_in_blocks(monkeypatch, rng, rows, widths):
    """The widest array of a block holds no more than BLOCK numbers."""
    strict = resolve("strict", reproducible=True)
    inputs, hidden, outputs = widths
    net = xnet.TwoLayerNet(inputs, hidden, outputs, 0.5, "softplus", backend=strict)
    x = rng.normal(size=(rows, inputs))
    whole, blocks, through = strict.to_numpy(net.predict(x)), [], strict.through

    def counted(run, block, loss):
        blocks.append(block.shape[0])
        return through(run, block, loss)

    monkeypatch.setattr(strict, "through", counted)
    monkeypatch.setattr(registry, "BLOCK", 4 * 6 + 1)
    assert same_bits(strict.to_numpy(net.predict(x)), whole)
    assert blocks == [4] * (rows // 4) + [rows % 4] * (rows % 4 > 0)


def test_the_first_layer_is_not_asked_for_the_gradient_by_its_input(rng):
    strict = resolve("strict")
    W, b = strict.asarray(rng.normal(size=(3, 2))), strict.asarray(rng.normal(size=2))
    run, x = Run([Affine(3, 2)], [(W, b)]), strict.asarray(rng.normal(size=(4, 3)))
    scores, kept = strict.forward_keeping(run, x)
    by_x, found = strict.backward(run, kept, scores, first=False)
    nothing, same = strict.backward(run, kept, scores, first=True)
    assert by_x.shape == x.shape
    assert nothing is None
    for one, other in zip(found[0], same[0], strict=True):
        assert same_bits(strict.to_numpy(one), strict.to_numpy(other))


# -- what importing costs


def test_import_loads_nothing_that_is_not_needed():
    heavy = ["numpy", "numba", "cupy", "matplotlib", "sklearn", "typer", "rich", "scipy"]
    code = f"import sys, xnet; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(code).stdout.strip() == "[]"


def test_kernels_are_loaded_only_when_one_runs():
    code = (
        "import sys, xnet; print('numba' in sys.modules);"
        "xnet.set_backend('numba'); print('xnet_numba.kernels' in sys.modules);"
        "import numpy as np; xnet.activations.relu(np.ones(2));"
        "print('xnet_numba.kernels' in sys.modules)"
    )
    assert run_python(code).stdout.split() == ["False", "False", "True"]


def test_numba_that_does_not_import_is_not_usable(monkeypatch):
    import xnet_numba

    def broken(name):
        raise ImportError("Numba needs NumPy 2.4 or less")

    monkeypatch.setattr(xnet_numba, "import_module", broken)
    with pytest.raises(BackendError, match=r"Numba does not import \(Numba needs NumPy 2.4"):
        resolve("numba")
    assert resolve("auto").name != "numba"


def test_numba_that_compiles_nothing_is_not_usable():
    code = """
import xnet
print({info.name: info.reason for info in xnet.backends()}["numba"])
print(xnet.resolve("auto").name)
xnet.TwoLayerNet(4, 3, 2, backend="numba")
"""
    ran = run_python(code, NUMBA_DISABLE_JIT="1")
    reason, auto = ran.stdout.splitlines()
    assert "unset NUMBA_DISABLE_JIT" in reason
    assert auto != "numba"
    assert (
        f"BackendError: backend 'numba' cannot be used here: {reason}. Usable: numpy" in ran.stderr
    )


LEFT = """
import os, signal, sys, threading, warnings
import numba, numpy as np, scipy.linalg
from numba.core import event

def state():
    return {
        "environment": dict(os.environ),
        "listeners": {kind: list(those) for kind, those in event._registered.items() if those},
        "numba's settings": {k: v for k, v in vars(numba.config).items() if k.isupper()},
        "NumPy's errors": np.geterr(),
        "warnings": list(warnings.filters),
        "signals": [signal.getsignal(number) for number in signal.valid_signals()],
        "hooks": [sys.excepthook, threading.excepthook, sys.gettrace(), sys.getswitchinterval()],
        "threads": numba.get_num_threads(),
    }

before = state()
import xnet
from xnet.operations import Tanh
x = np.ones((4, 3))
for reproducible in (False, True):
    xnet.resolve("numba", reproducible).run(Tanh(), x)
after = state()
print([name for name in before if before[name] != after[name]])

from xnet_numba.compiling import _announcement
namespace = {}
exec("def f(x): return x + 1", namespace)
namespace["f"].__module__ = None
with event.install_listener("numba:compile", _announcement):  # as while ours is compiled
    print(numba.njit(namespace["f"])(1))
"""


def test_the_numba_backend_leaves_nothing_behind_in_the_process():
    """No listener, no setting; and what others compile meanwhile, it lets be."""
    ran = run_python(LEFT)
    assert ran.stdout.splitlines() == ["[]", "2"], ran.stdout + ran.stderr


def test_a_backend_whose_own_check_raises(monkeypatch):
    def fails():
        raise OSError("no such device")

    monkeypatch.setattr(type(resolve("strict")), "why_unusable", fails)
    assert "no such device" in {info.name: info.reason for info in xnet.backends()}["strict"]
    with pytest.raises(BackendError, match="no such device"):
        resolve("strict")


def test_no_backend_is_no_default():
    with pytest.raises(TypeError, match="backend is a NoneType"):
        xnet.set_backend(None)


def test_numba_without_a_thread_safe_pool():
    """Numba's own pool aborts the process when two threads launch at once: they must not."""
    code = """
import threading, numpy as np, xnet
from xnet.operations import Sigmoid, Softmax
backend, x, done = xnet.resolve("numba"), np.ones((2000, 1000)), []
def work():
    for _ in range(5):
        for operation in (Sigmoid(), Softmax()):
            y = backend.run(operation, x)
            done.append(backend.run_backward(operation, y, x, y)[0].shape)
threads = [threading.Thread(target=work) for _ in range(4)]
[t.start() for t in threads]; [t.join() for t in threads]
print(done.count(x.shape))
"""
    ran = run_python(code, NUMBA_THREADING_LAYER="workqueue", NUMBA_NUM_THREADS="2")
    assert ran.stdout.strip() == "40", ran.stderr


def test_environment_selects_in_a_new_process():
    code = "import xnet; print(xnet.get_backend().label)"
    assert run_python(code, XNET_BACKEND="numba").stdout.strip() == "numba"
    failed = run_python(code, XNET_BACKEND="nuba")
    assert failed.returncode != 0
    assert "did you mean 'numba'?" in failed.stderr


# -- a backend from elsewhere


def test_third_party_package_works_with_no_change_to_xnet(tmp_path):
    subprocess.run(
        [
            *[sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"],
            *["--no-build-isolation", "--disable-pip-version-check", "--root-user-action=ignore"],
            *["--target", str(tmp_path), str(PACKAGES / "xnet_tiny")],
        ],
        check=True,
    )
    code = """
import numpy as np, xnet
assert [b for b in xnet.backends() if b.name == "tiny" and b.usable]
net = xnet.TwoLayerNet(4, 6, 3, 0.5, activation="relu", backend="tiny")
x = np.linspace(-1, 1, 20).reshape(5, 4); t = np.array([0, 1, 2, 0, 1])
import xnet_tiny
net.predict(x)
assert net.backend.label == "tiny" and xnet_tiny.TinyBackend.pointwise_runs == 1
with xnet.use_backend("tiny"):
    xnet.activations.relu(x)
assert xnet_tiny.TinyBackend.pointwise_runs == 2
history = xnet.train(net, x, t, epochs=200, batch_size=5, progress=False)
assert history.loss[-1] < history.loss[0]
assert max(xnet.gradient_check(net, x, t).values()) < 1e-6
print("works")
"""
    ran = run_python(code, PYTHONPATH=str(tmp_path))
    assert ran.stdout.strip() == "works", ran.stderr


def test_a_new_backend_fits_in_fifty_lines():
    for source in (PACKAGES / "xnet_strict.py", PACKAGES / "xnet_tiny" / "xnet_tiny.py"):
        assert len(source.read_text().splitlines()) < 50


def imports_of(source):
    """The modules that a file imports, wherever in it, but for what only a type checker sees."""
    tree = ast.parse(source.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_the_library_names_no_array_library():
    """Nothing in xnet/ but host code (files, data, messages, others' networks) imports one."""
    host_code = {"datasets.py", "weights.py", "training.py", "samples.py", "sklearn.py"}
    host_code |= {"parquet.py", "rows.py"}
    host_code |= {"onnx.py", "foreign.py", "spellings.py"}
    host_code |= {"checkpoints.py", "ranks.py", "distributed.py"}  # messages are the host's
    host_code |= {"scaling.py", "labels.py", "tables.py", "archives.py", "folders.py", "idx.py"}
    # Random numbers, to_numpy, what is not ordinary among NumPy's arrays, and its warnings.
    allowed = {(f"{name}.py", "numpy") for name in ("random", "backend", "arrays", "reproducible")}
    found = {
        (source.name, name.partition(".")[0])
        for source in Path(inspect.getfile(xnet)).parent.glob("*.py")
        for name in imports_of(source)
    }
    libraries = {"numpy", "numba", "cupy", "scipy", "array_api_compat"}
    uses = {(file, name) for file, name in found if name in libraries and file not in host_code}
    assert uses == allowed


def used_of_a_namespace(source):
    """What a file takes of `xp`, by whatever name that is reached."""
    for node in ast.walk(ast.parse(source.read_text())):
        if isinstance(node, ast.Attribute):
            owner = getattr(node.value, "attr", getattr(node.value, "id", None))
            if owner == "xp":
                yield node.attr


def test_the_page_names_what_is_used_of_a_namespace():
    folder = Path(inspect.getfile(xnet)).parent
    used = {name for source in folder.glob("*.py") for name in used_of_a_namespace(source)}
    used |= {"float32", *exact.ELEMENTARY}  # by getattr
    page = (folder.parent / "docs" / "backends.md").read_text()
    _, _, after = page.partition("Of the namespace xnet uses")
    named = after.split("```")[1].removeprefix("text").split()
    assert named == sorted(used)


FLOORS = [
    ["tools", "sklearn"],
    ["plotting"],
    ["testing"],
    ["training", "datasets", "distributed"],
    ["checkpoints", "schedules"],
    ["progress", "samples", "parquet", "scaling"],
    ["onnx"],
    ["weights"],
    ["foreign"],
    ["spellings", "tables", "archives", "folders", "idx"],
    ["labels"],
    ["network"],
    ["plan", "gradient_check"],
    ["optimizers", "perceptron", "gradient", "activations"],
    ["layers", "measures", "sharded"],
    ["losses", "partials"],
    ["arguments", "rows"],
    ["clipping"],
    ["backend", "reproducible"],
    ["arithmetic", "random"],
    ["perturbation", "threads", "exact", "bounds", "arrays", "ranks"],
    [
        "operations",
        "formulas",
        "errors",
        "dtypes",
        "files",
        "frames",
        "schema",
        "notebook",
        "sentinel",
    ],
]
"""Each module imports from lower floors alone; exact and bounds from formulas."""


UPWARDS = {("weights", "tools")}
"""When it meets the notes' pickle, and not before."""


def test_imports_point_one_way():
    floors = {name: floor for floor, names in enumerate(FLOORS) for name in names}
    folder = Path(inspect.getfile(xnet)).parent
    sources = [path for path in folder.rglob("*.py") if path != folder / "__init__.py"]
    modules = [path.relative_to(folder).parts[0].removesuffix(".py") for path in sources]
    assert set(modules) == set(floors)
    for module, source in zip(modules, sources, strict=True):
        for imported in imports_of(source):
            package, _, name = imported.partition(".")
            if package == "xnet" and name:  # not the package itself, which is lazy
                below = name.partition(".")[0]
                downwards = floors[below] > floors[module] or below == module  # of a package
                assert downwards or (module, below) in UPWARDS, f"{module} imports {below}"


def test_the_ground_floor_imports_nothing_of_the_library():
    for name in FLOORS[-1]:
        source = Path(inspect.getfile(xnet)).parent / f"{name}.py"
        modules = {imported.partition(".")[0] for imported in imports_of(source)}
        assert modules <= sys.stdlib_module_names


# -- CuPy without a GPU: the same backend over a stand-in that knows devices


@pytest.fixture
def fake_cupy(monkeypatch):
    """xnet_cupy over a stand-in for CuPy with two devices."""
    return require_host_cuda(monkeypatch)


def test_cupy_chooses_its_device(fake_cupy):
    assert resolve("cupy").label == "cupy:0"
    assert resolve("cupy:1").label == "cupy:1"
    assert resolve("cupy") is resolve("cupy:0")
    with pytest.raises(BackendError, match=r"'cupy:2': cupy has 2 device\(s\)"):
        resolve("cupy:2")


def test_cupy_owns_what_is_on_its_device(fake_cupy):
    first, second = resolve("cupy:0"), resolve("cupy:1")
    x = second.asarray([1.0, -2.0])
    assert x.device.id == 1
    assert second.owns(x)
    assert not first.owns(x)
    assert not second.owns(np.ones(1))
    assert backend_of(x=x) is second
    with pytest.raises(BackendError, match="x is on cupy:1, W is on cupy:0"):
        backend_of(x=x, W=first.asarray([1.0]))


@pytest.mark.parametrize(
    "name", [n for n, member in vars(Backend).items() if inspect.isfunction(member) and n[0] != "_"]
)
def test_cupy_runs_every_operation_on_its_device(fake_cupy, monkeypatch, name):
    """A kernel launched for a device that is not current must make it so."""
    import xnet_cupy

    if name in ("owns", "synchronize", "running"):
        pytest.skip("computes nothing")
    seen = []
    wrapped = vars(xnet_cupy.CupyBackend)[name]  # not inherited: its own
    if getattr(wrapped, "__wrapped__", None) is not None:
        assert wrapped.__wrapped__.__name__ == name
        monkeypatch.setattr(
            xnet_cupy.CupyBackend,
            name,
            xnet_cupy._on_device(lambda self, *_: seen.append(cuda_on_host.Device.current)),
        )
        getattr(resolve("cupy:1"), name)(None)
        assert seen == [1]
    else:
        assert name == "to_numpy"
    assert cuda_on_host.Device.current == 0


def test_cupy_network_trains_on_its_device(fake_cupy):
    x, t = np.linspace(-1, 1, 20).reshape(5, 4), np.array([0, 1, 2, 0, 1])
    net = xnet.TwoLayerNet(4, 6, 3, 0.5, backend="cupy:1")
    reference = xnet.TwoLayerNet(4, 6, 3, 0.5, backend="numpy")
    for network in (net, reference):
        xnet.train(network, x, t, epochs=3, batch_size=2, progress=False)
    for name, array in net.params.items():
        assert array.device.id == 1
        # In fast mode numpy's own sigmoid is a unit in the last place from the generic one.
        np.testing.assert_allclose(np.asarray(array), reference.params[name], rtol=1e-13)
    net.backend.synchronize()
    assert cuda_on_host.Device.synchronized == 1


def test_cupy_reasons(fake_cupy, monkeypatch):
    import xnet_cupy

    cls = xnet_cupy.CupyBackend
    assert cls.why_unusable() is None
    monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", lambda: 0)
    assert cls.why_unusable() == "no CUDA device found"

    def no_driver():
        raise RuntimeError("cudaErrorInsufficientDriver")

    monkeypatch.setattr(fake_cupy.cuda.runtime, "getDeviceCount", no_driver)
    assert "no working CUDA driver found (cudaErrorInsufficientDriver" in cls.why_unusable()

    def broken(name):
        raise ImportError("libcudart.so")

    monkeypatch.setattr(xnet_cupy, "import_module", broken)
    assert "CuPy does not import (libcudart.so)" in cls.why_unusable()
    monkeypatch.setattr(xnet_cupy, "find_spec", lambda name: None)
    assert 'pip install "xnet-nn[cuda12]"' in cls.why_unusable()


def test_cupy_public_functions_run_on_the_arrays_device(fake_cupy):
    """Whatever device is current, and whatever backend: the arrays decide."""
    here = resolve("cupy:1")
    x = here.asarray(np.linspace(-1, 1, 6).reshape(2, 3))
    t = here.asarray([0, 2])
    made = [xnet.activations.step(x), xnet.activations.softmax(x)]
    loss = xnet.layers.SoftmaxWithLoss()
    loss.forward(x, t)
    made += [loss.backward(), xnet.numerical_gradient(lambda x: float((x * x).sum()), x)]
    relu = xnet.layers.ReLU()
    relu.forward(x)
    made.append(relu.backward(x))
    params = {"W": x}
    xnet.optimizers.Adam().update(params, {"W": x})
    made.append(params["W"])
    assert [array.device.id for array in made] == [1] * len(made)
