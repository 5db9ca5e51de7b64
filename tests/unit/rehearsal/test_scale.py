"""What a rehearsal leaves of a run: of several parts two, of everything else what the user wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.cluster import placement_plan
from rlpost.config import Config, load, parse
from rlpost.rehearsal.scale import LABEL, TOKENS, parts, scaled
from tests.conftest import ROOT, tiny

FILES = sorted(path.stem for path in (ROOT / "configs").glob("*gpu*.yaml"))


def small(config: Config) -> tuple[Config, dict[str, tuple[Any, Any]]]:
    made, changes = scaled(config, Path("/small/model"), Path("/small/runs"))
    return made, {change.key: (change.was, change.now) for change in changes}


def on_gpus(**changes: Any) -> Config:
    """The tiny configuration on GPUs, with these keys of the sections in place of its own."""
    given = {"model": {"dtype": "bfloat16"}, "cluster": {"gpus_per_node": 8}, "learner": {"layout": "packed"}}
    for section, keys in changes.items():
        given[section] = {**given.get(section, {}), **keys}
    return parse(tiny(**given))


@pytest.mark.parametrize("file", FILES)
def test_what_is_shipped_for_gpus_is_made_small_and_stays_what_it_is(file: str) -> None:
    config = load([ROOT / "configs" / f"{file}.yaml"])
    now, _ = small(config)
    for was, few in (
        (config.rollout.engines, now.rollout.engines),
        (config.rollout.tensor_parallel, now.rollout.tensor_parallel),
        (config.learner.ranks, now.learner.ranks),
        (config.cluster.nodes, now.cluster.nodes),
    ):
        assert few == min(was, 2)
    assert now.on_gpu
    assert now.weight_transfer == config.weight_transfer
    for kept in ("objective", "routing", "alarms"):
        assert getattr(now, kept) == getattr(config, kept)
    for kept in (
        "zero_stage",
        "layout",
        "optimizer_steps_per_batch",
        "gradient_checkpointing",
        "schedule",
        "warmup_steps",
    ):
        assert getattr(now.learner, kept) == getattr(config.learner, kept)
    for kept in ("max_staleness", "temperature", "dtype", "prefix_caching"):
        assert getattr(now.rollout, kept) == getattr(config.rollout, kept)
    assert (now.model.dtype, now.model.attention) == (config.model.dtype, config.model.attention)
    assert now.cluster.colocate == config.cluster.colocate
    rows = config.learner.tokens_per_micro_batch // config.learner.longest
    assert now.learner.tokens_per_micro_batch // now.learner.longest == min(rows, 2)  # attention over several rows
    assert now.rollout.max_tokens == TOKENS


def test_every_key_that_differs_is_told() -> None:
    config = load([ROOT / "configs" / "qwen2.5_7b_math_8gpu.yaml"])
    now, told = small(config)
    was, is_ = config.model_dump(mode="json"), now.model_dump(mode="json")

    def differing(before: Any, after: Any, key: str) -> list[str]:
        if isinstance(before, dict) and isinstance(after, dict):
            names = before.keys() | after.keys()
            return [k for n in names for k in differing(before.get(n), after.get(n), f"{key}.{n}".lstrip("."))]
        return [key] if before != after else []

    untold = set(differing(was, is_, "")) - told.keys()
    # Where it is written to, and what only `rlpost plan` reads.
    assert untold <= {
        "name",
        "runs_dir",
        "observe.sinks",
        "observe.console",
        "model.parameters",
        "cluster.gpu_memory_gb",
    }


def test_a_bundle_of_each_part_fits_on_the_nodes() -> None:
    config = load([ROOT / "configs" / "qwen3_30b_a3b_math_32gpu.yaml"])
    now, _ = small(config)
    bundles = [bundle["GPU"] for bundle in placement_plan(now)["bundles"]]
    assert bundles == [2, 2, 1, 1]
    assert now.cluster.gpus_per_node == 3  # an engine and a rank on each node: both cross from one to the other


@given(
    engines=st.integers(1, 9), width=st.sampled_from([1, 2, 4, 8]), ranks=st.integers(1, 9), nodes=st.integers(1, 4),
    colocate=st.booleans(),
)  # fmt: skip
def test_parts_never_fall_below_two_where_there_are_more(
    engines: int, width: int, ranks: int, nodes: int, colocate: bool
) -> None:
    if colocate:
        engines, width = ranks, 1
    config = on_gpus(
        cluster={"gpus_per_node": 99, "nodes": nodes, "colocate": colocate},
        rollout={"engines": engines, "tensor_parallel": width},
        learner={"ranks": ranks, "layout": "packed", "prompts_per_step": 16},
    )
    few = parts(config)
    for name, was in (("engines", engines), ("tensor_parallel", width), ("ranks", ranks), ("nodes", nodes)):
        assert few[name] == min(was, 2)
    free = [few["gpus_per_node"]] * few["nodes"]
    for bundle in sorted((b["GPU"] for b in placement_plan(small(config)[0])["bundles"]), reverse=True):
        free.sort()
        assert free[-1] >= bundle
        free[-1] -= bundle


def test_rows_that_must_hold_a_pair_still_do() -> None:
    config = on_gpus(learner={"tokens_per_micro_batch": 512, "layout": "packed"}, rollout={"max_tokens": 200})
    now, _ = small(config)
    assert now.learner.tokens_per_micro_batch == 2 * now.max_sequence_tokens


def test_the_scorer_of_a_rehearsal_scores_every_source_and_judges_none() -> None:
    config = on_gpus()
    own = parse(
        {**config.model_dump(mode="json"), "data": {
            **config.model_dump(mode="json")["data"],
            "train": {**tiny()["data"]["train"], "verifiers": ["countdown"]},
        }}
    )  # fmt: skip
    now, _ = small(own)
    assert [v.label for v in now.verifiers] == ["countdown", LABEL]
    assert now.data.train_sources[""].verifiers == ["countdown", LABEL]
    assert now.judge_of(now.data.train_sources[""]) == "countdown"


def test_a_configuration_for_cpus_stays_one() -> None:
    now, _ = small(parse(tiny(rollout={"engines": 3}, learner={"ranks": 2})))
    assert (now.on_gpu, now.rollout.engines, now.learner.ranks, now.weight_transfer) == (False, 2, 2, "object_store")
