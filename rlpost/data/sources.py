"""Where rows come from: files, Hugging Face data sets, procedural tasks."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from rlpost.config import Source
from rlpost.data.errors import DataError, RowError, did_you_mean

# What `datasets` calls the reader of a single local file.
_HF_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        number: 1-based position in the source; for jsonl the line in the file.
        values: the columns by name; empty when the row could not be read.
        error: why it could not be read, None when it could.
    """

    number: int
    values: Mapping[str, Any]
    error: str | None = None


def read_rows(source: Source) -> list[Row]:
    """The first `source.limit` rows of a source, in its own order.

    A jsonl line that is not a JSON object becomes a Row with an `error`; blank lines are no rows. The entries of a
    reasoning-gym task come as plain JSON data (tuples as lists).

    Raises:
        DataError: the source as a whole cannot be read, or its task or parameters are unknown.
    """
    return _READERS[source.source](source)


def describe(source: Source) -> str:
    """The source in a few words, for messages: `jsonl data/train.jsonl`."""
    return f"{source.source} {source.task if source.source == 'reasoning_gym' else source.path}"


def dataset(source: Source) -> str:
    """What the rows are rows of: two sources of one file or one data set's split say the same, however it is read."""
    if source.source == "reasoning_gym":
        return json.dumps([source.task, source.params, source.seed])
    path = _path(source)
    if path.exists():
        return json.dumps([str(path.resolve()), source.split if path.is_dir() else None])
    return json.dumps([source.path, source.name, source.split])


def plain(value: Any) -> Any:
    """`value` as plain JSON data: tuples become lists, numpy scalars become Python's; mapping keys stay as they are.

    Raises:
        RowError: a value JSON cannot hold (dates, bytes, sets, NaN, infinities).
    """
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, float) and not math.isfinite(value):
        raise RowError(f"{value} is not a JSON number")
    if value is None or isinstance(value, str | bool | int | float):
        return value
    raise RowError(f"a {type(value).__name__} is not JSON data; convert it, or print it with a template '{{column}}'")


def _path(source: Source) -> Path:
    return Path(str(source.path)).expanduser()


def _jsonl(source: Source) -> list[Row]:
    path = _path(source)
    if path.is_dir():
        raise DataError(f"{describe(source)} is a folder; a jsonl source is one file")
    with path.open("rb") as file:
        lines = ((number, line) for number, line in enumerate(file, 1) if line.strip())
        return [_json_row(number, line) for number, line in islice(lines, source.limit)]


def _json_row(number: int, line: bytes) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except ValueError as error:  # of the encoding as well as of the JSON
        return Row(number, {}, f"not JSON: {error}")
    if not isinstance(values, dict):
        return Row(number, {}, f"not a JSON object but a {type(values).__name__}")
    return Row(number, values)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parquet(source: Source) -> list[Row]:
    import pyarrow as pa
    import pyarrow.dataset

    try:
        files = pyarrow.dataset.dataset(_path(source), format="parquet")
        table = files.head(source.limit) if source.limit else files.to_table()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{describe(source)} cannot be read as parquet: {error}") from error
    return [Row(number, values) for number, values in enumerate(table.to_pylist(), 1)]


def _hf(source: Source) -> list[Row]:
    from datasets.exceptions import DatasetsError

    try:
        table = _hf_table(source)
    except (DatasetsError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{describe(source)} (name {source.name!r}, split {source.split!r}) cannot be loaded: {error}"
        ) from error
    return [Row(number, values) for number, values in enumerate(islice(table, source.limit), 1)]


def _hf_table(source: Source) -> Any:
    """One split, from a file, from a folder of `save_to_disk`, or by whatever `load_dataset` makes of the path."""
    import datasets

    path = _path(source)
    if path.is_file():
        if path.suffix not in _HF_READERS:
            raise DataError(f"{describe(source)}: files of type {path.suffix!r} are unknown ({', '.join(_HF_READERS)})")
        return datasets.load_dataset(_HF_READERS[path.suffix], data_files=str(path), split=source.split)
    if not ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        where = str(path) if path.is_dir() else source.path
        return datasets.load_dataset(where, source.name, split=source.split)
    saved = datasets.load_from_disk(str(path))
    # A lone data set need not know the name of its split; `train` is what a source says when it says nothing.
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if source.split not in splits:
        raise DataError(f"{describe(source)} has no split {source.split!r} ({did_you_mean(source.split, splits)})")
    return splits[source.split]


# Most of reasoning-gym's tasks draw item i from seed + i: data sets of seeds 1 and 2 would share all items but one.
# Seeds this far apart share none, however many rows are asked for.
SEED_STRIDE = 10**7


def _reasoning_gym(source: Source) -> list[Row]:
    return list(_procedural_rows(source.model_dump_json()))


@functools.lru_cache(maxsize=4)  # a warm-up asks for the held-out problems too; making rows takes a millisecond each
def _procedural_rows(source_json: str) -> tuple[Row, ...]:
    import reasoning_gym
    from reasoning_gym.factory import DATASETS

    source = Source.model_validate_json(source_json)
    task, size = str(source.task), source.size or 0
    if task not in DATASETS:
        raise DataError(f"reasoning-gym has no task {task!r}; {did_you_mean(task, DATASETS)}")
    known = {field.name for field in dataclasses.fields(DATASETS[task][1])} - {"seed", "size"}
    for name in source.params:
        if name in ("seed", "size"):
            raise DataError(f"reasoning-gym task {task!r}: give {name!r} beside `task`, not among its params")
        if name not in known:
            raise DataError(f"reasoning-gym task {task!r} has no parameter {name!r}; {did_you_mean(name, known)}")
    try:
        dataset = reasoning_gym.create_dataset(task, seed=source.seed * SEED_STRIDE, size=size, **source.params)
    except (AssertionError, AttributeError, TypeError, ValueError) as error:  # how its tasks refuse parameters
        raise DataError(f"reasoning-gym task {task!r} refuses {source.params}: {error}") from error
    _check_scores_survive_json(task, dataset)
    return tuple(_entry_row(number, dataset[number - 1]) for number in range(1, min(size, source.limit or size) + 1))


def _entry_row(number: int, entry: Mapping[str, Any]) -> Row:
    try:
        return Row(number, plain(entry))
    except RowError as error:
        return Row(number, {}, str(error))


def _check_scores_survive_json(task: str, dataset: Any) -> None:
    """Refuse a task whose scorer tells tuples from lists: right answers would be graded as wrong (arc_agi, rearc)."""
    entry = dataset[0]
    answer = entry["answer"]
    if answer is None:  # a task of many right answers shows none to check by
        return
    native, ours = dataset.score_answer(answer, entry), dataset.score_answer(answer, plain(entry))
    if native != ours:
        raise DataError(
            f"reasoning-gym task {task!r} cannot be used: its scorer gives its own answer {native} on the entry as made "
            f"and {ours} on the same entry as JSON data; write a verifier of your own and use its rows as a jsonl source"
        )


_READERS: dict[str, Callable[[Source], list[Row]]] = {
    "jsonl": _jsonl,
    "parquet": _parquet,
    "hf": _hf,
    "reasoning_gym": _reasoning_gym,
}
