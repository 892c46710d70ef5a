"""Policy -> teacher -> policy in one colocated engine: after every swap it answers as transformers does with those weights."""

import pytest
import torch
from tiny_qwen3 import NEW_TOKENS, greedy, move, save_model
from trl.trainer.utils import use_adapter

from corelib import engine, evaluate, lab, train
from corelib.config import load_config
from corelib.trainer import CoRewardingTrainer

FULL, LORA = {}, {"lora_rank": 4, "lora_alpha": 8}


def settings(method="co_rewarding_ii", **more):
    """The lab in a colocated engine: 4 prompts x 4 rollouts a step; no sleep, which is for CUDA only."""
    small = dict(
        engine="vllm", vllm_sleep=False, prompts_per_step=4, rollouts=4, micro_batch=8, steps=3, warmup=0,
        learning_rate=1e-3, beta=0.001, teacher_start=0.5, eval_problems=2, eval_samples=1, eval_steps=100,
        test_problems=0, save_steps=100,
    )  # fmt: skip
    return load_config("lab", method=method, **(small | more))


def random_model(folder, tied=True, **more):
    """The same with a random model that ends a rollout with `<|im_end|>` too and takes long prompts."""
    sizes = dict(max_prompt_tokens=200, max_completion_tokens=NEW_TOKENS, stop_tokens="<|im_end|>", learning_rate=1e-2)
    return settings(model=save_model(folder / "model", tied), **(sizes | more))


def make(config, folder):
    tokenizer = train.load_tokenizer(config)
    rows, _ = train.training_rows(config, tokenizer)
    arguments = train.grpo_config(config, folder / "run", config.steps, stop_ids=evaluate.stop_ids(config, tokenizer))
    return CoRewardingTrainer(config, config.base_model, arguments, rows, tokenizer)


def weights(trainer, adapter):
    """The parameters that make one of the two models what it is."""
    if trainer.config.lora_rank:
        return [p for n, p in trainer.model.named_parameters() if f".{adapter}." in n]
    return list((trainer.model if adapter == "default" else trainer.teacher.model).parameters())


def long_prompts(trainer):
    """Longer than a block of the cache, with a common beginning: an old prefix cache would show."""
    words = [w for p in lab.problems(30, "train", 0) for w in p.text("rephrased").split()]
    ids = trainer.processing_class.convert_tokens_to_ids(words)
    return [ids[:160] + [last] for last in ids[160:164]]


def expected(trainer, prompts, teacher=False):
    """Greedy by transformers, with the policy or the teacher."""
    stop = trainer.vllm_generation.generation_kwargs["stop_token_ids"]
    if not teacher:
        return greedy(trainer.model, prompts, stop)
    if trainer.config.lora_rank:
        with use_adapter(trainer.model, engine.TEACHER_ADAPTER):
            return greedy(trainer.model, prompts, stop)
    return greedy(trainer.teacher.model, prompts, stop)


def ask(trainer, prompts):
    return trainer._generate_single_turn(prompts, None, {}, 1)[0]


def check_swap(trainer):
    """Other weights for both, then policy, teacher, policy; then a swap that fails; then three steps of training."""
    move(weights(trainer, "default"), 0.1, seed=1)
    move(weights(trainer, "ref"), 0.1, seed=2)
    prompts, sampling = long_prompts(trainer), trainer.vllm_generation
    base = [p.clone() for n, p in trainer.model.named_parameters() if "base_layer" in n]
    policy, teacher = expected(trainer, prompts), expected(trainer, prompts, teacher=True)
    assert all(p != t for p, t in zip(policy, teacher, strict=True))
    sampling.temperature, drawn = 0.0, sampling.temperature
    assert ask(trainer, prompts) == policy
    with engine.weights_of(trainer, trainer.teacher.model):
        assert ask(trainer, prompts) == teacher
        assert ask(trainer, prompts) == teacher  # the second time from the prefix cache
    assert ask(trainer, prompts) == policy
    with pytest.raises(KeyboardInterrupt), engine.weights_of(trainer, trainer.teacher.model):
        ask(trainer, prompts)
        raise KeyboardInterrupt
    assert ask(trainer, prompts) == policy
    now = [p for n, p in trainer.model.named_parameters() if "base_layer" in n]
    assert all(torch.allclose(a, b, atol=1e-6) for a, b in zip(base, now, strict=True))
    sampling.temperature = drawn
    trainer.train()
    check_log(trainer, 3)
    sampling.temperature, trainer._last_loaded_step = 0.0, -1  # the last update has not been rolled out
    assert ask(trainer, prompts) == expected(trainer, prompts) != policy


def check_log(trainer, steps):
    log = [row for row in trainer.state.log_history if "sampling/logp_difference" in row]
    assert len(log) == steps
    assert all(row["sampling/logp_difference"] < 1e-4 for row in log), log
    assert all(0 < row["sampling/logp_difference_max"] < 1e-3 for row in log), log


@pytest.mark.swap
def test_policy_teacher_policy(vllm_on_cpu, tmp_path):
    check_swap(make(random_model(tmp_path), tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tied, lora", [(False, FULL), (True, LORA), (False, LORA)], ids=["untied-full", "tied-lora", "untied-lora"]
)
def test_policy_teacher_policy_of_other_models(vllm_on_cpu, tmp_path, tied, lora):
    check_swap(make(random_model(tmp_path, tied, **lora), tmp_path))
