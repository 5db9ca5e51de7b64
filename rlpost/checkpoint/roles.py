"""State of the objective's roles and the data strategy, which may hold arrays, beside the driver's JSON."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from rlpost import torch_files

FILE = "roles.pt"


def save_roles(folder: Path, state: dict[str, Any]) -> None:
    """Write a nested state of plain data and numpy arrays."""
    import torch

    torch.save(_mapped(state, np.ndarray, torch.from_numpy), folder / FILE)


def load_roles(folder: Path) -> dict[str, Any]:
    """Read what `save_roles` wrote. Nothing in the file is run."""
    import torch

    state: dict[str, Any] = torch_files.load(folder / FILE)
    return _mapped(state, torch.Tensor, lambda tensor: tensor.numpy())


def _mapped(value: Any, kind: type, change: Callable[[Any], Any]) -> Any:
    if isinstance(value, kind):
        return change(value)
    if isinstance(value, dict):
        return {key: _mapped(item, kind, change) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, kind, change) for item in value]
    return value
