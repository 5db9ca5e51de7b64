from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest

from rlpost.config import VerifierSpec
from rlpost.types import Verdict
from rlpost.verify import VerifierError, resolve, to_verdict, verifier
from rlpost.verify.protocol import Traits, bind, load

SAMPLE = {
    "response": "4",
    "reference": "4",
    "prompt": "2+2=",
    "prompt_id": "p1",
    "finish_reason": "stop",
    "token_count": 1,
    "metadata": {"level": 3, "pattern": "from the row"},
}


@pytest.mark.parametrize(
    ("returned", "status", "score"),
    [
        (True, "correct", 1.0),
        (False, "wrong", 0.0),
        (np.bool_(True), "correct", 1.0),
        (1, "correct", 1.0),
        (1.5, "correct", 1.5),
        (0.25, "partial", 0.25),
        (Fraction(1, 4), "partial", 0.25),
        (np.float32(0.5), "partial", 0.5),
        (0.0, "wrong", 0.0),
        (-1.0, "wrong", -1.0),
        (None, "unverified", None),
        ({"score": 0.5}, "partial", 0.5),
        ({"score": True}, "correct", 1.0),
        ({"score": None, "reason": "bad_reference"}, "unverified", None),
        ({"score": 0.3, "status": "correct"}, "correct", 0.3),
    ],
)
def test_what_a_verifier_may_return_has_one_meaning(returned, status, score):
    verdict = to_verdict(returned)
    assert (verdict.status, verdict.score) == (status, score)


@pytest.mark.parametrize(
    ("returned", "named"),
    [
        (float("nan"), "nan"),
        (float("inf"), "inf"),
        ("correct", "str"),
        ([1.0], "list"),
        ({}, "score"),
        ({"score": 1.0, "acc": 1.0}, "acc"),
        ({"score": "1"}, "str"),
        ({"score": None, "status": "correct"}, "correct"),
        ({"score": 1.0, "status": "unverified"}, "unverified"),
        ({"score": 1.0, "status": "great"}, "great"),
        ({"score": 1.0, "components": {"a": float("nan")}}, "components"),
        ({"score": 1.0, "details": "text"}, "details"),
    ],
)
def test_anything_else_is_unverified_and_named(returned, named):
    verdict = to_verdict(returned)
    assert verdict.status == "unverified"
    assert verdict.score is None
    assert verdict.reason.startswith("invalid_result")
    assert named in verdict.reason


def test_a_dict_keeps_what_is_worth_a_look_later():
    verdict = to_verdict(
        {"score": 0.5, "reason": "half", "extracted": 4, "components": {"a": 1}, "details": {"k": [1]}}
    )
    assert verdict == Verdict("partial", 0.5, "half", "4", {"a": 1.0}, {"k": [1]})


def test_a_verdict_stays_what_it_is():
    verdict = Verdict("wrong", 0.0, "mismatch", extracted="5")
    assert to_verdict(verdict) == verdict


def test_a_long_extract_of_the_response_is_cut():
    assert len(to_verdict({"score": 1.0, "extracted": "x" * 10**6}).extracted or "") < 10_000


def test_arguments_are_injected_by_name():
    def verify(level, response, *, reference, pattern, missing="default"):
        return [level, response, reference, pattern, missing]

    assert bind("v", verify, {"pattern": "from the spec"})(SAMPLE) == [3, "4", "4", "from the spec", "default"]


def test_kwargs_get_the_whole_sample():
    def verify(response, **sample):
        return sample

    got = bind("v", verify, {"limit": 7})(SAMPLE)
    assert got == {
        "reference": "4",
        "prompt": "2+2=",
        "prompt_id": "p1",
        "finish_reason": "stop",
        "token_count": 1,
        "level": 3,
        "pattern": "from the row",
        "limit": 7,
    }


def test_a_parameter_the_verifier_does_not_take_is_refused_at_load():
    with pytest.raises(VerifierError, match=r"'exact' takes no 'patern'; its arguments are response, pattern"):
        bind("exact", lambda response, pattern="": True, {"patern": "x"})


def test_a_parameter_cannot_replace_a_field_of_the_sample():
    with pytest.raises(VerifierError, match="'response' is filled from each sample"):
        bind("v", lambda response: True, {"response": "x"})


def test_positional_arguments_are_refused_at_load():
    def positional(response, /):
        return True

    with pytest.raises(VerifierError, match="'response' cannot be filled by name"):
        bind("v", positional, {})
    with pytest.raises(VerifierError, match="cannot be filled by name"):
        bind("v", lambda *arguments: True, {})


def test_an_argument_the_sample_lacks_is_named_with_what_there_is():
    with pytest.raises(VerifierError, match=r"'v' needs difficulty, which this sample does not have \(it has .*level"):
        bind("v", lambda difficulty: True, {})(SAMPLE)


def test_a_name_belongs_to_one_function():
    @verifier("test_protocol_twice")
    def first(response):
        return True

    with pytest.raises(VerifierError, match="'test_protocol_twice' is registered twice"):

        @verifier("test_protocol_twice")
        def second(response):
            return False


def samples(*responses):
    return [{**SAMPLE, "response": text} for text in responses]


def test_a_batched_verifier_gets_the_samples_and_its_parameters():
    def verify_batch(samples, limit):
        return [(s["response"], s["level"], limit) for s in samples]

    bound = load("v", verify_batch, {"limit": 7})
    assert bound.traits.mode == "batch"
    assert bound.call(samples("a", "b")) == [("a", 3, 7), ("b", 3, 7)]


def test_verify_batch_beside_verify_is_what_is_called(tmp_path):
    path = tmp_path / "both.py"
    path.write_text(
        "def verify(response): return 'one'\ndef other(response): return 'other'\n"
        "def verify_batch(samples): return ['batch'] * len(samples)\n"
    )
    assert load("v", resolve(f"{path}:verify"), {}).call(samples("a", "b")) == ["batch", "batch"]
    assert load("v", resolve(f"{path}:other"), {}).call(samples("a")) == ["other"]


def test_a_group_verifier_gets_all_responses_to_a_prompt():
    @verifier("test_protocol_group", group=True)
    def spread(responses, reference, level, finish_reasons, token_counts):
        return list(zip(responses, [reference, level], finish_reasons, token_counts, strict=True))

    bound = load("v", spread, {})
    assert bound.traits.mode == "group"
    assert bound.call(samples("a", "b")) == [("a", "4", "stop", 1), ("b", 3, "stop", 1)]


@pytest.mark.parametrize(
    ("result", "named"),
    [([1.0], "returned 1 results for 2 samples"), (1.0, "returned float for 2 samples"), ("ab", "returned str")],
)
def test_as_many_results_as_samples_or_an_error(result, named):
    with pytest.raises(VerifierError, match=named):
        load("v", batched(result), {}).call(samples("a", "b"))


def batched(result):
    def verify_batch(samples):
        return result

    return verify_batch


def test_traits_are_read_off_the_function():
    @verifier("test_protocol_traits", deterministic=False, service=True, version=3)
    def asks(response, verdicts):
        return verdicts["exact"]

    bound = load("v", asks, {"of": ["exact"]})
    assert bound.traits == Traits("single", dependent=True, deterministic=False, service=True, version="3")
    assert bound.call([{**SAMPLE, "verdicts": {"exact": 0.5}}]) == [0.5]


def test_the_version_is_a_digest_of_the_file_unless_it_is_given(tmp_path):
    versions = []
    for name, text in (("a", "return True"), ("b", "return True"), ("c", "return False")):
        path = tmp_path / f"versioned_{name}.py"
        path.write_text(f"def verify(response): {text}\n")
        versions.append(load("v", resolve(f"{path}:verify"), {}).traits.version)
    assert versions[0] == versions[1] != versions[2]
    assert versions[0]


def test_an_argument_called_timeout_is_the_time_there_is():
    assert load("v", lambda timeout: timeout, {}, 7.5).call(samples("a")) == [7.5]


def test_a_time_out_below_what_the_verifier_allows_itself_is_refused_under_whatever_name(tmp_path):
    """An alias of `code` does not have the time-out that the configuration gives to that name."""
    (tmp_path / "own.py").write_text("from rewards.code import verify as second\n")
    name = f"{tmp_path}/own.py:second"
    with pytest.raises(
        VerifierError, match=r"second': timeout 10 .* its total_seconds 20, .* set timeout to 30, or 60"
    ):
        load(name, resolve(name), {}, VerifierSpec(name=name).timeout)
    with pytest.raises(VerifierError, match="its total_seconds 100, "):
        load(name, resolve(name), {"total_seconds": 100}, 30.0)
    assert load(name, resolve(name), {}, 30.0).traits.programs
    assert load("code", resolve("code"), {}, VerifierSpec(name="code").timeout).traits.programs


def test_traits_that_cannot_be_are_refused():
    with pytest.raises(VerifierError, match="'batch' is no trait"):
        verifier("test_protocol_unknown", batch=True)

    @verifier("test_protocol_torn", batched=True, group=True)
    def torn(samples, responses):
        return []

    with pytest.raises(VerifierError, match="both batched and group"):
        load("v", torn, {})

    @verifier("test_protocol_blind", group=True)
    def blind(response):
        return []

    with pytest.raises(VerifierError, match="must have an argument 'responses'"):
        load("v", blind, {})


def test_reasons_are_cut():
    assert len(to_verdict({"score": 0.0, "reason": "x" * 10**6}).reason) < 10_000
