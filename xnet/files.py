"""Files that are there whole or not at all. Ground floor: imports nothing of ours."""

import contextlib
import os
import secrets
import time
from collections.abc import Generator
from pathlib import Path
from typing import BinaryIO

_PREFIX = ".xnet-"
_STALE = 3600
"""Seconds after which a temporary file that nobody has written to is that of a killed run."""


@contextlib.contextmanager
def replaced(path: str | os.PathLike[str]) -> Generator[BinaryIO]:
    """A binary file that takes the place of `path` when the block ends without an error.

    It is written under a temporary name in the same folder and renamed, so that a killed run leaves
    the old file or the new one, never half of one. What such runs left in that folder is removed.
    Where `path` is a symbolic link, the file that it names is replaced, and the link stays.

    Raises
    ------
    OSError
        The file cannot be written.
    """
    target = Path(os.path.realpath(path))
    _remove_stale(target.parent)
    temporary = target.parent / f"{_PREFIX}{secrets.token_hex(8)}"
    try:
        with open(temporary, "xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _remove_stale(folder: Path) -> None:
    """Remove the temporary files that killed runs left; one that cannot be removed stays."""
    for path in folder.glob(f"{_PREFIX}{'[0-9a-f]' * 16}"):
        with contextlib.suppress(OSError):
            if time.time() - path.lstat().st_mtime > _STALE:
                path.unlink()
