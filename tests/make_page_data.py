"""Make docs/reproducible/page_data.js anew: python tests/make_page_data.py.

It holds what the page beside it trains on, the digits, and what it is compared with: hashes of the
weights after every step, as xnet computes them in reproducible mode on NumPy.
"""

import hashlib
import json
from pathlib import Path

import numpy as np

import xnet
from xnet import datasets, weights
from xnet.operations import Affine, ReLU
from xnet.optimizers import OPTIMIZERS, SGD
from xnet.training import train

PATH = Path(__file__).parents[1] / "docs" / "reproducible" / "page_data.js"

SETTINGS = {"activation": "ReLU", "hidden": 50, "epochs": 20, "seed": 0}
"""What the published runs have in common, as the page's form has it at first."""

RUNS = [(name, dtype) for name in ("SGD", "Adam") for dtype in ("float64", "float32")]

KEPT = 16
"""Digits of each step's hash: 64 bits tell two steps apart. The last one's is whole."""


class Hashes:
    """A progress that shows nothing, and takes the hash of the weights after every step."""

    def __init__(self, network):
        self.network, self.taken = network, [weights.sha256(network)]

    def start(self, total):
        pass

    def advance(self, history):
        self.taken.append(weights.sha256(self.network))

    def stop(self):
        pass


def trained(name, dtype, epochs):
    """The network of ``xnet train --reproducible``, and its hashes, the initial one first."""
    (x, t), _ = datasets.load_digits()
    layers = [Affine(64, SETTINGS["hidden"], "he"), ReLU(), Affine(SETTINGS["hidden"], 10, "he")]
    optimizer = SGD(0.1) if name == "SGD" else OPTIMIZERS[name.lower()]()
    seed = SETTINGS["seed"]
    with xnet.use_backend("numpy", reproducible=True):
        network = xnet.Network(layers, seed=seed, dtype=dtype)
        hashes = Hashes(network)
        train(network, x, t, optimizer=optimizer, epochs=epochs, seed=seed, progress=hashes)
    return network, hashes.taken


def run(name, dtype):
    """One published run."""
    _, hashes = trained(name, dtype, SETTINGS["epochs"])
    steps = " ".join(digest[:KEPT] for digest in hashes)
    return {"optimizer": name, "dtype": dtype, **SETTINGS, "sha256": hashes[-1], "steps": steps}


def digits():
    """A line for each digit: its label, and its 64 pixels as letters, from a for 0 to q for 16."""
    parts = datasets.load_digits(normalize=False)
    x, t = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    letters = (x.astype(np.uint8) + ord("a")).view(np.uint8)
    return [f"{label}{row.tobytes().decode()}" for label, row in zip(t, letters, strict=True)]


def content(runs):
    """The file's text."""
    lines = digits()
    training = len(datasets.load_digits()[0][1])
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    facts = json.dumps({"training": training, "sha256": digest, "runs": runs}, indent=1)
    return (
        "// Made by tests/make_page_data.py: the digits, a line each, and hashes of trainings.\n"
        "// Optical Recognition of Handwritten Digits by E. Alpaydin and C. Kaynak (1998), UCI\n"
        "// Machine Learning Repository, https://doi.org/10.24432/C50P49, CC BY 4.0.\n"
        '"use strict";\n'
        f"const PAGE_DATA = {facts};\n"
        "PAGE_DATA.digits = `\n" + "\n".join(lines) + "`.trim().split(/\\n/);\n"
        "if (typeof module !== 'undefined') module.exports = PAGE_DATA;\n"
    )


if __name__ == "__main__":
    PATH.write_text(content([run(*each) for each in RUNS]))
