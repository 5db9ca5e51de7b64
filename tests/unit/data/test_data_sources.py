"""Rows come as the source has them; what cannot be read is a bad row or a clear error."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlpost.config import Source
from rlpost.data import DataError, read_rows
from rlpost.data.columns import Column
from rlpost.data.errors import RowError
from rlpost.data.sources import plain

ROWS = [{"q": f"question {i}", "a": i, "nested": {"list": [i, i + 1]}} for i in range(5)]


def _jsonl(path: Path, lines: list[str]) -> Source:
    path.write_text("\n".join(lines), encoding="utf-8")
    return Source(source="jsonl", path=str(path), prompt="q")


def _values(source: Source) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(source)]


def test_jsonl_rows_carry_their_line_number_and_blank_lines_are_no_rows(tmp_path: Path) -> None:
    rows = read_rows(_jsonl(tmp_path / "r.jsonl", ['{"q": 1}', "", '{"q": 3}', ""]))
    assert [(row.number, row.values) for row in rows] == [(1, {"q": 1}), (3, {"q": 3})]


@pytest.mark.parametrize("line", ["{broken", "[1, 2]", '"text"', "null", '{"q": NaN}', '{"q": Infinity}'])
def test_a_jsonl_line_that_is_no_json_object_is_a_bad_row(tmp_path: Path, line: str) -> None:
    rows = read_rows(_jsonl(tmp_path / "r.jsonl", ['{"q": 1}', line, '{"q": 3}']))
    assert [row.number for row in rows if row.error] == [2]


def test_bytes_that_are_not_utf8_are_a_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"q": "byte order mark"}\n{"q": "\xff"}\n')
    first, second = read_rows(Source(source="jsonl", path=str(path), prompt="q"))
    assert first.values == {"q": "byte order mark"}
    assert "utf-8" in str(second.error)


def test_parquet_rows_keep_their_types(tmp_path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    assert _values(Source(source="parquet", path=str(tmp_path / "r.parquet"), prompt="q")) == ROWS


def test_a_file_that_is_not_parquet_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"r\.parquet cannot be read as parquet"):
        read_rows(Source(source="parquet", path=str(tmp_path / "r.parquet"), prompt="q"))


@pytest.fixture
def hf_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.mark.usefixtures("hf_cache")
def test_hf_reads_a_file_a_folder_of_files_and_a_saved_data_set(tmp_path: Path) -> None:
    import datasets

    folder, saved, splits = tmp_path / "folder", tmp_path / "saved", tmp_path / "splits"
    folder.mkdir()
    file = folder / "train.jsonl"
    file.write_text("\n".join(json.dumps(row) for row in ROWS))
    table = datasets.Dataset.from_list(ROWS)
    table.save_to_disk(saved)
    datasets.DatasetDict({"train": table.select([0]), "test": table}).save_to_disk(splits)
    for path, split in [(file, "train"), (folder, "train"), (saved, "train"), (splits, "test")]:
        assert _values(Source(source="hf", path=str(path), split=split, prompt="q")) == ROWS, path


@pytest.mark.usefixtures("hf_cache")
def test_hf_names_a_split_that_is_not_there(tmp_path: Path) -> None:
    import datasets

    (tmp_path / "r.jsonl").write_text(json.dumps(ROWS[0]))
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    for name in ("r.jsonl", "saved"):
        with pytest.raises(DataError, match="'validation'"):
            read_rows(Source(source="hf", path=str(tmp_path / name), split="validation", prompt="q"))


@pytest.mark.usefixtures("hf_cache")
def test_limit_takes_the_first_rows_of_every_kind_of_source(tmp_path: Path) -> None:
    lines = [json.dumps(row) for row in ROWS]
    (tmp_path / "r.jsonl").write_text("\n".join(lines))
    pq.write_table(pa.Table.from_pylist(ROWS), tmp_path / "r.parquet")
    for kind, name in [("jsonl", "r.jsonl"), ("parquet", "r.parquet"), ("hf", "r.jsonl")]:
        source = Source.model_validate({"source": kind, "path": str(tmp_path / name), "prompt": "q", "limit": 2})
        assert _values(source) == ROWS[:2], kind
    assert len(read_rows(Source(source="reasoning_gym", task="chain_sum", size=10, limit=2))) == 2


def _countdown(**changes: Any) -> Source:
    return Source.model_validate({"source": "reasoning_gym", "task": "countdown", "size": 3, **changes})


def test_neighbouring_seeds_share_no_run_of_items() -> None:
    first, second = (_values(_countdown(seed=seed, size=50)) for seed in (1, 2))
    problems = [{(*row["metadata"]["numbers"], row["metadata"]["target"]) for row in rows} for rows in (first, second)]
    assert len(problems[0] & problems[1]) < 5, "item i of one seed is item i - 1 of the other"


def test_procedural_rows_are_a_function_of_the_seed_and_plain_json() -> None:
    rows = _values(_countdown(seed=1))
    assert rows == _values(_countdown(seed=1))
    assert rows != _values(_countdown(seed=2))
    assert json.loads(json.dumps(rows)) == rows


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "countdwon"}, "did you mean 'countdown'"),
        ({"params": {"min_number": 3}}, "did you mean 'min_numbers'"),
        ({"params": {"seed": 3}}, "'seed' beside `task`"),
        ({"params": {"min_numbers": 9, "max_numbers": 2}}, "max_numbers must be >= min_numbers"),
        ({"task": "arc_agi"}, "its scorer gives its own answer"),
    ],
)
def test_a_procedural_task_that_cannot_be_made_says_why(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_rows(_countdown(**changes))


json_data = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@given(json_data)
def test_plain_leaves_json_data_as_it_is(value: Any) -> None:
    assert plain(value) == value


@pytest.mark.parametrize("value", [float("nan"), float("-inf"), b"bytes", {1, 2}, [object()]])
def test_plain_refuses_what_json_cannot_hold(value: Any) -> None:
    with pytest.raises(RowError):
        plain(value)


@given(st.dictionaries(st.sampled_from("ab"), st.text(), min_size=2))
def test_a_template_copies_values_whatever_braces_they_hold(values: dict[str, str]) -> None:
    assert Column("prompt", "{a}|{{}}|{b}").of(values) == f"{values['a']}|{{}}|{values['b']}"


def test_a_template_reaches_into_nested_values() -> None:
    row = {"metadata": {"numbers": [19, 9, 3], "target": 24}}
    assert Column("prompt", "{metadata[numbers]} {metadata[target]}: ").of(row) == "[19, 9, 3] 24: "


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("questoin", "no column 'questoin'; did you mean 'question'"),
        ("{questoin}", "no column 'questoin'; did you mean 'question'"),
        ("{meta[b]}", r"'meta' has nothing at \{meta\[b\]\}"),
        ("{meta[none]}", "is null"),
        ("{none}", "is null"),
        ("none", "is null"),
        ("{question:.2f}", "Unknown format code"),
    ],
)
def test_a_row_without_what_a_column_asks_for_says_what_is_missing(spec: str, message: str) -> None:
    with pytest.raises(RowError, match=message):
        Column("prompt", spec).of({"question": "?", "none": None, "meta": {"a": 1, "none": None}})


@pytest.mark.parametrize("spec", ["{question", "}", "{}", "{0}", "{meta.a}"])
def test_a_malformed_template_is_refused_before_any_row(spec: str) -> None:
    with pytest.raises(DataError, match="template"):
        Column("prompt", spec)


def test_importing_the_package_loads_nothing_heavy() -> None:
    heavy = "torch ray vllm transformers tokenizers datasets pyarrow reasoning_gym"
    code = f"import sys, rlpost.data; print([m for m in {heavy!r}.split() if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "[]"
