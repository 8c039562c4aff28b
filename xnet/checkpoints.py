"""Checkpoints of a training run: files that hold all that its next step depends on.

Each is a safetensors file whose name says how many steps were taken and the SHA-256 of its bytes,
so that one which was cut short or altered is known as such. It is written under a temporary name
and renamed; the last two are kept.
"""

import hashlib
import json
import os
import re
import reprlib
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
from numpy.typing import NDArray

from xnet.errors import CheckpointError, CheckpointWarning
from xnet.files import replaced
from xnet.samples import Samples

KEPT = 2
"""How many checkpoints are kept."""

FORMAT = 1

_NAME = re.compile(r"step-(\d{10,})-([0-9a-f]{64})\.safetensors")
_METADATA_KEY = "xnet checkpoint"

Arrays = dict[str, NDArray[Any]]


@dataclass(frozen=True)
class Checkpoint:
    """What a file holds, and its bytes: arrays by their names, and facts as JSON has them."""

    content: bytes
    arrays: Arrays
    facts: dict[str, Any]

    @property
    def seed(self) -> int:
        """The run's."""
        return self.facts["settings"]["seed"]

    def check_settings(self, given: dict[str, Any]) -> None:
        """Refuse settings that are not those of the run that wrote it: see `check_same`."""
        check_same(self.facts["settings"], given)


class Folder:
    """The folder of one run's checkpoints; it is made where it is missing.

    Raises
    ------
    CheckpointError
        It cannot be made or written to.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise CheckpointError(
                f"checkpoint {self.path} is no folder that can be written to: {error.strerror}"
            ) from error

    def files(self) -> list[Path]:
        """Its checkpoints, the last one first."""
        found = [path for path in self.path.iterdir() if _NAME.fullmatch(path.name)]
        return sorted(found, key=_steps, reverse=True)

    def write(self, steps: int, arrays: Arrays, facts: dict[str, Any]) -> Path:
        """Write a checkpoint, then remove all but the last two.

        Raises
        ------
        CheckpointError
            It cannot be written.
        """
        from safetensors.numpy import save

        metadata = {_METADATA_KEY: json.dumps({"format": FORMAT} | facts)}
        content = save({k: np.ascontiguousarray(v) for k, v in arrays.items()}, metadata=metadata)
        path = self.path / f"step-{steps:010}-{hashlib.sha256(content).hexdigest()}.safetensors"
        try:
            with replaced(path) as file:
                file.write(content)
            for old in self.files():
                if _steps(old) == steps and old != path:  # of the same step, said otherwise
                    old.unlink(missing_ok=True)
            for old in self.files()[KEPT:]:
                old.unlink(missing_ok=True)
        except OSError as error:
            raise CheckpointError(f"{path} cannot be written: {error.strerror}") from error
        return path

    def last(self, resume: bool) -> Checkpoint | None:
        """The last checkpoint that is whole; None if there is none at all, as `resume` may be.

        Raises
        ------
        CheckpointError
            There are checkpoints, and none of them is whole or can be read, or `resume` is False:
            another run's are not overwritten.

        Warns
        -----
        CheckpointWarning
            One is damaged, and the one before it is taken.
        """
        files = self.files()
        if files and not resume:
            raise CheckpointError(
                f"checkpoint {self.path} holds {len(files)} of a run that got to step "
                f"{_steps(files[0])}: resume goes on with it; for another run take another folder"
            )
        for path in files:
            try:
                found = _read(path)
            except (OSError, ValueError, CheckpointError) as error:
                warnings.warn(
                    f"checkpoint {path} is damaged, and left out: {error}",
                    CheckpointWarning,
                    stacklevel=2,
                )
                continue
            if found.facts["format"] != FORMAT:
                raise CheckpointError(
                    f"{path}: format {found.facts['format']}, this xnet reads format {FORMAT}"
                )
            return found
        if files:
            raise CheckpointError(f"checkpoint {self.path}: no file in it is whole")
        return None


def _steps(path: Path) -> int:
    """How many steps its name says."""
    return int(path.name.split("-")[1])


def _read(path: Path) -> Checkpoint:
    content = path.read_bytes()
    if not path.name.endswith(f"-{hashlib.sha256(content).hexdigest()}.safetensors"):
        raise CheckpointError("its bytes are not those that its name says")
    return parsed(content)


def parsed(content: bytes) -> Checkpoint:
    """The checkpoint of which these are a file's bytes."""
    from safetensors.numpy import load

    # What has the right hash was written here; a file that somebody has made may still be none.
    header: Any = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    facts: Any = json.loads(header["__metadata__"][_METADATA_KEY])
    return Checkpoint(content, load(content), facts)


def check_same(found: dict[str, Any], given: dict[str, Any]) -> None:
    """Refuse settings that are not those of the run that is gone on with, by their names.

    Raises
    ------
    CheckpointError
        A setting differs.
    """
    for name, value in json.loads(json.dumps(given)).items():
        for place, was, now in _differences(name, found.get(name), value):
            raise CheckpointError(
                f"{place} was {_short(was)} in the run that is to go on, now it is {_short(now)}; "
                "give what it was, or take another folder for another run"
            )


def _differences(place: str, was: Any, now: Any) -> Iterator[tuple[str, Any, Any]]:
    """Where two values differ that JSON has: the places, and what stands there."""
    if isinstance(was, dict) and isinstance(now, dict) and was.keys() == now.keys():
        for key in cast("dict[str, Any]", was):
            yield from _differences(f"{place}: {key}", was[key], now[key])
    elif isinstance(was, list) and isinstance(now, list) and len(was) == len(now):  # pyright: ignore
        for k, pair in enumerate(zip(was, now, strict=True)):  # pyright: ignore
            yield from _differences(f"{place}[{k}]", *pair)
    elif was != now:
        yield place, was, now


def _short(value: Any) -> str:
    shown = reprlib.Repr()
    shown.maxstring = shown.maxother = 120
    return shown.repr(value)


ROWS = 256
"""Samples that a fingerprint is made of, at equal distances."""


def fingerprint(samples: Samples) -> str:
    """SHA-256 of the data's shapes, dtypes, and of some samples with their labels.

    Data of which another sample was changed have the same: to read all would take longer than many
    a step, and where they are larger than memory longer than many an epoch.
    """
    digest = hashlib.sha256()
    last = samples.samples - 1
    chosen = np.array(sorted({round(k * last / (ROWS - 1)) for k in range(ROWS)}), np.int64)
    digest.update(str(samples.samples).encode())
    with samples.backend.running():
        found = [samples.backend.to_numpy(array) for array in samples.take(chosen)]
        whole = [samples.ranks.joined(host) for host in found]
        for host in [*whole, *([] if samples.weight is None else [samples.weight])]:
            digest.update(f"{host.dtype.name} {host.shape[1:]}".encode())
            digest.update(np.ascontiguousarray(host, host.dtype.newbyteorder("<")).tobytes())
    return digest.hexdigest()
