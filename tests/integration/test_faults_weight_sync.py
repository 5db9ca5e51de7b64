"""A weight update that does not arrive is found out at once, and nothing is sampled with other weights than it says."""

from __future__ import annotations

import os

import pytest
import ray

from tests.integration.served import ask, build, nudge

pytestmark = pytest.mark.integration


@pytest.fixture
def ray_whose_engines_drop_updates():
    """A private Ray whose processes see the failpoint: actors inherit the environment Ray was started in."""
    os.environ["RLPOST_FAULTS"] = "engine.drop_update@step>=1"
    ray.init(address="local", num_cpus=4, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    yield
    ray.shutdown()
    del os.environ["RLPOST_FAULTS"]


def test_an_engine_that_kept_its_old_weights_is_found_out_and_serves_nothing(
    ray_whose_engines_drop_updates, small_model
):
    fleet, learner = build(small_model)
    try:
        fleet.sync(learner, 0, "float32")
        nudge(learner)
        with pytest.raises(Exception, match=r"not what the engine holds: [1-8] of [1-8] probed tensors differ"):
            fleet.sync(learner, 1, "float32")
        with pytest.raises(Exception, match="missed the update after version 0 and serves nothing"):
            fleet.submit(ask(1)).result(60)
    finally:
        fleet.shutdown()
        learner.shutdown()
