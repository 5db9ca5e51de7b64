"""Records that travel refuse what cannot be learned from, and name the sample."""

from __future__ import annotations

import numpy as np
import pytest

from rlpost.types import Rollout, Verdict


def rollout(**changes: object) -> Rollout:
    parts = {
        "prompt_ids": np.arange(3, dtype=np.int32),
        "response_ids": np.arange(2, dtype=np.int32),
        "logprobs": np.array([-0.5, -1.0], np.float32),
        "versions": np.zeros(2, np.int32),
        "finish_reason": "stop",
        "text": "",
        "seed": 0,
    }
    return Rollout("p", 4, 7, **{**parts, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"logprobs": np.zeros(1, np.float32)}, "2 response tokens but 1 log-probs"),
        ({"versions": np.zeros(3, np.int32)}, "3 weight versions"),
        ({"logprobs": np.array([-0.5, np.nan], np.float32)}, "log-probs of 1 of 2 tokens are not finite"),
        ({"logprobs": np.array([-np.inf, np.inf], np.float32)}, "log-probs of 2 of 2 tokens are not finite"),
    ],
)
def test_a_rollout_that_is_not_aligned_or_no_number_is_refused_by_its_sample(changes, says):
    assert rollout().usable is False, "not scored yet"
    with pytest.raises(ValueError, match=says) as error:
        rollout(**changes)
    assert "p#7" in str(error.value)


def test_what_is_empty_aborted_or_without_a_verdict_is_never_learned_from():
    assert rollout(reward=1.0).usable
    nothing = {
        "response_ids": np.zeros(0, np.int32),
        "logprobs": np.zeros(0, np.float32),
        "versions": np.zeros(0, np.int32),
    }
    assert not rollout(reward=1.0, **nothing).usable
    assert not rollout(reward=1.0, finish_reason="abort").usable
    assert not rollout(reward=None).usable


@pytest.mark.parametrize("score", [float("nan"), float("inf"), -float("inf")])
def test_a_verdict_is_a_number_or_unverified(score):
    with pytest.raises(ValueError, match="finite"):
        Verdict("right", score)
