"""One rank of a torchrun: one generation batch with made-up rollouts; rank 0 writes all rewards and labels.

The rollouts are a function of the row's place in the whole batch, so that one process and several see the same batch.
"""

import json
import random
import sys
import tempfile
from pathlib import Path

sys.path.pop(0)  # this folder, whose vllm/ TRL would take for the package vllm

from accelerate.utils import gather_object  # noqa: E402

from corelib import train  # noqa: E402
from corelib.config import load_config  # noqa: E402
from corelib.trainer import CoRewardingTrainer  # noqa: E402


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


method, prompts, rollouts, out = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), Path(sys.argv[4])
processes = int(__import__("os").environ.get("WORLD_SIZE", 1))
config = load_config(
    "lab",
    method=method,
    prompts_per_step=prompts,
    rollouts=rollouts,
    steps=1,
    micro_batch=prompts * rollouts // processes,
    learning_rate=1e-3,
)
tokenizer = train.load_tokenizer(config)
rows, _ = train.training_rows(config)
args = train.grpo_config(config, Path(tempfile.mkdtemp()), 1, processes)
args.save_strategy = "no"
trainer = FakeRollouts(config, config.base_model, args, rows, tokenizer)
trainer.log_completions = False
seen = {}
original = trainer.judge


def judge(**kwargs):
    labels = []
    rewards = original(
        **(kwargs | {"log_extra": lambda name, values: labels.extend(values) if name == "label" else None})
    )
    everyone = gather_object(
        [
            {"reward": r, "label": label, "pair": p, "view": v}
            for r, label, p, v in zip(rewards, labels, kwargs["pair_id"], kwargs["view"], strict=True)
        ]
    )
    seen.update(
        {
            "rewards": [e["reward"] for e in everyone],
            "labels": [e["label"] for e in everyone],
            "pairs": [[e["pair"], e["view"]] for e in everyone],
        }
    )
    return rewards


trainer.reward_funcs[0] = judge
trainer.train()
if trainer.accelerator.is_main_process:
    out.write_text(json.dumps(seen))
