"""One folder with all state of a step: written whole or not at all, verified before it is believed."""

from rlpost.checkpoint import flight
from rlpost.checkpoint.errors import CheckpointError, DiskFullError
from rlpost.checkpoint.mirror import Mirror
from rlpost.checkpoint.roles import load_roles, save_roles
from rlpost.checkpoint.store import Checkpoint, Store

__all__ = ["Checkpoint", "CheckpointError", "DiskFullError", "Mirror", "Store", "flight", "load_roles", "save_roles"]
