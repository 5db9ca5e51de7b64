"""The verifiers of a prompt's source: they alone score it, in their order, and the first is its judge."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from rlpost.config import VerifierPool as Settings
from rlpost.config import VerifierSpec
from rlpost.types import Prompt, Rollout
from rlpost.verify import VerifierPool
from rlpost.verify.protocol import VerifierError
from rlpost.verify.references import checker

MINE = """
def at_least(response, n: int = 1):
    return float(len(response) >= n)

def odd(response, reference=None):
    return float(len(response) % 2)
odd.check = lambda reference: None if reference else "nothing to compare with"
"""
IDS = np.ones(1, np.int32)


@pytest.fixture(scope="module")
def specs(tmp_path_factory) -> list[VerifierSpec]:
    path = tmp_path_factory.mktemp("mine") / "mine.py"
    path.write_text(MINE)
    given = [
        {"name": f"{path}:at_least", "label": "one"},
        {"name": f"{path}:at_least", "label": "four", "n": 4, "weight": 10.0},
        {"name": f"{path}:odd", "label": "odd", "weight": 100.0, "when": {"kind": "x"}},
    ]
    return [VerifierSpec.model_validate(values) for values in given]


@pytest.fixture(scope="module")
def pool(specs):
    with VerifierPool(specs, Settings(workers=1)) as started:
        yield started


def scored(pool: VerifierPool, *labels: str, **metadata: str) -> Rollout:
    prompt = Prompt("p", "", IDS, reference="r", metadata=metadata, verifiers=labels)
    rollout = Rollout("p", 0, 0, IDS, IDS, IDS.astype(np.float32), IDS, "stop", "abc", 0)
    return pool.submit(rollout, prompt).result(timeout=60)


def test_one_verifier_stands_twice_under_two_labels_with_parameters_of_their_own(pool):
    found = scored(pool)
    assert {label: v.score for label, v in found.verdicts.items()} == {"one": 1.0, "four": 0.0}
    assert (found.reward, found.judged().status) == (1.0, "correct")
    assert {"verifier/one/cache_hits", "verifier/four/cache_hits"} <= pool.stats().keys()


def test_only_the_verifiers_of_the_source_score_and_reward_and_the_first_of_them_judges(pool):
    assert list(scored(pool, "four", "one").verdicts) == ["four", "one"]
    assert scored(pool, "four", "one").judged().status == "wrong"
    alone = scored(pool, "four")
    assert (list(alone.verdicts), alone.reward) == (["four"], 0.0)


def test_a_judge_that_does_not_apply_to_a_row_leaves_it_to_the_next_of_the_source(pool):
    row = scored(pool, "odd", "one", kind="x")
    assert (list(row.verdicts), row.reward) == (["odd", "one"], 101.0)
    other = scored(pool, "odd", "one", kind="y")
    assert (list(other.verdicts), other.reward) == (["one"], 1.0)
    none = scored(pool, "odd", kind="y")
    assert (none.reward, none.judged().reason) == (None, "no_verifier")


def test_a_label_that_is_not_there_is_an_error_that_names_it(pool):
    with pytest.raises(
        VerifierError, match="prompt 'p' is scored by 'two', which is not among the verifiers: one, four"
    ):
        scored(pool, "two")


def test_rows_are_checked_by_the_verifiers_of_their_source(specs):
    bare = Prompt("p", "", IDS, metadata={"kind": "x"})
    asked = [replace(bare, verifiers=labels) for labels in ((), ("one",), ("odd",))]
    found = checker(specs, Settings(workers=1))([*asked, replace(asked[2], reference="r")])
    assert found[1].problem is found[3].problem is None
    assert "nothing to compare with" in str(found[0].problem)
    assert "nothing to compare with" in str(found[2].problem)
