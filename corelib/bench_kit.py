"""What a measurement needs: a random model of known size, timing in turn, peak memory, a trainer that stops at each step."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Size:
    """A model and the lengths it is measured at. `full` is Qwen3-4B (its config.json) and the paper's lengths."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    prompt: int  # tokens of a row of the model-level sections
    completion: int
    rows: int  # micro-batch
    step_prompts: int  # a whole step: prompts, their length, rollouts each, new tokens each
    step_prompt: int
    rollouts: int
    new_tokens: int


SIZES = {
    "full": Size(36, 2560, 32, 8, 128, 9728, 151_936, 512, 3072, 8, 4, 512, 8, 256),
    "small": Size(2, 384, 6, 2, 64, 1152, 8_192, 512, 3072, 1, 2, 128, 4, 256),
    "tiny": Size(2, 32, 2, 1, 16, 64, 512, 16, 32, 2, 2, 8, 2, 8),
}
FULL_BYTES = (
    100 * 2**30
)  # weights, gradients, Adam and teacher in fp32 are 20 bytes a parameter: 75 GiB, plus activations


def default_size() -> str:
    """`full` on a GPU that holds a full-size trainer, else `small`."""
    enough = torch.cuda.is_available() and torch.cuda.get_device_properties(0).total_memory >= FULL_BYTES
    return "full" if enough else "small"


def random_model(size: Size, device, dtype=torch.float32, **_):
    """Qwen3 with tied embeddings and random weights (always the same ones), made on the device itself."""
    from transformers import AutoModelForCausalLM, Qwen3Config

    config = Qwen3Config(
        vocab_size=size.vocab, hidden_size=size.hidden, intermediate_size=size.intermediate, num_hidden_layers=size.layers,
        num_attention_heads=size.heads, num_key_value_heads=size.kv_heads, head_dim=size.head_dim, tie_word_embeddings=True,
        max_position_embeddings=32768, rope_parameters={"rope_type": "default", "rope_theta": 1e6},
        pad_token_id=0, eos_token_id=1, bos_token_id=None, name_or_path="random",
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype)


def tokenizer(size: Size):
    """One word a token; the words hold boxed digits, so that random rollouts have answers to vote on."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import WhitespaceSplit
    from transformers import PreTrainedTokenizerFast

    words = {"<pad>": 0, "<eos>": 1} | {word(i): i for i in range(2, size.vocab)}
    bare = Tokenizer(WordLevel(words, unk_token="<pad>"))
    bare.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>", padding_side="left"
    )


def word(token: int) -> str:
    return f"t{token}\\boxed{{{token % 10}}}"


def sync(device) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()


def free() -> None:
    """Give memory back to the device after a section or an out-of-memory error."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def in_turn(
    functions: dict[str, Callable], budget: float, device, rounds: int = 15, warm: int = 1, least: int = 2
) -> dict[str, list[float]]:
    """Seconds of each function, round by round, so that a noisy machine hits all alike.

    On a CPU they are seconds that this process computed, so that waiting for a core that others hold does not count.
    No round starts that, by the last one, would end later than `budget` seconds from now; `least` timed rounds are always
    made. The first `warm` rounds compile and allocate and are not counted.
    """
    seconds = {name: [] for name in functions}
    clock = time.perf_counter if torch.device(device).type == "cuda" else time.process_time
    order, began, last = list(functions), time.monotonic(), 0.0
    for round_ in range(warm + rounds):
        started_round = time.monotonic()
        if round_ >= warm + least and started_round + last > began + budget:
            break
        order = order[1:] + order[:1]  # nobody always goes first
        for name in order:
            sync(device)
            started = clock()
            functions[name]()
            sync(device)
            if round_ >= warm:
                seconds[name].append(clock() - started)
        last = time.monotonic() - started_round
    return seconds


def ratio(above: list[float], below: list[float]) -> float:
    """Median over rounds of above / below; of the medians when the two were not timed in the same rounds."""
    if len(above) != len(below):
        return statistics.median(above) / statistics.median(below)
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


def peak_bytes(function: Callable, device) -> int:
    """Most bytes that `function` holds at once beyond what was held before: the allocator's own count.

    CUDA: `torch.cuda.max_memory_allocated`. CPU: the allocations that PyTorch's profiler records.
    """
    free()
    if torch.device(device).type == "cuda":
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    held = peak = 0
    for event in sorted(events, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def largest(rows: int, attempt: Callable[[int], None]) -> int:
    """The largest of rows, rows / 2, ... 1 for which `attempt(rows)` does not run out of GPU memory."""
    while True:
        try:
            attempt(rows)
            return rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
            rows //= 2
        free()


def row(what: str, value: float, unit: str, goal=None, better: str = "lower", floor: str = "", over_stock=None) -> dict:
    """One line of the report: a value, its goal (if there is one), its floor in words, and its time over stock TRL's."""
    return {
        "what": what,
        "value": value,
        "unit": unit,
        "goal": goal,
        "better": better,
        "floor": floor,
        "over_stock": over_stock,
        "met": None if goal is None else bool(value <= goal if better == "lower" else value >= goal),
    }


def medians(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """Median, fastest and slowest round and their number, by name: a reader sees how noisy the machine was."""
    return {
        name: {"median": statistics.median(s), "fastest": min(s), "slowest": max(s), "rounds": len(s)}
        for name, s in seconds.items()
    }


def free_bytes(device) -> int:
    """Memory that nobody uses now: the GPU's, or the machine's."""
    if torch.device(device).type == "cuda":
        return torch.cuda.mem_get_info()[0]
    import psutil

    return psutil.virtual_memory().available
