"""The anchors that are models of their own, as a learner rank holds them: loaded, averaged, moved, kept.

When an anchor moves is decided on the driver (`rlpost.objective.reference`); here is how. Under ZeRO-3 a rank holds the
same shards of an anchor as of the policy, so that a move needs no communication.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from rlpost import torch_files
from rlpost.models.source import ModelSource

if TYPE_CHECKING:
    from torch import Tensor, nn

    from rlpost.learner.batch import Grid
    from rlpost.learner.logprobs import Against


@dataclass(frozen=True)
class AnchorSpec:
    """Where an anchor's weights come from.

    Attributes:
        origin: (model, share): one, or several to be averaged; shares sum to 1.
        movable: whether it can follow the policy later.
    """

    origin: tuple[tuple[ModelSource, float], ...]
    movable: bool = False


class References:
    """Anchors by name.

    Anchors that cannot move and come from the same weights are one model. A movable one has the parameters of the
    policy by name and shape, adapters included; those begin as the policy's own, as no folder holds them. With
    adapters an average is one of the factors, weight by weight, which is not that of their products.

    A movable anchor in bfloat16 keeps a float32 copy of its weights from the first partial move on (4 bytes a weight,
    sharded under ZeRO-3): small steps would be rounded away else. What it moves towards are the policy's weights as
    they compute, in bfloat16.

    Args:
        anchors: by name.
        load: (source, movable) -> the model, a `Policy` or, under ZeRO-3, the engine around one; ready to be called, on
            its device, and with adapters when movable. All ranks call it in the same order.
        policy: what is trained, without an engine around it; `move` is to be given the same.

    Raises:
        ValueError: an origin is missing, its members do not match, or a movable anchor does not match the policy.
    """

    def __init__(
        self, anchors: Mapping[str, AnchorSpec], load: Callable[[ModelSource, bool], nn.Module], policy: nn.Module
    ) -> None:
        self._models: dict[str, Any] = {}
        self._movable: list[str] = []
        self._precise: dict[str, dict[str, Tensor]] = {}  # by anchor, float32 copies of narrower weights
        shared: dict[tuple[tuple[ModelSource, float], ...], Any] = {}
        for name, spec in anchors.items():
            if not spec.origin:
                raise ValueError(f"anchor {name!r} has no weights to begin with")
            if spec.movable:
                self._movable.append(name)
                self._models[name] = self._begin(name, _load(spec, load), policy)
                continue
            if spec.origin not in shared:
                shared[spec.origin] = _load(spec, load)
            self._models[name] = shared[spec.origin]

    def names(self) -> list[str]:
        """In the order given."""
        return list(self._models)

    def __contains__(self, name: str) -> bool:
        return name in self._models

    def policy(self, name: str) -> Any:
        """The anchor, called like a `Policy`. Nothing of it requires a gradient.

        Raises:
            ValueError: no such anchor.
        """
        if name not in self._models:
            raise ValueError(f"no anchor {name!r} is held by this rank (held: {', '.join(self._models) or 'none'})")
        return self._models[name]

    def against(self, name: str, grid: Grid, divergence: Callable[[Tensor, Tensor], Tensor]) -> Against:
        """What the policy's forward needs to compute a divergence from the anchor over the whole vocabulary.

        Raises:
            ValueError: no such anchor, or its head is not here as a whole.
        """
        import torch

        from rlpost.learner.logprobs import Against

        anchor = self.policy(name)
        if _sharded(anchor):
            raise ValueError(
                f"anchor {name!r}: a divergence over the whole vocabulary (form: full) needs its head as a whole, and "
                "ZeRO-3 shards it: set learner.zero_stage to 2 or less, or take another form"
            )
        with torch.no_grad():
            hidden = anchor.hidden(grid.input_ids, grid.position_ids, grid.predictors, grid.segments)
        return Against(hidden, anchor.logprobs, divergence)

    def move(self, name: str, amount: float, policy: nn.Module) -> None:
        """anchor <- (1 - amount) anchor + amount policy, weight by weight. All ranks.

        Args:
            amount: in (0, 1]; 1 copies the policy exactly.

        Raises:
            ValueError: no such anchor, one that cannot move, or another amount.
        """
        import torch

        anchor = self.policy(name)
        if name not in self._movable:
            raise ValueError(f"anchor {name!r} cannot move: it was not loaded for that")
        if not 0 < amount <= 1:
            raise ValueError(f"anchor {name!r} cannot move by {amount}: the amount must be in (0, 1]")
        weights, targets = _weights(anchor), _weights(policy)
        _check_match(f"anchor {name!r}", weights, "the policy", targets)
        with torch.no_grad():
            if amount == 1:
                self._precise.pop(name, None)
                for key, weight in weights.items():
                    weight.copy_(targets[key])
            else:
                precise = self._precise.setdefault(name, _widened(weights))
                for key, weight in weights.items():
                    moved = precise.get(key, weight)
                    moved.lerp_(targets[key].to(moved), amount)
                    weight.copy_(moved)
            _gather_again(anchor)

    def save(self, folder: Path | str, rank: int) -> None:
        """Write the weights of movable anchors: this rank's shards under ZeRO-3, all of them from rank 0 otherwise."""
        import torch

        for name in self._movable:
            if not _sharded(self._models[name]) and rank != 0:
                continue
            file = _file(folder, name, rank if _sharded(self._models[name]) else None)
            file.parent.mkdir(parents=True, exist_ok=True)
            tensors = {**_weights(self._models[name]), **self._precise.get(name, {})}
            # A copy each: a shard may be a view, and all that it is a view of would be written.
            torch.save({key: tensor.to("cpu", copy=True) for key, tensor in tensors.items()}, file)

    def load(self, folder: Path | str, rank: int) -> None:
        """Restore what `save` wrote, of other ranks or under another ZeRO stage too. All ranks.

        Raises:
            FileNotFoundError: there are no weights of an anchor that can move.
            ValueError: they are of another model.
        """
        import torch

        for name in self._movable:
            anchor = self._models[name]
            weights, saved = _weights(anchor), self._saved(Path(folder), name, rank)
            _check_match(f"anchor {name!r}", weights, str(folder), saved)
            with torch.no_grad():
                for key, weight in weights.items():
                    weight.copy_(saved[key])
                self._precise.pop(name, None)
                if any(saved[key].dtype != weight.dtype for key, weight in weights.items()):
                    self._precise[name] = {
                        key: saved[key].to(weight.device, _wide(weight.dtype))
                        for key, weight in weights.items()
                        if weight.dtype != _wide(weight.dtype)
                    }
                _gather_again(anchor)

    def _begin(self, name: str, anchor: nn.Module, policy: nn.Module) -> nn.Module:
        """A movable anchor with the policy's adapters."""
        import torch

        weights, targets = _weights(anchor), _weights(policy)
        _check_match(f"anchor {name!r}", weights, "the policy", targets)
        with torch.no_grad():
            for key, weight in weights.items():
                if "lora_" in key:
                    weight.copy_(targets[key])
            _gather_again(anchor)
        return anchor

    def _saved(self, folder: Path, name: str, rank: int) -> dict[str, Tensor]:
        """An anchor's weights by name as this rank is to hold them, whoever wrote them."""
        whole = _file(folder, name)
        shards: list[Path] = []
        while (file := _file(folder, name, len(shards))).is_file():
            shards.append(file)
        if not shards and not whole.is_file():
            raise FileNotFoundError(
                f"no weights of anchor {name!r} in {folder}: the checkpoint is of a run where it could not move"
            )
        parts = [torch_files.load(f, mmap=True) for f in shards or [whole]]
        model = getattr(self._models[name], "module", self._models[name])
        saved, parameters = dict(parts[0]), dict(model.named_parameters())
        for key in saved.keys() & parameters.keys():
            try:
                saved[key] = _portion([part[key] for part in parts], parameters[key], rank)
            except ValueError as error:
                raise ValueError(f"anchor {name!r} and {folder} do not have the same weights: {key}: {error}") from None
        return saved


def _file(folder: Path | str, name: str, rank: int | None = None) -> Path:
    """Where an anchor's weights are: a rank's shards, or all of them."""
    shard = "" if rank is None else f".rank{rank}"
    return Path(folder) / f"{quote(name, safe='')}{shard}.pt"


def _portion(parts: Sequence[Tensor], parameter: nn.Parameter, rank: int) -> Tensor:
    """What a rank holds of a parameter that was saved: all of it, or under ZeRO-3 its own shard, with padding.

    Args:
        parts: all of it, or the shards of all ranks.
    """
    import torch

    own = getattr(parameter, "ds_tensor", None)
    if own is not None and rank < len(parts) and parts[rank].shape == own.shape:
        return parts[rank]
    numel, row = getattr(parameter, "ds_numel", parameter.numel()), torch.cat([part.flatten() for part in parts])
    if not 0 <= row.numel() - numel < len(parts):  # shards are padded to one length
        raise ValueError(f"{row.numel()} values of a parameter of {numel} were saved")
    if own is None:
        return row[:numel].view(parameter.shape)
    room = own.numel()
    return torch.nn.functional.pad(row[:numel], (0, max(0, room * (rank + 1) - numel)))[room * rank : room * (rank + 1)]


def _load(spec: AnchorSpec, load: Callable[[ModelSource, bool], nn.Module]) -> nn.Module:
    """The model of an origin; the average of several, summed in float32 or better and rounded once."""
    import torch

    model = load(spec.origin[0][0], spec.movable)
    model.eval()  # that of a DeepSpeed engine returns nothing, so no chain
    model.requires_grad_(False)
    if len(spec.origin) == 1:
        return model
    weights = _weights(model)
    sums = {key: torch.zeros_like(w, dtype=_wide(w.dtype), device="cpu") for key, w in weights.items()}
    for i, (source, share) in enumerate(spec.origin):
        member = _weights(model if i == 0 else load(source, spec.movable))
        _check_match(str(spec.origin[0][0]), weights, str(source), member)
        for key, sum_ in sums.items():
            sum_.add_(member[key].to(sum_), alpha=share)
    with torch.no_grad():
        for key, weight in weights.items():
            weight.copy_(sums[key])
        _gather_again(model)
    return model


def _weights(model: Any) -> dict[str, Tensor]:
    """By name, parameters (under ZeRO-3 this rank's shards) and the real-valued buffers that a checkpoint holds.

    Writing to them writes to the model.
    """
    model = getattr(model, "module", model)
    found = {name: getattr(p, "ds_tensor", p).detach() for name, p in model.named_parameters()}
    kept = model.state_dict().keys()
    buffers = {name: b.detach() for name, b in model.named_buffers() if name in kept and b.is_floating_point()}
    return {**found, **buffers}


def _check_match(what: str, ours: Mapping[str, Tensor], other: str, theirs: Mapping[str, Tensor]) -> None:
    unmatched = sorted(ours.keys() ^ theirs.keys())
    if unmatched:
        raise ValueError(
            f"{what} and {other} do not have the same weights: only one of them has {', '.join(unmatched[:3])}"
            f"{f' and {len(unmatched) - 3} more' if len(unmatched) > 3 else ''}"
        )
    for key, tensor in ours.items():
        if tensor.shape != theirs[key].shape:
            raise ValueError(
                f"{what} and {other} do not have the same weights: {key} is {tuple(tensor.shape)} in one and "
                f"{tuple(theirs[key].shape)} in the other"
            )


def _widened(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies, in float32, of those that are narrower."""
    return {key: w.to(_wide(w.dtype)) for key, w in weights.items() if w.dtype != _wide(w.dtype)}


def _wide(dtype: Any) -> Any:
    import torch

    return torch.promote_types(dtype, torch.float32)


def _sharded(model: Any) -> bool:
    return any(hasattr(p, "ds_tensor") for p in model.parameters())


def _gather_again(model: Any) -> None:
    """ZeRO-3 leaves small parameters gathered between forwards; after a change of shards those copies are stale."""
    gathered = [p for p in model.parameters() if hasattr(p, "ds_status") and p.ds_status.name == "AVAILABLE"]
    if gathered:
        gathered[0].partition(gathered)
        gathered[0].all_gather(gathered)
