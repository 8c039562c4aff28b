"""xnet.foreign: PyTorch's and Keras's networks give the same numbers, or are refused by name."""

import os
import warnings
from importlib.util import find_spec

import numpy as np
import pytest
import safetensors.numpy

import xnet
from xnet import WeightsError, foreign, weights
from xnet.layers import Layer
from xnet.operations import (
    Affine,
    BatchNorm,
    Dropout,
    IdentityWithLoss,
    LayerNorm,
    Operation,
    ReLU,
    Sigmoid,
    Softmax,
    SoftmaxWithLoss,
)
from xnet.optimizers import SGD
from xnet.testing.parity import prediction_bound

D, H, C = 12, 8, 5
X = np.random.default_rng(0).normal(size=(40, D))
LOSS = "IdentityWithLoss()"


def within(net, x, expected):
    """Whether predictions are within fast mode's bound of another framework's."""
    rows = x.reshape(len(x), -1)
    difference = np.abs(net.predict(x).astype(np.float64) - expected)
    return bool(np.all(difference <= prediction_bound(net, rows)))


def names(net):
    return [type(layer.operation).__name__ for layer in net.layers]


# -- PyTorch


@pytest.fixture(scope="module")
def torch():
    found = pytest.importorskip("torch", reason="PyTorch is not installed")
    found.manual_seed(0)
    return found


def trained(torch, *modules):
    """A module whose running means are not as they begin, in evaluation."""
    module = torch.nn.Sequential(*modules)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
        for _ in range(3):
            module(torch.randn(60, *shape_of(modules)))
    return module.eval()


def shape_of(modules):
    return (3, 4) if type(modules[0]).__name__ == "Flatten" else (D,)


SETTINGS = {
    "Linear": ((H, H), (H, H, False)),
    "LeakyReLU": ((), (0.2,)),
    "ELU": ((), (0.6,)),
    "GELU": (("tanh",),),
    "Softmax": ((1,), (-1,)),
    "BatchNorm1d": ((H,), (H, 1e-3, None), (H, 1e-5, 0.3, False)),
    "LayerNorm": ((H,), (H, 1e-3), (H, 1e-5, False), (H, 1e-5, True, False)),
    "Dropout": ((), (0.2,)),
}
TORCH = [(name, given) for name in foreign.TORCH for given in SETTINGS.get(name, ((),))]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(("name", "given"), TORCH)
def test_every_module_of_pytorch(torch, name, given, dtype):
    one = getattr(torch.nn, name)(*given)
    first = [torch.nn.Flatten()] if name == "Flatten" else []
    module = trained(torch, *first, torch.nn.Linear(D, H), one, torch.nn.Linear(H, C))
    module = module.to(getattr(torch, dtype))
    net = weights.from_torch(module)
    assert (net.dtype, repr(net.loss_layer)) == (dtype, LOSS)
    x = X.astype(dtype).reshape(-1, *shape_of(module))
    assert within(net, x, module(torch.tensor(x)).detach().numpy())
    before = module[-1].weight.detach().clone()
    net.train_step(x, np.ones((len(x), C)), SGD(0.1))
    assert torch.equal(before, module[-1].weight)


def test_sequences_in_sequences(torch):
    nn = torch.nn
    inner = nn.Sequential(
        nn.Linear(H, H), nn.Sequential(nn.Mish(), nn.BatchNorm1d(H)), nn.Identity()
    )
    module = trained(torch, nn.Flatten(), nn.Linear(D, H), inner, nn.Linear(H, C), nn.Softmax(1))
    net = weights.from_torch(module)
    assert names(net) == ["Affine", "Affine", "Mish", "BatchNorm", "Affine"]
    assert repr(net.loss_layer) == "SoftmaxWithLoss()"
    x = X.astype(np.float32).reshape(-1, 3, 4)
    assert within(net, x, module(torch.tensor(x)).detach().numpy())


def test_the_loss_of_a_module(torch):
    nn, x = torch.nn, X.astype(np.float32)
    module = nn.Sequential(nn.Linear(D, C))
    scores = weights.from_torch(module)
    net = weights.from_torch(module, SoftmaxWithLoss(0.1), dtype="float64", backend="numpy")
    assert (net.dtype, repr(net.loss_layer)) == ("float64", "SoftmaxWithLoss(label_smoothing=0.1)")
    probabilities = torch.softmax(module(torch.tensor(x)), 1).detach().numpy()
    np.testing.assert_allclose(net.predict(x), probabilities, rtol=1e-5)
    np.testing.assert_allclose(
        scores.predict(x), module(torch.tensor(x)).detach().numpy(), atol=1e-5
    )
    binary = weights.from_torch(nn.Sequential(nn.Linear(D, 1), nn.Sigmoid()))
    assert repr(binary.loss_layer) == "BinaryCrossEntropy()"
    lone = weights.from_torch(nn.Sequential(nn.Linear(D, 1), nn.Softmax(1)))
    assert repr(lone.loss_layer) == LOSS  # one score is no choice between classes
    assert lone.predict(x).tolist() == [[1.0]] * len(x)


def test_what_of_pytorch_is_refused(torch):
    nn = torch.nn

    class Mine(nn.Linear):
        pass

    class Whole(nn.Sequential):
        pass

    for module, said in (
        (nn.Sequential(nn.Conv2d(1, 2, 3)), r"module\[0\] is a Conv2d, which xnet has not"),
        (nn.Sequential(nn.Sequential(Mine(2, 2))), r"module\[0\]\[0\] is a Mine"),
        (Whole(nn.Linear(2, 2)), "module is a Whole"),
        (nn.Sequential(nn.GELU()), "a GELU: approximate is 'none', xnet has it with 'tanh' alone"),
        (nn.Sequential(nn.Softplus(2)), "beta is 2"),
        (nn.Sequential(nn.Hardtanh(-2, 2)), "min_val is -2"),
        (nn.Sequential(nn.Softmax(0)), "dim is 0"),
        (nn.Sequential(nn.Flatten(2)), "start_dim is 2"),
        (nn.Sequential(nn.LayerNorm((2, 3))), "normalized_shape"),
        (nn.Sequential(nn.BatchNorm1d(2, track_running_stats=False)), "track_running_stats"),
        (nn.Sequential(nn.Linear(2, 2).bfloat16()), "bfloat16"),
        (nn.Sequential(nn.Linear(2, 3), nn.Linear(2, 2)), "takes 2 features"),
        (nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2).double()), "float32 and float64"),
        (nn.Sequential(), "no layer"),
    ):
        with pytest.raises(WeightsError, match=said):
            weights.from_torch(module)
    for odd in (3, xnet.TwoLayerNet(2, 2, 2)):
        with pytest.raises(TypeError, match="expected a Sequential of torch"):
            weights.from_torch(odd)


# -- PyTorch's files


LAYERS = [
    Affine(D, H),
    BatchNorm(H),
    ReLU(),
    Affine(H, H),
    LayerNorm(H),
    Dropout(0.1),
    Affine(H, C),
]


@pytest.fixture
def saved(torch, tmp_path):
    """A module, and the file of it."""
    nn = torch.nn
    inner = nn.Sequential(nn.ReLU(), nn.Linear(H, H, bias=False), nn.LayerNorm(H), nn.Dropout(0.1))
    module = trained(
        torch, nn.Flatten(), nn.Linear(D, H), nn.BatchNorm1d(H), inner, nn.Linear(H, C)
    )
    path = tmp_path / "module.safetensors"
    arrays = {k: v.numpy() for k, v in module.state_dict().items()}
    safetensors.numpy.save_file(arrays, path)
    return module, path


def test_a_file_of_pytorchs(torch, saved):
    module, path = saved
    net = weights.load_network(path, layers=LAYERS, loss=IdentityWithLoss())
    x = X.astype(np.float32)
    assert within(net, x, module(torch.tensor(x.reshape(-1, 3, 4))).detach().numpy())
    assert net.layers[0].W.tobytes() == module[1].weight.detach().numpy().T.tobytes()
    assert repr(weights.load_network(path, layers=LAYERS).loss_layer) == "SoftmaxWithLoss()"
    wide = weights.load_network(path, "numpy", "float64", layers=[Layer.of(v) for v in LAYERS])
    assert wide.dtype == "float64"


def test_more_than_ten_modules_keep_their_order(torch, tmp_path):
    """By number, not by name: 10.weight comes after 9.weight."""
    nn = torch.nn
    module = nn.Sequential(*(nn.Linear(3, 3) for _ in range(12)))
    path = tmp_path / "module.safetensors"
    safetensors.numpy.save_file({k: v.numpy() for k, v in module.state_dict().items()}, path)
    net = weights.load_network(path, layers=[Affine(3, 3)] * 12, loss=IdentityWithLoss())
    x = X[:, :3].astype(np.float32)
    assert within(net, x, module(torch.tensor(x)).detach().numpy())


class Own(Operation):
    units: int
    parameters = {"gamma": ("units",)}  # noqa: RUF012


def test_files_that_do_not_fit_the_layers(saved, tmp_path):
    _, path = saved
    arrays = safetensors.numpy.load_file(path)

    def without(*gone, **more):
        return {k: v for k, v in arrays.items() if k not in gone} | more

    for held, layers, said in (
        (arrays, LAYERS[:1], "arrays of 5 modules, layers has 1 with parameters"),
        (
            arrays,
            [Affine(D, H + 1), *LAYERS[1:]],
            r"1: .*W has shape \(12, 8\), expected \(12, 9\)",
        ),
        (arrays, [LAYERS[1], LAYERS[0], *LAYERS[2:]], "1.running_mean is missing, for BatchNorm"),
        (without("1.weight"), LAYERS, "1.weight is missing, for Affine"),
        (without(**{"1.scale": arrays["1.bias"]}), LAYERS, "1.scale is none of Affine"),
        (
            without(**{"fc.weight": arrays["1.bias"]}),
            LAYERS,
            "'fc.weight' is not named as by an nn.Seq",
        ),
        (without(**{"weight": arrays["1.bias"]}), LAYERS, "'weight' is not named"),
        (without(**{"1.weight": arrays["1.weight"].astype("f2")}), LAYERS, "dtype of W is float16"),
        ({"0.weight": arrays["1.bias"]}, [Own(H)], "Own.* PyTorch has no module"),
    ):
        other = tmp_path / "other.safetensors"
        safetensors.numpy.save_file(held, other)
        with pytest.raises(WeightsError, match=f"other.safetensors: .*{said}"):
            weights.load_network(other, layers=layers)
    with pytest.raises(WeightsError, match=r"load_network\(path, layers=\[...\]\)"):
        weights.load_network(path)
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(WeightsError, match="damaged"):
        weights.load_network(path, layers=LAYERS)


def test_layers_that_are_given_stay_as_they_are(saved):
    _, path = saved
    layers = [Layer.of(v) for v in LAYERS]
    weights.load_network(path, layers=layers)
    assert layers[0].params == {"W": None, "b": None}


# -- Keras


of_keras = pytest.mark.filterwarnings("ignore::DeprecationWarning:keras")
"""It warns of its own use of NumPy."""


def require_keras():
    """Keras, on one of the libraries that it computes with; the test skips without."""
    installed = [name for name in ("torch", "jax", "tensorflow") if find_spec(name)]
    if find_spec("keras") is None or not installed:
        pytest.skip("Keras, or what it computes with, is not installed")
    # It reads this when it is imported, and takes TensorFlow otherwise.
    os.environ.setdefault("KERAS_BACKEND", installed[0])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import keras
    return keras


@pytest.fixture(scope="module")
def keras():
    found = require_keras()
    found.utils.set_random_seed(0)
    return found


def predictions(keras, layers, x):
    """A model of these layers, with weights of no kind, and what it predicts."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = keras.Sequential([keras.Input(x.shape[1:]), *layers])
        rng = np.random.default_rng(0)
        model.set_weights([rng.uniform(0.1, 0.9, w.shape) for w in model.get_weights()])
        return model, keras.ops.convert_to_numpy(model(x, training=False))


def keras_layers(keras):
    """Each of the table's, as it is and otherwise."""
    L = keras.layers
    return {
        "Dense": [L.Dense(H), L.Dense(H, "relu"), L.Dense(H, use_bias=False)],
        "Activation": [L.Activation(name) for name in foreign.ACTIVATIONS],
        "ReLU": [L.ReLU()],
        "LeakyReLU": [L.LeakyReLU(), L.LeakyReLU(negative_slope=0.1)],
        "ELU": [L.ELU(0.7)],
        "Softmax": [L.Softmax()],
        "BatchNormalization": [
            L.BatchNormalization(momentum=0.8),
            L.BatchNormalization(center=False, epsilon=1e-4),
            L.BatchNormalization(scale=False),
        ],
        "LayerNormalization": [L.LayerNormalization(), L.LayerNormalization(center=False)],
        "Dropout": [L.Dropout(0.3)],
        "Flatten": [L.Flatten()],
        "InputLayer": [],
    }


@of_keras
def test_every_layer_of_keras(keras):
    table = keras_layers(keras)
    assert table.keys() == foreign.KERAS.keys()
    x = X.astype(np.float32)
    for one in (one for found in table.values() for one in found):
        model, expected = predictions(keras, [keras.layers.Dense(H), one, keras.layers.Dense(C)], x)
        net = weights.from_keras(model)
        assert repr(net.loss_layer) == LOSS
        assert within(net, x, expected), one


@of_keras
def test_sequences_of_keras(keras):
    L = keras.layers
    inner = keras.Sequential([L.Dense(H, "selu"), L.BatchNormalization(momentum=0.7)])
    x = X.astype(np.float32).reshape(-1, 3, 4)
    model, expected = predictions(
        keras, [L.Flatten(), inner, L.Dropout(0.2), L.Dense(C, "softmax")], x
    )
    net = weights.from_keras(model, backend="numpy")
    assert names(net) == ["Affine", "SELU", "BatchNorm", "Dropout", "Affine"]
    assert net.layers[2].decay == pytest.approx(0.7)
    assert repr(net.loss_layer) == "SoftmaxWithLoss()"
    assert within(net, x, expected)


@of_keras
def test_what_of_keras_is_refused(keras):
    L = keras.layers

    def own(x):
        return x

    for layers, said in (
        ([L.Reshape((3, 4)), L.Conv1D(2, 2)], r"model\[0\] is a Reshape, which xnet has not"),
        ([L.Dense(3, "gelu")], "a Dense: activation gelu, which xnet has not"),
        ([L.Dense(3, own)], "activation own"),
        ([L.ReLU(max_value=6)], "max_value is 6"),
    ):
        with pytest.raises(WeightsError, match=said):
            weights.from_keras(keras.Sequential([keras.Input((D,)), *layers]))
    with pytest.raises(WeightsError, match="no weights yet"):
        weights.from_keras(keras.Sequential([L.Dense(3)]))
    given = keras.Input((D,))
    with pytest.raises(WeightsError, match="model is a Functional"):
        weights.from_keras(keras.Model(given, L.Dense(3)(given)))
    with pytest.raises(TypeError, match="model is a int, expected a Sequential of keras"):
        weights.from_keras(3)


# -- networks of layers


def test_the_last_layer_becomes_the_losss():
    def made(*operations, loss=None):
        return repr(foreign.network_of([Layer.of(v) for v in operations], loss).loss_layer)

    assert made(Affine(2, 3), Softmax()) == "SoftmaxWithLoss()"
    assert made(Affine(2, 3), Sigmoid()) == "BinaryCrossEntropy()"
    assert made(Affine(2, 3), ReLU()) == made(Softmax()) == LOSS
    net = foreign.network_of([Layer.of(Affine(2, 3)), Layer.of(Sigmoid())], SoftmaxWithLoss())
    assert names(net) == ["Affine", "Sigmoid"]
