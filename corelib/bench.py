"""`python -m corelib bench trainer`: seconds a step of each method over stock TRL, in turn, in one process run."""

from __future__ import annotations

import gc
import statistics
import tempfile
import time
from pathlib import Path

from corelib import runs
from corelib.config import METHOD_NAMES, PAIRED, load_config

GOAL = {"gt": 1.05, "majority_voting": 1.08, "co_rewarding_i": 1.08, "self_certainty": 1.25, "entropy": 1.25}
GOAL |= {"co_rewarding_ii": 2.0, "co_rewarding_iii": 2.0, "frozen_teacher": 2.0}


def trainer(steps: int = 15, methods=METHOD_NAMES, out: str | Path = "", learning_rate: float = 1e-9) -> dict:
    """Median seconds a step of each method over stock `trl.GRPOTrainer`; prints and returns the ratios.

    Every trainer gets the same model, prompts, batch and beta; stock TRL has a trivial ground-truth reward (string
    equality of what stands in the box); for I and III it trains on the same two views. The learning rate is tiny, so that no method changes the length of its
    rollouts. Trainers advance one step in turn, so that a noisy machine hits all alike; a ratio is the median over
    rounds of (method's seconds) / (stock's seconds in the same round).
    """
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    folder = Path(tempfile.mkdtemp(prefix="bench-"))
    # I and III also train on the longer rephrased prompts: their yardstick is stock TRL on the same prompts
    steppers = {kind: _stock(kind, folder / kind, steps, learning_rate) for kind in ("stock", "stock, both views")}
    for method in methods:
        steppers[method] = _ours(method, folder / method, steps, learning_rate)
    seconds = {name: [] for name in steppers}
    order = list(steppers)
    for round_ in range(steps + 2):
        order = order[1:] + order[:1]  # nobody always goes first
        for name, step in ((name, steppers[name]) for name in order):
            gc.collect()
            started = time.perf_counter()
            step()
            if round_ >= 2:  # the first steps compile and allocate
                seconds[name].append(time.perf_counter() - started)
    yardstick = {m: "stock, both views" if m in PAIRED else "stock" for m in methods}
    ratios = {m: [a / b for a, b in zip(seconds[m], seconds[yardstick[m]], strict=True)] for m in methods}
    result = {
        "steps": steps,
        "stock_seconds": statistics.median(seconds["stock"]),
        "stock_both_views_seconds": statistics.median(seconds["stock, both views"]),
        "ratio": {m: statistics.median(r) for m, r in ratios.items()},
        "quartiles": {m: statistics.quantiles(r, n=4)[::2] for m, r in ratios.items()},
        "seconds": {m: statistics.median(s) for m, s in seconds.items()},
        "versions": runs.versions(),
    }
    _show(result)
    if out:
        runs.write_json(out, result)
    return result


def _show(result: dict) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(
        "method", "s a step", "over stock TRL", "middle half", "goal", title=f"{result['steps']} steps each, in turn"
    )
    table.add_row("stock GRPOTrainer", f"{result['stock_seconds']:.3f}", "1.00", "", "")
    table.add_row("stock, both views", f"{result['stock_both_views_seconds']:.3f}", "1.00", "", "")
    for method, ratio in result["ratio"].items():
        low, high = result["quartiles"][method]
        table.add_row(
            method,
            f"{result['seconds'][method]:.3f}",
            f"{ratio:.2f}",
            f"{low:.2f} to {high:.2f}",
            f"{GOAL[method]:.2f}" if method in GOAL else "-",
        )
    Console(width=100).print(table)


def _config(method: str, steps: int, learning_rate: float):
    return load_config(
        "lab",
        method=method,
        steps=steps + 8,
        learning_rate=learning_rate,
        warmup=0,
        lr_schedule="constant_with_warmup",
        save_steps=10_000,
    )


def _stock(kind: str, folder: Path, steps: int, learning_rate: float):
    """Stock TRL on the lab's original views, or on both, with the reward a newcomer would write."""
    from trl import GRPOTrainer

    from corelib import train

    config = _config("gt", steps, learning_rate)
    tokenizer = train.load_tokenizer(config)
    rows, _ = train.training_rows(
        _config("co_rewarding_i", steps, learning_rate) if "both" in kind else config, tokenizer
    )

    def reward(completions, answer, **_):
        return [
            float(c.split("\\boxed{")[-1].split("}")[0].strip() == a) for c, a in zip(completions, answer, strict=True)
        ]

    args = train.grpo_config(config, folder, config.steps)
    args.log_completions = False
    return _stepper(
        GRPOTrainer(
            model=config.base_model, reward_funcs=reward, args=args, train_dataset=rows, processing_class=tokenizer
        )
    )


def _ours(method: str, folder: Path, steps: int, learning_rate: float):
    """Our trainer as `train` builds it, heartbeat included; no validation and no checkpoint inside the timed steps."""
    from corelib import train
    from corelib.callbacks import Heartbeat
    from corelib.trainer import CoRewardingTrainer

    config = _config(method, steps, learning_rate)
    tokenizer = train.load_tokenizer(config)
    rows, _ = train.training_rows(config, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    heartbeat = Heartbeat(folder, config.steps, config.completions_every, say=lambda _: None)
    ours = CoRewardingTrainer(
        config, config.base_model, train.grpo_config(config, folder, config.steps), rows, tokenizer, [heartbeat]
    )
    heartbeat.trainer = ours
    return _stepper(ours)


def _stepper(trainer):
    """A callable that advances a trainer by one optimizer step: `train()` runs in a thread and is paused between steps."""
    import threading

    from transformers import PrinterCallback, TrainerCallback

    go, paused = threading.Semaphore(0), threading.Semaphore(0)

    class Pause(TrainerCallback):
        def on_step_begin(self, *_, **__):
            paused.release()
            go.acquire()

    trainer.add_callback(Pause())
    trainer.remove_callback(PrinterCallback)

    threading.Thread(target=trainer.train, daemon=True).start()
    paused.acquire()

    def step():
        go.release()
        paused.acquire()

    return step
