"""The trainer on the lab's model: what it overrides, what it labels, how its teacher moves, that it resumes exactly."""

import inspect
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from trl import GRPOTrainer

from corelib import runs, saving, train
from corelib import trainer as trainer_module
from corelib.answers import extract
from corelib.config import METHOD_NAMES
from corelib.lab import BASE_MODEL
from corelib.rewards import METHODS, Group
from corelib.teacher import policy_weight
from corelib.trainer import CoRewardingTrainer, PairSampler, judge_batch


@pytest.mark.parametrize(
    "name, parameters",
    [
        ("_get_train_sampler", ["self", "dataset"]),
        ("_generate", ["self", "prompts"]),
        (
            "_generate_single_turn",
            ["self", "prompt_ids", "images", "multimodal_fields", "num_generations", "has_tool_images"],
        ),
        ("_compute_loss", ["self", "model", "inputs"]),
        ("create_accelerator_and_postprocess", ["self"]),
        ("_save_checkpoint", ["self", "model", "trial"]),
        ("_load_from_checkpoint", ["self", "resume_from_checkpoint", "model"]),
    ],
)
def test_overridden_trl_methods_exist_with_the_same_signature(name, parameters):
    assert list(inspect.signature(getattr(GRPOTrainer, name)).parameters) == parameters
    assert list(inspect.signature(getattr(CoRewardingTrainer, name)).parameters) == parameters


def test_only_the_documented_methods_are_overridden():
    ours = {n for n, f in vars(CoRewardingTrainer).items() if callable(f) and hasattr(GRPOTrainer, n)} - {"__init__"}
    assert ours == {
        "_get_train_sampler",
        "_generate",
        "_generate_single_turn",
        "_get_per_token_logps_and_entropies",
        "_compute_loss",
        "_save_checkpoint",
        "_load_from_checkpoint",
        "create_accelerator_and_postprocess",
    }
    assert ours <= set(re.findall(r"`([a-z_]+)`", trainer_module.__doc__))


# --- sampler ---------------------------------------------------------------------------------------------------------


def sampler(n=20, views=2, batch=4, repeat=3, **kwargs):
    return PairSampler(
        range(n), mini_repeat_count=2, batch_size=batch, repeat_count=repeat, seed=5, views=views, **kwargs
    )


def test_sampler_keeps_pairs_in_one_generation_batch():
    rows = list(sampler())
    assert len(rows) == len(sampler()) == 20 * 2 * 3
    for start in range(0, len(rows), 4 * 2):
        batch = rows[start : start + 8 : 2]
        assert all(batch[i] + 1 == batch[i + 1] and batch[i] % 2 == 0 for i in (0, 2))


def test_sampler_order_is_a_function_of_the_epoch_alone():
    a, b = sampler(), sampler()
    first = list(a)
    a.set_epoch(1)
    second = list(a)
    b.set_epoch(1)
    assert list(b) == second != first
    b.set_epoch(0)
    assert list(b) == first


def test_sampler_refuses_half_pairs():
    with pytest.raises(ValueError, match="whole pairs"):
        sampler(batch=3)


# --- labels ----------------------------------------------------------------------------------------------------------


def rows_of(pair, view, answers, truth="1", **columns):
    return [
        {"pair": pair, "view": view, "truth": truth, "answer": a, **{k: v[i] for k, v in columns.items()}}
        for i, a in enumerate(answers)
    ]


def test_judge_batch_crosses_the_views_and_counts(tiny):
    config = tiny("co_rewarding_i")
    rows = rows_of(7, "original", ["1", "1", "2", None]) + rows_of(7, "rephrased", ["2", "2", "2", "1"])
    rewards, labels, m = judge_batch(rows, 4, config, step=0)
    assert rewards == [0, 0, 1, 0] + [0, 0, 0, 1] and labels == ["2"] * 4 + ["1"] * 4
    assert m["gt/accuracy"] == 0.5 and m["gt/accuracy_rephrased"] == 0.25
    assert m["gt/label_accuracy"] == 0.5  # "2" is wrong, "1" is right
    assert m["gt/policy_label_accuracy"] == 0.5 and m["views/agreement"] == 0
    assert m["label/support"] == pytest.approx((0.75 + 0.5) / 2) and m["label/missing"] == 0
    assert m["answers/none"] == 1 / 8 and m["answers/distinct_batch"] == 2 / 8 and m["answers/top_share"] == 4 / 8


def test_judge_batch_survives_a_batch_without_any_answer(tiny):
    for method in METHOD_NAMES:
        extra = {"entropy": [1.0] * 4, "certainty": [2.0] * 4, "teacher": [None] * 4}
        rows = rows_of(1, "original", [None] * 4, **extra) + rows_of(1, "rephrased", [None] * 4, **extra)
        rewards, labels, m = judge_batch(rows, 4, tiny(method), step=0)
        assert len(rewards) == 8 and all(r == r for r in rewards)
        if method in ("majority_voting", "co_rewarding_i", "co_rewarding_ii", "co_rewarding_iii", "frozen_teacher"):
            assert rewards == [0.0] * 8 and labels == [None] * 8 and m["label/missing"] == 1


def test_judge_batch_refuses_torn_groups(tiny):
    with pytest.raises(ValueError, match="mixes prompts"):
        judge_batch(rows_of(1, "original", ["1"] * 3) + rows_of(2, "original", ["1"] * 5), 4, tiny("gt"), 0)


def test_missing_truth_gives_no_gt_columns(tiny):
    _, _, m = judge_batch(rows_of(1, "original", ["1"] * 4, truth=None), 4, tiny("majority_voting"), 0)
    assert not any(name.startswith("gt/") for name in m)


# --- training --------------------------------------------------------------------------------------------------------


def weights(folder) -> dict[str, torch.Tensor]:
    return load_file(Path(folder) / "model.safetensors")


@pytest.mark.parametrize("method", METHOD_NAMES)
@pytest.mark.parametrize("beta", [0.0, None], ids=["lab-beta", "paper-beta"])
def test_every_method_trains_with_the_labs_and_the_papers_beta(method, beta, tiny, tmp_path):
    """Two real optimizer steps: weights change, stored labels and rewards are those of the pure functions."""
    from corelib.config import load_config

    beta = load_config("qwen3-4b", method=method).beta if beta is None else beta
    config = tiny(method, beta=beta, learning_rate=1e-3)
    train.train(config, tmp_path)
    base = {k: v.float() for k, v in weights(BASE_MODEL).items()}
    final = weights(tmp_path / "final")
    assert any(not torch.equal(base[k], final[k]) for k in base)
    metrics = runs.load_metrics(tmp_path)
    assert len(metrics[metrics["step"] > 0]) == 2 and metrics["reward"].notna().sum() == 2
    assert ("kl" in metrics) == (beta > 0)
    stored = runs.load_completions(tmp_path)
    assert len(stored) == 2 * config.prompts * config.rollouts
    assert all(
        (extract(c) or None) == (a if isinstance(a, str) else None)
        for c, a in zip(stored["completion"], stored["answer"], strict=True)
    )
    for (step, pair, view), g in stored.groupby(["step", "pair_id", "view"], sort=False):
        other = stored[(stored["step"] == step) & (stored["pair_id"] == pair) & (stored["view"] != view)]
        clean = lambda s: [a if isinstance(a, str) else None for a in s]  # noqa: E731
        if method in ("entropy", "self_certainty", "random"):
            continue
        judged = METHODS[method](
            Group(
                clean(g["answer"]),
                clean(other["answer"]),
                clean(g.get("teacher_answer", [])),
                clean(other.get("teacher_answer", [])),
                g["truth"].iloc[0],
            )
        )
        assert g["judge"].tolist() == judged.rewards
        assert set(clean(g["label"])) == {judged.label}
    assert len(stored[stored["view"] == "rephrased"]) == (len(stored) // 2 if config.paired else 0)


@pytest.mark.parametrize("views", ["rephrased", "both"])
def test_majority_voting_on_other_views(views, tiny, tmp_path):
    train.train(tiny("majority_voting", views=views), tmp_path)
    stored = runs.load_completions(tmp_path)
    assert set(stored["view"]) == ({"rephrased"} if views == "rephrased" else {"original", "rephrased"})
    for _, g in stored.groupby(["step", "pair_id", "view"]):
        answers = [a if isinstance(a, str) else None for a in g["answer"]]
        assert g["judge"].tolist() == METHODS["majority_voting"](Group(answers)).rewards


def test_released_equality_trains(tiny, tmp_path):
    train.train(tiny("majority_voting", answer_equality="released"), tmp_path)
    assert runs.read_status(tmp_path)["state"] == "done"


def test_teacher_is_the_literal_average_of_the_saved_policies(tiny, tmp_path):
    """II for 4 steps, every policy saved: the checkpointed teacher equals the fp64 average computed from the files."""
    config = tiny("co_rewarding_ii", steps=4, save_steps=1, learning_rate=1e-3, teacher_start=0.3)
    kept = {}
    original = CoRewardingTrainer._save_checkpoint

    def keep(self, model, trial):
        original(self, model, trial)
        step = self.state.global_step
        kept[step] = (
            weights(tmp_path / f"checkpoint-{step}"),
            load_file(tmp_path / f"checkpoint-{step}" / "teacher.safetensors"),
        )

    CoRewardingTrainer._save_checkpoint = keep
    try:
        train.train(config, tmp_path)
    finally:
        CoRewardingTrainer._save_checkpoint = original
    policy = {k: v.double() for k, v in weights(BASE_MODEL).items()}
    teacher = dict(policy)
    for t in range(4):  # in step t+1 the teacher takes in the policy as it was before that step's update
        w = policy_weight(t, 4, 0.3, config.teacher_end)
        teacher = {k: (1 - w) * teacher[k] + w * policy[k] for k in teacher}
        saved_policy, saved_teacher = kept[t + 1]
        assert saved_teacher.keys() == {k for k in teacher if k in saved_teacher}
        for k, v in saved_teacher.items():
            assert v.dtype == torch.float32 and torch.allclose(v.double(), teacher[k], atol=1e-7)
        policy = {k: v.double() for k, v in saved_policy.items()}
    moved = max((teacher[k] - weights(BASE_MODEL)[k].double()).abs().max().item() for k in teacher)
    assert moved > 1e-4


@pytest.mark.parametrize("method", ["co_rewarding_ii", "co_rewarding_iii", "frozen_teacher"])
def test_who_generates_and_who_is_the_kl_reference(method, tiny, tmp_path, monkeypatch):
    """Each step: the policy generates with its weights of that step, then the teacher with its weights AFTER the update
    by that policy; the KL reference is that teacher. The weights are read where TRL generates and where it takes
    reference log-probabilities."""
    config = tiny(method, steps=3, learning_rate=1e-2, beta=0.001, teacher_start=0.5)
    drew, referred = [], []
    generate, logps = GRPOTrainer._generate_single_turn, GRPOTrainer._get_per_token_logps_and_entropies
    copy = lambda model: {n: p.detach().clone() for n, p in model.named_parameters()}  # noqa: E731

    def spy_generate(self, *args, **kwargs):
        drew.append(copy(self.accelerator.unwrap_model(self.model_wrapped)))
        return generate(self, *args, **kwargs)

    def spy_logps(self, model, *args, **kwargs):
        if not torch.is_grad_enabled():
            referred.append(copy(model))
        return logps(self, model, *args, **kwargs)

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", spy_generate)
    monkeypatch.setattr(GRPOTrainer, "_get_per_token_logps_and_entropies", spy_logps)
    train.train(config, tmp_path)
    assert len(drew) == 6 and len(referred) == 3
    expected = {k: v.double() for k, v in drew[0].items()}
    for t in range(3):
        policy, teacher = drew[2 * t], drew[2 * t + 1]
        w = 0.0 if method == "frozen_teacher" else policy_weight(t, 3, 0.5, config.teacher_end)
        expected = {k: (1 - w) * expected[k] + w * policy[k].double() for k in expected}
        for k in expected:
            assert torch.allclose(teacher[k].double(), expected[k], atol=1e-6)
            assert torch.equal(teacher[k], referred[t][k])
    assert max((drew[4][k] - drew[5][k]).abs().max().item() for k in expected) > 1e-3  # the two differ by the end


@pytest.mark.parametrize("profile", ["lab", "qwen3-4b"])
def test_every_setting_reaches_trl(profile, tmp_path):
    from corelib.config import load_config

    c = load_config(profile, method="co_rewarding_i")
    if c.engine == "vllm":
        c = load_config(profile, method="co_rewarding_i", engine="transformers", bf16=False)
    a = train.grpo_config(c, tmp_path, 100)
    assert (a.learning_rate, a.beta, a.temperature, a.top_p, a.top_k, a.epsilon) == (
        c.learning_rate,
        c.beta,
        c.temperature,
        c.top_p,
        0,
        c.epsilon,
    )
    assert (a.loss_type, a.scale_rewards, a.num_iterations, a.num_generations) == ("bnpo", "group", 1, 8)
    assert (a.weight_decay, a.max_grad_norm, a.adam_beta1, a.adam_beta2, a.adam_epsilon) == (
        c.weight_decay,
        1.0,
        0.9,
        0.999,
        1e-8,
    )
    assert (a.lr_scheduler_type, a.warmup_steps, a.max_steps) == (c.lr_schedule, 10, 100)
    assert a.max_completion_length == c.max_completion_tokens and a.generation_batch_size == c.prompts * c.rollouts
    assert a.steps_per_generation == a.gradient_accumulation_steps and a.per_device_train_batch_size == min(
        c.micro_batch, c.prompts * c.rollouts
    )
    assert not (a.mask_truncated_completions or a.use_bias_correction_kl or a.use_vllm) and a.seed == c.seed
    assert a.model_init_kwargs == {
        "dtype": "float32",
        "trust_remote_code": False,
        "use_safetensors": True,
        "device_map": None,
    }


def test_best_is_the_best_validation(tiny, tmp_path):
    train.train(tiny("gt", steps=4, eval_steps=1, save_steps=1, learning_rate=3e-3, eval_problems=30), tmp_path)
    scores = runs.load_metrics(tmp_path).set_index("step")["gt/validation"].dropna()
    best = runs.read_json(tmp_path / "best" / "validation.json")
    assert len(scores) == 5 and scores.nunique() > 1
    assert (best["step"], best["accuracy"]) == (scores.idxmax(), scores.max())


def test_epochs_have_different_orders(tiny, tmp_path, monkeypatch):
    original = train.load_pairs
    monkeypatch.setattr(train, "load_pairs", lambda *given: original(*given).select(range(12)))
    train.train(tiny("gt", steps=6), tmp_path)
    stored = runs.load_completions(tmp_path)
    order = [stored[stored["step"] == s]["pair_id"].drop_duplicates().tolist() for s in range(1, 7)]
    first, second = sum(order[:3], []), sum(order[3:], [])
    assert sorted(first) == sorted(second) and first != second


def test_real_pairs_with_a_chat_template(tiny, tmp_path, monkeypatch):
    """A made-up chat model and a small parquet set in the released schema through the same trainer, rollouts that box."""
    import pandas as pd
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    from corelib.config import load_config

    words = [
        "<pad>",
        "<|endoftext|>",
        "<|im_start|>",
        "<|im_end|>",
        "<unk>",
        "\\boxed{1}",
        "\\boxed{2}",
        "user",
        "system",
        "assistant",
    ]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="<pad>", eos_token="<|endoftext|>", unk_token="<unk>"
    )
    tokenizer.chat_template = "{% for m in messages %}<|im_start|> {{ m.role }} {{ m.content }} <|im_end|> {% endfor %}{% if add_generation_prompt %}<|im_start|> assistant {% endif %}"
    torch.manual_seed(0)
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=len(words),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=1,
            head_dim=32,
        )
    )
    model.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    (tmp_path / "data" / "open-rs").mkdir(parents=True)
    for name in ("train_original", "train_rewrite_Qwen3-32B"):
        rows = [
            {"data_source": "d", "prompt": [{"content": "s", "role": "system"}, {"content": f"{name} question number {i}", "role": "user"}], "ability": "math",
             "reward_model": {"ground_truth": "1", "style": "rule"}, "extra_info": {"index": i, "split": "train", "level": "Hard"}, "solution": "s"}
            for i in range(8)
        ]  # fmt: skip
        pd.DataFrame(rows).to_parquet(tmp_path / "data" / "open-rs" / f"{name}.parquet")
    (tmp_path / "data" / "math").mkdir()
    pd.DataFrame(rows).to_parquet(tmp_path / "data" / "math" / "test.parquet")
    calls = []

    def boxes(self, prompt_ids, *_, **__):
        calls.append(tokenizer.decode(prompt_ids[0]))
        pick = self.processing_class.convert_tokens_to_ids
        return [pick([f"\\boxed{{{1 + (i % 3 == 0)}}}", "<|im_end|>"]) for i in range(len(prompt_ids))], None

    monkeypatch.setattr(GRPOTrainer, "_generate_single_turn", boxes)
    monkeypatch.setattr("corelib.callbacks.Validate._validate", lambda self, state: None)
    for method in ("gt", "co_rewarding_i", "co_rewarding_ii"):
        config = load_config(
            "qwen3-4b", method=method, model=str(tmp_path / "model"), dataset="open-rs", source=str(tmp_path / "data"), engine="transformers", bf16=False,
            prompts_per_step=2, rollouts=3, steps=1, micro_batch=2, max_completion_tokens=4, learning_rate=1e-2, warmup=0,
        )  # fmt: skip
        train.train(config, tmp_path / method)
        stored = runs.load_completions(tmp_path / method)
        assert (
            len(stored) == config.prompts * 3 and set(stored["answer"]) == {"1", "2"} and 0 < stored["judge"].mean() < 1
        )
        assert "kl" in runs.load_metrics(tmp_path / method)
        assert "assistant" in calls[-1] and "<|im_end|>" in calls[-1]
    assert train.evaluate.stop_ids(config, tokenizer) == [1, 3]


def test_frozen_teacher_never_moves(tiny, tmp_path):
    train.train(tiny("frozen_teacher", learning_rate=1e-3, save_steps=2), tmp_path)
    base, teacher = weights(BASE_MODEL), load_file(tmp_path / "checkpoint-2" / "teacher.safetensors")
    assert all(torch.equal(base[k].float(), v) for k, v in teacher.items())
    assert runs.load_metrics(tmp_path)["teacher/distance"].dropna().iloc[-1] > 0


def test_changed_data_is_refused(tiny, tmp_path):
    config = tiny("gt", steps=4, save_steps=2)
    interrupt_after(3, config, tmp_path)
    runs.write_json(tmp_path / "manifest.json", runs.read_json(tmp_path / "manifest.json") | {"data_hash": "other"})
    with pytest.raises(RuntimeError, match="training data .* changed"):
        train.train(config, tmp_path)


def test_nan_stops_the_run_and_names_the_last_good_checkpoint(tiny, tmp_path):
    config = tiny("entropy", steps=6, save_steps=2)
    broken = METHODS["entropy"]
    calls = []

    def nan_later(group):
        calls.append(1)
        return (
            type(broken(group))([float("nan")] * len(group.answers))
            if len(calls) > 3 * config.prompts
            else broken(group)
        )

    METHODS["entropy"] = nan_later
    try:
        with pytest.raises(FloatingPointError, match="step 4.*checkpoint-2"):
            train.train(config, tmp_path)
    finally:
        METHODS["entropy"] = broken
    status = runs.read_status(tmp_path)
    assert (
        status["state"] == "failed" and "reward is" in status["error"] and status["last_good"].endswith("checkpoint-2")
    )


def test_rollouts_that_do_not_split_are_refused(tiny, tmp_path):
    with pytest.raises(ValueError, match="do not split over 1 processes x micro_batch=7"):
        train.grpo_config(tiny("gt", micro_batch=7), tmp_path, 2)


def test_micro_batches_change_neither_first_rollouts_nor_labels(tiny, tmp_path):
    """Gradient accumulation: one generation batch in four micro-batches is still one optimizer step."""
    for micro in (16, 4):
        train.train(tiny("majority_voting", micro_batch=micro), tmp_path / str(micro))
    a, b = (runs.load_completions(tmp_path / str(m)).query("step == 1") for m in (16, 4))
    assert a[["prompt", "completion", "label", "judge"]].equals(b[["prompt", "completion", "label", "judge"]])
    assert runs.read_status(tmp_path / "4")["step"] == 2


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, save_steps", [("co_rewarding_ii", 2), ("co_rewarding_iii", 3)], ids=["mid-epoch", "epoch-end"]
)
def test_resume_equals_no_interruption_bit_for_bit(method, save_steps, tiny, tmp_path):
    """Stopped in its second epoch and resumed: weights, teacher, metrics and rollouts are those of a run never stopped."""
    settings = dict(steps=7, save_steps=save_steps, learning_rate=1e-3, eval_steps=2, teacher_start=0.2)
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    config = tiny(method, **settings)
    small = 3 * config.prompts // (2 if config.paired else 1)  # three steps an epoch
    original = train.load_pairs
    train.load_pairs = lambda *given: original(*given).select(range(small))
    try:
        train.train(config, whole)
        interrupt_after(5, config, parts)
        assert saving.last_checkpoint(parts).name == f"checkpoint-{5 // save_steps * save_steps}"
        train.train(config, parts)
    finally:
        train.load_pairs = original
    for file in ("final/model.safetensors", "checkpoint-7/teacher.safetensors", "checkpoint-7/model.safetensors"):
        a, b = load_file(whole / file), load_file(parts / file)
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a), file
    timing = ["step_time"]
    a, b = (runs.load_metrics(f).drop(columns=timing) for f in (whole, parts))
    assert a.equals(b[a.columns])
    assert runs.load_completions(whole).equals(runs.load_completions(parts))


def interrupt_after(step, config, folder):
    """Train until `step` is over, then die as by kill -9: nothing is saved or cleaned up."""

    class Killed(BaseException):
        pass

    from corelib.callbacks import StopOnSignal

    original = StopOnSignal.on_step_end

    def die(self, args, state, control, **kwargs):
        if state.global_step == step:
            raise Killed

    StopOnSignal.on_step_end = die
    try:
        with pytest.raises(Killed):
            train.train(config, folder)
    finally:
        StopOnSignal.on_step_end = original


def test_a_checkpoint_without_its_teacher_is_refused(tiny, tmp_path):
    config = tiny("co_rewarding_ii", steps=4, save_steps=2)
    interrupt_after(3, config, tmp_path)
    (tmp_path / "checkpoint-2" / "teacher.safetensors").unlink()
    with pytest.raises(RuntimeError, match="no whole checkpoint is left.*teacher.safetensors is missing"):
        train.train(config, tmp_path)
    assert len(runs.load_metrics(tmp_path)) > 1  # what was measured is still there


def test_killed_between_the_last_checkpoint_and_the_end(tiny, tmp_path):
    """The run had only its final weights to write: no extra step is taken, nothing is lost."""
    config = tiny("co_rewarding_ii", steps=2, save_steps=2, learning_rate=1e-3)
    whole = train.train(config, tmp_path)
    final, teacher = weights(tmp_path / "final"), load_file(tmp_path / "checkpoint-2" / "teacher.safetensors")
    shutil.rmtree(tmp_path / "final")
    runs.write_json(tmp_path / "status.json", {"state": "running", "pid": 999999})
    again = train.train(config, tmp_path)
    assert (again["step"], again["tokens"], again["best_step"]) == (whole["step"], whole["tokens"], whole["best_step"])
    assert all(torch.equal(final[k], v) for k, v in weights(tmp_path / "final").items())
    assert all(
        torch.equal(teacher[k], v) for k, v in load_file(tmp_path / "checkpoint-2" / "teacher.safetensors").items()
    )
    assert runs.read_status(tmp_path)["state"] == "done" and len(runs.load_metrics(tmp_path).query("step > 0")) == 2


def test_another_configuration_does_not_continue_a_run(tiny, tmp_path):
    train.train(tiny("gt"), tmp_path)
    with pytest.raises(RuntimeError, match=r"other settings \(method, learning_rate\)"):
        train.train(tiny("majority_voting", learning_rate=0.5), tmp_path)


def test_a_run_that_is_being_trained_is_not_trained_twice(tiny, tmp_path):
    config = tiny("gt", stop_seconds=1)
    other = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    runs.write_json(tmp_path / "status.json", {"state": "running", "pid": other.pid, "born": runs._born(other.pid)})
    with pytest.raises(RuntimeError, match=f"being trained by process {other.pid}"):
        train.train(config, tmp_path)
    other.kill()
    other.wait()
    train.train(config, tmp_path)
    assert runs.read_status(tmp_path)["state"] == "done"
