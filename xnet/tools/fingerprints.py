"""What a machine computes in reproducible mode, as hashes in a file that others are compared with.

Two installations that should give the same bits need not meet: one saves the hashes of all that
`xnet.testing.parity` tries, as NumPy computes it there, and the other finds which of them differ on
its own, and which first. What is tried on are random numbers of `xnet.random`, the same everywhere;
their hashes are kept too, for where they are not.
"""

import hashlib
import json
import os
import platform
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import numpy as np

import xnet
from xnet.backend import Backend, resolve
from xnet.errors import XnetError
from xnet.files import replaced
from xnet.testing import parity
from xnet.testing.contracts import CONTRACTS

Fingerprints: TypeAlias = dict[str, list[str]]
"""By what was computed: SHA-256 of the numbers that went in, and of those that came out."""

FORMAT = 1

PUBLISHED = Path(__file__).with_suffix(".json")
"""Those of this version, made by ``xnet parity --backend numpy --save``: the same everywhere."""


def of_arrays(arrays: Sequence[parity.Host]) -> str:
    """SHA-256 of dtypes, shapes and numbers, the bytes of each number from the lowest up.

    NaN is NaN, with whatever bits it was made: see `parity.same_bits`.
    """
    digest = hashlib.sha256()
    for array in arrays:
        one = np.array(array)
        if one.dtype.kind == "f":
            one[np.isnan(one)] = np.nan
        digest.update(f"{one.dtype.name} {one.shape} ".encode())
        digest.update(one.astype(one.dtype.newbyteorder("<"), copy=False).tobytes())
    return digest.hexdigest()


def taken(
    dtypes: Sequence[str],
    steps: int,
    seed: int,
    backend: str | Backend = "numpy",
    trials: Sequence[parity.Trial] | None = None,
    show: Callable[[str], object] = lambda name: None,
) -> Fingerprints:
    """What a backend computes in reproducible mode of everything that is tried, and of a training.

    Parameters
    ----------
    dtypes, steps, seed
        What it is tried in; the training's steps; of the random numbers.
    backend
        Whose results they are.
    trials
        None for `parity.trials`, less the contracts of `Backend`, which are no results.
    show
        Is called with the name of each.
    """
    here, found = resolve(backend, reproducible=True), Fingerprints()
    if trials is None:
        trials = [trial for trial in parity.trials() if trial.name not in CONTRACTS]
    for dtype in dtypes:
        for trial in trials:
            for kind in trial.numbers if dtype in trial.dtypes else ():
                show(name := f"{trial.name}, {kind} numbers, {dtype}")
                inputs = results = ""
                try:
                    draw = parity.numbers(kind, dtype, seed)
                    arrays = [array.astype(dtype) for array in trial.arrays(draw)]
                    inputs = of_arrays(arrays)
                    with np.errstate(all="ignore"):
                        results = of_arrays(parity.results(trial, here, arrays))
                except Exception as error:  # of anybody's operation: the others tell more
                    results = f"error: {parity.described(error)}"
                found[name] = [inputs, results]
        show(name := f"training, {steps} steps, {dtype}")
        try:
            found[name] = ["", parity.training_hash(here, dtype, steps)]
        except Exception as error:
            found[name] = ["", f"error: {parity.described(error)}"]
    return found


def save(path: str | os.PathLike[str], found: Fingerprints, steps: int, seed: int) -> None:
    """Write them, and what they are of, as one JSON file; it is there whole or not at all."""
    facts = {"xnet": xnet.__version__, "numpy": np.__version__, "machine": platform.machine()}
    settings = {"steps": steps, "seed": seed}
    content = {"xnet parity": FORMAT, **facts, **settings, "sha256": found}
    with replaced(path) as file:
        file.write(json.dumps(content, indent=1).encode() + b"\n")


@dataclass(frozen=True)
class Saved:
    """Fingerprints from a file.

    Attributes
    ----------
    where
        Which versions on which processor they are of.
    steps, seed
        As in `taken`.
    found
        The fingerprints.
    """

    where: str
    steps: int
    seed: int
    found: Fingerprints


def load(path: str | os.PathLike[str]) -> Saved:
    """What `save` wrote.

    Raises
    ------
    XnetError
        It cannot be read, or is no such file.
    """
    try:
        content: Any = json.loads(Path(path).read_bytes())
    except OSError as error:
        raise XnetError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise XnetError(f"{path} is no file of `xnet parity --save`: {error!s:.200}") from error
    given = cast("dict[str, Any]", content if isinstance(content, dict) else {})
    if given.get("xnet parity") != FORMAT:
        raise XnetError(f"{path} is no file of `xnet parity --save`, of format {FORMAT}")
    found: Any = given.get("sha256")
    steps, seed = given.get("steps"), given.get("seed")
    if type(steps) is not int or type(seed) is not int or not _are_fingerprints(found):
        raise XnetError(f"{path} is a damaged file of `xnet parity --save`")
    where = "xnet {xnet}, NumPy {numpy}, {machine}".format_map(
        {name: given.get(name) for name in ("xnet", "numpy", "machine")}
    )
    return Saved(where, steps, seed, found)


def _are_fingerprints(found: Any) -> bool:
    return isinstance(found, dict) and all(
        isinstance(pair, list)
        and len(cast("list[Any]", pair)) == 2
        and all(isinstance(digest, str) for digest in cast("list[Any]", pair))
        for pair in cast("dict[str, Any]", found).values()
    )


@dataclass(frozen=True)
class Difference:
    """One of two that should be equal and are not.

    Attributes
    ----------
    name
        What was computed.
    inputs
        Whether the very numbers that it was computed of differ.
    here, there
        The hashes of those, or of the results.
    """

    name: str
    inputs: bool
    here: str
    there: str

    def __str__(self) -> str:
        what = "the numbers that go in" if self.inputs else "what comes out"
        return f"{self.name}: {what}, {self.here:.40} here, {self.there:.40} there"


def differences(here: Fingerprints, there: Fingerprints) -> list[Difference]:
    """Of all that both have, in the order in which they were taken here, the simplest first."""
    found: list[Difference] = []
    for name, one in here.items():
        for k, (a, b) in enumerate(zip(one, there.get(name, one), strict=True)):
            if a != b:
                found.append(Difference(name, not k, a, b))
                break
    return found
