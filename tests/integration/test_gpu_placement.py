"""The configurations for GPUs, on nodes that say they have them: who goes where, sees what, and what vLLM makes of it."""

from __future__ import annotations

import os
from collections import Counter
from typing import Any

import pytest

from rlpost.rollout.engine import Engine

pytestmark = pytest.mark.integration
NODES, GPUS = 4, 8


class Probe(Engine):
    """An engine that loads no model: it says with what it would, and where it is."""

    async def start(self) -> dict[str, Any]:
        from vllm.config.parallel import ParallelConfig
        from vllm.v1.engine.llm_engine import LLMEngine

        visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
        given: list[Any] = []
        LLMEngine.from_engine_args = lambda args, *context: given.append(args) or 1 / 0
        with pytest.raises(ZeroDivisionError):
            self._load()
        pretend_cuda(len(visible))
        named = given[0].distributed_executor_backend
        size = given[0].tensor_parallel_size
        return {
            "visible": visible,
            "executor": ParallelConfig(tensor_parallel_size=size, distributed_executor_backend=named),
            "vllm_would": ParallelConfig(tensor_parallel_size=size).distributed_executor_backend,
        }


def pretend_cuda(devices: int) -> None:
    """Have vLLM's parallel configuration take this process for one with so many GPUs."""
    import vllm.config.parallel as parallel
    from vllm.platforms import current_platform
    from vllm.platforms.interface import PlatformEnum

    class Cuda(type(current_platform)):
        _enum, device_name, device_type, ray_device_key = PlatformEnum.CUDA, "cuda", "cuda", "GPU"
        device_control_env_var = "CUDA_VISIBLE_DEVICES"

        @classmethod
        def device_count(cls) -> int:
            return devices

    parallel.current_platform = Cuda()


@pytest.fixture(scope="module")
def nodes():
    import ray
    from ray.cluster_utils import Cluster

    node = {"num_cpus": 48, "num_gpus": GPUS, "object_store_memory": 100 * 2**20}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(NODES - 1):
            made.add_node(**node)
        made.wait_for_nodes()
        ray.init(address=made.address, log_to_driver=False, logging_level="ERROR")
        yield
    finally:
        ray.shutdown()
        made.shutdown()


def files() -> list[str]:
    from tests.conftest import ROOT

    return sorted(str(path) for path in (ROOT / "configs").glob("*gpu*.yaml"))


@pytest.mark.parametrize("file", files(), ids=lambda name: os.path.basename(name))
def test_engines_and_ranks_of_a_file_find_room(nodes, file):
    import ray

    from rlpost import cluster
    from rlpost.config import load

    config = load([file])
    placement = cluster.place(config)
    try:
        at = ray.util.placement_group_table(placement.group)["bundles_to_node_id"]
        engines, ranks = ([at[slot[1]] for slot in slots] for slots in (placement.engines, placement.ranks))
        assert (len(engines), len(ranks)) == (config.rollout.engines, config.learner.ranks)
        if config.cluster.colocate:
            assert engines == ranks
            assert placement.engine_gpus + placement.rank_gpus == 1
            return
        used = Counter(ranks)
        for node in engines:
            used[node] += config.rollout.tensor_parallel
        assert max(used.values()) <= GPUS, "a GPU is given twice"
        # Ranks that exchange most are next to each other: in order, a node after the other.
        assert len(list(dict.fromkeys(ranks))) == sum(a != b for a, b in zip(ranks, [None, *ranks], strict=False))
        assert placement.rank_gpus == 1
    finally:
        placement.release()


def test_engines_of_four_gpus_see_their_own_and_start_workers_as_processes(nodes, monkeypatch, tmp_path):
    from dataclasses import replace

    from rlpost import cluster
    from rlpost.config import load
    from rlpost.models.source import ModelSource
    from rlpost.rollout import seat
    from rlpost.run.start import engine_spec, start_fleet
    from tests import moe_models

    moe_models.save_model(moe_models.make_model("qwen3_moe"), tmp_path)
    config = load([next(name for name in files() if "30b" in name and "32gpu" in name)])
    placement = cluster.place(config)
    monkeypatch.setattr(seat, "Engine", Probe)
    spec = replace(engine_spec(config, str(tmp_path), 256), source=ModelSource(str(tmp_path)))
    started = start_fleet(config, spec, placement)
    try:
        import ray

        found = ray.get([s.starting for s in started._seats], timeout=300)
    finally:
        started.shutdown()
        placement.release()
    where = [tuple(one["visible"]) for one in found]
    assert all(len(set(visible)) == config.rollout.tensor_parallel == 4 for visible in where)
    for one in found:
        assert one["executor"].distributed_executor_backend == "mp"
        assert one["vllm_would"] == "ray", "vLLM has changed: the executor need not be named any more"
