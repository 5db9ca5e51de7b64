"""What a model is, read from its configuration, tokenizer and the headers of its weights: nothing of it is computed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rlpost.config import ConfigError, Model
from rlpost.models.attention import by_layer, implementations
from rlpost.models.create import created_config
from rlpost.models.load import config_values, eos_token_ids, load_config, load_tokenizer, shaped
from rlpost.models.source import ModelSource
from rlpost.models.weights import Tensor, WeightsError, tensors_on_disk

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase

# What families call the most positions a sequence may have; the least that is there counts, as in vLLM.
POSITIONS = (
    "max_position_embeddings",
    "n_positions",
    "max_seq_len",
    "seq_length",
    "max_target_positions",
    "max_sequence_length",
    "max_seq_length",
    "seq_len",
)
# Scalings of RoPE whose configurations have the positions scaled already.
SCALED = ("default", "su", "longrope", "llama3", "yarn", "deepseek_yarn", "deepseek_llama_scaling", "proportional")
HEADS = ("num_attention_heads", "n_head", "num_heads", "n_heads")
WIDTHS = ("hidden_size", "n_embd", "d_model")
DTYPES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16", "F64": "float64"}
ARCHITECTURES = ("ForCausalLM", "LMHeadModel")
NOT_OF_TEXT = ("vision_config", "audio_config", "speech_config")


@dataclass(frozen=True)
class Outline:
    """What a configuration alone says of a model, without torch.

    Attributes:
        source: None for a model that is made.
        where: the key and value that name it, for errors.
        positions: tokens a sequence may have; None where the model sets no limit.
        head_size: numbers of an attention head; None where there is none of one size, or attention is latent (MLA).
    """

    source: ModelSource | None
    where: str
    config: PretrainedConfig
    positions: int | None
    head_size: int | None = None


@dataclass(frozen=True)
class Facts:
    """
    Attributes:
        source: None for a model that is made.
        where: the key and value that name it, for errors.
        family: `model_type`.
        positions: tokens a sequence may have; None where the model sets no limit.
        window: tokens an attention layer looks back, where some do not see all.
        attention: the implementations the model has: `eager`, and those of `sdpa`, `flash_attention_2` and `varlen` it
            supports.
        without_varlen: why it has not the last; "" where it has.
        rows: of the embeddings.
        tokens: one more than the largest id of the tokenizer.
        end: ids that end a response.
        padding: the id that fills rows up.
        parameters: how many numbers its weights are.
        dtypes: of floating-point weights on disk; empty for a model that is made, or whose weights are not here yet.
        tokenizer: the model's.
        config: the model's, as transformers understands it.
    """

    source: ModelSource | None
    where: str
    family: str
    positions: int | None
    window: int | None
    attention: tuple[str, ...]
    without_varlen: str
    rows: int
    tokens: int
    end: tuple[int, ...]
    padding: int
    parameters: int
    dtypes: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase = field(repr=False, compare=False)
    config: PretrainedConfig = field(repr=False, compare=False)


def outline_of(model: Model, source: ModelSource | None = None) -> Outline:
    """Look at a model's configuration.

    Args:
        source: the weights a run starts from, where they are others than `model.path`.

    Raises:
        ConfigError: it cannot be a policy: no causal language model, quantized, or inconsistent in itself.
        OutOfReachError: it is a hub id that is not here, while the hub cannot be asked.
    """
    trusted = False
    if source is None and model.create is not None:
        where, config = "model.create.config", created_config(model.create)
    else:
        source = source or ModelSource.of(model)
        where, trusted = f"{source.key}.path {str(source)!r}", source.trust_remote_code
        _refuse_formats(source, where)
        config = load_config(source)
    text = config.get_text_config(decoder=True)
    _refuse_other_kinds(where, config, trusted)
    heads, width, sizes = _first(text, HEADS), _first(text, WIDTHS), by_layer(text, "head_dim")
    _refuse_sizes(where, text, heads, width, bool(sizes))
    # Mamba has heads that are no attention's; Zamba's are of the width of two layers.
    attends = _first(text, HEADS[:2]) is not None
    other = any(getattr(text, name, None) for name in ("kv_lora_rank", "attention_head_dim"))
    derived = width // heads if width and heads else None
    size = max(sizes, default=derived) if len(sizes) < 2 else None
    head_size = size if attends and not other else None
    return Outline(source, where, config, positions(text), head_size)


def facts_of(model: Model, outline: Outline, weights: bool = True) -> Facts:
    """Look at the rest of a model without loading it: its network's shapes, its tokenizer, the headers of its weights.

    Args:
        weights: whether they have to be there; where they are they are looked at.

    Raises:
        ConfigError: its weights are not whole or not those of its configuration; it needs code that may not be run.
    """
    source, where, config = outline.source, outline.where, outline.config
    on_disk: dict[str, Tensor] = {}
    if source is None:
        from rlpost.data import make_tokenizer

        assert model.create is not None
        tokenizer: Any = make_tokenizer(model.create.tokenizer)
        end = [int(tokenizer.eos_token_id)]
    else:
        tokenizer, end = load_tokenizer(source), eos_token_ids(source)
        try:
            on_disk = tensors_on_disk(source.folder(weights=False))
        except WeightsError as error:
            if weights and (source.local is not None or _all_there_will_be()):
                raise ConfigError(f"{where}: {error}") from None
    text = config.get_text_config(decoder=True)
    network = shaped(config, where, source is not None and source.trust_remote_code)
    if on_disk:
        _refuse_tensors(where, network, on_disk)
    attention, without_varlen = implementations(network)
    window = getattr(text, "use_sliding_window", True) and getattr(text, "sliding_window", None)
    return Facts(
        source=source,
        where=where,
        family=str(config.model_type),
        positions=outline.positions,
        window=int(window) if window else None,
        attention=attention,
        without_varlen=without_varlen,
        rows=int(network.get_input_embeddings().weight.shape[0]),
        tokens=max(tokenizer.get_vocab().values()) + 1,
        end=tuple(end),
        padding=int(tokenizer.pad_token_id),
        parameters=sum(parameter.numel() for parameter in network.parameters()),
        dtypes=tuple(sorted({DTYPES[t.dtype] for t in on_disk.values() if t.dtype in DTYPES})),
        tokenizer=tokenizer,
        config=config,
    )


def positions(text: Any) -> int | None:
    """Tokens a sequence may have, as vLLM derives it: positions times what RoPE is stretched by."""
    found = [value for name in POSITIONS if isinstance(value := getattr(text, name, None), int) and value > 0]
    if not found:
        return None
    limit: float = min(found)
    rope = getattr(text, "rope_parameters", None) or {}
    for parameters in [rope] if "rope_type" in rope else [p for p in rope.values() if isinstance(p, dict)]:
        if parameters.get("rope_type", "default") not in SCALED:
            limit = min(found) * (parameters.get("factor") or 1.0)
    return int(limit)


def _refuse_formats(source: ModelSource, where: str) -> None:
    folder, values = source.folder(weights=False), config_values(source)
    if (folder / "adapter_config.json").is_file():
        raise ConfigError(
            f"{where} holds an adapter of peft (adapter_config.json): give the model it is for, or merge it into that first"
        )
    if how := values.get("quantization_config") or values.get("compression_config"):
        kind = how.get("quant_method", "unknown") if isinstance(how, dict) else how
        raise ConfigError(
            f"{where} has quantized weights (quantization_config: {kind}), which cannot be trained: give the model they were "
            "made from, or one that was dequantized with transformers"
        )


def _refuse_other_kinds(where: str, config: PretrainedConfig, trusted: bool) -> None:
    """Refuse what is no causal language model of text."""
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    )

    values, kind = config.to_dict(), str(config.model_type)
    if other := [name for name in NOT_OF_TEXT if values.get(name)]:
        raise ConfigError(
            f"{where} is a model of more than text ({kind}, with {other[0]}): rlpost trains models of text"
        )
    code = getattr(config, "auto_map", None) or {}
    if trusted and "AutoModelForCausalLM" in code:
        if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and "AutoModel" not in code:
            raise ConfigError(
                f"{where} comes with code ({code['AutoModelForCausalLM']}) that the engine cannot serve: vLLM runs it by its "
                "class without a head, which auto_map in config.json must name as AutoModel"
            )
        return
    if kind not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or config.is_encoder_decoder:
        raise ConfigError(f"{where} is no causal language model: transformers has none for model_type {kind}")
    if kind in MODEL_FOR_MASKED_LM_MAPPING_NAMES and getattr(config, "is_decoder", None) is False:
        raise ConfigError(f"{where} is an encoder ({kind}, is_decoder: false), whose tokens see those after them")
    given = list(config.architectures or [])
    known = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[kind]
    expected = [known] if isinstance(known, str) else list(known)
    if given and not any(name in expected or name.endswith(ARCHITECTURES) for name in given):
        raise ConfigError(
            f"{where} is a {given[0]} (config.json, architectures), not a language model: it has no head that predicts tokens. "
            f"Give a {expected[0]}"
        )


def _refuse_sizes(where: str, text: PretrainedConfig, heads: int | None, width: int | None, sized: bool) -> None:
    """Refuse sizes that do not go with each other; a network is built of them all the same, and fails when it runs."""
    keys = getattr(text, "num_key_value_heads", None)
    if isinstance(keys, int) and heads and (keys < 1 or heads % keys):
        raise ConfigError(f"{where}: {heads} attention heads do not divide by num_key_value_heads {keys}")
    if heads and width and not sized and width % heads:
        raise ConfigError(f"{where}: hidden size {width} does not divide by {heads} attention heads")


def _refuse_tensors(where: str, network: Any, on_disk: dict[str, Tensor]) -> None:
    """Refuse a checkpoint whose embeddings or head are of another shape than its configuration says, or are not there."""
    odd = sorted(
        name
        for name, tensor in on_disk.items()
        if tensor.dtype not in DTYPES and not tensor.dtype.startswith(("I", "U", "B"))
    )
    if odd:
        raise ConfigError(f"{where} has weights of type {on_disk[odd[0]].dtype} ({odd[0]}), which cannot be trained")
    tied = getattr(network.config.get_text_config(decoder=True), "tie_word_embeddings", False)
    names = {id(parameter): name for name, parameter in network.named_parameters(remove_duplicate=False)}
    for what, module in (("embeddings", network.get_input_embeddings()), ("head", network.get_output_embeddings())):
        if module is None or (what == "head" and tied):
            continue
        name, shape = names.get(id(module.weight), ""), tuple(module.weight.shape)
        if name in on_disk and on_disk[name].shape != shape:
            raise ConfigError(
                f"{where}: {name} is {on_disk[name].shape} on disk, and {shape} by config.json: one of them is of another model"
            )
        if what == "head" and name and not any(n.rpartition(".")[0].endswith(name.split(".")[-2]) for n in on_disk):
            raise ConfigError(
                f"{where}: the checkpoint has no {name}, the head that predicts tokens, and config.json does not tie it to "
                "the embeddings: it is of another model, or not whole"
            )


def _all_there_will_be() -> bool:
    """Whether what is in the cache of a hub id is all there will be."""
    from huggingface_hub.constants import is_offline_mode

    return bool(is_offline_mode())


def _first(config: PretrainedConfig, names: tuple[str, ...]) -> int | None:
    found = next((value for name in names if (value := getattr(config, name, None)) is not None), None)
    return found if isinstance(found, int) else None
