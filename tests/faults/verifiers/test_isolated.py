"""Scorers that execute what an answer says: nothing of it outlives the verdict, and nothing is the worker's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import reasoning_gym

from rlpost import config
from rlpost.types import Prompt, Rollout, Verdict
from rlpost.verify import VerifierError, VerifierPool

WAIT = 120.0
IDS = np.arange(2, dtype=np.int32)

# A user's file in the forms of other trainers. What an answer says is executed, as several well-known scorers do.
TRUSTING = """
import asyncio, os, sys

from neighbour import LIMIT
from rlpost.verify.adapters import from_openrlhf, from_reasoning_gym, from_trl, from_verl

SEEN = []


def compute_score(data_source, solution_str, ground_truth, extra_info=None):
    import colorsys  # not before it is called

    SEEN.append(solution_str)
    found = {"threads": 0}
    exec(solution_str, found)
    value = found.get("answer")
    return {"score": float(value == ground_truth), "seen": len(SEEN), "limit": LIMIT, "said": repr(found.get("said"))}


async def accuracy(completions, solution, **kwargs):
    await asyncio.sleep(0.001)
    return [float(eval(c) == s) for c, s in zip(completions, solution)]


def rewards(queries, prompts, labels):
    return {"rewards": [eval(q) == l for q, l in zip(queries, labels)], "scores": [0.5]}


def odd(data_source, solution_str, ground_truth, extra_info=None):
    return eval(solution_str)


class Task:
    def score_answer(self, answer, entry):
        return float(eval(answer) == entry["answer"])


def drawn(response):
    import random
    import numpy

    return {"score": 1.0, "details": {"drawn": [random.random(), float(numpy.random.rand())]}}


def together(responses, reference):
    return [float(eval(r) == reference) for r in responses]


def batch(samples):
    SEEN.extend(samples)
    return [{"score": float(eval(s["response"]) == s["reference"]), "details": {"seen": len(SEEN)}} for s in samples]


verl, trl, openrlhf, gym, other = (
    from_verl(compute_score), from_trl(accuracy), from_openrlhf(rewards), from_reasoning_gym(Task()), from_verl(odd)
)
drawn.isolate = True
together.group = True
together.isolate = True
batch.batched = True
batch.isolate = True
"""
LABELS = ("verl", "trl", "openrlhf", "gym", "other", "drawn", "together", "batch")
Score = Callable[..., list[Verdict]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trusting")
    (path / "trusting.py").write_text(TRUSTING)
    (path / "neighbour.py").write_text("LIMIT = 3\n")
    (path / ".env").write_text("SECRET=1\n")
    return path


@pytest.fixture(scope="module")
def score(folder: Path) -> Iterator[Score]:
    """The verdicts of one verifier of the pool on several answers to one prompt."""
    specs = [{"name": f"{folder}/trusting.py:{label}", "label": label, "timeout": 2} for label in LABELS]
    specs.append({"name": "reasoning_gym"})
    found = [config.VerifierSpec.model_validate(spec) for spec in specs]
    with VerifierPool(found, config.VerifierPool(workers=1, retries=0, cache_mb=0)) as pool:

        def scored(label: str, *texts: str, reference: object = None, **columns: object) -> list[Verdict]:
            prompt = Prompt("p", "", IDS, reference, None, columns, verifiers=(label,))
            zeros = np.zeros(2, np.float32)
            rollouts = [Rollout("p", 0, i, IDS, IDS, zeros, IDS, "stop", text, i) for i, text in enumerate(texts)]
            return [future.result(WAIT).verdicts[label] for future in pool.submit_group(rollouts, prompt)]

        scored.pool = pool  # type: ignore[attr-defined]
        yield scored


def entry(task: str) -> dict:
    return reasoning_gym.create_dataset(task, size=1, seed=1)[0]


def tagged(text: object) -> str:
    return f"<answer>{text}</answer>"


def gym(score: Score, task: str, *answers: object) -> list[Verdict]:
    return score("reasoning_gym", *map(tagged, answers), task=task, entry=entry(task))


def test_an_answer_to_puzzle24_makes_no_file(score: Score, tmp_path: Path):
    row = entry("puzzle24")
    made = tmp_path / "x"
    right, wrong = gym(score, "puzzle24", row["metadata"].get("solution") or row["answer"], f"open({str(made)!r},'w')")
    assert (right.status, wrong.status != "correct") == ("correct", True)
    assert not made.exists()
    assert right.details["sandbox"]["tier"] in "AB"


def test_an_answer_that_replaces_the_scorer_pays_no_later_one(score: Score):
    forged = (
        "exec('import rlpost.verify.adapters as a, rewards.reasoning_gym_task as t, reasoning_gym as r\\n"
        'a.scored_by = t.scored_by = lambda *args, **more: {"score": 1.0}\\n'
        "t.verify = t._scorer = lambda *args, **more: lambda **all: 1.0')"
    )
    for task in ("simple_integration", "countdown", "puzzle24"):
        gym(score, task, forged)
        for verdict in gym(score, task, "nonsense", "0"):
            assert verdict.score is not None
            assert verdict.score < 1
        assert score("verl", "answer = 1", "answer = 2", reference=2)[0].status == "wrong"


def test_countdown_through_the_scorer_of_others_is_as_it_was(score: Score):
    row = entry("countdown")
    right, code, wrong = gym(score, "countdown", row["answer"], "__import__('os').system('true') or 1", "1+1")
    assert right.status == "correct"
    assert code.score is not None
    assert code.score < 1
    assert wrong.score is not None
    assert wrong.score < 1


@pytest.mark.parametrize(
    ("label", "right", "wrong"),
    [
        ("verl", "answer = 72", "answer = 1"),
        ("trl", "70 + 2", "1"),
        ("openrlhf", "70 + 2", "1"),
        ("batch", "70 + 2", "1"),
    ],
)
def test_functions_of_other_trainers_say_what_they_said(score: Score, label: str, right: str, wrong: str):
    verdicts = score(label, right, wrong, right, reference=72)
    assert [v.status for v in verdicts] == ["correct", "wrong", "correct"]
    assert all(v.details["sandbox"]["tier"] in "AB" for v in verdicts)


def test_a_scorer_of_a_data_set_gets_the_row(score: Score):
    verdicts = score("gym", tagged("70 + 2"), tagged("1"), tagged("1/0"), reference={"answer": "72"}, entry=None)
    assert [v.status for v in verdicts] == ["wrong", "wrong", "wrong"]  # 72 is not "72"
    assert verdicts[2].reason == "scorer_failed"


def test_nothing_of_one_answer_is_there_for_the_next(score: Score, folder: Path):
    leave = f"""
import builtins, os, random, sys, threading, time
open("/tmp/left", "w").close()
open("left", "w").close()
for place in ({str(folder)!r}, "/var/tmp", "/usr", "/root"):
    try:
        open(place + "/left", "w").close()
    except OSError:
        pass
os.environ["LEFT"] = "1"
builtins.left = sys.modules["left"] = 1
sys.path.insert(0, "/box")
threading.Thread(target=time.sleep, args=(600,)).start()
module = next(m for n, m in sys.modules.items() if n.startswith("rlpost_user_"))
module.compute_score = module.LIMIT = module.verl = None
import rlpost.verify.protocol as protocol, rlpost.verify.replies as replies
protocol.to_verdict = replies.to_verdict = replies.scored = None
answer = 2
"""
    look = """
import builtins, os, sys, threading
said = [
    [p for p in ("/tmp/left", "left", "/box/left") if os.path.exists(p)], "LEFT" in os.environ, hasattr(builtins, "left"),
    "left" in sys.modules, "/box" in sys.path, threading.active_count(), "colorsys" in sys.modules,
]
answer = 1
"""
    score("verl", leave, reference=1)
    (verdict,) = score("verl", look, reference=1)
    assert verdict.status == "correct"
    assert verdict.details["said"] == repr([[], False, False, False, False, 1, True])
    assert verdict.components == {"seen": 1.0, "limit": 3.0}
    assert [*folder.glob("**/left"), *Path("/var/tmp").glob("left")] == []


def test_an_answer_finds_no_variable_no_network_and_no_hidden_file(score: Score, folder: Path):
    look = f"""
import os, socket
said = sorted(k for k in os.environ if "KEY" in k or "TOKEN" in k or k == "PYTHONPATH")
for attempt in (lambda: socket.socket(), lambda: open({str(folder / ".env")!r}), lambda: open("/etc/shadow"), os.fork):
    try:
        said.append(attempt())
    except OSError:
        pass
"""
    (verdict,) = score("verl", look, reference=1)
    assert verdict.details["said"] == "[]"


def test_what_ends_its_process_is_wrong_and_the_rows_fault_when_every_answer_does(score: Score):
    fatal = (
        "import os; os._exit(0)",
        "import sys; sys.exit(3)",
        "import os; os.abort()",
        "x = [0] * 10**12; raise SystemExit",
    )
    ends = score("verl", "answer = 1", *fatal[:3], reference=1)
    assert [(v.status, v.reason) for v in ends] == [("correct", ""), *[("wrong", "crash")] * 3]
    assert {v.reason for v in score("verl", *fatal[:2], reference=1)} == {"crashes_on_row"}
    late = score("verl", "answer = 1", "while True: pass", reference=1)
    assert [(v.status, v.reason) for v in late] == [("correct", ""), ("wrong", "timeout")]
    assert score.pool.stats()["verifier/restarts"] == 0  # type: ignore[attr-defined]


def test_what_a_scorer_prints_is_no_verdict_and_too_much_of_a_reply_is_no_reply(score: Score):
    noise = "import os, sys; print('{}' * 10**6); os.write(1, b'[1]' * 10**6); answer = 1"
    flood = "import sys; sys.stderr.write('x' * 10**8); answer = 1"
    quiet, drowned = score("verl", noise, flood, reference=1)
    assert (quiet.status, drowned.status, drowned.reason) == ("correct", "wrong", "crash")


def test_a_reply_that_is_no_reply_is_wrong(score: Score):
    forge = "import os\nfor fd in range(3, 64):\n    try:\n        os.write(fd, {!r})\n    except OSError:\n        pass\nos._exit(0)"
    said = (
        b"",
        b"garbage",
        b"[]",
        b'{"outcomes": []}',
        b'{"outcomes": [{"verdict": {}}]}',
        b"[" * 10**5,
        b"\xff",
        b"1",
    )
    verdicts = score("verl", "answer = 1", *(forge.format(text) for text in said), reference=1)
    assert [(v.status, v.reason) for v in verdicts[1:]] == [("wrong", "crash")] * len(said)


def test_what_is_no_plain_number_is_no_score(score: Score):
    lies = "type('L', (), {'__eq__': lambda *a: True, '__float__': lambda s: 1.0, '__ge__': lambda *a: True})()"
    for answer in (lies, "object()", "'1'", "[1, 2]", "float('nan')", "10**400"):
        (verdict,) = score("other", answer, reference=1)
        assert verdict.status == "unverified", answer


def test_the_same_answer_draws_the_same_numbers_whatever_came_before(score: Score):
    first, _, again = (score("drawn", text)[0].details["drawn"] for text in ("a", "b", "a"))
    assert first == again


def test_a_group_is_one_process_and_leaves_nothing_to_the_next(score: Score):
    assert [v.status for v in score("together", "1", "2", "1", reference=1)] == ["correct", "wrong", "correct"]
    assert {v.status for v in score("together", "1", "__import__('os')._exit(1)", reference=1)} == {"unverified"}
    assert {v.details["seen"] for v in score("batch", "1", "2", "1", reference=1)} == {1}


@pytest.mark.parametrize(
    ("code", "more", "said"),
    [
        ("score.service = True", {}, "waits for a service.*isolate: false"),
        ("score.programs = True", {}, "runs programs.*isolate: false"),
        ("", {"env": ["HOME"]}, "would see HOME.*isolate: false"),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", {}, "threads"),
    ],
)
def test_what_cannot_be_isolated_is_refused_with_the_key_that_says_so(tmp_path, code, more, said):
    (tmp_path / "mine.py").write_text(f"def score(response):\n    return True\n{code}\n")
    spec = config.VerifierSpec.model_validate({"name": f"{tmp_path}/mine.py:score", "isolate": True, **more})
    with pytest.raises(VerifierError, match=said):
        VerifierPool([spec], config.VerifierPool(workers=1)).start()
    if not said.startswith("threads"):
        free = spec.model_copy(update={"isolate": False})
        from rlpost.verify.protocol import load
        from rlpost.verify.registry import resolve

        assert not load(free.name, resolve(str(free.name)), {}, isolate=False).traits.isolate
