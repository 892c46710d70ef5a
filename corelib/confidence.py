"""Entropy and self-certainty of rollouts, without ever holding a [tokens, vocabulary] tensor.

TRL's fused LM head yields log-probabilities, entropies and mean logits tile by tile. Self-certainty follows from them:

    KL(U || p) = log Z - mean logit - log V        (U uniform over V tokens, log Z the log-partition)
    log Z      = logit of the chosen token - its log-probability

so one extra dot product a token (its hidden state with its own row of the LM head) is all that is added.
"""

from __future__ import annotations

import math

import torch
from trl.trainer.utils import add_fused_lm_head

ROWS = 4096  # tokens whose LM-head rows are gathered at once: 4096 x 2560 x 2 bytes = 20 MB on Qwen3-4B


def with_mean_logits(model, temperature: float) -> None:
    """Let the model's fused LM head also return mean logits (TRL patches it with log_probs and entropy only)."""
    add_fused_lm_head(model, temperature=temperature, outputs=("log_probs", "entropy", "mean_logits"))


@torch.no_grad()
def sequence_confidence(
    model,
    prompt_ids,
    completion_ids,
    pad_token_id: int,
    micro_batch: int,
    device,
    temperature: float = 1.0,
    certainty: bool = True,
):
    """Mean token entropy and mean token self-certainty of each rollout, in nats: two lists of floats.

    `prompt_ids`, `completion_ids`: lists of lists of token ids. The forward pass runs on `micro_batch` rows at a time.
    With `certainty` the model must have been prepared by `with_mean_logits`; without it the second list is empty.
    Source: RENT (entropy), Intuitor and the released `torch_functional.py:202-205` (KL(U||p) + log V).
    """
    entropies, certainties = [], []
    for start in range(0, len(prompt_ids), micro_batch):
        prompts, completions = prompt_ids[start : start + micro_batch], completion_ids[start : start + micro_batch]
        ids, attention, labels = _pad(prompts, completions, pad_token_id, device)
        hidden = {}
        handle = (
            model.base_model.register_forward_hook(lambda m, a, out, h=hidden: h.update(last=out.last_hidden_state))
            if certainty
            else None
        )
        try:
            out = model(input_ids=ids, attention_mask=attention, labels=labels, fused_lm_head=True)
        finally:
            if handle is not None:
                handle.remove()
        mask = labels[:, 1:] != -100
        count = mask.sum(1).clamp(min=1)
        entropies += ((out.entropy * mask).sum(1) / count).tolist()
        if certainty:
            chosen = (
                _chosen_logit(hidden["last"][:, :-1][mask], model.get_output_embeddings(), labels[:, 1:][mask])
                / temperature
            )
            log_z = chosen - out.log_probs[mask].float()
            kl = log_z - out.mean_logits[mask].float() - math.log(model.get_output_embeddings().weight.shape[0])
            per_token = torch.zeros(mask.shape, dtype=torch.float32, device=mask.device).masked_scatter(mask, kl)
            certainties += (per_token.sum(1) / count).tolist()
    return entropies, certainties


def _chosen_logit(hidden: torch.Tensor, head, tokens: torch.Tensor) -> torch.Tensor:
    """h . W[token] (+ bias) in fp32, `ROWS` tokens at a time: [tokens]."""
    logits = [
        (h.to(head.weight.dtype) * head.weight[t]).sum(-1, dtype=torch.float32)
        + (0 if head.bias is None else head.bias[t].float())
        for h, t in zip(hidden.split(ROWS), tokens.split(ROWS), strict=True)
    ]
    return torch.cat(logits) if logits else hidden.new_zeros(0)


def _pad(prompts, completions, pad_token_id, device):
    """Prompts padded on the left, completions on the right, as TRL does: ids, attention mask, labels (-100 on prompts)."""
    left, right = max(map(len, prompts)), max(map(len, completions))
    ids = torch.full((len(prompts), left + right), pad_token_id, dtype=torch.long)
    attention, labels = torch.zeros_like(ids), torch.full_like(ids, -100)
    for i, (p, c) in enumerate(zip(prompts, completions, strict=True)):
        row = torch.tensor([*p, *c], dtype=torch.long)
        ids[i, left - len(p) : left + len(c)] = row
        attention[i, left - len(p) : left + len(c)] = 1
        labels[i, left : left + len(c)] = row[len(p) :]
    return ids.to(device), attention.to(device), labels.to(device)
