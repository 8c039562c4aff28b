"""Batches spread over ranks, here threads: the bits of one process, whatever the operation."""

import hashlib

import numpy as np
import pytest
from conftest import BACKENDS, DTYPES, LAYER_KINDS, OPTIMIZERS, property_settings, variants
from hypothesis import given
from hypothesis import strategies as st
from thread_ranks import on_ranks, shards

import xnet
from xnet import layers, operations
from xnet.errors import RankError
from xnet.formulas import FormulaError
from xnet.layers import Layer
from xnet.operations import Affine, Operation
from xnet.ranks import ALONE, Ranks, is_agreed, speaker
from xnet.sharded import ShardedBackend, Value
from xnet.testing import parity
from xnet.testing.parity import HURTFUL, NUMBERS, Stack

N, D, M, C = 13, 5, 6, 4
UNEVEN = shards(N, 0, 4, 1, 8)  # the first rank has no row at all


def digest(*values):
    """SHA-256 of arrays' bytes, and of what else there is."""
    found = hashlib.sha256()
    for value in values:
        found.update(
            np.asarray(value).tobytes() if hasattr(value, "dtype") else repr(value).encode()
        )
    return found.hexdigest()


def data(dtype, kind="normal", seed=0):
    x = parity.numbers(kind, dtype, seed)(N, D).astype(dtype)
    return x, np.arange(N) * 7 % C


def around(operation, loss=None):
    """A network with an operation in its midst."""
    inner = operation.widths[1] or M
    middle = [Layer.of(operation)]
    return [Affine(D, operation.widths[0] or M, "he"), *middle, Affine(inner, C, "he")], loss


def everything(make, x, t, backend=None):
    """All that a network says of a batch, as bytes."""
    net = xnet.Network(*make(), seed=3, dtype=x.dtype.name)
    loss, gradients = net.loss_and_gradient(x, t)
    xp = net.backend
    arrays = [xp.to_numpy(a) for a in [*gradients.values(), *dict(net.state.items()).values()]]
    return [loss, *arrays, net.loss(x, t), net.training_loss(x, t)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("operation", variants(*LAYER_KINDS), ids=str)
def test_every_operation_has_the_bits_of_one_process(operation, backend, dtype):
    x, t = data(dtype)
    make = lambda: around(operation)  # noqa: E731
    with xnet.use_backend(backend, reproducible=True):
        alone = digest(*everything(make, x, t))
    found = on_ranks(
        4,
        lambda ranks: digest(*everything(make, x[UNEVEN[ranks.rank]], t[UNEVEN[ranks.rank]])),
        backend=backend,
    )
    assert set(found) == {alone}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("loss", variants("loss"), ids=str)
def test_every_loss_has_the_bits_of_one_process(loss, backend, dtype):
    x, t = data(dtype)
    targets = np.eye(C, dtype=dtype)[t] if loss.classes else x[:, :C]

    def make():
        return [Affine(D, M, "he"), layers.Tanh(), Affine(M, C, "he")], loss

    with xnet.use_backend(backend, reproducible=True):
        alone = digest(*everything(make, x, targets))
    found = on_ranks(
        4,
        lambda ranks: digest(*everything(make, x[UNEVEN[ranks.rank]], targets[UNEVEN[ranks.rank]])),
        backend=backend,
    )
    assert set(found) == {alone}


@pytest.mark.filterwarnings("ignore::xnet.RoundingWarning")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", [*NUMBERS, *HURTFUL])
def test_hurtful_numbers_have_the_bits_of_one_process(kind, dtype):
    """Of `gradient`, `loss`, `accuracy` and the numerical gradient, on backends of both kinds."""
    stack = Stack.around(operations.ReLU, operations.SoftmaxWithLoss)
    x, onehot, *parameters = stack.arrays(parity.numbers(kind, dtype))
    x, parameters = x.astype(dtype), [W.astype(dtype) for W in parameters]
    t = onehot.argmax(axis=1)
    spans = shards(len(x), 3, 0, 5)

    def go(span):
        net = stack.network([W.copy() for W in parameters])
        own = x[span], t[span]
        found = [net.loss(*own), net.accuracy(*own), *net.gradient(*own).values()]
        return digest(*found, *net.numerical_gradient(*own).values())

    with np.errstate(all="ignore"), xnet.use_backend("numpy", reproducible=True):
        alone = go(slice(None))
    mixed = [BACKENDS[rank % len(BACKENDS)] for rank in range(3)]
    mixed = [name if name in ("numpy", "numba") else "numpy" for name in mixed]
    assert set(on_ranks(3, lambda ranks: go(spans[ranks.rank]), backend=mixed)) == {alone}


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_optimizer_steps_as_in_one_process(optimizer):
    x, t = data("float32")

    def go(span):
        net, own = (
            xnet.Network(around(layers.BatchNorm(M).operation)[0], dtype="float32"),
            optimizer(),
        )
        losses = [net.train_step(x[span], t[span], own) for _ in range(4)]
        return digest(losses, xnet.weights.sha256(net))

    with xnet.use_backend("numpy", reproducible=True):
        alone = go(slice(None))
    assert set(on_ranks(4, lambda ranks: go(UNEVEN[ranks.rank]))) == {alone}


@property_settings
@given(
    rows=st.lists(st.integers(0, 2), min_size=1, max_size=24),
    seed=st.integers(0, 1000),
    dtype=st.sampled_from(DTYPES),
)
def test_rows_may_be_anywhere(rows, seed, dtype):
    """Each row on any of three ranks: with the draws of `Dropout` for its place in the batch."""
    rng = np.random.default_rng(seed)
    x, t = rng.normal(size=(len(rows), D)).astype(dtype), rng.integers(0, C, len(rows))
    rank_of = np.array(rows)

    def go(places, placed):
        net = xnet.Network(
            [Affine(D, M), layers.Dropout(0.4), layers.BatchNorm(M), Affine(M, C)], dtype=dtype
        )
        with placed:
            loss, gradients = net.loss_and_gradient(x[places], t[places])
        return digest(loss, *gradients.values())

    def on_rank(ranks):
        places = np.nonzero(rank_of == ranks.rank)[0]
        return go(places, ranks.placed(len(rows), places))

    with xnet.use_backend("numpy", reproducible=True):
        alone = go(np.arange(len(rows)), ALONE.placed(len(rows), np.arange(len(rows))))
    assert set(on_ranks(3, on_rank)) == {alone}


@pytest.mark.parametrize("backend", BACKENDS)
def test_fast_mode_agrees_within_rounding_and_all_ranks_to_the_bit(backend):
    x, t = data("float64")
    make = lambda: around(layers.LayerNorm(M).operation)  # noqa: E731
    with xnet.use_backend(backend, reproducible=False):
        alone = everything(make, x, t)
    found = on_ranks(
        4,
        lambda ranks: everything(make, x[UNEVEN[ranks.rank]], t[UNEVEN[ranks.rank]]),
        backend=backend,
        reproducible=False,
    )
    assert len({digest(*values) for values in found}) == 1
    for a, b in zip(alone, found[0], strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-12, atol=1e-15)


def test_gradients_and_loss_take_two_messages_in_reproducible_mode_and_one_in_fast():
    x, t = data("float32")

    def go(ranks):
        net = xnet.Network(around(layers.ReLU().operation)[0], dtype="float32")
        with ranks.placed(N, np.arange(N)[UNEVEN[ranks.rank]]):
            before = ranks.traffic.messages
            net.gradient(x[UNEVEN[ranks.rank]], t[UNEVEN[ranks.rank]])
        return ranks.traffic.messages - before

    # The second gather of a rounded sum is these threads' own.
    assert on_ranks(4, go) == [4 - 1] * 4
    assert on_ranks(4, go, reproducible=False) == [2] * 4


# -- formulas that are refused, and such as are a user's own


class PerRow(Operation, abstract=True):
    units: int
    parameters = {"g": ("units",)}  # noqa: RUF012

    def forward(self, m, x, g):
        return x * g

    def backward(self, m, dout, x, y, g):
        return dout * g, dout * x


class Mixed(Operation, abstract=True):
    """Each row less the mean of all, by a product with ones."""

    mixes = True

    def forward(self, m, x):
        return x - m.total(x) / m.count(x)

    def backward(self, m, dout, x, y):
        return dout - m.total(dout) / m.count(dout)


class Gram(Operation, abstract=True):
    mixes = True

    def forward(self, m, x):
        return m.matmul(m.matmul(x, m.T(x)), x)


class Rolled(Operation, abstract=True):
    """On arrays, without m: row by row, and so each rank's own."""

    def forward(self, m, x):
        return np.roll(x, 1, axis=1)

    def backward(self, m, dout, x, y):
        return np.roll(dout, -1, axis=1)


class Transposed(Operation, abstract=True):
    mixes = True

    def forward(self, m, x):
        return m.T(x)


class Sums(Operation, abstract=True):
    mixes = True

    def forward(self, m, x):
        return x - m.T(m.sum(m.T(x)))


class Scaled(Operation, abstract=True):
    """A matrix that is the same for all rows, met element by element."""

    units: int
    parameters = {"V": ("units", "units")}  # noqa: RUF012

    def forward(self, m, x, V):
        return x * V

    def backward(self, m, dout, x, y, V):
        return dout * V, m.total(dout)


def gradient_of(operation, backend="numpy"):
    x, t = data("float64")

    def go(span):
        net = xnet.Network(around(operation)[0], dtype="float64")
        return digest(*net.gradient(x[span], t[span]).values())

    with xnet.use_backend(backend, reproducible=True):
        alone = go(slice(None))
    assert set(on_ranks(4, lambda ranks: go(UNEVEN[ranks.rank]), backend=backend)) == {alone}


class Vocabulary(Operation, abstract=True):
    """Everything that `m` has, of values that are the same on all ranks and of such as are not."""

    units: int
    parameters = {"V": ("units", "units"), "g": ("units",)}  # noqa: RUF012
    state = {"seen": (("units",), 1.0)}  # noqa: RUF012
    mixes = random = True

    def forward(self, m, x, V, g):
        norm = m.sqrt(m.total(V * V) + m.count(V)) * m.sqrt(4.0)
        turned = m.T(m.matmul(m.T(V), m.T(x)))
        weight = m.uniform(norm) + m.row([0.5] * self.units, x)
        scaled = m.where(turned > 0, turned, 0.1 * turned) / norm * weight
        spread = m.maximum(scaled - m.max(scaled), -1) / m.width(scaled)
        m.kept.normal = spread - m.total(spread) / m.count(x)
        m.move({"seen": m.total(m.abs(x)) / m.count(x)}, 0.5)
        return m.kept.normal * (1 + m.exp(-m.state["seen"])) + g * m.sum(
            m.where(~(x > 9) & (x > 0), x, 0)
        )

    def backward(self, m, dout, x, y, V, g):
        by_g = m.total(dout * m.kept.normal)
        return m.matmul(dout, m.T(V)), m.matmul(m.T(x), dout) + V * by_g, by_g


class Squares(Operation, abstract=True):
    """The transpose met with rows."""

    mixes = True

    def forward(self, m, x):
        return x * m.T(x)


@pytest.mark.parametrize("operation", [Mixed(), Rolled(), Vocabulary(M)], ids=str)
def test_operations_of_ones_own(operation):
    gradient_of(operation)


@pytest.mark.parametrize(
    ("operation", "message"),
    [
        (PerRow(M), "PerRow: the gradient by g is one of each row"),
        (Gram(), "multiplies each row of the batch with every other"),
        (Transposed(), "Transposed.forward gives no rows of the batch"),
        (Squares(), "with rows of the batch and with their transpose"),
        (Sums(), "asks for rows of a transpose"),
        (Scaled(M), "a matrix .6, 6. that is the same for all batches"),
    ],
    ids=lambda v: type(v).__name__,
)
def test_formulas_that_no_rank_can_compute_alone(operation, message):
    x, t = data("float64")

    def go(ranks):
        span = shards(N, 1, 1)[ranks.rank] if not isinstance(operation, Scaled) else slice(0, M)
        xnet.Network(around(operation)[0]).gradient(x[span], t[span])

    with pytest.raises(FormulaError, match=message):
        on_ranks(2, go)


def test_values_are_no_arrays():
    value = Value(np.ones((2, 2)), 0)
    with pytest.raises(TypeError):
        np.tanh(value)
    with pytest.raises(FormulaError, match="makes an array of a value"):
        np.asarray(value)


# -- ranks


def test_alone():
    assert (ALONE.gathered(3), ALONE.total(3), ALONE.any(True), ALONE.any(False)) == (
        [3],
        3,
        True,
        False,
    )
    assert (ALONE.begin(5), ALONE.count(5), list(ALONE.span(3))) == (5, 5, [0, 1, 2])
    assert ALONE.first(lambda: b"made") == b"made"
    assert ALONE.first(lambda: None) is None
    assert ALONE.agreed(True)
    assert not ALONE.agreed(False)
    rows = np.arange(3)
    assert ALONE.whole(None, rows) is rows
    assert ALONE.joined(rows) is rows
    ALONE.check_same(what=object)  # nothing to compare with
    with pytest.raises(KeyError), ALONE.together():
        raise KeyError


def test_ranks_tell_each_other():
    def go(ranks):
        rows = np.arange(ranks.rank, dtype=np.float32)[:, None]
        return (
            ranks.gathered({"rank": ranks.rank}),
            ranks.total(ranks.rank),
            ranks.any(ranks.rank == 2),
            ranks.first(lambda: b"of 0"),
            ranks.first(lambda: None),
            ranks.joined(rows).tolist(),
            list(ranks.span(5)),
            ranks.begin(ranks.rank),
            ranks.batch.places.tolist(),
        )

    found = on_ranks(3, go)
    every = [{"rank": 0}, {"rank": 1}, {"rank": 2}], 3, True, b"of 0", None, [[0.0], [0.0], [1.0]]
    assert [f[:6] for f in found] == [every] * 3
    assert [f[6] for f in found] == [[0, 1], [2, 3], [4]]
    assert [f[7:] for f in found] == [(3, []), (3, [0]), (3, [1, 2])]


@pytest.mark.parametrize("n", range(12))
def test_spans_cover_everything_once(n):
    spans = on_ranks(5, lambda ranks: list(ranks.span(n)))
    assert [k for span in spans for k in span] == list(range(n))
    assert max(map(len, spans)) - min(map(len, spans)) <= 1


def test_what_fails_on_one_rank_fails_on_all():
    def go(ranks):
        try:
            with ranks.together():
                if ranks.rank:
                    raise ValueError(f"x of {ranks.rank} is wrong")
        except (ValueError, RankError) as error:
            return type(error), str(error), is_agreed(error), speaker(error)

    found = on_ranks(3, go)
    assert found[0] == (RankError, "rank 1: ValueError: x of 1 is wrong", True, 1)
    assert found[1:] == [(ValueError, f"x of {k} is wrong", True, 1) for k in (1, 2)]


def test_what_differs_between_ranks_is_named():
    def go(ranks):
        ranks.check_same(seed=1)
        with pytest.raises(RankError) as refused:
            ranks.check_same(seed=1, batch_size=10 + (ranks.rank == 1))
        return str(refused.value), is_agreed(refused.value)

    expected = "batch_size is not the same on all ranks: 10 on ranks 0, 2, 11 on rank 1"
    assert on_ranks(3, go) == [(expected, True)] * 3


def test_flags_travel_with_reductions():
    def go(ranks):
        said, backend = [], xnet.get_backend()
        for step in range(4):
            said.append(ranks.agreed(ranks.rank == 1 and step == 1))
            ranks.reduced(backend, [np.ones(3, np.float32)])
        return said

    assert on_ranks(3, go) == [[False, False, True, True]] * 3


def test_flags_are_forgotten_between_runs():
    def go(ranks):
        backend, said = xnet.get_backend(), []
        for asks in (True, False):
            ranks.forget()
            ranks.agreed(asks and ranks.rank == 0)
            ranks.reduced(backend, [np.ones(3, np.float32)])
            said.append(ranks.agreed(False))
        return said

    assert on_ranks(2, go) == [[True, False]] * 2


def test_rows_of_different_dtypes_are_joined_as_numbers():
    def go(ranks):
        rows = np.arange(3, dtype=("int64", "uint8", "int32")[ranks.rank]) + 10 * ranks.rank
        return ranks.joined(rows if ranks.rank else rows[:0]).tolist()

    assert on_ranks(3, go) == [[10, 11, 12, 20, 21, 22]] * 3
    with pytest.raises(RankError, match=r"rows are of shapes \[2\], \[3\] on ranks"):
        on_ranks(2, lambda ranks: ranks.joined(np.ones((1, 2 + ranks.rank))))


def test_numbers_of_numpy_are_facts():
    def go(ranks):
        ranks.check_same(clip=np.float32(0.5), patience=np.int64(3), resume=np.bool_(False))
        return ranks.gathered(np.int64(ranks.rank))

    assert on_ranks(2, go) == [[0, 1]] * 2


def test_what_was_begun_is_forgotten_after_an_error():
    class Fails(Operation, abstract=True):
        units: int
        parameters = {"g": ("units",)}  # noqa: RUF012

        def forward(self, m, x, g):
            return x * g

        def backward(self, m, dout, x, y, g):
            m.total(dout)
            raise ArithmeticError("a fault of the formula's own")

    x, t = data("float64")

    def go(ranks):
        net = xnet.Network(around(Fails(M))[0])
        with pytest.raises(ArithmeticError):
            net.gradient(x[UNEVEN[ranks.rank]], t[UNEVEN[ranks.rank]])
        return net.loss(x[ranks.rank :: 4], t[ranks.rank :: 4])

    assert len(set(on_ranks(4, go))) == 1


def test_copies_stay_on_the_ranks():
    import copy

    x, t = data("float64")

    def go(ranks):
        net = xnet.TwoLayerNet(D, M, C)
        mine = UNEVEN[ranks.rank]
        return net.loss(x[mine], t[mine]) == copy.deepcopy(net).loss(x[mine], t[mine])

    assert on_ranks(4, go) == [True] * 4


def test_what_is_not_for_ranks_is_refused_by_name():
    from xnet.sklearn import XNetClassifier

    x, t = data("float64")

    def go(ranks):
        with pytest.raises(ValueError, match="check one that is on one rank"):
            xnet.gradient_check(xnet.TwoLayerNet(D, M, C), x, t)
        with pytest.raises(ValueError, match="an estimator knows the data of one rank alone"):
            XNetClassifier().fit(x, t)
        with pytest.raises(ValueError, match="the batch is empty"):
            xnet.measures.accuracy(np.ones((0, 2)), np.ones(0, int))
        return True

    assert on_ranks(2, go) == [True] * 2


def test_functions_are_of_what_they_are_handed():
    def go(ranks):
        y, t = np.arange(4.0)[:, None] + ranks.rank, np.arange(4.0)
        return xnet.measures.r_squared(y, t), xnet.measures.accuracy(np.eye(3), np.arange(3))

    assert on_ranks(2, go) == [(1.0, 1.0), (1 - 4 / 5, 1.0)]


def test_layers_alone_know_of_no_batch():
    def go(ranks):
        layer = layers.BatchNorm.from_params(np.ones(3), np.zeros(3))
        layer.initialize(0, "float64", xnet.get_backend())
        layer.forward(np.ones((4, 3)))

    with pytest.raises(RankError, match="4 rows are of no batch that these ranks have begun"):
        on_ranks(2, go)


def test_an_empty_batch_is_one_that_no_rank_has_rows_of():
    def go(ranks):
        net = xnet.TwoLayerNet(D, M, C)
        x, t = data("float64")
        own = slice(0, 3 * ranks.rank)
        assert net.loss(x[own], t[own]) == net.loss(x[own], t[own])
        net.loss(x[:0], t[:0])

    with pytest.raises(ValueError, match=r"x has shape \(0, 5\): the batch is empty"):
        on_ranks(2, go)


def test_a_sharded_backend_says_so_and_travels_as_its_local_one():
    import pickle

    def go(ranks):
        backend = xnet.get_backend()
        assert repr(backend) == "<backend numpy reproducible on 2 ranks>"
        assert backend.label == "numpy"
        assert isinstance(backend, ShardedBackend)
        net = xnet.TwoLayerNet(D, M, C, backend=backend)
        assert net.to("numpy").backend is xnet.resolve("numpy", True)
        return pickle.dumps(backend)

    assert [pickle.loads(content) for content in on_ranks(2, go)] == [
        xnet.resolve("numpy", True)
    ] * 2


def test_ranks_are_alone_unless_said_otherwise():
    assert all(xnet.resolve(name).ranks is ALONE for name in BACKENDS)
    assert type(ALONE) is Ranks
