"""One folder with all state of a step: written whole or not at all, verified before it is believed."""

from rlpost.checkpoint.store import Checkpoint, CheckpointError, newest, retain, write

__all__ = ["Checkpoint", "CheckpointError", "newest", "retain", "write"]
