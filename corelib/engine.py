"""Who generates rollouts: vLLM on the training GPUs, vLLM servers, or transformers; and the teacher in the same engine.

Everything here goes through TRL 1.16's own generation (`GRPOTrainer._generate_single_turn`, `VLLMGeneration`): an engine
answers with whatever weights were synchronised last, so a teacher's rollouts are a change of weights and back.
"""

from __future__ import annotations

import copy
import statistics
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from functools import partial

from accelerate.utils import broadcast_object_list, gather_object, is_peft_model
from peft.tuners.lora import LoraLayer
from transformers import TrainerCallback
from trl.trainer.utils import use_adapter

from corelib import runs
from corelib.config import RunConfig

BATCH_TOKENS = 40_000  # prompt and completion, of one call of `generate`: Qwen3-4B's cache takes 147 kB a token in bf16
BASELINE_STEPS = 10  # the first steps say what difference between engine and trainer is normal
DRIFT_FACTOR, DRIFT_FLOOR = 5.0, 0.05  # a difference beyond both, twice running, stops the run


def trl_arguments(config: RunConfig, stop_ids: Sequence[int]) -> dict:
    """The fields of TRL's GRPOConfig that choose and size the engine."""
    if config.engine == "transformers":
        return {}
    common = {
        "use_vllm": True,
        "generation_kwargs": {"stop_token_ids": list(stop_ids)},
        # Released code: no correction. The difference is measured at no cost in the loss's own forward pass.
        "vllm_importance_sampling_correction": False,
    }
    if config.engine == "vllm_server":
        return common | {"vllm_mode": "server", "vllm_server_base_url": servers(config)[0]}
    return common | {
        "vllm_mode": "colocate",
        "vllm_gpu_memory_utilization": config.vllm_memory,
        "vllm_max_model_length": config.max_prompt_tokens + config.max_completion_tokens,
        "vllm_enable_sleep_mode": config.vllm_sleep,
        "vllm_tensor_parallel_size": config.vllm_tensor_parallel,
    }


def servers(config: RunConfig) -> list[str]:
    """Addresses of the policy's server and, when there is one, the teacher's own."""
    return [url.strip() for url in config.vllm_server.split(",") if url.strip()]


def server_lines(config: RunConfig) -> list[str]:
    """Shell lines that start the servers of `engine: vllm_server`, each on a GPU that does not train; TRL's settings."""
    import shlex
    from urllib.parse import urlsplit

    from trl.scripts.vllm_serve import ScriptArguments, build_command

    lines, length = [], config.max_prompt_tokens + config.max_completion_tokens
    for url in servers(config):
        at = urlsplit(url if "//" in url else f"//{url}")
        asked = ScriptArguments(
            model=config.base_model, host="0.0.0.0", port=at.port or 8000, max_model_len=length, dtype="bfloat16" if config.bf16 else "float32"
        )  # fmt: skip
        command = build_command(asked)
        # VLLM_SERVER_DEV_MODE: vLLM keeps the endpoints that receive weights behind it
        lines.append(f"VLLM_SERVER_DEV_MODE=1 {shlex.join(['vllm', *command[command.index('serve'):]])}  # on {at.hostname}")  # fmt: skip
    return lines


@contextmanager
def weights_of(trainer, model):
    """Let TRL's generation use another model's weights, and put the policy back whatever happens.

    `_last_loaded_step = -1` makes TRL synchronise the weights, which also resets vLLM's prefix cache, before the next
    rollout: once for the teacher, and once more for the policy afterwards. With LoRA the teacher is an adapter of the
    policy's own model.
    """
    wrapped, trainer.model_wrapped = trainer.model_wrapped, model
    if is_peft_model(model):
        trainer.model_wrapped = wrapped
    if trainer.use_vllm:
        engine = trainer.vllm_generation
        policy, engine.model, trainer._last_loaded_step = engine.model, model, -1
    try:
        with use_adapter(model, TEACHER_ADAPTER) if is_peft_model(model) else nullcontext():
            yield
    finally:
        trainer.model_wrapped = wrapped
        if trainer.use_vllm:
            engine.model, trainer._last_loaded_step = policy, -1


TEACHER_ADAPTER = "ref"  # the name under which TRL looks for the KL reference of a LoRA policy


def leave_base_untouched(generation) -> None:
    """Let vLLM take a LoRA policy's weights without a merge in place.

    Replaces VLLMGeneration._iter_named_params of this object. TRL 1.16 merges the adapter into the frozen base and takes
    it out again; in bf16 the rounding that stays behind grows with every rollout, so that the adapter that is saved is
    no longer the policy that was trained (0.28 of the adapter's own change after 160 steps of two merges).
    """
    generation._iter_named_params = partial(adapted_parameters, generation)


def adapted_parameters(generation):
    """(name in vLLM, base weight + change by the active adapter) of each parameter, added in fp32 beside the base."""
    model = generation.model
    layers = {f"{name}.base_layer.weight": m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, parameter in model.named_parameters():
        if model.prefix in name:
            continue
        weight = parameter.data
        if name in layers:
            change = layers[name].get_delta_weight(model.active_adapter)
            weight = (weight.float() + change.float()).to(weight.dtype)
        yield name.removeprefix("base_model.model.").replace(".base_layer", ""), weight


def policy_texts(trainer, prompts: Sequence, k: int, temperature: float) -> list[list[str]]:
    """`k` completions of each prompt by the policy, from the engine that makes its rollouts; temperature 0 is greedy.

    Every rank must call it, each with its own share of the prompts: shares are filled up to the same length, because
    engines gather over ranks. The weights are synchronised only when they changed, and the next rollout keeps them.
    Leaves torch's random state as it was (vLLM on the training GPUs draws from it too).
    """
    import torch

    rows = max(gather_object([len(prompts)]))
    if not rows:
        return []
    filled = [*prompts, *[prompts[0] if len(prompts) else "1"] * (rows - len(prompts))]
    ids = [i for i in trainer._tokenize_prompts(filled)[0] for _ in range(k)]
    device = trainer.accelerator.device
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), _decoding(trainer, temperature):
        completion_ids, _ = trainer._generate_single_turn(ids, None, {}, k)
    texts = trainer.processing_class.batch_decode(completion_ids, skip_special_tokens=True)
    return [texts[i * k : (i + 1) * k] for i in range(len(prompts))]


@contextmanager
def _decoding(trainer, temperature: float):
    """The engine's sampling settings for validation, and the training's again afterwards."""
    if trainer.use_vllm:
        engine = trainer.vllm_generation
        before = engine.temperature, engine.top_p, engine.top_k
        engine.temperature, engine.top_p, engine.top_k = temperature, 1.0, 0
        try:
            yield
        finally:
            engine.temperature, engine.top_p, engine.top_k = before
        return
    before = trainer.generation_config, trainer.generation_kwargs
    sampling = {"do_sample": bool(temperature), "temperature": temperature or 1.0, "top_p": 1.0}
    trainer.generation_config = copy.deepcopy(trainer.generation_config)
    trainer.generation_config.update(**sampling)
    trainer.generation_kwargs = trainer.generation_kwargs | sampling
    try:
        yield
    finally:
        trainer.generation_config, trainer.generation_kwargs = before


class TeacherServer:
    """The teacher on a vLLM server of its own: its rollouts of a step run beside the policy's.

    Both depend on the same policy weights only, so the labels are those of one rollout after the other. Every rank must
    call every method: the weights are gathered and the prompts collected over ranks; the main process alone asks.
    """

    def __init__(self, trainer, model, url: str):
        self.trainer, self.pool, self.answer = trainer, ThreadPoolExecutor(1), None
        self.engine = copy.copy(trainer.vllm_generation)
        self.engine.model, self.engine.server_base_url, self.engine._weight_metadata = model, url, None
        self.engine.group_port += 1  # a weight transfer group of its own
        if is_peft_model(model):
            leave_base_untouched(self.engine)
        self.engine._init_vllm()

    def start(self, prompt_ids: Sequence[Sequence[int]], n: int) -> None:
        """Push the teacher's weights and send the prompts (each `n` times in a row on the ranks together)."""
        model, engine = self.engine.model, self.engine
        with use_adapter(model, TEACHER_ADAPTER) if is_peft_model(model) else nullcontext():
            engine.sync_weights()
        prompts = gather_object(list(prompt_ids))
        if self.trainer.accelerator.is_main_process:
            sampling = {
                "n": n,
                "repetition_penalty": engine.repetition_penalty,
                "temperature": engine.temperature,
                "top_p": engine.top_p,
                "top_k": engine.top_k,
                "min_p": engine.min_p or 0.0,
                "max_tokens": engine.max_completion_length,
                "generation_kwargs": engine.generation_kwargs,
            }
            self.answer = self.pool.submit(engine.vllm_client.generate, prompts=prompts[::n], **sampling)

    def finish(self, rows: int) -> list[list[int]]:
        """This rank's `rows` completions, as token ids. Raises what the server's answer raised."""
        accelerator = self.trainer.accelerator
        payload = [self.answer.result()["completion_ids"] if accelerator.is_main_process else None]
        everyone = broadcast_object_list(payload)[0]
        return everyone[accelerator.process_index * rows : (accelerator.process_index + 1) * rows]


class Difference:
    """Mean and largest |log-probability of the engine - of the trainer| over a step's sampled tokens."""

    def __init__(self):
        self.total, self.tokens, self.largest = 0.0, 0, 0.0

    def add(self, trainer_logps, engine_logps, mask) -> None:
        """Shapes [rows, tokens]; tokens that the engine could not score are NaN and left out."""
        gap = (trainer_logps.float() - engine_logps.float()).abs()
        gap = gap[mask.bool() & ~gap.isnan()]
        if gap.numel():
            self.total += gap.sum().item()
            self.tokens += gap.numel()
            self.largest = max(self.largest, gap.max().item())

    def flush(self, accelerator) -> dict[str, float]:
        """The metrics of the step over all ranks, and start afresh."""
        ranks = gather_object([(self.total, self.tokens, self.largest)])
        self.__init__()
        total, tokens = sum(r[0] for r in ranks), sum(r[1] for r in ranks)
        mean = total / tokens if tokens else 0.0
        return {"sampling/logp_difference": mean, "sampling/logp_difference_max": max(r[2] for r in ranks)}


def drifted(history: Sequence[float]) -> tuple[bool, bool]:
    """Whether the newest step's difference is beyond the limit, and whether the step before was so too.

    `history`: mean difference of every step from the first. The limit is 5 x the median of steps 1 to 10, at least 0.05.

    >>> drifted([0.01] * 10 + [0.04, 0.2, 0.3]), drifted([0.01] * 10 + [0.3, 0.04])
    ((True, True), (False, True))
    """
    if len(history) <= BASELINE_STEPS:
        return False, False
    limit = max(DRIFT_FACTOR * statistics.median(history[:BASELINE_STEPS]), DRIFT_FLOOR)
    return history[-1] > limit, len(history) > BASELINE_STEPS + 1 and history[-2] > limit


class EngineGuard(TrainerCallback):
    """Warns, then stops a run whose engine no longer answers with the policy's weights (`drifted` twice running)."""

    def __init__(self, folder, say=print):
        self.folder, self.say, self.history = folder, say, []

    def on_train_begin(self, args, state, control, **_):
        earlier = runs.load_metrics(self.folder)
        if "sampling/logp_difference" in earlier:
            kept = earlier[earlier["step"] <= state.global_step]
            self.history = kept["sampling/logp_difference"].dropna().tolist()

    def on_log(self, args, state, control, logs=None, **_):
        if "sampling/logp_difference" not in (logs or {}):
            return
        self.history.append(logs["sampling/logp_difference"])
        now, before = drifted(self.history)
        told = f"engine and trainer differ by {self.history[-1]:.3f} nats a token at step {state.global_step} (normal: {statistics.median(self.history[:BASELINE_STEPS]):.4f})"
        if now and before:
            raise RuntimeError(
                f"{told}, twice running: vLLM does not answer with the policy's weights, or its numerics broke; the same line resumes from the last checkpoint with a new engine. If it happens again: engine: transformers (another run, from the base model)"
            )
        if now and state.is_world_process_zero:
            self.say(f"warning: {told}; the run stops if the next step is no better")
