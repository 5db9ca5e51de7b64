"""`rlpost doctor`: is this the machine, and are these the nodes, that a run needs?"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from rlpost.config import Config, ConfigError
from rlpost.exit_codes import BAD_USAGE, DONE
from rlpost.machine import Finding, Machine, examine, here

DEADLINE = 60.0  # seconds for a node to answer


def show(config: Config | None = None) -> int:
    """Print what is here, and on the nodes of the configuration's cluster; exit code 2 when something is to be done."""
    out = Console(soft_wrap=True)
    store = config.cluster.object_store_gb if config is not None else 1.0
    machine = examine(store)
    findings, machines = list(machine.findings), [machine]
    if config is not None and (config.cluster.address or os.environ.get("RAY_ADDRESS")):
        found, others = nodes(config, machine)
        findings, machines = findings + found, machines + others
    if config is not None and config.on_gpu and (sizes := [size for one in machines for size in one.gpus]):
        findings.append(planned(config, min(sizes)))
    table = Table("", "found", "", box=None)
    for finding in [Finding("python", machine.python), *findings]:
        table.add_row(finding.what, finding.found, finding.remedy or "ok")
    out.print(table, markup=False)
    _show_sandbox(out)
    wrong = [finding.what for finding in findings if finding.remedy]
    if wrong:
        out.print(f"to be mended, see above: {', '.join(wrong)}", markup=False)
        return BAD_USAGE
    return DONE


def planned(config: Config, smallest: float) -> Finding:
    """Whether the run fits GPUs of this size, in GiB, by its plan.

    Raises:
        ConfigError, DataError, VerifierError: the run would be refused.
    """
    from rlpost.memory import memory_of
    from rlpost.run.check import checked

    ready = checked(config, elsewhere=True)
    memory = memory_of(ready.config, ready.facts, smallest)
    remedy = "give model.path as a folder, or model.parameters" if memory is None else "; ".join(memory.problems)
    found = f"{smallest:.1f} GiB{', and what the run needs is not known' if memory is None else ''}"
    return Finding("memory of the smallest GPU, by the plan", found, remedy)


def nodes(config: Config, machine: Machine) -> tuple[list[Finding], list[Machine]]:
    """What is wrong on the nodes of the cluster that the configuration joins, what of it is not as it is here, and the
    nodes.

    A folder made in `runs_dir` is looked for from all of them, and so are files that the configuration names.
    """
    import ray

    from rlpost.cluster import check_address, connected, on_nodes

    check_address(config)
    runs = Path(config.runs_dir)
    try:
        runs.mkdir(parents=True, exist_ok=True)
        made = tempfile.TemporaryDirectory(prefix=".doctor-", dir=runs)
    except OSError as error:
        raise ConfigError(f"runs_dir: {config.runs_dir!r}: cannot be written: {error.strerror}") from None
    with made as shared, connected(config):
        looked = [str(Path(shared).resolve())]
        if config.model.path and Path(config.model.path).expanduser().is_dir():
            looked.append(str(Path(config.model.path).expanduser().resolve()))
        alive = [node for node in ray.nodes() if node["Alive"]]
        answers = on_nodes(examine, [(node["NodeID"], (0.0, tuple(looked))) for node in alive], DEADLINE)
        addresses = [node["NodeManagerAddress"] for node in alive]
        machines: list[Machine] = []
        findings = [Finding("nodes", f"{len(addresses)}: {', '.join(addresses)}")]
        for address, found in zip(addresses, answers, strict=True):
            if not isinstance(found, Machine):
                said = " ".join(str(found).split())[-200:] or f"no answer in {DEADLINE:.0f} s"
                findings.append(Finding(f"node {address}", said, "install rlpost there, in the same environment"))
                continue
            machines.append(found)
            wrong = [finding for finding in found.findings if finding.remedy]
            findings += [*here(wrong, address), *here(found.unlike(machine), address)]
    return findings, machines


def _show_sandbox(out: Console) -> None:
    """Which tier of the sandbox for generated code this machine gives; its attack list is run to find out."""
    from rlpost.verify.sandbox import probe, refuse_unsafe
    from rlpost.verify.sandbox.limits import SandboxError

    found = probe()
    out.print(f"sandbox for generated code: tier {found.tier} ({', '.join(found.layers) or 'no layer'})")
    if found.reason:
        out.print(f"  why not A: {found.reason}")
    stopped = sum(found.attacks.values())
    escaped = [name for name, held in found.attacks.items() if not held]
    out.print(f"  attacks stopped: {stopped} of {len(found.attacks)}{': not ' + ', '.join(escaped) if escaped else ''}")
    try:
        refuse_unsafe(found.tier, allow_unsafe=False, reason=found.reason)
    except SandboxError as error:
        out.print(f"  code rewards will refuse to start: {error}")
