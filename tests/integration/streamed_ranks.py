"""One DeepSpeed rank that streams its weights: `python -m tests.integration.streamed_ranks RANK WORLD PORT FOLDER CASES`.

CASES is JSON: [family, dtype, ZeRO stage, whether with adapters] each. Prints what it found of each, as JSON, in a line.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch


def streamed(folder: Path, family: str, dtype: str, stage: int, lora: bool, rank: int, world: int) -> dict[str, Any]:
    import deepspeed
    from transformers.integrations import HfDeepSpeedConfig

    from rlpost.config import Learner
    from rlpost.learner.deepspeed_config import deepspeed_config
    from rlpost.learner.masters import Masters
    from rlpost.learner.model import DTYPES
    from rlpost.learner.stream import WeightStream
    from rlpost.learner.survival import Survival
    from rlpost.models.load import load_causal_lm
    from rlpost.models.shards import write_shards
    from rlpost.models.source import ModelSource
    from tests.weight_streams import Memory, adapted, at_once, largest_layer

    def load() -> Any:
        model = load_causal_lm(ModelSource(str(folder / family)), DTYPES[dtype], "eager")
        return adapted(model) if lora else model

    plain = load()
    expected, layer = at_once(plain, DTYPES[dtype]), largest_layer(plain)
    # All are sharded, however small: what stays whole on every rank would not be gathered.
    sharded = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    config = deepspeed_config(Learner(zero_stage=stage, deepspeed=sharded if stage == 3 else {}), dtype, world)
    alive = HfDeepSpeedConfig(config) if stage == 3 else None
    model = load()
    parameters = [p for p in model.parameters() if p.requires_grad]
    engine, *_ = deepspeed.initialize(
        model=model, optimizer=torch.optim.AdamW(parameters), config=config, dist_init_required=False
    )
    del alive
    stream = WeightStream(engine.module, lambda: Masters(engine.optimizer))
    keep = rank == 0
    found: dict[str, Any] = {name: tensor.clone() for name, tensor in stream.tensors(DTYPES[dtype], keep=keep)}
    same = all(torch.equal(found[name], expected[name]) for name in found)
    found = dict.fromkeys(found)
    with Memory() as streaming:
        for _, tensor in stream.tensors(DTYPES[dtype], keep=keep, survival=Survival()):
            del tensor
    described = stream.described(DTYPES[dtype])
    with Memory() as writing:
        tensors = stream.tensors(DTYPES[dtype], keep=keep)
        if keep:
            write_shards(folder, described, tensors)
        else:
            list(tensors)
    engine.destroy()
    return {
        "same": same and found.keys() == (expected.keys() if keep else set()),
        "sharded": all(hasattr(p, "ds_id") for p in model.parameters()),
        "layers": max(streaming.peak, writing.peak) / layer,
    }


def main() -> None:
    rank, world, port, folder, cases = sys.argv[1:]
    os.environ.update(RANK=rank, WORLD_SIZE=world, LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port)
    os.environ.update(DS_ACCELERATOR="cpu")
    torch.set_num_threads(1)
    import deepspeed

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    for case in json.loads(cases):
        print(json.dumps(streamed(Path(folder), *case, rank=int(rank), world=int(world))), flush=True)


if __name__ == "__main__":
    main()
