"""A second place for sealed checkpoints, at any URL that fsspec knows (s3://, gs://, memory://, another disk).

There is no renaming of folders there: a checkpoint is its files, and the manifest, which is uploaded last and removed first.
What has no manifest is no checkpoint.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from pydantic import ValidationError

from rlpost.checkpoint.errors import CheckpointError
from rlpost.checkpoint.manifest import FILE, LONGEST, Manifest
from rlpost.config import ConfigError

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

ATTEMPTS = 4
PAUSE = 2.0  # seconds before the second attempt, twice as many before each later one
T = TypeVar("T")


class Mirror:
    """The checkpoints of one run below a URL.

    Args:
        url: of a folder that runs may share.
        run: `run_id` of the run, the name of its folder there.

    Raises:
        ConfigError: fsspec does not know the URL, or lacks what it needs for it.
    """

    def __init__(self, url: str, run: str) -> None:
        import fsspec

        self.url = f"{url.rstrip('/')}/{run}"
        self.run = run
        self._files: AbstractFileSystem
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"checkpoint.mirror: {url}: {error}") from None

    def put(self, folder: Path, keep: Collection[str]) -> None:
        """Upload a sealed checkpoint, then drop the run's others there but those of these names.

        Raises:
            CheckpointError: it cannot be uploaded, after some attempts.
        """
        manifest = Manifest.model_validate_json((folder / FILE).read_bytes())
        self._remove(folder.name)  # of a run that was resumed from before it
        for name in (*(manifest.files or {}), FILE):
            target = f"{self._root}/{folder.name}/{name}"
            self._again(f"upload {name}", self._upload, folder / name, target)
        for name in self._names():
            if name not in keep and name != folder.name:
                self._remove(name)

    def fetch(self, folder: Path) -> list[str]:
        """Download the newest checkpoint of the run into a folder of checkpoints. It is not verified here.

        Returns:
            what was passed over and why.
        """
        found, rejected = [], []
        for name in self._names():
            try:
                found.append((self._manifest(name), name))
            except (OSError, ValidationError) as error:
                rejected.append(f"{self.url}/{name}: {FILE} cannot be read: {error}")
        own = [(m, name) for m, name in found if m.run == self.run and m.files is not None]
        if not own:
            return rejected
        newest, there = max(own, key=lambda pair: pair[0].step)
        draft = folder / newest.draft
        shutil.rmtree(draft, ignore_errors=True)
        for file in (*(newest.files or {}), FILE):
            (draft / file).parent.mkdir(parents=True, exist_ok=True)
            self._again(f"download {file}", self._files.get_file, f"{self._root}/{there}/{file}", str(draft / file))
        draft.rename(folder / f"step_{newest.step:06d}")
        return rejected

    def _upload(self, file: Path, target: str) -> None:
        self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
        self._files.put_file(str(file), target)

    def _names(self) -> list[str]:
        """Folders below the run's that have a manifest."""
        if not self._again("look", self._files.exists, self._root):
            return []
        self._files.invalidate_cache(self._root)
        found = self._again("list", self._files.glob, f"{self._root}/*/{FILE}")
        return sorted(str(path).split("/")[-2] for path in found)

    def _manifest(self, name: str) -> Manifest:
        text = self._again("read a manifest", self._files.cat_file, f"{self._root}/{name}/{FILE}", 0, LONGEST)
        return Manifest.model_validate_json(text)

    def _remove(self, name: str) -> None:
        folder = f"{self._root}/{name}"
        if not self._files.exists(f"{folder}/{FILE}"):
            return
        try:
            manifest = self._manifest(name)
        except ValidationError:
            return  # somebody else's
        if manifest.run != self.run:
            return
        self._again("remove", self._files.rm_file, f"{folder}/{FILE}")
        for file in manifest.files or {}:
            if self._files.exists(f"{folder}/{file}"):
                self._again("remove", self._files.rm_file, f"{folder}/{file}")

    def _again(self, what: str, call: Callable[..., T], *args: object) -> T:
        """Several attempts: storage that is reached over a network answers with errors that pass."""
        for attempt in range(ATTEMPTS):
            try:
                return call(*args)
            except Exception as error:
                if attempt + 1 == ATTEMPTS:
                    raise CheckpointError(
                        f"checkpoint.mirror: could not {what} at {self.url}, {ATTEMPTS} times: {error!r}; checkpoints in "
                        "the run's folder are untouched"
                    ) from error
                time.sleep(PAUSE * 2**attempt)
        raise AssertionError
