"""The notes' pickled weights, read without running anything of theirs.

A pickle is a program: what it names is imported and called. The unpickler here admits what NumPy's
arrays are pickled with, in stand-ins of its own, and nothing else. Time and memory are bounded by
the file's size: what a pickle can use again and again is never copied, hashed or written out.
"""

import io
import pickle
import pickletools
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
        found: Any = _ArraysOnly(content).load()
    except WeightsError:
        raise
    except Exception as error:
        # What a damaged pickle raises depends on where it breaks: EOFError, IndexError, ...
        raise WeightsError(
            f"neither a safetensors file nor a whole pickle of arrays: {error!r:.200}"
        ) from error
    if not isinstance(found, dict):
        raise WeightsError(f"a pickled {type(found).__name__}, expected a dict of arrays")
    arrays: dict[str, NDArray[Any]] = {}
    for name, value in cast("dict[str, Any]", found).items():
        if not isinstance(value, _Array) or value.array is None:
            raise WeightsError(
                f"a pickled dict with a {type(value).__name__}, "
                "expected the arrays W1, b1, W2, b2, ..."
            )
        arrays[name] = value.array
    size = sum(array.nbytes for array in arrays.values())
    if size > len(content):
        raise WeightsError(f"arrays of {size} bytes in a pickle of {len(content)}: refused")
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
    native = {name: a.astype(a.dtype.newbyteorder("="), order="C") for name, a in arrays.items()}
    return operations, SoftmaxWithLoss(), native


class _Dtype:
    """Stands for numpy.dtype in a pickle: NumPy's own takes any state and believes it."""

    def __init__(self, code: Any, _align: Any, _copy: Any) -> None:
        if code not in ("f4", "f8"):
            # What else it is may take for ever to be written out.
            shown = repr(code[:20]) if isinstance(code, str) else type(code).__name__
            raise WeightsError(f"a pickled array of dtype {shown}, expected f4 or f8")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: Any) -> None:
        self.dtype = self.dtype.newbyteorder(">" if state[1] == ">" else "<")


class _Array:
    """Stands for numpy.ndarray in a pickle: a view of the pickle's bytes as what it has checked."""

    array: NDArray[Any] | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, by_column, data = state
        self.fill(data, dtype, shape, "F" if by_column else "C")

    def fill(self, data: Any, dtype: Any, shape: Any, order: Any) -> "_Array":
        """Take the array from its bytes; they must be as many as the shape needs."""
        if not (isinstance(dtype, _Dtype) and isinstance(data, bytes | bytearray)):
            raise WeightsError("a pickle that does not hold plain arrays of numbers")
        self.array = np.frombuffer(data, dtype.dtype).reshape(shape, order=order)
        return self


_NDARRAY = object()
"""Stands for the class numpy.ndarray, which is passed along and never called."""


def _reconstruct(kind: object, shape: Any, _code: Any) -> _Array:
    """Stands for NumPy's function of that name: the empty array that a state then fills."""
    if kind is not _NDARRAY or shape != (0,):
        raise WeightsError("a pickle that does not hold plain NumPy arrays")
    return _Array()


def _from_buffer(data: Any, dtype: Any, shape: Any, order: Any) -> _Array:
    """Stands for NumPy's function of that name, which protocol 5 uses."""
    return _Array().fill(data, dtype, shape, order)


_OPCODES = (
    "PROTO FRAME STOP MARK NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 UNICODE BINUNICODE "
    "SHORT_BINUNICODE BINBYTES SHORT_BINBYTES BINBYTES8 BYTEARRAY8 TUPLE TUPLE1 TUPLE2 TUPLE3 "
    "EMPTY_TUPLE DICT EMPTY_DICT SETITEM SETITEMS PUT BINPUT LONG_BINPUT MEMOIZE GET BINGET "
    "LONG_BINGET GLOBAL STACK_GLOBAL REDUCE BUILD"
)
"""What Python's picklers write of a dict of NumPy arrays, in any protocol."""


class _Opcodes(dict[int, Any]):
    """What an unpickler does by each opcode; one that is not here is refused by its name."""

    def __missing__(self, code: int) -> Any:
        name = next((op.name for op in pickletools.opcodes if ord(op.code) == code), hex(code))
        raise WeightsError(
            "neither a safetensors file nor a whole pickle of arrays: it has the opcode "
            f"{name}, which no dict of NumPy arrays needs"
        )


# The pure-Python unpickler: the compiled one lets ten bytes of a pickle allocate gigabytes.
class _ArraysOnly(pickle._Unpickler):  # pyright: ignore
    """An unpickler that admits a dict of NumPy arrays and nothing else, none of it NumPy's code."""

    stack: list[Any]
    pop_mark: Any
    load_binbytes8: Any

    ADMITTED: ClassVar[dict[str, Any]] = {
        "numpy.ndarray": _NDARRAY,
        "numpy.dtype": _Dtype,
        "numpy.core.multiarray._reconstruct": _reconstruct,
        "numpy._core.multiarray._reconstruct": _reconstruct,
        "numpy.core.numeric._frombuffer": _from_buffer,
        "numpy._core.numeric._frombuffer": _from_buffer,
    }

    def __init__(self, content: bytes) -> None:
        super().__init__(io.BytesIO(content))
        self.room = len(content)

    def latin1(self, text: str, encoding: Any) -> bytes:
        """Stands for _codecs.encode, which protocols 0 to 2 use to write bytes."""
        self.room -= len(text)
        if encoding != "latin1" or self.room < 0:
            raise WeightsError("a pickle with text that is not the bytes of arrays, each once")
        return text.encode("latin1")

    def load_bytearray8(self) -> None:
        """As bytes: the base class makes room for the length that the pickle claims."""
        self.load_binbytes8()
        self.stack[-1] = bytearray(self.stack[-1])

    def load_dict(self) -> None:
        items = self.pop_mark()
        self.stack.append({})
        self.set_items(items)

    def load_setitem(self) -> None:
        items = self.stack[-2:]
        del self.stack[-2:]
        self.set_items(items)

    def load_setitems(self) -> None:
        self.set_items(self.pop_mark())

    def set_items(self, items: list[Any]) -> None:
        """Only text is a key: the hash of tuples nested in tuples can take for ever."""
        names, values, target = items[::2], items[1::2], self.stack[-1]
        for name in names:
            if not isinstance(name, str):
                raise WeightsError(
                    f"a pickled dict with a key that is a {type(name).__name__}, "
                    "expected the names W1, b1, W2, b2, ..."
                )
        if type(target) is not dict:
            raise WeightsError("a pickle that sets items of what is no dict: refused")
        cast("dict[str, Any]", target).update(zip(names, values, strict=True))

    def load_build(self) -> None:
        """Set the state of an array or a dtype; of anything else a pickle could alter it."""
        state = self.stack.pop()
        if not isinstance(self.stack[-1], _Array | _Dtype):
            raise WeightsError("a pickle that sets the state of what is no NumPy array: refused")
        self.stack[-1].__setstate__(state)

    dispatch: ClassVar[dict[int, Any]] = _Opcodes(
        {
            code: pickle._Unpickler.dispatch[code]  # pyright: ignore
            for code in (getattr(pickle, name)[0] for name in _OPCODES.split())
        }
        | {
            pickle.BYTEARRAY8[0]: load_bytearray8,
            pickle.DICT[0]: load_dict,
            pickle.SETITEM[0]: load_setitem,
            pickle.SETITEMS[0]: load_setitems,
            pickle.BUILD[0]: load_build,
        }
    )

    def find_class(self, module: str, name: str) -> Any:
        """What a pickle may name; anything else is refused before it is imported."""
        try:
            return {**self.ADMITTED, "_codecs.encode": self.latin1}[f"{module}.{name}"]
        except KeyError:
            raise WeightsError(
                f"a pickle that names {module:.80}.{name:.80}, which is no NumPy array: "
                "refused, nothing of it was run"
            ) from None
