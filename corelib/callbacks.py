"""What watches a training run: its heartbeat and metrics, its validation, and a clean stop."""

from __future__ import annotations

import math
import signal
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list, gather_object
from transformers import TrainerCallback

from corelib import evaluate, probe, runs, saving
from corelib.answers import extract, vote
from corelib.config import RunConfig
from corelib.engine import policy_texts

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


RECENT = 50  # steps whose mean predicts the rest: five validations of the paper's every tenth step


class Heartbeat(TrainerCallback):
    """Writes metrics.jsonl, status.json and the progress line.

    `before` is the status that an earlier call of the same run left: its seconds a step predict the time left until
    this call has made a few steps of its own.
    """

    def __init__(
        self,
        folder: Path,
        steps: int,
        completions_every: int,
        before: dict | None = None,
        say: Callable = print,
        clock: Callable = time.time,
    ):
        self.folder, self.steps, self.every, self.say, self.clock = folder, steps, completions_every, say, clock
        before = before or {}
        self.seconds_before = before.get("seconds", 0.0)
        self.longest = before.get("longest_step", 0.0)  # seconds, validation included
        self.expected = before.get("step_seconds", 0.0)
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.started = self.previous = self.since = self.ready = None
        self.last_write, self.trainer = 0.0, None
        self.last_step: dict = {}  # what the status says of it, also when the run ends between two writes

    def on_init_end(self, args, state, control, **_):
        self.ready = self.clock()

    def on_step_begin(self, args, state, control, **_):
        if self.previous is None:
            self.started = self.previous = self.since = self.clock()
            if state.global_step == 0 and self.ready is not None:
                self.since = self.ready  # the validation before the first step shows how long a step with one can be
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
                raise saving.not_a_number(name, row.get(name), state.global_step, self.folder)
        runs.append_metrics(self.folder, {"step": state.global_step} | row)
        now = self.clock()
        self.recent.append(now - self.previous)
        self.longest = self.longest_until(now)
        self.previous = self.since = now
        self.last_step = {
            "step": state.global_step,
            "steps": self.steps,
            "step_seconds": self.step_seconds(),
            "longest_step": self.longest,
            "last_step_at": now,
        }
        if now - self.last_write > 1 or state.global_step == self.steps:
            self.last_write = now
            left = self.step_seconds() * (self.steps - state.global_step)
            seconds = self.seconds_before + now - self.started
            runs.write_status(self.folder, "running", eta=left, seconds=seconds, **self.last_step)
            accuracy = row.get("gt/accuracy", float("nan"))
            self.say(
                f"step {state.global_step}/{self.steps}  reward {row['reward']:.3f}  accuracy {accuracy:.3f}  {left:.0f} s left"
            )

    def longest_until(self, now: float) -> float:
        """Seconds of the longest step so far, the one that ends now included."""
        return max(self.longest, now - self.since if self.since is not None else 0.0)

    def step_seconds(self) -> float:
        """Expected seconds of one more step: the mean of the recent ones; while there are few, with the earlier call's."""
        unseen = max(5 - len(self.recent), 0) if self.expected else 0
        return (sum(self.recent) + unseen * self.expected) / (len(self.recent) + unseen)


class FiniteOnly(TrainerCallback):
    """Stops a run whose loss, gradients or weights are no longer numbers, before anything spoilt is saved.

    Rewards are looked at where they are made (`CoRewardingTrainer.judge`): TRL turns an advantage that is not a number
    into 0 and goes on. Loss and gradients are looked at before the optimizer's step, weights after it and before
    validation and checkpoint. All ranks stop together. Costs one norm of gradients and weights a step.
    """

    def __init__(self, folder: Path):
        self.folder, self.trainer = folder, None

    def on_pre_optimizer_step(self, args, state, control, **_):
        gradients = [p.grad for p in self._trained() if p.grad is not None]
        # Trainer (transformers 5.17) sums the micro-batches' losses in `_tr_loss` until it logs
        self._check(args, state, loss=float(self.trainer._tr_loss), grad_norm=norm(gradients))

    def on_optimizer_step(self, args, state, control, **_):
        self._check(args, state, weights=norm(p.detach() for p in self._trained()))

    def _trained(self):
        return (p for p in self.trainer.model.parameters() if p.requires_grad)

    def _check(self, args, state, **values: float) -> None:
        bad = [(name, value) for name, value in values.items() if not math.isfinite(value)]
        for name, value in (gather_object(bad) if args.world_size > 1 else bad)[:1]:
            raise saving.not_a_number(name, value, state.global_step + 1, self.folder)


def norm(tensors) -> float:
    """Euclidean norm over tensors (of DTensors this rank's shard); nan or inf when one element is."""
    local = [getattr(t, "_local_tensor", t) for t in tensors]
    return torch.stack(torch._foreach_norm(local)).norm().item() if local else 0.0


def save_weights(trainer, folder: Path, validation: dict) -> None:
    """The policy's weights and validation.json into a folder, in place of what it held; whole or not at all.

    Every rank must call it. Raises DiskFull.
    """
    accelerator, new = trainer.accelerator, folder.with_name(f"{folder.name}.new")
    with saving.writing(new, accelerator.is_main_process):
        accelerator.wait_for_everyone()
        trainer.save_model(str(new))
        if accelerator.is_main_process:
            runs.write_json(new / "validation.json", validation)
        accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        saving.replace_folder(new, folder)


class Validate(TrainerCallback):
    """Scores the policy on held-out problems every `eval_steps`, and keeps the weights that did best.

    The draw has its own seed and leaves the training's random state as it was. With several processes each rank scores
    its share.
    """

    def __init__(self, config: RunConfig, folder: Path, tokenizer, stop_ids, problems):
        self.config, self.folder, self.tokenizer, self.stop_ids = config, folder, tokenizer, stop_ids
        self.problems, self.best, self.trainer, self.say = problems, -1.0, None, print

    def on_train_begin(self, args, state, control, **_):
        # Read once: ranks that disagree on it would not save together
        self.best = broadcast_object_list([self._best_so_far(state) if state.is_world_process_zero else None])[0]
        if state.global_step == 0:
            self._validate(state)

    def _best_so_far(self, state) -> float:
        best = self.folder / "best"
        saving.mend_folder(best)
        stored = runs.read_json(best / "validation.json")
        if stored is not None:
            # Also that of a step which is made again: its weights are there, and an equal score does not replace them
            return stored["accuracy"]
        seen = runs.load_metrics(self.folder)
        if state.global_step and "gt/validation" in seen:
            top = seen["gt/validation"].max()
            self.say(f"{best} is gone, with the weights that scored {top:.3f}; the next validation starts a new one")
        return -1.0

    def on_step_end(self, args, state, control, **_):
        if state.global_step % self.config.eval_steps == 0 or state.global_step == state.max_steps:
            self._validate(state)

    def _validate(self, state) -> None:
        accelerator, config = self.trainer.accelerator, self.config
        share = range(accelerator.process_index, len(self.problems), accelerator.num_processes)
        mine = self.problems.select(share)
        prompts = [evaluate.prompt_of(config, q) for q in mine["question"]]
        if config.engine == "transformers" and not self.trainer.is_fsdp_enabled:
            texts = evaluate.sample(
                accelerator.unwrap_model(self.trainer.model), self.tokenizer, prompts, config.eval_samples, config.eval_temperature,
                config.max_completion_tokens, config.seed, stop_ids=self.stop_ids, autocast_dtype=torch.bfloat16 if config.bf16 else None,
            ) if prompts else []  # fmt: skip
        else:
            texts = policy_texts(self.trainer, prompts, config.eval_samples, config.eval_temperature)
        right = gather_object(evaluate.grade(texts, mine["answer"]))
        accuracy = evaluate.avg_at_k(right).mean
        voted = gather_object([(i, *self._vote(drawn)) for i, drawn in zip(share, texts, strict=True)])
        if accelerator.is_main_process:
            row = {"step": state.global_step, "gt/validation": accuracy} | self._probe(state.global_step, sorted(voted))
            runs.append_metrics(self.folder, row)
        if accuracy > self.best:
            self.best = accuracy
            save_weights(self.trainer, self.folder / "best", {"step": state.global_step, "accuracy": accuracy})

    def _vote(self, texts) -> tuple[str | None, float]:
        found = vote([extract(text) for text in texts], equality=self.config.answer_equality)
        return found.label, found.support

    def _probe(self, step: int, voted: list[tuple[int, str | None, float]]) -> dict[str, float]:
        """The alarm's columns of a validation (`corelib.probe`), without labels; the votes of all of them are kept."""
        place = self.folder / "probe.json"
        stored = (runs.read_json(place) or {}).items()
        # A resumed run may read another `source`, with fewer questions: votes on those before cannot be compared
        votes = {s: vote for s, vote in stored if int(s) < step and len(vote["labels"]) == len(voted)}
        labels = probe.one_spelling([label for _, label, _ in voted], votes, self.config.answer_equality)
        votes[str(step)] = {"labels": labels, "support": [share for *_, share in voted]}
        runs.write_json(place, votes)
        return probe.measures(votes, step)


class Stopped(SystemExit):
    """A stop by signal with nothing to save: before the first step, after the last, or told twice. Exit status 3."""

    def __init__(self, why: str = "stopped by a signal"):
        super().__init__(3)
        self.why = why

    def __str__(self) -> str:
        return self.why


class StopOnSignal(TrainerCallback):
    """SIGTERM and SIGINT, or the end of `max_hours`: finish the step, save a checkpoint, stop.

    A second signal stops at once. While a model is loaded, and in the validation before the first step, the first one
    does: there is nothing to save. The time limit counts from here; it stops the run when another step as long as the
    longest so far (a tenth longer: answers grow) and a checkpoint would not fit, but never before the first step.
    """

    AGAIN = 2.0  # seconds: a launcher passes on the signal that its whole group got, and that is no second one

    def __init__(self, max_hours: float = 0.0, heartbeat: Heartbeat | None = None, clock: Callable = time.time):
        self.limit, self.heartbeat, self.clock = 3600 * max_hours, heartbeat, clock
        self.started, self.told, self.training = clock(), None, False
        self.step_ended, self.saving = None, None
        self.before = {name: signal.signal(name, self._tell) for name in (signal.SIGTERM, signal.SIGINT)}

    def release(self) -> None:
        """Give the signals back to whoever had them."""
        for name, handler in self.before.items():
            signal.signal(name, handler)

    def _tell(self, number, frame):
        now = time.monotonic()
        if not self.training or (self.told is not None and now - self.told > self.AGAIN):
            raise Stopped()
        self.told = self.told or now

    def on_train_begin(self, args, state, control, **_):
        self.training = True

    def on_train_end(self, args, state, control, **_):
        self.training = False

    def on_step_end(self, args, state, control, **_):
        self.step_ended = self.clock()
        late = state.is_world_process_zero and self._out_of_time()
        if self._agreed(args, self.told is not None or late):
            control.should_save = control.should_training_stop = True

    def on_save(self, args, state, control, **_):
        now = self.clock()
        if self.step_ended is not None:
            self.saving = max(self.saving or 0.0, now - self.step_ended)
        if self.heartbeat is not None:
            self.heartbeat.since = now  # the next step has not paid for this checkpoint
        # Told while the checkpoint was written: it is whole, so this is the moment
        if self._agreed(args, self.told is not None):
            control.should_training_stop = True

    def _out_of_time(self) -> bool:
        if not self.limit:
            return False
        now, h = self.clock(), self.heartbeat
        step = h.longest_until(now)
        saving = step if self.saving is None else self.saving  # until one is measured
        if now - self.started + 1.1 * step + saving <= self.limit:
            return False
        h.say(
            f"max_hours={self.limit / 3600:g} is near: another step takes up to {step:.0f} s, a checkpoint {saving:.0f} s"
        )
        return True

    @staticmethod
    def _agreed(args, mine: bool) -> bool:
        # Ranks hear a signal at different moments; all must stop after the same step, or a collective hangs
        return any(gather_object([mine])) if args.world_size > 1 else mine
