"""The exceptions a caller may want to catch.

A wrong argument is a plain ValueError or TypeError.
"""


class XnetError(Exception):
    """Base of the errors below."""


class BackendError(XnetError, ValueError):
    """No such backend, a backend that cannot be used here, or arrays that are not its own."""


class DatasetError(XnetError):
    """A dataset that cannot be found, read, downloaded or verified."""


class WeightsError(XnetError):
    """A file of weights that cannot be read safely, or cannot be written."""
