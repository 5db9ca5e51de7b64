"""What the learner's side promises of its waits."""

from __future__ import annotations

import pytest

from rlpost.config import Learner
from rlpost.learner.group import patience


@pytest.mark.parametrize(("start", "deadline", "waits"), [(1800, 600.0, 1800), (300, 3600.0, 3600.0)])
def test_a_collective_waits_at_least_as_long_as_the_driver(start, deadline, waits):
    """Else a rank that finds its weights on disk gives up on one that still downloads them."""
    assert patience(Learner(deadline=deadline), start) == waits
