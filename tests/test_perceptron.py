import numpy as np
import pytest

import xnet
from xnet.dtypes import dtype_name
from xnet.errors import BackendError
from xnet.perceptron import AND, NAND, OR, XOR, AND_with_threshold, perceptron, weighted_sum

TRUTH = {AND: "0001", AND_with_threshold: "0001", NAND: "1110", OR: "0111", XOR: "0110"}


@pytest.mark.parametrize("gate", TRUTH)
@pytest.mark.parametrize("kind", [int, float, bool, np.float32])
def test_gates_take_any_kind_of_number(backend, gate, kind):
    corners = [(0, 0), (0, 1), (1, 0), (1, 1)]
    outputs = [gate(kind(x1), kind(x2)) for x1, x2 in corners]
    assert "".join(map(str, outputs)) == TRUTH[gate]
    assert all(type(output) is int for output in outputs)


@pytest.mark.parametrize(
    ("gate", "sign", "threshold"),
    [(AND, 1, 0.7), (AND_with_threshold, 1, 0.7), (NAND, -1, 0.7), (OR, 1, 0.2)],
)
def test_gates_weigh_both_inputs_alike(gate, sign, threshold):
    """Close to the line 0.5 x1 + 0.5 x2 = threshold, on either side of it."""
    for x1 in (-1.5, 0.0, 0.4, 3.0):
        for side in (-1e-3, 1e-3):
            x2 = 2 * threshold - x1 + side
            assert gate(x1, x2) == gate(x2, x1) == (sign * side > 0)


def test_weighted_sum(backend, dtype):
    x, w = backend.asarray([1.0, 2.0, 3.0], dtype), backend.asarray([0.5, -1.0, 2.0], dtype)
    total = weighted_sum(x, w, 0.25)
    assert float(total) == 4.75
    assert total.shape == ()
    assert dtype_name(total.dtype) == dtype
    assert float(weighted_sum(x, w)) == 4.5


def test_perceptron_fires_above_zero_only(backend):
    x, w = backend.asarray([1.0, 1.0]), backend.asarray([0.5, 0.5])
    assert [perceptron(x, w, b) for b in (-1.5, -1.0, -0.5)] == [0, 0, 1]
    assert AND_with_threshold(0.7, 0.7) == 0  # 0.7 is not above 0.7


def test_shapes_must_agree(backend):
    x, w = backend.asarray([1.0, 2.0]), backend.asarray([1.0])
    with pytest.raises(ValueError, match=r"x has shape \(2,\), w has \(1,\)"):
        weighted_sum(x, w)
    with pytest.raises(ValueError, match=r"x has shape \(2,\), w has \(1,\)"):
        perceptron(x, w, 0.0)


def test_arrays_of_two_devices_are_refused():
    strict = xnet.resolve("strict").asarray([1.0])
    with pytest.raises(BackendError, match="x is on numpy, w is on strict"):
        perceptron(np.ones(1), strict, 0.0)


def test_lists_and_whole_numbers_are_taken(backend):
    w = backend.asarray(np.array([2.0, 3.0]))
    for x in ([0, 1], (0.0, 1.0), backend.asarray([0, 1])):
        assert float(weighted_sum(x, w, 0.5)) == 3.5
    assert perceptron([1, 1], [0.5, 0.5], -0.7) == 1
    with pytest.raises(TypeError, match="x is a str, expected an array"):
        weighted_sum("01", w)
