"""xnet.training: mini-batches, the loop, what it records, and how it ends."""

import contextlib
import functools
import io
import itertools
import math
import re
import signal
import sys
import warnings

import numpy as np
import pytest
import threadpoolctl
from conftest import LAYER_KINDS, OPTIMIZERS, SIZES, require_host_cuda, variants

import xnet
from xnet import WeightsError, datasets, progress, weights
from xnet.layers import Layer, LossLayer
from xnet.measures import r_squared
from xnet.network import Network, TwoLayerNet
from xnet.operations import Affine, BatchNorm, Dropout, IdentityWithLoss, ReLU
from xnet.optimizers import SGD, Optimizer
from xnet.random import Generator
from xnet.samples import minibatches
from xnet.training import History, Training, train


def bits(network: Network) -> dict[str, bytes]:
    """Every parameter, and state, to the last bit."""
    every = dict(network.params) | {f"state {k}": v for k, v in network.state.items()}
    return {name: network.backend.to_numpy(a).tobytes() for name, a in every.items()}


def make_network(loss=None, **where) -> Network:
    return Network([Affine(2, 8, "he"), ReLU(), Affine(8, 2, "he")], loss, **where)


def make_noisy_network(**where) -> Network:
    """With state, and random draws."""
    parts = [Affine(2, 8, "he"), BatchNorm(8), ReLU(), Dropout(0.25), Affine(8, 2, "he")]
    return Network(parts, **where)


def make_data(n=200, seed=0) -> tuple[np.ndarray, np.ndarray]:
    """Points of the plane, in two classes that a line parts."""
    x = np.random.default_rng(seed).standard_normal((n, 2))
    return x, (x[:, 0] > x[:, 1]).astype(np.int64)


@pytest.fixture
def data():
    return make_data()


def run(network: Network, *data, **settings) -> History:
    """Train in silence."""
    return train(network, *data, progress=False, **settings)


# Mini-batches.


def test_each_sample_comes_once_an_epoch(rng):
    batches = minibatches(10, 3, rng)
    epochs = [[next(batches) for _ in range(4)] for _ in range(3)]
    for epoch in epochs:
        assert [len(batch) for batch in epoch] == [3, 3, 3, 1]
        assert sorted(np.concatenate(epoch)) == list(range(10))
        assert all(batch.dtype == np.int64 for batch in epoch)
    orders = {tuple(np.concatenate(epoch).tolist()) for epoch in epochs}
    assert len(orders) == 3


def test_batch_larger_than_the_data_is_all_of_them(rng):
    assert sorted(next(minibatches(4, 100, rng))) == [0, 1, 2, 3]


def test_draws_with_replacement(rng):
    drawn = list(itertools.islice(minibatches(10, 6, rng, replacement=True), 1000))
    assert {batch.shape for batch in drawn} == {(6,)}
    counts = np.bincount(np.concatenate(drawn), minlength=10)
    assert counts.size == 10
    # Each of 10 is drawn 6000 / 10 times, give or take 6 standard deviations.
    assert (np.abs(counts - 600) < 6 * math.sqrt(6000 * 0.1 * 0.9)).all()
    assert any(len(set(batch.tolist())) < 6 for batch in drawn)


@pytest.mark.parametrize("replacement", [False, True])
def test_draws_are_seeded(replacement):
    def draw(seed):
        batches = minibatches(50, 20, np.random.default_rng(seed), replacement)
        return np.concatenate([next(batches) for _ in range(5)]).tolist()

    assert draw(0) == draw(0)
    assert draw(0) != draw(1)


@pytest.mark.parametrize(("n", "batch_size", "name"), [(0, 1, "n"), (5, 0, "batch_size")])
def test_sizes_below_one_are_refused(rng, n, batch_size, name):
    with pytest.raises(ValueError, match=f"^{name} is 0, expected at least 1"):
        next(minibatches(n, batch_size, rng))


def test_notes_minibatch_of_mnist(backend, rng):
    """10 of 60000 (§4.2.3)."""
    xp = backend.xp
    x, t = xp.zeros((60000, 784), dtype=xp.uint8), xp.zeros((60000, 10), dtype=xp.uint8)
    rows = next(minibatches(60000, 10, rng, replacement=True))
    taken = [xp.take(array, backend.asarray(rows), axis=0) for array in (x, t)]
    assert [tuple(array.shape) for array in taken] == [(10, 784), (10, 10)]
    assert 0 <= rows.min() < 10_000 < 50_000 < rows.max() < 60_000


# Learning.


def test_learns(backend, dtype, data):
    network = make_network(dtype=dtype)
    history = run(network, *data, optimizer=SGD(0.5), batch_size=20, epochs=10)
    assert history.stopped == "finished"
    assert history.train_accuracy[-1] >= 0.97
    assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10]) / 4
    for array in network.params.values():
        assert backend.owns(array)
        assert str(array.dtype).endswith(dtype)


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_learns_real_digits(name):
    if not {info.name: info for info in xnet.backends()}[name].usable:
        pytest.skip(f"{name} cannot be used here")
    layers = [Affine(64, 50, "he"), ReLU(), Affine(50, 10, "he")]
    network = Network(layers, backend=name)
    (x, t), (x_test, t_test) = datasets.load_digits()
    history = run(network, x, t, x_test, t_test, epochs=50)
    assert history.test_accuracy[-1] >= 0.95
    assert np.mean(history.loss[-100:]) < 0.2 < 2 < history.loss[0]


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_each_optimizer_learns(optimizer, data):
    """Every one at one rate: a step of a few hundredths is slow for some, and too long for none."""
    network = make_network()
    history = run(network, *data, optimizer=optimizer(0.03), batch_size=20, epochs=30)
    assert history.train_accuracy[-1] >= 0.97
    assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10]) / 2


@pytest.mark.parametrize("operation", variants(*LAYER_KINDS, altered=False), ids=repr)
def test_a_network_of_each_operation_learns(operation, data):
    units = operation.widths[1] or SIZES[0]
    network = Network([Affine(2, SIZES[0], "he"), operation, Affine(units, 2, "he")])
    history = run(network, *data, optimizer=SGD(0.3), batch_size=20, epochs=20)
    assert history.train_accuracy[-1] >= 0.9
    assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10])


@pytest.mark.parametrize("loss", variants("loss", altered=False), ids=repr)
def test_each_loss_learns(loss, data):
    x, t = data
    network = make_network(loss)
    settings = {"optimizer": SGD(0.05), "epochs": 40, "batch_size": 20}
    history = run(network, x, t if loss.classes else np.eye(2)[t], **settings)
    assert history.train_accuracy[-1] >= 0.95
    assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10])


def test_default_optimizer_is_sgd_of_a_tenth(data):
    default, given = make_network(), make_network()
    run(default, *data)
    run(given, *data, optimizer=SGD(0.1))
    assert bits(default) == bits(given)


def test_one_hot_labels_train_as_class_indices_do(data):
    x, t = data
    by_index, by_row = make_network(), make_network()
    run(by_index, x, t)
    run(by_row, x, np.eye(2)[t])
    assert bits(by_index) == bits(by_row)


def test_regression(backend):
    x, _ = make_data()
    network = make_network(IdentityWithLoss())
    history = run(network, x, x @ [[1.0, 2.0], [0.5, -1.0]], epochs=20, batch_size=20)
    assert np.mean(history.loss[-10:]) < np.mean(history.loss[:10]) / 20


def test_pictures_are_flattened():
    (x, t), _ = datasets.load_digits(flatten=False)
    square, flat = (Network([Affine(64, 10)]) for _ in range(2))
    run(square, x[:100], t[:100], iterations=3, batch_size=10)
    run(flat, x[:100].reshape(100, 64), t[:100], iterations=3, batch_size=10)
    assert bits(square) == bits(flat)


def test_lists_and_host_arrays_are_moved(backend, data):
    x, t = data
    nested, moved = make_network(), make_network()
    run(nested, x.tolist(), t.tolist())
    run(moved, backend.asarray(x), backend.asarray(t))
    assert bits(nested) == bits(moved)


def test_numerical_gradient_trains_as_backpropagation_does(backend, rng):
    x, t = rng.standard_normal((6, 2)), np.array([0, 1, 2, 0, 1, 2])
    settings = {"iterations": 5, "batch_size": 3}
    networks = {}
    for gradient in ("backprop", "numerical"):
        networks[gradient] = TwoLayerNet(2, 3, 3, weight_init_std=0.5)
        before = bits(networks[gradient])
        networks[gradient, "loss"] = run(networks[gradient], x, t, gradient=gradient, **settings)
        assert bits(networks[gradient]) != before
    exact, numerical = networks["backprop"].params, networks["numerical"].params
    for name in exact:
        # Each of 5 steps of 0.1 adds the difference's error, some h^2 = 1e-8.
        difference = backend.to_numpy(exact[name]) - backend.to_numpy(numerical[name])
        assert np.abs(difference).max() < 5 * 0.1 * 1e-7
    losses = [networks[gradient, "loss"].loss for gradient in ("backprop", "numerical")]
    np.testing.assert_allclose(*losses, rtol=1e-7)


def test_numerical_gradient_trains_what_draws_and_keeps(rng):
    """The same draws for the gradient and the loss of a step, and state that moves with it."""
    x, t = rng.standard_normal((12, 2)), np.arange(12) % 2
    networks = [make_noisy_network() for _ in range(3)]
    losses = []
    for network, gradient in zip(networks, ("backprop", "numerical"), strict=False):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", xnet.NaiveGradientWarning)
            history = run(network, x, t, gradient=gradient, iterations=4, batch_size=6)
        losses.append(history.loss)
    np.testing.assert_allclose(*losses, rtol=1e-7)
    for exact, numerical, before in zip(
        *({**network.params, **network.state}.values() for network in networks), strict=True
    ):
        assert np.abs(exact - numerical).max() < 1e-7
        assert (exact != before).any()


# What is recorded, and that it is so again.


@pytest.mark.parametrize("make_network", [make_network, make_noisy_network])
def test_repeatable_bit_for_bit(backend, dtype, data, make_network):
    def trained(seed):
        network = make_network(dtype=dtype)
        history = run(network, *data, epochs=2, batch_size=30, seed=seed)
        return history.loss, bits(network)

    assert trained(seed=3) == trained(seed=3)
    assert trained(seed=3)[0] != trained(seed=4)[0]


def test_seed_none_draws_afresh(data):
    losses = [run(make_network(), *data, seed=None, batch_size=10).loss for _ in range(2)]
    assert losses[0] != losses[1]


@pytest.mark.parametrize("replacement", [False, True])
def test_history_is_that_of_the_loop_in_the_book(backend, data, replacement):
    """§4.5.2: draw, gradient, step; the loss is taken before the step."""
    x, t = data
    network, by_hand = make_network(), make_network()
    history = run(
        network, x, t, optimizer=SGD(0.3), iterations=5, batch_size=30, replacement=replacement
    )
    rows = minibatches(200, 30, np.random.default_rng(0), replacement)
    losses = []
    for batch in itertools.islice(rows, 5):
        losses.append(by_hand.loss(x[batch], t[batch]))
        for name, gradient in by_hand.gradient(x[batch], t[batch]).items():
            by_hand.params[name] = by_hand.params[name] - 0.3 * gradient
    # CuPy has one launch for the loss of a small batch; it rounds otherwise than the layers do.
    exact = backend.name != "cupy" or backend.reproducible
    assert history.loss == (losses if exact else pytest.approx(losses, rel=1e-13))
    assert bits(network) == bits(by_hand)


@pytest.mark.parametrize(
    ("length", "iterations", "ends"),
    [
        ({}, 3, [3]),
        ({"epochs": 4}, 12, [3, 6, 9, 12]),
        ({"iterations": 7}, 7, [3, 6, 7]),
        ({"iterations": 2}, 2, [2]),
        ({"iterations": 6}, 6, [3, 6]),
        ({"iterations": 4, "replacement": True}, 4, [3, 4]),
    ],
)
def test_lengths_of_the_history(length, iterations, ends):
    history = run(make_network(), *make_data(25), *make_data(7), batch_size=10, **length)
    assert (history.iterations, len(history.loss)) == (iterations, iterations)
    assert history.epoch_ends == ends
    assert len(history.train_accuracy) == len(history.test_accuracy) == len(ends)
    assert history.stopped == "finished"
    assert 0 < history.seconds < 60
    numbers = [*history.loss, *history.train_accuracy, *history.test_accuracy]
    assert {type(number) for number in numbers} == {float}


def test_epochs_are_so_many_iterations(data):
    by_epochs, by_iterations = make_network(), make_network()
    assert run(by_epochs, *data, epochs=2).loss == run(by_iterations, *data, iterations=4).loss
    assert bits(by_epochs) == bits(by_iterations)


def test_last_accuracies_are_the_networks(backend, data):
    network, test = make_network(), make_data(50, seed=1)
    history = run(network, *data, *test, iterations=5)
    assert history.train_accuracy[-1] == network.accuracy(*data)
    assert history.test_accuracy[-1] == network.accuracy(*test)
    assert run(network, *data).test_accuracy == []


def test_data_are_left_alone(backend, dtype):
    arrays = [array for seed in (0, 1) for array in make_data(30, seed)]
    arrays[0], arrays[2] = arrays[0].astype(dtype), arrays[2].astype(dtype)
    for array in arrays:
        array.flags.writeable = False
    moved = [backend.asarray(array) for array in arrays]
    before = [array.tobytes() for array in arrays]
    run(make_network(dtype=dtype), *arrays, batch_size=8, epochs=2)
    run(make_network(dtype=dtype), *moved, batch_size=8, epochs=2)
    assert [array.tobytes() for array in arrays] == before
    assert [backend.to_numpy(array).tobytes() for array in moved] == before


# Early stop.


class Scripted(Optimizer):
    """Steps to given values of W1, one after the other."""

    def __init__(self, *values):
        super().__init__(0.0)
        self.values = iter(values)

    def update(self, params, grads):
        params["W1"] = next(self.values)


GOOD = np.array([[-1.0, 1.0], [1.0, -1.0]])  # class 1 where x0 > x1, as make_data has it
BAD = -GOOD
FAIR = np.array([[-1.0, 1.0], [0.0, 0.0]])  # looks at x0 alone


def test_an_optimizers_own_update_is_what_steps(backend):
    """Also where the backend would take a whole step by its formula."""

    class Clipped(SGD):
        def update(self, params, grads):
            xp = backend.xp
            super().update(params, {k: xp.clip(g, -1e-3, 1e-3) for k, g in grads.items()})

    network, before = make_network(), make_network()
    network.train_step(*make_data(), Clipped(1.0))
    moved = [backend.to_numpy(network.params[k] - W) for k, W in before.params.items()]
    assert max(np.abs(m).max() for m in moved) == pytest.approx(1e-3)


def scripted_run(*values, test=(), **settings):
    """Chosen, unless told otherwise, by 50 points that are all told right by GOOD."""
    network = Network([Affine(2, 2)], backend="numpy")
    settings = {"optimizer": Scripted(*values), "batch_size": 200, **settings}
    history = run(network, *make_data(), *test, **{"validation": make_data(50, seed=2)} | settings)
    return network, history


def test_early_stop_goes_back_to_the_best():
    network, history = scripted_run(FAIR, GOOD, FAIR, BAD, GOOD, epochs=5, patience=2)
    assert history.stopped == "early stop"
    assert history.epoch_ends == [1, 2, 3, 4]
    assert history.validation_accuracy[1] == 1.0 > max(history.validation_accuracy[2:])
    np.testing.assert_array_equal(network.params["W1"], GOOD)


def test_validation_chooses_and_neither_training_nor_test_data_do():
    x, t = make_data(50, seed=1)
    settings = {"validation": (x, 1 - t), "test": (x, t), "epochs": 3, "patience": 1}
    network, history = scripted_run(BAD, GOOD, GOOD, **settings)
    assert history.stopped == "early stop"
    assert (history.train_accuracy, history.validation_accuracy) == ([0.0, 1.0], [1.0, 0.0])
    np.testing.assert_array_equal(network.params["W1"], BAD)


def test_test_data_are_looked_at_once_where_validation_chooses(monkeypatch):
    """They judge the network that the run ends with; no other saw them."""
    test, looks, predict = make_data(70, seed=1), [], Network.predict

    def watched(network, x):
        if len(x) == 70:
            looks.append(np.array(network.params["W1"]))
        return predict(network, x)

    monkeypatch.setattr(Network, "predict", watched)
    _, history = scripted_run(FAIR, GOOD, BAD, BAD, test=test, epochs=4)
    np.testing.assert_array_equal(looks, [GOOD])
    assert (history.test_accuracy, history.kept_epoch) == ([1.0], 1)


def test_without_validation_there_are_curves_as_in_the_notes():
    """§4.5.3: accuracy on training and test data after each epoch, and the last network is kept."""
    network, history = scripted_run(GOOD, FAIR, BAD, test=make_data(), epochs=3, validation=None)
    assert history.train_accuracy == history.test_accuracy
    assert [history.test_accuracy[0], history.test_accuracy[2]] == [1.0, 0.0]
    assert (history.validation_accuracy, history.kept_epoch) == ([], None)
    np.testing.assert_array_equal(network.params["W1"], BAD)


@pytest.mark.slow
def test_what_early_stopping_reports_holds_on_fresh_data():
    """Labels that nothing tells: the best of 100 epochs on 60 samples looks better than it is.

    The accuracy on samples that had no say is 1/2, give or take 5 standard deviations; on those
    that chose it is the largest of many, and above by 3.
    """
    rng, right, chosen, n = np.random.default_rng(0), 0, [], 400
    for seed in range(10):
        x, t = rng.standard_normal((200 + n, 20)), rng.integers(0, 2, 200 + n)
        network = Network([Affine(20, 20, "he"), ReLU(), Affine(20, 2, "he")], seed=seed)
        settings = {"validation": 0.3, "epochs": 100, "seed": seed}
        history = run(network, x[:200], t[:200], x[200:], t[200:], **settings)
        right += history.test_accuracy[0] * n
        chosen.append(history.validation_accuracy[history.kept_epoch])
    assert abs(right - 10 * n / 2) < 5 * math.sqrt(10 * n / 4)
    assert np.mean(chosen) > 0.5 + 3 * math.sqrt(1 / 4 / (10 * 60))


def test_a_run_that_finishes_ends_with_the_best_too():
    network, history = scripted_run(GOOD, FAIR, FAIR, epochs=3, patience=3)
    assert (history.stopped, history.kept_epoch) == ("finished", 0)
    np.testing.assert_array_equal(network.params["W1"], GOOD)


def test_accuracy_that_rises_is_waited_for():
    network, history = scripted_run(BAD, FAIR, FAIR, GOOD, epochs=4, patience=2)
    assert history.stopped == "finished"
    np.testing.assert_array_equal(network.params["W1"], GOOD)


def test_validation_goes_back_to_the_state_of_the_best():
    """The running means are those of the best epoch, as its parameters are."""

    network, best, last = (make_noisy_network(backend="numpy") for _ in range(3))

    def trained(network, epochs, **settings):
        settings = {"optimizer": SGD(2.0), "batch_size": 20, "epochs": epochs, **settings}
        return run(network, *make_data(), validation=make_data(seed=1), **settings)

    history = trained(network, 60, patience=2)
    assert history.stopped == "early stop"
    trained(best, history.kept_epoch + 1)
    run(last, *make_data(), optimizer=SGD(2.0), batch_size=20, epochs=len(history.epoch_ends))
    assert bits(network) == bits(best)
    assert all(v != bits(best)[name] for name, v in bits(last).items())


def test_checkpoint_is_what_validation_chose_so_far(tmp_path):
    path, held = tmp_path / "net", []

    class Watch(Scripted):
        __init__ = Scripted.__init__

        def update(self, params, grads):
            held.append(weights.load_network(path, "numpy").params["W1"] if path.exists() else None)
            super().update(params, grads)

    scripted_run(None, optimizer=Watch(FAIR, GOOD, BAD, BAD), epochs=4, save=path)
    np.testing.assert_array_equal(held[1:], [FAIR, GOOD, GOOD])
    np.testing.assert_array_equal(weights.load_network(path, "numpy").params["W1"], GOOD)


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
def test_a_share_is_held_back_of_each_class_alike(backend, share):
    labels = np.repeat([0, 1, 2], [120, 60, 20])
    x = np.arange(200.0)[:, None] * [1, 1]
    for t in (labels, np.eye(3)[labels]):
        parts = []
        for seed in (0, 0, 1):
            made = Training(Network([Affine(2, 3)]), x, t, validation=share, seed=seed)
            parts.append([made._data[name] for name in ("train", "validation")])
        rows = [backend.to_numpy(part.x)[:, 0].astype(int) for part in parts[0]]
        assert sorted(np.concatenate(rows)) == list(range(200))
        counts = np.bincount(labels[rows[1]], minlength=3)
        assert np.abs(counts - share * np.array([120, 60, 20])).max() <= 1
        assert counts.sum() == round(200 * share)
        for part, mine in zip(parts[0], rows, strict=True):
            np.testing.assert_array_equal(backend.to_numpy(part.t), t[mine])
        first, again, other = (backend.to_numpy(held.x).tobytes() for _, held in parts)
        assert first == again != other


def test_regression_holds_back_a_share_too():
    x = np.random.default_rng(0).standard_normal((50, 2))
    made = Training(Network([Affine(2, 1)], IdentityWithLoss()), x, x[:, 0], validation=0.2)
    assert [made._data[name].samples for name in ("train", "validation")] == [40, 10]


# A run that is gone on with.


@pytest.mark.parametrize("make_network", [make_network, make_noisy_network])
@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_calls_of_a_run_are_one_long_run(optimizer, replacement, make_network):
    settings = {"batch_size": 7, "replacement": replacement}
    whole, parts = (make_network(backend="numpy") for _ in range(2))
    once = run(whole, *make_data(50), iterations=30, optimizer=optimizer(), **settings)
    training = Training(parts, *make_data(50), optimizer=optimizer(), **settings)
    for iterations in [1] * 10 + [13, 3, 4]:
        history = training.run(iterations=iterations, progress=False)
    assert bits(parts) == bits(whole)
    assert same_record(history, once)


@pytest.mark.parametrize("patience", [None, 2])
def test_calls_of_a_run_are_one_long_run_where_validation_chooses(backend, patience):
    """Each ends with the best network so far, and the next goes on from the last step."""
    settings = {"validation": 0.3, "patience": patience, "batch_size": 5, "seed": 6}
    settings["optimizer"] = SGD(1.0)
    data = *make_data(50), *make_data(20, seed=1)
    whole, parts = make_noisy_network(), make_noisy_network()
    once = run(whole, *data, iterations=60, **settings)
    training = Training(parts, *data, **{**settings, "optimizer": SGD(1.0)})
    for _ in range(30):
        history = training.run(iterations=2, progress=False)
    assert bits(parts) == bits(whole)
    assert same_record(history, once)
    assert (history.stopped == "early stop") == (patience is not None)
    assert 0 < history.kept_epoch < len(history.epoch_ends) - 1


def same_record(*histories) -> bool:
    first, second = ({**vars(history), "seconds": 0} for history in histories)
    return first == second


@pytest.mark.parametrize("at", [1, 4, 7, 10])
def test_a_run_goes_on_after_ctrl_c_as_if_there_had_been_none(at, data):
    """Within a step, and between two, at an epoch's end too."""
    whole = make_network(backend="numpy")
    once = run(whole, *data, iterations=12, batch_size=67, validation=0.1)
    inside, between = make_network(backend="numpy"), make_network(backend="numpy")

    training = Training(inside, *data, batch_size=67, validation=0.1)
    step, calls = inside.train_step, []

    def interrupted(*arguments):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return step(*arguments)

    inside.train_step = interrupted
    assert training.run(iterations=12, progress=False).stopped == "interrupted"
    history = training.run(iterations=12 - at + 1, progress=False)
    assert same_record(history, once)

    training = Training(between, *data, batch_size=67, validation=0.1)
    assert training.run(iterations=12, progress=Recorder(until=at)).stopped == "interrupted"
    history = training.run(iterations=12 - at, progress=False)
    assert same_record(history, once)
    assert bits(inside) == bits(between) == bits(whole)


@pytest.mark.parametrize("replacement", [False, True])
def test_minibatches_go_on_after_ctrl_c(monkeypatch, replacement):
    """Within a draw: with the numbers that it would have been."""
    batches, calls, raw = minibatches(5, 2, 0, replacement), [], Generator.raw
    expected = [next(batches).tolist() for _ in range(12)]
    batches, found = minibatches(5, 2, 0, replacement), []

    def interrupted(self, n):
        drawn = raw(self, n)
        calls.append(1)
        if len(calls) in (1, 3, 4, 7):
            raise KeyboardInterrupt
        return drawn

    monkeypatch.setattr(Generator, "raw", interrupted)
    for _ in range(12 + 4):
        with contextlib.suppress(KeyboardInterrupt):
            found.append(next(batches).tolist())
    assert found == expected
    assert len(calls) > 7


@pytest.mark.parametrize("over", ["early stop", "diverged"])
def test_a_run_that_is_over_stays_as_it_is(over, data):
    network = make_network(backend="numpy")
    settings = {"patience": 1, "validation": 0.1} if over == "early stop" else {}
    rate = 1e-9 if over == "early stop" else 1e200
    training = Training(network, *data, optimizer=SGD(rate), **settings)
    assert training.run(epochs=30, progress=False).stopped == over
    before, iterations = bits(network), training.history.iterations
    recorder = Recorder()
    assert training.run(epochs=1, progress=recorder).stopped == over
    assert (bits(network), training.history.iterations) == (before, iterations)
    assert recorder.told == []


def test_how_many_more_is_checked(data):
    training = Training(make_network(backend="numpy"), *data)
    for settings in ({"epochs": 0}, {"iterations": 0}, {"epochs": 1, "iterations": 1}):
        with pytest.raises(ValueError, match="expected"):
            training.run(**settings)
    assert training.run(progress=False).epoch_ends == [2]
    assert training.run(epochs=2, progress=False).epoch_ends == [2, 4, 6]


# Ctrl-C, and other ends.


class Interrupting(SGD):
    """SGD that raises `error` in step `at`, before it writes anything."""

    def __init__(self, at, error=KeyboardInterrupt):
        super().__init__(0.1)
        self.at, self.error, self.calls = at, error, 0

    def update(self, params, grads):
        self.calls += 1
        if self.calls == self.at:
            raise self.error
        super().update(params, grads)


class Recorder:
    """A Progress that keeps what it is told, and raises KeyboardInterrupt after `until` steps."""

    def __init__(self, until=math.inf):
        self.told, self.until = [], until

    def start(self, total):
        self.told.append(("start", total))

    def advance(self, history):
        self.told.append(("advance", history.iterations, history.loss[-1]))
        if history.iterations == self.until:
            raise KeyboardInterrupt

    def stop(self):
        self.told.append(("stop",))


def after(iterations: int, batch_size: int = 10, make_network=make_network) -> dict[str, bytes]:
    """The network after so many whole steps."""
    network = make_network()
    if iterations:
        run(network, *make_data(), iterations=iterations, batch_size=batch_size)
    return bits(network)


@pytest.mark.parametrize("make_network", [make_network, make_noisy_network])
@pytest.mark.parametrize("at", [1, 2, 25])
def test_ctrl_c_in_a_step_leaves_the_steps_before_it(backend, at, make_network, data):
    network, optimizer = make_network(), Interrupting(at)
    history = run(network, *data, optimizer=optimizer, epochs=9, batch_size=10)
    assert (history.stopped, history.iterations) == ("interrupted", at - 1)
    assert history.epoch_ends == [20] * (at > 20)
    assert history.seconds > 0
    # Some backends round a whole step otherwise than its parts.
    whole = make_network()
    run(whole, *data, optimizer=Interrupting(0), iterations=at, batch_size=10)
    before = make_network()
    if at > 1:
        run(before, *data, optimizer=Interrupting(0), iterations=at - 1, batch_size=10)
    assert bits(network) == bits(before) != bits(whole)
    assert run(network, *data).stopped == "finished"


def test_ctrl_c_between_steps(backend, data):
    network, recorder = make_network(), Recorder(until=7)
    history = train(network, *data, epochs=9, batch_size=10, progress=recorder)
    assert (history.stopped, history.iterations) == ("interrupted", 7)
    assert bits(network) == after(7)
    assert recorder.told[-1] == ("stop",)


@pytest.mark.usefixtures("ctrl_c")
@pytest.mark.skipif(not hasattr(signal, "setitimer"), reason="no timer that sends a signal here")
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_ctrl_c_at_any_moment_leaves_whole_steps(backend, optimizer, data):
    """Ten times, at a moment that chance and the machine choose."""

    def interrupt(*_):
        raise KeyboardInterrupt

    class Timed(Recorder):
        def __init__(self, moment):
            super().__init__()
            self.moment = moment

        def advance(self, history):
            if history.iterations == 3:
                signal.setitimer(signal.ITIMER_REAL, self.moment)

    def trained(iterations, **settings):
        network = make_network()
        settings = {"optimizer": optimizer(), "batch_size": 10, **settings}
        return network, train(network, *data, iterations=iterations, **settings)

    trained(3, progress=False)  # compiles
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for moment in np.random.default_rng(0).uniform(1e-5, 3e-3, 10):
            network, history = trained(10**5, progress=Timed(float(moment)))
            assert history.stopped == "interrupted"
            steps = history.iterations  # and perhaps one that is not in the history yet
            whole = [bits(trained(n, progress=False)[0]) for n in (steps, steps + 1)]
            assert bits(network) in whole
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("at", [1, 4, 30])
def test_ctrl_c_in_a_numerical_gradient_restores_what_it_perturbed(monkeypatch, backend, at, data):
    network = make_network()
    naive = functools.partial(network.numerical_gradient, method="naive")
    monkeypatch.setattr(network, "numerical_gradient", naive)
    calls, call = [], type(network.loss_layer).forward

    def forward(self, x, t):
        calls.append(1)
        if len(calls) == at:
            raise KeyboardInterrupt
        return call(self, x, t)

    monkeypatch.setattr(type(network.loss_layer), "forward", forward)
    history = run(network, *data, gradient="numerical", iterations=2, batch_size=10)
    assert (history.stopped, history.iterations) == ("interrupted", 0)
    assert bits(network) == after(0)


def test_checkpoint_of_an_interrupted_run(tmp_path, data):
    path = tmp_path / "net"
    network = make_network()
    run(network, *data, optimizer=Interrupting(3), save=path, batch_size=10)
    whole = make_network()
    run(whole, *data, optimizer=Interrupting(0), iterations=2, batch_size=10)
    assert bits(weights.load_network(path)) == bits(network) == bits(whole)


def test_error_in_a_step_leaves_whole_steps_and_stops_the_progress(data):
    network, recorder = make_network(), Recorder()
    optimizer = Interrupting(4, error=RuntimeError)
    with pytest.raises(RuntimeError):
        train(network, *data, optimizer=optimizer, batch_size=10, progress=recorder)
    whole = make_network()
    run(whole, *data, optimizer=Interrupting(0), iterations=3, batch_size=10)
    assert bits(network) == bits(whole)
    assert recorder.told[-1] == ("stop",)


@pytest.mark.parametrize("loss", variants("loss", altered=False), ids=repr)
def test_divergence_ends_the_run_without_a_warning(backend, dtype, loss, data):
    network = make_network(loss, dtype=dtype)
    x, t = data
    history = run(network, x, np.eye(2)[t], optimizer=SGD(1e200), iterations=50)
    assert history.stopped == "diverged"
    assert history.iterations < 50
    assert not (math.isfinite(history.loss[-1]) and np.isfinite(network.scores(x)).all())
    assert all(map(math.isfinite, history.loss[:-1]))


@pytest.mark.slow
def test_a_network_that_is_confidently_wrong_learns(backend, data):
    """The notes' -log(y + 1e-7) has no slope there: its loss would stay at 16.1 (§4.2.2)."""
    x, t = data
    network = make_network()
    network.params["b2"] = network.backend.asarray(np.array([60.0, -60.0]))
    history = run(network, x[t == 1], t[t == 1], iterations=400, optimizer=SGD(0.5))
    assert history.loss[0] > 100
    assert history.train_accuracy[-1] == 1


def test_regression_diverges_without_a_warning(backend, data):
    x, _ = data
    history = run(make_network(IdentityWithLoss()), x, x, optimizer=SGD(1e6), iterations=100)
    assert history.stopped == "diverged"


def test_divergence_spares_the_checkpoint_of_the_epoch_before(tmp_path):
    path = tmp_path / "net"
    bad = np.full((2, 2), np.nan)
    _, history = scripted_run(GOOD, FAIR, bad, bad, batch_size=100, epochs=3, save=path)
    assert (history.stopped, history.iterations) == ("diverged", 4)
    np.testing.assert_array_equal(weights.load_network(path, "numpy").params["W1"], FAIR)


# What is refused.


def refused(network=None, *data, error=ValueError, **settings) -> str:
    """Why train refuses; the network must be untouched and no optimizer called."""

    class Never(Optimizer):
        def update(self, params, grads):
            pytest.fail("training started")

    network = make_network() if network is None else network
    before = bits(network)
    recorder = Recorder()
    settings = {"optimizer": Never(0.1), **settings}
    with pytest.raises(error) as caught:
        train(network, *data, progress=recorder, **settings)
    assert bits(network) == before
    assert recorder.told == []
    return str(caught.value)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_are_refused(backend, dtype, bad):
    (x, t), (x_test, t_test) = make_data(30), make_data(10, seed=1)
    network = make_network(dtype=dtype)
    spoilt, spoilt_test, targets = x.copy(), x_test.copy(), np.eye(2)[t]
    spoilt[29, 1] = spoilt_test[9, 0] = targets[29, 1] = bad
    expected = "{} holds NaN or infinity as {} in row {}".format
    assert refused(network, spoilt, t) == expected("x", dtype, 29)
    assert refused(network, x, t, spoilt_test, t_test) == expected("x_test", dtype, 9)
    assert refused(network, x, targets) == expected("t", "float64", 29)
    assert refused(network, x_test, t_test, x, targets) == expected("t_test", "float64", 29)


@pytest.mark.parametrize("label", [-1, 2, 10**9])
def test_labels_out_of_range_are_refused(backend, label):
    (x, t), (x_test, t_test) = make_data(30), make_data(10, seed=1)
    bad, bad_test = t.copy(), t_test.copy()
    bad[29] = bad_test[9] = label
    assert refused(None, x, bad) == f"t has label {label}, expected 0..1"
    message = refused(None, x, t, x_test, bad_test)
    assert f"label {label}, expected 0..1" in message
    assert "t_test" in message


X, T = make_data(30)
MISFITS = {
    "one label too few": ((X, T[:-1]), "x has 30 samples, t has 29"),
    "one test label too many": ((X, T, X, np.append(T, 0)), "x_test has 30 samples, t_test has 31"),
    "three features": ((np.ones((30, 3)), T), "x has 3 features, W expects 2"),
    "three test features": (
        (X, T, np.ones((30, 3)), T),
        "x_test, t_test: Affine: x has 3 features, W expects 2",
    ),
    "three test classes": (
        (X, T, X, np.eye(3)[T]),
        "x_test, t_test: t has shape (30, 3), expected (30, 2)",
    ),
    "no features": ((X[:, 0], T), "x has 1 features"),
    "three classes": ((X, np.eye(3)[T]), r"t has shape (30, 3), expected (30, 2)"),
    "labels in a column": ((X, T[:, None]), r"t has shape (30, 1)"),
    "labels that are floats": ((X, T.astype(float)), "t has dtype float64, expected integer"),
    "no samples": ((X[:0], T[:0]), "x has shape (0, 2): there are no samples"),
    "no test samples": ((X, T, X[:0], T[:0]), "x_test has shape (0, 2): there are no samples"),
    "a number": ((1.0, T), "x has shape (): there are no samples"),
    "one label": ((X, 1), "t has shape (): there are no samples"),
    "test data without labels": ((X, T, X), "x_test and t_test go together: one is missing"),
    "test labels without data": ((X, T, None, T), "x_test and t_test go together"),
}


@pytest.mark.parametrize("kind", MISFITS)
def test_data_that_do_not_fit_are_refused(backend, kind):
    data, reason = MISFITS[kind]
    assert reason in refused(None, *data)


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"epochs": 0}, "epochs is 0, expected at least 1"),
        ({"epochs": -1}, "epochs is -1, expected at least 1"),
        ({"iterations": 0}, "iterations is 0, expected at least 1"),
        ({"epochs": 1, "iterations": 1}, "epochs and iterations were both given"),
        ({"batch_size": 0}, "batch_size is 0, expected at least 1"),
        ({"patience": 0}, "patience is 0, expected at least 1"),
        ({"patience": 5}, "patience is 5 without validation"),
        ({"validation": 0}, "validation is 0.0, expected a share of the training data"),
        ({"validation": 1.0}, "validation is 1.0, expected a share of the training data"),
        ({"validation": math.nan}, "validation is nan, expected a share"),
        ({"validation": 0.01}, "validation is 0.01: of 30 samples that is 0"),
        ({"validation": 0.99}, "validation is 0.99: of 30 samples that is 30"),
        ({"validation": (X, T[:-1])}, "validation[0] has 30 samples, validation[1] has 29"),
        ({"validation": (X[:, :1], T)}, "validation[0], validation[1]: "),
        ({"gradient": "magic"}, "gradient is 'magic', expected 'backprop' or 'numerical'"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_bad_arguments_are_refused(settings, reason):
    assert reason in refused(None, X, T, **settings)


@pytest.mark.parametrize("name", ["epochs", "iterations", "batch_size"])
def test_lengths_are_whole_numbers(name):
    assert f"{name} is 1.5" in refused(None, X, T, error=(TypeError, ValueError), **{name: 1.5})


def test_float32_is_refused_for_the_numerical_gradient_before_training():
    network = make_network(dtype="float32")
    assert "float32" in refused(network, X, T, gradient="numerical")


def test_data_of_another_device_are_refused(monkeypatch):
    require_host_cuda(monkeypatch)
    cupy = xnet.resolve("cupy")
    network = make_network(backend="numpy")
    x, t = cupy.asarray(X), cupy.asarray(T)
    for arrays in [(x, t), (x, T), (X, t), (X, T, x, T), (X, T, X, t)]:
        message = refused(network, *arrays, error=xnet.BackendError)
        assert "the network is on numpy, " in message


# Checkpoints.


def test_checkpoint_after_every_epoch_and_at_the_end(backend, tmp_path):
    path = tmp_path / "net"

    class Watch(Recorder):
        def advance(self, history):
            self.told.append(bits(weights.load_network(path)) if path.exists() else None)

    network, watch = make_network(), Watch()
    train(network, *make_data(), iterations=5, batch_size=100, save=path, progress=watch)

    first, second = after(2, batch_size=100), after(4, batch_size=100)
    assert watch.told[1:-1] == [None, None, first, first, second]
    assert bits(weights.load_network(path)) == bits(network) == after(5, batch_size=100)
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("where", ["nowhere/net", "."])
def test_checkpoint_that_cannot_be_written_is_refused_before_training(tmp_path, where):
    path = tmp_path / where
    message = refused(None, X, T, save=path, error=WeightsError)
    assert message.startswith(f"{path} cannot be written: ")


class Mine(Layer):
    def __call__(self, x):
        return x

    forward = backward = __call__


class MyLoss(LossLayer):
    def forward(self, x, t):
        return x[0, 0]


@pytest.mark.parametrize("part", [Mine(), MyLoss()], ids=repr)
def test_checkpoint_of_what_no_file_can_hold_is_refused_before_training(tmp_path, part):
    parts = ([], part) if isinstance(part, LossLayer) else ([part], None)
    network = Network([Affine(2, 2), *parts[0]], parts[1])
    message = refused(network, X, T, save=tmp_path / "net", error=WeightsError)
    assert type(part).__name__ in message


def test_checkpoint_holds_the_state(tmp_path, data):
    network, path = make_noisy_network(), tmp_path / "net"
    run(network, *data, epochs=2, save=path)
    assert bits(weights.load_network(path)) == bits(network)


def test_what_is_frozen_is_not_trained(backend, data):
    network = make_network()
    network.layers[0].trainable = False
    before = bits(network)
    run(network, *data, iterations=3)
    assert {k: v == before[k] for k, v in bits(network).items()} == {
        "W1": True, "b1": True, "W2": False, "b2": False,
    }  # fmt: skip


def test_a_network_that_has_nothing_to_train(data):
    """Its loss is recorded as any other's."""
    history = run(Network([ReLU()]), *data, iterations=3, batch_size=200)
    assert len(set(history.loss)) == 1


# Progress.


def test_progress_is_told_in_order(data):
    recorder = Recorder()
    history = train(make_network(), *data, iterations=3, progress=recorder)
    steps = [("advance", n, loss) for n, loss in enumerate(history.loss, start=1)]
    assert recorder.told == [("start", 3), *steps, ("stop",)]


def test_no_bar_without_a_terminal(capfd, data):
    assert not sys.stderr.isatty()
    train(make_network(), *data, iterations=3, progress=True)
    assert capfd.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture
def open_terminal(monkeypatch):
    """To be called in a test: puts a terminal, 120 columns wide, in stderr's place."""

    def open_terminal() -> Terminal:
        for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", "120")
        monkeypatch.setattr(sys, "stderr", Terminal())
        return sys.stderr

    return open_terminal


def test_bar_on_a_terminal(open_terminal, data):
    terminal = open_terminal()
    history = train(make_network(), *data, *make_data(50, seed=1), epochs=3, progress=True)
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", terminal.getvalue()).split("━")[-1]
    for part in (
        "6/6",
        f"loss {history.loss[-1]:.4f}",
        f"train {history.train_accuracy[-1]:.4f}",
        f"test {history.test_accuracy[-1]:.4f}",
        "/s ",
        "0:00:00",
    ):
        assert part in last


def test_bar_may_be_declined(open_terminal, data):
    terminal = open_terminal()
    train(make_network(), *data, progress=False)
    assert terminal.getvalue() == ""


def test_bar_is_drawn_ten_times_a_second_at_most(open_terminal, monkeypatch, data):
    open_terminal()
    drawn, show = [], progress.ProgressBar.show

    def counted(bar, history):
        drawn.append(history.iterations)
        show(bar, history)

    monkeypatch.setattr(progress.ProgressBar, "show", counted)
    history = train(make_network(), *data, iterations=300, batch_size=10, progress=True)
    assert (drawn[0], drawn[-1]) == (1, 300)
    assert len(drawn) <= 2 + history.seconds / 0.1


def test_bar_of_a_run_that_is_interrupted_at_once(open_terminal, data):
    terminal = open_terminal()
    history = train(make_network(), *data, optimizer=Interrupting(1), progress=True)
    assert history.iterations == 0
    assert "nan" not in terminal.getvalue()


# MNIST, as the notes train on it: 784-50-10, mini-batches of 100, learning rate 0.1 (§4.5.2).


def mnist_network(name: str) -> Network:
    if not {info.name: info for info in xnet.backends()}[name].usable:
        pytest.skip(f"{name} cannot be used here")
    return Network([Affine(784, 50, "he"), ReLU(), Affine(50, 10, "he")], backend=name)


def test_first_losses_on_mnist_agree_as_far_as_rounding_goes(mnist):
    """Numba adds in another order than NumPy: the losses may differ by what rounding explains.

    A step is sums of at most 784 products (scores), then 100 (their gradients, over the batch),
    50 and 10. A sum of n terms is off by some sqrt(n) u of its terms' size: the roundings of a sum
    fall either way and add up as a random walk does (Higham & Mary 2019, whose bound is
    lambda sqrt(n) u with a small lambda; gamma_n = n u only if all fall the same way). So a
    step adds at most about sqrt(784 + 100 + 50 + 10) u, relatively, to how far the two runs are
    apart; and while the losses fall at this learning rate, a step brings two neighbouring runs no
    further apart than they were. After k steps: k sqrt(944) u, here 100 * 31 * 1.1e-16 = 3.4e-13.
    """
    steps, u = 100, 2.0**-53
    (x, t), _ = mnist
    x = x[: 100 * steps] / 255
    losses = [
        np.array(run(mnist_network(name), x, t[: 100 * steps], optimizer=SGD(0.1)).loss)
        for name in ("numpy", "numba")
    ]
    assert losses[0].shape == (steps,)
    tolerance = np.arange(1, steps + 1) * math.sqrt(784 + 100 + 50 + 10) * u
    assert (np.abs(losses[0] - losses[1]) <= tolerance * losses[0]).all()


@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_half_an_epoch_of_mnist_reaches_090(mnist, name):
    (x, t), (x_test, t_test) = mnist
    network = mnist_network(name)
    history = run(network, x[:30000] / 255, t[:30000], x_test / 255, t_test, optimizer=SGD(0.1))
    assert history.iterations == 300
    assert history.test_accuracy[-1] >= 0.90


class UntilAccurate(Recorder):
    """Ends the run when the test accuracy has reached 0.965."""

    def advance(self, history):
        if history.test_accuracy and history.test_accuracy[-1] >= 0.965:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("name", ["numpy", "numba"])
def test_mnist_reaches_0965_within_17_epochs(mnist, name):
    """The longest test: some ten seconds, and several times that on a busy machine."""
    (x, t), (x_test, t_test) = mnist
    network = mnist_network(name)
    # NumPy's BLAS threads wait for each other by spinning, and lose where other work runs.
    with threadpoolctl.threadpool_limits(1, user_api="blas"):
        history = train(
            network, x / 255, t, x_test / 255, t_test, epochs=17, progress=UntilAccurate()
        )
    assert history.test_accuracy[-1] >= 0.965
    assert network.accuracy(x_test / 255, t_test) >= 0.965 - 0.005


def test_early_stop_of_a_regression_watches_its_loss():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((60, 3))
    t = x @ np.array([[1.0], [-2.0], [0.5]])
    network = Network([Affine(3, 1)], IdentityWithLoss(), backend="numpy")
    settings = {"batch_size": 20, "epochs": 100, "patience": 3, "validation": 0.25}
    history = run(network, x, t, optimizer=SGD(0.05), **settings)
    assert history.iterations > 60  # the loss fell for more than twenty epochs
    assert network.loss(x, t) < 1e-6


# Where there are no classes.


def test_regression_records_r2_and_no_accuracy(backend, dtype):
    x, _ = make_data(60)
    t, other = x[:, 0] - 2 * x[:, 1], make_data(20, seed=1)[0]
    network = Network([Affine(2, 1)], IdentityWithLoss(), dtype=dtype)
    start = r_squared(network.predict(x), network.backend.asarray(t[:, None], dtype))
    history = run(network, x, t, other, other @ [[1], [-2]], epochs=20, batch_size=10)
    assert start < 0.5 < history.train_r2[0] < 0.999 < history.train_r2[-1] <= 1
    assert len(history.test_r2) == 20
    assert history.metric == "R²"
    assert history.taken("test") == history.test_r2
    assert [history.train_accuracy, history.test_accuracy, history.validation_r2] == [[]] * 3


def test_one_hot_targets_have_an_accuracy_whatever_the_loss(data):
    """The notes' digits with the squared error (§4.2.1)."""
    x, t = data
    for labels in (t, np.eye(2)[t]):
        history = run(make_network(IdentityWithLoss()), x, labels, epochs=20, batch_size=20)
        assert history.train_accuracy[-1] > 0.9
        assert (history.train_r2, history.metric) == ([], "accuracy")
    history = run(make_network(IdentityWithLoss()), x, np.eye(2)[t] * 0.9)
    assert (history.train_accuracy, len(history.train_r2)) == ([], 1)


def test_targets_of_one_output_are_taken_in_both_shapes(backend):
    x, t = make_data(40)
    counts = t + 2
    for targets in (x[:, 0], counts, t.astype(bool)):
        losses = []
        for given in (targets, targets[:, None], targets.tolist()):
            network = Network([Affine(2, 1, "he")], IdentityWithLoss())
            losses.append((run(network, x, given, epochs=2).loss, bits(network)))
        assert losses[0] == losses[1] == losses[2]


def test_an_epoch_as_good_as_the_best_is_no_better():
    _, history = scripted_run(GOOD, GOOD, GOOD, epochs=3, patience=2)
    assert (history.stopped, history.kept_epoch) == ("early stop", 0)


def test_parameters_that_overflow_in_the_last_step_are_divergence():
    """No loss has met them yet."""
    _, history = scripted_run(GOOD, np.full((2, 2), np.inf), epochs=2, validation=None)
    assert (history.stopped, history.epoch_ends) == ("diverged", [1])
    assert np.isfinite(history.loss).all()


def test_early_stop_says_which_epoch_it_went_back_to():
    network, history = scripted_run(GOOD, BAD, BAD, BAD, epochs=9, patience=2)
    assert (history.stopped, history.kept_epoch) == ("early stop", 0)
    for values, data in [
        (history.train_accuracy, make_data()),
        (history.validation_accuracy, make_data(50, seed=2)),
    ]:
        assert values[history.kept_epoch] == network.accuracy(*data)


def test_optimizer_by_name_is_refused():
    assert "optimizer is 'sgd', expected an Optimizer" in refused(
        None, X, T, optimizer="sgd", error=TypeError
    )


@pytest.mark.parametrize("validation", ["0.1", (X,), (X, T, X), abs])
def test_validation_that_is_neither_a_share_nor_data_is_refused(validation):
    message = refused(None, X, T, validation=validation, error=TypeError)
    assert message.startswith(f"validation is a {type(validation).__name__}, expected a share")


@pytest.mark.parametrize("options", [{}, {"validation": 0.25}])
def test_samples_that_count_more(options, rng):
    """Relative to their mean; those that validation takes leave the others' mean at 1."""
    x, t = rng.normal(size=(40, 4)), rng.integers(0, 3, 40)
    counts = rng.integers(0, 3, 40)
    hashes = set()
    for weight in (counts, 10.0 * counts, list(counts), None, np.ones(40)):
        net = TwoLayerNet(4, 5, 3, weight_init_std=0.5)
        train(net, x, t, sample_weight=weight, iterations=12, batch_size=7, **options)
        hashes.add(weights.sha256(net))
    assert len(hashes) == 2


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (np.ones(3), r"sample_weight has shape \(3,\), expected \(4,\)"),
        ([1, 1, 1, -1], "sample_weight holds -1.0, expected numbers of at least 0"),
        ([1, 1, 1, np.nan], "sample_weight holds nan"),
        (np.zeros(4), "nothing but zeros"),
        (np.ones(4, complex), "sample_weight is complex128, expected real numbers"),
    ],
)
def test_weights_of_samples_that_are_none(weight, message):
    with pytest.raises((ValueError, TypeError), match=message):
        train(TwoLayerNet(2, 2, 2), np.ones((4, 2)), [0, 1, 0, 1], sample_weight=weight)


def test_weights_of_samples_need_backpropagation():
    with pytest.raises(ValueError, match="sample_weight is for gradient='backprop'"):
        train(
            TwoLayerNet(2, 2, 2),
            np.ones((2, 2)),
            [0, 1],
            sample_weight=[1, 2],
            gradient="numerical",
        )
