"""The optimizer's state of ranks that share it otherwise: another number of them, another ZeRO stage, another dtype.

Whoever holds it, it is a float32 weight and AdamW's two moments for each parameter that trains. DeepSpeed lays them one
behind the other into flat tensors, of which each rank has a part, or a part of every parameter (ZeRO-3). Where what lies is
`Piece`s, of those that were saved as of those that are here, and a rank copies what both have. Files are mapped, so that it
reads its own part alone. DeepSpeed's universal checkpoint would write all of it anew first, and knows no ZeRO 0.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

WEIGHT, MOMENTS = "weight", ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Piece:
    """A stretch of a parameter, taken as a row, in a flat tensor.

    Attributes:
        flat: number of the flat tensor.
        at: where it begins there.
        start: where it begins in the parameter.
        numel: how long it is.
    """

    flat: int
    at: int
    start: int
    numel: int


class Saved:
    """What ranks wrote of one step. Nothing in their files is run.

    Args:
        folder: with DeepSpeed's files.

    Attributes:
        ranks, stage, dtype: how it is shared.
        client: what was given to DeepSpeed to keep.
        buffers: of the model, whole, and under ZeRO 0 to 2 its weights, by name.

    Raises:
        FileNotFoundError: a rank's file is not there.
        ValueError: what it holds cannot be taken apart.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        first = self._file("*mp_rank_00_model_states.pt")
        self.client = model = _mapped(first)
        settings = model["ds_config"]
        self.ranks: int = model["dp_world_size"]
        self.stage: int = settings.get("zero_optimization", {}).get("stage", 0)
        self.dtype = "bfloat16" if settings.get("bf16", {}).get("enabled") else "float32"
        self.buffers: Mapping[str, Tensor] = model["module"]

    def holds(self, ranks: int, stage: int, dtype: str) -> bool:
        """Whether it is shared so, and DeepSpeed can take it up itself."""
        return (self.ranks, self.stage, self.dtype) == (ranks, stage, dtype)

    def read(self, shapes: Mapping[str, torch.Size]) -> State:
        """
        Args:
            shapes: of the parameters that train, in their order.
        """
        if self.stage == 0:
            return self._whole(shapes)
        flats: list[dict[str, Tensor]] = []
        pieces: dict[str, list[Piece]] = {}
        base: dict[str, Any] = {}
        for rank in range(self.ranks):
            state = _mapped(self._file(f"*zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"))["optimizer_state_dict"]
            base = state["optimizer_state_dict" if self.stage == 3 else "base_optimizer_state"]
            weights = state["fp32_flat_groups" if self.stage == 3 else "single_partition_of_fp32_groups"]
            for number, (weight, where) in enumerate(zip(weights, self._layout(state, rank), strict=True)):
                flats.append({WEIGHT: weight, **_moments(base, number)})
                for name, at, numel in where:
                    before = sum(p.numel for p in pieces.setdefault(name, []))
                    pieces[name].append(Piece(len(flats) - 1, at, before, numel))
        return State(flats, pieces, **_where(base))

    def _layout(self, state: dict[str, Any], rank: int) -> Iterator[list[tuple[str, int, int]]]:
        """For each flat tensor of a rank what lies in it: (parameter, where, how much)."""
        if self.stage != 3:
            for mapping in state["param_slice_mappings"]:
                yield [(name, address.start, address.numel) for name, address in mapping.items()]
            return
        for shapes in self.client["param_shapes"]:
            found, at = [], 0
            for name, shape in shapes.items():
                _, numel, room = _share(shape.numel(), rank, self.ranks)
                found.append((name, at, numel))
                at += room
            yield found

    def _whole(self, shapes: Mapping[str, torch.Size]) -> State:
        """Of ZeRO 0, where every rank holds everything, and the optimizer numbers parameters in their order."""
        saved = self.client["optimizer"]
        base = saved.get("optimizer_state_dict", saved)
        moments = base["state"]
        wide = [weight for group in saved.get("fp32_groups", []) for weight in group]  # of a model in bfloat16
        flats, pieces = [], {}
        for number, (name, shape) in enumerate(shapes.items()):
            weight = (wide[number] if number < len(wide) else None) if wide else self.buffers.get(name)
            if weight is None or weight.shape != shape or (moments and moments[number]["exp_avg"].shape != shape):
                raise ValueError(_other({name}))
            flats.append({k: v.flatten() for k, v in {WEIGHT: weight, **_moments(base, number)}.items()})
            pieces[name] = [Piece(number, 0, 0, shape.numel())]
        return State(flats, pieces, **_where(base))

    def _file(self, pattern: str) -> Path:
        found = sorted(self._folder.glob(pattern))
        if not found:
            raise FileNotFoundError(f"{self._folder} has no {pattern}: the checkpoint is not whole")
        return found[0]


@dataclass(frozen=True)
class State:
    """Flat tensors by what they hold (`WEIGHT`, `MOMENTS`), and where each parameter lies in them.

    Attributes:
        flats: float32; moments are missing before the first optimizer step.
        pieces: by parameter, in its order.
        step: optimizer steps that were taken.
        lr: of the latest of them.
    """

    flats: list[dict[str, Tensor]]
    pieces: dict[str, list[Piece]]
    step: float
    lr: float

    def copy(self, key: str, name: str, start: int, into: Tensor) -> None:
        """Copy a stretch of a parameter, as long as `into`.

        Raises:
            ValueError: some of it is not here.
        """
        done = 0
        for piece in self.pieces[name]:
            low, high = max(start, piece.start), min(start + into.numel(), piece.start + piece.numel)
            if low < high:
                at = piece.at + low - piece.start
                into[low - start : high - start].copy_(self.flats[piece.flat][key][at : at + high - low])
                done += high - low
        if done != into.numel():
            raise ValueError(f"{name} has {into.numel()} values from {start} on, and {done} of them were saved")

    @property
    def begun(self) -> bool:
        return all(set(MOMENTS) <= flat.keys() for flat in self.flats)


def restore(engine: Any, saved: Saved) -> None:
    """Give a DeepSpeed engine what others have saved: weights, moments, step count, buffers. All ranks.

    Raises:
        ValueError: it is of other parameters.
    """
    module, optimizer = engine.module, engine.optimizer
    trained = {name: p for name, p in module.named_parameters() if p.requires_grad}
    state = saved.read({name: getattr(p, "ds_shape", p.shape) for name, p in trained.items()})
    if other := trained.keys() ^ state.pieces.keys():
        raise ValueError(_other(other))
    stage = engine.zero_optimization_stage()
    base = optimizer.optimizer if stage or hasattr(optimizer, "fp32_groups") else optimizer
    flats, pieces = _here(stage, optimizer, base, trained)
    if stage == 3:
        optimizer.checkpoint_event_prologue()  # nothing is gathered while shards change
    for group in base.param_groups:
        group["lr"] = state.lr
    with torch.no_grad():
        rows = [_row(flat, base, state) for flat in flats]
        for name, piece in ((name, piece) for name, own in pieces.items() for piece in own):
            for key, row in rows[piece.flat].items():
                state.copy(key, name, piece.start, row[piece.at : piece.at + piece.numel])
        for name, buffer in module.named_buffers():
            if name in saved.buffers:
                buffer.copy_(saved.buffers[name])
        _narrow(stage, optimizer, flats)


def _here(
    stage: int, optimizer: Any, base: Any, trained: Mapping[str, nn.Parameter]
) -> tuple[list[Tensor], dict[str, list[Piece]]]:
    """The flat tensors that the optimizer of this rank moves, and what lies in them, padding left out."""
    pieces: dict[str, list[Piece]] = {name: [] for name in trained}
    if stage == 0:
        flats = [p for group in base.param_groups for p in group["params"]]
        for number, (name, parameter) in enumerate(trained.items()):
            pieces[name] = [Piece(number, 0, 0, parameter.numel())]
        return flats, pieces
    if stage == 3:
        for name, parameter in trained.items():
            group, at, _ = optimizer.grad_position[optimizer.get_param_id(parameter)]
            start, numel, _ = _share(
                parameter.ds_numel, torch.distributed.get_rank(), torch.distributed.get_world_size()
            )
            pieces[name] = [Piece(group, at, start, numel)]
        return optimizer.fp32_partitioned_groups_flat, pieces
    for name, parameter in trained.items():
        mapping = parameter._hp_mapping  # None: no part of it is this rank's
        if mapping is not None:
            here, whole = mapping.hp_fragment_address, mapping.lp_fragment_address
            pieces[name] = [Piece(mapping.param_group_index, here.start, whole.start, here.numel)]
    return [group["params"][0] for group in base.param_groups], pieces


def _row(flat: Tensor, base: Any, state: State) -> dict[str, Tensor]:
    """A flat tensor of the optimizer and its moments, as rows to be written to. Moments begin as zeros, as padding is."""
    moments = {key: torch.zeros_like(flat) for key in MOMENTS} if state.begun else {}
    if moments:
        base.state[flat] = {"step": torch.tensor(state.step), **moments}
    return {key: tensor.detach().view(-1) for key, tensor in {WEIGHT: flat, **moments}.items()}


def _narrow(stage: int, optimizer: Any, flats: list[Tensor]) -> None:
    """Make the weights that the model computes with those that the optimizer moves."""
    if stage == 3:
        for group in range(len(flats)):
            optimizer._reassign_or_swap_out_partitioned_parameters(group)
        optimizer.checkpoint_event_epilogue()
    elif stage:
        optimizer.update_lp_params()
    elif hasattr(optimizer, "fp32_groups"):
        for narrow, wide in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for parameter, copy in zip(narrow, wide, strict=True):
                parameter.copy_(copy)


def _share(numel: int, rank: int, ranks: int) -> tuple[int, int, int]:
    """Of a parameter that ZeRO-3 shares out: where a rank's part begins, how long it is, and with padding."""
    room = -(-numel // ranks)
    start = min(rank * room, numel)
    return start, min(room, numel - start), room


def _moments(base: Mapping[str, Any], number: int) -> dict[str, Tensor]:
    return {key: base["state"][number][key] for key in MOMENTS} if number in base["state"] else {}


def _where(base: Mapping[str, Any]) -> dict[str, float]:
    """How far an optimizer has come, by its `state_dict`."""
    steps = [float(state["step"]) for state in base["state"].values()]
    return {"step": max(steps, default=0.0), "lr": base["param_groups"][0]["lr"]}


def _other(names: set[str]) -> str:
    return (
        f"the checkpoint's parameters are not those that train now: {len(names)} differ, such as {min(names)}: resume with "
        "the model and the model.lora the run began with"
    )


def _mapped(file: Path) -> dict[str, Any]:
    """A file of DeepSpeed's, its tensors mapped and not read."""
    from rlpost.learner import shards

    found: dict[str, Any] = shards.load(file, mmap=True)
    return found
