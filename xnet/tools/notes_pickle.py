"""The notes' pickled weights, read without running anything of theirs.

A pickle is a program: what it names is imported and called. The unpickler here admits what NumPy's
arrays are pickled with, in stand-ins of its own, and nothing else.
"""

import io
import pickle
import textwrap
from typing import Any, ClassVar, cast

import numpy as np
from numpy.typing import NDArray

from xnet.errors import WeightsError
from xnet.operations import Affine, Loss, Operation, Sigmoid, SoftmaxWithLoss


def read(content: bytes) -> tuple[list[Operation], Loss, dict[str, NDArray[Any]]]:
    """The network in a pickled dict of W1, b1, W2, b2, ..., as the notes' sample_weight.pkl.

    Parameters
    ----------
    content
        The bytes of the file.

    Returns
    -------
    tuple
        Affine operations with sigmoids between, softmax at the end, and the arrays by name.

    Raises
    ------
    WeightsError
        Not a whole pickle, not of such a dict, or one that names anything but NumPy arrays: it is
        refused by name, and nothing of it runs.
    """
    try:
        found: Any = _ArraysOnly(io.BytesIO(content)).load()
    except WeightsError:
        raise
    except Exception as error:
        # What a damaged pickle raises depends on where it breaks: EOFError, IndexError, ...
        raise WeightsError(
            f"neither a safetensors file nor a whole pickle of arrays: {error!r}"
        ) from error
    if not isinstance(found, dict):
        raise WeightsError(f"a pickled {type(found).__name__}, expected a dict of arrays")
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in cast("dict[Any, Any]", found).items():
        if not (isinstance(name, str) and isinstance(value, _Array) and value.array is not None):
            raise WeightsError(
                f"a pickled dict of {type(name).__name__} to {type(value).__name__}, "
                "expected the arrays W1, b1, W2, b2, ..."
            )
        arrays[name] = value.array
    depth = len(arrays) // 2
    names = [f"{kind}{number}" for number in range(1, depth + 1) for kind in "Wb"]
    if depth == 0 or set(arrays) != set(names):
        raise WeightsError(
            f"a pickle of {textwrap.shorten(str(list(arrays)), 80)}, expected W1, b1, W2, b2, ..."
        )
    operations: list[Operation] = []
    for number in range(1, depth + 1):
        shape = arrays[f"W{number}"].shape
        if len(shape) != 2:
            raise WeightsError(f"W{number} has shape {shape}, expected (D, M)")
        operations += [Sigmoid()] * (number > 1)
        operations.append(Affine(*shape))
    return operations, SoftmaxWithLoss(), arrays


class _Dtype:
    """Stands for numpy.dtype in a pickle: NumPy's own takes any state and believes it."""

    def __init__(self, code: str, *_: Any) -> None:
        if code not in ("f4", "f8"):
            raise WeightsError(f"a pickled array of dtype {code!r}, expected f4 or f8")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands for numpy.ndarray in a pickle, and makes the array only of what it has checked."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.fill(data, dtype, shape, "F" if by_column else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        """Take the array from its bytes; they must be as many as the shape needs."""
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes | bytearray | memoryview)):
            raise WeightsError("a pickle that does not hold plain arrays of numbers")
        values = np.frombuffer(cast(bytes, data), dtype.dtype).reshape(shape, order=order)
        self.array = values.astype(dtype.dtype.newbyteorder("="), order="C")
        return self


_NDARRAY = object()
"""Stands for the class numpy.ndarray, which is passed along and never called."""


def _reconstruct(kind: object, shape: Any, *_: Any) -> _Array:
    """Stands for NumPy's function of that name: the empty array that a state then fills."""
    if kind is not _NDARRAY or shape != (0,):
        raise WeightsError("a pickle that does not hold plain NumPy arrays")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any, *_: Any) -> _Array:
    """Stands for NumPy's function of that name, which protocol 5 uses."""
    return _Array().fill(data, dtype, shape, order)


def _latin1(text: str, encoding: str) -> bytes:
    """Stands for _codecs.encode, which protocols 0 to 2 use to write bytes."""
    if encoding != "latin1":
        raise WeightsError(f"a pickle that encodes text as {encoding}, expected latin1")
    return text.encode("latin1")


# The pure-Python unpickler: the compiled one lets ten bytes of a pickle allocate gigabytes.
class _ArraysOnly(pickle._Unpickler):  # pyright: ignore
    """An unpickler that admits NumPy arrays and nothing else, none of it NumPy's own code."""

    stack: list[Any]

    ADMITTED: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": _NDARRAY,
        "numpy.dtype": _Dtype,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.core.numeric._frombuffer": _from_buffer,
        "numpy._core.numeric._frombuffer": _from_buffer,
        "_codecs.encode": _latin1,
    }

    def load_build(self) -> None:
        """Set the state of an array or a dtype; of anything else a pickle could alter it."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise WeightsError("a pickle that sets the state of what is no NumPy array: refused")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = {
        **pickle._Unpickler.dispatch,  # pyright: ignore
        pickle.BUILD[0]: load_build,
    }

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name; anything else is refused before it is imported."""
        try:
            return self.ADMITTED[f"{module}.{name}"]
        except KeyError:
            raise WeightsError(
                f"a pickle that names {module}.{name}, which is no NumPy array: "
                "refused, nothing of it was run"
            ) from None
