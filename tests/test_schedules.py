import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

import xnet
from xnet import schedules
from xnet.clipping import clipped, global_norm
from xnet.optimizers import SGD
from xnet.schedules import Cosine, Plateau, Schedule, Step, Warmup
from xnet.training import History, train

NOTHING = History()


def factors(schedule, total=10, history=NOTHING):
    return [schedule.factor(n, total, history) for n in range(total)]


def test_step():
    assert factors(Step(3, 0.5), 8) == [1, 1, 1, 0.5, 0.5, 0.5, 0.25, 0.25]
    assert Step(1, 0.1).factor(10**9, 1, NOTHING) == 0.0
    assert Step(1, 1.0).factor(10**9, 1, NOTHING) == 1.0


def test_cosine():
    found = factors(Cosine(end=0.25), 101)
    expected = [0.25 + 0.75 * (1 + math.cos(math.pi * n / 101)) / 2 for n in range(101)]
    np.testing.assert_allclose(found, expected, rtol=1e-15)
    assert found == sorted(found, reverse=True)
    assert (
        Cosine(5, 0.25).factor(5, 100, NOTHING) == Cosine(5, 0.25).factor(99, 100, NOTHING) == 0.25
    )
    assert Cosine(5).factor(0, 100, NOTHING) == 1.0


def test_its_cosine_is_accurate():
    with mpmath.workdps(40):
        for k in range(2001):
            u = k / 2000
            exact = mpmath.cos(mpmath.pi * mpmath.mpf(u))
            assert abs(schedules._cos_of_pi_times(u) - exact) <= 2.0**-51


def test_its_cosine_is_one_on_every_processor():
    """Additions, multiplications and divisions alone: the same where they are done exactly."""

    def rounded(x):
        return float(x)

    u = 0.1875
    x, total, term = rounded(Fraction(math.pi) * Fraction(u)), 1.0, 1.0
    for k in range(2, 20, 2):
        square = rounded(Fraction(-x) * Fraction(x))
        product = rounded(Fraction(term) * Fraction(rounded(Fraction(square) / (k * (k - 1)))))
        term, total = product, rounded(Fraction(total) + Fraction(product))
    assert schedules._cos_of_pi_times(u) == total


def test_warmup():
    assert factors(Warmup(4), 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert factors(Warmup(2, Step(2, 0.5)), 5) == [0.5, 1, 0.5, 0.5, 0.25]


def test_plateau_by_loss():
    history = History(loss=[4, 2, 3, 3, 5, 1, 2, 2], epoch_ends=[2, 4, 6, 8])  # 3, 3, 3, 2
    assert Plateau(2, 0.5).factor(8, 0, history) == 0.5
    assert Plateau(1, 0.5).factor(8, 0, history) == 0.25
    assert Plateau(1, 0.5, least=0.4).factor(8, 0, history) == 0.4
    assert Plateau(3).factor(8, 0, history) == 1.0


def test_plateau_by_validation():
    history = History(loss=[1, 2, 3], epoch_ends=[1, 2, 3], validation_accuracy=[0.5, 0.6, 0.7])
    assert Plateau(1, 0.5).factor(3, 0, history) == 1.0


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Step(0), "Step: every is 0, expected at least 1"),
        (lambda: Step(1.5), "Step: every is 1.5, expected a whole number"),
        (lambda: Step(3, 2.0), "Step: drop is 2.0, expected a number from 0 to 1"),
        (lambda: Cosine(-1), "Cosine: steps is -1"),
        (lambda: Cosine(end=-0.5), "Cosine: end is -0.5"),
        (lambda: Warmup(0), "Warmup: steps is 0"),
        (lambda: Warmup(3, 0.5), "Warmup: then is 0.5, expected a Schedule or None"),
        (lambda: Plateau(0), "Plateau: patience is 0"),
        (lambda: Plateau(1, math.nan), "Plateau: drop is nan"),
    ],
)
def test_settings_out_of_range(make, message):
    with pytest.raises((ValueError, TypeError), match=message):
        make()


def test_a_class_registers_by_being_defined(monkeypatch):
    monkeypatch.setattr(schedules, "SCHEDULES", dict(schedules.SCHEDULES))
    before = set(schedules.SCHEDULES)

    class Halves(Schedule):
        def factor(self, n, total, history):
            return 0.5

    assert set(schedules.SCHEDULES) - before == {"halves"}
    with pytest.raises(NotImplementedError, match="Schedule has no factor"):
        Schedule().factor(0, 1, NOTHING)


# -- in a run


def digits(n=60):
    (x, t), _ = xnet.datasets.load_digits()
    return x[:n], t[:n]


class Rates(xnet.training.Callback):
    """What the optimizer's rate was in each step."""

    def __init__(self):
        self.seen = []

    def on_step(self, training):
        self.seen.append(training.optimizer.lr)


def test_the_rate_of_every_step(backend):
    net, optimizer, rates = xnet.TwoLayerNet(64, 4, 10), SGD(0.5), Rates()
    schedule = Warmup(3, Cosine())
    train(net, *digits(), optimizer=optimizer, iterations=8, schedule=schedule, callbacks=[rates])
    assert rates.seen == [0.5 * f for f in factors(schedule, 8)]
    assert optimizer.lr == 0.5


def test_a_scheduled_run_is_steps_at_these_rates(backend):
    scheduled, by_hand = (xnet.TwoLayerNet(64, 4, 10) for _ in range(2))
    train(scheduled, *digits(), iterations=4, batch_size=60, schedule=Step(2, 0.1))
    for rate in (0.1, 0.1, 0.1 * 0.1, 0.1 * 0.1):
        train(by_hand, *digits(), iterations=1, batch_size=60, optimizer=SGD(rate))
    # Each call shuffles anew: the same samples in another order.
    for name, W in scheduled.params.items():
        found, expected = (
            net.backend.to_numpy(v) for net, v in ((scheduled, W), (by_hand, by_hand.params[name]))
        )
        np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-12)


def test_a_plateau_is_looked_for_after_each_epoch():
    calls = []

    class Watched(Plateau):
        def factor(self, n, total, history):
            calls.append(n)
            return super().factor(n, total, history)

    net, rates = xnet.TwoLayerNet(64, 4, 10), Rates()
    schedule = Watched(1, 0.5)
    optimizer = SGD(0.0)  # nothing gets better
    optimizer.lr = 1e-300
    train(
        net,
        *digits(),
        epochs=4,
        batch_size=20,
        optimizer=optimizer,
        schedule=schedule,
        callbacks=[rates],
        validation=0.2,
    )
    del xnet.schedules.SCHEDULES["watched"]
    assert calls == [0, 3, 6, 9]
    assert [rate / 1e-300 for rate in rates.seen[::3]] == [1, 1, 0.5, 0.25]


# -- clipping


@pytest.mark.parametrize("reproducible", [False, True])
def test_the_norm(reproducible, backend, rng):
    with xnet.use_backend(backend.name, reproducible=reproducible) as here:
        arrays = {"W": rng.normal(size=(5, 3)), "b": rng.normal(size=3)}
        g = {name: here.asarray(array) for name, array in arrays.items()}
        expected = math.sqrt(math.fsum((a * a).sum() for a in arrays.values()))
        norm = global_norm(here, g)
        np.testing.assert_allclose(norm, expected, rtol=1e-14)
        cut = clipped(here, g, 0.5)
        np.testing.assert_allclose(global_norm(here, cut), 0.5, rtol=1e-14)
        for name, array in cut.items():
            np.testing.assert_array_equal(here.to_numpy(array), arrays[name] * (0.5 / norm))
        assert clipped(here, g, 2 * norm) is g


@pytest.mark.parametrize("size", [1e-200, 1e200])
def test_the_norm_of_what_no_square_is_a_number(size, backend):
    g = {"W": backend.asarray(np.full((2, 2), size))}
    np.testing.assert_allclose(global_norm(backend, g), 2 * size, rtol=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_what_is_no_number_is_left(bad, backend):
    for values in ([bad, 1.0], [1.0, bad]):
        g = {"W": backend.asarray(np.array(values)), "b": backend.asarray(np.ones(2))}
        assert clipped(backend, g, 0.1) is g
    zeros = {"W": backend.asarray(np.zeros(2))}
    assert clipped(backend, zeros, 0.1) is zeros


@pytest.mark.parametrize("gradient", ["backprop", "numerical"])
def test_a_clipped_step(gradient, backend):
    x, t = digits(20)
    net, before = xnet.TwoLayerNet(64, 2, 10), xnet.TwoLayerNet(64, 2, 10)
    train(net, x, t, iterations=1, optimizer=SGD(1.0), clip=1e-3, gradient=gradient)
    moved = {name: before.params[name] - W for name, W in net.params.items()}
    np.testing.assert_allclose(global_norm(net.backend, moved), 1e-3, rtol=1e-9)


@pytest.mark.parametrize("clip", [0, -1, math.inf, math.nan])
def test_a_length_that_is_none(clip):
    with pytest.raises(ValueError, match=r"clip is .*, expected a length above 0"):
        train(xnet.TwoLayerNet(64, 2, 10), *digits(), clip=clip)


def test_what_is_no_schedule():
    with pytest.raises(TypeError, match=r"schedule is 0.5, expected a Schedule such as Cosine"):
        train(xnet.TwoLayerNet(64, 2, 10), *digits(), schedule=0.5)
