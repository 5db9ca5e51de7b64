"""Batched, group and dependent verifiers, the choice of verifiers by a column, the cache, and limits, in a real pool."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from rlpost import config
from rlpost.verify import VerifierError, VerifierPool

WAIT = 60.0

VERIFIERS = """
import os, pathlib, time


def wait_for(path):
    while not os.path.exists(path):
        time.sleep(0.005)


def verify_batch(samples, gate=None):
    if gate:
        wait_for(gate)
    if any(s["response"] == "break" for s in samples):
        raise RuntimeError("one of these breaks it")
    if any(s["response"] == "die" for s in samples):
        os._exit(3)
    if any(s["response"] == "hang" for s in samples):
        time.sleep(600)
    details = {"size": len(samples)}
    return [
        ValueError("this one alone") if s["response"] == "odd" else
        {"score": float(s["response"] == s["reference"]), "details": details}
        for s in samples
    ]


def novelty(responses, reference):
    if "hang" in responses:
        time.sleep(600)
    if "raise" in responses:
        raise RuntimeError("broken")
    return [{"score": 1 / responses.count(r), "details": {"n": len(responses)}} for r in responses]


novelty.group = True


def both(verdicts, of=()):
    return {"score": sum(v or 0.0 for v in verdicts.values()) / 2, "details": {"seen": verdicts, "of": list(of)}}


def after(verdicts):
    return {"score": 0.25, "details": {"seen": verdicts}}


def spread(responses, verdicts):
    return [{"score": 0.0, "details": {"seen": v}} for v in verdicts]


spread.group = True


def plain(response, reference):
    return response == reference


def none(response):
    return None


def counted(response, file):
    with open(file, "a") as log:
        log.write(response + "\\n")
    if response == "none":
        return None
    return {"score": 1.0, "details": {"text": "x" * 1000}}


def chance(response, file):
    return counted(response, file)


chance.deterministic = False


def gated(response, file, gate):
    with open(file, "a") as log:
        log.write(response + "\\n")
    wait_for(gate)
    return True


def busy(response, folder):
    mine = pathlib.Path(folder) / response
    mine.touch()
    time.sleep(0.05)
    there = len(list(pathlib.Path(folder).iterdir()))
    mine.unlink()
    return {"score": 1.0, "details": {"at once": there}}


def secret(response):
    return os.environ.get(response) == "s3cret"


def remote(response):
    time.sleep(600)


remote.service = True


def grows(response):
    globals().setdefault("kept", []).append(b"x" * (200 * 2**20))
    return {"score": 1.0, "details": {"pid": os.getpid()}}


grows.deterministic = False
"""


@pytest.fixture
def file(tmp_path) -> Path:
    path = tmp_path / "kinds.py"
    path.write_text(VERIFIERS)
    return path


def pool_of(*specs, workers=1, **settings):
    specs = [config.VerifierSpec(**({"name": s} if isinstance(s, str) else s)) for s in specs]
    return VerifierPool(specs, config.VerifierPool(workers=workers, **settings), start_deadline=WAIT)


def group_of(sampled, *texts, **metadata):
    made = [sampled(text, **metadata) for text in texts]
    return [rollout for rollout, _ in made], made[0][1]


def results(futures):
    return [future.result(WAIT) for future in futures]


# ------------------------------------------------------------------------------------------------------------- batched


def test_waiting_samples_are_grouped_up_to_the_batch_size(file, sampled, tmp_path):
    name, gate = f"{file}:verify_batch", tmp_path / "open"
    with pool_of({"name": name, "batch_size": 4, "gate": str(gate)}) as pool:
        first = pool.submit(*sampled("yes"))
        while pool.drain()[2]:  # until the worker has taken it alone
            time.sleep(0.01)
        futures = [pool.submit(*sampled("yes", number=i)) for i in range(6)]
        gate.touch()
        sizes = [r.verdicts[name].details["size"] for r in results([first, *futures])]
    assert sizes == [1, 4, 4, 4, 4, 2, 2]


@pytest.mark.parametrize(
    ("bad", "verdict"),
    [
        ("break", ("unverified", "exception", None)),
        ("die", ("wrong", "crash", 0.0)),
        ("hang", ("wrong", "timeout", 0.0)),
        ("odd", ("unverified", "exception", None)),
    ],
)
def test_a_batch_that_fails_is_done_one_by_one_and_only_the_culprit_is_blamed(file, sampled, tmp_path, bad, verdict):
    name = f"{file}:verify_batch"
    texts = ["yes", "no", bad, "yes"]
    with pool_of({"name": name, "timeout": 3.0, "batch_size": 8}) as pool:
        scored = results(pool.submit_group(*group_of(sampled, *texts)))
    found = scored[2].verdicts[name]
    assert (found.status, found.reason, found.score) == verdict
    assert [scored[i].reward for i in (0, 1, 3)] == [1.0, 0.0, 1.0]


# --------------------------------------------------------------------------------------------------------------- group


def test_a_group_verifier_sees_the_whole_group_but_for_what_was_aborted(file, sampled):
    name = f"{file}:novelty"
    rollouts, prompt = group_of(sampled, "a", "b", "a", "a")
    rollouts.append(sampled("a", finish_reason="abort")[0])
    with pool_of({"name": name, "weight": 0.5}, "exact") as pool:
        scored = results(pool.submit_group(rollouts, prompt))
    assert [r.verdicts[name].score for r in scored] == [pytest.approx(1 / 3), 1.0, *[pytest.approx(1 / 3)] * 2, None]
    assert scored[1].verdicts[name].details == {"n": 4}
    assert scored[4].verdicts[name].reason == "aborted"
    assert [r.text for r in scored] == [r.text for r in rollouts]


@pytest.mark.parametrize(("bad", "reason"), [("hang", "timeout"), ("raise", "exception")])
def test_what_breaks_a_group_verifier_leaves_the_group_unverified(file, sampled, bad, reason):
    name = f"{file}:novelty"
    with pool_of({"name": name, "timeout": 0.5}) as pool:
        scored = results(pool.submit_group(*group_of(sampled, "a", bad)))
        again = results(pool.submit_group(*group_of(sampled, "a", "b")))
    assert [(r.reward, r.verdicts[name].status, r.verdicts[name].reason) for r in scored] == [
        (None, "unverified", reason)
    ] * 2
    assert [r.reward for r in again] == [1.0, 1.0]


def test_one_rollout_alone_is_refused_when_a_verifier_wants_the_group(file, sampled):
    with pool_of(f"{file}:novelty") as pool, pytest.raises(VerifierError, match="use submit_group"):
        pool.submit(*sampled("a"))


# ----------------------------------------------------------------------------------------------------------- dependent


def test_a_verifier_with_verdicts_runs_after_those_it_names_and_sees_their_scores(file, sampled):
    both, after, plain, none = (f"{file}:{name}" for name in ("both", "after", "plain", "none"))
    specs = (
        {"name": both, "of": [plain, none]},  # first in the file, last to run
        {"name": after, "of": both, "weight": 0.0},
        plain,
        {"name": none, "weight": 0.0},
    )
    with pool_of(*specs, workers=2) as pool:
        scored = pool.submit(*sampled("yes")).result(WAIT)
    assert list(scored.verdicts) == [both, after, plain, none]
    assert scored.verdicts[both].details == {"seen": {plain: 1.0, none: None}, "of": [plain, none]}
    assert scored.verdicts[after].details == {"seen": {both: 0.5}}
    assert scored.reward == 1.5


def test_by_default_it_sees_all_that_wait_for_none_and_groups_see_each_samples_own(file, sampled):
    spread, plain = f"{file}:spread", f"{file}:plain"
    with pool_of(spread, plain, "exact") as pool:
        scored = results(pool.submit_group(*group_of(sampled, "yes", "no")))
    assert [r.verdicts[spread].details["seen"] for r in scored] == [{plain: s, "exact": s} for s in (1.0, 0.0)]


def test_verdicts_that_cannot_come_are_refused_at_the_start(file):
    both, after = f"{file}:both", f"{file}:after"
    with pytest.raises(VerifierError, match=r"`of` names 'maths', which is not among the verifiers: .*:both, exact"):
        pool_of({"name": both, "of": ["maths"]}, "exact").start()
    with pytest.raises(VerifierError, match="wait for each other's verdicts: "):
        pool_of({"name": both, "of": after}, {"name": after, "of": both}).start()


# ------------------------------------------------------------------------------------------------- the choice by column


def test_the_verifiers_of_a_row_are_chosen_by_its_columns(file, sampled):
    specs = (
        {"name": "exact", "when": {"task": ["math", "logic"]}},
        {"name": "format", "pattern": "y.*", "when": {"task": "form", "level": 3}},
        {"name": f"{file}:plain", "weight": 0.5},
    )
    with pool_of(*specs) as pool:
        rows = [{"task": "math"}, {"task": "form", "level": 3}, {"task": "form", "level": 2}, {}]
        scored = [pool.submit(*sampled("yes", **row)).result(WAIT) for row in rows]
    plain = f"{file}:plain"
    assert [list(r.verdicts) for r in scored] == [["exact", plain], ["format", plain], [plain], [plain]]
    assert [r.reward for r in scored] == [1.5, 1.5, 0.5, 0.5]


def test_a_row_that_nothing_rewards_is_unverified_and_never_zero(file, sampled):
    watch = {"name": f"{file}:plain", "weight": 0.0}
    with pool_of({"name": "exact", "when": {"task": "math"}}, watch) as pool:
        scored = pool.submit(*sampled("yes", task="maths")).result(WAIT)
    assert scored.reward is None
    assert (scored.verdicts["exact"].status, scored.verdicts["exact"].reason) == ("unverified", "no_verifier")
    assert scored.verdicts["exact"].details == {"task": "maths"}
    assert scored.verdicts[f"{file}:plain"].score == 1.0
    with pool_of({"name": "exact", "when": {"task": "math"}}) as pool:
        assert pool.submit(*sampled("yes")).result(WAIT).verdicts["exact"].reason == "no_verifier"


def test_a_dependent_verifier_is_told_none_of_a_verifier_that_does_not_apply(file, sampled):
    both, plain = f"{file}:both", f"{file}:plain"
    with pool_of({"name": both, "of": [plain, "exact"]}, plain, {"name": "exact", "when": {"task": "x"}}) as pool:
        scored = pool.submit(*sampled("yes")).result(WAIT)
    assert scored.verdicts[both].details["seen"] == {plain: 1.0, "exact": None}


# --------------------------------------------------------------------------------------------------------------- cache


def test_the_same_answer_to_the_same_problem_is_worked_out_once(file, sampled, tmp_path):
    name, log = f"{file}:counted", tmp_path / "log"
    with pool_of({"name": name, "file": str(log)}) as pool:
        cached = []
        for text, row in (("a", {}), ("a", {}), ("b", {}), ("a", {"level": 2}), ("a", {})):
            verdict = pool.submit(*sampled(text, **row)).result(WAIT).verdicts[name]
            cached.append(verdict.cached)
            assert (verdict.score, verdict.details["text"]) == (1.0, "x" * 1000)
        stats = pool.stats()
    assert cached == [False, True, False, False, True]
    assert log.read_text().split() == ["a", "b", "a"]
    assert stats[f"verifier/{name}/cache_hits"] == 2


@pytest.mark.parametrize(
    ("function", "text", "settings"), [("chance", "a", {}), ("counted", "none", {}), ("counted", "a", {"cache_mb": 0})]
)
def test_what_may_be_otherwise_next_time_is_worked_out_again(file, sampled, tmp_path, function, text, settings):
    log = tmp_path / "log"
    with pool_of({"name": f"{file}:{function}", "file": str(log)}, **settings) as pool:
        for _ in range(3):
            assert not pool.submit(*sampled(text)).result(WAIT).verdicts[f"{file}:{function}"].cached
    assert log.read_text().split() == [text] * 3


def test_the_same_sample_in_flight_is_not_begun_twice(file, sampled, tmp_path):
    log, gate = tmp_path / "log", tmp_path / "open"
    name = f"{file}:gated"
    with pool_of({"name": name, "file": str(log), "gate": str(gate)}, workers=2) as pool:
        futures = [pool.submit(*sampled("a")) for _ in range(8)]
        while not log.exists():
            time.sleep(0.01)
        gate.touch()
        verdicts = [r.verdicts[name] for r in results(futures)]
        assert log.read_text().split() == ["a"]
        assert sorted(v.cached for v in verdicts) == [False] + [True] * 7
        assert pool.stats()[f"verifier/{name}/cache_hits"] == 7


def test_the_least_recently_used_verdicts_make_room(file, sampled, tmp_path):
    log = tmp_path / "log"
    with pool_of({"name": f"{file}:counted", "file": str(log)}, cache_mb=1) as pool:
        for text in ["kept", *(str(i) for i in range(400)), "kept", *(str(i) for i in range(400, 900)), "kept", "0"]:
            pool.submit(*sampled(text)).result(WAIT)
    seen = log.read_text().split()
    assert (seen.count("kept"), seen.count("0")) == (1, 2)


# -------------------------------------------------------------------------------------------------------------- limits


@pytest.mark.parametrize("limit", [1, 2])
def test_no_more_workers_run_a_verifier_than_it_allows(file, sampled, tmp_path, limit):
    folder = tmp_path / "busy"
    folder.mkdir()
    name = f"{file}:busy"
    with pool_of({"name": name, "concurrency": limit, "folder": str(folder)}, "exact", workers=3) as pool:
        futures = [pool.submit(*sampled(str(i))) for i in range(20)]
        at_once = [r.verdicts[name].details["at once"] for r in results(futures)]
    assert max(at_once) == limit


def test_a_variable_reaches_only_the_verifier_that_names_it(file, sampled, monkeypatch):
    monkeypatch.setenv("JUDGE_KEY", "s3cret")
    secret = f"{file}:secret"
    other = file.with_name("other.py")
    other.write_text(VERIFIERS)
    with pool_of({"name": secret, "env": ["JUDGE_KEY"]}, f"{other}:secret") as pool:
        scored = pool.submit(*sampled("JUDGE_KEY")).result(WAIT)
    assert [v.score for v in scored.verdicts.values()] == [1.0, 0.0]
    monkeypatch.delenv("JUDGE_KEY")
    with pytest.raises(VerifierError, match="env names 'JUDGE_KEY', which is not set"):
        pool_of({"name": secret, "env": ["JUDGE_KEY"]}).start()


def test_a_service_that_does_not_answer_is_not_laid_to_the_completion(file, sampled):
    name = f"{file}:remote"
    with pool_of({"name": name, "timeout": 0.3}) as pool:
        verdict = pool.submit(*sampled("a")).result(WAIT).verdicts[name]
    assert (verdict.status, verdict.score, verdict.reason) == ("unverified", None, "timeout")


def test_a_worker_that_grew_is_replaced_and_no_item_is_blamed(file, sampled):
    name = f"{file}:grows"
    with pool_of(name, memory_mb=150) as pool:
        verdicts = [pool.submit(*sampled("a")).result(WAIT).verdicts[name] for _ in range(3)]
        assert pool.stats()["verifier/restarts"] == 0
    assert len({v.details["pid"] for v in verdicts}) == 3
    assert {v.attempts for v in verdicts} == {1}


def test_callbacks_that_submit_again_do_not_lock_the_pool(sampled):
    with pool_of("exact", workers=2) as pool:
        left = threading.Semaphore(0)

        def again(number):
            if number == 0:
                left.release()
                return
            pool.submit(*sampled("yes", number=number % 3)).add_done_callback(lambda _: again(number - 1))

        again(50)
        assert left.acquire(timeout=WAIT)
