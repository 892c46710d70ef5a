"""What watches a training run: its heartbeat and metrics, its validation, and a clean stop."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable
from pathlib import Path

from accelerate.utils import gather_object
from transformers import TrainerCallback

from corelib import evaluate, runs
from corelib.config import RunConfig

RENAME = {
    "completions/mean_length": "length/mean",
    "completions/clipped_ratio": "length/clipped",
    "frac_reward_zero_std": "reward/zero_std",
    "reward_std": "reward/std",
    "num_tokens": "tokens",
}
DROP = (
    "rewards/judge/mean",
    "rewards/judge/std",
    "total_flos",
    "train_runtime",
    "train_samples_per_second",
    "train_steps_per_second",
    "train_loss",
    "epoch",
)


class Heartbeat(TrainerCallback):
    """Writes metrics.jsonl and status.json; stops a run whose loss or reward is no longer a number."""

    def __init__(
        self, folder: Path, steps: int, completions_every: int, seconds_before: float = 0.0, say: Callable = print
    ):
        self.say, self.folder, self.steps, self.every, self.seconds_before = (
            say,
            folder,
            steps,
            completions_every,
            seconds_before,
        )
        self.started, self.first_step, self.last_write, self.trainer = time.time(), None, 0.0, None

    def on_step_begin(self, args, state, control, **_):
        if self.first_step is None:
            self.first_step, self.started = state.global_step, time.time()
        # TRL writes one parquet a log; storing every rollout of a tiny run would cost more than the run
        step = state.global_step + 1
        self.trainer.log_completions = step == 1 or step % self.every == 0 or step == self.steps

    def on_log(self, args, state, control, logs=None, **_):
        if not state.is_world_process_zero or "loss" not in logs:
            return
        row = {
            RENAME.get(k, k): v
            for k, v in logs.items()
            if k not in DROP and not k.startswith(("clip_ratio/", "completions/m"))
        }
        row |= {RENAME[k]: logs[k] for k in RENAME if k in logs}
        for name in ("loss", "reward", "grad_norm"):
            if row.get(name) is None or not math.isfinite(row[name]):
                good = runs.last_checkpoint(self.folder, say=lambda _: None)
                raise FloatingPointError(
                    f"{name} is {row.get(name)} at step {state.global_step}; the last good checkpoint is {good or 'none'}"
                )
        runs.append_metrics(self.folder, {"step": state.global_step} | row)
        now = time.time()
        if now - self.last_write > 1 or state.global_step == self.steps:
            self.last_write = now
            done = max(state.global_step - self.first_step, 1)
            left = (now - self.started) / done * (self.steps - state.global_step)
            seconds = self.seconds_before + now - self.started
            runs.write_status(
                self.folder, "running", step=state.global_step, steps=self.steps, eta=left, seconds=seconds
            )
            accuracy = row.get("gt/accuracy", float("nan"))
            self.say(
                f"step {state.global_step}/{self.steps}  reward {row['reward']:.3f}  accuracy {accuracy:.3f}  {left:.0f} s left"
            )


class Validate(TrainerCallback):
    """Scores the policy on held-out problems every `eval_steps`, and keeps the weights that did best.

    The draw has its own seed and leaves the training's random state as it was. With several processes each rank scores
    its share.
    """

    def __init__(self, config: RunConfig, folder: Path, tokenizer, stop_ids):
        self.config, self.folder, self.tokenizer, self.stop_ids = config, folder, tokenizer, stop_ids
        self.problems, self.best, self.trainer = None, -1.0, None

    def on_train_begin(self, args, state, control, **_):
        stored = runs.read_json(self.folder / "best" / "validation.json") or {}
        if stored.get("step", -1) <= state.global_step and stored:
            self.best = stored["accuracy"]
        if state.global_step == 0:
            self._validate(state)

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.config.eval_steps == 0 or state.global_step == state.max_steps:
            self._validate(state)

    def _validate(self, state) -> None:
        if self.problems is None:
            self.problems = evaluate.problems_of(self.config, "validation")
        accelerator, config = self.trainer.accelerator, self.config
        mine = (
            self.problems.shard(accelerator.num_processes, accelerator.process_index)
            if accelerator.num_processes > 1
            else self.problems
        )
        model = accelerator.unwrap_model(self.trainer.model)
        texts = evaluate.sample(
            model, self.tokenizer, [evaluate.prompt_of(config, q) for q in mine["question"]], config.eval_samples,
            config.eval_temperature, config.max_completion_tokens, seed=config.seed, stop_ids=self.stop_ids,
        )  # fmt: skip
        right = gather_object(evaluate.grade(texts, mine["answer"]))
        accuracy = evaluate.avg_at_k(right).mean
        if accelerator.is_main_process:
            runs.append_metrics(self.folder, {"step": state.global_step, "gt/validation": accuracy})
        if accuracy > self.best:
            self.best = accuracy
            self.trainer.save_model(str(self.folder / "best"))
            if accelerator.is_main_process:
                runs.write_json(
                    self.folder / "best" / "validation.json", {"step": state.global_step, "accuracy": accuracy}
                )


class StopOnSignal(TrainerCallback):
    """SIGTERM and SIGINT: finish the step, save a checkpoint, stop. A second signal stops at once."""

    def __init__(self):
        self.told = False

    def on_train_begin(self, args, state, control, **_):
        for name in (signal.SIGTERM, signal.SIGINT):
            signal.signal(name, self._tell)

    def _tell(self, number, frame):
        if self.told:
            raise KeyboardInterrupt
        self.told = True

    def on_step_end(self, args, state, control, **_):
        # Ranks hear a signal at different moments; all must stop after the same step, or a collective hangs
        if any(gather_object([self.told])) if args.world_size > 1 else self.told:
            control.should_save = control.should_training_stop = True
