"""rlpost's side: the real loop on real Ray, vLLM and DeepSpeed; times from its metrics.jsonl."""

from __future__ import annotations

import os
import sys
from itertools import pairwise
from pathlib import Path

from workload import PHASES, Step, Workload, run_side

HOW = (
    "rlpost: time/* of metrics.jsonl. Rewards are computed while sampling goes on: verify is what remains of them after "
    "the last response. total is the difference of time/elapsed, so it has the writing of rollouts and metrics (in other)."
)


def measure(workload: Workload) -> tuple[str, list[Step]]:
    from rlpost import cluster
    from rlpost.checkpoint import Store
    from rlpost.config import dump
    from rlpost.loop import train
    from rlpost.models.create import tokenizer_of
    from rlpost.observe import Recorder, RunFolder
    from rlpost.observe.sinks import read_metrics
    from rlpost.run.start import read_data, running

    # Ray's workers give way to every other process unless told not to; the other sides' processes do not.
    os.environ.update(RAY_worker_niceness="0")
    config = workload.config()
    folder = RunFolder.create(config.runs_dir, "benchmark", dump(config), sys.argv, config.seed)
    store = Store(folder.checkpoints, folder.run_id)
    model = str(workload.model)
    with (
        Recorder(folder, config) as recorder,
        cluster.session(config) as join,
        running(read_data(config, tokenizer_of(config.model, model)), recorder, store, model, None, join) as run,
    ):
        train(run)
    rows = read_metrics(folder.metrics)
    samples = config.learner.prompts_per_step * config.rollout.samples_per_prompt
    idle = [int(row["step"]) for row in rows if row["samples/learned"] != samples]
    if idle:
        raise RuntimeError(f"steps {idle} did not learn from all {samples} samples: what they cost says nothing")
    return HOW, [
        {
            **{phase: row[f"time/{phase}"] for phase in PHASES},
            "total": row["time/elapsed"] - before["time/elapsed"],
            "length": row["length/mean"],
        }
        for before, row in pairwise(rows)
    ]


if __name__ == "__main__":
    run_side("rlpost", Path(sys.argv[1]), measure)
