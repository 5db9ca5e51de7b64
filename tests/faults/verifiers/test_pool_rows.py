"""Rows of the hostile-input tables that are about the pool: mixed loads, poisoned graders, odd exceptions, token soup."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import warnings
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest

import tests.faults.verifiers
from rewards.code import verify
from rlpost import config
from rlpost.types import Prompt, Rollout
from rlpost.verify import VerifierPool
from rlpost.verify.sandbox import Limits, sandbox
from tests.faults.descriptors import more_than, settled

WAIT = 600.0
IDS = np.arange(2, dtype=np.int32)


def sample(text, reference=None, number=0, **columns):
    prompt = Prompt(f"p{number}", "", IDS, reference, None, columns)
    zeros = np.zeros(2, np.float32)
    return Rollout(prompt.id, number, 0, IDS, IDS, zeros, IDS, "stop", text, number), prompt


def pool_of(spec, workers=2, **settings):
    found = config.VerifierSpec.model_validate(spec)
    return VerifierPool([found], config.VerifierPool(workers=workers, **settings))


def workers_of():
    """The verifier processes that are children of this one."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            mine = stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid())
            if mine and b"rlpost.verify.worker" in (stat.parent / "cmdline").read_bytes():
                found.append(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


# -- the index


def test_every_row_of_the_tables_names_tests_that_are_there():
    there = {}
    for path in Path("tests").rglob("test_*.py"):
        there.setdefault(path.stem.removeprefix("test_"), set()).update(re.findall(r"def test_(\w+)", path.read_text()))
    rows = re.findall(r"^([AB]\d+) +[^:]+: (.+)$", tests.faults.verifiers.__doc__, re.MULTILINE)
    assert [row for row, _ in rows] == [*(f"A{n}" for n in range(1, 37)), *(f"B{n}" for n in range(1, 30))]
    for row, named in rows:
        for part in named.split("; "):
            file, _, names = part.partition(" ")
            assert set(names.split(", ")) <= there[file], row


# -- A29, A36


def run_alone(source, **limits):
    return sandbox().run(source, limits=Limits(seconds=60, **limits))


def test_a29_what_a_program_leaves_lying_is_read_by_nobody(tmp_path):
    (tmp_path / "reward").write_text("0")
    source = f"""
import os, zipfile
def tries(action, *arguments):
    try:
        action(*arguments)
    except OSError:
        pass
for name in ("stdout", "stderr", "result.json", "reward"):
    tries(os.symlink, {str(tmp_path / "reward")!r}, name)
tries(os.link, "/etc/passwd", "passwd")
tries(os.symlink, "..", "up")
tries(os.mkfifo, "pipe")
tries(os.mknod, "device", 0o20666, os.makedev(1, 5))
with zipfile.ZipFile("bomb.zip", "w", zipfile.ZIP_DEFLATED) as bomb:
    bomb.writestr("zeros", bytes(10**8))
print("1.0")
"""
    assert run_alone(source).stdout == b"1.0\n"
    assert (tmp_path / "reward").read_text() == "0"
    assert run_alone("import os\nprint(os.listdir())").stdout == b"['program.py']\n"
    cheat = f"{source}\ndef f(x):\n    return 0"
    assert verify(f"```python\n{cheat}\n```", test_list=["assert f(1) == 2"])["score"] == 0.0


@pytest.mark.parametrize(
    "source",
    [
        "import ctypes\nctypes.CDLL(None).system(b'echo ESCAPED')",
        "import os\nos.execv('/bin/sh', ['sh', '-c', 'echo ESCAPED'])",
        "import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'pip', 'install', 'six'], check=True)\n"
        "print('ESCAPED')",
    ],
)
def test_a36_neither_c_nor_a_shell_nor_pip_gets_out(source):
    assert b"ESCAPED" not in run_alone(source).stdout
    if "pip" in source:  # there may be a process, and still no network
        assert b"ESCAPED" not in run_alone(source, processes=True, memory_mb=512).stdout


# -- A33

HOSTILE = (
    "def f(x):\n    while True: pass",
    "import sys\nsys.exit(0)",
    "import os\nos._exit(0)",
    "import os\nos.kill(os.getpid(), 9)",
    "class A(int):\n    __eq__ = lambda *_: True\ndef f(x):\n    return A()",
    "def f(x):\n    return bytearray(10**10)",
    "def f(x):\n    print('x' * 10**8)",
    "import os\ndef f(x):\n    os.kill(-1, 9)",
    "import os\ndef f(x):\n    return os.fork()",
    "import builtins\nbuiltins.abs = None\ndef f(x):\n    return f(x)",
)


def test_a33_a_mixed_load_keeps_every_verdict_while_workers_are_killed():
    draw = random.Random(33)
    programs = []
    for number in range(200):
        kind = draw.choices(("right", "wrong", "hostile"), (45, 45, 10))[0]
        body = f"def f(x):\n    return x + {number if kind == 'right' else number + 1}"
        programs.append((kind, draw.choice(HOSTILE) if kind == "hostile" else body))
    files, before = settled(), set(workers_of())
    with pool_of({"name": "code", "seconds": 3.0, "timeout": 100.0}, retries=2) as pool:
        serving = workers_of()
        futures = [
            pool.submit(*sample(f"```python\n{text}\n```", None, n, test_list=[f"assert f(1) == {1 + n}"]))
            for n, (_, text) in enumerate(programs)
        ]
        verdicts = []
        for number, future in enumerate(futures):
            verdicts.append(future.result(WAIT).verdicts["code"])
            # Workers that serve: one that is killed again and again while it starts rightly ends the pool.
            if number in (50, 120):
                os.kill(serving.pop(), signal.SIGKILL)
        assert pool.stats()["verifier/restarts"] > 0
    expected = {"right": "correct", "wrong": "wrong", "hostile": "wrong"}
    assert [v.status for v in verdicts] == [expected[kind] for kind, _ in programs]
    assert set(workers_of()) == before
    assert not more_than(files)


# -- B6

POISON = (
    "__import__('rewards.math_equivalence').verify = lambda *a, **k: 1",
    r"\boxed{[setattr(__import__('sympy'), 'simplify', lambda x: 0), 2*\pi][1]}",
    "2\\pi+__import__('sys').setrecursionlimit(50)",
    "(lambda: __import__('mpmath').mp.__setattr__('dps', 1))()",
    "__import__('sys').modules['rewards.maths.compare'].equal.__code__",
    "globals().__setitem__('equal', lambda *a: True)",
    "[x for x in ().__class__.__base__.__subclasses__()]",
    r"\operatorname{exec}(\text{import sympy; sympy.Eq = None})",
    "Symbol('x', positive=True)",
    "x:=5; assume(x>0)",
    r"\def\frac#1#2{42}\frac{1}{2}",
    "functools.lru_cache.cache_clear()",
    "9" * 5000,
    "(" * 3000,
    r"\sqrt{" * 500 + "1" + "}" * 500,
    "f'{__import__(\"os\").environ.clear()}'",
)
PROBES = (
    (r"\frac{1}{2}", "0.5", 1.0),
    (r"\frac{1}{2}", "0.6", 0.0),
    (r"\sqrt{x^2+2x+1}", r"\sqrt{(x+1)^2}", 1.0),
    (r"\sqrt{x^2}", "x", 0.0),
    (r"\sin^2 x+\cos^2 x", "1", 1.0),
    ("1.4142135", r"\sqrt{2}", 1.0),
    ("[0,1)", "(0,1)", 0.0),
)


def test_b6_no_answer_changes_how_the_next_one_is_graded():
    # One process grades everything, and nothing is kept, so that poison would show.
    others = set(workers_of())  # of pools that tests share
    with pool_of({"name": "math"}, workers=1, cache_mb=0) as pool:

        def probe():
            futures = [pool.submit(*sample(rf"\boxed{{{answer}}}", gold)) for answer, gold, _ in PROBES]
            return [f.result(WAIT).reward for f in futures]

        assert probe() == [expected for *_, expected in PROBES]
        (process,) = set(workers_of()) - others
        for text in POISON:
            for response in (text, rf"\boxed{{{text}}}", f"<answer>{text}</answer>"):
                assert pool.submit(*sample(response, "42")).result(WAIT).reward == 0.0
            assert probe() == [expected for *_, expected in PROBES]
        assert set(workers_of()) - others == {process}


# -- B23, B25

ODD = """
import asyncio, time


class TimeoutException(BaseException):
    pass


class Printing:
    def __repr__(self):
        time.sleep(600)


class Broken:
    def __repr__(self):
        raise RuntimeError("cannot be printed")


def raises(response):
    kinds = {k.__name__: k for k in (KeyboardInterrupt, MemoryError, SystemExit, RecursionError, GeneratorExit,
                                     TimeoutException, TimeoutError, asyncio.CancelledError, StopIteration,
                                     BaseException)}
    if response in kinds:
        raise kinds[response]("thrown")
    if response == "deep":
        return raises("deep")
    return True


async def later(response):
    return raises(response)


def prints(response):
    if response == "fine":
        return True
    if response == "score":
        return Printing()
    return {"score": 1.0, "details": {"value": Broken() if response == "broken" else Printing()}}
"""


@pytest.fixture
def odd(tmp_path):
    (tmp_path / "odd.py").write_text(ODD)
    return f"{tmp_path}/odd.py"


@pytest.mark.parametrize("response", ["details", "score"])
def test_b23_printing_what_a_grader_returns_can_hang_only_the_process_that_is_killed(odd, response):
    name = f"{odd}:prints"
    with pool_of({"name": name, "timeout": 1.0}, workers=1) as pool:
        verdict = pool.submit(*sample(response)).result(WAIT).verdicts[name]
        assert (verdict.status, verdict.reason) == ("wrong", "timeout")
        assert pool.submit(*sample("fine")).result(WAIT).reward == 1.0


def test_b23_what_cannot_be_printed_costs_the_details_and_no_more(odd):
    name = f"{odd}:prints"
    with pool_of({"name": name}, workers=1) as pool:
        verdict = pool.submit(*sample("broken")).result(WAIT).verdicts[name]
        assert (verdict.status, list(verdict.details)) == ("correct", ["not_json"])
        assert pool.submit(*sample("fine")).result(WAIT).reward == 1.0
        assert pool.stats()["verifier/restarts"] == 0


def test_b23_verdicts_on_monsters_are_plain_text():
    monsters = ("10^{10^{10}}", "9**9**9**9", r"\sum_{n=1}^{10^9} \frac{1}{n!}", "x^" * 300 + "x")
    with pool_of({"name": "math", "timeout": 30.0}) as pool:
        futures = [pool.submit(*sample(rf"\boxed{{{text}}}", "42")) for text in monsters]
        for future in futures:
            verdict = future.result(WAIT).verdicts["math"]
            assert verdict.status == "wrong"
            assert len(json.dumps([verdict.extracted, verdict.reason, dict(verdict.details)], allow_nan=False)) < 10_000


THROWN = (
    *("KeyboardInterrupt", "MemoryError", "SystemExit", "RecursionError", "GeneratorExit", "TimeoutException"),
    *("TimeoutError", "CancelledError", "StopIteration", "BaseException", "deep"),
)


@pytest.mark.parametrize("function", ["raises", "later"])
def test_b25_whatever_a_grader_raises_is_unverified_and_ends_neither_worker_nor_run(odd, function):
    name = f"{odd}:{function}"
    with pool_of({"name": name, "timeout": 60.0}, workers=1, retries=0) as pool:
        for thrown in THROWN:
            verdict = pool.submit(*sample(thrown)).result(WAIT).verdicts[name]
            assert (verdict.status, verdict.score, verdict.reason) == ("unverified", None, "exception"), thrown
            assert pool.submit(*sample(f"fine after {thrown}")).result(WAIT).reward == 1.0
        assert pool.stats()["verifier/restarts"] == 0


# -- B27

TERMINATING = (1, 2, 4, 5, 8)


def spelled(value, draw):
    """A rational number in one of the ways it is written."""
    above, below = abs(value.numerator), value.denominator
    sign = "-" if value < 0 else ""
    decimal = f"{sign}{float(abs(value)):.6f}".rstrip("0").rstrip(".")
    forms = [
        decimal,
        f"{sign}{above}/{below}",
        rf"{sign}\frac{{{above}}}{{{below}}}",
        rf"{sign}\dfrac{{{above}}}{{{below}}}",
    ]
    if below == 1:
        forms = [
            f"{sign}{above}",
            f"{sign}{above:,}",
            f"{sign}{above}.0",
            f" {sign}{above} ",
            rf"\text{{{sign}{above}}}",
        ]
    elif above > below:
        forms.append(rf"{sign}{above // below}\frac{{{above % below}}}{{{below}}}")
    return draw.choice(forms)


def test_b27_three_implementations_agree_or_exact_arithmetic_says_who_is_right():
    from math_verify import parse, verify

    draw = random.Random(27)
    pairs = []
    for _ in range(2000):
        gold = Fraction(draw.randint(-3000, 3000), draw.choice(TERMINATING))
        # At least an eighth apart: no decimal here is rounded to the other.
        given = gold if draw.random() < 0.5 else gold + Fraction(draw.choice((-1, 1)) * draw.randint(1, 40), 8)
        pairs.append((spelled(given, draw), spelled(gold, draw), given == gold))
    with pool_of({"name": "math"}) as pool:
        futures = [
            pool.submit(*sample(rf"So it is $\boxed{{{answer}}}$.", gold, n))
            for n, (answer, gold, _) in enumerate(pairs)
        ]
        ours = [f.result(WAIT).reward == 1.0 for f in futures]
    wrong = [pair for pair, said in zip(pairs, ours, strict=True) if said != pair[2]]
    assert not wrong
    theirs = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for answer, gold, _ in pairs[:200]:
            theirs.append(verify(parse(rf"$\boxed{{{gold}}}$"), parse(rf"$\boxed{{{answer}}}$")))
    same = sum(bool(a) == b for a, b in zip(theirs, ours, strict=False))
    assert same >= 0.9 * len(theirs), "math-verify disagrees on more than the forms it is known not to read"


# -- B29


def test_b29_token_soup_kills_no_worker_and_always_has_a_verdict():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    # Byte-level BPE, as the models have, on mathematics and code in our own files.
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=8000, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    files = [str(path) for path in Path("rewards").rglob("*.py")]
    tokenizer.train(files, trainer)
    draw = np.random.default_rng(29)
    size = tokenizer.get_vocab_size()
    # Words that a careless regular expression may split in exponentially many ways.
    texts = [r"\boxed{\text{a} " + letters * 2000 + "=}" for letters in ("a", "a-", "a'", "a ", "(a")]
    for number in range(2000):
        text = tokenizer.decode(draw.integers(0, size, 1500).tolist())[: int(draw.integers(2048, 4096))]
        texts.append(rf"\boxed{{{text}" if number % 3 == 0 else rf"\boxed{{{text}}}" if number % 3 == 1 else text)
    with pool_of({"name": "math", "timeout": 60.0}) as pool:
        futures = [pool.submit(*sample(text, r"\frac{1}{2}", n)) for n, text in enumerate(texts)]
        verdicts = [f.result(WAIT).verdicts["math"] for f in futures]
        stats = pool.stats()
    assert {v.status for v in verdicts} <= {"wrong", "correct"}
    assert not {v.reason for v in verdicts} & {"crash", "timeout"}
    assert stats["verifier/restarts"] == 0
