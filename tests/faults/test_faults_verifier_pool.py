"""Hostile completions in bulk: time, processes and descriptors stay bounded, and the good samples keep their verdicts."""

from __future__ import annotations

import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest

from rlpost import config
from rlpost.types import Prompt, Rollout
from rlpost.verify import VerifierPool
from tests.faults.descriptors import more_than, settled

WAIT = 120.0
IDS = np.arange(2, dtype=np.int32)

VERIFIERS = """
import os, signal, subprocess, sys, time

def obeys(response, reference):
    if response == "loop":
        while True:
            pass
    if response == "child":
        subprocess.Popen(["sleep", "600.25"])
        time.sleep(600)
    if response == "deaf":
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(600)
    if response == "exit":
        os._exit(0)
    if response == "segfault":
        os.kill(os.getpid(), signal.SIGSEGV)
    return response == reference


def verify_batch(samples):
    return [obeys(s["response"], s["reference"]) for s in samples]


def alike(responses, reference):
    return [obeys(r, reference) for r in responses]


alike.group = True
"""


@pytest.fixture
def name(tmp_path):
    (tmp_path / "obeys.py").write_text(VERIFIERS)
    return f"{tmp_path}/obeys.py:obeys"


def sample(text, reference="yes", number=0):
    prompt = Prompt(f"p{number}", "", IDS, reference=reference)
    zeros = np.zeros(2, np.float32)
    return Rollout(prompt.id, number, 0, IDS, IDS, zeros, IDS, "stop", text, number), prompt


def pool_of(name, timeout, workers=2, **settings):
    return VerifierPool(
        [config.VerifierSpec(name=name, timeout=timeout)], config.VerifierPool(workers=workers, **settings)
    )


def children():
    """Processes whose parent is this one, zombies included."""
    found = set()
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            if stat.read_text().rpartition(")")[2].split()[1] == str(os.getpid()):
                found.add(int(stat.parent.name))
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def running(command):
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            if path.read_bytes().replace(b"\0", b" ").decode().strip() == command:
                found.append(path.parent.name)
        except (FileNotFoundError, ProcessLookupError):
            continue
    return found


def wait_until(true, what, seconds=5.0):
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def test_twenty_endless_loops_in_two_hundred_end_in_time_and_leave_nothing(name):
    before, files = children(), settled()
    with pool_of(name, timeout=0.3) as pool:
        started = time.monotonic()
        futures = [pool.submit(*sample("loop" if i % 10 == 0 else "yes", number=i)) for i in range(200)]
        rollouts = [f.result(WAIT) for f in futures]
        seconds = time.monotonic() - started
        wait_until(lambda: len(children() - before) == 2, "capacity is restored")
        stats = pool.stats()
    assert seconds < 20 * 2 * (0.3 + 2.0) / 2
    for i, rollout in enumerate(rollouts):
        verdict = rollout.verdicts[name]
        assert (verdict.status, verdict.reason) == (("wrong", "timeout") if i % 10 == 0 else ("correct", ""))
    assert stats[f"verifier/{name}/timeouts"] == stats["verifier/restarts"] == 40
    assert children() == before
    assert not more_than(files)


def test_a_kill_takes_the_whole_process_group(name):
    with pool_of(name, timeout=0.5, workers=1) as pool:
        assert pool.submit(*sample("child")).result(WAIT).verdicts[name].reason == "timeout"
        wait_until(lambda: not running("sleep 600.25"), "the verifier's own child is gone")


def test_a_verifier_deaf_to_polite_signals_is_killed_all_the_same(name):
    with pool_of(name, timeout=0.3, workers=1) as pool:
        assert pool.submit(*sample("deaf")).result(WAIT).verdicts[name].reason == "timeout"


def test_crashes_are_blamed_on_their_own_item_only(name):
    texts = ["yes", "segfault", "no", "exit"] * 10
    with pool_of(name, timeout=5.0, retries=1) as pool:
        futures = [pool.submit(*sample(text, number=i)) for i, text in enumerate(texts)]
        verdicts = [f.result(WAIT).verdicts[name] for f in futures]
    expected = {"yes": ("correct", ""), "no": ("wrong", ""), "segfault": ("wrong", "crash"), "exit": ("wrong", "crash")}
    assert [(v.status, v.reason) for v in verdicts] == [expected[text] for text in texts]
    assert {v.attempts for v, text in zip(verdicts, texts, strict=True) if text in ("yes", "no")} == {1}


def test_hostile_samples_in_batches_are_found_one_by_one_and_the_others_keep_their_verdicts(name):
    before, files = children(), settled()
    batched = name.replace(":obeys", ":verify_batch")
    texts = ["loop" if i in (7, 61) else "segfault" if i in (20, 21) else "yes" if i % 2 else "no" for i in range(80)]
    with pool_of(batched, timeout=1.0) as pool:
        futures = [pool.submit(*sample(text, number=i)) for i, text in enumerate(texts)]
        verdicts = [f.result(WAIT).verdicts[batched] for f in futures]
        wait_until(lambda: len(children() - before) == 2, "capacity is restored")
    expected = {
        "yes": ("correct", ""),
        "no": ("wrong", ""),
        "loop": ("wrong", "timeout"),
        "segfault": ("wrong", "crash"),
    }
    assert [(v.status, v.reason) for v in verdicts] == [expected[text] for text in texts]
    assert children() == before
    assert not more_than(files)


def test_a_hostile_response_in_a_group_masks_its_group_only(name):
    alike = name.replace(":obeys", ":alike")
    with pool_of(alike, timeout=1.0, retries=1) as pool:
        futures = []
        for number, texts in enumerate((["yes", "no"], ["yes", "segfault"], ["loop", "no"], ["no", "yes"])):
            made = [sample(text, number=number) for text in texts]
            futures.append(pool.submit_group([rollout for rollout, _ in made], made[0][1]))
        rewards = [[f.result(WAIT).reward for f in group] for group in futures]
    assert rewards == [[1.0, 0.0], [None, None], [None, None], [0.0, 1.0]]


def test_a_kill_gives_back_the_place_of_a_verifier_with_few(name):
    spec = config.VerifierSpec(name=name, timeout=0.3, concurrency=1)
    with VerifierPool([spec], config.VerifierPool(workers=2, retries=1)) as pool:
        texts = ["loop", "exit", "yes", "segfault", "loop", "yes"]
        futures = [pool.submit(*sample(text, number=i)) for i, text in enumerate(texts)]
        assert [f.result(WAIT).reward for f in futures] == [0.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def test_followers_of_a_hostile_sample_share_its_verdict_and_none_waits_for_ever(name):
    with pool_of(name, timeout=0.5) as pool:
        futures = [pool.submit(*sample(text)) for text in ["loop", "exit", "yes"] * 5]
        reasons = [f.result(WAIT).verdicts[name].reason for f in futures]
        stats = pool.stats()
    assert reasons == ["timeout", "crash", ""] * 5
    assert stats[f"verifier/{name}/timeouts"] == 2
    assert stats[f"verifier/{name}/cache_hits"] == 12


def test_workers_killed_at_random_lose_no_sample(name):
    before = children()
    chance = random.Random(0)
    with pool_of(name, timeout=10.0, retries=50) as pool:
        futures = []
        for i in range(3000):
            futures.append(pool.submit(*sample("yes" if i % 3 else "no", number=i)))
            if i % 300 == 299:
                futures[-1].result(WAIT)
                victims = sorted(children() - before)
                os.kill(chance.choice(victims), signal.SIGKILL)
        rewards = [f.result(WAIT).reward for f in futures]
    assert rewards == [float(i % 3 > 0) for i in range(3000)]
    assert children() == before


@pytest.mark.parametrize(
    "answer",
    [
        r"10^{10^{10}}",
        "9**9**9**9",
        r"2^{2^{2^{2^{2^{2}}}}}",
        "((9^{4000})^{4000})^{4000}",
        "(10^9)!",
        "3!!!!",
        r"\sum_{k=1}^{100000000} \frac{1}{k^2}",
        "9" * 5000,
        "9" * 10**6,
        "(" * 1500 + ")" * 1500,
        r"\frac{" * 500 + "1" + "}{2}" * 500,
        "{" * 10**5,
        "1," * 10**5 + "x",
        "-" * 10**6,
        " " * 10**6 + "x",
        "__import__('os').system('exit')",
    ],
    ids=lambda answer: answer[:24],
)
def test_an_answer_that_is_endless_to_evaluate_is_wrong_within_the_time_out(answer):
    with pool_of("math", timeout=1.5, workers=1) as pool:
        started = time.monotonic()
        rollout = pool.submit(*sample(rf"so \boxed{{{answer}}}", reference=r"\sqrt{5}")).result(WAIT)
        assert time.monotonic() - started < 2 * 1.5 + 4.0
        assert rollout.reward == 0.0
        assert pool.submit(*sample(r"\boxed{\frac{5}{\sqrt{5}}}", reference=r"\sqrt{5}")).result(WAIT).reward == 1.0
