"""An answer that does all it can, given to every task of reasoning-gym: nothing of it is there afterwards."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import reasoning_gym
from reasoning_gym.factory import DATASETS

from rewards import reasoning_gym_task
from rlpost import config
from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify import VerifierPool

WAIT = 300.0
IDS = np.arange(2, dtype=np.int32)
TASKS = sorted(DATASETS.keys() - {"composite"})  # which has no rows without others'
# Their scorers execute an answer as Python. A sweep that finds fewer has lost its payload.
EXECUTE = {
    *("binary_matrix", "countdown", "intermediate_integration", "n_queens", "polynomial_multiplication", "puzzle24"),
    *("simple_integration", "spiral_matrix", "string_insertion"),
}
BY_THEIR_RULES = {"game_of_life_halting"}  # any text but one is right where the game does not halt

# What a process looks like from within: here the worker, and the sandbox's forks.
WITNESS = """
import builtins, os, sys, threading


def witness(response, folders):
    from reasoning_gym.factory import DATASETS
    import rewards.reasoning_gym_task as task, rlpost.verify.adapters as adapters, rlpost.verify.protocol as protocol
    import json, random

    def told(space):
        return {k: f"{getattr(v, '__module__', '')}.{getattr(v, '__qualname__', '')}" for k, v in vars(space).items() if callable(v)}

    scorers = {name: f"{c.score_answer.__module__}.{c.score_answer.__qualname__}" for name, (c, _) in DATASETS.items()}
    state = {
        "modules": sorted(sys.modules),
        "path": sys.path,
        "environment": {k: v for k, v in os.environ.items() if k != "TMPDIR"},
        "threads": threading.active_count(),
        "scorers": scorers,
        **{space.__name__: told(space) for space in (builtins, json, random, task, adapters, protocol)},
        "files": [sorted(os.listdir(f)) for f in folders if os.path.isdir(f)],
        "folder": os.getcwd(),
    }
    return {"score": 1.0, "details": state}


witness.deterministic = False


def bare(response, task, entry):
    from rewards.reasoning_gym_task import _scorer

    try:
        return float(_scorer(task)(answer=response, entry=entry))
    except Exception:
        return 0.0


bare.isolate = True
"""

LEAVE = """
import builtins, importlib, os, random, subprocess, sys, threading, time

def tried(action):
    try:
        action()
    except BaseException:
        pass

for folder in {folders!r}:
    tried(lambda: open(os.path.join(folder, {mark!r}), "w").close())
for module in ("colorsys", "wave", "this_is_not_there"):
    tried(lambda: importlib.import_module(module))
os.environ["LEFT"] = "1"
os.environ.pop("PATH", None)
sys.path.insert(0, "/left")
sys.modules["left"] = builtins
builtins.left = 1
random.seed(0)
right = lambda *given, **named: 1.0
for module in [m for n, m in sys.modules.items() if n.startswith(("rlpost", "rewards", "rlpost_user_"))]:
    for name in [n for n, v in vars(module).items() if callable(v) and not isinstance(v, type)]:
        tried(lambda: setattr(module, name, right))
for name, module in list(sys.modules.items()):
    if name.startswith("reasoning_gym"):
        for found in list(vars(module).values()):
            if isinstance(found, type) and "score_answer" in vars(found):
                tried(lambda: setattr(found, "score_answer", right))
builtins.float = builtins.abs = builtins.repr = right
tried(lambda: threading.Thread(target=time.sleep, args=(600,)).start())
tried(lambda: subprocess.Popen(["sleep", "599"]))
tried(os.fork)
tried(lambda: os.kill(os.getppid(), 9))
"""


def execute(source: str) -> str:
    """An answer that runs `source` wherever it is evaluated, sympy's parser included, which knows few names."""
    return f"exec(__import__('binascii').unhexlify('{source.encode().hex()}').decode())"


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory) -> Iterator[VerifierPool]:
    path = tmp_path_factory.mktemp("witness") / "mine.py"
    path.write_text(WITNESS)
    specs = [
        {"name": "reasoning_gym", "timeout": 60},
        {"name": f"{path}:witness", "label": "worker"},
        {"name": f"{path}:witness", "label": "sandbox", "isolate": True},
        {"name": f"{path}:bare", "label": "bare", "timeout": 60},
    ]
    found = [config.VerifierSpec.model_validate(spec) for spec in specs]
    with VerifierPool(found, config.VerifierPool(workers=1, retries=0, cache_mb=0)) as pool:
        yield pool


def score(pool: VerifierPool, label: str, text: str, **columns: object) -> Verdict:
    prompt = Prompt("p", "", IDS, None, None, columns, verifiers=(label,))
    rollout = Rollout("p", 0, 0, IDS, IDS, np.zeros(2, np.float32), IDS, "stop", text, 0)
    return pool.submit(rollout, prompt).result(WAIT).verdicts[label]


def test_no_task_of_reasoning_gym_keeps_a_trace_of_an_answer(pool: VerifierPool, tmp_path: Path):
    mark = f"left-{os.urandom(6).hex()}"
    folders = [str(tmp_path), os.getcwd(), tempfile.gettempdir(), "/var/tmp", "/dev/shm", str(Path.home()), ".", "/"]
    folders = [*folders, str(Path(reasoning_gym.__file__).parent)]
    leave, end = execute(LEAVE.format(folders=folders, mark=mark)), execute("import os; os._exit(7)")
    looked = {
        label: [score(pool, label, "", folders=[str(tmp_path)]).details for _ in range(2)][1]
        for label in ("worker", "sandbox")
    }
    executed = set()
    for task in TASKS:
        entry = json.loads(json.dumps(reasoning_gym.create_dataset(task, size=1, seed=3)[0]))  # as it gets there
        score(pool, "bare", leave, task=task, entry=entry)
        if score(pool, "bare", end, task=task, entry=entry).reason == "crash":
            executed.add(task)
        for answer in (leave, end):  # not executed, it cannot say its own score either
            verdict = score(pool, "reasoning_gym", f"<answer>{answer}</answer>", task=task, entry=entry)
            assert verdict.status in ("wrong", "partial") or task in BY_THEIR_RULES, (task, verdict)
            assert verdict.reason != "crash", task
        for answer in ("nonsense", str(entry["answer"])):
            text = f"<answer>{answer}</answer>"
            later = score(pool, "reasoning_gym", text, task=task, entry=entry)
            assert later.score == pytest.approx(reasoning_gym_task.verify(text, task, entry)["score"]), (task, answer)
    assert executed == EXECUTE, sorted(executed)
    found = {label: score(pool, label, "", folders=[str(tmp_path)]).details for label in ("worker", "sandbox")}
    assert found == looked
    assert not any("too_long" in details for details in found.values())
    assert [folder for folder in folders if os.path.exists(os.path.join(folder, mark))] == []
