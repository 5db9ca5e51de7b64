"""Adapters served by vLLM beside the base weights, and changed in memory.

The learner's tensors go into vLLM's own LoRA manager under one id, which every request names; nothing is read from disk.
vLLM slices and packs them as it does those of a file. Written against vLLM 0.30; others are not tried and serve merged
weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlpost.weights import Probe, checksum, to_numpy, to_tensor

TRIED_VERSIONS = ("0.30.",)
ID = 1
NAME = "policy"
# Ranks that vLLM sets memory aside for.
RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class AdaptersRefusedError(RuntimeError):
    """This engine cannot serve these adapters; merged weights it can."""


@dataclass(frozen=True)
class AdapterSpec:
    """Adapters as an engine needs to know them before it starts.

    Attributes:
        rank: of each.
        modules: full names of the adapted modules, as transformers has them.
        dora: whether they have magnitudes too, which vLLM does not serve.
    """

    rank: int
    modules: tuple[str, ...]
    dora: bool = False


def engine_arguments(spec: AdapterSpec, version: str, model_class: type) -> dict[str, Any]:
    """What vLLM's EngineArgs are told, so that the engine holds one adapter.

    Raises:
        AdaptersRefusedError: this vLLM or this class of model does not serve them.
    """
    from vllm.model_executor.models import supports_lora

    if spec.dora:
        raise AdaptersRefusedError("vLLM serves no DoRA")
    if not version.startswith(TRIED_VERSIONS):
        raise AdaptersRefusedError(f"changing adapters in memory was never tried with vLLM {version}")
    if not supports_lora(model_class):
        raise AdaptersRefusedError(f"vLLM's {model_class.__name__} has no LoRA")
    return {
        "enable_lora": True,
        "max_loras": 1,
        "max_cpu_loras": 1,
        "max_lora_rank": served_rank(spec.rank),
        # Else vLLM wraps embeddings, head and experts too, which get no adapter.
        "lora_target_modules": sorted({name.rpartition(".")[2] for name in spec.modules}),
    }


def served_rank(rank: int) -> int:
    """The rank vLLM sets memory aside for, for adapters of this one.

    Raises:
        AdaptersRefusedError: it holds none as large.
    """
    found = next((r for r in RANKS if r >= rank), None)
    if found is None:
        raise AdaptersRefusedError(f"vLLM holds adapters of rank {RANKS[-1]} at most, and these have {rank}")
    return found


def request() -> Any:
    """What every request of the engine carries. The path is never opened: the adapter is there before a request is."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(NAME, ID, lora_path="in-memory")


# ------------------------------------------------------------------------------- run inside vLLM's workers


def unknown(worker: Any, modules: Sequence[str]) -> list[str]:
    """Those of the modules that no layer of the engine takes an adapter for."""
    manager = _manager(worker)
    held = set(manager.modules) - set(manager.packed_modules)
    held |= {name for packed in manager.packed_modules.values() for name in packed}
    names = {module: _parsed(worker, f"base_model.model.{module}.lora_A.weight") for module in modules}
    return [module for module, name in names.items() if name not in held]


def put(worker: Any, arrays: dict[str, np.ndarray], rank: int) -> None:
    """Serve these adapters from the next forward on, in place of those before.

    Args:
        arrays: A (rank, in) and B (out, rank) by PEFT's names, in the dtype of the engine's adapters; the scaling is in B.
    """
    from vllm.lora.lora_model import LoRAModel
    from vllm.lora.peft_helper import PEFTHelper

    manager = _manager(worker)
    dtype = manager.lora_config.lora_dtype
    model = LoRAModel.from_lora_tensors(
        ID,
        # Copies: vLLM packs and scales in place, and these may lie in memory that is shared between engines.
        {name: to_tensor(array).clone() for name, array in arrays.items()},
        PEFTHelper(r=rank, lora_alpha=rank, target_modules=[]),
        device="cpu",
        dtype=dtype,
        weights_mapper=_mapper(worker),
    )
    manager.remove_adapter(ID)
    manager.add_adapter(model)
    manager.activate_adapter(ID)


def wrong_probes(worker: Any, probes: dict[str, Probe]) -> list[str]:
    """Names of the probed tensors that are not those the worker computes with.

    What was given is compared with the learner's, and the worker's own part of it, cut by the layer, with the memory that
    the kernels read.
    """
    import torch

    manager = _manager(worker)
    model = manager.get_adapter(ID)
    if model is None or ID not in manager.lora_index_to_id:
        return sorted(probes)
    slot = manager.lora_index_to_id.index(ID)
    place = {name: (name, None) for name in manager.modules if name not in manager.packed_modules}
    for whole, parts in manager.packed_modules.items():
        place |= {part: (whole, i) for i, part in enumerate(parts)}

    def held(name: str) -> bool:
        module, which = _parsed(worker, name), "a" if ".lora_A." in name else "b"
        where = place.get(module)
        if where is None or (weights := model.get_lora(where[0])) is None:
            return False
        own = getattr(weights, f"lora_{which}")
        given = own if where[1] is None else own[where[1]]
        if checksum(to_numpy(given.cpu())) != probes[name].checksum:
            return False
        layer = manager.modules[where[0]]
        if where[1] is not None and hasattr(layer, "expand_packed_lora") and len(own) != layer.n_slices:
            return True  # one factor over several slices: what it is cut into has no name of its own
        if layer.tp_size > 1:
            own = getattr(layer, f"slice_lora_{which}")(own)
        part = own if where[1] is None else own[where[1]]
        stack = getattr(layer, f"lora_{which}_stacked")[where[1] or 0][slot, 0]
        return torch.equal(stack[: part.shape[0], : part.shape[1]].cpu(), part.cpu())

    return [name for name in probes if not held(name)]


def _manager(worker: Any) -> Any:
    return worker.model_runner.lora_manager._adapter_manager


def _mapper(worker: Any) -> Any:
    """vLLM's own renaming of a checkpoint's names, as it uses it for adapters on disk."""
    mapper = getattr(_manager(worker).model, "hf_to_vllm_mapper", None)
    return None if mapper is None else mapper.get_rename_mapper()


def _parsed(worker: Any, name: str) -> str:
    from vllm.lora.utils import parse_fine_tuned_lora_name

    return parse_fine_tuned_lora_name(name, _mapper(worker))[0]
