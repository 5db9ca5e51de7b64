"""What a run reads and where it writes, tried before anything starts: data, verifiers, the folder of runs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlpost.cluster import check_address
from rlpost.config import Config, ConfigError, Data, Source, VerifierSpec
from rlpost.data import check_encoded, check_source, load_prompts
from rlpost.data.errors import DataError
from rlpost.data.sources import describe, read_rows
from rlpost.user_code import nearest
from rlpost.verify.pool import VerifierPool
from rlpost.verify.protocol import SAMPLE_FIELDS, VerifierError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

ROWS = 100  # of a source that are looked at; of a procedural task, whose rows are made one by one, fewer
MADE = 3
COUNTED = 100_000  # at most so many rows are counted, in about a second
LOADING = 60.0  # seconds verifiers may take to be loaded


def check_inputs(config: Config, elsewhere: bool = False) -> None:
    """Refuse data that cannot be read or has not the columns, verifiers that do not load, a folder that cannot be
    written, a cluster that does not answer.

    Args:
        elsewhere: the run is to be on other machines, whose folders are not seen from here.

    Raises:
        ConfigError, DataError, VerifierError: naming key, value and fix.
    """
    check_writable(config, elsewhere)
    check_address(config, elsewhere)
    for key, source in _first_rows(config):
        check_source(key, source, config.data, with_completion=_with_completion(key))
    check_verifiers(config)


def check_tokens(config: Config, tokenizer: PreTrainedTokenizerBase) -> None:
    """Refuse rows that the tokenizer has no tokens for or makes too long, and a holdout that takes all there are.

    Looks at the first rows of each source, and at what becomes of all of them where there are no more.

    Raises:
        DataError: naming key, value and fix.
    """
    data, whole = config.data, True
    for key, source in _first_rows(config):
        rows = check_encoded(key, source, data, tokenizer, with_completion=_with_completion(key))
        if not _with_completion(key):
            asked = next(s for k, s in sources_of(config) if k == key)
            whole = whole and (source.limit == asked.limit or rows < (source.limit or 0))
    if whole and all(_is_here(source) for key, source in sources_of(config) if not _with_completion(key)):
        load_prompts(data, tokenizer, config.seed)
    elif isinstance(data.holdout, int):
        _check_holdout(data, data.holdout)


def _check_holdout(data: Data, holdout: int) -> None:
    """Refuse a source of too few rows to hold so many out, as far as they can be counted in a moment."""
    for name, source in data.train_sources.items():
        place = ".".join(filter(None, ("data.train", name)))
        if source.source == "reasoning_gym":
            rows = min(source.size or 0, source.limit or holdout + 1)
        elif not _is_here(source) or holdout > COUNTED:
            continue
        else:
            limit = min(source.limit or holdout + 1, holdout + 1)
            rows = len(read_rows(source.model_copy(update={"limit": limit})))
        if rows <= holdout:
            raise DataError(
                f"data.holdout {holdout} takes all {rows} rows of {place} ({describe(source)}) and leaves none to train on: "
                "lower it"
            )


def _first_rows(config: Config) -> list[tuple[str, Source]]:
    """Each source that is looked at, cut to its first rows. A data set of the hub is not fetched for a look."""
    found = []
    for key, source in sources_of(config):
        if _is_here(source):
            rows = MADE if source.source == "reasoning_gym" else ROWS
            found.append((key, source.model_copy(update={"limit": min(source.limit or rows, rows)})))
    return found


def _is_here(source: Source) -> bool:
    return source.source != "hf" or Path(str(source.path)).exists()


def _with_completion(key: str) -> bool:
    return not key.startswith(("data.train", "data.test"))


def check_writable(config: Config, elsewhere: bool = False) -> None:
    """Refuse a `runs_dir` in which no folder can be made; makes none. Who may write is not asked `elsewhere`."""
    folder = Path(config.runs_dir).absolute()
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        raise ConfigError(f"runs_dir: {config.runs_dir!r}: {there} is no folder: name one that runs may be written to")
    denied = not elsewhere and not os.access(there, os.W_OK | os.X_OK)
    if denied or there.is_relative_to("/proc") or there.is_relative_to("/sys"):
        raise ConfigError(f"runs_dir: {config.runs_dir!r}: nothing can be written to {there}: name another folder")


def sources_of(config: Config) -> list[tuple[str, Source]]:
    """Every source of data with its key: of training, tests, warm-up, strategies."""
    return list(_sources(config, ""))


def _sources(value: Any, key: str) -> Iterator[tuple[str, Source]]:
    if isinstance(value, Source):
        yield key, value
        return
    items: Any = value.items() if isinstance(value, dict) else value if hasattr(value, "model_fields_set") else ()
    for name, item in enumerate(value) if isinstance(value, list) else items:
        yield from _sources(item, f"{key}.{name}" if key else str(name))


def check_verifiers(config: Config) -> None:
    """Load every verifier as a run does, in a process of its own: what it imports may hang or end the process.

    Raises:
        VerifierError: naming the verifier and what it lacks: also an argument or a column that no row can give it.
    """
    alone = config.verifier_pool.model_copy(update={"workers": 1, "cache_mb": 0})
    try:
        with VerifierPool(config.verifiers, alone, LOADING) as pool:
            needs = pool.needs
    except VerifierError as error:
        raise VerifierError(f"verifiers: {error}") from error
    sources: dict[str, Any] = {
        ".".join(filter(None, (f"data.{part}", name))): source
        for part, found in (("train", config.data.train_sources), ("test", config.data.test_sources))
        for name, source in found.items()
    }
    for number, spec in enumerate(config.verifiers):
        scored = {key: columns_of(s) for key, s in sources.items() if not s.verifiers or spec.label in s.verifiers}
        _check_columns(f"verifiers.{number}", spec, needs[spec.label], scored)


def columns_of(source: Source) -> list[str]:
    """The columns of a row that its verifiers get."""
    return [*source.metadata, *(("entry", "task") if source.source == "reasoning_gym" else ())]


def _check_columns(key: str, spec: VerifierSpec, needs: Sequence[str], scored: Mapping[str, list[str]]) -> None:
    """Refuse a verifier with an argument that the rows of a source cannot give, or rows chosen by a column none has."""
    had = [*SAMPLE_FIELDS, *dict.fromkeys(column for columns in scored.values() for column in columns)]
    for column in spec.when if scored else ():
        if not any(column in columns for columns in scored.values()):
            raise VerifierError(
                f"{key}.when.{column}: {spec.when[column]!r}: no row has a column {column!r} for verifiers"
                f"{nearest(column, had)}: name it in metadata of {' or '.join(scored)}"
            )
    for name in needs:
        lacking = [place for place, columns in scored.items() if name not in columns]
        # Of several sources, `when` may choose the rows of those that have it.
        if not lacking or (spec.when and len(lacking) < len(scored)):
            continue
        raise VerifierError(
            f"{key}: {spec.name!r} has an argument {name!r} that rows of {lacking[0]} cannot fill{nearest(name, had)}. A "
            f"verifier gets {', '.join(had)}, and parameters beside its name: rename the argument, give it a default, set "
            f"{key}.{name}, or name a column of the data in {lacking[0]}.metadata"
        )
