"""What is known of a family of models is refused before anything starts, by name and with the fix."""

from __future__ import annotations

import json
import re

import pytest

from benchmarks.families_table import AGREE
from rlpost.config import ConfigError, parse
from rlpost.models.families import check_family
from rlpost.models.known_families import FAMILIES, UNSERVED
from tests.conftest import ROOT, tiny

PAGE = (ROOT / "docs" / "families.md").read_text()


def rows() -> list[list[str]]:
    """Cells of the table, by family."""
    lines = [line.strip("| ").split(" | ") for line in PAGE.split("\n## ")[0].splitlines() if line.startswith("| ")]
    return [line for line in lines if line[0] != "family"]


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


def test_what_the_engine_has_no_class_for_is_refused_on_every_platform(tmp_path):
    kind = next(kind for kind, why in UNSERVED.items() if "" in why)
    for cluster in ({}, {"cluster": {"gpus_per_node": 2}}):
        config = parse(with_layout({**family(kind, tmp_path), **cluster}, "padded"))
        with pytest.raises(
            ConfigError, match=rf"model.path: vLLM .* has no model for the family {kind}: .*: take another"
        ):
            check_family(config)
        check_family(config, served=False)  # a warm-up alone starts no engine


def test_what_the_engine_cannot_do_in_one_dtype_on_cpu_is_refused_there_with_the_other(tmp_path):
    kind = next(kind for kind, why in UNSERVED.items() if set(why) == {"float32"})
    narrow, wide = (with_layout(family(kind, tmp_path, dtype=dtype), "padded") for dtype in ("bfloat16", "float32"))
    check_family(parse(narrow))
    with pytest.raises(
        ConfigError, match=rf"model.dtype: float32, but .* the family {kind} .* set rollout.dtype: bfloat16"
    ):
        check_family(parse(wide))
    check_family(parse({**wide, "rollout": {**wide["rollout"], "dtype": "bfloat16"}}))
    check_family(parse({**wide, "cluster": {"gpus_per_node": 2}}))


def test_what_engines_on_cpu_cannot_serve_at_all_is_refused_there_alone(tmp_path):
    kind = next(kind for kind, why in UNSERVED.items() if set(why) == {"float32", "bfloat16"})
    config = with_layout(family(kind, tmp_path), "padded")
    with pytest.raises(ConfigError, match=rf"engines on CPU cannot serve models of the family {kind}: .* take another"):
        check_family(parse(config))
    check_family(parse({**config, "cluster": {"gpus_per_node": 2}}))


def test_at_least_25_families_agree_in_both_dtypes_before_and_after_a_sync():
    agreeing = [
        row[0]
        for row in rows()
        if row[1] in ("packed", "padded")
        and not UNSERVED.get(row[0])
        and all(re.fullmatch(r"\S+ / \S+", cell) for cell in row[2:4])
    ]
    assert len(agreeing) >= 25
    assert f" {len(agreeing)} of them hold in all columns" in PAGE
    assert (
        max(float(number) for row in rows() if row[0] in agreeing for number in row[2].split(" / ")) <= AGREE["float32"]
    )


def test_no_family_that_may_be_packed_reads_its_neighbours():
    failures = [line.strip("| ").split(" | ") for line in PAGE.split("\n## ")[1].splitlines()[4:]]
    leaking = {row[0] for row in failures if "packed sequences" in row[2]}
    assert leaking
    assert not leaking & {kind for kind, (layout, _) in FAMILIES.items() if layout == "packed"}


def test_the_page_and_what_is_refused_are_of_the_same_results():
    assert {row[0]: row[1] for row in rows()} == {kind: layout for kind, (layout, _) in FAMILIES.items()}
    failures = PAGE.split("\n## ")[1]
    for kind, reasons in UNSERVED.items():
        for why in reasons.values():
            assert any(line.startswith(f"| {kind} |") and why in line for line in failures.splitlines())
