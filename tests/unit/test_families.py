"""What is known of a family of models is refused before anything starts, by name and with the fix."""

from __future__ import annotations

import json
import re

import pytest

from rlpost.config import ConfigError, parse
from rlpost.models.families import check_family
from rlpost.models.known_families import FAMILIES
from tests.conftest import ROOT, tiny


def family(model_type: str, tmp_path, **more: object) -> dict:
    """A configuration whose model is of this family, as far as its configuration file says."""
    (tmp_path / "config.json").write_text(json.dumps({"model_type": model_type}))
    return tiny(model={"path": str(tmp_path), "create": None, **more}, warmup=None)


def with_layout(config: dict, layout: str) -> dict:
    return {**config, "learner": {**config["learner"], "layout": layout}}


def test_hybrid_models_are_not_packed(tmp_path):
    for kind in ("qwen3_next", "qwen3_5_text", "falcon_h1", "jamba", "granitemoehybrid"):
        assert FAMILIES[kind][0] == "padded"
        with pytest.raises(ConfigError, match=rf"layout: packed, but in {kind} models .* set learner.layout: padded"):
            check_family(parse(with_layout(family(kind, tmp_path), "packed")))


def test_a_family_that_reads_ahead_is_refused_in_any_layout(tmp_path):
    refused = next(kind for kind, (layout, _) in FAMILIES.items() if layout == "refused")
    for layout in ("packed", "padded"):
        with pytest.raises(ConfigError, match=f"models of the family {refused} cannot be trained: .*: take another"):
            check_family(parse(with_layout(family(refused, tmp_path), layout)))


def test_a_packed_family_and_one_that_is_not_known_pass(tmp_path):
    for kind in ("qwen3", "somebodys_own"):
        check_family(parse(with_layout(family(kind, tmp_path), "packed")))


def test_code_that_comes_with_a_model_is_not_judged_by_its_name(tmp_path):
    config = with_layout(family("falcon_h1", tmp_path, trust_remote_code=True), "packed")
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "falcon_h1", "auto_map": {}}))
    check_family(parse(config))


def test_at_least_25_families_hold_in_all_columns():
    results = (ROOT / "docs" / "families.md").read_text()
    assert int(re.search(r"(\d+) of them hold in all columns", results)[1]) >= 25


def test_the_page_and_what_is_refused_are_of_the_same_results():
    page = (ROOT / "docs" / "families.md").read_text()
    rows = [line.strip("| ").split(" | ") for line in page.split("\n## ")[0].splitlines() if line.startswith("| ")]
    assert {row[0]: row[1] for row in rows if row[0] != "family"} == {k: layout for k, (layout, _) in FAMILIES.items()}
