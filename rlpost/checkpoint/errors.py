"""What a save can fail with."""


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or taken up."""


class DiskFullError(CheckpointError):
    """There is no room for a checkpoint."""
