"""How large a model is before it is downloaded: its architecture, its parameters, and what it stores a token.

Activations: formulas read from transformers 5.17 (modeling_qwen3, modeling_qwen2, modeling_llama with SDPA attention) and
TRL 1.16 (fused LM head). tests/test_memory.py holds them against what PyTorch stores.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from corelib.config import LAB_BASES

FAMILIES = ("qwen3", "qwen2", "llama")  # dense decoders with RMSNorm, SwiGLU and grouped attention: one set of formulas
FIELDS = ("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "intermediate_size", "vocab_size", "tie_word_embeddings")  # fmt: skip
# The paper's backbones and the lab's real language model, from config.json of the Hub repository of that name.
# tests/test_memory.py has their published parameter counts.
SHAPES = {
    "Qwen/Qwen2.5-3B": ("qwen2", 2048, 36, 16, 2, 128, 11008, 151936, True),
    "Qwen/Qwen2.5-7B": ("qwen2", 3584, 28, 28, 4, 128, 18944, 152064, False),
    "Qwen/Qwen3-1.7B-Base": ("qwen3", 2048, 28, 16, 8, 128, 6144, 151936, True),
    "Qwen/Qwen3-4B-Base": ("qwen3", 2560, 36, 32, 8, 128, 9728, 151936, True),
    "Qwen/Qwen3-8B-Base": ("qwen3", 4096, 36, 32, 8, 128, 12288, 151936, False),
    "meta-llama/Llama-3.2-3B-Instruct": ("llama", 3072, 28, 24, 8, 128, 8192, 128256, True),
    "HuggingFaceTB/SmolLM2-135M-Instruct": ("llama", 576, 30, 9, 3, 64, 1536, 49152, True),
}
ALIASES = {"smollm2": "HuggingFaceTB/SmolLM2-135M-Instruct"} | {name: str(path) for name, path in LAB_BASES.items()}
# How weights and activations are typed. autocast: bf16 copies of fp32 weights; bf16: FSDP2 casts what it gathers;
# lora: frozen bf16 weights with fp32 adapters; lora32: the same in fp32.
MODES = ("fp32", "autocast", "bf16", "lora", "lora32")


@dataclass(frozen=True)
class Architecture:
    """Numbers of a decoder; all its distinct parameters, those of one layer, and the in + out features of all its linear
    layers but the LM head (LoRA's parameters are its rank times that)."""

    family: str
    hidden: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    tied: bool
    parameters: int
    layer: int
    linear: int

    @property
    def q(self) -> int:
        """Width of all query heads."""
        return self.heads * self.head_dim

    @property
    def k(self) -> int:
        """Width of all key heads, and of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def head(self) -> int:
        """Parameters of the LM head, and of the embedding."""
        return self.vocab * self.hidden


@cache
def of_model(model: str) -> Architecture:
    """The architecture of a Hub id of the table, a folder, or a model in the local cache. Downloads nothing.

    Raises ValueError for anything else, and for a kind of model that the formulas do not cover.
    """
    from transformers import AutoConfig

    name = ALIASES.get(model, model)
    if name in SHAPES:
        family, *numbers = SHAPES[name]
        return of_config(AutoConfig.for_model(family, **dict(zip(FIELDS, numbers, strict=True))))
    path = Path(name) / "config.json" if Path(name).is_dir() else _cached(name)
    if path is None or not path.is_file():
        raise ValueError(
            f"the size of model={model!r} is not known without a download; known are {', '.join([*SHAPES, *ALIASES])}, "
            f"a folder with a config.json, and what is in the local cache (hf download {model} config.json)"
        )
    settings = json.loads(path.read_text())
    if settings.get("model_type") not in FAMILIES:
        raise ValueError(
            f"model={model!r} is of type {settings.get('model_type')!r}; the memory plan covers {', '.join(FAMILIES)}"
        )
    return of_config(AutoConfig.for_model(**settings))


def of_config(config) -> Architecture:
    """The same from a transformers configuration: the model is made on the meta device and its parameters counted."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    linear = [m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and n != "lm_head"]
    return Architecture(
        config.model_type,
        config.hidden_size,
        config.num_hidden_layers,
        config.num_attention_heads,
        config.num_key_value_heads,
        getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads,
        config.intermediate_size,
        config.vocab_size,
        config.tie_word_embeddings,
        parameters=sum(p.numel() for p in model.parameters()),
        layer=sum(p.numel() for p in model.model.layers[0].parameters()),
        linear=sum(m.in_features + m.out_features for m in linear),
    )


def _cached(model: str) -> Path | None:
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(model, "config.json")
    except HFValidationError:  # neither a folder nor a Hub id
        return None
    return Path(found) if isinstance(found, str) else None


def element(mode: str) -> int:
    """Bytes of a number in the linear layers."""
    return 4 if mode in ("fp32", "lora32") else 2


def residual(mode: str) -> int:
    """Bytes of a number in the residual stream: embeddings of fp32 weights keep it in fp32 under autocast."""
    return 2 if mode in ("bf16", "lora") else 4


def layer_bytes(a: Architecture, length: int, mode: str, rank: int = 0) -> int:
    """Bytes a token that one decoder layer stores for its backward pass, in a padded batch with rows of `length` tokens.

    Padding makes transformers pass a mask; with one SDPA gets keys and values repeated to all query heads, and keeps the
    additive mask of every layer.
    """
    lora, e, r = mode.startswith("lora"), element(mode), residual(mode)
    norms = 2 * ((4 + (0 if lora else r)) * a.hidden + 4)  # fp32 input; normalised, where its weight is trained; scale
    inputs = (5 if mode in ("autocast", "lora") else 2) * e * a.hidden  # of q, k, v, gate, up: one cast each, or shared
    heads = (4 + (0 if lora else e)) * (a.q + a.k) + 4 * (a.heads + a.kv_heads) if a.family == "qwen3" else 0
    attention = (5 if mode == "lora" else 4) * e * a.q + 4 * a.heads + e * length  # q, k, v, output; its sum; the mask
    mlp = 4 * e * a.intermediate  # gate, silu(gate), up, their product
    return norms + inputs + heads + attention + mlp + 7 * e * rank


def stored_bytes(
    a: Architecture, rows: int, length: int, scored: int, mode: str, checkpointing: bool, rank: int = 0
) -> int:
    """Bytes that a micro-batch stores for its backward pass: decoder layers, final norm, fused LM head.

    `rows` of `length` tokens, `scored` of each with a log-probability. With `checkpointing` a layer stores its input.
    """
    r, tokens = residual(mode), rows * length
    layers = a.layers * (r * a.hidden if checkpointing else layer_bytes(a, length, mode, rank)) * tokens
    norm = (4 + (0 if mode.startswith("lora") else r)) * a.hidden * tokens
    rotary = 2 * r * a.head_dim * length
    indices = (4 + 8 + 2) * tokens + (8 + 8) * rows * scored  # norm's scale, ids, masks; targets, log Z, entropy
    return layers + norm + r * a.hidden * rows * scored + rotary + indices


def forward_bytes(a: Architecture, mode: str) -> int:
    """Bytes a token in work in a layer's forward pass, beside what is stored: at its widest, the product in the MLP."""
    return 3 * element(mode) * a.intermediate + 3 * residual(mode) * a.hidden


def backward_bytes(a: Architecture, mode: str) -> int:
    """Bytes a token of gradients in work in a layer's backward pass, beside what is stored."""
    return 2 * element(mode) * (a.intermediate + a.hidden)


def kv_bytes(a: Architecture, mode: str) -> int:
    """Bytes a token of keys and values in all layers of transformers' cache. Rotary positions are fp32 under autocast,
    and leave keys so."""
    key = 4 if mode == "autocast" else element(mode)
    return a.layers * a.k * (key + element(mode))
