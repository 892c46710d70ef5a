"""Tiny Qwen3 models, and what transformers says greedily: the measure of every swap."""

from pathlib import Path

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from corelib import lab

NEW_TOKENS = 24


def save_model(folder: Path, tied: bool) -> str:
    """A random fp32 model with the lab's words and `<|im_end|>`; its weights are large, so that texts vary."""
    tokenizer = lab.tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,  # the CPU build's attention refuses 24
        max_position_embeddings=512,
        tie_word_embeddings=tied,
        initializer_range=0.3,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=None,
    )
    Qwen3ForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)


def move(parameters, scale: float, seed: int) -> None:
    """Add noise to every parameter: another model."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in parameters:
            p.add_(scale * torch.randn(p.shape, generator=generator))


def greedy(model, prompts: list[list[int]], stop: list[int], new_tokens: int = NEW_TOKENS) -> list[list[int]]:
    """The most likely continuation of each prompt by plain forward passes, its stop token included."""
    texts, was_training = [], model.training
    model.eval()
    for prompt in prompts:
        ids = list(prompt)
        while len(ids) < len(prompt) + new_tokens and (len(ids) == len(prompt) or ids[-1] not in stop):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits
            ids.append(int(logits[0, -1].argmax()))
        texts.append(ids[len(prompt) :])
    model.train(was_training)
    return texts
