"""One training run, from its configuration to its folder: the one thing that accelerate launches.

    python -m corelib.train --config run.yaml --out outputs/runs/<name>

The same command starts a run, resumes it from its newest whole checkpoint, and does nothing when it is done.
"""

from __future__ import annotations

import argparse
import math
import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from corelib import evaluate, runs, saving
from corelib.config import RunConfig, load_config

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # worth a factor of 4 on tiny models and shared cores


def training_rows(config: RunConfig, tokenizer=None, folder: Path | None = None):
    """The rows TRL trains on and their hash: one row a prompt, the two views of a pair adjacent for paired methods.

    Columns: prompt, pair_id, view, answer. Ground truth travels along for `gt` and for the `gt/` metrics only. The data's
    audit is written into `folder` when one is given.
    """
    from datasets import Dataset

    pairs = load_pairs(config, tokenizer, folder)
    views = ("original", "rephrased") if config.paired else (config.views,)
    column = {"original": "question", "rephrased": "rephrased"}
    rows = [
        {
            "prompt": evaluate.prompt_of(config, pair[column[view]]),
            "pair_id": pair["id"],
            "view": view,
            "answer": pair["answer"],
        }
        for pair in pairs
        for view in views
    ]
    if len(rows) < config.prompts:
        raise ValueError(
            f"{len(rows)} training prompts are fewer than one step's {config.prompts}; lower prompts_per_step"
        )
    return Dataset.from_list(rows), runs.data_hash(rows)


def load_pairs(config: RunConfig, tokenizer=None, folder: Path | None = None):
    """Question pairs of the run's data set; pairs with an overlong view are dropped as in the released loader."""
    if config.dataset == "lab":
        from corelib import lab

        return lab.pairs(
            seed=config.seed, near_copy=config.rewording == "near_copy", wrong_rewrites=config.wrong_rewrites
        )[0]
    from corelib import data

    pairs, audit = data.load_pairs(config.dataset, config.source or None)
    if tokenizer is not None:
        pairs = data.length_filter(pairs, tokenizer, config.max_prompt_tokens, audit)
    if folder is not None:
        audit.save(folder)
    return pairs


def total_steps(config: RunConfig, rows: int) -> int:
    """Optimizer steps: `steps`, else whole batches an epoch times `epochs` (the leftover of an epoch is dropped)."""
    return config.steps or max(1, math.floor(rows // config.prompts * config.epochs))


def grpo_config(config: RunConfig, folder: Path, steps: int, processes: int = 1, stop_ids: Sequence[int] = ()):
    """TRL's GRPOConfig with every value that matters spelt out: TRL's defaults differ from the paper's.

    Raises ValueError when a step's rollouts cannot be split evenly over processes and micro-batches.
    """
    from trl import GRPOConfig

    from corelib import engine

    rollouts = config.prompts * config.rollouts
    micro = min(config.micro_batch, rollouts // processes)
    if rollouts % (micro * processes):
        raise ValueError(
            f"{rollouts} rollouts a step do not split over {processes} processes x micro_batch={micro}; choose a micro_batch that divides {rollouts // processes}"
        )
    accumulation = rollouts // (micro * processes)
    warmup = int(config.warmup * steps) if config.warmup < 1 else int(config.warmup)
    return GRPOConfig(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        steps_per_generation=accumulation,  # one optimizer step a generation batch: ratio 1, the clip is inactive
        num_iterations=1,
        num_generations=config.rollouts,
        max_completion_length=config.max_completion_tokens,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=0,
        loss_type=config.loss_type,
        scale_rewards="group",
        beta=config.beta,
        epsilon=config.epsilon,
        use_bias_correction_kl=False,  # the released KL term carries no ratio; at ratio 1 only its gradient differs
        mask_truncated_completions=False,  # released: truncated rollouts count, with reward 0 unless boxed early
        learning_rate=config.learning_rate,
        lr_scheduler_type=config.lr_schedule,
        warmup_steps=warmup,
        optim="adamw_torch",
        adam_beta1=0.9,
        adam_beta2=0.999,
        adam_epsilon=1e-8,
        weight_decay=config.weight_decay,
        max_grad_norm=config.max_grad_norm,
        bf16=config.bf16,
        gradient_checkpointing=config.gradient_checkpointing,
        # fp32 master weights under bf16 autocast; with LoRA the base model is frozen and its adapters alone are fp32
        model_init_kwargs={
            "dtype": "bfloat16" if config.lora_rank and config.bf16 else "float32",
            "trust_remote_code": False,
            "use_safetensors": True,
            "device_map": None,  # TRL's default, auto, would spread each process's copy over all visible GPUs
        },
        disable_dropout=True,
        seed=config.seed,
        data_seed=config.seed,
        logging_steps=1,
        logging_first_step=True,
        logging_nan_inf_filter=False,
        log_completions=True,
        num_completions_to_print=0,
        report_to=config.report_to,
        save_strategy="steps",
        save_steps=config.save_steps,
        save_total_limit=None,  # saving.rotate_checkpoints deletes, after the newest is whole
        disable_tqdm=True,
        dataloader_num_workers=0,
        remove_unused_columns=False,
        **({} if _cuda() else {"use_cpu": True} | ({"ddp_backend": "gloo"} if processes > 1 else {})),
        **({"ddp_find_unused_parameters": False} if processes > 1 else {}),
        # FSDP2: reduce every micro-batch, or each GPU would hold a whole gradient, 16 GB for 4B parameters
        accelerator_config={"gradient_accumulation_kwargs": {"sync_each_batch": _fsdp()}},
        **engine.trl_arguments(config, stop_ids),
    )


def _fsdp() -> bool:
    return os.environ.get("ACCELERATE_USE_FSDP") == "true"


def _cuda() -> bool:
    import torch

    return torch.cuda.is_available()


def load_tokenizer(config: RunConfig):
    """The base model's tokenizer, left-padded, with a pad token. No remote code.

    Raises ValueError where it has no chat template: the prompts of every method are rendered with the model's own.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(config.base_model, trust_remote_code=False, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    if config.dataset != "lab" and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {config.model} has no chat template, so prompts cannot be rendered; use a model that has one (Qwen's Base models and Llama's Instruct models do), or save one into its folder"
        )
    return tokenizer


def train(config: RunConfig, folder: Path) -> dict:
    """Run or resume one training; returns the final status. Raises what training raises, after writing status `failed`."""
    import torch
    from accelerate.utils import broadcast_object_list
    from transformers import PrinterCallback
    from transformers.trainer_utils import set_seed
    from transformers.utils import logging

    from corelib.alarm_callback import AlarmCallback, mend_kept
    from corelib.callbacks import FiniteOnly, Heartbeat, StopOnSignal, Stopped, Validate
    from corelib.engine import EngineGuard
    from corelib.trainer import CoRewardingTrainer

    saving.require_safetensors(config.base_model)
    held = runs.hold(folder, config.stop_seconds) if _is_main() and not _done(folder) else None
    status, manifest = runs.read_status(folder), runs.read_json(folder / "manifest.json")
    runs.refuse_other_settings(folder, config)
    if status.get("state") == "done":
        print(f"{folder.name} is done")
        return status
    logging.disable_progress_bar()
    started, seconds_before = time.time(), status.get("seconds", 0.0)
    heartbeat = Heartbeat(folder, config.steps, config.completions_every, before=status)
    stop = StopOnSignal(config.max_hours, heartbeat)
    try:
        if config.dataset == "lab":
            torch.set_num_threads(1)  # bit-for-bit resume, and faster than two on a 0.4 M model
        set_seed(config.seed)
        if config.model == "smollm2":
            from corelib import smollm2

            smollm2.prepare()
        tokenizer = load_tokenizer(config)
        rows, data_hash = training_rows(config, tokenizer, folder if _is_main() else None)
        steps = total_steps(config, len(rows))
        if _is_main():
            if manifest is not None and manifest.get("data_hash") != data_hash:
                raise RuntimeError(
                    f"the training data of {folder.name} changed (hash {manifest.get('data_hash')} -> {data_hash}); delete the folder to start over"
                )
            if manifest is None:
                runs.write_manifest(folder, config, data_hash=data_hash, prompts=len(rows), steps=steps)
            runs.write_status(folder, "running", step=status.get("step", 0), steps=steps, seconds=seconds_before)
        heartbeat.steps = steps
        problems = evaluate.problems_of(config, "validation")  # what is missing is told before any model is loaded
        stop_ids = evaluate.stop_ids(config, tokenizer)
        validate = Validate(config, folder, tokenizer, stop_ids, problems)
        trainer = CoRewardingTrainer(
            config,
            model=config.base_model,
            args=grpo_config(config, folder, steps, int(os.environ.get("WORLD_SIZE", 1)), stop_ids),
            train_dataset=rows,
            processing_class=tokenizer,
            callbacks=[
                validate,
                heartbeat,
                stop,
                finite := FiniteOnly(folder),
                EngineGuard(folder),
                alarmed := AlarmCallback(folder, config.on_collapse),  # after the heartbeat, whose row it reads
            ],  # validation first: its row belongs to the step just logged
        )
        if config.engine == "vllm":  # its worker has just seeded this process with the rank alone: every run the same
            set_seed(config.seed * 1000 + trainer.accelerator.process_index // config.vllm_tensor_parallel)
        heartbeat.trainer = validate.trainer = finite.trainer = alarmed.trainer = trainer
        trainer.remove_callback(PrinterCallback)  # metrics.jsonl has every value; the log gets one line a second
        trainer.eos_token_ids = stop_ids
        if config.engine == "transformers":
            trainer.generation_config.eos_token_id = trainer.generation_kwargs["eos_token_id"] = trainer.eos_token_ids
        # Verified by one process: every rank reading 64 GB would be the slowest part of a resume
        found = [saving.last_checkpoint(folder) if _is_main() else None]
        checkpoint = broadcast_object_list(found)[0]
        step = saving.step_of(checkpoint) if checkpoint else 0
        if _is_main():
            runs.truncate_metrics(folder, step)
            mend_kept(folder, step)
            saving.require_space(folder, trainer.model.parameters(), trainer.teacher is not None, _fsdp())
            print(f"{'resuming at step ' + str(step) if step else 'starting'} of {steps}: {folder.name}", flush=True)
        if step < steps:
            trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
            step = trainer.state.global_step
        else:  # killed between its last checkpoint and the end: one more call of train() would be one more step
            trainer._load_from_checkpoint(str(checkpoint))
        if step >= steps:
            with saving.writing(folder / "final", _is_main()):
                trainer.accelerator.wait_for_everyone()
                trainer.save_model(str(folder / "final"))
                trainer.accelerator.wait_for_everyone()
        metrics = runs.load_metrics(folder)
        best = runs.read_json(folder / "best" / "validation.json") or {}
        final = {
            "step": step,
            "steps": steps,
            "tokens": int(metrics["tokens"].max()) if "tokens" in metrics else 0,
            "seconds": seconds_before + time.time() - started,
            "best_step": best.get("step"),
            "best_validation": best.get("accuracy"),
            "kept_step": (runs.read_json(folder / "kept" / "validation.json") or {}).get("step"),
        }
        if _is_main():
            why = {"error": alarmed.stopped} if alarmed.stopped and step < steps else {}
            runs.write_status(folder, "done" if step >= steps else "stopped", **(heartbeat.last_step | final | why))
            print(f"{'done' if step >= steps else 'stopped'} at step {step} of {steps}", flush=True)
        return final
    except BaseException as error:
        full = saving.no_space(error, folder)
        if _is_main():
            runs.write_status(
                folder,
                "stopped" if isinstance(error, Stopped | KeyboardInterrupt) else "failed",
                error=f"{type(full or error).__name__}: {full or error}",
                last_good=str(saving.last_good(folder) or ""),
                seconds=seconds_before + time.time() - started,
                **heartbeat.last_step,
            )
        if full is not None and full is not error:
            raise full from error
        raise
    finally:
        stop.release()
        if held is not None:
            held.close()


def _done(folder: Path) -> bool:
    return runs.read_status(folder).get("state") == "done"


def _is_main() -> bool:
    return os.environ.get("RANK", "0") == "0"


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--config", required=True, type=Path, help="YAML with the run's settings")
    parser.add_argument("--out", type=Path, help="run folder (default: outputs/runs/<run name>)")
    args = parser.parse_args(argv)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))  # until the run has its own handler there is nothing to save
    config = load_config(path=args.config)
    if config.gpus == 1 and "WORLD_SIZE" not in os.environ:  # else TRL takes a second visible GPU for data parallelism
        os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    status = train(config, args.out or runs.run_folder(config))
    return 0 if status.get("step") == status.get("steps") else 3


if __name__ == "__main__":
    sys.exit(main())
