"""Where a model is: one record, made from the configuration once, by which every part of it is loaded everywhere."""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass, replace
from pathlib import Path

from rlpost.config import ConfigError, Model
from rlpost.user_code import nearest

# Weights are taken as safetensors alone: other formats are pickles, which are programs, or not of transformers.
WEIGHTS = ("*.safetensors", "*.safetensors.index.json")
OTHER_WEIGHTS = (
    "*.bin",
    "*.pt",
    "*.pth",
    "*.ckpt",
    "*.h5",
    "*.msgpack",
    "*.gguf",
    "*.onnx",
    "*.tflite",
    "*.ot",
    "*.npz",
)
COMMIT = re.compile(r"[0-9a-f]{40}")
HUB_ID = re.compile(r"[\w.-]+(/[\w.-]+)?")


class OutOfReachError(ConfigError):
    """A hub id that is not in this machine's cache while the hub cannot be asked: elsewhere it may be there."""


@dataclass(frozen=True)
class ModelSource:
    """A model's tokenizer, configuration, generation configuration, code and weights.

    Attributes:
        path: a folder, or an id on the Hugging Face hub.
        revision: branch, tag or commit of a hub id; its main branch by default.
        trust_remote_code: run the code that comes with it. Nothing of it is run otherwise, and nobody is asked.
        key: the configuration's key that names it, for errors.
    """

    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    key: str = "model"

    @classmethod
    def of(cls, model: Model, path: str | None = None) -> ModelSource:
        """The policy's, or weights made from it at `path`: a warm-up, a checkpoint, an export."""
        own = path is None or path == model.path
        if path is None:
            path = model.path
            assert path is not None, "a model that is made on the spot has a place once it is made"
        return cls(str(path), model.revision if own else None, model.trust_remote_code)

    def __str__(self) -> str:
        return self.path if self.revision is None else f"{self.path}@{self.revision}"

    @property
    def local(self) -> Path | None:
        """The folder it names; None for what is no folder here."""
        path = Path(self.path)
        return path if path.is_dir() else None

    def folder(self, weights: bool = True) -> Path:
        """The folder on this machine that holds it: of a hub id the cache's, filled where the hub can be reached.

        Args:
            weights: whether they have to be there too.

        Raises:
            ConfigError: there is no such folder, and no such id or no way to it.
        """
        if (local := self.local) is not None:
            if self.revision is not None:
                raise ConfigError(
                    f"{self.key}.revision: {self.revision}, but {self.key}.path {self.path!r} is a folder, which has no "
                    "revisions: leave it out, or give the hub's id"
                )
            return local
        if Path(self.path).is_file():
            raise ConfigError(f"{self.key}.path {self.path!r} is a file: {_of_a_file(Path(self.path))}")
        if not HUB_ID.fullmatch(self.path):
            raise ConfigError(
                f"{self.key}.path {self.path!r}: no such folder{_near(self.path)} (relative paths start at the current "
                "directory)"
            )
        from huggingface_hub import constants

        return _snapshot(self, weights, constants.HF_HUB_CACHE)

    def pinned(self) -> ModelSource:
        """The same with the commit that its revision is now, so that a branch that moves is not another model later."""
        if self.local is not None:
            return self
        commit = self.folder(weights=False).name
        return replace(self, revision=commit) if COMMIT.fullmatch(commit) else self


@functools.cache
def _snapshot(source: ModelSource, weights: bool, cache: str) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import IncompleteSnapshotError, RevisionResolutionError

    ignored = [*OTHER_WEIGHTS, "*/*.safetensors", *(() if weights else WEIGHTS)]
    try:
        return Path(snapshot_download(source.path, revision=source.revision, ignore_patterns=ignored, cache_dir=cache))
    except IncompleteSnapshotError as error:
        # Perhaps of files that nobody needs: what is missing of a model is said by name where it is looked for.
        found = try_to_load_from_cache(source.path, "config.json", revision=source.revision, cache_dir=cache)
        if isinstance(found, str):
            return Path(found).parent
        raise _cannot_be_had(source, error) from None
    except (RevisionResolutionError, OSError, ValueError) as error:  # also all that the hub answers
        raise _cannot_be_had(source, error) from None


def _cannot_be_had(source: ModelSource, error: Exception) -> ConfigError:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    at = f", {source.key}.revision {source.revision!r}" if source.revision else ""
    said = (str(error).strip() or type(error).__name__).splitlines()[0]
    what = f"{source.key}.path {source.path!r}{at}: no folder of that name{_near(source.path)}"
    if isinstance(error, (HfHubHTTPError, HFValidationError)):  # the hub has answered
        return ConfigError(f"{what}, and the hub has no such model for you: {said}")
    if _meant_as_path(source.path):
        return ConfigError(f"{what} (relative paths start at the current directory)")
    return OutOfReachError(f"{what}, and as a Hugging Face id it is not in the cache of this machine: {said}")


def _near(path: str) -> str:
    """The folder that is nearly called so, if there is one."""
    parent = Path(path).parent
    return nearest(Path(path).name, [p.name for p in parent.iterdir() if p.is_dir()]) if parent.is_dir() else ""


def _meant_as_path(path: str) -> bool:
    """Whether what could be `owner/name` on the hub begins with a folder that is here."""
    first, slash, _ = path.partition("/")
    return bool(slash) and Path(first).is_dir()


def _of_a_file(path: Path) -> str:
    if path.suffix == ".gguf":
        return "GGUF is a format for inference; give a folder in the Hugging Face format"
    return "give the folder with its config.json, tokenizer and safetensors"
