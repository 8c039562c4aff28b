"""Three equations from elsewhere: an activation with a constant, a row loss, an optimizer."""

from xnet.operations import Loss, Pointwise, log_softmax, softmax
from xnet.optimizers import Optimizer


class Softsign(Pointwise):
    """x / (c + |x|)."""

    c: float = 1.0

    def forward(self, m, x):
        return x / (self.c + m.abs(x))

    def backward(self, m, dout, x, y):
        return dout * (self.c / (self.c + m.abs(x)) / (self.c + m.abs(x)))


class SquaredEntropy(Loss):
    """Half the square of the cross-entropy, which weighs by how wrong the network is."""

    def forward(self, m, x, t):
        c = m.sum(t * log_softmax(m, x))
        return 0.5 * (c * c)

    def backward(self, m, x, t):
        return m.sum(t * log_softmax(m, x)) * (t - softmax(m, x) * m.sum(t))


class Signum(Optimizer):
    """v = decay v + (1 - decay) g, W - lr v / (|v| + eps)."""

    lr: float = 0.01
    decay: float = 0.9
    eps: float = 1e-3
    slots = 1

    def step(self, m, n, W, g, v):
        v = self.decay * v + (1 - self.decay) * g
        return W - self.lr * v / (m.abs(v) + self.eps), v
