"""Everything that runs a verifier: the protocol, finding it by name, and the pool of processes with a real time-out.

A verifier is trusted code. What it grades is text, which is never executed here; a sandbox for code the model wrote
is another part, to stand beside the pool and be called by a verifier.
"""

from rlpost.verify.pool import VerifierPool
from rlpost.verify.protocol import VerifierError, to_verdict, verifier
from rlpost.verify.registry import resolve

__all__ = ["VerifierError", "VerifierPool", "resolve", "to_verdict", "verifier"]
