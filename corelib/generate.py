"""Draw completions with transformers or vLLM: prompts as token ids in, texts with their lengths and ends out.

Both engines get one seed a prompt. vLLM's draw of a prompt depends on its seed alone; that of transformers on the seeds
of the prompts it shares a batch with, so the same batches give the same answers. Neither reads the sampling defaults
(top-p, repetition penalty) that a checkpoint may carry.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from corelib.config import RunConfig, unknown
from corelib.models import Checkpoint, end_ids, load_model, load_tokenizer, load_vllm

ENGINES = ("transformers", "vllm")

BATCH_TOKENS = 40_000  # prompts and completions of a batch; 147 kB a token of Qwen3-4B in bf16: a cache of 5.9 GB
VLLM_COMPLETIONS = 256  # of one call, vLLM's own default of sequences at once; between calls answers are stored


class Completion(NamedTuple):
    """One answer: its text, its length in tokens (the one that ended it included), and `stop` or `length`."""

    text: str
    tokens: int
    finish: str


class Chat(str):
    """A prompt that a chat template wrote, special tokens included; a plain `str` gets the tokenizer's own, see `encode`."""


def render(tokenizer, prompts: Sequence) -> list[str]:
    """Prompts as text: strings as they are, chat messages as `Chat` by the tokenizer's own template with generation prompt.

    Raises ValueError for messages where the tokenizer has no template.
    """
    if any(not isinstance(p, str) for p in prompts) and not tokenizer.chat_template:
        raise ValueError(
            f"the tokenizer of {tokenizer.name_or_path} has no chat template, so chat prompts cannot be rendered; "
            "use a checkpoint with one, or a benchmark with plain-text prompts"
        )
    return [
        p if isinstance(p, str) else Chat(tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True))
        for p in prompts
    ]


def encode(tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Token ids of rendered prompts. Plain text gets the special tokens of the tokenizer's default (for Llama and Gemma: BOS)
    unless it starts with BOS; a template has written its own. Source: tok_encode of lm-evaluation-harness 0.4.13."""
    bos, out = tokenizer.bos_token, [[] for _ in texts]
    written = [isinstance(text, Chat) or bool(bos and text.startswith(bos)) for text in texts]
    for kind in set(written):
        chosen = [i for i, w in enumerate(written) if w == kind]
        rows = tokenizer([texts[i] for i in chosen], add_special_tokens=not kind)["input_ids"]
        for i, row in zip(chosen, rows, strict=True):
            out[i] = row
    return out


def stop_ids(config: RunConfig, tokenizer) -> list[int]:
    """Token ids that end a completion: the tokenizer's EOS and the configured stop tokens that it knows."""
    known = tokenizer.get_vocab()
    return list(dict.fromkeys([tokenizer.eos_token_id, *(known[t] for t in config.stop_tokens.split() if t in known)]))


def batches(lengths: Sequence[int], k: int, max_new_tokens: int, batch_tokens: int = BATCH_TOKENS) -> list[list[int]]:
    """Prompts (by position) in batches, longest first, so that running out of memory happens at once.

    A batch holds all `k` rows of its prompts and at most `batch_tokens` tokens, padding and completions included, but
    always at least one prompt.

    >>> batches([10, 30, 20, 10], k=2, max_new_tokens=10, batch_tokens=100)
    [[1], [2], [0, 3]]
    """
    out: list[list[int]] = []
    room = 0
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if not room:
            out.append([])
            room = max(1, batch_tokens // (k * (lengths[i] + max_new_tokens)))
        out[-1].append(i)
        room -= 1
    return out


def mixed_seed(*parts) -> int:
    """A seed of 62 bits from anything that prints, the same in every process.

    >>> mixed_seed(0, "a") == mixed_seed(0, "a") != mixed_seed(0, "b")
    True
    """
    return int.from_bytes(hashlib.sha256(repr(parts).encode()).digest()[:8], "big") >> 2


def with_transformers(
    model,
    tokenizer,
    ids: Sequence[Sequence[int]],
    k: int,
    temperature: float,
    max_new_tokens: int,
    seeds: Sequence[int],
    stop_ids: Sequence[int],
    stop_texts: Sequence[str] = (),
    batch_tokens: int = BATCH_TOKENS,
    autocast_dtype=None,
    progress: Callable | None = None,
) -> list[list[Completion]]:
    """`k` completions of each prompt; temperature 0 is greedy. Leaves the global random state as it was.

    A completion ends at a token of `stop_ids` (not part of its text) or after one of `stop_texts` (part of it).
    `autocast_dtype`: compute in this dtype over weights of another (torch.bfloat16 over a training model's fp32).
    `progress(done, of, seconds_left)` is called after each batch, counted in completions.
    """
    import torch
    from transformers import GenerationConfig

    device = next(model.parameters()).device
    jobs = [i for i in range(len(ids)) for _ in range(k)]
    plan = batches([len(ids[i]) for i in jobs], 1, max_new_tokens, batch_tokens)
    sampling = (
        {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
        if temperature
        else {"do_sample": False}
    )
    out: list[list[Completion]] = [[] for _ in ids]
    defaults, was_training, started, done = model.generation_config, model.training, time.time(), 0
    mixed = torch.autocast(device.type, autocast_dtype) if autocast_dtype else contextlib.nullcontext()
    model.eval()
    model.generation_config = GenerationConfig()  # else generate() fills what is not named here from the checkpoint
    try:
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad(), mixed:
            for number, batch in enumerate(plan):
                rows = [jobs[j] for j in batch]
                torch.manual_seed(mixed_seed(number, [seeds[i] for i in rows]))
                inputs = tokenizer.pad(
                    {"input_ids": [ids[i] for i in rows]}, padding_side="left", return_tensors="pt"
                ).to(device)
                made = model.generate(
                    input_ids=inputs["input_ids"],
                    attention_mask=inputs["attention_mask"],
                    max_new_tokens=max_new_tokens,
                    pad_token_id=tokenizer.pad_token_id,
                    eos_token_id=list(stop_ids),
                    stopping_criteria=_stopping(tokenizer, stop_texts, inputs["input_ids"].shape[1]),
                    **sampling,
                )[:, inputs["input_ids"].shape[1] :]
                for i, completion in zip(rows, _read(tokenizer, made.tolist(), stop_ids, stop_texts), strict=True):
                    out[i].append(completion)
                done += len(rows)
                if progress:
                    progress(done, len(jobs), (time.time() - started) / done * (len(jobs) - done))
    finally:
        model.generation_config = defaults
        model.train(was_training)
    return out


def _stopping(tokenizer, stop_texts: Sequence[str], prompt: int):
    """Ends rows at one of `stop_texts`; transformers' own `stop_strings` fails on word-level tokenizers."""
    from transformers import StoppingCriteriaList

    if not stop_texts:
        return None
    window = max(len(text.encode()) for text in stop_texts) + 1  # a token holds at least a byte, the last may be half

    def ended(ids, scores, **_):
        texts = tokenizer.batch_decode(ids[:, prompt:][:, -window:], skip_special_tokens=True)
        return ids.new_tensor([any(stop in text for stop in stop_texts) for text in texts]).bool()

    return StoppingCriteriaList([ended])


def _read(tokenizer, rows: Sequence[Sequence[int]], stop_ids: Sequence[int], stop_texts: Sequence[str]):
    """Generated ids as completions: each ends at its first stop token, after a stop text, or before padding."""
    stops, kept = set(stop_ids), []
    for row in map(list, rows):
        if (end := next((n for n, token in enumerate(row) if token in stops), None)) is not None:
            row = row[: end + 1]
        while stop_texts and row and row[-1] == tokenizer.pad_token_id not in stops:
            row.pop()  # a row that ended at a stop text is padded without an EOS
        kept.append(row)
    ended = [bool(row) and row[-1] in stops for row in kept]
    texts = tokenizer.batch_decode(
        [row[: len(row) - end] for row, end in zip(kept, ended, strict=True)],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    out = []
    for text, row, end in zip(texts, kept, ended, strict=True):
        text, cut = _cut(text, stop_texts)
        out.append(Completion(text, len(row), "stop" if end or cut else "length"))
    return out


def _cut(text: str, stop_texts: Sequence[str]) -> tuple[str, bool]:
    """The text up to and with the first of `stop_texts`, and whether there was one."""
    ends = [at + len(stop) for stop in stop_texts if (at := text.find(stop)) >= 0]
    return (text[: min(ends)], True) if ends else (text, False)


def with_vllm(
    llm,
    tokenizer,
    ids: Sequence[Sequence[int]],
    k: int,
    temperature: float,
    max_new_tokens: int,
    seeds: Sequence[int],
    stop_ids: Sequence[int],
    stop_texts: Sequence[str] = (),
) -> list[list[Completion]]:
    """The same with an offline `vllm.LLM`: one request a prompt, n = k, no log-probabilities."""
    from vllm import SamplingParams

    common = dict(
        n=k, temperature=temperature, max_tokens=max_new_tokens, stop_token_ids=list(stop_ids),
        stop=list(stop_texts), detokenize=bool(stop_texts),
    )  # fmt: skip
    outputs = llm.generate(
        [{"prompt_token_ids": list(row)} for row in ids],
        [SamplingParams(seed=seed, **common) for seed in seeds],
        use_tqdm=False,
    )
    # Texts from the ids, not vLLM's own: it decodes word-level tokens with a leading space
    return [
        _read(tokenizer, [completion.token_ids for completion in output.outputs], stop_ids, stop_texts)
        for output in outputs
    ]


def sample(
    model,
    tokenizer,
    prompts: Sequence,
    k: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch_tokens: int = BATCH_TOKENS,
    stop_ids: Sequence[int] = (),
    progress: Callable | None = None,
    autocast_dtype=None,
) -> list[list[str]]:
    """Texts of `k` completions of each prompt (strings or chat messages) with transformers: what validation needs."""
    rows = with_transformers(
        model, tokenizer, encode(tokenizer, render(tokenizer, prompts)), k, temperature, max_new_tokens,
        [mixed_seed(seed, i) for i in range(len(prompts))], list(dict.fromkeys([tokenizer.eos_token_id, *stop_ids])),
        (), batch_tokens, autocast_dtype, progress,
    )  # fmt: skip
    return [[completion.text for completion in row] for row in rows]


@dataclass(frozen=True)
class Decoding:
    """How answers are drawn; temperature 0 is greedy. With the model and the prompt it is what stored answers are found by."""

    temperature: float
    k: int
    max_new_tokens: int
    stop_ids: tuple[int, ...]
    stop: tuple[str, ...]
    seed: int
    engine: str
    dtype: str

    def __post_init__(self):
        if self.temperature < 0 or self.k < 1 or self.max_new_tokens < 1:
            raise ValueError(
                f"temperature {self.temperature}, k {self.k}, max_new_tokens {self.max_new_tokens}: the first must not be negative, the others at least 1"
            )
        if not self.temperature and self.k > 1:
            raise ValueError(f"{self.k} greedy answers to one question are all alike: give a temperature, or k = 1")


class Engine:
    """A checkpoint that answers; its weights are loaded when the first question is drawn."""

    def __init__(self, checkpoint: Checkpoint, kind: str, batch_tokens: int = BATCH_TOKENS):
        if kind not in ENGINES:
            raise ValueError(unknown("engine", kind, ENGINES))
        if kind == "vllm" and importlib.util.find_spec("vllm") is None:
            load_vllm(checkpoint)  # says what is missing
        self.checkpoint, self.kind, self.batch_tokens = checkpoint, kind, batch_tokens
        self.tokenizer = load_tokenizer(checkpoint)

    @functools.cached_property
    def model(self):
        """The model, or the `vllm.LLM`."""
        return (load_vllm if self.kind == "vllm" else load_model)(self.checkpoint)[0]

    @functools.cached_property
    def ends(self) -> list[int]:
        """Tokens that the checkpoint itself names as ends of an answer; its digest, so a stored answer's key, covers them."""
        return end_ids(self.checkpoint)

    def plan(self, ids: Sequence[Sequence[int]], decoding: Decoding) -> list[list[int]]:
        """Questions that are drawn together and stored together, longest first."""
        if self.kind == "vllm":
            order, at_once = sorted(range(len(ids)), key=lambda i: -len(ids[i])), max(1, VLLM_COMPLETIONS // decoding.k)
            return [order[i : i + at_once] for i in range(0, len(order), at_once)]
        return batches([len(row) for row in ids], decoding.k, decoding.max_new_tokens, self.batch_tokens)

    def draw(self, ids: Sequence[Sequence[int]], seeds: Sequence[int], decoding: Decoding):
        """Completions of prompts, by this engine."""
        given = (
            self.model,
            self.tokenizer,
            ids,
            decoding.k,
            decoding.temperature,
            decoding.max_new_tokens,
            seeds,
            list(dict.fromkeys([*decoding.stop_ids, *self.ends])),
            decoding.stop,
        )
        if self.kind == "vllm":
            return with_vllm(*given)
        return with_transformers(*given, batch_tokens=self.batch_tokens)


def default_engine() -> str:
    """vLLM where it is installed and a GPU is there, else transformers."""
    import torch

    return "vllm" if torch.cuda.is_available() and importlib.util.find_spec("vllm") else "transformers"
