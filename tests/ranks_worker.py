"""One rank of several: a few steps with made-up rollouts; rank 0 writes all rewards and labels, and the weights.

    ranks_worker.py FOLDER METHOD:PROMPTS:ROLLOUTS ...

The rollouts are a function of the row's place in the whole batch, so that one process and several see the same batch.
"""

import json
import os
import random
import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # this folder, whose vllm/ TRL would take for the package vllm

from accelerate.utils import gather_object  # noqa: E402

from corelib import train  # noqa: E402
from corelib.config import load_config  # noqa: E402
from corelib.trainer import CoRewardingTrainer  # noqa: E402

STEPS = 3


class FakeRollouts(CoRewardingTrainer):
    """Rollouts that box a small number drawn from the global row index; the teacher's differ from the policy's."""

    calls = 0

    def _generate_single_turn(self, prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        self.calls += 1
        first = self.accelerator.process_index * len(prompt_ids)
        tokens = self.processing_class.convert_tokens_to_ids
        texts = [
            f"\\boxed{{ {random.Random(self.calls * 1000 + first + i).randint(1, 3)} }} <eos>"
            for i in range(len(prompt_ids))
        ]
        return [tokens(t.split()) for t in texts], None


def run(folder: Path, method: str, prompts: int, rollouts: int) -> None:
    processes = int(os.environ.get("WORLD_SIZE", 1))
    config = load_config(
        "lab",
        method=method,
        prompts_per_step=prompts,
        rollouts=rollouts,
        steps=STEPS,
        micro_batch=prompts * rollouts // processes,
        learning_rate=1e-3,
        warmup=0,
        teacher_start=0.5,
    )
    tokenizer = train.load_tokenizer(config)
    rows, _ = train.training_rows(config)
    args = train.grpo_config(config, Path(tempfile.mkdtemp()), STEPS, processes)
    args.save_strategy = "no"
    trainer = FakeRollouts(config, config.base_model, args, rows, tokenizer)
    trainer.log_completions = False
    seen = {"rewards": [], "labels": [], "pairs": []}
    original = trainer.judge

    def judge(**kwargs):
        labels = []
        rewards = original(
            **(kwargs | {"log_extra": lambda name, values: labels.extend(values) if name == "label" else None})
        )
        everyone = gather_object(list(zip(rewards, labels, kwargs["pair_id"], kwargs["view"], strict=True)))
        seen["rewards"].append([e[0] for e in everyone])
        seen["labels"].append([e[1] for e in everyone])
        seen["pairs"].append([[e[2], e[3]] for e in everyone])
        return rewards

    trainer.reward_funcs[0] = judge
    trainer.train()
    if trainer.teacher is not None:
        trainer.teacher.save(folder, write=trainer.accelerator.is_main_process)
    if trainer.accelerator.is_main_process:
        trainer.accelerator.unwrap_model(trainer.model).save_pretrained(folder)
        (folder / "seen.json").write_text(json.dumps(seen))


for case in sys.argv[2:]:
    method, prompts, rollouts = case.split(":")
    out = Path(sys.argv[1]) / method
    out.mkdir(parents=True, exist_ok=True)
    run(out, method, int(prompts), int(rollouts))
