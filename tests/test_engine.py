"""Engines and LoRA without vLLM: the swap of weights, its guard, batches that fit, the teacher as a second adapter."""

import copy
import shlex
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer

from corelib import engine, launch, runs, train
from corelib.config import load_config
from corelib.teacher import Teacher, policy_weight
from corelib.trainer import CoRewardingTrainer


def make(config, folder):
    tokenizer = train.load_tokenizer(config)
    rows, _ = train.training_rows(config)
    return CoRewardingTrainer(config, config.base_model, train.grpo_config(config, folder, 4), rows, tokenizer)


# --- the swap --------------------------------------------------------------------------------------------------------


def test_policy_generates_again_after_a_failing_teacher(tiny, tmp_path):
    trainer = make(tiny("co_rewarding_ii"), tmp_path)
    policy = trainer.model_wrapped
    with pytest.raises(KeyError), engine.weights_of(trainer, trainer.teacher.model):
        assert trainer.model_wrapped is trainer.teacher.model
        raise KeyError
    assert trainer.model_wrapped is policy


def test_vllm_answers_with_the_teacher_only_inside_the_swap(tiny, tmp_path):
    """TRL synchronises weights when `_last_loaded_step` is not the current step: a stand-in engine counts them."""
    trainer = make(tiny("co_rewarding_ii"), tmp_path)
    answered = []

    class Engine:
        model = trainer.model

        def sync_weights(self):
            self.loaded = self.model

        def generate(self, prompts, images, num_generations, profiler):
            answered.append(self.loaded)
            return prompts, [[1] for _ in prompts], [[[0.0]] for _ in prompts], None

    trainer.use_vllm, trainer.vllm_generation, trainer._last_loaded_step = True, Engine(), -1
    teacher = trainer.teacher.model

    def rollout():
        return trainer._generate_single_turn([[1, 2]], None, {}, 1)

    rollout()
    with engine.weights_of(trainer, teacher):
        rollout()
    rollout()
    with pytest.raises(KeyError), engine.weights_of(trainer, teacher):
        rollout()
        raise KeyError
    rollout()
    assert [m is teacher for m in answered] == [False, True, False, True, False]
    assert all(m is teacher or m is trainer.model for m in answered) and trainer.vllm_generation.model is trainer.model


def test_batches_that_fit_leave_the_rollouts_whole_and_in_order(tiny, tmp_path, monkeypatch):
    trainer, sizes = make(tiny("gt"), tmp_path), []

    def echo(self, prompt_ids, *_, **__):
        sizes.append(len(prompt_ids))
        return [[*ids, 9] for ids in prompt_ids], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", echo)
    prompts = [[i] for i in range(10)]
    assert trainer._generate_single_turn(prompts, None, {}, 1)[0] == [[i, 9] for i in range(10)] and sizes == [10]
    monkeypatch.setattr(engine, "BATCH_TOKENS", 4 * (trainer.config.max_prompt_tokens + trainer.max_completion_length))
    sizes.clear()
    assert trainer._generate_single_turn(prompts, None, {}, 1)[0] == [[i, 9] for i in range(10)] and sizes == [4, 4, 2]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_validation_by_the_engine_is_the_samplers(temperature, tiny, tmp_path):
    """Greedy: the completions of `evaluate.sample`. Sampled: other draws, and the training's settings come back."""
    from corelib import evaluate

    trainer = make(tiny("gt"), tmp_path)
    prompts = [row["prompt"] for row in trainer.train_dataset.select(range(5))]
    before, kwargs, state = trainer.generation_config, dict(trainer.generation_kwargs), torch.get_rng_state()
    texts = engine.policy_texts(trainer, prompts, 2, temperature)
    assert torch.equal(torch.get_rng_state(), state)
    assert trainer.generation_config is before and trainer.generation_kwargs == kwargs
    assert [len(row) for row in texts] == [2] * 5
    greedy = evaluate.sample(trainer.model, trainer.processing_class, prompts, 2, 0.0, 24, seed=0)
    assert (texts == greedy) == (temperature == 0.0)
    assert engine.policy_texts(trainer, [], 2, temperature) == []


# --- engine against trainer ------------------------------------------------------------------------------------------


def test_difference_counts_real_tokens_only():
    seen = engine.Difference()
    seen.add(torch.tensor([[-1.0, -2.0, -3.0]]), torch.tensor([[-1.5, float("nan"), -9.0]]), torch.tensor([[1, 1, 0]]))
    seen.add(torch.tensor([[-1.0]]), torch.tensor([[-1.1]]), torch.tensor([[1]]))
    logged = seen.flush(None)
    assert logged["sampling/logp_difference"] == pytest.approx((0.5 + 0.1) / 2)
    assert logged["sampling/logp_difference_max"] == pytest.approx(0.5)
    assert seen.flush(None)["sampling/logp_difference"] == 0.0  # a new step starts afresh


@pytest.mark.parametrize(
    "later, expected",
    [
        ([0.04, 0.049], (False, False)),  # above 5 x the median of 0.002, below the floor of 0.05
        ([0.2, 0.01], (False, True)),
        ([0.01, 0.2], (True, False)),
        ([0.2, 0.3], (True, True)),
    ],
)
def test_drift_needs_both_limits_twice_running(later, expected):
    assert engine.drifted([0.002] * 10 + later) == expected
    noisy = [0.02] * 10 + [0.09, 0.099]  # beyond the floor, within 5 x the median
    assert engine.drifted(noisy) == (False, False)
    assert engine.drifted([9.0] * 9) == (False, False)  # no baseline yet


def test_guard_warns_then_stops_and_remembers_across_a_resume(tmp_path):
    said = []
    for step in range(1, 11):
        runs.append_metrics(tmp_path, {"step": step, "sampling/logp_difference": 0.01})
    runs.append_metrics(tmp_path, {"step": 11, "sampling/logp_difference": 0.5})  # after the checkpoint: not ours
    guard = engine.EngineGuard(tmp_path, said.append)
    guard.on_train_begin(None, SimpleNamespace(global_step=10, is_world_process_zero=True), None)
    guard.on_log(
        None, SimpleNamespace(global_step=11, is_world_process_zero=True), None, {"sampling/logp_difference": 0.4}
    )
    assert len(said) == 1 and "step 11" in said[0] and "0.0100" in said[0]
    with pytest.raises(RuntimeError, match="step 12.*twice running.*engine: transformers"):
        guard.on_log(
            None, SimpleNamespace(global_step=12, is_world_process_zero=True), None, {"sampling/logp_difference": 0.4}
        )


def test_a_run_logs_the_difference_and_it_is_small(tiny, tmp_path, monkeypatch):
    """The rollouts' log-probabilities come from transformers here, scored by the model itself: the difference is rounding."""

    original = CoRewardingTrainer._generate_single_turn

    def scored(self, prompt_ids, *rest, **kwargs):
        completion_ids, _ = original(self, prompt_ids, *rest, **kwargs)
        logps = []
        for prompt, completion in zip(prompt_ids, completion_ids, strict=True):
            ids = torch.tensor([[*prompt, *completion]])
            with torch.no_grad():
                logits = self.model.base_model(ids).last_hidden_state @ self.model.get_output_embeddings().weight.T
            chosen = logits.log_softmax(-1)[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
            logps.append(chosen[len(prompt) - 1 :].tolist())
        return completion_ids, logps

    monkeypatch.setattr(CoRewardingTrainer, "_generate_single_turn", scored)
    train.train(tiny("gt", learning_rate=1e-3, micro_batch=4), tmp_path)
    metrics = runs.load_metrics(tmp_path)
    gap = metrics["sampling/logp_difference"].dropna()
    assert len(gap) == 2 and (gap < 1e-4).all() and (metrics["sampling/logp_difference_max"].dropna() < 1e-3).all()


def test_engine_settings_reach_trl():
    c = load_config("qwen3-4b")
    a = engine.trl_arguments(c, [7])
    assert a["vllm_mode"] == "colocate" and a["vllm_max_model_length"] == 512 + 3072
    assert a["generation_kwargs"] == {"stop_token_ids": [7]} and a["vllm_importance_sampling_correction"] is False
    assert (a["vllm_gpu_memory_utilization"], a["vllm_enable_sleep_mode"]) == (c.vllm_memory, True)
    s = load_config("qwen3-4b", engine="vllm_server", vllm_server="http://a:1, http://b:2")
    assert engine.servers(s) == ["http://a:1", "http://b:2"]
    assert engine.trl_arguments(s, [])["vllm_server_base_url"] == "http://a:1"
    assert engine.trl_arguments(load_config("lab"), [1]) == {}


# --- LoRA ------------------------------------------------------------------------------------------------------------


def adapters(model, name):
    return {n.replace(f".{name}.", "."): p.detach().clone() for n, p in model.named_parameters() if f".{name}." in n}


@pytest.mark.parametrize("method", ["co_rewarding_ii", "frozen_teacher"])
def test_lora_teacher_is_a_second_adapter_and_the_kl_reference(method, tiny, tmp_path, monkeypatch):
    config = tiny(method, lora_rank=4, lora_alpha=8, learning_rate=1e-2, beta=0.001, steps=4)
    trainer = make(config, tmp_path)
    start = adapters(trainer.model, "default")
    assert all(torch.equal(start[k], v) for k, v in adapters(trainer.model, "ref").items()) and len(start) > 4
    assert {n for n, p in trainer.model.named_parameters() if p.requires_grad} == {
        n for n, _ in trainer.model.named_parameters() if ".default." in n
    }
    policies, drew = [], []
    generate = GRPOTrainer._generate_single_turn

    def spy(self, *args, **kwargs):
        drew.append(self.model.active_adapter)
        if self.model.active_adapter == "default":
            policies.append(adapters(self.model, "default"))
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy)
    trainer.train()
    assert drew == ["default", "ref"] * 4 and trainer.model.active_adapter == "default"
    expected = {k: v.double() for k, v in start.items()}
    for t, policy in enumerate(policies):
        w = 0.0 if method == "frozen_teacher" else policy_weight(t, 4, config.teacher_start, config.teacher_end)
        expected = {k: (1 - w) * v + w * policy[k].double() for k, v in expected.items()}
    teacher = adapters(trainer.model, "ref")
    assert all(torch.allclose(teacher[k].double(), v, atol=1e-6) for k, v in expected.items())
    moved = max((teacher[k] - start[k]).abs().max().item() for k in start)
    assert moved == 0 if method == "frozen_teacher" else moved > 1e-6
    # TRL's KL is against the adapter that it calls "ref": here the teacher, whose distance is not zero
    assert trainer.state.log_history[-2]["kl"] > 0


def test_lora_resumes_bit_for_bit_with_its_teacher(tiny, tmp_path):
    from .test_trainer import interrupt_after

    config = tiny("co_rewarding_iii", lora_rank=4, learning_rate=1e-2, steps=4, save_steps=2)
    train.train(config, tmp_path / "whole")
    interrupt_after(3, config, tmp_path / "cut")
    train.train(config, tmp_path / "cut")
    for file in ("final/adapter_model.safetensors", "checkpoint-4/teacher.safetensors"):
        a, b = load_file(tmp_path / "whole" / file), load_file(tmp_path / "cut" / file)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert load_file(tmp_path / "whole" / "checkpoint-4" / "teacher.safetensors").keys() == {
        k for k in load_file(tmp_path / "whole" / "checkpoint-4" / "teacher.safetensors") if ".ref." in k
    }


@pytest.mark.slow
def test_averaging_a_and_b_is_not_averaging_their_product(tiny, tmp_path, monkeypatch):
    """The LoRA teacher averages A and B apart; a full teacher averages W, here B A. What that costs, in a real lab run.

    (mean B)(mean A) leaves out how A and B moved together while the average remembers. README states the figure.
    """
    config = tiny("co_rewarding_ii", lora_rank=8, lora_alpha=16, learning_rate=2e-3, steps=60, teacher_start=0.05)
    trainer = make(config, tmp_path)
    policies = []
    generate = GRPOTrainer._generate_single_turn

    def spy(self, *args, **kwargs):
        if self.model.active_adapter == "default":
            policies.append({k: v.double() for k, v in adapters(self.model, "default").items()})
        return generate(self, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy)
    trainer.args.max_steps = 60
    trainer.train()
    products = [{k: p[k.replace("_A", "_B")] @ p[k] for k in p if "lora_A" in k} for p in policies]
    averaged = products[0]
    for t, product in enumerate(products):
        w = policy_weight(t, 60, config.teacher_start, config.teacher_end)
        averaged = {k: (1 - w) * v + w * product[k] for k, v in averaged.items()}
    teacher = {k: v.double() for k, v in adapters(trainer.model, "ref").items()}

    def distance(x, y):
        return (sum((x[k] - y[k]).square().sum() for k in y) / sum(y[k].square().sum() for k in y)).sqrt().item()

    gap = distance({k: teacher[k.replace("_A", "_B")] @ teacher[k] for k in averaged}, averaged)
    lag = distance(products[-1], averaged)
    print(f"(mean B)(mean A) is {gap:.3f} away from the mean of B A, relative; the policy is {lag:.2f} away")
    assert 1e-4 < gap < 0.25 * lag


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vllm_gets_base_plus_change_and_the_base_stays_as_it_was(dtype):
    """What is pushed is peft's own merge, computed beside the frozen base: not one bit of it moves, however often."""
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    small = Qwen3Config(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=32)  # fmt: skip
    lora = LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM")
    model = get_peft_model(Qwen3ForCausalLM(small).to(dtype), lora)
    model.add_adapter("ref", lora)
    model.set_adapter("default")
    with torch.no_grad():
        for n, p in model.named_parameters():
            if "lora_" in n:
                p.copy_(torch.randn_like(p) * (0.1 if ".default." in n else 0.2))
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    pushed = {}
    generation = SimpleNamespace(model=model)
    engine.leave_base_untouched(generation)
    for name in ("default", "ref", "default"):
        with engine.use_adapter(model, name):
            pushed[name] = dict(generation._iter_named_params())
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    for name in ("default", "ref"):
        model.set_adapter(name)
        merged = copy.deepcopy(model).float().merge_and_unload().state_dict()
        tied = {k: v for k, v in merged.items() if k != "lm_head.weight"}
        assert pushed[name].keys() - {"lm_head.weight"} == tied.keys()
        assert all(torch.allclose(pushed[name][k].float(), v, atol=0 if dtype is torch.bfloat16 and "proj" not in k else 1e-2 if dtype is torch.bfloat16 else 1e-6) for k, v in tied.items())  # fmt: skip
    key = "model.layers.0.mlp.up_proj.weight"
    assert not torch.equal(pushed["default"][key], pushed["ref"][key])


def test_lora_update_is_the_same_average_as_a_full_one():
    from peft import LoraConfig, get_peft_model
    from transformers import Qwen3Config, Qwen3ForCausalLM

    small = Qwen3Config(vocab_size=16, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1, num_key_value_heads=1, head_dim=32)  # fmt: skip
    model = get_peft_model(Qwen3ForCausalLM(small), LoraConfig(r=2, target_modules="all-linear", task_type="CAUSAL_LM"))
    model.add_adapter("ref", model.peft_config["default"])
    teacher = Teacher(model, adapter="ref")
    assert teacher.distance(model) == 0
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".default." in n:
                p.add_(1.0)
    before = adapters(model, "ref")
    teacher.update(model, 0.25)
    policy, after = adapters(model, "default"), adapters(model, "ref")
    assert (
        all(torch.allclose(after[k], before[k] * 0.75 + policy[k] * 0.25) for k in after)
        and teacher.distance(model) > 0
    )


def test_server_lines_start_what_the_client_needs():
    """One line a server: its port, the longest rollout, and the endpoints that receive weights."""
    config = load_config("qwen3-4b", engine="vllm_server", vllm_server="http://a:8000, http://b:8001", max_completion_tokens=488)  # fmt: skip
    first, second = launch.train_lines(config, "run")[:2]
    assert first.endswith("# on a") and second.endswith("# on b")
    words = shlex.split(second, comments=True)
    assert words[:4] == ["VLLM_SERVER_DEV_MODE=1", "vllm", "serve", "Qwen/Qwen3-4B-Base"]
    given = dict(zip(words, words[1:], strict=False))
    assert (given["--port"], given["--max-model-len"], given["--dtype"]) == ("8001", "1000", "bfloat16")
    assert given["--weight-transfer-config"] == '{"backend": "nccl"}' and "--logprobs-mode" in words
    assert len(launch.train_lines(load_config("qwen3-4b"), "run")) == 1
