"""Networks as ONNX files, and ONNX files of other frameworks as networks.

How operations are spelled in ONNX's operators is said in `spellings`. A graph that is read is cut
where all of it passes through one tensor; what stands between two cuts is compared with the
spellings of every operation there is.
"""

import math
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from xnet.backend import Backend, resolve
from xnet.dtypes import float_dtype
from xnet.errors import WeightsError
from xnet.files import replaced
from xnet.foreign import made_plainly, network_of, predicts, with_arrays
from xnet.formulas import FormulaError
from xnet.layers import Layer, LossLayer, numbered
from xnet.network import Network
from xnet.operations import Affine, BatchNorm, Loss, Operation, Sigmoid, Softmax, registered
from xnet.plan import outputs
from xnet.spellings import (
    COMMUTATIVE,
    FLOAT,
    INPUT,
    TYPES,
    Match,
    Term,
    made_of_size_one,
    parsed,
    parts,
    spelled,
    spellings,
    traced,
)
from xnet.weights import STATE, check_writable, content_of, warn_of_not_finite

__all__ = ["OPSET", "export", "load"]

OPSET = 20
"""The version of ONNX's operators that files are written in: the first that has GELU."""

OLDEST_OPSET = 13
"""What is older is converted to this version when it is read."""

LIMIT = 2**31
"""Bytes that a file of this format has to stay below."""

GROWTH = 16
"""How many times the bytes of a file its arrays may take here: one array may serve many layers."""

PARTS = (
    *("checker", "external_data_helper", "helper", "numpy_helper", "reference"),
    *("shape_inference", "version_converter"),
)
"""What of the package onnx is used."""

OUTPUT = "predictions"
"""What a file that is written calls what comes out; what goes in is `INPUT`."""


# -- writing


def export(network: Network, path: str | os.PathLike[str]) -> None:
    """Write a network as an ONNX file, which predicts what `Network.predict` does.

    The file takes ``x`` (N, D), any number N of samples, and gives ``predictions`` (N, C), both of
    the network's dtype: with a loss that ends in softmax they are probabilities. Its nodes are
    named by the layers, ``0/Affine``, ``1/ReLU``, ...; its initializers are the parameters by the
    names that the network gives them, and the state as in a safetensors file. It is checked by
    ``onnx.checker`` before it is written, and then is there whole or not at all.

    Parameters
    ----------
    network
        Of layers that are what their operations say: xnet's, and a user's own, which need a formula
        that can be compiled.
    path
        Where; a file that is there is replaced.

    Raises
    ------
    WeightsError
        The file cannot be written, a layer or the loss cannot be spelled in ONNX's operators, the
        parameters take 2 GiB or more, or the package onnx is missing.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import onnx
    >>> import xnet
    >>> net = xnet.TwoLayerNet(64, 50, 10, dtype="float32", seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "digits.onnx")
    ...     xnet.onnx.export(net, path)
    ...     graph = onnx.load(path).graph
    >>> [node.op_type for node in graph.node]
    ['Gemm', 'Sigmoid', 'Gemm', 'Softmax']
    >>> [array.name for array in graph.initializer]
    ['W1', 'b1', 'W2', 'b2']
    """
    onnx = _library()
    check_writable(path)
    model = _Writer(network).model()
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise WeightsError(f"the network makes no valid ONNX graph: {error}") from error
    content = model.SerializeToString()
    try:
        with replaced(path) as file:
            file.write(content)
    except OSError as error:
        raise WeightsError(f"{Path(path)} cannot be written: {error.strerror}") from error


def _library() -> Any:
    """The package onnx."""
    try:
        onnx = import_module("onnx")
        for part in PARTS:
            import_module(f"onnx.{part}")
    except ImportError as error:
        raise WeightsError(
            f'ONNX files need the package onnx: pip install "xnet-nn[onnx]" ({error})'
        ) from error
    return onnx


class _Writer:
    """Collects the nodes and initializers of a network's graph."""

    def __init__(self, network: Network) -> None:
        self.onnx, self.network = _library(), network
        self.kind = np.dtype(network.dtype)
        self.element = self.onnx.helper.np_dtype_to_tensor_dtype(self.kind)
        self.nodes: list[Any] = []
        self.constants: dict[str, Any] = {}
        self.counts: dict[str, int] = {}

    def model(self) -> Any:
        """The whole."""
        network, helper = self.network, self.onnx.helper
        arrays = {**network.params, **{f"{STATE}{k}": v for k, v in network.state.items()}}
        self.constants = {k: network.backend.to_numpy(v) for k, v in arrays.items()}
        if sum(array.nbytes for array in self.constants.values()) >= LIMIT:
            raise WeightsError("the parameters take 2 GiB or more, which no ONNX file can hold")
        steps = [*self._layers(), *self._loss()]
        tensor = INPUT
        for k, (label, term, names) in enumerate(steps):
            output = OUTPUT if k + 1 == len(steps) else label
            tensor = self._written(term, label, {**names, INPUT: tensor}, output)
        inputs = network.inputs or "D"
        sizes = {INPUT: inputs, OUTPUT: outputs(network.layers) or inputs}
        values = [
            helper.make_tensor_value_info(name, self.element, ["N", size])
            for name, size in sizes.items()
        ]
        graph = helper.make_graph(
            self.nodes,
            "network",
            values[:1],
            values[1:],
            [self.onnx.numpy_helper.from_array(v, k) for k, v in self.constants.items()],
        )
        opset = helper.make_opsetid("", OPSET)
        return helper.make_model(
            graph,
            opset_imports=[opset],
            ir_version=helper.find_min_ir_version_for([opset]),
            producer_name="xnet",
            producer_version=import_module("xnet").__version__,
        )

    def _layers(self) -> Iterator[tuple[str, Any, dict[str, str]]]:
        """Of each layer its label, how it is spelled, and the file's names of its arrays."""
        for k, layer in enumerate(self.network.layers):
            operation = layer.operation
            if operation is None or layer.opaque:
                raise WeightsError(
                    f"layers[{k}]: {layer!r} cannot be exported: its class says itself what it "
                    "computes; write it as an operation (xnet.operations.Operation)"
                )
            yield f"{k}/{type(operation).__name__}", self._spelled(operation), self._names(layer)

    def _names(self, layer: Layer) -> dict[str, str]:
        """The file's names of a layer's arrays, by the layer's."""
        return {
            key: f"{prefix}{name}"
            for kind, prefix in (("params", ""), ("state", STATE))
            for name, (held, key) in numbered(self.network.layers, kind).items()
            if held is getattr(layer, kind)
        }

    def _loss(self) -> Iterator[tuple[str, Any, dict[str, str]]]:
        """What the loss makes of the scores; nothing where it leaves them as they are."""
        layer = self.network.loss_layer
        if layer.operation is None or layer.opaque:
            raise WeightsError(
                f"the loss {layer!r} cannot be exported: its class says itself what it computes"
            )
        loss = layer.loss
        same = next((v for v in made_plainly() if predicts(loss, v)), None)
        if same is not None:  # it may have an operator of its own
            says = self._spelled(same)
        else:
            says = _explained(loss, lambda: traced(loss, loss.predict, loss))
        if says != INPUT:
            yield f"loss/{type(loss).__name__}", says, {}

    def _spelled(self, operation: Operation) -> Any:
        return _explained(operation, lambda: spelled(operation, self.network.dtype))

    def _written(self, term: Any, label: str, names: Mapping[str, str], output: str) -> str:
        """Nodes for a term, of which each part is computed once; the tensor that they give."""
        made: dict[int, str] = {}

        def tensor(value: Any, output: str | None = None) -> str:
            if isinstance(value, str):
                return names[value]
            if not isinstance(value, Term):
                return self._constant(value)
            if id(value) not in made:
                inputs = [tensor(v) for v in value.inputs]
                made[id(value)] = self._node(value, inputs, label, output)
            return made[id(value)]

        if not isinstance(term, Term):  # a formula that leaves x as it is
            term = Term("Identity", (term,), {})
        return tensor(term, output)

    def _node(self, term: Term, inputs: list[str], label: str, output: str | None) -> str:
        """A node; the last one of a layer has the layer's name."""
        name = label if output is not None else self._numbered(f"{label}/{term.operator}")
        schema = self.onnx.defs.get_schema(term.operator, OPSET)
        kinds = self.onnx.defs.OpSchema.AttrType
        attributes: dict[str, Any] = {}
        for key, value in term.attributes.items():
            floating = schema.attributes[key].type == kinds.FLOAT
            given = self.element if value is FLOAT else float(value) if floating else value
            attributes[key] = given
        tensor = output or name
        node = self.onnx.helper.make_node(term.operator, inputs, [tensor], name, **attributes)
        self.nodes.append(node)
        return tensor

    def _numbered(self, name: str) -> str:
        self.counts[name] = self.counts.get(name, 0) + 1
        return name if self.counts[name] == 1 else f"{name}_{self.counts[name]}"

    def _constant(self, value: Any) -> str:
        """An initializer for a number, or for a list of whole ones."""
        axes = isinstance(value, list)
        array = np.asarray(value, np.int64 if axes else self.kind)
        name = f"{'axes' if axes else 'number'} {value}"
        self.constants.setdefault(name, array)
        return name


def _explained(operation: Operation, spell: Callable[[], Any]) -> Any:
    """What `spell` gives; `WeightsError` where a formula cannot be spelled."""
    try:
        return spell()
    except FormulaError as error:
        raise WeightsError(f"{operation!r} cannot be exported: {error}") from error


# -- reading


def load(
    path: str | os.PathLike[str],
    backend: str | Backend | None = None,
    dtype: Any = None,
    loss: Loss | LossLayer | None = None,
) -> Network:
    """The network in an ONNX file, of `export` or of another framework's exporter.

    Its layers follow one another, and each is what an operation of xnet spells in ONNX's operators
    (`SPELLINGS`, or an operation's formula as `export` writes it, a user's own included). Products,
    sums and factors with constants, what only flattens, and what scikit-learn's exporter puts
    behind the probabilities, are understood besides.

    Parameters
    ----------
    path
        The file. Data that it keeps in others are looked for beside it, and nowhere else.
    backend
        Where the network goes; None for the current backend.
    dtype
        ``"float32"`` or ``"float64"``; None keeps the file's.
    loss
        What to train with, which no such file says. None takes softmax with cross-entropy after a
        softmax, binary cross-entropy after a sigmoid, else half the squared error; the predictions
        are the file's numbers. See `xnet.weights.from_torch`.

    Returns
    -------
    Network
        Of the file's parameters.

    Raises
    ------
    WeightsError
        The file cannot be read or is damaged; it has an operator that xnet has not, which is named
        with its node; or the package onnx is missing.

    Warns
    -----
    NonFiniteWarning
        A parameter or a state holds NaN or infinity.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> import numpy as np
    >>> import onnx
    >>> import xnet
    >>> net = xnet.TwoLayerNet(64, 50, 10, activation="relu", seed=0)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = Path(folder, "digits.onnx")
    ...     xnet.onnx.export(net, path)
    ...     loaded = xnet.onnx.load(path)
    >>> loaded.layers, loaded.loss_layer
    ([Affine(64, 50), ReLU(), Affine(50, 10)], SoftmaxWithLoss())
    >>> x = np.ones((1, 64))
    >>> bool(np.allclose(loaded.predict(x), net.predict(x)))
    True
    """
    onnx = _library()
    chosen = resolve(backend)
    if dtype is not None:
        float_dtype(dtype)
    content = content_of(path)
    try:
        model = onnx.load_model_from_string(content)
        size = len(content) + _bring_in(model, Path(path).parent)
        onnx.checker.check_model(model)
        reader = _Reader(model, size)
        network = network_of(reader.layers(), loss, chosen, dtype or reader.kind)
    # What a file altered by accident or malice leads to is of many kinds.
    except Exception as error:
        raise WeightsError(f"{path}: {error!s:.400}") from error
    warn_of_not_finite(network, path)
    return network


def _bring_in(model: Any, folder: Path) -> int:
    """Read the tensors that a model keeps in files beside it; how many bytes those files have."""
    onnx = _library()
    files: dict[str, int] = {}
    wanted = 0
    for tensor in model.graph.initializer:
        if not onnx.external_data_helper.uses_external_data(tensor):
            continue
        info = onnx.external_data_helper.ExternalDataInfo(tensor)
        if Path(info.location).name != info.location:
            raise WeightsError(f"{tensor.name} is in {info.location!r}, expected a file beside it")
        size = (
            math.prod(tensor.dims) * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
        )
        status = (folder / info.location).lstat()
        if not stat.S_ISREG(status.st_mode):
            raise WeightsError(f"{tensor.name} is in {info.location!r}, which is no ordinary file")
        files[info.location] = status.st_size
        there = files[info.location] - (info.offset or 0) if info.length is None else info.length
        wanted += size
        if size != there or wanted > sum(files.values()):
            raise WeightsError(
                f"{tensor.name} takes {size} bytes of {info.location!r}, which has {there} for it"
            )
        onnx.external_data_helper.load_external_data_for_tensor(tensor, str(folder))
        tensor.data_location = onnx.TensorProto.DEFAULT  # which older versions leave to others
        del tensor.external_data[:]
    return sum(files.values())


FOLDED = frozenset(("Cast", "Constant", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"))
"""Operators that are computed of constants when a file is read: nothing gets larger by them."""

BEHIND = frozenset(
    (
        *("ArgMax", "Cast", "Identity", "Reshape", "Squeeze"),
        *("ai.onnx.ml.ArrayFeatureExtractor", "ai.onnx.ml.Binarizer", "ai.onnx.ml.ZipMap"),
    )
)
"""Operators that make labels of probabilities, where a file gives both."""


Piece: TypeAlias = tuple[str, list[Any], str | None]
"""The tensor before some nodes, those, and the tensor after them."""


class _Reader:
    """Makes layers of a graph.

    Parameters
    ----------
    model
        A checked one.
    size
        The bytes that it came in.
    """

    def __init__(self, model: Any, size: int) -> None:
        self.onnx = _library()
        self.versions = {entry.domain: entry.version for entry in model.opset_import}
        if self.versions.get("", OLDEST_OPSET) < OLDEST_OPSET:
            model = self.onnx.version_converter.convert_version(model, OLDEST_OPSET)
            self.versions[""] = OLDEST_OPSET
        self.graph, self.left = model.graph, GROWTH * size
        self.constants: dict[str, Any] = {}
        self.initializers = {tensor.name: tensor for tensor in self.graph.initializer}
        self.found: list[Layer] = []
        self.used: list[Any] = []
        self.casts: set[str] = set()
        self.said: list[str] = []
        self.stage = 0
        inputs = [v for v in self.graph.input if v.name not in self.initializers]
        if len(inputs) != 1 or not self.graph.output:
            names = ", ".join(v.name for v in inputs) or "none"
            raise WeightsError(f"the graph has {len(inputs)} inputs ({names}), expected one")
        if self.graph.sparse_initializer:
            raise WeightsError("the graph has sparse initializers, which xnet has not")
        self.input = inputs[0].name
        tensor = inputs[0].type.tensor_type
        self.rank: int | None = None
        self.features: int | None = None
        if tensor.HasField("shape"):
            sizes = [d.dim_value for d in tensor.shape.dim[1:]]
            self.rank = len(tensor.shape.dim)
            self.features = math.prod(sizes) or None
        kinds = {tensor.elem_type, *(t.data_type for t in self.graph.initializer)}
        self.kind = np.dtype(np.float64 if self.onnx.TensorProto.DOUBLE in kinds else np.float32)

    # -- the graph, cut into pieces

    def layers(self) -> list[Layer]:
        """All of them."""
        varying = self._varying()
        self._fold(varying)
        pieces = list(self._pieces(varying))
        if pieces and pieces[-1][-1] is None:  # several outputs
            self._check_behind(pieces.pop()[1])
        longest = max(len(parts(s)) for kind in registered().values() for s in spellings(kind))
        first = 0
        while first < len(pieces):
            ends = range(min(first + longest, len(pieces)), first, -1)
            matched = next((end for end in ends if self._match(pieces[first:end])), None)
            if matched is None:
                self._read(pieces[first])
            first = matched or first + 1
        if wrong := self.casts - {self.kind.name}:
            raise WeightsError(f"it computes in {self.kind}, and casts to {wrong.pop()}")
        if not self.found:
            raise WeightsError("the graph computes nothing")
        return self.found

    def _varying(self) -> list[Any]:
        """The nodes that the outputs depend on and that depend on the input, in their order."""
        live = {v.name for v in self.graph.output}
        for node in reversed(self.graph.node):
            if live & set(node.output):
                live |= set(node.input)
                self.used.append(node)
        self.used.reverse()
        reached, found = {self.input}, list[Any]()
        for node in self.used:
            if reached & set(node.input):
                reached |= set(node.output)
                found.append(node)
        if not reached.issuperset(v.name for v in self.graph.output):
            raise WeightsError("an output does not depend on the input")
        return found

    def _fold(self, varying: Sequence[Any]) -> None:
        """Compute what depends on constants alone, where that makes nothing larger of them."""
        vary = {id(node) for node in varying}
        for node in self.used:
            if id(node) in vary:
                continue
            operator, inputs = _operator(node), [self._constant(name) for name in node.input]
            if operator in FOLDED and not any(isinstance(v, Term) for v in inputs):
                evaluator: Any = self.onnx.reference.ReferenceEvaluator(node)
                (array,) = evaluator.run(None, dict(zip(node.input, inputs, strict=True)))
                self.constants[node.output[0]] = self._charged(np.asarray(array))
            else:
                self.constants[node.output[0]] = self._made(node, inputs)

    def _constant(self, name: str) -> Any:
        """The array of this name, or the term of such ones."""
        if name not in self.constants:
            array = self.onnx.numpy_helper.to_array(self.initializers[name])
            self.constants[name] = self._charged(array)
        return self.constants[name]

    def _charged(self, array: Any) -> Any:
        """An array, its bytes counted among those that the file may take."""
        self.left -= array.nbytes
        if self.left < 0:
            raise WeightsError(f"its arrays take more than {GROWTH} times the bytes of the file")
        return array

    def _made(self, node: Any, inputs: Iterable[Any]) -> Term:
        attributes = {one.name: self._value(one) for one in node.attribute}
        return Term(_operator(node), tuple(inputs), attributes, node.name or node.output[0])

    def _value(self, attribute: Any) -> Any:
        value = self.onnx.helper.get_attribute_value(attribute)
        return value.decode() if isinstance(value, bytes) else value

    def _pieces(self, nodes: Sequence[Any]) -> Iterator[Piece]:
        """The nodes between two tensors that all of the graph passes through, and those two.

        What follows the last of them, where there are several outputs, ends in None.
        """
        last = {name: k for k, node in enumerate(nodes) for name in node.input}
        last |= {v.name: len(nodes) for v in self.graph.output}
        alive, start, piece = {self.input}, self.input, list[Any]()
        for k, node in enumerate(nodes):
            piece.append(node)
            alive = {n for n in alive if last[n] > k} | {n for n in node.output if n in last}
            if alive == {node.output[0]}:
                yield start, piece, node.output[0]
                start, piece = node.output[0], []
        if piece:
            yield start, piece, None

    def _check_behind(self, nodes: Sequence[Any]) -> None:
        """Refuse what follows the probabilities, unless it makes labels of them."""
        for node in nodes:
            if _operator(node) not in BEHIND:
                raise _lacking(self._made(node, ()))

    def _term(self, pieces: Sequence[Piece]) -> Any:
        """Pieces as a term, of which the tensor before them is the input.

        What leaves numbers as they are stands for what it is applied to.
        """
        made: dict[str, Any] = {pieces[0][0]: INPUT, "": None}
        for node in (node for _, nodes, _ in pieces for node in nodes):
            names = list(node.input)
            while names and not names[-1]:  # optional ones that are left out
                names.pop()
            inputs = [made[n] if n in made else self._constant(n) for n in names]
            term = self._made(node, inputs)
            made[node.output[0]] = inputs[0] if self._is_identity(term) else term
        return made[str(pieces[-1][2])]

    def _is_identity(self, term: Term) -> bool:
        if term.operator != "Cast" or parts(term)[0].operator == "Shape":
            return term.operator == "Identity"
        element = term.attributes["to"]
        if element not in TYPES:
            return False
        self.casts.add(np.dtype(self.onnx.helper.tensor_dtype_to_np_dtype(element)).name)
        return True

    def match(self) -> Match:
        """What compares a spelling with a piece of this graph."""
        return Match(self.attributes, self.kind)

    def attributes(self, term: Term) -> dict[str, Any]:
        """All of a term's attributes, ONNX's defaults among them; the last axis is -1."""
        domain, _, name = term.operator.rpartition(".")
        found = {**self._defaults(domain, name), **term.attributes}
        found.pop("seed", None)  # of what is random in training alone
        return found | ({"axis": -1} if found.get("axis") == (self.rank or 2) - 1 else {})

    def _defaults(self, domain: str, name: str) -> dict[str, Any]:
        version = self.versions.get(domain, OPSET)
        schema = self.onnx.defs.get_schema(name, version, domain).attributes
        given = {key: one.default_value for key, one in schema.items()}
        return {key: self._value(value) for key, value in given.items() if value.name}

    # -- the pieces, read

    def _match(self, pieces: Sequence[Piece]) -> bool:
        """Add the layer whose spelling these pieces are, if there is one."""
        term = self._term(pieces)
        for kind in registered().values():
            for spelling in spellings(kind):
                match = self.match()
                if match.compare(spelling, term) and self._matched(kind, match):
                    return True
        return False

    def _matched(self, kind: type[Operation], match: Match) -> bool:
        operation: Any = made_of_size_one(kind)
        settings = match.settled(operation)
        pointwise = kind.fuses == "pointwise" and not kind.parameters
        if settings is None or not (pointwise or self.rank in (2, None)):
            return False
        flat = {k for k, sizes in kind.parameters.items() if len(sizes) == 1} | {*kind.state}
        arrays = {k: _row(v) if k in flat else v for k, v in match.arrays.items()}
        if any(array is None for array in arrays.values()):
            return False
        try:
            layer = with_arrays(kind, arrays, **settings)
        except ValueError as error:  # it may be read otherwise
            self.said.append(str(error))
            return False
        self.add(layer)
        return True

    def add(self, *layers: Layer) -> None:
        """Add layers to those that have been found."""
        for layer in layers:
            for array in (*layer.params.values(), *layer.state.values()):
                if self._charged(array).dtype != self.kind:
                    raise WeightsError(f"{layer} has {array.dtype}, the graph {self.kind}")
            self.found.append(layer)
            self.features = layer.gives(self.features)
        self.stage = 0

    def _read(self, piece: Piece) -> None:
        """Read what is no operation's spelling, or refuse it."""
        term = self._term([piece])
        if not isinstance(term, Term) or READERS.get(term.operator, _unread)(self, term):
            return
        known = {p.operator for k in registered().values() for s in spellings(k) for p in parts(s)}
        lacking = [part for part in parts(term) if part.operator not in known | READERS.keys()]
        computed = [
            p
            for p in parts(term)
            if all(v != INPUT for q in parts(p) for v in q.inputs if isinstance(v, str))
        ]
        raise _lacking((*lacking, *computed, term)[0], *self.said[-1:])


def _operator(node: Any) -> str:
    """A node's operator; of another domain than ONNX's own after the domain's name."""
    domain = "" if node.domain == "ai.onnx" else node.domain
    return f"{domain}.{node.op_type}" if domain else node.op_type


def _lacking(term: Term, *why: str) -> WeightsError:
    said = "".join(f", {k}={v!r:.40}" for k, v in term.attributes.items())
    what = f"{term.operator} (node {term.node!r}{said})"
    return WeightsError(
        f"xnet has no operation for {what} as it is used there" + ": ".join(["", *why])
    )


def _row(array: Any) -> Any:
    """A row of numbers, (M,) or (1, M), as (M,); None for anything else."""
    return array.reshape(-1) if array.ndim and array.size == array.shape[-1] else None


def _unread(_: _Reader, __: Term) -> bool:
    return False


def _gemm(reader: _Reader, term: Term) -> bool:
    """alpha x W + beta b, W transposed or not, and b one number, a row or left out."""
    x, W, *b = term.inputs
    how = reader.attributes(term)
    if x != INPUT or how["transA"] or not all(isinstance(v, np.ndarray) for v in (W, *b)):
        return False
    W = (W.T if how["transB"] else W) * W.dtype.type(how["alpha"])
    params = {"W": W}
    if b:
        row = np.full(W.shape[1], b[0]) if b[0].size == 1 else _row(b[0])
        if row is None:  # another for each sample
            return False
        params["b"] = row * row.dtype.type(how["beta"])
    reader.add(with_arrays(Affine, params))
    return True


STAGES = {"Sub": 1, "Mul": 2, "Div": 2, "Add": 3}
"""In which order (x - mean) gamma + beta is computed."""


def _scaled(reader: _Reader, term: Term) -> bool:
    """A difference, factor or sum with a row of constants: of normalization by known numbers.

    Each becomes a part of a BatchNorm whose variance and eps have the sum 1.
    """
    x, c = term.inputs
    if x != INPUT and term.operator in COMMUTATIVE:
        x, c = c, x
    if x != INPUT or not isinstance(c, np.ndarray) or reader.rank not in (2, None):
        return False
    row = np.full(reader.features, c) if c.size == 1 and reader.features else _row(c)
    if row is None or reader.features not in (row.size, None):
        return False
    stage = STAGES[term.operator]
    if not 0 < reader.stage < stage:
        start = {"variance": np.full(row.size, 1 - BatchNorm.eps, row.dtype)}
        reader.add(with_arrays(BatchNorm, start))
    layer = reader.found[-1]
    if stage == STAGES["Sub"]:
        layer.state["mean"] = row
    else:
        name = "gamma" if stage == STAGES["Mul"] else "beta"
        layer.params[name] = 1 / row if term.operator == "Div" else row
    reader.stage = stage
    return True


def _scaler(reader: _Reader, term: Term) -> bool:
    """scikit-learn's StandardScaler and its kin: (x - offset) scale."""
    for operator, name in (("Sub", "offset"), ("Mul", "scale")):
        row = np.asarray(term.attributes[name], reader.kind)
        if not _scaled(reader, Term(operator, (*term.inputs, row), {})):
            return False
    return True


def _flattened(reader: _Reader, term: Term) -> bool:
    """A tensor as rows (N, D), which is what a network makes of it by itself."""
    x, *shape = term.inputs
    if x != INPUT:
        return False
    if term.operator == "Flatten":
        fits = reader.attributes(term)["axis"] in (1, -1)  # -1 is that of a matrix
    else:
        fits = _is_rows(reader, shape[0], bool(reader.attributes(term)["allowzero"]))
    if fits:
        reader.rank = 2
    return fits


def _is_rows(reader: _Reader, shape: Any, zero: bool) -> bool:
    """Whether a Reshape to this shape makes rows of all that belongs to a sample.

    A 0 in it stands for the size that was there, unless it is to mean 0.
    """
    if isinstance(shape, Term):  # computed from the input's
        *rows, columns = shape.inputs
        compared = [reader.match().compare(s, r) for s in SAMPLES for r in rows]
        if shape.operator != "Concat" or len(rows) != 1 or not any(compared):
            return False
        shape, zero = np.append(0, columns), False
    rows, *columns = shape.tolist()
    if len(columns) != 1 or (rows == -1 and columns == [-1]) or (zero and rows == 0):
        return False
    return columns[0] in (-1, reader.features) or reader.features is None


SAMPLES = (
    parsed("Unsqueeze(Gather(Shape(x), 0), [0])", x=INPUT),
    parsed("Gather(Shape(x), [0])", x=INPUT),
    parsed("Shape(x, start=0, end=1)", x=INPUT),
)
"""How many samples there are, as exporters write it."""


def _both_classes(reader: _Reader, term: Term) -> bool:
    """scikit-learn's probabilities of two classes, 1 - p and p for p the sigmoid of one score.

    They are the softmax of the scores 0 and that one.
    """
    both = parsed("Concat(Sub(1, x), x, axis=1)", x=INPUT)
    if not reader.match().compare(both, term) or len(reader.found) < 2:
        return False
    product, sigmoid = reader.found[-2:]
    if not (isinstance(sigmoid.operation, Sigmoid) and type(product.operation) is Affine):
        return False
    W, b = product.params["W"], product.params["b"]
    if b.size != 1:
        return False
    del reader.found[-2:]
    params = {"W": np.hstack([0 * W, W]), "b": np.append(0 * b, b)}
    reader.add(with_arrays(Affine, params), Layer.of(Softmax()))
    return True


READERS: dict[str, Callable[[_Reader, Term], bool]] = {
    "Gemm": _gemm,
    **dict.fromkeys(STAGES, _scaled),
    "ai.onnx.ml.Scaler": _scaler,
    **dict.fromkeys(("Flatten", "Reshape"), _flattened),
    "Concat": _both_classes,
}
"""What is read that is no operation's spelling, by the last operator of a piece."""
