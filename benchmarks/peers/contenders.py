"""Other projects on the network and data of `bench.py`; what is not installed is left out, said.

    python benchmarks/peers/contenders.py inference
    python benchmarks/peers/contenders.py training

On MNIST's images. Needs any of: pip install onnxruntime onnx torch jax scikit-learn thinc
"""

import os
import sys
from importlib.util import find_spec
from pathlib import Path

import numpy as np

import xnet

sys.path.insert(0, str(Path(__file__).parent.parent))
import bench
from report import FIGURES, save, without_handicaps

THREADS = xnet.num_threads()


def onnx_runtime(network):
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    nodes, weights, last = [], [], "x"
    for k, layer in enumerate(network.layers):
        if layer.params:
            weights += [numpy_helper.from_array(v, f"{n}{k}") for n, v in layer.params.items()]
            nodes.append(helper.make_node("Gemm", [last, f"W{k}", f"b{k}"], [f"y{k}"]))
        else:
            nodes.append(helper.make_node("Sigmoid", [last], [f"y{k}"]))
        last = f"y{k}"
    nodes.append(helper.make_node("Softmax", [last], ["y"], axis=-1))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", width])]
        for name, width in (("x", 784), ("y", 10))
    ]
    graph = helper.make_graph(nodes, "network", *ends, weights)
    opset = [helper.make_opsetid("", 17)]
    model = helper.make_model(graph, opset_imports=opset, ir_version=9)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return lambda x: session.run(None, {"x": x})[0]


def _torch_layers(network):
    import torch

    torch.set_num_threads(THREADS)
    modules = []
    for layer in network.layers:
        if layer.params:
            linear = torch.nn.Linear(layer.inputs, layer.outputs)
            linear.weight.data = torch.tensor(layer.W.T.copy())
            linear.bias.data = torch.tensor(layer.b)
            modules.append(linear)
        else:
            modules.append(getattr(torch.nn, type(layer).__name__)())
    return torch.nn.Sequential(*modules)


def pytorch(network):
    import torch

    model = torch.nn.Sequential(*_torch_layers(network), torch.nn.Softmax(dim=1))

    def predict(x):
        with torch.inference_mode():
            return model(torch.from_numpy(x)).numpy()

    return predict


def jax_jitted(network):
    import jax

    params = [(jax.numpy.array(v.W), jax.numpy.array(v.b)) for v in network.layers if v.params]

    @jax.jit
    def predict(params, x):
        for W, b in params[:-1]:
            x = jax.nn.sigmoid(x @ W + b)
        W, b = params[-1]
        return jax.nn.softmax(x @ W + b)

    return lambda x: np.asarray(predict(params, x))


def scikit_learn(network):
    from sklearn.neural_network import MLPClassifier

    hidden = [v.outputs for v in network.layers if v.params][:-1]
    model = MLPClassifier(hidden, activation="logistic", max_iter=1)
    rng = np.random.default_rng(0)
    model.partial_fit(rng.random((20, 784), np.float32), np.arange(20) % 10, classes=np.arange(10))
    model.coefs_ = [v.W for v in network.layers if v.params]
    model.intercepts_ = [v.b for v in network.layers if v.params]
    return model.predict_proba


def thinc(network):
    return _thinc_model(network).predict


def _thinc_model(network):
    from thinc.api import Linear, Softmax, chain

    affine = [v for v in network.layers if v.params]
    parts = [
        (Softmax if v is affine[-1] else Linear)(v.outputs, v.inputs)
        if v.params
        else _thinc_activation(type(v).__name__)
        for v in network.layers
    ]
    model = chain(*parts)
    model.initialize()
    for part, v in zip(parts, network.layers, strict=True):
        if v.params:
            part.set_param("W", v.W.T.copy())
            part.set_param("b", v.b.copy())
    return model


def _thinc_activation(name):
    from thinc.api import Model

    def forward(model, x, is_train):
        y = model.ops.sigmoid(x) if name == "Sigmoid" else model.ops.relu(x)

        def backward(dy):
            if name == "Sigmoid":
                return dy * y * (1 - y)
            return model.ops.backprop_relu(dy, y)

        return y, backward

    return Model(name, forward)


def thinc_step(network, x, t, lr):
    from thinc.api import SGD

    model, optimizer = _thinc_model(network), SGD(lr, L2=0, grad_clip=0)
    targets = np.eye(10, dtype=x.dtype)[t]

    def step():
        y, backpropagate = model.begin_update(x)
        backpropagate((y - targets) / len(x))  # by the scores: the last layer is its softmax
        model.finish_update(optimizer)
        return -np.sum(targets * np.log(y)) / len(x)

    return step


def scikit_learn_step(network, x, t, lr):
    from sklearn.neural_network import MLPClassifier

    affine = [v for v in network.layers if v.params]
    model = MLPClassifier(
        [v.outputs for v in affine[:-1]], activation="relu", solver="sgd", alpha=0, momentum=0,
        learning_rate_init=lr, batch_size=len(x), shuffle=False,
    )  # fmt: skip
    model.partial_fit(x, t, classes=np.arange(10))
    for v, W, b in zip(affine, model.coefs_, model.intercepts_, strict=True):
        W[...], b[...] = v.W, v.b

    def step():
        model.partial_fit(x, t)  # one batch is one step
        return model.loss_

    return step


def pytorch_step(network, x, t, lr):
    import torch

    model, x, t = _torch_layers(network), torch.from_numpy(x), torch.from_numpy(t)
    optimizer = torch.optim.SGD(model.parameters(), lr)

    def step():
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def jax_step(network, x, t, lr):
    import jax

    def loss_of(params, x, t):
        (W1, b1), (W2, b2) = params
        scores = jax.nn.relu(x @ W1 + b1) @ W2 + b2
        return -jax.numpy.sum(t * jax.nn.log_softmax(scores)) / x.shape[0]

    @jax.jit
    def update(params, x, t):
        loss, gradients = jax.value_and_grad(loss_of)(params, x, t)
        return loss, jax.tree.map(lambda W, g: W - lr * g, params, gradients)

    params = [(jax.numpy.array(v.W), jax.numpy.array(v.b)) for v in network.layers if v.params]
    x, t = jax.numpy.array(x), jax.numpy.array(np.eye(10, dtype=x.dtype)[t])

    def step():
        nonlocal params
        loss, params = update(params, x, t)
        return float(loss)

    return step


INFERENCE = {
    "ONNX Runtime": (("onnxruntime", "onnx"), onnx_runtime),
    "PyTorch": (("torch",), pytorch),
    "JAX jitted": (("jax",), jax_jitted),
    "scikit-learn": (("sklearn",), scikit_learn),
    "Thinc": (("thinc",), thinc),
}
TRAINING = {
    "PyTorch": (("torch",), pytorch_step),
    "JAX jitted": (("jax",), jax_step),
    "scikit-learn": (("sklearn",), scikit_learn_step),
    "Thinc": (("thinc",), thinc_step),
}


def installed(peers):
    """Those that are installed; of the others it is said which package is missing."""
    found = {}
    for name, (modules, make) in peers.items():
        missing = [m for m in modules if find_spec(m) is None]
        if missing:
            print(f"{name}: left out, {', '.join(missing)} not installed")
        else:
            found[name] = make
    return found


def main():
    part = sys.argv[1] if len(sys.argv) > 1 else "inference"
    (x, t), _ = xnet.datasets.load_mnist()
    x = np.ascontiguousarray(x[:10_000], np.float32)
    if part == "inference":
        found = bench.inference(installed(INFERENCE), x=x)
    else:
        found = bench.training(installed(TRAINING), x[:100], t[:100].astype(np.int64))
    print(bench.table(found))
    packages = ("onnxruntime", "torch", "jax", "scikit-learn", "thinc")
    facts = {"machine": bench.machine(*packages), "data": "MNIST", "seconds": found}
    facts["load_average"] = os.getloadavg()
    if torch := sys.modules.get("torch"):
        kernels = torch.backends.cpu.get_cpu_capability()
        facts["machine"]["blas"].append(f"PyTorch: {kernels}, {torch.get_num_threads()} thread(s)")
    print(f"the others choose their kernels for this processor: {THREADS} thread(s)")
    facts["floor_seconds_per_image"] = bench.floor()
    save(part, facts)
    if part == "inference":
        from xnet import plotting

        figure = plotting.throughput(found, facts["floor_seconds_per_image"])
        plotting.save(figure, FIGURES / "throughput.png")


if __name__ == "__main__":
    without_handicaps()
    main()
