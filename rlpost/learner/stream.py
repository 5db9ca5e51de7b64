"""A model's weights under checkpoint names, a part at a time: gathered, merged, taken apart and given away."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from rlpost import device
from rlpost.learner.adapters import lora_layers, merged
from rlpost.learner.masters import Masters, gathered
from rlpost.learner.survival import Survival
from rlpost.weights import tail

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class _Held:
    """A tensor of the model, by the name it has without adapters.

    Attributes:
        adapters: what is trained beside it, by parameter name, and `layer`, peft's, which adds them up.
    """

    name: str
    tensor: torch.Tensor
    layer: Any = None
    adapters: Mapping[str, nn.Parameter] = field(default_factory=dict)

    def described(self) -> torch.Tensor:
        """The whole tensor on the meta device: under ZeRO-3 this rank may hold nothing of it."""
        shape = tuple(getattr(self.tensor, "ds_shape", self.tensor.shape))
        return torch.empty(shape, dtype=self.tensor.dtype, device="meta")


@dataclass(frozen=True)
class _Unit:
    """What is converted together, and the shapes it becomes by checkpoint name. Mostly one tensor."""

    held: list[_Held]
    shapes: dict[str, tuple[int, ...]]

    @property
    def bytes(self) -> int:
        return sum(tensor.nbytes for tensor in map(_Held.described, self.held))


class WeightStream:
    """All weights of a model by the names and shapes of the Hugging Face checkpoint format, with the buffers among them.

    Adapters are merged in float32 and rounded once, tied weights come once, stacked experts are taken apart again. What
    belongs together is found by converting the model once without its numbers. A part is one such unit, or several that
    are together no larger than the largest: no more is ever gathered at once, whatever the size of the model.

    Args:
        masters: where adapters are more precise than in the model, asked for at each pass.
    """

    def __init__(self, model: PreTrainedModel, masters: Callable[[], Masters] = Masters) -> None:
        self._model = model
        self._masters = masters
        # States and biases that select experts, which must not round differently in learner and engine.
        self._exact = tuple(getattr(model, "_keep_in_fp32_modules_strict", None) or ())
        units = _units(model, _held(model))
        self.largest = max(unit.bytes for unit in units)
        self._parts = _parts(units, self.largest)

    def described(self, dtype: torch.dtype, wide: Collection[str] = ()) -> dict[str, torch.Tensor]:
        """What a pass yields, in its order, on the meta device. Nothing is gathered.

        Args:
            dtype: of all but what the model wants in float32 whatever its dtype.
            wide: ends of names (`rlpost.weights.tail`) of what is wanted in float32 besides.
        """
        return {
            name: torch.empty(shape, dtype=self._dtype(name, dtype, wide), device="meta")
            for unit in chain.from_iterable(self._parts)
            for name, shape in unit.shapes.items()
        }

    def parts(
        self, dtype: torch.dtype, wide: Collection[str] = (), keep: bool = True, survival: Survival | None = None
    ) -> Iterator[Iterator[tuple[str, torch.Tensor]]]:
        """A pass, part by part. Under ZeRO every rank must make it, in step: each part is gathered from all.

        A tensor may be the model's own memory, and must be read before the weights change. One that is kept keeps all
        that was gathered with it.

        Args:
            dtype, wide: as in `described`.
            keep: whether this rank wants the tensors; the parts of others are empty.
            survival: told what of the adapters is left after rounding.

        Yields:
            names and tensors of a part, to be used up before the next is asked for.

        Raises:
            RuntimeError: what came is not what was described: every tensor once, of its shape and dtype.
        """
        masters = self._masters()
        for units in self._parts:
            with gathered(
                [held.tensor for unit in units for held in unit.held if isinstance(held.tensor, nn.Parameter)]
            ):
                found = self._part(units, dtype, wide, keep, survival, masters)
                yield found
                if next(found, None) is not None:
                    raise RuntimeError("a part of the weights was not used up before the next was asked for")

    def tensors(
        self, dtype: torch.dtype, wide: Collection[str] = (), keep: bool = True, survival: Survival | None = None
    ) -> Iterator[tuple[str, torch.Tensor]]:
        """A pass, tensor by tensor: see `parts`."""
        for part in self.parts(dtype, wide, keep, survival):
            yield from part

    def _part(
        self,
        units: Sequence[_Unit],
        dtype: torch.dtype,
        wide: Collection[str],
        keep: bool,
        survival: Survival | None,
        masters: Masters,
    ) -> Iterator[tuple[str, torch.Tensor]]:
        for unit in units:
            trained = {name: masters.of(p) for held in unit.held for name, p in held.adapters.items()}
            if not keep:
                continue
            with torch.no_grad():
                values = {held.name: _value(held, trained, dtype, survival) for held in unit.held}
                found = _converted(self._model, values)
            del values, trained
            if (came := {name: tuple(tensor.shape) for name, tensor in found.items()}) != unit.shapes:
                raise RuntimeError(
                    f"{[held.name for held in unit.held]} of {type(self._model).__name__} became {came} and was to "
                    f"become {unit.shapes}: transformers' conversion of this model cannot be trusted with it"
                )
            device.settle(found.values())  # vLLM packs them on streams by turns, none of which knows of the others
            for name in unit.shapes:
                yield name, device.lend(found.pop(name).to(self._dtype(name, dtype, wide)))

    def _dtype(self, name: str, dtype: torch.dtype, wide: Collection[str]) -> torch.dtype:
        exact = tail(name) in wide or any(part in name for part in self._exact)
        return torch.float32 if exact else dtype


def _value(
    held: _Held, trained: Mapping[str, torch.Tensor], dtype: torch.dtype, survival: Survival | None
) -> torch.Tensor:
    """The tensor as it is, or with its adapter in `dtype`."""
    base = held.tensor.detach()
    if held.layer is None:
        return base
    return merged(held.name.removesuffix(".weight"), held.layer, base, trained, dtype, survival)


def _converted(model: PreTrainedModel, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(model, tensors))


def _held(model: PreTrainedModel) -> list[_Held]:
    layers = lora_layers(model)
    adapters: dict[str, dict[str, nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            adapters.setdefault(name.partition(".lora_")[0], {})[name] = parameter
    found = []
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            continue
        adapted = name.removesuffix(".base_layer.weight") if name.endswith(".base_layer.weight") else ""
        beside = (layers[adapted], adapters[adapted]) if adapted in layers else ()
        found.append(_Held(name.replace(".base_layer.", "."), parameter, *beside))
    persistent = model.state_dict().keys()
    return found + [_Held(name, buffer) for name, buffer in model.named_buffers() if name in persistent]


class _Origins(TorchDispatchMode):
    """Remembers of which of the first tensors each later one was made."""

    def __init__(self, tensors: Mapping[str, torch.Tensor]) -> None:
        super().__init__()
        self._of = {id(tensor): frozenset([name]) for name, tensor in tensors.items()}
        self._alive: list[torch.Tensor] = []  # an id is somebody else's when its tensor is gone

    def of(self, tensor: torch.Tensor) -> frozenset[str]:
        return self._of.get(id(tensor), frozenset())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, torch.Tensor)]
        made = func(*args, **(kwargs or {}))
        for tensor in (x for x in tree_leaves(made) if isinstance(x, torch.Tensor)):
            self._of[id(tensor)] = frozenset().union(*map(self.of, given))
            self._alive.append(tensor)
        return made


def _units(model: PreTrainedModel, held: Sequence[_Held]) -> list[_Unit]:
    """What must be converted together, in the model's order: found on the meta device, where it costs nothing.

    Raises:
        RuntimeError: a tensor of the checkpoint is made of none of the model's.
    """
    tensors = {one.name: one.described() for one in held}
    with _Origins(tensors) as origins:
        found = _converted(model, dict(tensors))
    unit_of = {name: {name} for name in tensors}
    for name, tensor in found.items():
        if not (joined := origins.of(tensor)):
            raise RuntimeError(
                f"{name} of a checkpoint of {type(model).__name__} is made of none of the model's tensors"
            )
        together = set().union(*(unit_of[one] for one in joined))
        unit_of.update(dict.fromkeys(together, together))
    shapes: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, tensor in found.items():
        unit = unit_of[next(iter(origins.of(tensor)))]
        shapes.setdefault(id(unit), {})[name] = tuple(tensor.shape)
    members: dict[int, list[_Held]] = {}
    for one in held:
        members.setdefault(id(unit_of[one.name]), []).append(one)
    return [_Unit(members[key], shapes[key]) for key in members if key in shapes]


def _parts(units: Sequence[_Unit], most: int) -> list[list[_Unit]]:
    """Neighbours together, as long as they are `most` bytes at most."""
    parts: list[list[_Unit]] = []
    room = 0
    for unit in units:
        if unit.bytes > room or not parts:
            parts.append([])
            room = most
        parts[-1].append(unit)
        room -= unit.bytes
    return parts
