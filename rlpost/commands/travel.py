"""What goes along with a job to a cluster: the files of the working directory, and whether all that a run needs is there."""

from __future__ import annotations

import ast
import logging
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlpost.config import Config, ConfigError, ConfiguredPath, paths_of

# Besides what .gitignore and .rayignore name, which Ray leaves out by itself.
EXCLUDES = ("runs/", ".venv/", ".git/", "**/__pycache__/")
_SILENT = logging.getLogger("rlpost.commands.travel")  # Ray logs the ignore files it meets, and what is raised here
_SILENT.disabled = True
SHOWN = 8  # items whose size is printed, and files of a folder that are named


@dataclass(frozen=True)
class Luggage:
    """The files that Ray will upload.

    Attributes:
        folder: the working directory.
        excludes: patterns, as in .gitignore, of what stays.
        sizes: bytes of each file, by its path below `folder`.
    """

    folder: Path
    excludes: tuple[str, ...]
    sizes: Mapping[Path, int]

    def lines(self) -> list[str]:
        """What travels, largest first, for a person to read."""
        items: dict[str, int] = {}
        for path, size in self.sizes.items():
            items[path.parts[0]] = items.get(path.parts[0], 0) + size
        largest = sorted(items.items(), key=lambda item: -item[1])
        lines = [f"  {size / 2**20:10.2f} MiB  {name}" for name, size in largest[:SHOWN]]
        if rest := largest[SHOWN:]:
            lines.append(f"  {sum(size for _, size in rest) / 2**20:10.2f} MiB  in {len(rest)} more")
        total = sum(items.values())
        return [f"travels: {len(self.sizes)} files of {self.folder}, {total / 2**20:.2f} MiB", *lines]

    def why_not(self, path: Path) -> str:
        """What keeps a file below `folder` from travelling."""
        from ray._private.runtime_env.packaging import _get_excludes, _get_ignore_file

        whole = self.folder / path
        for pattern in self.excludes:
            if _get_excludes(self.folder, [pattern])(whole):
                return f"{pattern} never travels"
        for parent in (self.folder, *reversed([self.folder / p for p in path.parents if p != Path()])):
            for name in (".gitignore", ".rayignore"):
                match = _get_ignore_file(parent, name)
                if match is not None and any(match(p) for p in (whole, *whole.parents) if p.is_relative_to(parent)):
                    return f"{parent / name} leaves it out"
        return "it is no file that can be read" if whole.exists() else "it does not exist there"


def pack(folder: Path, runs_dir: str = "runs") -> Luggage:
    """What Ray will take of a folder: found by Ray's own walk, with its rules for .gitignore and .rayignore.

    Args:
        folder: absolute.
        runs_dir: where runs are written; those here stay here.

    Raises:
        ConfigError: a file cannot be read, a link leads back into its own folder, or all of it is more than Ray takes.
    """
    from ray._private.ray_constants import RAY_RUNTIME_ENV_IGNORE_GITIGNORE
    from ray._private.runtime_env.packaging import GCS_STORAGE_MAX_SIZE, _dir_travel, _get_excludes

    own = Path(os.path.normpath(runs_dir))
    excludes = EXCLUDES if own.is_absolute() or ".." in own.parts or own == Path() else (*EXCLUDES, f"/{own}/")
    sizes: dict[Path, int] = {}

    def take(path: Path) -> None:
        if path.is_symlink() and path.is_dir() and path.resolve() in [p.resolve() for p in path.parents]:
            raise ConfigError(f"--working-dir {folder}: {path} is a link to a folder that it lies in: remove the link")
        if not path.is_file():
            return
        if not os.access(path, os.R_OK):
            raise ConfigError(
                f"--working-dir {folder}: {path} may not be read: give read permission, or name it in a .rayignore file"
            )
        sizes[path.relative_to(folder)] = path.stat().st_size

    respected = os.environ.get(RAY_RUNTIME_ENV_IGNORE_GITIGNORE, "0") != "1"
    try:
        _dir_travel(folder, [_get_excludes(folder, list(excludes))], take, include_gitignore=respected, logger=_SILENT)
    except OSError as error:
        raise ConfigError(f"--working-dir {folder}: {error.filename} cannot be read: {error.strerror}") from None
    luggage = Luggage(folder, excludes, sizes)
    if (total := sum(sizes.values())) >= GCS_STORAGE_MAX_SIZE:
        largest, size = max(sizes.items(), key=lambda item: item[1])
        raise ConfigError(
            f"--working-dir {folder}: {total / 2**20:.0f} MiB, and Ray takes less than {GCS_STORAGE_MAX_SIZE / 2**20:.0f} "
            f"MiB; the largest file is {largest} ({size / 2**20:.0f} MiB). Put models and large data into a folder that "
            "all nodes share and name it by its absolute path, or name what is not needed in a .rayignore file\n"
            + "\n".join(luggage.lines())
        )
    return luggage


def check_travels(config: Config, files: Iterable[Path], luggage: Luggage, here: Path) -> list[str]:
    """Refuse what the job would not find: a file the run needs that is not among those that travel.

    Args:
        config: read in the working directory, where its relative paths start on the cluster.
        files: the configuration files, absolute.
        here: the current directory of the user.

    Returns:
        Notes about paths that do not travel because they are absolute or come from the hub.

    Raises:
        ConfigError: naming the key, the path and what to do for each.
    """
    wrong: list[str] = []
    notes: list[str] = []
    for file in files:
        wrong += _missing(f"the configuration file {file}", below(file, luggage.folder), str(file), luggage)
    for path in paths_of(config):
        if path.kind == "output":
            if not Path(path.value).is_absolute():
                notes.append(
                    f"{path.key} {path.value.shown} is relative: the run is written into the cluster's copy of the "
                    "working directory, which Ray deletes after a while. Give a folder that all nodes share: "
                    f"{path.key}=/shared/runs"
                )
            continue
        if path.kind == "code" and not path.value.file:
            wrong += _missing_module(path.key, path.value, luggage)
            continue
        file = Path(path.value.file)
        if file.is_absolute():
            notes.append(f"{path.key}: {path.value.shown} is absolute: every node of the cluster must have it")
            continue
        somewhere = (luggage.folder / file).exists() or (here / file).exists()
        if path.kind == "hub" and not somewhere and _is_hub_id(path.value):
            notes.append(f"{path.key}: {path.value.shown} is no folder here: the nodes get it from the hub")
            continue
        wrong += _missing(path.key, file, path.value.shown, luggage)
        if path.kind == "code":
            for beside in imported_beside(luggage.folder / file):
                name = beside.relative_to(luggage.folder) if beside.is_relative_to(luggage.folder) else beside
                wrong += _missing(f"{path.key}: {path.value.shown} imports", name, repr(str(name)), luggage)
    for key, text in _texts(config.model_dump(), ""):
        file = Path(text)
        if not file.is_absolute() and ((luggage.folder / file).exists() or (here / file).exists()):
            wrong += _missing(key, file, repr(text), luggage)
    if wrong:
        raise ConfigError(
            "\n  ".join(
                [
                    f"this does not travel to the cluster with the working directory {luggage.folder}, where relative "
                    "paths start; submit from another folder, give --working-dir, or name a folder that all nodes share "
                    "by its absolute path:",
                    *dict.fromkeys(wrong),
                ]
            )
        )
    return list(dict.fromkeys(notes))


def below(file: Path, folder: Path) -> Path:
    """An absolute path as one below `folder`, by its own name or by where a link leads; else as it is."""
    for path in (Path(os.path.normpath(file)), file.resolve()):
        if path.is_relative_to(folder):
            return path.relative_to(folder)
    return file


def _missing(what: str, path: Path, shown: str, luggage: Luggage) -> Iterator[str]:
    """A line where a file, or something of a folder, does not travel."""
    path = Path(os.path.normpath(path))
    said = what if shown in what else f"{what}: {shown}"
    if path.is_absolute() or ".." in path.parts:
        yield f"{said} lies outside of it"
        return
    whole = luggage.folder / path
    if not whole.is_dir():
        if path not in luggage.sizes:
            yield f"{said}: {luggage.why_not(path)}"
        return
    inside = [p.relative_to(luggage.folder) for p in whole.rglob("*") if p.is_file() and "__pycache__" not in p.parts]
    if lost := [p for p in inside if p not in luggage.sizes]:
        yield f"{said}: {len(lost)} of {len(inside)} files stay, such as {lost[0]}: {luggage.why_not(lost[0])}"


def _missing_module(key: str, name: ConfiguredPath, luggage: Luggage) -> Iterator[str]:
    """A line where a module that lies in the working directory does not travel; others are the nodes' to have."""
    parts = Path(*name.partition(":")[0].split("."))
    for path in (parts.with_suffix(".py"), parts / "__init__.py"):
        if (luggage.folder / path).is_file():
            yield from _missing(key, path, name.shown, luggage)


def _is_hub_id(name: str) -> bool:
    """Whether a path that does not exist can be an id of the hub: `name` or `owner/name`."""
    return not name.startswith((".", "/")) and name.count("/") <= 1


def imported_beside(file: Path) -> list[Path]:
    """The user's own modules that a Python file imports from its own folder, and what those import in turn."""
    found: dict[Path, None] = {}
    waiting = [file]
    while waiting:
        one = waiting.pop()
        try:
            tree = ast.parse(one.read_bytes())
        except (OSError, SyntaxError, ValueError):
            continue  # said where the file itself is checked
        for base, name in _imports(tree, file.parent, one.parent):
            parts = name.split(".")
            modules = [base.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
            for path in [p for m in modules for p in (m.with_name(f"{m.name}.py"), m / "__init__.py")]:
                if path.is_file() and path != file and path not in found:
                    found[path] = None
                    waiting.append(path)
    return list(found)


def _imports(tree: ast.AST, beside: Path, package: Path) -> Iterator[tuple[Path, str]]:
    """(folder, dotted name) of what is imported: from beside the user's file, or relative to the importing module."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((beside, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package.joinpath(*[".."] * (node.level - 1)) if node.level else beside
            yield from ((base, ".".join(filter(None, [node.module, alias.name]))) for alias in node.names)


def _texts(value: Any, key: str) -> Iterator[tuple[str, str]]:
    """Text of a configuration that may be a path though the schema does not know: parameters of the user's own code."""
    if isinstance(value, str):
        # With a separator or a suffix: a column that is called as a folder here is called is no path.
        if len(value) < 1024 and value.isprintable() and ("/" in value or Path(value).suffix) and ":" not in value:
            yield key, value
    elif isinstance(value, dict):
        for name, item in value.items():
            if (key, name) != ("", "runs_dir"):
                yield from _texts(item, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from _texts(item, f"{key}.{index}")
