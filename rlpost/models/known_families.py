"""What `python benchmarks/families.py` found of each family. Made by it; not to be edited."""

# The versions it was found with.
TRIED = {"transformers": "5.23.0", "vllm": "0.30.0"}

# model_type: (layout, why no better one).
FAMILIES: dict[str, tuple[str, str]] = {
    "afmoe": ("padded", "packed sequences read the one before (log-probs move by 3.1)"),
    "apertus": ("packed", ""),
    "arcee": ("packed", ""),
    "aria_text": ("packed", ""),
    "bailing_hybrid": ("padded", "packed sequences read the one before (log-probs move by 2.5)"),
    "bamba": ("padded", "packed sequences read the one before (log-probs move by 1.2)"),
    "biogpt": ("padded", "packed sequences read the one before (log-probs move by 0.66)"),
    "bitnet": ("packed", ""),
    "bloom": ("padded", "packed sequences read the one before (log-probs move by 0.46)"),
    "cohere": ("packed", ""),
    "cohere2": ("packed", ""),
    "ctrl": ("packed", ""),
    "cwm": ("packed", ""),
    "deepseek_v2": ("packed", ""),
    "deepseek_v3": ("packed", ""),
    "deepseek_v32": ("packed", ""),
    "diffllama": ("packed", ""),
    "doge": ("packed", ""),
    "dots1": ("packed", ""),
    "ernie4_5": ("packed", ""),
    "ernie4_5_moe": ("packed", ""),
    "exaone4": ("packed", ""),
    "exaone_moe": ("packed", ""),
    "falcon": ("padded", "packed sequences read the one before (log-probs move by 1.2)"),
    "falcon_h1": ("padded", "packed sequences read the one before (log-probs move by 0.093)"),
    "falcon_mamba": ("padded", "packed sequences read the one before (log-probs move by 0.59)"),
    "flex_olmo": ("packed", ""),
    "gemma": ("packed", ""),
    "gemma2": ("packed", ""),
    "gemma3_text": ("packed", ""),
    "gemma4_text": ("packed", ""),
    "glm": ("packed", ""),
    "glm4": ("packed", ""),
    "glm4_moe": ("packed", ""),
    "glm4_moe_lite": ("packed", ""),
    "gpt2": ("packed", ""),
    "gpt_bigcode": ("packed", ""),
    "gpt_neo": ("packed", ""),
    "gpt_neox": ("packed", ""),
    "gpt_oss": ("padded", "packed sequences read the one before (log-probs move by 2.8)"),
    "gptj": ("packed", ""),
    "granite": ("packed", ""),
    "granitemoe": ("packed", ""),
    "granitemoehybrid": ("padded", "packed sequences read the one before (log-probs move by 2.8)"),
    "granitemoeshared": ("packed", ""),
    "helium": ("packed", ""),
    "hunyuan_v1_dense": ("packed", ""),
    "hunyuan_v1_moe": ("packed", ""),
    "internlm3": ("packed", ""),
    "iquestcoder": ("packed", ""),
    "jais2": ("packed", ""),
    "jamba": ("padded", "packed sequences read the one before (log-probs move by 1.4)"),
    "jetmoe": ("packed", ""),
    "lfm2": ("padded", "packed sequences read the one before (log-probs move by 2)"),
    "lfm2_moe": ("padded", "packed sequences read the one before (log-probs move by 2.3)"),
    "llama": ("packed", ""),
    "llama4_text": ("packed", ""),
    "longcat_flash": ("packed", ""),
    "mamba": ("padded", "packed sequences read the one before (log-probs move by 0.47)"),
    "mamba2": ("padded", "packed sequences read the one before (log-probs move by 1)"),
    "minicpm3": ("packed", ""),
    "minimax": ("padded", "packed sequences read the one before (log-probs move by 1.2)"),
    "minimax_m2": ("packed", ""),
    "ministral": ("packed", ""),
    "ministral3": ("packed", ""),
    "mistral": ("packed", ""),
    "mixtral": ("packed", ""),
    "mpt": ("padded", "packed sequences read the one before (log-probs move by 1.2)"),
    "nanochat": ("packed", ""),
    "nemotron": ("packed", ""),
    "nemotron_h": ("padded", "packed sequences read the one before (log-probs move by 0.74)"),
    "olmo": ("packed", ""),
    "olmo2": ("packed", ""),
    "olmo3": ("packed", ""),
    "olmo_hybrid": ("padded", "packed sequences read the one before (log-probs move by 2.6)"),
    "olmoe": ("packed", ""),
    "openai-gpt": ("padded", "packed sequences read the one before (log-probs move by 0.015)"),
    "opt": ("padded", "packed sequences read the one before (log-probs move by 0.088)"),
    "persimmon": ("packed", ""),
    "phi": ("packed", ""),
    "phi3": ("packed", ""),
    "phimoe": ("packed", ""),
    "qwen2": ("packed", ""),
    "qwen2_moe": ("packed", ""),
    "qwen3": ("packed", ""),
    "qwen3_5_moe_text": ("padded", "packed sequences read the one before (log-probs move by 2.5)"),
    "qwen3_5_text": ("padded", "packed sequences read the one before (log-probs move by 1.7)"),
    "qwen3_moe": ("packed", ""),
    "qwen3_next": ("padded", "packed sequences read the one before (log-probs move by 2.2)"),
    "recurrent_gemma": ("padded", "packed sequences read the one before (log-probs move by 0.068)"),
    "rwkv": ("padded", "packed sequences read the one before (log-probs move by 0.49)"),
    "seed_oss": ("packed", ""),
    "smollm3": ("packed", ""),
    "solar_open": ("packed", ""),
    "stablelm": ("packed", ""),
    "starcoder2": ("packed", ""),
    "vaultgemma": ("packed", ""),
    "xglm": ("padded", "packed sequences read the one before (log-probs move by 0.003)"),
    "xlnet": ("refused", "a sequence reads what follows it (log-probs move by 0.67)"),
    "zamba": ("padded", "packed sequences read the one before (log-probs move by 1.1)"),
}

# model_type: why the engine does not serve it, by the dtype that was tried on CPU; by "" what holds anywhere.
UNSERVED: dict[str, dict[str, str]] = {
    "bailing_hybrid": {
        "": "ValueError: Layer 0 (linear_attention) does not dispatch through the Transformers attention interface and vLLM has no other way to handle it"
    },
    "bamba": {
        "": "ValueError: Layer 0 (linear_attention) does not dispatch through the Transformers attention interface and vLLM has no other way to handle it"
    },
    "biogpt": {
        "float32": "ValueError: There is no module or parameter named 'output_projection' in TransformersForCausalLM. The available parameters belonging to (Tra",
        "bfloat16": "ValueError: There is no module or parameter named 'output_projection' in TransformersForCausalLM. The available parameters belonging to (Tra",
    },
    "deepseek_v32": {
        "float32": "NotImplementedError: Sparse Attention is not supported on CPU.",
        "bfloat16": "NotImplementedError: Sparse Attention is not supported on CPU.",
    },
    "diffllama": {
        "": "ValueError: Layer 0 does not dispatch through the Transformers attention interface and vLLM has no other way to handle it."
    },
    "doge": {
        "float32": "engine and learner differ by 0.047 in float32, after a sync",
        "bfloat16": "engine and learner differ by 0.047 in float32, after a sync",
    },
    "falcon_mamba": {
        "float32": "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
        "bfloat16": "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
    },
    "gpt_bigcode": {
        "float32": "ValueError: no tensor of the learner (['transformer.h.0.attn.c_attn.bias', 'transformer.h.0.attn.c_attn.weight', 'transformer.h.0.attn.c_pro",
        "bfloat16": "ValueError: no tensor of the learner (['transformer.h.0.attn.c_attn.bias', 'transformer.h.0.attn.c_attn.weight', 'transformer.h.0.attn.c_pro",
    },
    "gpt_neo": {"": "Model architectures ['GPTNeoForCausalLM'] are not supported for now."},
    "gpt_oss": {"float32": "RuntimeError: expected scalar type BFloat16 but found Float"},
    "jamba": {
        "float32": "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
        "bfloat16": "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
    },
    "mamba": {
        "float32": "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
        "bfloat16": "AttributeError: '_OpNamespace' '_C' object has no attribute 'selective_scan_fwd'",
    },
    "minimax": {
        "": "ValueError: Layer 1 (linear_attention) does not dispatch through the Transformers attention interface and vLLM has no other way to handle it"
    },
    "minimax_m2": {
        "float32": "AttributeError: 'functools.partial' object has no attribute '__name__'",
        "bfloat16": "AttributeError: 'functools.partial' object has no attribute '__name__'",
    },
    "mpt": {
        "": "Model architecture MptForCausalLM was supported in vLLM until v0.28.0, and is not supported anymore. Please use an older version of vLLM if "
    },
    "nemotron_h": {
        "float32": "NotImplementedError: is_act_and_mul=False is supported only for CUDA, XPU and ROCm for now",
        "bfloat16": "NotImplementedError: is_act_and_mul=False is supported only for CUDA, XPU and ROCm for now",
    },
    "olmo_hybrid": {
        "float32": "AttributeError: module 'triton' has no attribute 'set_allocator'",
        "bfloat16": "AttributeError: module 'triton' has no attribute 'set_allocator'",
    },
    "openai-gpt": {"": "Model architectures ['OpenAIGPTLMHeadModel'] are not supported for now."},
    "qwen3_5_moe_text": {
        "float32": "ModuleNotFoundError: No module named 'torchvision'",
        "bfloat16": "ModuleNotFoundError: No module named 'torchvision'",
    },
    "qwen3_5_text": {
        "float32": "ModuleNotFoundError: No module named 'torchvision'",
        "bfloat16": "ModuleNotFoundError: No module named 'torchvision'",
    },
    "qwen3_next": {"float32": "AssertionError: CPU GDN attention requires BF16."},
    "recurrent_gemma": {
        "": "ValueError: Layer 0 (linear_attention) does not dispatch through the Transformers attention interface and vLLM has no other way to handle it"
    },
    "rwkv": {"": "Model architectures ['RwkvForCausalLM'] are not supported for now."},
}
