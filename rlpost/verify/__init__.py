"""Everything that runs a verifier: the protocol, finding it by name, and the pool of processes with a real time-out.

A verifier is trusted code. What it grades is text, which is never executed in its process; a verifier of programs hands
them to `rlpost.verify.sandbox`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlpost.verify.pool import VerifierPool
from rlpost.verify.protocol import VerifierError, to_verdict, verifier
from rlpost.verify.registry import resolve

if TYPE_CHECKING:
    from rlpost import config
    from rlpost.verify.remote import ClusterPool

__all__ = ["VerifierError", "VerifierPool", "open_pool", "resolve", "to_verdict", "verifier"]


def open_pool(
    specs: Sequence[config.VerifierSpec], pool: config.VerifierPool, start_deadline: float = 120.0
) -> VerifierPool | ClusterPool:
    """The pool that `verifier_pool.where` asks for, not started yet; on the cluster, Ray must be connected."""
    if pool.where == "driver":
        return VerifierPool(specs, pool, start_deadline)
    from rlpost.verify.remote import ClusterPool

    return ClusterPool(specs, pool, start_deadline)
