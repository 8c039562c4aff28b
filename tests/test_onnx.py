"""xnet.onnx: what is written other runtimes compute, and what others write is read, or refused."""

import contextlib
import fnmatch
import io
import itertools
import json
import os
import subprocess
import sys
import warnings
from typing import ClassVar

import numpy as np
import pytest
from conftest import DTYPES, REGISTERED, variants
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_docs import ROOT, blocks
from test_foreign import require_keras

import xnet
from xnet import WeightsError, weights
from xnet.layers import Layer
from xnet.network import Network
from xnet.operations import (
    ELU,
    Affine,
    BatchNorm,
    BinaryCrossEntropy,
    Dropout,
    IdentityWithLoss,
    LeakyReLU,
    Loss,
    Operation,
    Pointwise,
    ReLU,
    Rows,
    SoftmaxWithLoss,
    Tanh,
)
from xnet.testing import parity

onnx = pytest.importorskip("onnx", reason="onnx is not installed")
ort = pytest.importorskip("onnxruntime", reason="ONNX Runtime is not installed")

helper, to_tensor = onnx.helper, onnx.numpy_helper.from_array
EXAMPLES = int(os.environ.get("XNET_EXAMPLES", "15"))
"""XNET_EXAMPLES=200 tries as many networks."""

D, C = 6, 4
LAYERS = [one for one in variants() if not isinstance(one, Loss)]
LOSSES = [
    one
    for one in variants("loss")
    if not isinstance(one, SoftmaxWithLoss) or not one.settings()["class_weights"]
]


def run(path, x, output=None):
    """What ONNX Runtime makes of x."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(str(path), options)
    names = [o.name for o in session.get_outputs()]
    found = session.run(None, {session.get_inputs()[0].name: x})
    return found[-1 if output is None else names.index(output)]


def filled(layers, loss=None, dtype="float32", seed=0):
    """A network of these, in which no parameter or state is as it begins."""
    net = Network(layers, loss, dtype=dtype, seed=seed)
    rng = np.random.default_rng(seed)
    for arrays, low in ((net.params, -1), (net.state, 0.1)):
        for key, array in arrays.items():
            arrays[key] = rng.uniform(low, 1.5, array.shape).astype(dtype)
    return net


def bits(net):
    return {k: v.tobytes() for arrays in (net.params, net.state) for k, v in arrays.items()}


def apart(net, path, x, allowed=0.0):
    """How far two fast runtimes' predictions are apart, in units of how far they may be."""
    with np.errstate(all="ignore"):
        bound = parity.prediction_bound(net, x) + allowed
    difference = np.abs(run(path, x).astype(np.float64) - net.predict(x))
    return float((difference / np.maximum(bound, 1e-300)).max())


def named(operations):
    return [repr(one) for one in operations]


# -- there and back


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("one", LAYERS, ids=named(LAYERS))
def test_every_layer(one, dtype, tmp_path):
    """Another runtime computes it within the bound; read again, it is the same to the bit."""
    path, outputs = tmp_path / "net.onnx", one.widths[1] or D
    net = filled([Affine(D, D), one, Affine(outputs, C)], dtype=dtype)
    xnet.onnx.export(net, path)
    assert apart(net, path, parity.numbers("normal", dtype)(50, D).astype(dtype)) < 1
    back = xnet.onnx.load(path)
    assert bits(back) == bits(net)
    assert repr(back.loss_layer) == repr(net.loss_layer)
    for layer, before in zip(back.layers, net.layers, strict=True):
        assert type(layer.operation) is type(before.operation)
        for key, value in layer.settings().items():
            kept = key not in ("weight_init_std", "decay")  # of which a prediction knows nothing
            if kept and isinstance(value, float):
                assert np.dtype(dtype).type(value) == np.dtype(dtype).type(before.settings()[key])
    x = np.random.default_rng(1).normal(size=(5, D)).astype(dtype)
    assert back.predict(x).tobytes() == net.predict(x).tobytes()


ULPS = {"float32": 2.0**-22, "float64": 2.0**-51}
LESS_CAREFUL = {"Sigmoid": 1, "SiLU": 1, "GELU": 4, "ELU": 2, "SELU": 4, "BatchNorm": 40}
"""Operations of which ONNX's operator is defined, or computed, with errors that are small against 1
and not against the result, in units of four roundings of 1: exp(x) - 1, a rational function, and
x s + (beta - mean s) with s = gamma / std up to 10."""


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("one", LAYERS, ids=named(LAYERS))
def test_every_operation_alone(one, dtype, tmp_path):
    path = tmp_path / "net.onnx"
    net = filled([one], IdentityWithLoss(), dtype)
    xnet.onnx.export(net, path)
    allowed = ULPS[dtype] * LESS_CAREFUL.get(type(one).__name__, 0)
    for scale in (1e-4, 1.0, 30.0):
        x = (scale * np.random.default_rng(2).normal(size=(300, D))).astype(dtype)
        size = np.maximum(1, np.abs(x).max(axis=1, keepdims=True))
        assert apart(net, path, x, allowed * size) < 1


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("loss", LOSSES, ids=named(LOSSES))
def test_the_loss_decides_what_is_predicted(loss, dtype, tmp_path):
    path = tmp_path / "net.onnx"
    net = filled([Affine(D, 5), Tanh(), Affine(5, C)], loss, dtype)
    xnet.onnx.export(net, path)
    x = parity.numbers("normal", dtype, 5)(50, D).astype(dtype)
    assert apart(net, path, x) < 1
    back = xnet.onnx.load(path)
    assert back.predict(x).tobytes() == net.predict(x).tobytes()
    assert xnet.onnx.load(path, loss=loss).loss_layer.operation is loss


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_random_networks(data, tmp_path):
    dtype = data.draw(st.sampled_from(DTYPES))
    layers, inputs = [], data.draw(st.integers(1, 9))
    width = inputs
    for kind in data.draw(st.lists(st.sampled_from(LAYERS), min_size=1, max_size=6)):
        if isinstance(kind, Affine):
            outputs = data.draw(st.integers(2, 12))
            layers.append(Affine(width, outputs))
            width = outputs
        else:
            sizes = {"units": width} if "units" in kind.settings() else {}
            layers.append(type(kind)(**{**kind.settings(), **sizes}))
    layers.append(Affine(width, C))
    seed = data.draw(st.integers(0, 2**20))
    net = filled(layers, data.draw(st.sampled_from(LOSSES)), dtype, seed)
    path = tmp_path / "net.onnx"
    xnet.onnx.export(net, path)
    x = np.random.default_rng(seed).normal(size=(data.draw(st.integers(1, 20)), inputs))
    assert apart(net, path, x.astype(dtype)) < 1
    back = xnet.onnx.load(path)
    assert bits(back) == bits(net)
    assert back.predict(x).tobytes() == net.predict(x).tobytes()


def test_what_a_file_says(tmp_path):
    path = tmp_path / "net.onnx"
    net = filled([Affine(D, 5), BatchNorm(5), ReLU(), Dropout(0.25), Affine(5, C)])
    xnet.onnx.export(net, path)
    model = onnx.load(path)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [xnet.onnx.OPSET]
    assert (model.producer_name, model.producer_version) == ("xnet", xnet.__version__)
    names = [node.name for node in model.graph.node]
    layers = ["0/Affine", "1/BatchNorm", "2/ReLU", "3/Dropout", "4/Affine"]
    assert names == [*layers, "loss/SoftmaxWithLoss"]
    initializers = {tensor.name for tensor in model.graph.initializer}
    assert {*net.params, "state.mean1", "state.variance1"} <= initializers
    sizes = [v.type.tensor_type.shape.dim for v in (model.graph.input[0], model.graph.output[0])]
    assert [(dims[0].dim_param, dims[1].dim_value) for dims in sizes] == [("N", D), ("N", C)]
    for samples in (1, 7):
        assert run(path, np.ones((samples, D), np.float32)).shape == (samples, C)


# -- operations of one's own


class Swirl(Pointwise):
    """All that a pointwise formula may use."""

    rate: float = 0.3
    shift: float = 2.0
    width: float = 0.25

    def forward(self, m, x):
        x = x / m.sqrt(1 + self.width)
        a = m.log1p(m.abs(x) * self.rate) - m.expm1(-m.abs(x)) + m.sqrt(x * x + self.shift)
        b = m.maximum(m.minimum(x, 2 * self.rate), -self.shift) + m.log(m.exp(-m.abs(x)) + 1)
        return m.where((x > 0) & ~(x >= 3) | (x != x), a, m.where(x == 1, -b, b / 3))

    def backward(self, m, dout, x, y):
        return dout


class Share(Rows):
    """All that a formula along rows may use."""

    rest: float = 0.5

    def forward(self, m, x):
        e = m.exp(x - m.max(x))
        return e / (m.sum(e) + self.rest) * m.width(x)

    def backward(self, m, dout, x, y):
        return dout


class Gated(Operation):
    """Parameters of its own, state, and a product."""

    units: int
    strength: float = 1.5

    parameters: ClassVar = {"V": ("units", "units"), "g": ("units",)}
    state: ClassVar = {"level": (("units",), 0.25)}

    def forward(self, m, x, V, g):
        return self.strength * m.matmul(x, m.T(V)) * g + m.state["level"]

    def backward(self, m, dout, x, y, V, g):
        return dout, V, g

    def initial(self, name):
        return 0.0, 1.0


OWN = [
    Swirl(),
    Swirl(0.7, 1.25),
    Swirl(0.7, 1.25, 3.1),
    Share(),
    Share(0.125),
    Gated(D),
    Gated(D, 0.75),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("one", OWN, ids=named(OWN))
def test_an_operation_of_ones_own(one, dtype, tmp_path):
    """Its formula is its ONNX graph, by which it is known again, settings and all."""
    path = tmp_path / "net.onnx"
    net = filled([Affine(D, D), one, Affine(D, C)], IdentityWithLoss(), dtype)
    xnet.onnx.export(net, path)
    x = parity.numbers("normal", dtype, 8)(60, D).astype(dtype)
    assert apart(net, path, x) < 1
    back = xnet.onnx.load(path)
    assert repr(back.layers[1]) == repr(net.layers[1])
    assert bits(back) == bits(net)
    assert back.predict(x).tobytes() == net.predict(x).tobytes()


@pytest.mark.parametrize("dtype", DTYPES)
def test_functions_that_onnx_has_not_keep_their_digits(dtype, tmp_path):
    """exp(x) - 1 and log(1 + x) near 0, far from it, and where there is nothing but infinity."""

    class Small(Pointwise):
        def forward(self, m, x):
            return m.where(x < 0, m.expm1(x), m.log1p(x))

        def backward(self, m, dout, x, y):
            return dout

    try:
        path, net = tmp_path / "net.onnx", Network([Small()], IdentityWithLoss(), dtype=dtype)
        xnet.onnx.export(net, path)
        size = np.logspace(-30, 2, 400)
        x = np.concatenate([size, -size, [0.0, np.inf, -np.inf]]).astype(dtype)[:, None]
        with np.errstate(all="ignore"):
            exact = np.where(x < 0, np.expm1(np.float64(x)), np.log1p(np.float64(x)))
        found = run(path, x).astype(np.float64)
        finite = np.isfinite(exact)
        assert np.array_equal(found[~finite], exact[~finite])
        difference = np.abs(found[finite] - exact[finite])
        assert np.all(difference <= 8 * np.finfo(dtype).eps * np.abs(exact[finite]))
        assert np.isnan(run(path, np.full((1, 1), np.nan, dtype))).all()
    finally:
        del xnet.operations.OPERATIONS["Small"]


class Opaque(Layer):
    def __call__(self, x):
        return x


class Odd(Operation):
    def forward(self, m, x):
        return m.uniform(x)


def test_what_cannot_be_exported_is_named(tmp_path):
    path = tmp_path / "net.onnx"
    path.write_bytes(b"before")
    with pytest.raises(WeightsError, match=r"layers\[1\].*Opaque.*cannot be exported"):
        xnet.onnx.export(Network([Affine(2, 2), Opaque()]), path)
    with pytest.raises(WeightsError, match=r"Odd\(\) cannot be exported: .*m.uniform"):
        xnet.onnx.export(Network([Affine(2, 2), Odd()]), path)
    with pytest.raises(WeightsError, match="cannot be written"):
        xnet.onnx.export(Network([Affine(2, 2)]), tmp_path / "nowhere" / "net.onnx")
    assert path.read_bytes() == b"before"
    assert os.listdir(tmp_path) == ["net.onnx"]


def test_no_file_takes_two_gigabytes(monkeypatch, tmp_path):
    monkeypatch.setattr(xnet.onnx, "LIMIT", 100)
    with pytest.raises(WeightsError, match="2 GiB"):
        xnet.onnx.export(Network([Affine(5, 5)]), tmp_path / "net.onnx")


def test_without_onnx_the_way_to_install_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "onnx", None)
    for call in (lambda p: xnet.onnx.export(Network([Affine(2, 2)]), p), xnet.onnx.load):
        with pytest.raises(WeightsError, match=r'pip install "xnet-nn\[onnx\]"'):
            call(tmp_path / "net.onnx")


def test_it_is_loaded_by_whoever_asks_for_it():
    code = (
        "import xnet, sys; xnet.weights, xnet.onnx; assert not {'onnx', 'torch'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


# -- graphs that others write


F = onnx.TensorProto.FLOAT


def model(
    nodes,
    constants=(),
    shape=("N", D),
    outputs=("y",),
    opset=20,
    domains=(),
    rows=("N", "M"),
):
    """A graph of nodes, each an operator, its inputs and outputs, and attributes."""
    made = [
        helper.make_node(op, i.split(), o.split(), f"n{k}", **dict(*more))
        for k, (op, i, o, *more) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", F, shape)],
        [helper.make_tensor_value_info(name, F, rows) for name in outputs],
        [to_tensor(np.asarray(v), k) for k, v in dict(constants).items()],
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(d, 1) for d in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=9)


@pytest.fixture
def written(tmp_path):
    def write(made):
        path = tmp_path / "foreign.onnx"
        path.write_bytes(made if isinstance(made, bytes) else made.SerializeToString())
        return path

    return write


rng = np.random.default_rng(0)
W, V = rng.normal(size=(2, D, C)).astype(np.float32)
b, c = rng.normal(size=(2, C)).astype(np.float32)
d = rng.normal(size=D).astype(np.float32)
GRAPHS = {
    "Gemm as it can be": (
        [("Gemm", "x W b", "y", {"alpha": 0.5, "beta": 2.0, "transB": 1})],
        {"W": W.T, "b": b},
        "Affine",
    ),
    "a bias of one number": ([("Gemm", "x W b", "y")], {"W": W, "b": b[:1]}, "Affine"),
    "a bias of one row": ([("Gemm", "x W b", "y")], {"W": W, "b": b[None]}, "Affine"),
    "a product without bias": ([("MatMul", "x W", "y")], {"W": W}, "Affine"),
    "a bias before the product": (
        [("MatMul", "x W", "a"), ("Add", "b a", "y")],
        {"W": W, "b": b},
        "Affine",
    ),
    "a weight that is transposed": (
        [("Transpose", "V", "W"), ("MatMul", "x W", "a"), ("Add", "a b", "y")],
        {"V": np.ascontiguousarray(W.T), "b": b},
        "Affine",
    ),
    "numbers in nodes": (
        [
            ("Constant", "", "low", {"value_float": -1.0}),
            ("Constant", "", "high", {"value_float": 1.0}),
            ("Clip", "x low high", "y"),
        ],
        {},
        "HardTanh",
    ),
    "scaled samples": (
        [("Sub", "x d", "a"), ("Mul", "a d", "e"), ("Gemm", "e W b", "y")],
        {"d": d, "W": W, "b": b},
        "BatchNorm Affine",
    ),
    "pixels": (
        [("Div", "x n", "a"), ("MatMul", "a W", "y")],
        {"n": np.float32(255), "W": W},
        "BatchNorm Affine",
    ),
    "casts and identities": (
        [("Identity", "x", "a"), ("Cast", "a", "e", {"to": F}), ("Relu", "e", "y")],
        {},
        "ReLU",
    ),
    "scikit-learn's scaler": (
        [
            ("Scaler", "x", "a", {"domain": "ai.onnx.ml", "offset": [0.5] * D, "scale": [2.0] * D}),
            ("Relu", "a", "y"),
        ],
        {},
        "BatchNorm ReLU",
    ),
    "SiLU": ([("Sigmoid", "x", "a"), ("Mul", "a x", "y")], {}, "SiLU"),
    "PyTorch's softplus": (
        [("Softplus", "x", "a"), ("Greater", "x t", "g"), ("Where", "g x a", "y")],
        {"t": np.float32(20)},
        "Softplus",
    ),
    "Mish": ([("Softplus", "x", "a"), ("Tanh", "a", "e"), ("Mul", "x e", "y")], {}, "Mish"),
    "a norm without bias": (
        [("LayerNormalization", "x d", "y", {"axis": 1, "epsilon": 0.01})],
        {"d": d},
        "LayerNorm",
    ),
    "softmax along the only axis that rows have": (
        [("MatMul", "x W", "a"), ("Softmax", "a", "y", {"axis": 1})],
        {"W": W},
        "Affine",
    ),
    "two outputs, one of labels": (
        [("MatMul", "x W", "a"), ("Softmax", "a", "y"), ("ArgMax", "y", "l", {"axis": 1})],
        {"W": W},
        "Affine",
    ),
    "what leads nowhere": ([("Relu", "x", "y"), ("Erf", "x", "z")], {}, "ReLU"),
}


@pytest.mark.parametrize("name", GRAPHS)
def test_graphs_that_others_write(name, written):
    nodes, constants, layers = GRAPHS[name]
    domains = {more[0].get("domain", "") for _, _, _, *more in nodes if more} - {""}
    outputs = ("y", "l") if any(node[2] == "l" for node in nodes) else ("y",)
    made = model(nodes, constants, outputs=outputs, domains=domains)
    if "l" in outputs:
        made.graph.output[1].type.tensor_type.elem_type = onnx.TensorProto.INT64
    path = written(made)
    net = xnet.onnx.load(path)
    assert [type(layer.operation).__name__ for layer in net.layers] == layers.split()
    x = np.random.default_rng(3).normal(size=(9, D)).astype(np.float32)
    np.testing.assert_allclose(net.predict(x), run(path, x, "y"), rtol=3e-6, atol=3e-6)


FLATTENING = {
    "Flatten": [("Flatten", "x", "a")],
    "Reshape, known": [("Reshape", "x s", "a")],
    "Reshape without zeros": [("Reshape", "x s", "a", {"allowzero": 1})],
    "Reshape, samples first": [
        ("Shape", "x", "e"),
        ("Gather", "e zero", "f"),
        ("Unsqueeze", "f axis", "g"),
        ("Concat", "g rest", "h", {"axis": 0}),
        ("Reshape", "x h", "a"),
    ],
}


@pytest.mark.parametrize("how", FLATTENING)
def test_pictures_are_made_rows(how, written):
    constants = {
        "s": np.array([-1, D]),
        "zero": np.array(0),
        "axis": np.array([0]),
        "rest": np.array([-1]),
    }
    made = model(
        [*FLATTENING[how], ("Gemm", "a W b", "y")], {**constants, "W": W, "b": b}, ("N", 1, 2, 3)
    )
    path = written(made)
    x = np.random.default_rng(3).normal(size=(5, 1, 2, 3)).astype(np.float32)
    np.testing.assert_allclose(xnet.onnx.load(path).predict(x), run(path, x), rtol=3e-6, atol=3e-6)


REFUSED = {
    "an operator that xnet has not": (
        [("Relu", "x", "a"), ("Erf", "a", "y")],
        {},
        r"Erf \(node 'n1'\)",
    ),
    "the first of several": ([("Erf", "x", "a"), ("Sin", "a", "y")], {}, r"Erf \(node 'n0'\)"),
    "inside a piece": (
        [("Sigmoid", "x", "a"), ("Sin", "x", "e"), ("Mul", "a e", "y")],
        {},
        r"Sin \(node 'n1'\)",
    ),
    "GELU of another form": ([("Gelu", "x", "y")], {}, r"Gelu \(node 'n0'\)"),
    "a hard sigmoid of another slope": (
        [("HardSigmoid", "x", "y", {"alpha": 0.2})],
        {},
        "HardSigmoid .*alpha=0.2",
    ),
    "a sum with what is not a layer's": ([("Relu", "x", "a"), ("Add", "a x", "y")], {}, "Add"),
    "the transpose of samples": ([("Gemm", "x W", "y", {"transA": 1})], {"W": W}, "transA=1"),
    "training": (
        [("BatchNormalization", "x d d d d", "y m v", {"training_mode": 1})],
        {"d": np.abs(d)},
        "BatchNormalization .*training_mode=1",
    ),
    "a norm of columns": ([("LayerNormalization", "x d", "y", {"axis": 0})], {"d": d}, "axis=0"),
    "labels alone": (
        [("Softmax", "x", "a"), ("ArgMax", "a", "y", {"axis": 1})],
        {},
        r"ArgMax \(node 'n1'",
    ),
    "a weight of another size": ([("Gemm", "x W", "y")], {"W": W[:, :0]}, "outputs is 0"),
    "sizes that do not fit": (
        [("Gemm", "x W", "a"), ("Gemm", "a W", "y")],
        {"W": W},
        "takes 6 features",
    ),
    "a weight that is computed": (
        [("Exp", "V", "W"), ("MatMul", "x W", "y")],
        {"V": W},
        r"Exp \(node 'n0'\)",
    ),
    "half precision": (
        [("Cast", "x", "a", {"to": onnx.TensorProto.FLOAT16}), ("Relu", "a", "y")],
        {},
        r"Cast \(node 'n0'",
    ),
    "two precisions": (
        [("Cast", "x", "a", {"to": onnx.TensorProto.DOUBLE}), ("Relu", "a", "y")],
        {},
        "computes in float32, and casts to float64",
    ),
    "rows that are made of other rows": (
        [("Reshape", "x s", "a"), ("Relu", "a", "y")],
        {"s": np.array([-1, 2])},
        "Reshape",
    ),
    "nothing": ([("Identity", "x", "y")], {}, "computes nothing"),
    "what depends on nothing": ([("Identity", "d", "y")], {"d": d}, "does not depend on the input"),
    "a function of its own": (
        [("Mine", "x", "y", {"domain": "mine"})],
        {},
        r"mine.Mine \(node 'n0'\)",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_xnet_has_not_is_refused_by_name(name, written):
    nodes, constants, said = REFUSED[name]
    domains = {more[0].get("domain", "") for _, _, _, *more in nodes if more} - {""}
    with pytest.raises(WeightsError, match=f"foreign.onnx: .*{said}"):
        xnet.onnx.load(written(model(nodes, constants, domains=domains)))


def test_more_than_one_input_is_refused(written):
    made = model([("Add", "x z", "y")])
    made.graph.input.append(helper.make_tensor_value_info("z", F, ["N", D]))
    with pytest.raises(WeightsError, match=r"2 inputs \(x, z\), expected one"):
        xnet.onnx.load(written(made))


def test_tensors_of_three_axes_are_no_rows(written):
    for nodes in ([("MatMul", "x W", "y")], [("Softmax", "x", "y")]):
        with pytest.raises(WeightsError, match=nodes[0][0]):
            xnet.onnx.load(written(model(nodes, {"W": W}, ("N", 5, D))))
    path = written(model([("Relu", "x", "y")], shape=("N", 5, D), rows=("N", 5, D)))
    x = np.random.default_rng(0).normal(size=(2, 5, D)).astype(np.float32)
    assert xnet.onnx.load(path).predict(x).tobytes() == run(path, x).tobytes()


@pytest.mark.parametrize("opset", [7, 9, 11, 12, 13, 15, 17])
def test_older_files(opset, written):
    nodes = [("Gemm", "x W b", "a"), ("Relu", "a", "e"), ("Softmax", "e", "y", {"axis": 1})]
    path = written(model(nodes, {"W": W, "b": b}, opset=opset))
    x = np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
    np.testing.assert_allclose(xnet.onnx.load(path).predict(x), run(path, x), rtol=1e-5)


def test_a_loss_that_is_named(written):
    """Scores with softmax with cross-entropy are probabilities; a softmax is that already."""
    nodes = [("Gemm", "x W b", "a"), ("Softmax", "a", "y")]
    x = np.random.default_rng(0).normal(size=(9, D)).astype(np.float32)
    scores = xnet.onnx.load(
        written(model([("Gemm", "x W b", "y")], {"W": W, "b": b})), loss=SoftmaxWithLoss()
    )
    probabilities = xnet.onnx.load(written(model(nodes, {"W": W, "b": b})), loss=SoftmaxWithLoss())
    assert scores.predict(x).tobytes() == probabilities.predict(x).tobytes()
    numbers = xnet.onnx.load(written(model([("Gemm", "x W b", "y")], {"W": W, "b": b})))
    assert isinstance(numbers.loss_layer.operation, IdentityWithLoss)
    sigmoid = [("Gemm", "x W b", "a"), ("Sigmoid", "a", "y")]
    found = xnet.onnx.load(written(model(sigmoid, {"W": W, "b": b})))
    assert isinstance(found.loss_layer.operation, BinaryCrossEntropy)


def test_backend_and_dtype(tmp_path):
    path = tmp_path / "net.onnx"
    xnet.onnx.export(filled([Affine(D, C)]), path)
    net = xnet.onnx.load(path, backend="numpy", dtype="float64")
    assert (net.dtype, net.backend.name) == ("float64", "numpy")
    with pytest.raises(ValueError, match="dtype is float16"):
        xnet.onnx.load(path, dtype="float16")


# -- files that are damaged, or meant to do harm


def test_damaged_files_are_refused_or_read(tmp_path):
    """However a file is altered, it is a network or a WeightsError, and soon."""
    path = tmp_path / "net.onnx"
    xnet.onnx.export(filled([Affine(3, 2), BatchNorm(2), ELU(0.3), LeakyReLU()]), path)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    cut = [content[: int(n)] for n in rng.integers(0, len(content), 60)]
    for k in range(240):
        altered = bytearray(content)
        for place in rng.integers(0, len(content), 1 + k % 3):
            altered[place] = rng.integers(256)
        cut.append(bytes(altered))
    refused = 0
    for one in cut:
        path.write_bytes(one)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                xnet.onnx.load(path)
        except WeightsError:
            refused += 1
    assert refused > 60


def test_what_is_no_file_of_onnx(tmp_path):
    path = tmp_path / "net.onnx"
    for content in (b"", b"PK\x03\x04", b"{}", os.urandom(100)):
        path.write_bytes(content)
        with pytest.raises(WeightsError, match=r"net\.onnx"):
            xnet.onnx.load(path)
    for odd, said in ((tmp_path / "none", "No such file"), (tmp_path, "directory")):
        with pytest.raises(WeightsError, match=said):
            xnet.onnx.load(odd)


def stored_outside(location, offset=None, length=None, dims=(D, C)):
    """A graph whose weight is in another file."""
    made = model([("MatMul", "x W", "y")], {"W": W})
    tensor = made.graph.initializer[0]
    tensor.ClearField("raw_data")
    del tensor.dims[:]
    tensor.dims.extend(dims)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in {"location": location, "offset": offset, "length": length}.items():
        if value is not None:
            tensor.external_data.add(key=key, value=str(value))
    return made


def test_data_beside_the_file(written, tmp_path):
    (tmp_path / "foreign.data").write_bytes(bytes(64) + W.tobytes())
    net = xnet.onnx.load(written(stored_outside("foreign.data", 64, W.nbytes)))
    assert net.params["W1"].tobytes() == W.tobytes()
    (tmp_path / "whole").write_bytes(W.tobytes())
    assert xnet.onnx.load(written(stored_outside("whole"))).params["W1"].tobytes() == W.tobytes()


HARMFUL = {
    "elsewhere": stored_outside("../outside.data", 0, W.nbytes),
    "absolute": stored_outside("/etc/passwd", 0, W.nbytes),
    "by a link": stored_outside("link", 0, W.nbytes),
    "a folder": stored_outside("folder", 0, W.nbytes),
    "not there": stored_outside("missing", 0, W.nbytes),
    "too short": stored_outside("short", 0, W.nbytes),
    "too long": stored_outside("long"),
    "behind its end": stored_outside("long", 10**9, W.nbytes),
    "before its beginning": stored_outside("long", -8, W.nbytes),
    "more than there is": stored_outside("long", 0, 4 * 10**12, (10**6, 10**6)),
}


@pytest.mark.parametrize("name", HARMFUL)
def test_data_that_are_not_there_are_refused(name, written, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path.parent / "outside.data").write_bytes(W.tobytes())
    (tmp_path / "short").write_bytes(W.tobytes()[:-1])
    (tmp_path / "long").write_bytes(W.tobytes() + b"x")
    (tmp_path / "link").symlink_to(tmp_path.parent / "outside.data")
    with pytest.raises(WeightsError, match=r"foreign\.onnx"):
        xnet.onnx.load(written(HARMFUL[name]))


def test_sizes_that_are_claimed_take_no_memory(written):
    made = model([("MatMul", "x W", "y")], {"W": W})
    del made.graph.initializer[0].dims[:]
    made.graph.initializer[0].dims.extend([10**9, 10**9])
    with pytest.raises(WeightsError):
        xnet.onnx.load(written(made))


def test_one_array_serves_not_ever_more_layers(written):
    square = np.eye(200, dtype=np.float32)
    nodes = [("MatMul", f"{'x' if k == 0 else f'a{k}'} W", f"a{k + 1}") for k in range(100)]
    made = model(nodes, {"W": square}, ("N", 200), outputs=("a100",))
    with pytest.raises(WeightsError, match="more than 16 times the bytes of the file"):
        xnet.onnx.load(written(made))


def test_numbers_that_are_not_finite_are_told_of(written):
    path = written(model([("MatMul", "x W", "y")], {"W": np.where(W > 1, np.nan, W)}))
    with pytest.warns(xnet.NonFiniteWarning, match=r"foreign\.onnx: NaN or infinity in .*W1"):
        xnet.onnx.load(path)


# -- the command


def test_the_command(tmp_path, monkeypatch):
    from typer.testing import CliRunner

    from xnet.tools import cli

    saved, path = tmp_path / "net.safetensors", tmp_path / "net.onnx"
    net = filled([Affine(D, C)], dtype="float64")
    weights.save(net, saved)
    for options, dtype in ([], "float64"), (["--dtype", "float32"], "float32"):
        done = CliRunner().invoke(cli.app, ["export", str(saved), str(path), *options])
        assert done.exit_code == 0, done.output
        assert f"net.onnx: ONNX, opset {xnet.onnx.OPSET}" in done.output.replace("\n", "")
        assert run(path, np.ones((2, D), dtype)).dtype == dtype
    done = CliRunner().invoke(cli.app, ["export", str(saved), str(path), "--json"])
    facts = {"file": str(path), "opset": xnet.onnx.OPSET, "bytes": path.stat().st_size}
    assert json.loads(done.output) == facts
    done = CliRunner().invoke(cli.app, ["export", str(path), str(path)])
    assert isinstance(done.exception, WeightsError)


# -- the exporters of PyTorch, Keras and scikit-learn


def compared(path, x, layers):
    """Read a file, and compare its predictions with another runtime's."""
    net = xnet.onnx.load(path)
    assert [type(layer.operation).__name__ for layer in net.layers] == layers.split()
    found = run(path, x)
    if isinstance(found, list):  # scikit-learn's, by class
        found = np.array([[row[key] for key in row] for row in found])
    with np.errstate(all="ignore"):
        bound = parity.prediction_bound(net, x)
    assert found.shape == net.predict(x).shape
    assert np.all(np.abs(net.predict(x) - found.astype(np.float64)) <= bound)
    return net


@pytest.mark.parametrize("dynamo", [False, True])
@pytest.mark.filterwarnings("ignore")
def test_pytorchs_exporters(dynamo, tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    if dynamo:
        pytest.importorskip("onnxscript", reason="onnxscript is not installed")
    nn, path = torch.nn, tmp_path / "module.onnx"
    torch.manual_seed(0)
    module = nn.Sequential(
        *(
            nn.Linear(D, 8),
            nn.GELU("tanh"),
            nn.BatchNorm1d(8),
            nn.SiLU(),
            nn.Linear(8, 8, bias=False),
        ),
        *(nn.LayerNorm(8), nn.Mish(), nn.Softplus(), nn.Hardsigmoid(), nn.Hardtanh(), nn.ELU(0.7)),
        *(
            nn.Linear(8, 8),
            nn.SELU(),
            nn.Dropout(),
            nn.LeakyReLU(0.2),
            nn.Linear(8, C),
            nn.Softmax(1),
        ),
    )
    for _ in range(3):
        module(torch.randn(50, D))
    how = {"dynamic_shapes": ({0: "N"},)} if dynamo else {"dynamic_axes": {"x": [0], "y": [0]}}
    names = {"input_names": ["x"], "output_names": ["y"]}
    torch.onnx.export(module.eval(), (torch.zeros(3, D),), path, dynamo=dynamo, **how, **names)
    x = np.random.default_rng(0).normal(size=(20, D)).astype(np.float32)
    net = compared(
        path,
        x,
        "Affine GELU BatchNorm SiLU Affine LayerNorm Mish Softplus HardSigmoid HardTanh ELU Affine "
        "SELU LeakyReLU Affine",
    )
    assert net.layers[2].variance.tobytes() == module[2].running_var.numpy().tobytes()
    assert net.params["W1"].tobytes() == module[0].weight.detach().numpy().T.tobytes()
    assert repr(net.layers[13]) == "LeakyReLU(0.2)"


@pytest.mark.filterwarnings("ignore")
def test_kerass_exporter(tmp_path):
    keras = require_keras()
    if keras.backend.backend() != "torch":
        pytest.skip(
            "Keras runs on another of its backends, and needs more packages to export there"
        )
    L, path = keras.layers, tmp_path / "model.onnx"
    hidden = [L.Dense(8, "relu"), L.BatchNormalization(), L.Dense(8, "silu"), L.Dropout(0.2)]
    model = keras.Sequential([keras.Input((D,)), *hidden, L.Dense(C, "softmax")])
    x = np.random.default_rng(0).normal(size=(20, D)).astype(np.float32)
    model(x)
    model.export(path, format="onnx", verbose=False)
    compared(path, x, "Affine ReLU BatchNorm Affine SiLU Affine")


def classes(how, y):
    """Labels of each kind that scikit-learn has, of the bits y (N, 3)."""
    number = y[:, :2].sum(axis=1)
    texts = np.array(["a", "b", "c"])[number]
    return {"two": y[:, 0], "three": number, "texts": texts, "several": y}[how]


@pytest.mark.parametrize("zipmap", [True, False])
@pytest.mark.parametrize("how", ["two", "three", "texts", "several"])
@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_classifiers(how, zipmap, tmp_path):
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    x = np.random.default_rng(0).normal(3, 2, size=(80, D)).astype(np.float32)
    y = classes(how, (x[:, :3] > 3).astype(int))
    one = make_pipeline(StandardScaler(), MLPClassifier((7,), "tanh", max_iter=5)).fit(x, y)
    path = tmp_path / "one.onnx"
    options = {MLPClassifier: {"zipmap": zipmap}}
    path.write_bytes(skl2onnx.to_onnx(one, x[:1], options=options).SerializeToString())
    net = compared(path, x, "BatchNorm Affine Tanh Affine")
    np.testing.assert_allclose(net.predict(x), one.predict_proba(x), atol=1e-5)


@pytest.mark.filterwarnings("ignore")
def test_scikit_learns_regressor(tmp_path):
    skl2onnx = pytest.importorskip("skl2onnx", reason="skl2onnx is not installed")
    from sklearn.neural_network import MLPRegressor

    x = np.random.default_rng(0).normal(size=(80, D)).astype(np.float32)
    one = MLPRegressor(hidden_layer_sizes=(7, 5), activation="logistic", max_iter=5).fit(x, x[:, 0])
    path = tmp_path / "one.onnx"
    path.write_bytes(skl2onnx.to_onnx(one, x[:1]).SerializeToString())
    net = compared(path, x, "Affine Sigmoid Affine Sigmoid Affine")
    np.testing.assert_allclose(net.predict(x)[:, 0], one.predict(x), atol=1e-5)


# -- ONNX's own tests of its operators

LAST_AXIS = ("LayerNormalization", "Softmax", "Dropout", "Add", "Sub", "Mul", "Div")
"""Operators whose tests on more axes say something of rows, too: those of the last axis."""

UNFIT = {
    "test_*_expanded*": "how a function could be composed of others, not how exporters write it",
    "test_*int*": "whole numbers",
    "test_*float16*": "half precision",
    "test_*_training_mode": "an export that trains",
    "test_training_dropout*": "an export that trains",
    "test_*layer_normalization_*axis[0-3]*": "an axis counted from the first of more than two",
    "test_layer_normalization_*axis_negative_[2-4]*": "norms of several axes",
    "test_softmax_axis_*": "an axis counted from the first of three",
    "test_matmul_[34]d": "products of stacks of matrices",
    "test_matmul_bcast": "products of stacks of matrices",
    "test_matmul_1d_*": "products of vectors",
    "test_matmul_4d_1d": "products of vectors",
    "test_gemm_transposeA": "the transpose of samples",
    "test_gemm_all_attributes": "the transpose of samples",
    "test_gemm_default_matrix_bias": "a bias of each sample",
    "test_gelu_default_*": "GELU with the error function",
    "test_hardsigmoid*": "other slopes than 1/6",
    "test_clip*": "other bounds than -1 and 1, or 0 and none",
    "test_max*": "of two tensors",
    "test_where*": "of two tensors",
    "test_greater*": "truths, no numbers",
    "test_concat*": "of two tensors",
    **{f"test_{name}": "of two tensors" for name in ("add", "sub", "mul", "div")},
    **{f"test_{name}_example": "of two tensors" for name in ("sub", "mul", "div")},
    "test_flatten*": "no network: it changes no number, or the samples",
    "test_reshape*": "no network: it changes no number, or the samples",
    "test_identity*": "no network: it changes no number",
    "test_dropout_default_mask*": "a second output that says what is dropped",
    "test_constant*": "no network: it has no input",
    "test_cast*": "no network: it changes types alone",
    "test_squeeze*": "axes beside rows",
    "test_unsqueeze*": "axes beside rows",
    "test_transpose*": "the transpose of samples",
}
"""Tests of operators that `load` knows which no network of rows can express, and why."""


def as_rows(case, x, y):
    """A case's model, input and output as those of rows, where it is one of the last axis."""
    made = onnx.ModelProto.FromString(case.model.SerializeToString())
    operators = {node.op_type for node in made.graph.node}
    axes = {a.i for node in made.graph.node for a in node.attribute if a.name == "axis"}
    del made.graph.output[1:]
    if x.ndim > 2 and operators <= {"BatchNormalization"}:  # channels are the second axis
        x, y = np.moveaxis(x, 1, -1), np.moveaxis(y, 1, -1)
    elif x.ndim == 2 or not operators <= {*LAST_AXIS} or not axes <= {-1}:
        return made, x, y
    x, y = x.reshape(-1, x.shape[-1]), y.reshape(-1, y.shape[-1])
    for value, array in ((made.graph.input[0], x), (made.graph.output[0], y)):
        kind = helper.np_dtype_to_tensor_dtype(array.dtype)
        value.CopyFrom(helper.make_tensor_value_info(value.name, kind, array.shape))
    return made, x, y


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_onnxs_own_tests(written):
    """Each test of operators that are known passes, or is refused and known to be no network."""
    from onnx.backend.test.case.node import collect_testcases

    from xnet import spellings

    terms = [
        s
        for kind in REGISTERED
        for s in spellings.spellings(kind)[: len(spellings.SPELLINGS.get(kind, ()))]
    ]
    known = {part.operator for one in terms for part in spellings.parts(one)}
    known |= xnet.onnx.READERS.keys() | xnet.onnx.FOLDED
    passed, wrong = set(), []
    for case in collect_testcases(None):
        operators = {xnet.onnx._operator(node) for node in case.model.graph.node}
        unfit = any(fnmatch.fnmatch(case.name, pattern) for pattern in UNFIT)
        if not operators <= known:
            continue
        inputs, (y, *_) = case.data_sets[0]
        if not all(isinstance(array, np.ndarray) for array in (*inputs, y)):
            continue  # sequences, and optional tensors
        if not inputs:
            assert unfit
            continue
        made, x, y = as_rows(case, inputs[0], y)
        for value, array in zip(list(case.model.graph.input)[1:], inputs[1:], strict=True):
            made.graph.initializer.append(to_tensor(array, value.name))
        try:
            found = xnet.onnx.load(written(made)).predict(x)
            np.testing.assert_allclose(found, y, case.rtol, case.atol)
            assert (found.shape, found.dtype) == (y.shape, y.dtype)
            passed |= operators
        except WeightsError as error:
            if not unfit:
                wrong.append(f"{case.name}: {error!s:.200}")
        except AssertionError as error:
            wrong.append(f"{case.name}: {error!s:.200}")
    assert not wrong, "\n".join(wrong)
    assert passed == {
        *(
            "Add",
            "BatchNormalization",
            "Div",
            "Dropout",
            "Elu",
            "Gelu",
            "Gemm",
            "LayerNormalization",
        ),
        *("LeakyRelu", "MatMul", "Mish", "Mul", "Relu", "Selu", "Sigmoid", "Softmax", "Softplus"),
        *("Sub", "Swish", "Tanh"),
    }


# -- the page


@pytest.mark.filterwarnings("ignore")
def test_the_pages_blocks_of_other_packages(tmp_path, monkeypatch):
    """Those that tests/test_docs.py leaves out, where the packages that they need are installed."""
    require_keras()
    for package in ("torch", "numba"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    monkeypatch.chdir(tmp_path)
    found = blocks(ROOT / "docs" / "onnx.md")
    namespace, done = {}, 0
    for block, then in itertools.pairwise([*found, None]):
        if block.language not in ("py", "python") or (then and "Error" in then.text):
            continue
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(compile(block.text, "onnx.md", "exec"), namespace)
        if then and then.language == "text" and block.language == "py":
            assert out.getvalue() == then.text
        done += block.language == "py"
    assert done == 4
