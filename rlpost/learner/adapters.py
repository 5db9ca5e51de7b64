"""Low-rank adapters of the learner's model: put in, read in full, merged, and written in PEFT's format.

`trained` is what the optimizer moves: the float32 copies of DeepSpeed where the model computes in bfloat16. What engines
hold is rounded from it once, and `rlpost.learner.survival` says what was lost.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from rlpost.config import ConfigError, Lora
from rlpost.learner.masters import Masters
from rlpost.models.source import ModelSource

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from rlpost.learner.survival import Survival

# What `peft` puts before the names of a model's modules when it writes them.
PREFIX = "base_model.model."
# The name under which peft holds the one adapter there is.
OWN = "default"
# What is merged at once of a weight: a part of it, unless that is so little that a product of it is another kernel's.
BLOCKS, LEAST_ROWS = 16, 64


def add_lora(model: PreTrainedModel, lora: Lora) -> None:
    """Put adapters in; only they stay trainable.

    Raises:
        ConfigError: a target is not there, cannot be adapted, or is one the learner does not apply.
    """
    from peft import LoraConfig, inject_adapter_in_model

    targets = find_targets(model, lora.target_modules)
    model.requires_grad_(False)
    config = LoraConfig(
        r=lora.rank,
        lora_alpha=lora.alpha,
        target_modules=targets,
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        task_type="CAUSAL_LM",
    )
    inject_adapter_in_model(config, model)


def find_targets(model: PreTrainedModel, wanted: list[str] | str) -> list[str]:
    """Full names of the modules that get adapters.

    Args:
        wanted: `all-linear`, another string as a regular expression of whole names, or last parts of names.

    Raises:
        ConfigError: as `add_lora`.
    """
    from peft.tuners.lora import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists
    from transformers.pytorch_utils import Conv1D

    key, kind = "model.lora.target_modules", type(model).__name__
    head, embeddings = model.get_output_embeddings(), model.get_input_embeddings()
    modules = dict(model.named_modules())
    if wanted == "all-linear":
        found = [name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head]
        if not found:
            raise ConfigError(f"{key}: all-linear, but {kind} has no linear layers: name them in {key}")
        return found
    linear = sorted(
        {n.rpartition(".")[2] for n, m in modules.items() if isinstance(m, nn.Linear | Conv1D) and m is not head}
    )
    matched: list[str] = []
    for one in [wanted] if isinstance(wanted, str) else wanted:
        rule = LoraConfig(target_modules=one if isinstance(wanted, str) else [one])
        names = [name for name in modules if name and check_target_module_exists(rule, name)]
        if not names:
            how = "" if isinstance(wanted, str) else ", or a regular expression of whole names as one string"
            raise ConfigError(f"{key}: {one!r} matches no module of {kind}: give one of {', '.join(linear)}{how}")
        matched += names
    for name in matched:
        if modules[name] is head or modules[name] is embeddings:
            tied = bool(getattr(model.config, "tie_word_embeddings", False))
            what = "language-model head" if modules[name] is head else "embeddings"
            raise ConfigError(
                f"{key}: {name} is the {what} of {kind}{', tied to each other' if tied else ''}: the learner applies the "
                f"head without an adapter, and engines take none for either. Leave {name} out, or train all weights "
                "with model.lora: null"
            )
        if not isinstance(modules[name], nn.Linear | Conv1D):
            raise ConfigError(
                f"{key}: {name} of {kind} is a {type(modules[name]).__name__}, and adapters are for linear layers: give "
                f"one of {', '.join(linear)}"
            )
    return list(dict.fromkeys(matched))


def lora_layers(model: nn.Module) -> dict[str, Any]:
    """peft's layers by the name of the module they took the place of."""
    return {n: m for n, m in model.named_modules() if hasattr(m, "get_delta_weight") and hasattr(m, "lora_A")}


def trained(model: nn.Module, masters: Masters, keep: bool = True) -> dict[str, torch.Tensor]:
    """The adapters as the optimizer has them: float32 on the CPU, by parameter name. All ranks, in step.

    Args:
        keep: whether this rank wants the result; the others get an empty dict.
    """
    found = {}
    for name, parameter in model.named_parameters():
        if "lora_" not in name:
            continue
        full = masters.of(parameter)
        if keep:
            found[name] = full.to("cpu", copy=True)
    return found


def factors(name: str, layer: Any, adapters: Mapping[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 A (rank, in) and scaled B (out, rank) of a layer: what is added to its weight is B @ A."""
    a, b = (adapters[f"{name}.lora_{which}.{OWN}.weight"] for which in "AB")
    return a, b * layer.scaling[OWN]


def merged(
    name: str,
    layer: Any,
    weight: torch.Tensor,
    adapters: Mapping[str, torch.Tensor],
    dtype: torch.dtype,
    survival: Survival | None = None,
) -> torch.Tensor:
    """The layer's weight with its adapter, by the formulas of LoRA and, where asked for, DoRA (shaped as `weight`).

    It is added in float32 and rounded once to `dtype`, some rows at a time: in float32 nothing of its size is made.

    Args:
        weight: of the layer below the adapter, as the model holds it.
        adapters: `trained`, on the device of the weight or the CPU.
        survival: told what is left of the adapter when the base is rounded as the sum is.
    """
    a, b = (factor.to(weight.device) for factor in factors(name, layer, adapters))
    transposed = bool(getattr(layer, "fan_in_fan_out", False))
    base = weight.T if transposed else weight
    magnitude = adapters.get(f"{name}.lora_magnitude_vector.{OWN}.weight")
    found = torch.empty(base.shape, dtype=dtype, device=base.device)
    step = max(LEAST_ROWS, -(-len(base) // BLOCKS))
    for first in range(0, len(base), step):
        rows = slice(first, first + step)
        start = base[rows].float()
        whole = start + b[rows] @ a
        if magnitude is not None:  # arXiv:2402.09353, equation 5
            whole = whole * (magnitude[rows].to(weight.device) / whole.norm(dim=1)).unsqueeze(1)
        found[rows] = whole
        if survival is not None:
            survival.add(whole - start, found[rows].float() - start.to(dtype).float())
    return found.T if transposed else found


def as_served(model: nn.Module, adapters: Mapping[str, torch.Tensor], dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A and scaled B by PEFT's names in the engines' dtype: rounded once, the scaling counted."""
    tensors = {}
    for name, layer in lora_layers(model).items():
        for which, factor in zip("AB", factors(name, layer, adapters), strict=True):
            tensors[f"{PREFIX}{name}.lora_{which}.weight"] = factor.to(dtype)
    return tensors


def save_adapter(folder: Path, base: ModelSource, model: PreTrainedModel, adapters: Mapping[str, torch.Tensor]) -> None:
    """Write `adapter_model.safetensors` (float32) and `adapter_config.json` as peft and vLLM load them.

    Args:
        base: the weights they belong to; their place is in the configuration as `base_model_name_or_path`.
        adapters: `trained`.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    named = get_peft_model_state_dict(model, state_dict=dict(adapters), adapter_name=OWN)
    tensors = {f"{PREFIX}{name}": tensor.contiguous() for name, tensor in named.items()}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config[OWN]
    config.base_model_name_or_path = base.path if base.local is None else str(base.local.resolve())
    config.revision = base.revision
    config.inference_mode = True
    config.save_pretrained(str(folder))


def load_adapter(model: PreTrainedModel, folder: Path | str) -> None:
    """Give the adapters of a model, made by `add_lora`, the values that `save_adapter` wrote, in their own dtype.

    Raises:
        ValueError: they are of other modules.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import load_file

    saved = load_file(Path(folder) / "adapter_model.safetensors")
    own = {name: p for name, p in model.named_parameters() if "lora_" in name}
    names = get_peft_model_state_dict(model, state_dict={name: p.data for name, p in own.items()}, adapter_name=OWN)
    if wrong := sorted({f"{PREFIX}{name}" for name in names} ^ saved.keys()):
        raise ValueError(f"{folder} is of other modules than {type(model).__name__} has adapters for: {wrong[:3]}")
    for name, held in names.items():
        held.copy_(saved[f"{PREFIX}{name}"])
