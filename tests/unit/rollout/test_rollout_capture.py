"""Routes of a group from what an engine brings: rows cut, checked, and shared between the samples of a prompt."""

from __future__ import annotations

import pickle
import subprocess
import sys

import numpy as np
import pytest

from rlpost.config.checks import refuse_engine_args
from rlpost.rollout.capture import (
    Captured,
    Layout,
    damaged,
    group_routes,
    refuse_dense,
    refuse_version,
)

LAYOUT = Layout(layers=(1, 3), top_k=2, experts=8)


def captured(rows: int, seed: int = 0, layout: Layout = LAYOUT, layers: int = 4) -> np.ndarray:
    """Rows as vLLM gives them: all layers, distinct experts; zeros in layers without experts."""
    rng = np.random.default_rng(seed)
    out = np.zeros((rows, layers, layout.top_k), layout.dtype)
    for layer in layout.layers:
        out[:, layer] = rng.permuted(np.tile(np.arange(layout.experts), (rows, 1)), axis=1)[:, : layout.top_k]
    return out


def group(*samples: Captured | None, prompt: int = 5, layout: Layout = LAYOUT) -> list:
    return group_routes(layout, prompt, samples)


def members(prompt: int, lengths: list[int]) -> list[Captured]:
    """Samples that agree on their prompt's rows."""
    head = captured(prompt, seed=99)
    return [Captured(np.concatenate([head, captured(n - 1, seed=i)]), n) for i, n in enumerate(lengths)]


def joined(routes) -> np.ndarray:
    return np.concatenate([routes.shared, routes.own])


def test_the_module_needs_no_vllm():
    code = "import sys, rlpost.rollout.capture; sys.exit(any(m.split('.')[0] in ('vllm', 'torch', 'ray') for m in sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_only_layers_with_experts_are_kept_and_every_row_stays_in_place():
    samples = members(5, [3, 7])
    for routes, sample in zip(group(*samples), samples, strict=True):
        assert (joined(routes) == sample.rows[:, [1, 3]]).all()
        assert len(routes) == 5 + sample.length - 1
        assert routes.valid.all()


def test_a_prompt_is_stored_once_for_its_group():
    made = group(*members(200, [3, 4, 5, 6]), prompt=200)
    assert len({id(r.shared) for r in made}) == 1
    assert len(made[0].shared) == 200
    assert len({id(r.shared) for r in pickle.loads(pickle.dumps(made))}) == 1
    assert len(pickle.dumps(made)) < 2 * made[0].shared.nbytes + sum(len(r.valid) for r in made)


def test_samples_with_other_rows_of_the_prompt_share_among_themselves_and_take_nothing_from_the_rest():
    samples = members(6, [3, 4, 3, 5, 3])
    for i in (1, 3):  # two that waited through a weight update
        samples[i].rows[:6] = captured(6, seed=50)
    samples[2].rows[5, 3] = (samples[2].rows[5, 3] + 1) % 8  # one computed again, that chose another expert once
    made = group(*samples, prompt=6)
    first, second, alone = made[0].shared, made[1].shared, made[2].shared
    assert [id(r.shared) for r in made] == [id(x) for x in (first, second, alone, second, first)]
    assert len({id(first), id(second), id(alone)}) == 3
    for routes, sample in zip(made, samples, strict=True):
        assert (joined(routes) == sample.rows[:, [1, 3]]).all()
        assert routes.valid.all()
        assert len(routes.shared) == 6


def test_whoever_was_given_up_has_none_and_the_others_still_share():
    samples = members(6, [3, 3])
    made = group(None, *samples, None, prompt=6)
    assert made[0] is made[3] is None
    assert made[1].shared is made[2].shared
    assert len(made[1].shared) == 6
    assert group(None, None) == [None, None]


@pytest.mark.parametrize(
    "rows",
    [None, captured(6), captured(8), captured(7)[:, :3], captured(7)[..., :1], captured(7)[0]],
    ids=["none", "short", "long", "layers", "top_k", "flat"],
)
def test_rows_of_another_shape_are_no_rows_at_all(rows):
    good = Captured(captured(7), 3)
    made = group(Captured(rows, 3), good)
    assert len(made[0]) == 7
    assert not made[0].valid.any()
    assert made[1].valid.all()
    assert len(made[1].shared) == 5


def test_a_row_with_an_expert_twice_or_out_of_range_is_marked_and_only_that():
    rows = captured(7)
    rows[2, 1] = rows[2, 1, 0]  # twice
    rows[5, 3, 1] = 8  # no such expert
    rows[6, 0] = 77  # a layer without experts: nobody looks
    assert group(Captured(rows, 3))[0].valid.tolist() == [True, True, False, True, True, False, True]


def test_rows_that_were_never_written_are_marked():
    assert not group(Captured(np.zeros((7, 4, 2), np.uint8), 3))[0].valid.any()


def test_with_one_expert_a_token_only_a_sequence_of_zeros_is_suspicious():
    layout = Layout(layers=(0, 1), top_k=1, experts=4)
    rows = np.zeros((7, 2, 1), np.uint8)
    assert not group(Captured(rows, 3), layout=layout)[0].valid.any()
    rows[3, 1] = 2
    assert group(Captured(rows, 3), layout=layout)[0].valid.all()
    single = Layout(layers=(0, 1), top_k=1, experts=1)
    assert group(Captured(np.zeros((7, 2, 1), np.uint8), 3), layout=single)[0].valid.all()


@pytest.mark.parametrize(("experts", "dtype"), [(8, np.uint8), (256, np.uint8), (257, np.uint16), (512, np.uint16)])
def test_experts_take_the_narrowest_type_that_holds_them(experts, dtype):
    layout = Layout(layers=(0,), top_k=3, experts=experts)
    rows = np.tile(np.array([experts - 3, experts - 2, experts - 1], layout.dtype), (7, 1, 1))
    routes = group(Captured(rows, 3), layout=layout)[0]
    assert routes.own.dtype == routes.shared.dtype == dtype
    assert routes.valid.all()
    assert (joined(routes) == rows).all()


def test_a_prompt_of_one_token_and_a_response_of_one():
    made = group(*[Captured(captured(1), 1)] * 2, prompt=1)
    assert len(made[0]) == 1
    assert made[0].shared is made[1].shared


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("pipeline_parallel_size", 2),
        ("decode_context_parallel_size", 2),
        ("prefill_context_parallel_size", 4),
        ("kv_transfer_config", {"kv_connector": "LMCacheConnectorV1"}),
        ("kv_offloading_size", 1),
        ("speculative_config", {"method": "ngram"}),
        ("enable_dbo", True),
        ("ubatch_size", 2),
        ("kv_sharing_fast_prefill", True),
        ("enable_return_routed_experts", False),
    ],
)
def test_engine_args_under_which_rows_can_be_wrong_are_refused_by_name(key, value):
    with pytest.raises(ValueError) as error:
        refuse_engine_args({"max_num_batched_tokens": 4096, key: value})
    assert f"rollout.engine_args.{key}: {value!r}" in str(error.value)
    assert "routing.replay: off" in str(error.value)


def test_other_engine_args_pass_and_so_do_defaults_spelled_out():
    refuse_engine_args(
        {
            "max_num_batched_tokens": 4096,
            "pipeline_parallel_size": 1,
            "decode_context_parallel_size": None,
            "kv_transfer_config": None,
            "kv_offloading_size": None,
            "speculative_config": None,
            "enable_dbo": False,
            "ubatch_size": 0,
            "enable_return_routed_experts": True,
            "enable_expert_parallel": True,
        }
    )


def test_only_versions_that_were_tried_are_taken():
    refuse_version("0.30.0")
    refuse_version("0.30.1+cpu")
    for version in ("0.29.3", "0.31.0", "0.3.0", "1.0.0"):
        with pytest.raises(ValueError, match=f"vLLM {version} has never been tried with captured routes"):
            refuse_version(version)


def test_a_dense_model_is_refused_by_name():
    refuse_dense(1, "m")
    with pytest.raises(ValueError, match=r"model some/path has no experts"):
        refuse_dense(0, "some/path")


def test_failpoints_damage_rows_at_their_version_alone(monkeypatch):
    rows = captured(7)
    assert damaged(rows, 3) is rows
    monkeypatch.setenv("RLPOST_FAULTS", "routes.drop@step=3,routes.zero@step=4,routes.shift@step=5")
    assert damaged(rows, 2) is rows
    assert damaged(rows, 3) is None
    assert not damaged(rows, 4).any()
    assert (damaged(rows, 5)[1:] == rows[:-1]).all()
