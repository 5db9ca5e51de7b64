"""A source takes the keys it knows and reads the files it is meant to read, all of them, in order."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from rlpost.cli import run
from rlpost.config import ConfigError, Data, Source, load
from rlpost.data import DataError, load_prompts, make_tokenizer, read_rows
from rlpost.exit_codes import BAD_USAGE
from tests.conftest import tiny

ROWS = [{"q": f"question {n}", "a": n, "nested": {"list": [n, n + 1]}} for n in range(6)]


def source(path: Path, kind: str, **changes: Any) -> Source:
    return Source.model_validate({"source": kind, "path": str(path), "prompt": "q", **changes})


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format that the name of the file says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.name.endswith(".zst"):
        with pa.output_stream(str(path), compression="zstd") as stream:
            stream.write(lines)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    else:
        path.write_bytes(json.dumps(rows, indent=1).encode() if path.suffix == ".json" else lines)
    return path


def values(found: Source) -> list[dict[str, Any]]:
    return [dict(row.values) for row in read_rows(found)]


# ------------------------------------------------------------------------------------------------------------- keys


@pytest.mark.parametrize(
    ("kind", "key", "value"),
    [
        ("jsonl", "split", "train"),
        ("parquet", "split", "train"),
        ("json", "split", "test"),
        ("jsonl", "name", "main"),
        ("parquet", "revision", "main"),
        ("json", "task", "chain_sum"),
        ("jsonl", "params", {"min_terms": 2}),
        ("parquet", "size", 5),
        ("jsonl", "seed", 0),
        ("jsonl", "field", "rows"),
        ("hf", "field", "rows"),
        ("hf", "seed", 1),
        ("hf", "name", "main"),
        ("hf", "revision", "main"),
        ("reasoning_gym", "split", "train"),
        ("reasoning_gym", "name", "main"),
        ("reasoning_gym", "revision", "main"),
        ("reasoning_gym", "path", "rows.jsonl"),
    ],
)
def test_a_key_that_a_source_has_no_use_for_is_named(tmp_path: Path, kind: str, key: str, value: Any) -> None:
    ending = {"reasoning_gym": "jsonl", "hf": "jsonl"}.get(kind, kind)
    file = write(tmp_path / f"rows.{ending}", ROWS)
    train = {"source": kind, "path": str(file), "prompt": "q", key: value}
    if kind == "reasoning_gym":
        train = {"source": kind, "task": "chain_sum", "size": 3, key: value}
    path = tmp_path / "run.yaml"
    path.write_text(json.dumps(tiny() | {"data": {"train": train, "holdout": 1}, "verifiers": ["exact"]}))
    with pytest.raises(ConfigError, match=rf"data\.train\.{key}"):
        load([path])


def test_a_configuration_that_is_written_out_is_read_again(tmp_path: Path) -> None:
    for found in (
        source(write(tmp_path / "r.jsonl", ROWS), "jsonl"),
        source(write(tmp_path / "r.json", ROWS), "json"),
        Source(source="reasoning_gym", task="chain_sum", size=3),
    ):
        assert Source.model_validate(found.model_dump(mode="json")) == found


def test_a_source_of_another_kind_takes_nothing_over_that_it_has_no_use_for(tmp_path: Path) -> None:
    (tmp_path / "low.yaml").write_text(json.dumps(tiny() | {"verifiers": ["exact"], "warmup": None}))
    over = {"source": "jsonl", "path": str(write(tmp_path / "r.jsonl", ROWS)), "prompt": "q"}
    (tmp_path / "high.yaml").write_text(json.dumps({"data": {"train": over}}))
    found = load([tmp_path / "low.yaml", tmp_path / "high.yaml"]).data.train
    assert found.model_dump(exclude_defaults=True) == {**over, "completion": tiny()["data"]["train"]["completion"]}


# ---------------------------------------------------------------------------------------------------------- folders


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet", "jsonl.gz", "jsonl.zst"])
def test_a_folder_is_all_its_files_in_the_order_of_their_paths(tmp_path: Path, ending: str) -> None:
    for name, part in (("b/0", ROWS[4:]), ("a-00001", ROWS[2:4]), ("a-00000", ROWS[:2])):
        write(tmp_path / "rows" / f"{name}.{ending}", part)
    (tmp_path / "rows" / "README.md").write_text("rows")
    write(tmp_path / "rows" / "_old" / f"x.{ending}", ROWS)
    rows = read_rows(source(tmp_path / "rows", ending.partition(".")[0]))
    assert [dict(row.values) for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2, 3, 4, 5, 6]
    assert rows[3].place == f"a-00001.{ending} row 2"
    assert values(source(tmp_path / "rows", ending.partition(".")[0], limit=3)) == ROWS[:3]


@pytest.mark.parametrize("ending", ["jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("train-00000-of-00001", "test-00000-of-00001"),
        ("train", "test"),
        ("train/0", "test/0"),
        ("split=train/part", "split=test/part"),
        ("my_training_rows", "my_eval_rows"),
    ],
)
def test_a_split_of_a_folder_is_the_files_that_are_named_by_it(
    tmp_path: Path, ending: str, train: str, test: str
) -> None:
    write(tmp_path / "rows" / f"{train}.{ending}", ROWS[:4])
    write(tmp_path / "rows" / f"{test}.{ending}", ROWS[4:])
    questions = [row["q"] for row in values(source(tmp_path / "rows", ending, split="train"))]
    assert questions == [row["q"] for row in ROWS[:4]]
    assert len(values(source(tmp_path / "rows", ending, split="test"))) == 2
    with pytest.raises(DataError, match=r"several splits \(test, train\).*`split`"):
        read_rows(source(tmp_path / "rows", ending))
    with pytest.raises(DataError, match="no file of the split 'validation'"):
        read_rows(source(tmp_path / "rows", ending, split="validation"))


@pytest.mark.parametrize("verb", ["plan", "train"])
def test_a_folder_that_cannot_be_read_is_exit_2_before_anything_starts(
    tmp_path: Path, verb: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("train", "test"):
        write(tmp_path / "rows" / f"{name}.parquet", ROWS)
    train = {"source": "parquet", "path": str(tmp_path / "rows"), "prompt": "q", "reference": "a"}
    values = tiny(runs_dir=str(tmp_path / "runs")) | {"data": {"train": train, "max_prompt_tokens": 24}}
    values |= {"verifiers": ["exact"], "warmup": None, "evaluation": {"before": False, "after": False}}
    (tmp_path / "run.yaml").write_text(json.dumps(values))
    assert run([verb, str(tmp_path / "run.yaml")]) == BAD_USAGE
    assert "several splits (test, train)" in " ".join(capsys.readouterr().err.split())
    assert not (tmp_path / "runs").exists()


def test_a_holdout_of_a_split_counts_that_splits_rows_alone(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "train.parquet", ROWS[:4])
    write(tmp_path / "rows" / "test.parquet", ROWS[4:])
    train = {"source": "parquet", "path": str(tmp_path / "rows"), "split": "train", "prompt": "q", "reference": "a"}
    sets = load_prompts(Data.model_validate({"train": train, "holdout": 2}), make_tokenizer("bytes"), seed=0)
    assert sets.report.lines()[0].endswith("4 rows: 2 kept, 2 held out")


def test_files_that_are_named_by_no_split_or_by_two_are_not_guessed_at(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "part-0.jsonl", ROWS)
    with pytest.raises(DataError, match="no file is named by one"):
        read_rows(source(tmp_path / "rows", "jsonl", split="train"))
    write(tmp_path / "rows" / "train" / "test.jsonl", ROWS)
    with pytest.raises(DataError, match=r"train/test\.jsonl is named by several splits"):
        read_rows(source(tmp_path / "rows", "jsonl", split="train"))
    write(tmp_path / "words" / "latest-contest.jsonl", ROWS)
    assert values(source(tmp_path / "words", "jsonl")) == ROWS


def test_what_folders_say_of_rows_is_a_column(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "level=easy" / "0.parquet", ROWS[:1])
    write(tmp_path / "rows" / "level=hard" / "0.parquet", ROWS[1:2])
    assert [row["level"] for row in values(source(tmp_path / "rows", "parquet"))] == ["easy", "hard"]


def test_files_of_a_folder_need_not_have_the_same_columns(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "0.parquet", [{"q": "first"}])
    write(tmp_path / "rows" / "1.parquet", [{"q": "second", "level": 3}])
    assert values(source(tmp_path / "rows", "parquet")) == [{"q": "first"}, {"q": "second", "level": 3}]


def test_a_bad_row_of_a_folder_is_named_by_its_file(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "a.jsonl", ROWS)
    write(tmp_path / "rows" / "b.jsonl", [{"q": "fine"}, {"p": "no question"}])
    train = {"source": "jsonl", "path": str(tmp_path / "rows"), "prompt": "q"}
    with pytest.raises(DataError, match=r"row 8: b\.jsonl row 2: no column 'q'"):
        load_prompts(Data.model_validate({"train": train}), make_tokenizer("bytes"), seed=0)


def test_a_folder_without_a_file_of_the_format_says_what_is_there(tmp_path: Path) -> None:
    write(tmp_path / "rows" / "a.parquet", ROWS)
    with pytest.raises(DataError, match=r"without a file that ends in \.jsonl.*it has \.parquet"):
        read_rows(source(tmp_path / "rows", "jsonl"))
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="it has no file"):
        read_rows(source(tmp_path / "empty", "parquet"))


# ------------------------------------------------------------------------------------------------------------- json


def test_json_is_an_array_of_objects_or_a_list_of_an_object(tmp_path: Path) -> None:
    assert values(source(write(tmp_path / "r.json", ROWS), "json")) == ROWS
    (tmp_path / "in.json").write_text(json.dumps({"version": 1, "rows": ROWS}))
    assert values(source(tmp_path / "in.json", "json", field="rows")) == ROWS
    with pytest.raises(DataError, match=r"name the list by `field` \(its lists: rows\)"):
        read_rows(source(tmp_path / "in.json", "json"))
    with pytest.raises(DataError, match=r"field 'row' .* is no list \(its lists: rows\)"):
        read_rows(source(tmp_path / "in.json", "json", field="row"))
    with pytest.raises(DataError, match="is an array already"):
        read_rows(source(tmp_path / "r.json", "json", field="rows"))


@pytest.mark.parametrize("text", ['"text"', "3", "null"])
def test_json_of_another_kind_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(DataError, match="not an array of objects"):
        read_rows(source(tmp_path / "r.json", "json"))


def test_an_item_that_is_no_object_or_holds_no_number_is_a_bad_row(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text('[{"q": "fine"}, [1], {"q": "x", "a": NaN}, null]')
    rows = read_rows(source(tmp_path / "r.json", "json"))
    assert [row.number for row in rows if row.error] == [2, 3, 4]


def test_lines_and_an_array_are_not_taken_for_each_other(tmp_path: Path) -> None:
    write(tmp_path / "r.jsonl", ROWS)
    with pytest.raises(DataError, match=r"not one JSON value.*say source: jsonl"):
        read_rows(source(tmp_path / "r.jsonl", "json"))
    (row, *_) = read_rows(source(write(tmp_path / "r.json", ROWS), "jsonl"))
    assert "say source: json" in str(row.error)
    (tmp_path / "deep.jsonl").write_text("[" * 100_000)
    assert read_rows(source(tmp_path / "deep.jsonl", "jsonl"))[0].error


@pytest.mark.parametrize("values", [ROWS, {"rows": ROWS}, ROWS[0]])
def test_json_printed_over_several_lines_is_not_taken_for_lines(tmp_path: Path, values: Any) -> None:
    (tmp_path / "r.jsonl").write_text("\n" + json.dumps(values, indent=2))
    first, *more = read_rows(source(tmp_path / "r.jsonl", "jsonl"))
    assert first.number == 2
    assert "for one JSON value in a file say source: json" in str(first.error)
    assert not any("say source" in str(row.error) for row in more)


def test_several_objects_printed_over_several_lines_are_sent_from_neither_reader_to_the_other(tmp_path: Path) -> None:
    (tmp_path / "r.json").write_text("\n".join(json.dumps(row, indent=2) for row in ROWS))
    with pytest.raises(DataError, match=r"it holds several: write one object a line \(jq -c \.\)"):
        read_rows(source(tmp_path / "r.json", "json"))


def test_a_line_that_is_cut_off_below_others_is_no_array(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text(f'{json.dumps(ROWS[0])}\n{{"q": ')
    *_, last = read_rows(source(tmp_path / "r.jsonl", "jsonl"))
    assert "not JSON" in str(last.error)
    assert "say source" not in str(last.error)


def test_a_compressed_file_that_is_cut_off_is_named(tmp_path: Path) -> None:
    whole = gzip.compress(b'{"q": "question"}\n' * 5000)
    (tmp_path / "r.jsonl.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=r"r\.jsonl\.gz"):
        read_rows(source(tmp_path / "r.jsonl.gz", "jsonl"))


# --------------------------------------------------------------------------------------------------------------- hf


def test_a_revision_of_the_hub_reaches_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    asked: dict[str, Any] = {}

    def load_dataset(path: str, name: str | None, **given: Any) -> list[dict[str, Any]]:
        asked.update(given, path=path, name=name)
        return ROWS

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    found = Source(source="hf", path="owner/set", name="main", split="test", revision="v2", prompt="q", limit=2)
    assert values(found) == ROWS[:2]
    assert asked == {"path": "owner/set", "name": "main", "split": "test", "revision": "v2"}
