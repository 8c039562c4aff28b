"""The exceptions and warnings a caller may want to catch.

A wrong argument is a plain ValueError or TypeError.
"""

from collections.abc import Generator
from contextlib import contextmanager


class XnetError(Exception):
    """Base of the errors below."""


class BackendError(XnetError, ValueError):
    """No such backend, a backend that cannot be used here, or arrays that are not its own."""


class DatasetError(XnetError):
    """A dataset that cannot be found, read, downloaded or verified."""


class WeightsError(XnetError):
    """A file of weights that cannot be read safely, or cannot be written."""


class CheckpointError(XnetError):
    """A run that cannot be gone on with: other data or settings, or no checkpoint that is whole."""


class CheckpointWarning(UserWarning):
    """A checkpoint that is damaged, in whose place the one before it is taken."""


class NonFiniteWarning(UserWarning):
    """A file of weights in which some are NaN or infinite."""


class RoundingWarning(UserWarning):
    """A numerical derivative in which rounding leaves little of the slope."""


class KinkWarning(UserWarning):
    """A numerical gradient across a kink, where it and the derivative need not agree."""


class NaiveGradientWarning(UserWarning):
    """A network's numerical gradient that has to evaluate every loss from the beginning."""


@contextmanager
def optional(what: str, package: str, extra: str = "datasets") -> Generator[None, None, None]:
    """Say how to install the package whose import fails inside."""
    try:
        yield
    except ImportError as error:
        raise DatasetError(
            f'{what} needs {package}: pip install "xnet-nn[{extra}]" ({error})'
        ) from error
