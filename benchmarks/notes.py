"""The notes' two-layer network and numerical gradient (§4.4.2, §4.5.1), in plain NumPy.

What the numerical gradient is measured against: every loss from the beginning, one weight at a
time. The logarithm is of the probability itself, as xnet's loss has it, without the notes' 1e-7:
the answers are compared.
"""

import numpy as np


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def softmax(x):
    e = np.exp(x - np.max(x, axis=1, keepdims=True))
    return e / np.sum(e, axis=1, keepdims=True)


def cross_entropy_error(y, t):
    return -np.sum(t * np.log(y)) / y.shape[0]


def numerical_gradient(f, x):
    h = 1e-4
    grad = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        value = x[index]
        x[index] = value + h
        above = f(x)
        x[index] = value - h
        below = f(x)
        grad[index] = (above - below) / (2 * h)
        x[index] = value
    return grad


class TwoLayerNet:
    """With the given parameters, a dict of W1, b1, W2, b2."""

    def __init__(self, params):
        self.params = params

    def predict(self, x):
        z = sigmoid(np.dot(x, self.params["W1"]) + self.params["b1"])
        return softmax(np.dot(z, self.params["W2"]) + self.params["b2"])

    def loss(self, x, t):
        return cross_entropy_error(self.predict(x), t)

    def numerical_gradient(self, x, t):
        def loss(_):
            return self.loss(x, t)

        return {name: numerical_gradient(loss, array) for name, array in self.params.items()}
