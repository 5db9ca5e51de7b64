"""Reward functions in the forms of other trainers, called as verifiers are called."""

from __future__ import annotations

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from rlpost.config import VerifierSpec
from rlpost.verify import VerifierError, to_verdict
from rlpost.verify.adapters import from_openrlhf, from_reasoning_gym, from_trl, from_verl, scored_by
from rlpost.verify.contract import make_case, score
from rlpost.verify.protocol import bind

SAMPLE = {
    "response": "it is 72",
    "reference": "72",
    "prompt": "How many?",
    "prompt_id": "p1",
    "finish_reason": "stop",
    "token_count": 3,
    "metadata": {"data_source": "gsm8k", "level": 2},
}


def verdict(verify, params=None, **changes):
    """What the pool makes of it: bound by name, awaited, turned into a verdict."""
    result = bind("adapted", verify, params or {})({**SAMPLE, **changes})
    if inspect.isawaitable(result):

        async def value():
            return await result

        result = asyncio.run(value())
    return to_verdict(result)


# ---------------------------------------------------------------------------------------------------------------- verl


def test_a_verl_function_gets_the_reference_as_ground_truth_and_its_columns():
    given = {}

    def compute_score(data_source, solution_str, ground_truth, extra_info=None, **kwargs):
        given.update(source=data_source, extra=extra_info, more=kwargs)
        return float(solution_str.endswith(ground_truth))

    assert verdict(from_verl(compute_score)).status == "correct"
    assert given == {"source": "gsm8k", "extra": None, "more": {}}
    assert verdict(from_verl(compute_score), response="no", metadata={"extra_info": {"a": 1}}).status == "wrong"
    assert given == {"source": "", "extra": {"a": 1}, "more": {}}


def test_a_verl_dict_becomes_score_components_and_details():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        return {"score": np.float32(0.5), "acc": True, "length": 3, "pred": "72"}

    found = verdict(from_verl(compute_score))
    assert (found.status, found.score) == ("partial", 0.5)
    assert found.components == {"acc": 1.0, "length": 3.0}
    assert found.details == {"pred": "72"}


def test_a_verl_function_may_be_async_and_take_parameters():
    async def compute_score(data_source, solution_str, ground_truth, extra_info=None, bonus=0.0):
        await asyncio.sleep(0)
        return bonus

    assert verdict(from_verl(compute_score), {"bonus": 0.25}).score == 0.25


def test_what_a_reward_function_raises_is_not_a_reward():
    def compute_score(data_source, solution_str, ground_truth, extra_info=None):
        raise KeyError("broken")

    with pytest.raises(KeyError):
        verdict(from_verl(compute_score))
    with pytest.raises(VerifierError, match="it must have 'score'"):
        verdict(from_verl(lambda data_source, solution_str, ground_truth: {"reward": 1.0}))


# ----------------------------------------------------------------------------------------------------------------- TRL


def test_a_trl_function_gets_a_batch_of_one_with_its_columns():
    given = {}

    def reward(prompts, completions, solution, level, **kwargs):
        given.update(prompts=prompts, completions=completions, solution=solution, level=level, more=sorted(kwargs))
        return [1.0 if c.endswith(s) else 0.0 for c, s in zip(completions, solution, strict=True)]

    assert verdict(from_trl(reward)).status == "correct"
    more = given.pop("more")
    assert given == {"prompts": ["How many?"], "completions": ["it is 72"], "solution": ["72"], "level": [2]}
    assert {"data_source", "token_count", "reference"} <= set(more)


def test_a_trl_function_gets_only_what_it_names():
    def reward(completions, answer):
        return [completions == ["it is 72"] and answer == ["72"]]

    assert verdict(from_trl(reward, reference="answer")).status == "correct"


def test_a_trl_function_may_expect_chat_messages():
    def reward(prompts, completions):
        return [float(completions[0][0]["content"] == "it is 72" and prompts[0][-1]["role"] == "user")]

    assert verdict(from_trl(reward, conversational=True)).status == "correct"


def test_none_of_a_trl_function_is_unverified():
    assert verdict(from_trl(lambda completions: [None])).status == "unverified"


def test_a_trl_function_that_cannot_be_served_is_refused_by_name():
    def by_length(completions, completion_ids):
        return [float(len(ids)) for ids in completion_ids]

    def two(completions):
        return [1.0, 0.0]

    def other(completions, difficulty):
        return [1.0]

    with pytest.raises(VerifierError, match=r"by_length needs completion_ids"):
        from_trl(by_length)
    with pytest.raises(VerifierError, match="two returned 2 values for one sample"):
        verdict(from_trl(two))
    with pytest.raises(VerifierError, match=r"other needs difficulty.*data\.train\.metadata"):
        verdict(from_trl(other))


# -------------------------------------------------------------------------------------------------------- reasoning-gym


def test_a_reasoning_gym_task_scores_by_its_own_scorer():
    import reasoning_gym

    dataset = reasoning_gym.create_dataset("chain_sum", seed=1, size=1)
    entry = dataset[0]
    for task in ("chain_sum", dataset):
        verify = from_reasoning_gym(task)
        assert verdict(verify, response=entry["answer"], metadata={"entry": entry}).status == "correct"
        assert verdict(verify, response=f"<answer>{entry['answer']}</answer>", reference=entry).status == "correct"
        assert verdict(verify, response="no idea", metadata={"entry": entry}).status != "correct"


def test_a_scorer_broken_by_the_response_is_wrong_and_a_broken_scorer_is_not():
    def picky(answer, entry):
        return float(int(answer) == int(entry["answer"]))

    verify = from_reasoning_gym(SimpleNamespace(score_answer=picky))
    found = verdict(verify, response="seven", metadata={"entry": {"answer": "7"}})
    assert (found.status, found.reason) == ("wrong", "scorer_failed")
    with pytest.raises(ValueError, match="invalid literal"):
        verdict(verify, response="seven", metadata={"entry": {"answer": "sieben"}})
    with pytest.raises(VerifierError, match="needs the row's entry"):
        verdict(verify)
    with pytest.raises(VerifierError, match="neither a reasoning-gym data set"):
        from_reasoning_gym(3)


# ------------------------------------------------------------------------------------------------------------ OpenRLHF


def test_an_openrlhf_function_gets_queries_prompts_and_labels():
    given = {}

    def reward_func(queries, prompts, labels, **kwargs):
        given.update(queries=queries, prompts=prompts, labels=labels, more=kwargs)
        rewards = np.array([float(q.endswith(a)) for q, a in zip(queries, labels, strict=True)])
        return {"rewards": rewards, "scores": rewards, "extra_logs": {"length": np.array([8.0])}}

    found = verdict(from_openrlhf(reward_func))
    assert (found.status, found.components) == ("correct", {"length": 8.0, "scores": 1.0})
    assert given == {"queries": ["How many?it is 72"], "prompts": ["How many?"], "labels": ["72"], "more": {}}


def test_an_openrlhf_function_may_return_the_rewards_alone():
    assert verdict(from_openrlhf(lambda queries, prompts, labels: np.array([0.5]))).score == 0.5
    with pytest.raises(VerifierError, match="it must have 'rewards'"):
        verdict(from_openrlhf(lambda queries, prompts, labels: {"scores": [1.0]}))


# ----------------------------------------------------------------------------------------------------------- in a file


def test_an_adapted_function_runs_in_the_pool_and_may_be_named_as_file_and_function(tmp_path: Path):
    theirs = tmp_path / "theirs.py"
    theirs.write_text(
        "def compute_score(data_source, solution_str, ground_truth):\n    return solution_str == ground_truth\n"
    )
    mine = tmp_path / "mine.py"
    mine.write_text(f"from rlpost.verify.adapters import from_verl\n\nscore = from_verl('{theirs}:compute_score')\n")
    cases = [make_case("row 1", "72", "72"), make_case("row 2", "71", "72")]
    verdicts = score(VerifierSpec(name=f"{mine}:score"), cases, workers=1, start_deadline=60.0)
    assert [v.status for v in verdicts] == ["correct", "wrong"]


def test_what_is_no_function_is_refused():
    with pytest.raises(VerifierError, match="3 is not a function"):
        from_verl(3)


@pytest.mark.parametrize(
    ("response", "answer"),
    [
        ("<think><answer>7</answer></think>I give up.", "I give up."),
        ("<think><answer>7</answer> wait", ""),
        ("<think>hm</think>7", "7"),
        ("<reasoning><answer>8</answer></reasoning><answer> 7 </answer>", "7"),
        ("<answer>7</answer> or <answer>8", ""),
    ],
)
def test_a_scorer_of_reasoning_gym_gets_what_was_answered_and_not_what_was_thought(response, answer):
    given = []
    scored_by(lambda answer, entry: given.append(answer) or 0.0, response, {"answer": "7"})
    assert given == [answer]
