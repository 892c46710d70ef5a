"""Entropy and self-certainty against dense fp64 logits, and proof that no [tokens, vocabulary] tensor is made."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import Qwen3Config, Qwen3ForCausalLM

from corelib.confidence import sequence_confidence, with_mean_logits

VOCAB = 4000


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=32, tie_word_embeddings=True, pad_token_id=0)  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(20)  # sharp enough distributions that the two measures differ between rollouts
    with_mean_logits(model, 1.0)
    return model


PROMPTS = [[5, 6, 7], [8], [9, 10]]
COMPLETIONS = [[11, 12, 13, 14], [15], [16, 17, 18]]


def dense(model, prompt, completion, temperature):
    """The definitions on the full logits of one rollout, in fp64."""
    ids = torch.tensor([prompt + completion])
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, len(prompt) - 1 : -1].double() / temperature
    p, logp = logits.softmax(-1), logits.log_softmax(-1)
    entropy = -(p * logp).sum(-1)
    certainty = (1 / VOCAB * (math.log(1 / VOCAB) - logp)).sum(-1)
    return entropy.mean().item(), certainty.mean().item()


@pytest.mark.parametrize("micro_batch", [1, 2, 3])
def test_equals_the_definitions_on_dense_logits(model, micro_batch):
    entropies, certainties = sequence_confidence(model, PROMPTS, COMPLETIONS, 0, micro_batch, "cpu")
    for i, (prompt, completion) in enumerate(zip(PROMPTS, COMPLETIONS, strict=True)):
        entropy, certainty = dense(model, prompt, completion, 1.0)
        assert entropies[i] == pytest.approx(entropy, rel=1e-4)
        assert certainties[i] == pytest.approx(certainty, rel=1e-4)


def test_temperature_divides_the_logits():
    torch.manual_seed(0)
    config = Qwen3Config(vocab_size=VOCAB, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2, num_key_value_heads=1, head_dim=32, pad_token_id=0)  # fmt: skip
    model = Qwen3ForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(30)
    with_mean_logits(model, 0.5)
    entropies, certainties = sequence_confidence(model, PROMPTS, COMPLETIONS, 0, 3, "cpu", temperature=0.5)
    entropy, certainty = dense(model, PROMPTS[0], COMPLETIONS[0], 0.5)
    assert entropies[0] == pytest.approx(entropy, rel=1e-4) and certainties[0] == pytest.approx(certainty, rel=1e-4)


def test_no_tokens_by_vocabulary_tensor(model, monkeypatch):
    """With TRL's tile shrunk to 64 tokens x 500 words, nothing larger than tile or weights may appear for 1,024 tokens."""
    import trl.kernels.chunked_logprob
    import trl.trainer.utils

    monkeypatch.setattr(trl.kernels.chunked_logprob, "TOKEN_CHUNK_SIZE", 64)
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 500)

    class Largest(TorchDispatchMode):
        numel = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            for t in out if isinstance(out, (tuple, list)) else [out]:
                if isinstance(t, torch.Tensor):
                    Largest.numel = max(Largest.numel, t.numel())
            return out

    rows, tokens = 16, 64
    completions = torch.randint(1, VOCAB, (rows, tokens)).tolist()
    with Largest():
        sequence_confidence(model, [[1]] * rows, completions, 0, rows, "cpu")
    assert Largest.numel <= model.lm_head.weight.numel()  # 128,000; tokens x vocabulary would be 4,096,000
