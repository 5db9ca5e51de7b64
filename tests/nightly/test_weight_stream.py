"""Two ranks stream their weights under every ZeRO stage: all families that are measured, both dtypes, adapters or not."""

from __future__ import annotations

import itertools

import pytest

from tests.integration.test_weight_stream import check, ranks
from tests.weight_streams import MEASURED

pytestmark = pytest.mark.integration

CASES = list(itertools.product(MEASURED, ("float32", "bfloat16"), (0, 1, 2, 3), (False, True)))
CASES = [case for case in CASES if case[1:3] != ("bfloat16", 0)]  # refused before a start


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    sender, other = ranks(tmp_path_factory.mktemp("models"), CASES, deadline=900)
    return dict(zip(CASES, zip(sender, other, strict=True), strict=True))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_two_ranks_stream_the_bits_of_the_model_and_hold_two_layers_and_one(found, case):
    check(case, *found[case])
