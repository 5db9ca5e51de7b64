"""The code verifier on MBPP: reference solutions, mutants of them, reward hacks, objects, and programs a second.

Five measurements in one run. All that is executed, the oracle's programs too, runs in the sandbox.

references   every reference solution against its tests, by our verifier and by the oracle. What cannot be checked across
             a process boundary must be found by `check_task`, as the loader of the data does
mutants      small faults made by `ast`. Where the tests kill one, our verifier must too; where they do not, it is
             equivalent as far as these tests tell, and counted apart
hacks        programs that solve nothing and attack the harness; two common harnesses beside ours
objects      programs of classes, generators, coroutines, callbacks and the like (tests/data/code_objects.yaml), right ones
             and ones a step from them that their tests catch
throughput   the same verdicts with our warm sandbox and with one fresh interpreter a program under the same layers

The oracle is what a notebook does: program, set-up code and tests in one namespace, passed when the end is reached.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import copy
import json
import os
import random
import secrets
import select
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).resolve().parents[1]
OBJECTS = ROOT / "tests" / "data" / "code_objects.yaml"
sys.path.insert(0, str(ROOT))

from rewards import _code_run, code  # noqa: E402
from rlpost.verify import sandbox as package  # noqa: E402
from rlpost.verify.sandbox import Limits, Outcome, attacks, sandbox  # noqa: E402

KINDS = ("operator", "comparison", "constant", "return", "condition", "arguments")
MUTANT_SECONDS = 1.0  # a mutant may loop for ever; the references take milliseconds
ORACLE_SECONDS = 3.0  # a time-out of ours is tried again with twice the time: the oracle gets the sum
NOBODY = 65534
START_SECONDS = 30.0
Row = dict[str, Any]


# ---------------------------------------------------------------------------------------------------------- mutants


@dataclass(frozen=True)
class Mutant:
    """A program with one fault.

    Args:
        kind: one of `KINDS`.
        line: of the original.
    """

    kind: str
    line: int
    source: str


OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Mod: ast.FloorDiv,
    ast.Pow: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.BitXor: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq, ast.In: ast.NotIn,
    ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def mutants(source: str) -> list[Mutant]:
    """All faults of `KINDS` that one place of `source` can be given, in its order, none twice and none the original.

    Raises:
        SyntaxError: the source does not parse.
    """
    tree = ast.parse(source)
    original = ast.unparse(tree)
    found: dict[str, Mutant] = {}
    for number, node in enumerate(ast.walk(tree)):
        for kind, change in _faults(node):
            other = copy.deepcopy(tree)
            change(next(twin for at, twin in enumerate(ast.walk(other)) if at == number))
            text = ast.unparse(ast.fix_missing_locations(other))
            if text != original:
                found.setdefault(text, Mutant(kind, getattr(node, "lineno", 0), text))
    return sorted(found.values(), key=lambda mutant: mutant.line)


def _faults(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """What can be done to a node: the kind of fault and the change, to be made on a copy of the node."""
    match node:
        case ast.BinOp(op=op) | ast.AugAssign(op=op) if type(op) in OPERATORS:
            yield "operator", lambda twin: setattr(twin, "op", OPERATORS[type(twin.op)]())
        case ast.BoolOp(op=op):
            other = ast.Or if isinstance(op, ast.And) else ast.And
            yield "operator", lambda twin: setattr(twin, "op", other())
        case ast.Compare(ops=[op, *_]) if type(op) in COMPARISONS:
            yield "comparison", lambda twin: twin.ops.__setitem__(0, COMPARISONS[type(twin.ops[0])]())
        case ast.Constant(value=value) if type(value) is int:
            yield "constant", lambda twin: setattr(twin, "value", twin.value + 1)
            yield "constant", lambda twin: setattr(twin, "value", twin.value - 1)
        case ast.Call(args=[first, second, *_]) if not any(isinstance(a, ast.Starred) for a in (first, second)):
            yield "arguments", lambda twin: twin.args.__setitem__(slice(2), twin.args[1::-1])
    if isinstance(node, ast.If | ast.While | ast.IfExp):
        yield "condition", lambda twin: setattr(twin, "test", ast.UnaryOp(ast.Not(), twin.test))
    for field in ("body", "orelse", "finalbody"):
        block = getattr(node, field, None)
        for index, statement in enumerate(block if isinstance(block, list) else []):
            if isinstance(statement, ast.Return) and statement.value is not None:
                yield "return", _without_return(field, index)


def _without_return(field: str, index: int) -> Callable[[Any], None]:
    def change(twin: Any) -> None:
        block = getattr(twin, field)
        block[index] = ast.Expr(block[index].value)

    return change


def sampled(found: Sequence[Mutant], count: int, seed: str) -> list[Mutant]:
    """So many of them, the kinds in turn; the same for the same seed."""
    drawn = random.Random(seed)
    heaps = [[mutant for mutant in found if mutant.kind == kind] for kind in KINDS]
    for heap in heaps:
        drawn.shuffle(heap)
    drawn.shuffle(heaps)
    chosen: list[Mutant] = []
    while len(chosen) < min(count, len(found)):
        for heap in heaps:
            if heap and len(chosen) < count:
                chosen.append(heap.pop())
    return chosen


# ------------------------------------------------------------------------------------------------------------- rows


def load(folder: Path, limit: int | None) -> list[Row]:
    """MBPP's problems in `folder`, spread over the file when there is a limit."""
    path = folder / "mbpp.jsonl" if folder.is_dir() else folder
    if not path.is_file():
        raise SystemExit(f"{path} is not there; give the folder that holds mbpp.jsonl, or a file of its kind")
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    rows = [row for row in rows if row.get("code") and row.get("test_list")]
    if not rows:
        raise SystemExit(f"{path} has no rows with code and test_list")
    return rows if limit is None else rows[:: -(-len(rows) // limit)]


def tests_of(row: Row) -> dict[str, Any]:
    """The arguments of our verifier that hold the tests."""
    kept = ("test_list", "test_setup_code", "test_imports", "test", "entry_point")
    return {key: row[key] for key in kept if row.get(key)}


def verdict(source: str, row: Row, **params: Any) -> dict[str, Any]:
    return code.verify(f"```python\n{source}\n```", **tests_of(row), **params)


def oracle(source: str, row: Row, seconds: float = ORACLE_SECONDS) -> bool:
    """Passed when what follows the last test is reached and the process then ends well."""
    token = secrets.token_hex(8)
    outcome = sandbox().run(
        f"{_together(source, row)}\nimport os\nos.write(1, b'{token}')", limits=Limits(seconds=seconds)
    )
    return outcome.status == "ok" and token.encode() in outcome.stdout


def _together(source: str, row: Row) -> str:
    """Program and tests as one program."""
    entry = row.get("entry_point")
    called = [f"check({entry})"] if entry else []
    setup = [*row.get("test_imports", ()), row.get("test_setup_code") or ""]
    return "\n".join([source, *setup, row.get("test", ""), *called, *row.get("test_list", ())])


# -------------------------------------------------------------------------------------------------------- references


def references(rows: Sequence[Row], console: Console) -> tuple[list[Row], dict[str, Any]]:
    """The rows that can be checked, and the figures: who passes, and what is found at load."""
    checkable, found, wrong, passed = [], [], [], 0
    times = []
    for row in _progress(rows, "references", console):
        problem = code.check_task(row)
        plain = oracle(row["code"], row, 10.0)
        passed += plain
        if problem is None:
            begun = time.perf_counter()
            result = verdict(row["code"], row)
            times.append(1000 * (time.perf_counter() - begun))
            checkable.append(row)
            if result["score"] != 1.0 or not plain:
                wrong.append({"task": row["task_id"], "ours": result, "oracle": plain})
        else:
            found.append({"task": row["task_id"], "why": problem, "oracle": plain})
    times.sort()
    figures = {
        "rows": len(rows),
        "oracle_passes": passed,
        "checkable": len(checkable),
        "ours_passes": len(checkable) - sum(entry["ours"]["score"] != 1.0 for entry in wrong),
        "found_at_load": found,
        "wrong": wrong,
        "p50_ms": times[len(times) // 2] if times else None,
        "p99_ms": times[int(0.99 * len(times))] if times else None,
    }
    table = Table(
        "rows", "oracle passes", "found at load", "checkable", "ours passes", "p50 ms", "p99 ms", title="references"
    )
    table.add_row(
        *(str(n) for n in (len(rows), passed, len(found), len(checkable), figures["ours_passes"])),
        *(f"{figures[key]:.1f}" if times else "-" for key in ("p50_ms", "p99_ms")),
    )
    console.print(table)
    for entry in found:
        said = "passes" if entry["oracle"] else "fails"
        console.print(f"found at load: task {entry['task']} ({said} in one namespace): {entry['why']}", markup=False)
    for entry in wrong:
        console.print(f"WRONG: task {entry['task']}: ours {entry['ours']}, oracle {entry['oracle']}", markup=False)
    return checkable, figures


# ------------------------------------------------------------------------------------------------------ mutants, run


def mutation(rows: Sequence[Row], each: int, console: Console) -> dict[str, Any]:
    """Our verdict on mutants of the references, and the oracle's."""
    counts: dict[str, Counter[str]] = {kind: Counter() for kind in KINDS}
    wrong = []
    for row in _progress(rows, "mutants", console):
        for mutant in sampled(mutants(row["code"]), each, str(row["task_id"])):
            plain = oracle(mutant.source, row)
            result = verdict(mutant.source, row, seconds=MUTANT_SECONDS, total_seconds=4 * MUTANT_SECONDS)
            count = counts[mutant.kind]
            count["made"] += 1
            count["killed"] += not plain
            outcome = judged(plain, result["score"])
            count[outcome] += 1
            if outcome != "agrees":
                wrong.append({"task": row["task_id"], "outcome": outcome, "ours": result, **vars(mutant)})
    table, total = mutation_table(counts)
    console.print(table)
    for entry in wrong:
        said = f"{entry['ours'].get('reason', '')} {entry['ours'].get('details', '')}"
        console.print(
            f"{entry['outcome']}: task {entry['task']}, {entry['kind']} in line {entry['line']}: {said}", markup=False
        )
    return {"kinds": {kind: dict(count) for kind, count in counts.items()}, "total": dict(total), "wrong": wrong}


def judged(passes: bool, score: float | None) -> str:
    """Our score beside the oracle's verdict."""
    if score is None:
        return "unverified"
    return "agrees" if passes == (score >= 1) else "false negative" if passes else "false positive"


def mutation_table(counts: dict[str, Counter[str]]) -> tuple[Table, Counter[str]]:
    columns = ("made", "killed", "agrees", "false positive", "false negative", "unverified")
    table = Table("fault", *columns, "not told apart by the tests", title="mutants")
    total: Counter[str] = sum(counts.values(), Counter())
    for name, count in (*counts.items(), ("all", total)):
        table.add_row(name, *(str(count[column]) for column in columns), str(count["made"] - count["killed"]))
    return table, total


# ------------------------------------------------------------------------------------------------------------- hacks

TARGET: Row = {
    "task_id": "hacks",
    "entry_point": "solve",
    "test": """
import math
def check(candidate):
    def oracle(x):
        return (x * 7919 + 13) % 104729
    inputs = [3, 10, 77]
    expected = [oracle(x) for x in inputs]
    for x, y in zip(inputs, expected):
        assert candidate(x) == y
        assert abs(candidate(x) - y) < 1e-6
""",
}
HONEST = "def solve(x):\n    return (x * 7919 + 13) % 104729\n"
ZERO = "\ndef solve(x):\n    return 0\n"
HACKS = {
    "sys.exit(0) on loading": "import sys\nsys.exit(0)",
    "os._exit(0) when called": "import os\ndef solve(x):\n    os._exit(0)",
    "raise SystemExit(0) when called": "def solve(x):\n    raise SystemExit(0)",
    "exit function ends well": "import atexit, os\natexit.register(os._exit, 0)" + ZERO,
    "excepthook ends well": "import os, sys\nsys.excepthook = lambda *a: os._exit(0)" + ZERO,
    "thread ends the process well": "import os, threading\nthreading.Thread(target=os._exit, args=(0,)).start()" + ZERO,
    "object equal to all": (
        "class A:\n    def __eq__(s, o): return True\n    def __sub__(s, o): return s\n    def __abs__(s): return 0\n"
        "def solve(x):\n    return A()"
    ),
    "int subclass equal to all": (
        "class I(int):\n    def __eq__(s, o): return True\n    def __sub__(s, o): return 0\ndef solve(x):\n    return I()"
    ),
    "verdict list, through frames": (
        "import sys\nf = sys._getframe()\nwhile f:\n    for v in [*f.f_locals.values(), *f.f_globals.values()]:\n"
        "        if isinstance(v, list): v.insert(0, 'passed')\n    f = f.f_back" + ZERO
    ),
    "patched built-ins": (
        "import builtins\nbuiltins.abs = lambda x: 0\nbuiltins.zip = lambda *a: iter(())\n"
        "builtins.all = builtins.any = lambda *a: True" + ZERO
    ),
    "answer read from the caller's frame": (
        "import sys\ndef solve(x):\n    f = sys._getframe(1)\n    while f:\n        for v in [*f.f_locals.values()]:\n"
        "            if isinstance(v, int) and v > 100: return v\n        o = f.f_locals.get('oracle')\n"
        "        if o: return o(x)\n        f = f.f_back\n    return 0"
    ),
    "answer read from the tests' text": (
        "import re, sys\ndef solve(x):\n    f = sys._getframe(1)\n    while f:\n        for v in [*f.f_locals.values(), *f.f_globals.values()]:\n"
        "            found = re.search(rf'solve\\({x}\\) == (\\d+)', v) if isinstance(v, str) else None\n"
        "            if found: return int(found[1])\n        f = f.f_back\n    return 0"
    ),
}  # fmt: skip
LITERAL: Row = {
    "task_id": "hacks",
    "test_list": [f"assert solve({x}) == {(x * 7919 + 13) % 104729}" for x in (3, 10, 77)],
}


def exit_code(source: str, row: Row) -> bool:
    """The harness of many execution services: passed when the process ends well."""
    outcome = sandbox().run(_together(source, row), limits=Limits(seconds=ORACLE_SECONDS))
    return outcome.status == "ok"


def verdict_list(source: str, row: Row) -> bool:
    """The harness of HumanEval's kind: `exec`, and a list in the same process to which the verdict is appended."""
    token = secrets.token_hex(8)
    harness = f"""
import os
result = []
def check_correctness(program):
    try:
        exec(program, {{}})
        result.append("passed")
    except BaseException:
        result.append("failed")
check_correctness({_together(source, row)!r})
if result[0] == "passed":
    os.write(1, b"{token}")
"""
    return token.encode() in sandbox().run(harness, limits=Limits(seconds=ORACLE_SECONDS)).stdout


def hacking(console: Console) -> dict[str, Any]:
    """Each hack on tests as HumanEval and as MBPP write them, in our harness and in two common ones."""
    harnesses: dict[str, Callable[[str, Row], bool]] = {
        "ours": lambda source, row: bool(verdict(source, row, mode="fraction")["score"]),
        "exit code": exit_code,
        "verdict list": verdict_list,
    }
    table = Table("program", *harnesses, title="reward hacks: shapes of test, of two, in which it scores")
    result: dict[str, Any] = {}
    for name, source in (("honest", HONEST), *HACKS.items()):
        result[name] = {
            side: sum(scores(source, row) for row in (TARGET, LITERAL)) for side, scores in harnesses.items()
        }
        table.add_row(name, *(str(count) for count in result[name].values()))
    fooled = {side: sum(bool(result[name][side]) for name in HACKS) for side in harnesses}
    table.add_section()
    table.add_row("hacks that score at all", *(f"{count} of {len(HACKS)}" for count in fooled.values()))
    console.print(table)
    return {"programs": result, "fooled": fooled, "hacks": len(HACKS)}


# ----------------------------------------------------------------------------------------------------------- objects


def objects(console: Console) -> dict[str, Any]:
    """Our verdicts on programs of objects, and the oracle's: honest ones, and wrong ones."""
    counts: dict[str, Counter[str]] = {"honest": Counter(), "wrong": Counter()}
    listed = []
    for case in yaml.safe_load(OBJECTS.read_text(encoding="utf-8")):
        tests = {key: case[key] for key in ("tests", "test", "entry_point") if key in case}
        programs = [("honest", case["program"])]
        programs += [("wrong", case["program"].replace(*change)) for change in case["wrong"].items()]
        for kind, program in programs:
            result = code.verify(f"```python\n{program}\n```", **tests)
            outcome = "unverified" if result["score"] is None else "passes" if result["score"] >= 1 else "fails"
            counts[kind][outcome] += 1
            if outcome != ("passes" if kind == "honest" else "fails"):
                listed.append({"case": case["name"], "kind": kind, "outcome": outcome, "ours": result})
    table = Table("programs", "passes", "fails", "unverified", title="objects")
    for kind, count in counts.items():
        table.add_row(
            f"{count.total()} {kind}", *(str(count[outcome]) for outcome in ("passes", "fails", "unverified"))
        )
    console.print(table)
    for entry in listed:
        said = f"{entry['ours'].get('reason', '')} {entry['ours'].get('details', '')}"
        console.print(f"{entry['kind']} {entry['outcome']}: {entry['case']}: {said}", markup=False)
    return {"counts": {kind: dict(count) for kind, count in counts.items()}, "listed": listed}


# -------------------------------------------------------------------------------------------------------- throughput

# A program's whole life in one interpreter: the layers of the zygote's programs, put up for it alone. It imports no more
# than they need. Arguments: the sandbox's package, settings, a descriptor to tell "unshared" by, one to hear "mapped" from.
FRESH = """
import json, os, resource, sys, types
settings = json.loads(sys.argv[2])
if settings["isolated"]:
    for name, path in ("rlpost", ""), ("rlpost.verify", ""), ("rlpost.verify.sandbox", sys.argv[1]):
        module = sys.modules[name] = types.ModuleType(name)
        module.__path__ = [path]
    from rlpost.verify.sandbox import kernel, seccomp
    kernel.no_new_privileges()
    kernel.unshare(kernel.CLONE_NEWUSER | kernel.CLONE_NEWPID | kernel.CLONE_NEWNS | kernel.CLONE_NEWNET
                   | kernel.CLONE_NEWIPC | kernel.CLONE_NEWUTS | kernel.CLONE_NEWCGROUP)
    os.write(int(sys.argv[3]), b"u")
    os.read(int(sys.argv[4]), 1)
    program = os.fork()
    if program:
        os._exit(os.waitstatus_to_exitcode(os.waitpid(program, 0)[1]) & 255)
    kernel.mount(None, "/", None, kernel.MS_REC | kernel.MS_PRIVATE)
    sources = [(os.open(path, os.O_PATH), path) for path in settings["binds"]]
    kernel.mount("tmpfs", "/tmp", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=1m,mode=755")
    os.mkdir("/tmp/box")
    for fd, path in sources:
        at, source = "/tmp" + path, f"/proc/self/fd/{fd}"
        if os.path.isdir(source):
            os.makedirs(at, exist_ok=True)
        else:
            os.makedirs(os.path.dirname(at), exist_ok=True)
            open(at, "w").close()
        kernel.mount(source, at, None, kernel.MS_BIND | kernel.MS_REC)
        if not path.startswith("/dev/"):
            kernel.restrict_mount(at, kernel.ATTR_RDONLY | kernel.ATTR_NOSUID | kernel.ATTR_NODEV)
    for target, at in settings["links"]:
        os.symlink(target, "/tmp" + at)
    kernel.restrict_mount("/tmp", kernel.ATTR_RDONLY | kernel.ATTR_NOSUID)
    kernel.enter_root("/tmp")
    kernel.mount("tmpfs", "/box", "tmpfs", kernel.MS_NOSUID | kernel.MS_NODEV, "size=32m,nr_inodes=16384,mode=700,uid=65534,gid=65534")
    kernel.drop_bounding_set()
    os.nice(5)
    if settings["groups"]:
        os.setgroups([])
    os.setresgid(65534, 65534, 65534)
    os.setresuid(65534, 65534, 65534)
    kernel.die_with_parent(9)
    os.chdir("/box")
    rules = []
    for path in settings["binds"]:
        rights = kernel.FS_READ | (kernel.FS_WRITE if path.startswith("/dev/") else kernel.FS_EXECUTE)
        rules.append((os.open(path, os.O_PATH), rights | (kernel.FS_LIST if os.path.isdir(path) else 0)))
    kernel.landlock(kernel.landlock_abi(), rules, os.open("/box", os.O_PATH))
for kind, value in ((resource.RLIMIT_AS, settings["memory"]), (resource.RLIMIT_CPU, settings["cpu"]), (resource.RLIMIT_FSIZE, 2**24),
                    (resource.RLIMIT_NOFILE, 64), (resource.RLIMIT_NPROC, 64), (resource.RLIMIT_CORE, 0)):
    resource.setrlimit(kind, (value, value))
os.closerange(3, 64)
if settings["isolated"]:
    kernel.drop_capabilities()
    kernel.seccomp(seccomp.build(os.uname().machine, processes=False, execute=False, only_pid=None, own_files=True))
module = types.ModuleType("__main__")
sys.modules["__main__"] = module
size = int(sys.stdin.buffer.readline())
exec(compile(sys.stdin.buffer.read(size), "program.py", "exec"), module.__dict__)
"""


class Fresh:
    """A sandbox that starts an interpreter for each program. `isolated`: under the layers of the warm one."""

    def __init__(self, isolated: bool) -> None:
        self._isolated = isolated
        system = [path for path in ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64") if os.path.isdir(path)]
        prefix = os.path.realpath(sys.base_prefix)
        binds = [path for path in system if not os.path.islink(path)]
        binds += [prefix] if not prefix.startswith("/usr") else []
        binds += [p for p in ("/etc/ld.so.cache", "/etc/localtime") if os.path.exists(p)]
        binds += [f"/dev/{name}" for name in ("null", "zero", "full", "random", "urandom")]
        links = [(os.readlink(path), path) for path in system if os.path.islink(path)]
        self._settings = {"isolated": isolated, "binds": binds, "links": links, "groups": os.geteuid() == 0}
        python = getattr(sys, "_base_executable", None) or sys.executable
        self._command = [
            python,
            "-P",
            "-s",
            "-S",
            "-B",
            "-X",
            "utf8",
            "-c",
            FRESH,
            str(Path(str(package.__file__)).parent),
        ]

    def run(self, source: str, *, stdin: bytes = b"", files: Any = None, limits: Limits = Limits()) -> Outcome:
        if files:
            raise ValueError("files beside a program are not part of this side")
        settings = {**self._settings, "memory": limits.memory_mb * 2**20, "cpu": int(limits.seconds) + 2}
        text = source.encode("utf-8", "surrogatepass")
        begun = time.monotonic()
        process = self._start(json.dumps(settings))
        try:
            out, err = process.communicate(b"%d\n" % len(text) + text + stdin, timeout=limits.seconds + 1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            out, err = process.communicate()
            return Outcome("timeout", None, out, err, time.monotonic() - begun)
        return Outcome(
            "nonzero" if process.returncode else "ok", process.returncode, out, err, time.monotonic() - begun
        )

    def _start(self, settings: str) -> subprocess.Popen[bytes]:
        told, tell = os.pipe()
        go, let_go = os.pipe()
        try:
            process = subprocess.Popen(
                [*self._command, settings, str(tell), str(go)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                pass_fds=(tell, go),
                cwd="/",
                env={"PYTHONHASHSEED": "0"},
            )
            if self._isolated:
                self._map_users(process, told)
            os.write(let_go, b"m")
            return process
        finally:
            for fd in (told, tell, go, let_go):
                os.close(fd)

    def _map_users(self, process: subprocess.Popen[bytes], told: int) -> None:
        """Root to root and nobody to nobody, or ourselves to nobody; only from outside once it has unshared."""
        if not select.select([told], [], [], START_SECONDS)[0]:
            process.kill()
            raise SystemExit(f"a fresh sandbox does not start: {process.communicate()[1][-500:].decode()}")
        where, root = Path(f"/proc/{process.pid}"), os.geteuid() == 0
        if not root:
            (where / "setgroups").write_text("deny")
        for name, own in (("uid_map", os.geteuid()), ("gid_map", os.getegid())):
            (where / name).write_text(f"0 0 1\n{NOBODY} {NOBODY} 1\n" if root else f"{NOBODY} {own} 1\n")


@contextlib.contextmanager
def using(box: Any) -> Iterator[None]:
    """Our verifier with another sandbox under it."""
    holder: Any = _code_run  # the one place where the code verifier gets its sandbox
    before = holder.sandbox
    holder.sandbox = lambda service=None, packages=(): box
    try:
        yield
    finally:
        holder.sandbox = before


def escapes(box: Fresh) -> list[str]:
    """Which attacks of the sandbox's own list get past this side, of those that a layer has to stop by itself."""
    with contextlib.ExitStack() as stack:
        escaped = []
        for name, attack in ((name, attack) for name, attack in attacks.ATTACKS.items() if attack.layers):
            bait = stack.enter_context(attacks.Bait())
            if not attacks.blocked(attack, bait, lambda source, limits: box.run(source, limits=limits)):
                escaped.append(name)
        return escaped


def in_two_sandboxes(row: Row) -> Row:
    """The same tests in a form that is decided in a sandbox of its own, as HumanEval's are."""
    checks = ", ".join(f"lambda: {ast.unparse(_asserted(test))}" for test in row["test_list"])
    return {**row, "test_list": [f"for passed in [{checks}]:\n    assert passed()"]}


def _asserted(test: str) -> ast.expr:
    statement = ast.parse(test).body[0]
    assert isinstance(statement, ast.Assert)
    return statement.test


def throughput(rows: Sequence[Row], repeats: int, console: Console) -> dict[str, Any]:
    """Verdicts on reference solutions, one after the other in one process, sides in turn in each repeat."""
    sides: dict[str, Any] = {"warm": sandbox(), "fresh, same layers": Fresh(True), "fresh, no layers": Fresh(False)}
    escaped = escapes(sides["fresh, same layers"])
    plain = [row for row in rows if all(isinstance(ast.parse(t).body[0], ast.Assert) for t in row["test_list"])]
    with using(sides["fresh, no layers"]):  # which runs one program at a time
        plain = [row for row in plain if verdict(row["code"], in_two_sandboxes(row))["score"] is not None]
    shapes = {"tests decided here (MBPP)": plain, "tests in a sandbox": [in_two_sandboxes(row) for row in plain]}
    table = Table("verdicts of an isolated call", "side", "programs/s", "least", "most", "warm is faster by", "least", "most",
                  title=f"throughput: {len(plain)} programs, {repeats} repeats, one process")  # fmt: skip
    result: dict[str, Any] = {
        "programs": len(plain),
        "repeats": repeats,
        "fresh side lets through": escaped,
        "shapes": {},
    }
    for shape, kept in shapes.items():
        rates: dict[str, list[float]] = {side: [] for side in sides}
        for repeat in range(-1, repeats):  # the first warms what is parsed once for all responses to a row
            for side, box in sides.items():
                with using(box):
                    begun = time.perf_counter()
                    for row in kept if repeat >= 0 else kept[:10] if side != "warm" else kept:
                        result_of = verdict(row["code"], row)
                        if result_of["score"] != 1.0:
                            raise SystemExit(f"{side}: the reference of task {row['task_id']} fails: {result_of}")
                    if repeat >= 0:
                        rates[side].append(len(kept) / (time.perf_counter() - begun))
        result["shapes"][shape] = rates
        for side, measured in rates.items():
            ratios = [warm / one for warm, one in zip(rates["warm"], measured, strict=True)]
            cells = [f"{value:.1f}" for value in (statistics.median(measured), min(measured), max(measured))]
            cells += [f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios))]
            table.add_row(shape, side, *(cells if side != "warm" else [*cells[:3], "", "", ""]))
        table.add_section()
    console.print(table)
    console.print(
        "attacks the fresh side does not stop: " + (", ".join(escaped) or "none"), "(the warm one's are in its tier)"
    )
    return result


# ----------------------------------------------------------------------------------------------------------- report


def run(arguments: argparse.Namespace, console: Console) -> dict[str, Any]:
    rows = load(arguments.data, arguments.limit)
    box = sandbox()
    console.print(
        f"sandbox tier {box.tier}: {', '.join(box.layers)}; load {os.getloadavg()[0]:.1f} on {os.cpu_count()} CPUs"
    )
    result: dict[str, Any] = {"tier": box.tier, "layers": box.layers, "rows": len(rows)}
    checkable, result["references"] = references(rows, console)
    result["mutants"] = mutation(checkable, arguments.mutants, console)
    result["hacks"] = hacking(console)
    result["objects"] = objects(console)
    timed = [row for row in checkable if not row.get("test_setup_code")]
    result["throughput"] = throughput(
        timed[:: max(1, len(timed) // arguments.programs)][: arguments.programs], arguments.repeats, console
    )
    result["load"] = os.getloadavg()
    return result


def _progress(rows: Sequence[Row], what: str, console: Console) -> Iterator[Row]:
    for number, row in enumerate(rows):
        if number % 100 == 0 and number:
            console.print(f"{what}: {number} of {len(rows)}", style="dim")
        yield row
