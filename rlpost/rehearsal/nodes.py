"""A cluster on this machine whose nodes declare GPUs that are not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rlpost.cluster import placement_plan
from rlpost.config import Config

STORE = 200 * 2**20  # bytes of each node's object store


@contextmanager
def fake_nodes(config: Config) -> Iterator[str]:
    """Start as many nodes as `cluster.nodes`, of `cluster.gpus_per_node` GPUs each. Gives the address to join them at."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # As many workers as a node has CPUs would be started before any is asked for, and its workers run at nice 15.
    os.environ.setdefault("RAY_prestart_worker_first_driver", "0")
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray
    from ray.cluster_utils import Cluster

    cpus = int(sum(bundle["CPU"] for bundle in placement_plan(config)["bundles"]) + 0.999) + 1
    node = {"num_cpus": cpus, "num_gpus": config.cluster.gpus_per_node, "object_store_memory": STORE}
    made = Cluster(initialize_head=True, head_node_args={**node, "include_dashboard": False})
    try:
        for _ in range(config.cluster.nodes - 1):
            made.add_node(**node)
        made.wait_for_nodes()
        yield str(made.address)
    finally:
        ray.shutdown()
        made.shutdown()
