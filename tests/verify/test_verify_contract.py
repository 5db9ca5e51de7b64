"""The contract checks find what they are for, on verifiers that break one promise each, and find nothing on a good one."""

from __future__ import annotations

import json
import textwrap
from pathlib import Path

import pytest

from rlpost.config import VerifierSpec
from rlpost.types import Verdict
from rlpost.verify.contract import Check, contract, make_case, problems_of, same, score

ROOT = Path(__file__).parents[2]
START = 60.0
VERIFIERS = """
import itertools, math, os, random, time

calls = itertools.count()
seen = set()


def good(response, reference):
    if reference is None:
        return None
    words = response.split()
    return {"score": float(words[-1:] == [reference]), "extracted": words[-1] if words else None}


def flaky(response, reference):
    return random.random() < 0.5


flaky_and_says_so = lambda response, reference: random.random() < 0.5
flaky_and_says_so.deterministic = False


def by_order(response, reference):
    return next(calls) % 2 == 0


def by_process(response, reference):
    return {"score": 1.0, "extracted": str(os.getpid())}


def remembers(response, reference):
    known = response in seen
    seen.add(response)
    return not known


def raises(response, reference):
    return response.split()[-1] == reference


def gives_up(response, reference):
    return None if "?" in response else response == reference


def dies(response, reference):
    if "die" in response:
        os._exit(7)
    return response == reference


def bad_data(response, reference):
    if reference == "unreadable":
        raise ValueError("bad reference")
    return response == reference


def executes(response, reference):
    try:
        return str(eval(response)) == reference
    except Exception:
        return 0.0


def not_a_number(response, reference):
    try:
        return 1.0 - abs(float(response) - float(reference))
    except ValueError:
        return 0.0


def slow(response, reference):
    if "slow" in response:
        time.sleep(600)
    return response == reference


def slow_on_long_text(response, reference):
    if len(response) > 100_000:
        time.sleep(600)
    return response == reference


def needs_reference(response, reference):
    if reference is None:
        os._exit(7)
    return response == reference


def odd_details(response, reference):
    return {"score": 1.0, "details": {"pattern": {1, 2}}}


def group(responses, reference):
    return [responses.count(r) * 2 > len(responses) for r in responses]


group.group = True


def batch(samples):
    return [sample["response"] == sample["reference"] for sample in samples]


batch.batched = True


def batch_raises(samples):
    return [sample["response"].split()[0] == sample["reference"] for sample in samples]


batch_raises.batched = True


async def later(response, reference):
    return response == reference
"""


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("contract") / "promises.py"
    path.write_text(textwrap.dedent(VERIFIERS))
    return path


@pytest.fixture
def checked(file):
    """Score rows with one of `VERIFIERS` and check it; the checks by name."""

    def check(name: str, *rows: tuple[str, str | None], timeout: float = 10.0) -> dict[str, Check]:
        spec = VerifierSpec(name=f"{file}:{name}" if ":" not in name else name, timeout=timeout)
        pairs = rows or [(f"it is {i}", str(i)) for i in range(6)]
        cases = [make_case(f"row {i}", *pair) for i, pair in enumerate(pairs, 1)]
        first = score(spec, cases, start_deadline=START)
        return {c.name: c for c in contract(spec, cases, first, start_deadline=START)}

    return check


def broken(checks: dict[str, Check]) -> list[str]:
    return [name for name, check in checks.items() if not check.passed]


@pytest.mark.parametrize(
    "name", ["good", f"{ROOT}/rewards/template.py:verify", f"{ROOT}/rewards/exact.py:verify", "later", "batch", "group"]
)
def test_a_good_verifier_keeps_everything(checked, name):
    checks = checked(name)
    assert list(checks) == ["blame", "time-out", "bad input", "determinism", "concurrency", "results"]
    assert broken(checks) == [], checks


def test_a_verdict_that_changes_is_found_and_its_row_named(checked):
    checks = checked("flaky")
    assert "determinism" in broken(checks)
    assert checks["determinism"].problems[0].startswith("row ")
    assert "wrong 0" in checks["determinism"].problems[0]


@pytest.mark.parametrize("name", ["by_process", "by_order", "remembers"])
def test_a_verdict_that_depends_on_the_process_or_on_what_came_before_is_found(checked, name):
    assert {"determinism", "concurrency"} & set(broken(checked(name)))


def test_order_alone_is_found_when_every_row_is_scored_once_a_process(checked):
    rows = [(f"it is {i}", str(i)) for i in range(60)]
    checks = checked("by_order", *rows)
    assert broken(checks)[0] == "concurrency"
    assert checks["determinism"].passed


def test_a_verifier_that_says_it_is_not_deterministic_is_only_noted(checked):
    checks = checked("flaky_and_says_so")
    assert checks["determinism"].passed
    assert "deterministic = False" in checks["determinism"].notes[0]


def test_an_exception_that_the_response_caused_is_told_from_bad_data(checked):
    by_response = checked("raises", ("it is 1", "1"), ("", "2"), ("it is 3", "3"))
    assert [p.split(" is ")[0] for p in by_response["blame"].problems] == ["row 2"]
    assert "IndexError" in by_response["blame"].problems[0]
    by_data = checked("bad_data", ("1", "1"), ("2", "unreadable"))
    assert by_data["blame"].passed
    assert by_data["blame"].notes[0].startswith("row 2 is unverified whatever the response")


def test_a_response_for_which_there_is_no_verdict_is_found(checked):
    assert checked("gives_up", ("1", "1"), ("2?", "2"))["blame"].problems[0].startswith("row 2")


def test_a_response_that_ends_the_process_is_found(checked):
    checks = checked("dies", ("1", "1"), ("die", "2"), ("3", "3"))
    assert len(checks["blame"].problems) == 1
    assert checks["blame"].problems[0].startswith("row 2 ends the worker process")
    assert "exit code 7" in checks["blame"].problems[0]


def test_a_slow_row_is_found(checked):
    checks = checked("slow", ("1", "1"), ("slow", "2"), ("3", "3"), timeout=2.0)
    assert checks["time-out"].problems == ("row 2 takes longer than the time-out of 2 s",)
    assert broken(checks) == ["time-out"]


@pytest.mark.parametrize(
    ("name", "input_name"),
    [
        ("raises", "an empty response"),
        ("batch_raises", "an empty response"),
        ("executes", "code that ends the process"),
        ("not_a_number", "with nan"),
        ("slow_on_long_text", "1 MB"),
        ("needs_reference", "without a reference"),
    ],
)
def test_bad_input_that_a_verifier_cannot_take_is_named(checked, name, input_name):
    checks = checked(name, ("1", "1"), timeout=2.0)
    assert "bad input" in broken(checks)
    assert any(input_name in problem for problem in checks["bad input"].problems), checks["bad input"]


def test_details_that_are_no_json_are_found(checked):
    assert "set" in checked("odd_details")["results"].problems[0]


@pytest.mark.parametrize(
    ("result", "says"),
    [
        (float("nan"), "the score is nan"),
        ({"score": float("inf")}, "the score is inf"),
        ([1.0], "invalid_result"),
        ({"score": 1.0, "details": {"x": object()}}, "details are not JSON"),
        ({"score": 1.0, "details": {"x": float("nan")}}, "details are not JSON"),
        ({"score": 1.0, "details": {"x": "y" * 200_000}}, "characters long"),
        ({"score": 1.0, "extracted": lambda: 0}, "cannot be pickled"),
    ],
)
def test_what_cannot_be_stored_is_named(result, says):
    assert any(says in problem for problem in problems_of(result))


@pytest.mark.parametrize("result", [True, 0.5, None, {"score": 1.0, "details": {"a": [1, None, "é"]}}])
def test_plain_results_have_no_problem(result):
    assert problems_of(result) == []


def test_verdicts_are_the_same_by_what_they_say():
    one = Verdict("partial", 0.5, "half", "a", {"x": 1 / 3}, {"pid": 1}, seconds=1.0)
    assert same(one, Verdict("partial", 0.5, "half", "a", {"x": 1 / 3}, {"pid": 2}, seconds=9.0))
    for other in (
        Verdict("partial", 0.6, "half", "a", {"x": 1 / 3}),
        Verdict("partial", 0.5, "most", "a", {"x": 1 / 3}),
        Verdict("partial", 0.5, "half", "b", {"x": 1 / 3}),
        Verdict("partial", 0.5, "half", "a", {}),
        Verdict("unverified", None, "half", "a", {"x": 1 / 3}),
    ):
        assert not same(one, other)


def test_nothing_to_check_is_refused():
    with pytest.raises(ValueError, match="0 cases"):
        contract(VerifierSpec(name="exact"), [], [])


def test_a_case_is_what_a_verifier_sees(file, tmp_path):
    echo = tmp_path / "echo.py"
    echo.write_text("def score(**sample):\n    return {'score': 1.0, 'details': sample}\n")
    case = make_case("row 1", "yes", {"a": 1}, prompt="Is it?", finish_reason="length", tokens=3, metadata={"level": 2})
    (verdict,) = score(VerifierSpec(name=f"{echo}:score"), [case], workers=1, start_deadline=START)
    assert json.loads(json.dumps(verdict.details)) == {
        "response": "yes",
        "reference": {"a": 1},
        "prompt": "Is it?",
        "prompt_id": "row 1",
        "finish_reason": "length",
        "token_count": 3,
        "level": 2,
    }


def test_of_an_isolated_verifier_the_verdicts_are_looked_at_and_nothing_is_called_outside():
    from rlpost.verify.contract import _replies
    from rlpost.verify.protocol import Traits, to_verdict

    rows = [(make_case("row 1", "x"), to_verdict(1.0)), (make_case("row 2", "x"), to_verdict([1, 2]))]
    check, deterministic = _replies(rows, Traits(isolate=True, deterministic=False))
    assert (len(check.problems), deterministic) == (1, False)
    assert check.problems[0].startswith("row 2: invalid_result")
