from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import pytest

from rlpost import config
from rlpost.verify import VerifierError, VerifierPool

WAIT = 30.0  # seconds no test should need


def pool_of(*specs, workers=1, **settings):
    specs = [config.VerifierSpec(**({"name": s} if isinstance(s, str) else s)) for s in specs]
    return VerifierPool(specs, config.VerifierPool(workers=workers, **settings), start_deadline=WAIT)


def wait_until_dead(pid):
    """A process that is gone, or a zombie that its own parent has yet to reap."""
    deadline = time.monotonic() + WAIT
    while time.monotonic() < deadline:
        try:
            if Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return
        except (FileNotFoundError, ProcessLookupError):
            return
        time.sleep(0.01)
    pytest.fail(f"process {pid} is still alive")


def test_each_rollout_gets_a_verdict_of_every_verifier_and_the_weighted_reward(sampled):
    with pool_of({"name": "exact", "weight": 2.0}, {"name": "format", "pattern": "y.*", "weight": 0.5}) as pool:
        right = pool.submit(*sampled("yes")).result(WAIT)
        half = pool.submit(*sampled("yep")).result(WAIT)
    assert list(right.verdicts) == ["exact", "format"]
    assert (right.reward, half.reward) == (2.5, 0.5)
    assert half.verdicts["exact"].reason == "mismatch"
    assert half.verdicts["exact"].seconds > 0
    assert half.verdicts["exact"].attempts == 1


def test_many_rollouts_keep_their_own_verdicts(sampled):
    with pool_of("exact", workers=2) as pool:
        futures = [pool.submit(*sampled(str(i), reference=str(i % 7))) for i in range(500)]
        scored = [f.result(WAIT) for f in futures]
    assert [r.text for r in scored] == [str(i) for i in range(500)]
    assert [r.reward for r in scored] == [float(i == i % 7) for i in range(500)]


def test_the_sample_crosses_as_it_is(verifiers, sampled):
    text = "line\nline \u2028 \ud800 \x00 \U0001f600"
    with pool_of({"name": f"{verifiers}:everything", "limit": [1, 2]}) as pool:
        details = pool.submit(*sampled(text, reference={"a": None}, level=3)).result(WAIT).verdicts.popitem()[1].details
    assert details == {
        "response": text,
        "reference": {"a": None},
        "prompt": "is it?",
        "prompt_id": "p1",
        "finish_reason": "stop",
        "token_count": 2,
        "level": 3,
        "limit": [1, 2],
    }


def test_an_async_verifier_is_awaited(verifiers, sampled):
    with pool_of(f"{verifiers}:later") as pool:
        assert pool.submit(*sampled("yes")).result(WAIT).reward == 1.0
        assert pool.submit(*sampled("no")).result(WAIT).reward == 0.0


def test_what_a_verifier_prints_does_not_disturb_the_verdicts(verifiers, sampled):
    with pool_of(f"{verifiers}:obeys") as pool:
        assert pool.submit(*sampled("print", reference="print")).result(WAIT).reward == 1.0


def test_an_exception_is_tried_again_and_then_unverified_never_zero(verifiers, sampled):
    name = f"{verifiers}:obeys"
    with pool_of(name, retries=2) as pool:
        for text in ("raise", "sys.exit"):
            rollout = pool.submit(*sampled(text)).result(WAIT)
            verdict = rollout.verdicts[name]
            assert (rollout.reward, verdict.status, verdict.score) == (None, "unverified", None)
            assert (verdict.reason, verdict.attempts) == ("exception", 3)
            assert (verdict.details["verifier"], verdict.details["prompt_id"]) == (name, "p1")
            assert "in obeys" in verdict.details["traceback"]
        assert pool.stats()["verifier/restarts"] == 0


def test_a_result_without_meaning_is_unverified(verifiers, sampled):
    with pool_of(f"{verifiers}:obeys") as pool:
        verdict = pool.submit(*sampled("odd")).result(WAIT).verdicts.popitem()[1]
    assert verdict.status == "unverified"
    assert "list" in verdict.reason


def test_a_completion_that_ends_the_process_is_wrong_and_the_next_one_is_scored(verifiers, sampled):
    name = f"{verifiers}:obeys"
    with pool_of(name, retries=1) as pool:
        verdict = pool.submit(*sampled("exit")).result(WAIT).verdicts[name]
        assert (verdict.status, verdict.score, verdict.reason, verdict.attempts) == ("wrong", 0.0, "crash", 2)
        assert verdict.details["exit_code"] == 3
        assert pool.submit(*sampled("yes")).result(WAIT).reward == 1.0
        assert pool.stats()["verifier/restarts"] == 2


def test_a_worker_lost_once_costs_its_item_nothing(verifiers, sampled, tmp_path):
    name = f"{verifiers}:obeys"
    with pool_of({"name": name, "flag": str(tmp_path / "flag")}, retries=1) as pool:
        rollout = pool.submit(*sampled("once", reference="once")).result(WAIT)
    assert rollout.reward == 1.0
    assert rollout.verdicts[name].attempts == 2


def test_a_time_out_is_tried_again_and_then_wrong(verifiers, sampled):
    name = f"{verifiers}:obeys"
    with pool_of({"name": name, "timeout": 0.3}) as pool:
        futures = [pool.submit(*sampled(text)) for text in ("yes", "loop", "yes", "no")]
        rewards = [f.result(WAIT).reward for f in futures]
        verdict = futures[1].result().verdicts[name]
        stats = pool.stats()
    assert rewards == [1.0, 0.0, 1.0, 0.0]
    assert (verdict.status, verdict.reason, verdict.attempts) == ("wrong", "timeout", 2)
    assert 0.3 <= verdict.seconds < 2.3
    assert (stats[f"verifier/{name}/timeouts"], stats["verifier/restarts"]) == (2, 2)


def test_each_verifier_has_its_own_time_out(verifiers, sampled):
    patient, quick = f"{verifiers}:later", f"{verifiers}:obeys"
    with pool_of({"name": patient, "timeout": 20}, {"name": quick, "timeout": 0.2}) as pool:
        verdicts = pool.submit(*sampled("loop", reference="loop")).result(WAIT).verdicts
    assert (verdicts[patient].status, verdicts[quick].reason) == ("correct", "timeout")


def test_a_reply_that_is_not_one_is_unverified(verifiers, sampled):
    with pool_of(f"{verifiers}:obeys", retries=0) as pool:
        verdict = pool.submit(*sampled("garbage")).result(WAIT).verdicts.popitem()[1]
        assert (verdict.status, verdict.reason) == ("unverified", "invalid_reply")
        assert pool.submit(*sampled("yes")).result(WAIT).reward == 1.0


def test_a_flood_of_output_is_cut_and_still_a_verdict(verifiers, sampled):
    with pool_of(f"{verifiers}:obeys") as pool:
        futures = [pool.submit(*sampled("long", number=i)) for i in range(20)]
        verdicts = [f.result(WAIT).verdicts.popitem()[1] for f in futures]
    assert all(v.status == "correct" and len(str(v.details)) < 200_000 for v in verdicts)


def test_an_aborted_rollout_is_not_run(verifiers, sampled):
    name = f"{verifiers}:obeys"
    with pool_of(name) as pool:
        rollout = pool.submit(*sampled("loop", finish_reason="abort")).result(WAIT)
    assert (rollout.reward, rollout.verdicts[name].status, rollout.verdicts[name].reason) == (
        None,
        "unverified",
        "aborted",
    )


def test_the_trainers_secrets_are_not_in_a_workers_environment(verifiers, sampled, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "secret")
    monkeypatch.setenv("LC_TIME", "C")
    with pool_of(f"{verifiers}:environment") as pool:
        verdicts = {key: pool.submit(*sampled(key)).result(WAIT).reward for key in ("WANDB_API_KEY", "LC_TIME", "PATH")}
    assert verdicts == {"WANDB_API_KEY": 0.0, "LC_TIME": 1.0, "PATH": 1.0}


def test_a_worker_is_replaced_after_its_number_of_items(verifiers, sampled):
    with pool_of(f"{verifiers}:pid", recycle_after=2) as pool:
        pids = [pool.submit(*sampled("yes")).result(WAIT).verdicts.popitem()[1].details["pid"] for _ in range(4)]
        assert pool.stats()["verifier/restarts"] == 0
    assert pids[0] == pids[1] != pids[2] == pids[3]


def test_a_worker_killed_while_idle_is_replaced_and_no_item_is_blamed(verifiers, sampled):
    name = f"{verifiers}:pid"
    with pool_of(name, retries=0) as pool:
        first = pool.submit(*sampled("yes")).result(WAIT).verdicts[name].details["pid"]
        os.kill(first, 9)
        wait_until_dead(first)
        second = pool.submit(*sampled("yes")).result(WAIT).verdicts[name]
        assert second.details["pid"] != first
        assert second.attempts == 1


def test_stats_count_since_the_last_call(sampled):
    with pool_of("exact") as pool:
        for text in ("yes", "yes", "no"):
            pool.submit(*sampled(text)).result(WAIT)
        stats = pool.stats()
        for what in ("seconds", "wait"):
            mean, p50, p99 = (stats.pop(f"verifier/exact/{what}_{key}") for key in ("mean", "p50", "p99"))
            assert 0 < min(mean, p50) <= max(mean, p50) <= p99
        assert stats == {
            "verifier/restarts": 0,
            "verifier/waiting": 0,
            "verifier/exact/timeouts": 0,
            "verifier/exact/errors": 0,
            "verifier/exact/cache_hits": 1,
        }
        assert set(pool.stats().values()) == {0}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ({"name": "{file}:gone"}, "has no 'gone'"),
        ({"name": "exact", "patern": "x"}, "'exact' takes no 'patern'"),
    ],
)
def test_a_verifier_that_does_not_load_stops_the_start_with_its_reason(verifiers, spec, message):
    pool = pool_of({**spec, "name": spec["name"].format(file=verifiers)}, workers=2)
    with pytest.raises(VerifierError, match=message):
        pool.start()


def test_a_verifier_that_hangs_while_it_loads_is_named_at_the_deadline(tmp_path):
    (tmp_path / "slow.py").write_text("import time\ntime.sleep(600)\n")
    spec = config.VerifierSpec(name=f"{tmp_path}/slow.py:verify")
    with pytest.raises(VerifierError, match=r"slow\.py:verify: not ready within 1\.0 s"):
        VerifierPool([spec], config.VerifierPool(workers=1), start_deadline=1.0).start()


def test_data_that_is_not_json_is_refused_with_the_prompts_id(sampled):
    with pool_of("exact") as pool, pytest.raises(VerifierError, match=r"prompt 'p1': .* plain JSON"):
        pool.submit(*sampled("yes", reference=object()))


def test_closing_fails_what_is_not_scored_and_ends_the_workers(verifiers, sampled):
    before = threading.active_count()
    pool = pool_of(f"{verifiers}:obeys", workers=2)
    with pool:
        futures = [pool.submit(*sampled("loop")) for _ in range(5)]
    for future in futures:
        with pytest.raises(VerifierError, match=r"prompt 'p1' sample 0 was not scored: the verifier pool was closed"):
            future.result(WAIT)
    with pytest.raises(VerifierError, match="closed"):
        pool.submit(*sampled("yes"))
    pool.close()
    assert threading.active_count() == before


def test_a_pool_that_is_not_started_says_so(sampled):
    with pytest.raises(VerifierError, match="not started"):
        pool_of("exact").submit(*sampled("yes"))


def test_the_worker_imports_nothing_heavy():
    heavy = "import sys, rlpost.verify.worker; print([m for m in ('torch', 'ray', 'vllm', 'pydantic', 'sympy') if m in sys.modules])"
    assert subprocess.run([sys.executable, "-c", heavy], capture_output=True, text=True, timeout=WAIT).stdout == "[]\n"


@pytest.mark.parametrize("ending", ["sys.exit(0)", "os.kill(os.getpid(), 9)"])
def test_no_worker_outlives_its_parent_even_in_an_endless_verifier(verifiers, ending):
    script = f"""
    import os, sys
    sys.path.insert(0, {str(Path(__file__).parent)!r})
    from conftest import make_sample
    from rlpost import config
    from rlpost.verify import VerifierPool
    spec = config.VerifierSpec(name={f"{verifiers}:obeys"!r}, timeout=600)
    pool = VerifierPool([spec], config.VerifierPool(workers=2))
    pool.start()
    for _ in range(2):
        pool.submit(*make_sample("loop"))
    def parent(pid):
        try:
            return int(open(f"/proc/{{pid}}/stat").read().rpartition(")")[2].split()[1])
        except OSError:  # somebody else's process, which has ended since it was listed
            return None
    print(*[p for p in os.listdir("/proc") if p.isdigit() and parent(p) == os.getpid()], flush=True)
    {ending}
    """
    run = subprocess.run([sys.executable, "-c", textwrap.dedent(script)], capture_output=True, text=True, timeout=WAIT)
    pids = run.stdout.split()
    assert len(pids) == 2, run.stderr
    for pid in pids:
        wait_until_dead(int(pid))
