"""Where rows come from: files, Hugging Face data sets, procedural tasks."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import zlib
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any, NoReturn

from rlpost.config import Config, Source
from rlpost.data.errors import DataError, RowError, did_you_mean
from rlpost.data.files import ENDINGS, SourceFile, files_of, open_bytes

# What `datasets` calls the reader of a single local file.
_HF_READERS = {".json": "json", ".jsonl": "json", ".csv": "csv", ".parquet": "parquet", ".arrow": "arrow"}


@dataclasses.dataclass(frozen=True)
class Row:
    """One row of a source.

    Attributes:
        number: 1-based position in the source; for jsonl the line in the file.
        values: the columns by name; empty when the row could not be read.
        error: why it could not be read, None when it could.
        place: its file and position there, where a source has several files.
    """

    number: int
    values: Mapping[str, Any]
    error: str | None = None
    place: str | None = None


def read_rows(source: Source) -> list[Row]:
    """The first `source.limit` rows of a source, in its own order; files of a folder in the order of their names.

    A jsonl line or an item of a json array that is not a JSON object becomes a Row with an `error`; blank lines are no rows. The entries of a
    reasoning-gym task come as plain JSON data (tuples as lists).

    Raises:
        DataError: the source as a whole cannot be read, or its task or parameters are unknown.
    """
    return _READERS[source.source](source)


def check_files(config: Config) -> None:
    """Look for the files of all sources, as they will be looked for when they are read.

    Raises:
        DataError: as `rlpost.data.files.files_of`.
    """
    warm = config.warmup.sources.values() if config.warmup is not None else ()
    for source in (*(source for _, source in config.data.sources()), *warm):
        if source.source in ENDINGS:
            files_of(source.source, _path(source), source.split, describe(source))


def describe(source: Source) -> str:
    """The source in a few words, for messages: `jsonl data/train.jsonl`."""
    return f"{source.source} {source.task if source.source == 'reasoning_gym' else source.path}"


def dataset(source: Source) -> str:
    """What the rows are rows of: two sources of one file or one data set's split say the same, however it is read."""
    if source.source == "reasoning_gym":
        return json.dumps([source.task, source.params, source.seed or 0])
    path = _path(source)
    if path.exists():
        return json.dumps([str(path.resolve()), source.split if path.is_dir() else None])
    return json.dumps([source.path, source.name, source.split or "train"])


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


def _from_files(kind: str, read: Callable[[Source, Path], Iterator[Row]], source: Source) -> list[Row]:
    """The rows of all files of a source. Of several, rows count through, and each knows its file."""
    files = files_of(kind, _path(source), source.split, describe(source))
    if len(files) == 1 and not files[0].name:
        return list(islice(read(source, files[0].path), source.limit))
    rows = (_placed(file, row) for file in files for row in read(source, file.path))
    return [dataclasses.replace(row, number=number) for number, row in enumerate(islice(rows, source.limit), 1)]


def _placed(file: SourceFile, row: Row) -> Row:
    return dataclasses.replace(row, values={**file.columns, **row.values}, place=f"{file.name} row {row.number}")


def _jsonl(source: Source, path: Path) -> Iterator[Row]:
    with open_bytes(path) as file:
        try:
            first = True
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _json_row(number, line, first)
                    first = False
        except (OSError, EOFError, zlib.error) as error:  # of what is compressed
            raise DataError(f"{describe(source)}: {path} cannot be read: {error}") from error


def _json_row(number: int, line: bytes, first: bool) -> Row:
    try:
        values = json.loads(line.decode("utf-8-sig"), parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # of the encoding as well as of the JSON
        # What ends in the middle of its first value goes on in the lines below: an array or an object, printed to be read.
        goes_on = first and isinstance(error, json.JSONDecodeError) and not error.doc[error.pos :].strip()
        whole = "; it goes on below: for one JSON value in a file say source: json" if goes_on else ""
        return Row(number, {}, f"not JSON: {error}{whole}")
    if not isinstance(values, dict):
        array = "; for one JSON array in a file say source: json" if isinstance(values, list) else ""
        return Row(number, {}, f"not a JSON object but a {type(values).__name__}{array}")
    return Row(number, values)


def _json(source: Source, path: Path) -> Iterator[Row]:
    """The items of a file's array, or of the list that its object holds under `field`."""
    try:
        with open_bytes(path) as file:
            values = json.loads(file.read().decode("utf-8-sig"))
    except (OSError, EOFError, zlib.error, ValueError, RecursionError) as error:
        lines = _of_several(error) if isinstance(error, json.JSONDecodeError) and "Extra data" in error.msg else ""
        raise DataError(f"{describe(source)}: {path} is not one JSON value: {error}{lines}") from error
    for number, item in enumerate(_items(source, path, values), 1):
        if not isinstance(item, dict):
            yield Row(number, {}, f"not a JSON object but a {type(item).__name__}")
            continue
        try:
            yield Row(number, plain(item))
        except RowError as error:
            yield Row(number, {}, f"not JSON: {error}")


def _of_several(error: json.JSONDecodeError) -> str:
    """What to do with a file of several JSON values, which one reader takes where each has a line of its own."""
    if "\n" in error.doc[: error.pos].strip():
        return "; it holds several: write one object a line (jq -c .) and say source: jsonl"
    return "; for one object a line say source: jsonl"


def _items(source: Source, path: Path, values: Any) -> list[Any]:
    if isinstance(values, list) and source.field is None:
        return values
    if isinstance(values, list):
        raise DataError(f"{describe(source)}: field {source.field!r}: {path} is an array already; leave it out")
    if not isinstance(values, dict):
        raise DataError(f"{describe(source)}: {path} holds a {type(values).__name__}, not an array of objects")
    if source.field is not None:
        if not isinstance(values.get(source.field), list):
            known = [key for key, value in values.items() if isinstance(value, list)]
            raise DataError(f"{describe(source)}: field {source.field!r} of {path} is no list ({_lists(known)})")
        return list(values[source.field])
    known = [key for key, value in values.items() if isinstance(value, list)]
    raise DataError(
        f"{describe(source)}: {path} holds an object, not an array: name the list by `field` ({_lists(known)})"
    )


def _lists(known: list[str]) -> str:
    return f"its lists: {', '.join(known)}" if known else "it has no list"


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _parquet(source: Source, path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    number = 0
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches():
                for values in batch.to_pylist():
                    number += 1
                    yield Row(number, values)
    except (pa.ArrowException, OSError, ValueError) as error:
        where = f"{describe(source)}" + (f": {path.name}" if _path(source).is_dir() else "")
        raise DataError(f"{where} cannot be read as parquet: {error}") from error


def _hf(source: Source) -> list[Row]:
    from datasets.exceptions import DatasetsError

    try:
        table = _hf_table(source)
    except (DatasetsError, OSError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(
            f"{describe(source)} (name {source.name!r}, split {_split(source)!r}) cannot be loaded: {error}"
        ) from error
    return [Row(number, values) for number, values in enumerate(islice(table, source.limit), 1)]


def _hf_table(source: Source) -> Any:
    """One split, from a file, from a folder of `save_to_disk`, or by whatever `load_dataset` makes of the path."""
    import datasets

    path = _path(source)
    if path.is_file():
        if path.suffix not in _HF_READERS:
            raise DataError(f"{describe(source)}: files of type {path.suffix!r} are unknown ({', '.join(_HF_READERS)})")
        return datasets.load_dataset(_HF_READERS[path.suffix], data_files=str(path), split=_split(source))
    split = _split(source)
    if not ((path / "dataset_dict.json").exists() or (path / "state.json").exists()):
        where = str(path) if path.is_dir() else source.path
        return datasets.load_dataset(where, source.name, split=split, revision=source.revision)
    saved = datasets.load_from_disk(str(path))
    # A lone data set need not know the name of its split; `train` is what a source says when it says nothing.
    splits = saved if isinstance(saved, datasets.DatasetDict) else {str(saved.split or "train"): saved}
    if split not in splits:
        raise DataError(f"{describe(source)} has no split {split!r} ({did_you_mean(split, splits)})")
    return splits[split]


def _split(source: Source) -> str:
    return source.split or "train"


# Most of reasoning-gym's tasks draw item i from seed + i: data sets of seeds 1 and 2 would share all items but one.
# Seeds this far apart share none, however many rows are asked for.
SEED_STRIDE = 10**7


def _reasoning_gym(source: Source) -> list[Row]:
    return list(_procedural_rows(source.model_dump_json(include=set(Source.model_fields))))


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
        dataset = reasoning_gym.create_dataset(task, seed=(source.seed or 0) * SEED_STRIDE, size=size, **source.params)
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
    "jsonl": functools.partial(_from_files, "jsonl", _jsonl),
    "json": functools.partial(_from_files, "json", _json),
    "parquet": functools.partial(_from_files, "parquet", _parquet),
    "hf": _hf,
    "reasoning_gym": _reasoning_gym,
}
