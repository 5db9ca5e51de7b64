"""Routes on the driver's side: their record, how a batch carries them, which samples are admitted, what is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from huggingface_hub import constants
from hypothesis import given
from hypothesis import strategies as st

from rlpost import cli, exit_codes
from rlpost.commands import evaluate
from rlpost.commands.plan import routes_plan
from rlpost.config import ConfigError, Experts, load, parse
from rlpost.learner.batch import Batch, _used, make_grid, plan
from rlpost.learner.group import LearnerGroup
from rlpost.meter import Meter
from rlpost.models.architecture import check_experts, experts_of, hf_config
from rlpost.objective import Credit
from rlpost.observe.alarms import Alarm, Watch
from rlpost.routing import DamagedRoutesError, Routes, admitted, bytes_per_token
from rlpost.run.credit import credited
from rlpost.run.start import engine_spec
from rlpost.types import Rollout, Sample
from tests.conftest import tiny

LAYERS, TOP_K, EXPERTS = 2, 2, 8
MOE = {
    "model_type": "qwen3_moe", "hidden_size": 32, "intermediate_size": 32, "moe_intermediate_size": 16,
    "num_hidden_layers": 3, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16,
    "num_local_experts": 8, "num_experts_per_tok": 2, "mlp_only_layers": [0],
}  # fmt: skip


def rows(count: int, start: int = 0) -> np.ndarray:
    """Rows that tell which they are: the first expert of the first layer is the row's number modulo the experts."""
    made = np.zeros((count, LAYERS, TOP_K), np.uint8)
    made[:, :, 0] = (start + np.arange(count))[:, None] % EXPERTS
    made[:, :, 1] = (made[:, :, 0] + 1) % EXPERTS
    return made


def sample(
    shared: np.ndarray, prompt: int, response: int, number: int = 0, valid: np.ndarray | None = None, start: int = 0
) -> Sample:
    count = prompt + response - 1
    marks = np.ones(count, bool) if valid is None else valid
    return Sample(
        prompt_ids=np.arange(1, prompt + 1, dtype=np.int32),
        response_ids=np.arange(1, response + 1, dtype=np.int32),
        source="on_policy",
        group=0,
        number=number,
        logprobs=np.zeros(response, np.float32),
        versions=np.zeros(response, np.int32),
        routes=Routes(shared, rows(count - len(shared), start), marks),
    )


# ------------------------------------------------------------------------------------------------------ the record


def test_a_rollout_refuses_routes_that_are_not_one_row_a_token_but_the_last():
    ids = np.arange(3, dtype=np.int32)
    rollout = Rollout("p", 0, 0, ids, ids, ids.astype(np.float32), ids, "stop", "", 0)
    fits = Routes(rows(2), rows(3), np.ones(5, bool))
    assert replace(rollout, routes=fits).routes is fits
    for wrong in (Routes(rows(2), rows(4), np.ones(6, bool)), Routes(rows(2), rows(2), np.ones(4, bool))):
        with pytest.raises(ValueError, match="one row of routes each but the last"):
            replace(rollout, routes=wrong)


def test_routes_refuse_parts_that_do_not_fit_together():
    with pytest.raises(ValueError, match="differ in dtype, layers or experts"):
        Routes(rows(1), rows(2).astype(np.uint16), np.ones(3, bool))
    with pytest.raises(ValueError, match="differ in dtype, layers or experts"):
        Routes(rows(1)[:, :1], rows(2), np.ones(3, bool))
    with pytest.raises(ValueError, match="3 rows of routes but 2 marks"):
        Routes(rows(1), rows(2), np.ones(2, bool))


# ------------------------------------------------------------------------------------------------------- in a batch


def whole(batch: Batch, i: int) -> list[int | None]:
    """The first expert of each token of sequence i, None where it has no route."""
    assert batch.routes is not None
    assert batch.route_index is not None
    ends = np.cumsum(batch.lengths)
    index = batch.route_index[ends[i] - batch.lengths[i] : ends[i]]
    return [None if k < 0 else int(batch.routes[k, 0, 0]) for k in index]


def test_a_prompts_rows_are_held_once_for_its_samples_and_the_last_token_has_none():
    shared = rows(3)
    batch = Batch.from_samples([sample(shared, 4, 2, i, start=3) for i in range(3)])
    assert batch.routes is not None
    assert len(batch.routes) == 3 + 3 * 2
    for i in range(3):
        assert whole(batch, i) == [0, 1, 2, 3, 4, None]


def test_rows_marked_invalid_and_samples_without_routes_point_nowhere():
    marks = np.array([True, False, True, True])
    bare = replace(sample(rows(1), 2, 2), routes=None)
    batch = Batch.from_samples([sample(rows(2), 3, 2, valid=marks, start=2), bare])
    assert whole(batch, 0) == [0, None, 2, 3, None]
    assert whole(batch, 1) == [None] * 4
    assert Batch.from_samples([bare]).routes is None


@given(data=st.data())
def test_selection_keeps_each_tokens_route_and_only_the_rows_in_use(data: st.DataObject):
    sizes = data.draw(st.lists(st.tuples(st.integers(1, 4), st.integers(1, 4)), min_size=1, max_size=5))
    shared = {prompt: rows(prompt - 1) for prompt, _ in sizes}
    samples = []
    for i, (prompt, response) in enumerate(sizes):
        marks = np.array(
            data.draw(st.lists(st.booleans(), min_size=prompt + response - 1, max_size=prompt + response - 1))
        )
        samples.append(sample(shared[prompt], prompt, response, i, marks.astype(bool), start=i))
    batch = Batch.from_samples(samples)
    chosen = data.draw(st.lists(st.integers(0, len(samples) - 1), min_size=1, max_size=6))
    part = batch.select(chosen)
    assert [whole(part, k) for k in range(len(chosen))] == [whole(batch, i) for i in chosen]
    assert part.routes is not None
    assert len(part.routes) == len({int(k) for k in part.route_index if k >= 0})
    again = part.select(range(len(part)))
    assert [whole(again, k) for k in range(len(part))] == [whole(part, k) for k in range(len(part))]


def test_without_routes_nothing_else_changes():
    batch = Batch.from_samples([sample(rows(3), 4, 2, i) for i in range(2)])
    bare = batch.without_routes()
    assert bare.routes is bare.route_index is None
    assert bare.tokens is batch.tokens
    assert bare.select([1]).routes is None


def test_rows_are_copied_for_the_ranks_alone(monkeypatch: pytest.MonkeyPatch):
    samples = [sample(rows(3), 4, 2, i) for i in range(8)]
    batch = Batch.from_samples(samples)
    copied: list[int] = []

    def counted(given: np.ndarray, index: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        copied.append(len(given))
        return _used(given, index)

    monkeypatch.setattr("rlpost.learner.batch._used", counted)
    config = parse(tiny(learner={"optimizer_steps_per_batch": 4}))
    lesson = credited(batch, samples, Credit(config.objective, 1), step=1, seed=0, max_tokens=8)
    assert copied == []
    assert lesson.batch.routes is batch.routes

    def update(share: Batch, *_: object) -> Meter:
        assert share.routes is not None
        return Meter()

    group = LearnerGroup.__new__(LearnerGroup)
    group.spec, group.deadline = SimpleNamespace(learner=config.learner), 1.0
    group.ranks = [SimpleNamespace(update=SimpleNamespace(remote=update))] * 2
    monkeypatch.setattr("rlpost.learner.group.wait", lambda found, *_: found)
    group.update(lesson.batch, 0)
    assert len(copied) == 2


@pytest.mark.parametrize("layout", ["packed", "padded"])
def test_a_grid_has_each_tokens_route_wherever_the_token_lies(layout: Any):
    samples = [sample(rows(p - 1, start=p), p, r, start=10 * p) for p, r in ((2, 3), (4, 1), (3, 5))]
    batch = Batch.from_samples(samples)
    for micro in plan(batch.lengths, 1, layout, 16, 8 if layout == "packed" else None)[0]:
        grid = make_grid(batch, micro, pad_id=0)
        assert grid.routes is not None
        assert grid.routes.rows.dtype == torch.uint8
        expected = [route for i in micro.sequences for route in whole(batch, i)]
        index = grid.routes.index[grid.real].tolist()
        assert [None if k < 0 else int(grid.routes.rows[k, 0, 0]) for k in index] == expected
        assert (grid.routes.index[~grid.real] == -1).all()
        assert int(grid.real.sum()) == sum(int(batch.lengths[i]) for i in micro.sequences)


def test_more_than_256_experts_travel_as_16_bits():
    wide = [replace(s, routes=Routes(s.routes.shared.astype(np.uint16), s.routes.own.astype(np.uint16) + 300, s.routes.valid))
            for s in [sample(rows(1), 2, 2)] if s.routes is not None]  # fmt: skip
    batch = Batch.from_samples(wide)
    grid = make_grid(batch, plan(batch.lengths, 1, "padded", 16)[0][0], pad_id=0)
    assert grid.routes is not None
    assert grid.routes.rows.dtype == torch.int16
    assert int(grid.routes.rows.max()) > 256


def test_a_batch_may_be_given_a_route_for_every_token():
    batch = Batch.from_samples([replace(sample(rows(1), 2, 2), routes=None)])
    assert whole(batch.routed(rows(4)), 0) == [0, 1, 2, 3]
    with pytest.raises(ValueError, match="route_index has 3 entries, expected 4"):
        batch.routed(rows(3))


# ----------------------------------------------------------------------------------------------- what is admitted


def test_coverage_counts_fed_tokens_and_a_shared_prompt_is_paid_for_once():
    shared = rows(3)
    good = [sample(shared, 4, 2, i) for i in range(2)]
    kept, metrics = admitted(good, "live")
    assert kept == good
    assert metrics == {
        "routing/damaged": 0.0,
        "routing/coverage": 1.0,
        "routing/bytes_per_token": (3 + 2 + 2) * LAYERS * TOP_K / 10,
    }


def test_damaged_samples_go_on_are_masked_or_end_the_run():
    marks = np.array([True, True, False, True, True])
    damaged = [
        sample(rows(3), 4, 2, 0),
        sample(rows(3), 4, 2, 1, marks),
        replace(sample(rows(1), 4, 2, 2), routes=None),
    ]
    kept, metrics = admitted(damaged, "live")
    assert metrics["routing/damaged"] == 2
    assert metrics["routing/coverage"] == pytest.approx(9 / 15)
    assert [s.mask for s in kept] == [None] * 3
    kept, _ = admitted(damaged, "mask")
    assert kept[0].mask is None
    assert not kept[1].mask.any()
    assert not kept[2].mask.any()
    with pytest.raises(DamagedRoutesError, match=r"2 of 3 samples .* first sample 1 of group 0") as error:
        admitted(damaged, "fail")
    assert error.value.exit_code == 4


def test_samples_from_elsewhere_need_no_routes():
    given_ = Sample.given(np.ones(2, np.int32), np.ones(2, np.int32), "rehearsal", 0)
    assert admitted([given_], "fail") == ([given_], {"routing/damaged": 0.0})


def test_both_sides_of_a_pair_need_their_routes():
    sides = [sample(rows(3), 4, 2, 0), sample(rows(3), 4, 2, 1, np.zeros(5, bool)), sample(rows(3), 4, 2, 2)]
    sides = [replace(side, source="pair", group=group) for side, group in zip(sides, (7, 7, 8), strict=True)]
    kept, metrics = admitted(sides, "mask")
    assert metrics["routing/coverage"] == pytest.approx(10 / 15)
    assert [s.mask is not None and not s.mask.any() for s in kept] == [True, True, False]
    with pytest.raises(DamagedRoutesError):
        admitted(sides, "fail")


# ---------------------------------------------------------------------------------------------------------- alarms

STEP = {"samples/learned": 8.0, "groups/with_signal": 1.0, "mismatch/logp_abs_max": 0.0, "mismatch/kl": 0.0}


def watch(replay: str, **alarms: Any) -> Watch:
    return Watch(parse(tiny(alarms=alarms)).alarms, True, replay)


def test_a_run_that_asked_for_replay_and_got_none_stops():
    watch("off").check(1, STEP)
    with pytest.raises(Alarm, match=r"routing/replayed is missing"):
        watch("r2").check(1, STEP)
    with pytest.raises(Alarm, match=r"routing/coverage is missing"):
        watch("r3").check(1, STEP)
    with pytest.raises(Alarm, match=r"routing/replayed is 0, though routing.replay is r3"):
        watch("r3").check(1, {**STEP, "routing/replayed": 0.0, "routing/coverage": 1.0})
    watch("r2").check(1, {**STEP, "routing/replayed": 0.9, "routing/agreement": 0.9})


def test_coverage_that_falls_stops_the_run():
    fine = {**STEP, "routing/replayed": 0.9, "routing/agreement": 0.9, "routing/coverage": 0.96}
    watch("r3").check(1, fine)
    with pytest.raises(Alarm, match=r"routing/coverage is 0.9, below alarms.route_coverage 0.95"):
        watch("r3").check(1, {**fine, "routing/coverage": 0.9})
    watch("r3", route_coverage=0.5).check(1, {**fine, "routing/coverage": 0.9})


def test_coverage_is_checked_though_all_samples_were_masked_for_it():
    masked = {"samples/learned": 0.0, "groups/with_signal": 1.0, "routing/damaged": 8.0}
    watch("r3").check(1, masked)
    with pytest.raises(Alarm, match=r"routing/coverage is 0, below"):
        watch("r3").check(1, {**masked, "routing/coverage": 0.0})


def test_routes_that_the_routers_would_not_choose_stop_the_run():
    shifted = {**STEP, "routing/replayed": 1.0, "routing/coverage": 1.0, "routing/agreement": 0.2}
    with pytest.raises(Alarm, match=r"routing/agreement is 0.2, below alarms.route_agreement 0.5"):
        watch("r3").check(1, shifted)
    watch("r3", route_agreement=0.1).check(1, shifted)
    watch("off").check(1, shifted)


def test_routers_that_collapse_stop_the_run_where_that_is_asked_for():
    collapsed = {**STEP, "router/dead": 0.75, "router/load_entropy": 0.2}
    watch("off").check(1, collapsed)
    with pytest.raises(Alarm, match=r"router/dead is 0.75, above alarms.dead_experts 0.5"):
        watch("off", dead_experts=0.5).check(1, collapsed)
    with pytest.raises(Alarm, match=r"router/load_entropy is 0.2, below alarms.router_load_entropy 0.4"):
        watch("off", router_load_entropy=0.4).check(1, collapsed)


# ------------------------------------------------------------------------------------------------------- the model


def moe(**changes: Any) -> Any:
    return parse(tiny(model={"create": {"config": {**MOE, **changes}}}, routing={"replay": "r3"}))


def test_replay_of_a_dense_model_is_refused():
    with pytest.raises(ConfigError, match=r"routing.replay: r3, but the model \(qwen2\) is dense"):
        check_experts(parse(tiny(routing={"replay": "r3"})))
    check_experts(parse(tiny()))
    check_experts(moe())


def test_a_model_to_be_made_without_a_type_is_left_to_what_refuses_it():
    config = tiny()
    del config["model"]["create"]["config"]["model_type"]
    check_experts(parse(config))


def test_gpt_oss_gets_its_weights_by_the_object_store_alone():
    changes = {"rollout": {"weight_transfer": "nccl"}, "cluster": {"gpus_per_node": 2}}
    model = {"create": {"config": {"model_type": "gpt_oss"}}}
    with pytest.raises(ConfigError, match=r"rollout.weight_transfer: nccl, but vLLM 0.30 keeps GPT-OSS'"):
        check_experts(parse(tiny(model=model, **changes)))
    check_experts(parse(tiny(model=model)))
    check_experts(parse(tiny(**changes)))


def test_sizes_of_experts_come_from_the_models_configuration():
    values = hf_config(moe().model)
    assert values is not None
    assert experts_of(values) == Experts(layers=2, per_token=2, total=8)
    assert bytes_per_token(Experts(layers=48, per_token=8, total=128)) == 384
    assert bytes_per_token(Experts(layers=58, per_token=8, total=257)) == 58 * 8 * 2


@pytest.mark.parametrize(
    ("values", "found"),
    [
        ({"num_hidden_layers": 9, "num_experts_per_tok": 2}, None),
        ({"num_experts": 8, "num_experts_per_tok": 2}, None),
        ({"num_experts": 8, "num_hidden_layers": 9}, None),
        ({"num_experts": 8, "num_layers": 9, "moe_topk": [2, 3, 1]}, (9, 3)),
        ({"num_experts": 8, "num_hidden_layers": 9, "moe_k": 2, "first_k_dense_replace": 3}, (6, 2)),
        ({"n_routed_experts": 8, "moe_topk": 2, "mlp_layer_types": ["dense", "sparse", "sparse"]}, (2, 2)),
        ({"text_config": {"moe_num_experts": 8, "num_layers": 4, "num_experts_per_token": 2}}, (4, 2)),
    ],
)
def test_sizes_that_a_configuration_does_not_tell_are_unknown(values: dict[str, Any], found: tuple[int, int] | None):
    assert experts_of(values) == (found and Experts(layers=found[0], per_token=found[1], total=8))


def hub(monkeypatch: pytest.MonkeyPatch, cache: Path, name: str, **values: Any) -> dict[str, Any]:
    """Put a model's configuration into a cache of the hub; `model` of a run that starts from it."""
    folder = cache / f"models--{name.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text(json.dumps(values))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))
    return {"path": name, "create": None}


def test_a_hub_id_is_judged_as_a_folder_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    oss = {"num_local_experts": 32, "num_experts_per_tok": 4, "num_hidden_layers": 24}
    model = hub(monkeypatch, tmp_path, "openai/gpt-oss-20b", model_type="gpt_oss", **oss)
    on_gpus = {"rollout": {"weight_transfer": "nccl"}, "cluster": {"gpus_per_node": 2}, "warmup": None}
    with pytest.raises(ConfigError, match=r"rollout.weight_transfer: nccl, but vLLM 0.30 keeps GPT-OSS'"):
        check_experts(parse(tiny(model=model, **on_gpus)))
    check_experts(parse(tiny(model=model, routing={"replay": "r3"}, warmup=None)))
    check_experts(parse(tiny(model={"path": "nobody/has-this", "create": None}, **on_gpus)))


def test_replay_of_a_dense_hub_id_is_refused_before_anything_starts(tmp_path, monkeypatch, write_config, capsys):
    model = hub(monkeypatch, tmp_path, "Qwen/Qwen2-dense", model_type="qwen2", num_hidden_layers=2)
    path = write_config(model=model, routing={"replay": "r3"}, warmup=None)
    assert cli.run(["train", str(path)]) == exit_codes.BAD_USAGE
    assert "routing.replay: r3, but the model (qwen2) is dense" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_the_plan_counts_every_copy_of_the_routes():
    config = parse(
        tiny(
            model={"create": {"config": MOE}},
            routing={"replay": "r3"},
            rollout={"max_staleness": 2},
            learner={"ranks": 2},
        )
    )
    prompts, responses = 4 * 8 * 24, 4 * 8 * 4 * 12
    shares = 2 * prompts + responses  # samples of each prompt on either rank
    assert routes_plan(config) == {
        "a step, 4 bytes a token": prompts + responses,
        "object store of the driver's node: 3 sampled, 1 dealt": 3 * (prompts + responses) + shares,
        "memory of the driver": prompts + responses + shares / 2,
        "a rank's share": shares / 2,
    }


def test_the_plan_asks_nobody_when_sizes_are_given_and_says_when_they_are_not_known():
    config = moe()

    def at_hub(**more: Any) -> Any:
        model = config.model.model_copy(update={"create": None, "path": "a/hub-id", **more})
        return config.model_copy(update={"model": model})

    assert routes_plan(at_hub()) is None
    known = routes_plan(at_hub(experts=Experts(layers=2, per_token=2, total=8)))
    assert known is not None
    assert known == routes_plan(config)


def test_an_evaluation_captures_nothing_and_refuses_nothing_for_the_sake_of_routes(write_config):
    path = write_config(model={"create": {"config": MOE}}, routing={"replay": "r3"})
    asked = {"k": [1], "data": None, "prompt": "", "reference": "", "verifier": None, "samples": None, "seeds": [0]}
    decoding = {"temperature": 1.0, "top_p": 1.0, "max_tokens": None, "limit": None, "out": None}
    model, config, _ = evaluate._resolve(evaluate.Request("some/model", step=None, config=path, **asked, **decoding))
    assert engine_spec(load([path]), model).capture_routes
    assert not engine_spec(config, model).capture_routes
