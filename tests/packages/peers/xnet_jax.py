"""A test-only backend: JAX's arithmetic, run eagerly on the CPU."""

import os
from importlib import import_module
from importlib.util import find_spec

from xnet.backend import Backend


class JaxBackend(Backend):
    """JAX's arrays cannot be written, and XLA's CPU code takes subnormals for zeros."""

    name = "jax"

    @classmethod
    def why_unusable(cls):
        return None if find_spec("jax") else "JAX is not installed: pip install jax"

    def __init__(self, device=None, *, reproducible=False):
        super().__init__(device, reproducible=reproducible)
        # XLA's algebraic simplifier makes a division by one number a multiplication by its inverse.
        os.environ["XLA_FLAGS"] = "--xla_disable_hlo_passes=algsimp"
        self.jax = import_module("jax")
        self.jax.config.update("jax_enable_x64", True)
        self.jax.config.update("jax_platforms", "cpu")
        self.xp = import_module("jax.numpy")

    def owns(self, array):
        return isinstance(array, self.jax.Array)
