"""What a run needs of each GPU, of the host and of the disk, before anything is downloaded or started.

`plan` adds up parts that come and go over the phases of a step; the largest phase is the peak:

    rollouts  the engine answers              head      backward of the LM head, all activations still stored
    score     log-probabilities, no gradient  backward  layers, from the last to the first
    forward   loss, activations are stored    update    Adam

Weights, states and activations follow from the code that makes them (corelib.sizes for the latter); what cannot be
derived is a named allowance. A peak on a GPU has not been measured. Versions: torch 2.13, trl 1.16, accelerate 1.15.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import combinations, product

from corelib.config import CONFIDENCE, TEACHER, RunConfig
from corelib.sizes import (
    Architecture,
    backward_bytes,
    element,
    forward_bytes,
    kv_bytes,
    layer_bytes,
    of_model,
    stored_bytes,
)

GIB = 2**30
PHASES = ("rollouts", "score", "forward", "head", "backward", "update")
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768  # tile of the fused LM head: trl.kernels.chunked_logprob, trl.trainer.utils
GENERATE_TOKENS = 40_000  # corelib.engine.BATCH_TOKENS: of one call of `generate`
SHARES = (
    0.9,
    0.8,
    0.7,
    0.6,
    0.5,
    0.4,
    0.35,
    0.3,
    0.25,
    0.2,
    0.15,
    0.1,
)  # of vllm_memory that `cure` tries, largest cache first
CHECKPOINTS, WEIGHTS = (
    3,
    4,
)  # corelib.saving.require_space: two and the one being written; best, kept, next of them, final

# Allowances, GiB: derived from nothing, and not measured
CONTEXT = 1.0  # CUDA context, kernels, cuBLAS workspaces
NCCL = 0.5  # communication buffers, from two GPUs on
VLLM_WORK = 1.0  # inside vLLM's share: its activations of 4,096 tokens
SAMPLER = 4  # fp32 tensors as large as the logits of the sequences in flight: logits, scaled, probabilities, a draw
VLLM_GRAPHS = 1.0  # beside its share, and kept while it sleeps: CUDA graphs
FRAGMENTATION = 0.05  # of all that PyTorch's allocator holds
PROCESS = 5.0  # host memory of a training process on a GPU: Python, CUDA and vLLM libraries, data
LIBRARIES = 0.5  # of a training process on a CPU; its imports take 0.46 (measured: ru_maxrss, torch 2.13.0+cpu)


@dataclass(frozen=True)
class Plan:
    """Memory of a run. `rows`: a dict for each part with its GiB per GPU in each phase; `host`, `disk`: parts in GiB.

    `problem` is "" when it fits. Of the `rollouts` that a GPU draws a step, `sequences` of full length have room in its
    engine's KV cache at once (None: a server's).
    """

    gpus: int
    gib: float
    rows: list[dict]
    host: list[dict]
    disk: list[dict]
    sequences: int | None
    rollouts: int
    problem: str

    @property
    def phases(self) -> dict[str, float]:
        """GiB per GPU in each phase."""
        return {phase: sum(row[phase] for row in self.rows) for phase in PHASES}

    @property
    def peak(self) -> float:
        """GiB per GPU in the largest phase."""
        return max(self.phases.values())

    @property
    def room(self) -> float:
        """GiB per GPU left in the largest phase; negative when it does not fit."""
        return self.gib - self.peak

    @property
    def fits(self) -> bool:
        return not self.problem

    def frame(self):
        """The rows as a DataFrame: a line for each part, a column for each phase, GiB per GPU."""
        import pandas as pd

        return pd.DataFrame(self.rows).set_index("part")


def plan(config: RunConfig, gpus: int, gib: float, cpu: bool = False) -> Plan:
    """The memory of a run on `gpus` GPUs of `gib` GiB each; with `cpu`, of so many processes in `gib` of host memory each.

    Raises ValueError for a model of unknown size, and for rollouts or tensor parallelism that do not split over `gpus`.
    """
    a, rollouts = of_model(config.model), _rollouts(config, gpus)
    fsdp = gpus > 1 and config.sharding == "fsdp2" and not cpu
    mode = dtype_mode(config, fsdp)
    cache = _vllm_cache(config, a, gib, rollouts) if config.engine == "vllm" else 0.0
    rows = [*_states(config, a, gpus, fsdp, mode), *_engine(config, a, mode, rollouts, cache)]
    rows += _update(config, a, mode, min(config.micro_batch, rollouts), gpus if fsdp else 1, cpu)
    if cpu:
        rows.append(_row("Python and libraries (allowance)", LIBRARIES * GIB))
    else:
        torch = {p: FRAGMENTATION * GIB * sum(r[p] for r in rows if "vLLM" not in r["part"]) for p in PHASES}
        rows.append(_row(f"fragmentation, {FRAGMENTATION:.0%} (allowance)", 0, **torch))
        rows.append(_row("CUDA context, NCCL (allowance)", (CONTEXT + (NCCL if gpus > 1 else 0)) * GIB))
    rows = [row for row in rows if any(row[phase] for phase in PHASES)]
    sequences = _sequences(config, a, rollouts, cache)
    sums = {phase: sum(row[phase] for row in rows) for phase in PHASES}
    phase = max(sums, key=sums.get)
    problem = f"{sums[phase] - gib:.1f} GiB too much in phase {phase}" if sums[phase] > gib else ""
    if sequences == 0:
        problem = f"vLLM's share of {config.vllm_memory * gib:.1f} GiB has no room for one sequence beside its weights"
    host = [] if cpu else _host(config, a, gpus, fsdp)
    return Plan(gpus, gib, rows, host, disk(config), sequences, rollouts, problem)


def dtype_mode(config: RunConfig, fsdp: bool) -> str:
    """How weights and activations are typed: one of corelib.sizes.MODES."""
    if config.lora_rank:
        return "lora" if config.bf16 else "lora32"
    if not config.bf16:
        return "fp32"
    return "bf16" if fsdp else "autocast"


def _row(part: str, count: float, *phases: str, **own: float) -> dict:
    """A part that takes `count` bytes in `phases` (none named, nor any of its own: in all) and `own` bytes in others."""
    held = dict.fromkeys(phases or (() if own else PHASES), count) | own
    return {"part": part} | {phase: held.get(phase, 0) / GIB for phase in PHASES}


def _states(config: RunConfig, a: Architecture, gpus: int, fsdp: bool, mode: str) -> Iterator[dict]:
    """Weights, gradients, Adam, teacher and reference, and the copies of weights that compute."""
    e, lora = element(mode), bool(config.lora_rank)
    adapters, n, steps = a.linear * config.lora_rank, gpus if fsdp else 1, ("forward", "head", "backward", "update")
    trained, teaches = adapters or a.parameters, config.method in TEACHER
    if lora:
        yield _row(f"base weights, frozen, {'bf16' if e == 2 else 'fp32'}", e * a.parameters / n)
    yield _row("adapters, fp32" if lora else "weights, fp32 master", 4 * trained / n)
    yield _row("gradients, fp32", 4 * trained / n, *steps)  # set to None after the update
    yield _row("Adam moments, fp32", 8 * trained / n)
    if teaches:
        name = "teacher, a second adapter" if lora else f"teacher{' and KL reference' if config.beta else ''}, fp32"
        yield _row(name, 4 * trained / n)
    elif config.beta and not lora:  # with LoRA: the adapters switched off
        yield _row("KL reference, fp32", 4 * a.parameters / n)
    if gpus > 1 and not fsdp:
        yield _row("DDP gradient buckets, fp32", 4 * trained)
    draws = ("rollouts",) if config.engine == "transformers" else ()
    if mode == "autocast":  # copies of trained weights stay to the end of a forward pass, and as long as it is stored
        linear, stored = 2 * a.layers * a.layer, not config.gradient_checkpointing
        own = {"score": linear if config.method in CONFIDENCE else 2 * a.layer}
        own |= {"head": linear if stored else 0, "backward": linear if stored else 2 * a.layer}
        yield _row("bf16 copies of weights", linear, "forward", *draws, **own)
    if fsdp:  # corelib.sharding: a unit for each layer; the model whole for generation and for confidence
        units = 3 * e * a.layer + e * a.head * (1 if a.tied else 2)  # one in use, the next, and the buffer they come in
        whole = e * a.parameters
        gradients = (2 * (e + 4) * a.layer + e * a.head) if not lora else 0  # of two units, and of the tied embedding
        score = whole if config.method in CONFIDENCE else units
        yield _row("FSDP2: gathered weights and gradients", units, "forward", score=score, head=e * a.head, backward=units + gradients, **dict.fromkeys(draws, whole))  # fmt: skip
        if config.engine != "transformers":
            yield _row("weight sync: the largest tensor", (e if lora else 4) * a.head, "rollouts")


def _engine(config: RunConfig, a: Architecture, mode: str, rollouts: int, cache: float) -> Iterator[dict]:
    """What generates rollouts; validation uses the same."""
    length = config.max_prompt_tokens + config.max_completion_tokens
    if config.engine == "vllm":
        held = ("rollouts",) if config.vllm_sleep else ()
        yield _row("vLLM: weights, bf16", 2 * a.parameters / config.vllm_tensor_parallel, *held)
        yield _row("vLLM: KV cache", cache, *held)
        yield _row("vLLM: sampler", _sampler(config, a, rollouts), *held)
        yield _row("vLLM: activations (allowance)", VLLM_WORK * GIB, *held)
        yield _row("vLLM: CUDA graphs (allowance)", VLLM_GRAPHS * GIB)
    elif config.engine == "transformers":
        batch = _batch(config, rollouts)
        yield _row("KV cache, transformers", kv_bytes(a, mode) * batch * length * (1 + 1 / a.layers), "rollouts")
        yield _row("logits of the next token", 3 * 4 * a.vocab * batch, "rollouts")  # fp32, probabilities, a draw


def _sampler(config: RunConfig, a: Architecture, rollouts: int) -> float:
    """Bytes that vLLM's sampler takes: TRL lets a whole step's rollouts be in flight (its `max_num_seqs`)."""
    return SAMPLER * 4 * a.vocab * rollouts * config.vllm_tensor_parallel


def _vllm_cache(config: RunConfig, a: Architecture, gib: float, rollouts: int) -> float:
    """Bytes of vLLM's KV cache: what its share of the GPU leaves beside weights, activations and sampler."""
    weights = 2 * a.parameters / config.vllm_tensor_parallel
    return max(config.vllm_memory * gib * GIB - weights - VLLM_WORK * GIB - _sampler(config, a, rollouts), 0)


def _batch(config: RunConfig, rollouts: int) -> int:
    return max(1, min(rollouts, GENERATE_TOKENS // (config.max_prompt_tokens + config.max_completion_tokens)))


def _sequences(config: RunConfig, a: Architecture, rollouts: int, cache: float) -> int | None:
    """Sequences of full length that a GPU's KV cache holds at once."""
    if config.engine == "transformers":
        return _batch(config, rollouts)
    if config.engine != "vllm":
        return None
    length = config.max_prompt_tokens + config.max_completion_tokens
    return int(cache / (kv_bytes(a, "bf16") * length))


def _update(config: RunConfig, a: Architecture, mode: str, micro: int, shards: int, cpu: bool) -> Iterator[dict]:
    """Activations of a micro-batch of full length, the LM head's tile, and Adam's work."""
    e, lora, checkpointing = element(mode), bool(config.lora_rank), config.gradient_checkpointing
    length = config.max_prompt_tokens + config.max_completion_tokens
    scored = length - 1 if cpu else config.max_completion_tokens  # without Triton TRL scores every position
    tokens, count = micro * length, micro * scored
    stored = stored_bytes(a, micro, length, scored, mode, checkpointing, config.lora_rank)
    yield _row("activations stored, attention mask", stored + micro * length**2, "forward", "head", "backward")
    again = layer_bytes(a, length, mode, config.lora_rank) if checkpointing else 0
    work = forward_bytes(a, mode) * tokens
    back = (again + backward_bytes(a, mode)) * tokens
    yield _row("one layer in work", work, "score", "forward", backward=back)
    wide = min(TILE_VOCABULARY, a.vocab) if cpu else TILE_VOCABULARY  # a CPU maps only pages that are written
    copies = 16 if cpu else 0  # without Triton: four fp32 tensors as large as the tile
    tile = (e + copies) * min(count, TILE_TOKENS) * wide + e * wide * a.hidden  # logits, and the weights of a tile
    gradient = (4 + e) * a.hidden * count + e * a.hidden * tokens  # of hidden states: fp32, cast, put back in place
    weight = 0 if lora else (4 + (e if mode == "bf16" else 0)) * a.head  # its fp32 gradient, and cast
    yield _row("LM head: tile of logits, gradients", tile, "score", "forward", head=tile + gradient + weight)
    # torch.optim takes DTensors and CPU tensors one at a time, plain CUDA tensors all at once
    together = a.head / shards if cpu or shards > 1 else a.parameters
    yield _row("Adam in work", 4 * (a.linear * config.lora_rank or together), "update")


def _rollouts(config: RunConfig, gpus: int) -> int:
    """Rollouts of a step on each GPU; the splits that corelib.train.grpo_config and TRL's vLLM check when they start."""
    total = config.prompts * config.rollouts
    if gpus < 1 or total % gpus or (total // gpus) % min(config.micro_batch, total // gpus):
        raise ValueError(
            f"{total} rollouts a step do not split over {gpus} GPUs x micro_batch={config.micro_batch}; "
            f"choose a number of GPUs and a micro_batch whose product divides {total}"
        )
    if config.engine == "vllm" and gpus % config.vllm_tensor_parallel:
        raise ValueError(f"vllm_tensor_parallel={config.vllm_tensor_parallel} does not divide {gpus} GPUs")
    return total // gpus


def _host(config: RunConfig, a: Architecture, gpus: int, fsdp: bool) -> list[dict]:
    """Host memory of one machine. Loading and saving do not coincide: the larger one counts."""
    trained = a.linear * config.lora_rank or a.parameters
    second = not config.lora_rank and (config.method in TEACHER or config.beta > 0)
    bytes_loaded = 2 if config.lora_rank and config.bf16 else 4
    loading = gpus * bytes_loaded * a.parameters * (2 if second else 1) if gpus > 1 else 0  # one GPU: straight onto it
    saving = (8 if fsdp else 4) * trained  # gathered on the first process: Adam's moments
    name = "loading, a copy for each process" if loading > saving else "saving, gathered"
    return [
        {"part": f"{gpus} process{'es' if gpus > 1 else ''} (allowance)", "GiB": gpus * PROCESS},
        {"part": name, "GiB": max(loading, saving) / GIB},
    ]


def disk(config: RunConfig) -> list[dict]:
    """Disk of one run, and of the base model where it is downloaded (bf16): parts in GiB."""
    a = of_model(config.model)
    trained, teaches = a.linear * config.lora_rank or a.parameters, config.method in TEACHER
    parts = [
        (f"{CHECKPOINTS} checkpoints: weights, Adam{', teacher' if teaches else ''}", CHECKPOINTS * (16 if teaches else 12) * trained),
        ("weights: best, kept, next, final", WEIGHTS * 4 * trained),
        ("base model, downloaded", 0 if config.model in ("lab", "smollm2") else 2 * a.parameters),
    ]  # fmt: skip
    return [{"part": part, "GiB": count / GIB} for part, count in parts if count]


def cure(config: RunConfig, gpus: int, gib: float, cpu: bool = False) -> tuple[dict, Plan] | None:
    """The first change that makes a run fit, and its plan; None when nothing tried does.

    Each knob alone, then two together, then three, in the order of `knobs`; every one is tried in the plan.
    """
    turned = knobs(config, gpus, cpu)
    for together in (1, 2, 3):
        for chosen in combinations(turned, together):
            for choice in product(*chosen):
                change = {name: value for part in choice for name, value in part.items()}
                settings = {name: value for name, value in change.items() if name != "gpus"}
                try:
                    found = plan(replace(config, **settings), change.get("gpus", gpus), gib, cpu)
                except ValueError:  # the rollouts do not split so
                    continue
                if found.fits:
                    return change, found
    return None


def knobs(config: RunConfig, gpus: int, cpu: bool = False) -> list[list[dict]]:
    """What can be turned, the gentlest first: what leaves the result alone, then more GPUs, then another kind of training."""
    micro = [{"micro_batch": config.micro_batch // 2**i} for i in range(1, 9) if config.micro_batch >= 2**i]
    turned = [[{"gradient_checkpointing": True}] if not config.gradient_checkpointing else [], micro]
    if not cpu:
        vllm = config.engine == "vllm"
        turned = [
            [{"vllm_sleep": True}] if vllm and not config.vllm_sleep else [],
            [{"vllm_memory": share} for share in SHARES if share != config.vllm_memory] if vllm else [],
            *turned,
            [{"sharding": "fsdp2"}] if gpus > 1 and config.sharding == "ddp" else [],
            [{"gpus": more} for more in (2, 4, 8) if more > gpus],
            [{"lora_rank": 32}] if not config.lora_rank else [],
        ]
    return [choices for choices in turned if choices]
