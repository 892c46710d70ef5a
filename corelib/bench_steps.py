"""Whole steps of whole trainers for `python -m corelib bench gpu`: ours and stock TRL, on the same random model and prompts."""

from __future__ import annotations

import tempfile
import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from unittest import mock

import torch

from corelib import bench_kit as kit
from corelib.bench_kit import Size, row

STEP_GOAL = {"gt": 1.05, "co_rewarding_ii": 2.0, "co_rewarding_iii": 2.0}  # as in bench.py
TRAINING_PHASES = ("score", "forward", "head", "backward", "update")  # of corelib.memory.PHASES: those without rollouts


def steps(size: Size, device, budget: float) -> dict:
    """A whole step of GT, II, III and stock GRPOTrainer: equal policy rollouts, transformers engine, no vLLM anywhere."""
    names = ("stock", *STEP_GOAL)
    count = sum(p.numel() for p in kit.random_model(size, "meta").parameters())
    together = len(names) * 20 * count < kit.free_bytes(device) / 2  # 20 bytes: weights, gradients, Adam, teacher
    seconds, peaks = {}, {}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        random_weights(stack, size, device)
        groups = [list(names)] if together else [[name] for name in names]
        for group in groups:
            with ExitStack() as closing:  # a trainer left waiting would keep its memory
                if torch.cuda.is_available():
                    torch.cuda.reset_peak_memory_stats()
                steppers = {}
                for name in group:
                    steppers[name] = Stepper(make_trainer(name, size, device, folder / name))
                    closing.callback(steppers[name].close)
                seconds |= kit.in_turn(steppers, budget / len(groups), device, rounds=10)
                if torch.cuda.is_available():
                    peaks[", ".join(group)] = torch.cuda.max_memory_allocated()
            del steppers, closing
            kit.free()
    rows = [
        row("GT: whole step over stock GRPOTrainer", over := kit.ratio(seconds["gt"], seconds["stock"]), "x", 1.05, over_stock=over),
        *(
            row(
                f"{name}: whole step over GT",
                kit.ratio(seconds[method], seconds["gt"]),
                "x",
                STEP_GOAL[method],
                floor="1 and the teacher's rollouts",
                over_stock=kit.ratio(seconds[method], seconds["stock"]),
            )
            for method, name in (("co_rewarding_ii", "II"), ("co_rewarding_iii", "III"))
        ),
    ]  # fmt: skip
    return {
        "rows": rows,
        "engine": "transformers",
        "rollouts": size.step_prompts * size.rollouts,
        "prompt_tokens": size.step_prompt,
        "new_tokens": size.new_tokens,
        "beta": "0.001: stock and GT hold a frozen reference model, II and III their teacher",
        "advanced": "in turn" if together else "one trainer after the other: they do not fit the memory together",
        "seconds": kit.medians(seconds),
        "peak_bytes": peaks,
    }


def memory(size: Size, device, budget: float) -> dict:
    """Peak of two updates of II at full length against `corelib.memory.plan`: what the allocator holds, rollouts left out.

    The rollouts are random tokens, so that 3,072 of them need no generation; all but one are a token short, so that
    the batch is padded as real ones are. The plan's parts are compared without its allowances (context, fragmentation),
    which an allocator does not count. `budget` is not used: two steps are the least that makes Adam's moments.
    """
    from corelib.memory import plan

    cuda = torch.device(device).type == "cuda"
    long = replace(
        size, step_prompts=2, step_prompt=size.prompt, rollouts=max(2, size.rows), new_tokens=size.completion
    )
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="bench-")))
        random_weights(stack, size, device)
        trainer = make_trainer("co_rewarding_ii", long, device, folder / "run")
        kit.random_model(size, "meta").config.save_pretrained(folder / "shape")
        config = replace(trainer.config, model=str(folder / "shape"))
        gib = (torch.cuda.get_device_properties(0).total_memory if cuda else kit.free_bytes(device)) / 2**30
        planned = plan(config, 1, gib, cpu=not cuda)
        trainer.args.max_steps = 2
        trainer._generate_single_turn = lambda prompt_ids, *_, **__: (_nearly_full(long, len(prompt_ids)), None)
        held = sum(p.nbytes for model in (trainer.model, trainer.teacher.model) for p in model.parameters())
        measured = (held + kit.peak_bytes(trainer.train, device)) / 2**30
    phases = {
        phase: sum(part[phase] for part in planned.rows if "allowance" not in part["part"]) for phase in TRAINING_PHASES
    }
    worst = max(phases, key=phases.get)
    ratio = measured / phases[worst]
    goal = 0.10 if cuda else None  # a CPU's head has no Triton: its temporaries are not those that are planned for
    return {
        "rows": [
            row("peak memory of the update", measured, "GiB", floor=f"{phases[worst]:.3f} GiB planned, {worst}"),
            row("peak memory: distance from the plan", abs(ratio - 1), "of 1", goal, floor="0"),
        ],
        "measured_over_planned": ratio,
        "planned_GiB": phases,
        "planned_parts": planned.rows,
        "rollouts": long.step_prompts * long.rollouts,
        "micro_batch": config.micro_batch,
        "tokens_a_row": [size.prompt, size.completion],
    }


def _nearly_full(size: Size, rows: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(2, size.vocab, (rows, size.new_tokens), generator=generator).tolist()
    return [ids[0], *(row[:-1] for row in ids[1:])]


class Stepper:
    """Advances a trainer by one optimizer step a call: `train()` runs in a thread that waits between steps.

    `close` ends the training without another step. What the training raises is raised by the call.
    """

    def __init__(self, trainer):
        from transformers import TrainerCallback

        self.go, self.paused = threading.Semaphore(0), threading.Semaphore(0)
        self.closing, self.error = False, None
        outer = self

        class Pause(TrainerCallback):
            def on_step_begin(self, *_, **__):
                outer.paused.release()
                outer.go.acquire()
                if outer.closing:
                    raise _Closed

        def work():
            try:
                trainer.train()
            except _Closed:
                pass
            except BaseException as error:
                self.error = error
            finally:
                self.paused.release()

        trainer.add_callback(Pause())
        self.thread = threading.Thread(target=work, daemon=True)
        self.thread.start()
        self._wait()

    def __call__(self) -> None:
        self.go.release()
        self._wait()

    def _wait(self) -> None:
        self.paused.acquire()
        if self.error is not None:
            raise self.error

    def close(self) -> None:
        self.closing = True
        self.go.release()
        self.thread.join()


class _Closed(Exception):
    """Raised in the trainer's thread to end it."""


def random_weights(stack: ExitStack, size: Size, device) -> None:
    """Inside the stack, TRL and our trainer get random weights where they would load a checkpoint."""
    for module in ("trl.trainer.grpo_trainer", "corelib.trainer"):
        stack.enter_context(
            mock.patch(f"{module}.create_model_from_path", lambda _, **__: kit.random_model(size, device))
        )


def make_trainer(method: str, size: Size, device, folder: Path):
    """Stock GRPOTrainer with a newcomer's reward, or ours with its heartbeat, on the same random prompts."""
    from datasets import Dataset
    from transformers import PrinterCallback
    from trl import GRPOTrainer

    from corelib.callbacks import Heartbeat
    from corelib.config import load_config
    from corelib.train import grpo_config
    from corelib.trainer import CoRewardingTrainer

    cuda = torch.device(device).type == "cuda"
    config = load_config(
        "qwen3-4b", method="gt" if method == "stock" else method, engine="transformers", batch_unit="rollouts", gpus=1,
        prompts_per_step=size.step_prompts, rollouts=size.rollouts, steps=10_000, save_steps=10_000, bf16=cuda,
        max_prompt_tokens=size.step_prompt, max_completion_tokens=size.new_tokens, micro_batch=size.rows,
        learning_rate=1e-9, warmup=0, lr_schedule="constant_with_warmup",
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    views = ("original", "rephrased") if config.paired else ("original",)
    texts = torch.randint(2, size.vocab, (64, len(views), size.step_prompt), generator=generator).tolist()
    rows = [
        {"prompt": " ".join(map(kit.word, text)), "pair_id": str(i), "view": view, "answer": "7"}
        for i, pair in enumerate(texts)
        for view, text in zip(views, pair, strict=True)
    ]
    folder.mkdir(parents=True, exist_ok=True)
    args = grpo_config(config, folder, config.steps)
    args.generation_kwargs = dict(args.generation_kwargs or {}) | {"min_new_tokens": size.new_tokens}
    if method == "stock":
        args.log_completions = False
        trainer = GRPOTrainer(
            "random", _stock_reward, args, Dataset.from_list(rows), processing_class=kit.tokenizer(size)
        )
    else:
        heartbeat = Heartbeat(folder, config.steps, config.steps, say=lambda _: None)
        trainer = CoRewardingTrainer(
            config, "random", args, Dataset.from_list(rows), kit.tokenizer(size), callbacks=[heartbeat]
        )
        heartbeat.trainer = trainer
    trainer.remove_callback(PrinterCallback)
    return trainer


def _stock_reward(completions, answer, **_):
    last = (c.split("\\boxed{")[-1].split("}")[0].strip() for c in completions)
    return [float(found == truth) for found, truth in zip(last, answer, strict=True)]
