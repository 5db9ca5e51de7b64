"""Room on a cluster is asked for whom is started, and for nobody else."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlpost import cluster
from rlpost.commands import evaluate
from rlpost.commands.evaluate import Request
from rlpost.config import parse
from rlpost.run.start import engine_spec
from tests.conftest import private_ray, tiny


@pytest.fixture(scope="module")
def one_gpu():
    with private_ray(cpus=8, store_mb=100, gpus=1):
        yield


def test_an_evaluation_of_a_model_fits_a_machine_with_one_gpu_and_has_all_of_it(one_gpu, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(evaluate.device, "present", lambda: True)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"question": "1+1?", "answer": "2"}\n')
    values: dict[str, object] = dict.fromkeys(Request.__dataclass_fields__)
    values |= {"target": str(tmp_path), "k": [1], "data": rows, "prompt": "question", "reference": "answer"}
    _, config, _ = evaluate._resolve(Request(**{**values, "verifier": "math", "on": "test"}))  # type: ignore[arg-type]
    placement = cluster.place(config, cluster.ENGINES)
    try:
        assert (len(placement.engines), placement.engine_gpus, len(placement.ranks)) == (1, 1, 0)
        share = engine_spec(config, str(tmp_path), share=placement.engine_share).gpu_memory_utilization
        assert share == config.rollout.gpu_memory_utilization
    finally:
        placement.release()


def test_an_elastic_start_has_fewer_engines_where_there_is_no_room_for_all_and_never_fewer_ranks(one_gpu):
    asked = {"rollout": {"engines": 9}, "learner": {"ranks": 2}, "cluster": {"start_deadline": 1.0}}
    rigid = parse(tiny(**asked))
    with pytest.raises(cluster.PlacementError, match="CPU: asked 11, have 8"):
        cluster.place(rigid)
    elastic = rigid.model_copy(update={"cluster": rigid.cluster.model_copy(update={"elastic": True})})
    placement = cluster.place(elastic)
    assert (len(placement.engines), len(placement.ranks)) == (6, 2)
    placement.release()
    too_many = elastic.model_copy(update={"learner": rigid.learner.model_copy(update={"ranks": 8})})
    with pytest.raises(cluster.PlacementError, match="CPU: asked 17, have 8"):
        cluster.place(too_many)
