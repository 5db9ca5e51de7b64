"""A run under the supervisor, on two Ray nodes of one machine, while everything around it breaks at random.

    python benchmarks/chaos.py --duration 1200 --seed 0

Engines, verifier workers, ranks and the driver are killed and stopped, a node is lost and comes back, the disk fills up
once. The run must come to its end, within the interval of pass@1 of a run that nothing disturbed, with every sample
accounted for, and leave no process, nothing in shared memory and no growing process behind. Needs `unshare` and the right
to mount: the runs lie on a small tmpfs in a mount namespace of its own, so that a full disk is one.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from rlpost import events

MARK = "RLPOST_CHAOS"
DISK_MB = 1500
KINDS = (
    "engine killed",
    "engine stopped for good",
    "engine stopped for 5 s",
    "rank killed",
    "rank stopped for 5 s",
    "verifier worker killed",
    "verifier worker stopped for good",
    "driver killed",
    "node lost",
    "disk full",
)
WEIGHTS = (4, 1, 2, 2, 2, 3, 2, 2, 2, 0)
SLOPE = 1.0  # MiB a step
LONGEST = 30  # steps without a restart that a slope is measured over, at least


def main() -> int:
    arguments = parse_arguments()
    if os.environ.get(MARK) is None:  # again, where a mount is nobody else's
        inside = ["unshare", "--mount"] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user", "--mount"]
        os.environ[MARK] = f"{os.getpid()}-{arguments.seed}"
        os.execvp(inside[0], [*inside, sys.executable, *sys.argv])
    with tempfile.TemporaryDirectory(prefix="chaos-") as folder:
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MB}m", "chaos", folder], check=True)
        try:
            return judge(arguments, Path(folder))
        finally:
            subprocess.run(["umount", "--lazy", folder], check=True)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--duration", type=float, default=1200, help="seconds in which faults come; the run then ends in peace"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the faults")
    parser.add_argument("--config", default="configs/quickstart.yaml")
    parser.add_argument("--out", type=Path, help="where to write what was found as JSON")
    parser.add_argument("overrides", nargs="*", help="key=value, for both runs")
    return parser.parse_args()


def judge(arguments: argparse.Namespace, folder: Path) -> int:
    """Both runs, what differs, and the table. Returns 1 where a promise is broken."""
    before = set(os.listdir("/dev/shm"))
    common = [
        "train",
        arguments.config,
        f"runs_dir={folder}",
        "observe.sinks=[]",
        "observe.console=plain",
        *arguments.overrides,
    ]
    quiet = folder / "quiet"
    subprocess.run(rlpost(*common, f"name={quiet.name}"), check=True, env=environment())
    with Nodes() as nodes:
        chaos = Chaos(folder / "chaos", nodes, random.Random(arguments.seed), arguments.duration)
        chaos.start(
            *common,
            "--restarts=1000",
            f"name={chaos.run.name}",
            f"cluster.address={nodes.address}",
            "cluster.elastic=true",
            "rollout.engines=2",
            "checkpoint.every=5",
            "rollout.deadline=60",
            "rollout.sync_deadline=60",
            "learner.deadline=60",
        )
        code = chaos.watch()
    problems = [f"it ended with {code}"] if code else chaos.problems(quiet)
    until = time.monotonic() + 30
    while (left := marked() - {os.getpid()}) and time.monotonic() < until:
        time.sleep(0.5)
    problems += [f"left behind: {cmdline(pid)}" for pid in left]
    problems += [f"left in shared memory: {name}" for name in set(os.listdir("/dev/shm")) - before]
    slopes = chaos.slopes()
    problems += [f"{who} grows by {slope:.2f} MiB a step" for who, slope in slopes.items() if slope > SLOPE]
    show(chaos, slopes, problems)
    if arguments.out:
        found = {
            "faults": [vars(f) for f in chaos.faults],
            "slopes": slopes,
            "problems": problems,
            "seed": arguments.seed,
        }
        arguments.out.write_text(json.dumps(found, indent=1))
    return 1 if problems else 0


def rlpost(*command: str) -> list[str]:
    return [sys.executable, "-m", "rlpost.cli", *command]


def environment() -> dict[str, str]:
    return {**os.environ, "RAY_ADDRESS": ""}


class Nodes:
    """Two Ray nodes: one for the driver, the ranks and an engine, one for another engine, which may be lost."""

    def __enter__(self) -> Nodes:
        from ray.cluster_utils import Cluster

        os.environ.setdefault("RAY_worker_niceness", "0")
        self.cluster = Cluster(
            initialize_head=True,
            head_node_args={"num_cpus": 2, "object_store_memory": 300 * 2**20, "include_dashboard": False},
        )
        self.other: Any = None
        self.add()
        return self

    @property
    def address(self) -> str:
        return str(self.cluster.address)

    def add(self) -> None:
        self.other = self.cluster.add_node(num_cpus=1, object_store_memory=200 * 2**20)

    def lose(self) -> None:
        self.cluster.remove_node(self.other, allow_graceful=False)

    def __exit__(self, *_: object) -> None:
        self.cluster.shutdown()


@dataclass
class Fault:
    """
    Attributes:
        at: seconds from the start. step: the last one done.
        until_further: seconds until a step was done that never was before; None: the run ended before.
        restarts: that it took.
    """

    kind: str
    at: float
    step: int
    until_further: float | None = None
    restarts: int = 0


@dataclass
class Chaos:
    """The run that is disturbed."""

    run: Path
    nodes: Nodes
    chance: random.Random
    duration: float
    faults: list[Fault] = field(default_factory=list)
    memory: dict[int, list[tuple[int, float]]] = field(default_factory=dict)  # by pid: step, MiB
    names: dict[int, str] = field(default_factory=dict)

    def start(self, *command: str) -> None:
        self.began = time.monotonic()
        self.process = subprocess.Popen(rlpost(*command), env=environment())

    def watch(self) -> int:
        """Disturb the run until the time is up, then wait for it. Returns its exit code."""
        owed: list[tuple[float, Callable[[], None]]] = []  # what has to be undone, and when
        best, next_at, disk_at = 0, 0.0, self.duration * self.chance.uniform(0.3, 0.6)
        while self.process.poll() is None:
            time.sleep(0.5)
            now, step = time.monotonic() - self.began, self.step()
            for due in [due for due in owed if due[0] <= now]:
                owed.remove(due)
                due[1]()
            if step > best:
                best = step
                self.measure(step)
                if self.faults and self.faults[-1].until_further is None:
                    self.faults[-1].until_further = now - self.faults[-1].at
                    self.faults[-1].restarts = self.restarts() - sum(f.restarts for f in self.faults[:-1])
                    next_at = 0.0
                if not next_at:
                    next_at = now + self.chance.uniform(1, 12)
            if next_at and now >= next_at and now < self.duration and not any(u[1] == self.nodes.add for u in owed):
                kind = "disk full" if disk_at and now >= disk_at else self.chance.choices(KINDS, WEIGHTS)[0]
                undo = self.strike(kind)
                if undo is None:
                    continue
                disk_at = 0.0 if kind == "disk full" else disk_at
                owed += [(now + seconds, what) for seconds, what in undo]
                self.faults.append(Fault(kind, now, step))
                next_at = float("inf")  # until the run has come further
        for _, undo_it in owed:
            undo_it()
        return self.process.returncode

    def strike(self, kind: str) -> list[tuple[float, Callable[[], None]]] | None:
        """Do it. Returns what is to be done after how many seconds; None where there is nobody to do it to."""
        if kind == "node lost":
            self.nodes.lose()
            return [(90.0, self.nodes.add)]
        if kind == "disk full":
            filler = self.run.parent / "filler"
            with filler.open("wb", buffering=0) as file, suppress(OSError):
                while True:
                    file.write(bytes(2**20))
            return [(15.0, lambda: filler.unlink())]
        who, how = kind.split(" ", 1)[0], kind
        found = self.victims()[who]
        if not found:
            return None
        pid = self.chance.choice(sorted(found))
        os.kill(pid, signal.SIGKILL if "killed" in how else signal.SIGSTOP)
        return [(5.0, lambda: alive(pid) and os.kill(pid, signal.SIGCONT))] if "5 s" in how else []

    def victims(self) -> dict[str, set[int]]:
        """By role the processes of the run."""
        found: dict[str, set[int]] = {"engine": set(), "rank": set(), "verifier": set(), "driver": set()}
        for pid in marked():
            said = cmdline(pid)
            if said.startswith("ray::Engine"):
                found["engine"].add(pid)
            elif said.startswith("ray::LearnerRank"):
                found["rank"].add(pid)
            elif "rlpost.verify.worker" in said:
                found["verifier"].add(pid)
            elif "rlpost.cli" in said and parent(pid) == self.process.pid:
                found["driver"].add(pid)
        return found

    def step(self) -> int:
        rows = self.rows()
        return max((row["step"] for row in rows), default=0)

    def rows(self) -> list[dict[str, Any]]:
        rows = []
        try:
            lines = (self.run / "metrics.jsonl").read_text().splitlines()
        except OSError:
            return []
        for line in lines:
            try:
                rows.append(json.loads(line))
            except ValueError:  # being written
                continue
        return [row for row in rows if "when" not in row]

    def restarts(self) -> int:
        return sum(event.kind == "restart" for event in events.read(self.run / "events.jsonl"))

    def measure(self, step: int) -> None:
        for who, pids in self.victims().items():
            for pid in pids:
                try:
                    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
                except OSError:
                    continue
                self.names[pid] = who
                known = self.memory.setdefault(pid, [])
                if not known or known[-1][0] < step:
                    known.append((step, pages * os.sysconf("SC_PAGE_SIZE") / 2**20))

    def slopes(self) -> dict[str, float]:
        """By role MiB a step, in the second half of the longest life of a process; of those that were long enough."""
        found: dict[str, float] = {}
        for who in set(self.names.values()):
            lives = [rows for pid, rows in self.memory.items() if self.names[pid] == who]
            rows = max(lives, key=len)
            if len(rows) >= LONGEST:
                steps, sizes = zip(*rows[len(rows) // 2 :], strict=True)
                found[who] = float(np.polyfit(steps, sizes, 1)[0])
        return found

    def problems(self, quiet: Path) -> list[str]:
        """What of the run's result is not as it should be."""
        found = []
        rows = self.rows()
        last = json.loads((self.run / "summary.json").read_text())["steps"]
        if [row["step"] for row in rows] != [*range(1, last + 1)]:
            found.append("its steps are not each there once")
        for row in rows:
            parts = sum(row[f"samples/{what}"] for what in ("consumed", "dropped", "running"))
            if row["samples/submitted"] != parts:
                found.append(f"step {row['step']}: samples are not accounted for")
        (mine, *_), (_, low, high) = (
            json.loads((run / "summary.json").read_text())["eval"]["after"]["pass@1"] for run in (self.run, quiet)
        )
        if not low <= mine <= high:
            found.append(f"pass@1 {mine:.3f} is outside of {low:.3f} to {high:.3f}, of a run that nothing disturbed")
        return found


def marked() -> set[int]:
    """All processes that this one started, however they left it."""
    mine, found = f"{MARK}={os.environ[MARK]}".encode(), set()
    for entry in os.listdir("/proc"):
        if entry.isdecimal():
            try:
                if mine in Path(f"/proc/{entry}/environ").read_bytes():
                    found.add(int(entry))
            except OSError:
                continue
    # Verifiers get no more of the environment than they need: they are known by who started them.
    return found | {int(e) for e in os.listdir("/proc") if e.isdecimal() and parent(int(e)) in found}


def cmdline(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return ""


def parent(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    except OSError:
        return 0


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


def show(chaos: Chaos, slopes: dict[str, float], problems: list[str]) -> None:
    table = Table("fault", "times", "restarts", "seconds until the run was further, median", "longest")
    for kind in KINDS:
        of = [f for f in chaos.faults if f.kind == kind]
        lost = [f.until_further for f in of if f.until_further is not None]
        if of:
            middle, most = (f"{how(lost):.0f}" if lost else "-" for how in (statistics.median, max))
            table.add_row(kind, str(len(of)), str(sum(f.restarts for f in of)), middle, most)
    console = Console()
    console.print(table)
    console.print(
        f"MiB a step: {', '.join(f'{who} {slope:.3f}' for who, slope in sorted(slopes.items())) or 'too few steps'}"
    )
    for problem in problems or ["all promises held"]:
        console.print(problem, markup=False)


if __name__ == "__main__":
    sys.exit(main())
