"""Whole trainings with a colocated engine: groups, stop tokens, failures in the middle of a swap, the command and its resume."""

import pytest
import torch
from safetensors.torch import load_file
from test_swap import ask, check_log, expected, long_prompts, make, random_model, settings, weights
from tiny_qwen3 import move

from corelib import engine, runs, train
from corelib.config import TEACHER

pytestmark = pytest.mark.slow
METHODS = ("gt", "co_rewarding_i", "co_rewarding_ii", "co_rewarding_iii")
LORA = {"lora_rank": 4, "lora_alpha": 8}


def spy(trainer, monkeypatch):
    """Every call of the engine: whose weights, which prompts, which completions."""
    calls, generate = [], trainer.vllm_generation.generate

    def recorded(prompts, images, num_generations, profiler=None):
        out = generate(prompts, images, num_generations, profiler)
        calls.append((trainer.vllm_generation.model, prompts, out[1]))
        return out

    monkeypatch.setattr(trainer.vllm_generation, "generate", recorded)
    return calls


@pytest.mark.parametrize("method", METHODS)
def test_groups_of_every_kind_of_method(vllm_on_cpu, tmp_path, monkeypatch, method):
    trainer = make(settings(method), tmp_path)
    calls, before = spy(trainer, monkeypatch), [p.clone() for p in trainer.model.parameters()]
    trainer.train()
    check_log(trainer, 3)
    assert any(0 < row.get("reward", 0) < 1 for row in trainer.state.log_history)
    assert max((p - b).abs().max() for p, b in zip(trainer.model.parameters(), before, strict=True)) > 1e-4
    taught = method in TEACHER
    models = [model for model, _, _ in calls]
    assert models == ([trainer.model, trainer.teacher.model] if taught else [trainer.model]) * 3
    for _, prompts, completions in calls:
        groups = [prompts[i : i + 4] for i in range(0, len(prompts), 4)]
        assert len(prompts) == len(completions) == 16 and all(g == [g[0]] * 4 for g in groups)
        assert len({tuple(c) for c in completions}) > 8  # drawn one by one, not one answer repeated
    if taught:
        assert all(calls[i][1] == calls[i + 1][1] and calls[i][2] != calls[i + 1][2] for i in (0, 2, 4))


def test_a_rollout_ends_at_any_stop_token(vllm_on_cpu, tmp_path):
    trainer = make(random_model(tmp_path, method="gt"), tmp_path)
    tokenizer = trainer.processing_class
    stops = {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    assert len(stops) == 2 and set(trainer.vllm_generation.generation_kwargs["stop_token_ids"]) == stops
    completions = ask(trainer, [[5 + i % 20] for i in range(200)])
    assert all(not stops & set(c[:-1]) for c in completions)
    assert {c[-1] for c in completions if len(c) < trainer.max_completion_length} == stops


def break_off(self):
    """`sync_weights` whose engine refuses the fifth tensor, as a GPU out of memory would."""
    for i, _ in enumerate(self._iter_named_params()):
        if i == 4:
            raise RuntimeError("out of memory")


def check_broken_swap(trainer, monkeypatch):
    move(weights(trainer, "default"), 0.1, seed=1)
    move(weights(trainer, "ref"), 0.1, seed=2)
    trainer.vllm_generation.temperature = 0.0
    prompts = long_prompts(trainer)
    policy = expected(trainer, prompts)
    assert ask(trainer, prompts) == policy
    with monkeypatch.context() as patch:
        patch.setattr(type(trainer.vllm_generation), "sync_weights", break_off)
        with pytest.raises(RuntimeError, match="out of memory"), engine.weights_of(trainer, trainer.teacher.model):
            ask(trainer, prompts)
    assert expected(trainer, prompts) == policy
    assert ask(trainer, prompts) == policy


def test_a_swap_that_breaks_off_leaves_the_policy(vllm_on_cpu, tmp_path, monkeypatch):
    check_broken_swap(make(random_model(tmp_path), tmp_path), monkeypatch)


def test_a_swap_that_breaks_off_leaves_the_policy_with_lora(vllm_on_cpu, tmp_path, monkeypatch):
    check_broken_swap(make(random_model(tmp_path, **LORA), tmp_path), monkeypatch)


def test_swaps_leave_the_frozen_base_as_it_was(vllm_on_cpu, tmp_path):
    trainer = make(random_model(tmp_path, **LORA), tmp_path)
    move(weights(trainer, "default"), 0.1, seed=1)
    base = {n: p.clone() for n, p in trainer.model.named_parameters() if "base_layer" in n}
    with engine.weights_of(trainer, trainer.teacher.model):
        ask(trainer, [[5, 6]])
    ask(trainer, [[5, 6]])
    assert all(torch.equal(p, base[n]) for n, p in trainer.model.named_parameters() if n in base)


def test_the_command_trains_and_resumes_bit_for_bit(vllm_on_cpu, tmp_path):
    """Six steps at once; and four, then a kill, then from the checkpoint of step 3 in a new engine to the end."""
    from tests.test_trainer import interrupt_after

    config = settings("co_rewarding_iii", steps=6, save_steps=3, stop_seconds=5)
    (tmp_path / "run.yaml").write_text(config.to_yaml())
    final = {}
    for name in ("whole", "cut"):
        if name == "cut":
            interrupt_after(4, config, tmp_path / name)
        assert train.main(["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / name)]) == 0
        assert runs.read_status(tmp_path / name)["state"] == "done"
        metrics = runs.load_metrics(tmp_path / name)
        gap = metrics["sampling/logp_difference"].dropna()
        assert len(gap) == 6 and (gap < 1e-4).all() and metrics["reward"].max() > 0
        final[name] = load_file(tmp_path / name / "final" / "model.safetensors")
    base = load_file(f"{config.base_model}/model.safetensors")
    # vLLM on a CPU draws from torch's own generator, which the checkpoint holds
    assert all(torch.equal(tensor, final["cut"][name]) for name, tensor in final["whole"].items())
    assert any((tensor - base[name].float()).abs().max() > 1e-4 for name, tensor in final["whole"].items())
