"""Stock TRL with a colocated engine: what corelib builds on, and that the CPU workarounds of conftest.py are enough."""

from datasets import Dataset
from tiny_qwen3 import greedy, save_model
from trl import GRPOConfig, GRPOTrainer

from corelib import lab


def test_stock_trainer_samples_from_the_policy_it_trains(vllm_on_cpu, tmp_path):
    model = save_model(tmp_path / "model", tied=True)
    rows = Dataset.from_list([{"prompt": p.text("original")} for p in lab.problems(32, "train", 0)])
    arguments = GRPOConfig(
        output_dir=str(tmp_path / "run"),
        max_steps=3,
        per_device_train_batch_size=16,
        num_generations=4,
        max_completion_length=16,
        learning_rate=1e-2,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        use_vllm=True,
        vllm_mode="colocate",
        vllm_max_model_length=128,
        vllm_gpu_memory_utilization=0.3,
        generation_kwargs={"stop_token_ids": [lab.tokenizer().eos_token_id]},
        model_init_kwargs={"dtype": "float32"},
        logging_steps=1,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [float(len(set(c.split()))) for c in completions],
        args=arguments,
        train_dataset=rows,
    )
    trainer.train()
    log = [row for row in trainer.state.log_history if "sampling/sampling_logp_difference/mean" in row]
    assert len(log) == 3 and all(row["grad_norm"] > 0 for row in log)
    assert all(row["sampling/sampling_logp_difference/mean"] < 1e-4 for row in log)
    engine = trainer.vllm_generation
    engine.temperature = 0.0
    engine.sync_weights()
    prompts = trainer.processing_class(rows["prompt"][:4])["input_ids"]
    answers = engine.generate(prompts, None, 1)[1]
    assert answers == greedy(trainer.model, prompts, [trainer.processing_class.eos_token_id], 16)
