"""Weights go from learner ranks to engines as they do on GPUs: vLLM's own NCCL and IPC engines, over what stands in."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import ray

from rlpost.learner.group import patience
from tests import moe_models
from tests.integration.transports import Pair, connected, learn

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def experts(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("experts")
    moe_models.save_model(moe_models.make_model("qwen3_moe"), folder)
    return folder


def lose(rank: Any, lost: str) -> None:
    """Have a learner rank send all but one tensor from here on."""
    from vllm.distributed.weight_transfer.base import WeightSource

    whole = rank._transfer._sender.source

    class Partial(WeightSource):
        def metadata(self):
            return [meta for meta in whole.metadata() if meta.name != lost]

        def __iter__(self):
            return (pair for pair in whole if pair[0] != lost)

    rank._transfer._sender.source = Partial()


def refuses_what_is_not_whole(pair: Pair, lost: str, named: str) -> None:
    """An update that lacks a tensor is refused. The engines are of no more use after that."""
    ray.get([r.__ray_call__.remote(lose, lost) for r in pair.learner.ranks])
    learn(pair.learner, 3)
    with pytest.raises(Exception, match=rf"(?s)engine [01] could not .*left [12] of \d+ tensors .*{named}"):
        pair.fleet.sync(pair.learner, 3, "float32")


def collective_patience(rank: Any) -> float:
    from torch.distributed import distributed_c10d

    return distributed_c10d._get_default_group()._get_backend(rank.device).options._timeout.total_seconds()


def test_two_engines_and_two_ranks_by_nccl(experts):
    with connected(experts, "nccl", engines=2, ranks=2, stage=3, routing={"replay": "r3"}) as pair:
        for sampled in pair.updates():
            assert all(r.routes.valid.all() for rollouts in sampled for r in rollouts)
        found = ray.get(pair.learner.ranks[0].__ray_call__.remote(collective_patience))
        assert found == patience(pair.learner.spec.learner, 700.0) == 700.0
        refuses_what_is_not_whole(pair, "model.layers.1.mlp.experts.5.down_proj.weight", r"layers\.1\.mlp\.experts")


def test_each_engine_shares_its_gpu_with_a_rank(small_model):
    with connected(small_model, "ipc", engines=2, ranks=2) as pair:
        pair.updates()
        refuses_what_is_not_whole(pair, "model.layers.1.self_attn.o_proj.weight", r"layers\.1\.self_attn\.o_proj")


def test_an_engine_of_two_gpus_is_two_processes_of_its_actor(experts):
    """In an actor of a placement group, where vLLM would have other actors for workers, on GPUs that this one holds."""
    with connected(experts, "nccl", engines=1, ranks=1, tensor_parallel=2, routing={"replay": "r3"}) as pair:
        for sampled in pair.updates():
            assert all(r.routes.valid.all() for rollouts in sampled for r in rollouts)


def test_a_worker_whose_share_of_the_vocabulary_is_padding_alone_lacks_nothing(small_model):
    """vLLM pads a vocabulary before it is shared out: of a small one the second worker has no token."""
    with connected(small_model, "nccl", engines=1, ranks=1, tensor_parallel=2) as pair:
        pair.updates()
