"""Peak memory of a real training: two steps on the longest prompts, with every answer of full length.

    python -m corelib doctor --profile lab --measure

starts `corelib.train` as a run would, but through this module, which chooses the rows, forbids an early end of an answer,
leaves out validation and saving, and watches the memory of each process.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from corelib.config import RunConfig
from corelib.memory import GIB

STEPS = 2  # Adam's moments exist from the second on
EVERY = 0.02  # seconds between two looks at the GPU


def measure(config: RunConfig, echo: Callable = print) -> list[dict]:
    """The peak of each training process: dicts with rank, GiB and what was measured.

    On GPUs: used memory of the device, so nothing else may run there. Without one: peak resident memory.
    Raises RuntimeError with the end of the log when the training fails.
    """
    from corelib import launch, runs

    short = replace(config, steps=STEPS)
    runs.RUNS.mkdir(parents=True, exist_ok=True)  # its disk is the one a run would use; /tmp may be memory
    with tempfile.TemporaryDirectory(dir=runs.RUNS, prefix=".measure-") as folder:
        for name, text in launch.prepare(short).items():
            runs.write_text(Path(folder) / name, text)
        command = [__name__ if p == "corelib.train" else p for p in launch.train_command(short, folder)]
        launch.run_logged(command, Path(folder) / "train.log", echo=echo, grace=short.stop_seconds)
        return [json.loads(f.read_text()) for f in sorted(Path(folder).glob("peak-*.json"))]


def longest(rows, tokenizer, count: int, views: int):
    """The `count` rows with the longest prompts; with `views` 2 whole pairs of adjacent rows, by their longer one."""
    lengths = [len(_ids(tokenizer, prompt)) for prompt in rows["prompt"]]
    units = sorted(range(len(rows) // views), key=lambda i: -max(lengths[i * views : (i + 1) * views]))
    kept = sorted(units[: count // views])
    return rows.select([i * views + view for i in kept for view in range(views)])


def _ids(tokenizer, prompt) -> list[int]:
    if isinstance(prompt, str):
        return tokenizer(prompt)["input_ids"]
    return tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)


def main(argv) -> int:
    """Train as corelib.train does, on other rows, and write this process's peak beside the run."""
    from corelib import callbacks, saving, train, trainer

    folder = Path(argv[argv.index("--out") + 1])
    rows_of, settings_of = train.training_rows, train.grpo_config

    def training_rows(config, tokenizer=None, folder=None):
        rows, digest = rows_of(config, tokenizer, folder)
        views = 2 if config.paired else 1
        return longest(rows, tokenizer, min(STEPS * config.prompts, len(rows)), views), digest

    def grpo_config(*args, **kwargs):
        settings = settings_of(*args, **kwargs)
        shortest = "min_tokens" if settings.use_vllm else "min_new_tokens"
        settings.save_strategy = "no"
        settings.generation_kwargs = (settings.generation_kwargs or {}) | {shortest: settings.max_completion_length}
        return settings

    train.training_rows, train.grpo_config = training_rows, grpo_config
    callbacks.Validate._validate = lambda *_: None  # the same engine with shorter answers
    saving.require_space = trainer.CoRewardingTrainer.save_model = lambda *_, **__: None
    watch = _watch()
    code = train.main(argv)
    rank = int(os.environ.get("RANK", 0))
    what, count = watch()
    (folder / f"peak-{rank}.json").write_text(json.dumps({"rank": rank, "GiB": count / GIB, "what": what}))
    return code


def _watch() -> Callable[[], tuple[str, int]]:
    """Start watching this process's memory; the returned function gives what was watched and the peak in bytes."""
    import torch

    if not torch.cuda.is_available():
        return lambda: ("peak resident memory", 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    device, peak = int(os.environ.get("LOCAL_RANK", 0)), [0]

    def look():
        while True:
            free, total = torch.cuda.mem_get_info(device)
            peak[0] = max(peak[0], total - free)
            time.sleep(EVERY)

    threading.Thread(target=look, daemon=True).start()
    return lambda: ("peak used GPU memory", peak[0])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
