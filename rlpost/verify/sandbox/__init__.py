"""Run programs nobody trusts: see `core` for the interface, `zygote` for how it is built, `tiers` for what it is worth.

from rlpost.verify.sandbox import Limits, sandbox
outcome = sandbox().run("print(int(input()) + 1)", stdin=b"41", limits=Limits(seconds=2))
"""

from rlpost.verify.sandbox.core import Sandbox, probe, sandbox
from rlpost.verify.sandbox.limits import STDIN, Limits, Outcome, Program, Resident, SandboxError
from rlpost.verify.sandbox.remote import RemoteSandbox
from rlpost.verify.sandbox.tiers import Probe, refuse_unsafe

__all__ = [
    "STDIN",
    "Limits",
    "Outcome",
    "Probe",
    "Program",
    "RemoteSandbox",
    "Resident",
    "Sandbox",
    "SandboxError",
    "probe",
    "refuse_unsafe",
    "sandbox",
]
