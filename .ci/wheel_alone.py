"""Run where the wheel is installed and nothing else is: it imports, trains, and says what lacks."""

import subprocess
import sys
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import xnet
from xnet.tools import pictures

for extra in ("numba", "cupy", "sklearn", "pooch", "PIL", "matplotlib"):
    assert find_spec(extra) is None, f"{extra} is installed: this environment is not bare"

assert "__global__" in files("xnet_cupy").joinpath("kernels.cu").read_text()

rng = np.random.default_rng(0)
x = rng.standard_normal((200, 4))
t = (x[:, 0] > x[:, 1]).astype(int)
network = xnet.TwoLayerNet(4, 8, 2, 0.5, activation="relu")
history = xnet.train(network, x, t, epochs=50, batch_size=20)
assert history.train_accuracy[-1] > 0.95, history.train_accuracy[-1]

for name, remedy in {
    "numba": 'pip install "xnet-nn[numba]"',
    "cupy": 'pip install "xnet-nn[cuda12]"',
}.items():
    try:
        xnet.set_backend(name)
    except xnet.BackendError as error:
        assert remedy in str(error), error
    else:
        raise AssertionError(f"{name} was accepted")
assert xnet.resolve("auto").name == "numpy"

try:
    pictures.load_image("x.png")
except xnet.DatasetError as error:
    assert 'pip install "xnet-nn[datasets]"' in str(error), error
else:
    raise AssertionError("a picture was read without its library")

for command in ("train --iterations 500", "demo"):
    xnet_command = Path(sys.executable).parent / "xnet"
    done = subprocess.run([xnet_command, *command.split()], capture_output=True, text=True)
    assert "test accuracy 0.9" in done.stdout, done
    assert (done.returncode, done.stderr) == (0, ""), done
print("the wheel works alone")
