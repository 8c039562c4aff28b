"""A test kit for backends: whether one keeps every promise of `xnet.backend.Backend`.

Three lines in a backend's own tests try it, see `parametrize_with_checks`; `check_backend` does it
without pytest, and ``xnet parity --backend NAME`` as a table. What is tried follows from the
registries, so operations and optimizers of one's own are tried too.
"""

from xnet.testing.checking import (
    BrokenPromiseError,
    Check,
    Outcome,
    check_backend,
    checks,
    parametrize_with_checks,
)

__all__ = [
    "BrokenPromiseError",
    "Check",
    "Outcome",
    "check_backend",
    "checks",
    "parametrize_with_checks",
]
