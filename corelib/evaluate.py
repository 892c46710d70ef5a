"""Score a model on held-out problems: draw answers, grade them, say how sure the number is."""

from __future__ import annotations

import hashlib
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from corelib import runs
from corelib.config import RunConfig


@dataclass(frozen=True)
class Estimate:
    """A mean over problems with its 95 % interval."""

    mean: float
    low: float
    high: float
    problems: int
    samples: int

    def __str__(self):
        return f"{100 * self.mean:.1f} % ({100 * self.low:.1f} to {100 * self.high:.1f})"


def avg_at_k(right: Sequence[Sequence[bool]]) -> Estimate:
    """avg@k: mean over problems of the share of right answers, standard error clustered by problem.

    `right[i][j]`: whether answer j to problem i is right. The k answers to one problem are not independent, so the
    error is sd(per-problem means) / sqrt(N), never that of N * k coins. One answer a problem: the Wilson interval.
    Raises ValueError for no problems.

    >>> avg_at_k([[True, False], [True, True]]).mean
    0.75
    """
    if not right:
        raise ValueError("no problems were scored; an accuracy needs at least one")
    means = [sum(r) / len(r) for r in right]
    n, mean = len(means), sum(means) / len(means)
    if all(len(r) == 1 for r in right):
        from scipy.stats import binomtest

        interval = binomtest(round(mean * n), n).proportion_ci(method="wilson")
        return Estimate(mean, interval.low, interval.high, n, 1)
    sd = math.sqrt(sum((m - mean) ** 2 for m in means) / max(n - 1, 1))
    half = 1.96 * sd / math.sqrt(n)
    return Estimate(mean, max(mean - half, 0.0), min(mean + half, 1.0), n, len(right[0]))


def sample(
    model,
    tokenizer,
    prompts: Sequence,
    k: int,
    temperature: float,
    max_new_tokens: int,
    seed: int,
    batch_tokens: int = 40_000,
    stop_ids: Sequence[int] = (),
    progress: Callable | None = None,
) -> list[list[str]]:
    """`k` completions of each prompt with transformers; temperature 0 is greedy. Leaves the global RNG as it was.

    `prompts`: strings, or lists of chat messages, which are rendered with the tokenizer's own template.
    Returns texts[i][j]. Longest prompts go first, so that running out of memory happens at once. A batch holds at most
    `batch_tokens` tokens, prompt and completion: for Qwen3-4B, 147 kB a token in bf16, a cache of 5.9 GB.
    """
    import torch

    texts = [
        p if isinstance(p, str) else tokenizer.apply_chat_template(p, tokenize=False, add_generation_prompt=True)
        for p in prompts
    ]
    jobs = sorted(((i, t) for i, t in enumerate(texts) for _ in range(k)), key=lambda job: -len(job[1]))
    out: list[list[str]] = [[] for _ in prompts]
    device = next(model.parameters()).device
    eos = list(dict.fromkeys([tokenizer.eos_token_id, *stop_ids]))
    was_training, started = model.training, time.time()
    model.eval()
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []), torch.no_grad():
        torch.manual_seed(seed)
        longest = len(tokenizer(jobs[0][1], add_special_tokens=False)["input_ids"]) if jobs else 0
        batch = max(1, batch_tokens // (longest + max_new_tokens))
        for start in range(0, len(jobs), batch):
            chunk = jobs[start : start + batch]
            inputs = tokenizer(
                [t for _, t in chunk], return_tensors="pt", padding=True, padding_side="left", add_special_tokens=False
            )
            sampling = (
                {"do_sample": True, "temperature": temperature, "top_k": 0, "top_p": 1.0}
                if temperature
                else {"do_sample": False}
            )
            ids = model.generate(
                input_ids=inputs["input_ids"].to(device),
                attention_mask=inputs["attention_mask"].to(device),
                max_new_tokens=max_new_tokens,
                pad_token_id=tokenizer.pad_token_id,
                eos_token_id=eos,
                **sampling,
            )
            completions = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
            for (i, _), text in zip(chunk, completions, strict=True):
                out[i].append(text)
            if progress:
                done = start + len(chunk)
                progress(done, len(jobs), (time.time() - started) / done * (len(jobs) - done))
    model.train(was_training)
    return out


def stop_ids(config: RunConfig, tokenizer) -> list[int]:
    """Token ids that end a completion: the tokenizer's EOS and the configured stop tokens that it knows."""
    known = tokenizer.get_vocab()
    return list(dict.fromkeys([tokenizer.eos_token_id, *(known[t] for t in config.stop_tokens.split() if t in known)]))


def grade(texts: Sequence[Sequence[str]], answers: Sequence[str]) -> list[list[bool]]:
    """Whether each completion's last boxed answer equals the gold answer."""
    from corelib.answers import equivalent, extract

    return [
        [(a := extract(t)) is not None and equivalent(gold, a) for t in row]
        for row, gold in zip(texts, answers, strict=True)
    ]


def problems_of(config: RunConfig, split: str):
    """Held-out problems of a run: `validation` (chooses the best checkpoint) or `test` (is reported)."""
    n = config.eval_problems if split == "validation" else config.test_problems
    if config.eval_dataset == "lab":
        from corelib import lab

        return lab.load_problems(split, n, seed=0)
    from corelib.data import load_problems

    problems = load_problems(config.eval_dataset, config.source).shuffle(seed=0)
    used = config.eval_problems
    picked = range(min(used, len(problems))) if split == "validation" else range(used, min(used + n, len(problems)))
    return problems.select(picked)


def load_model(folder: str | Path):
    """Model (fp32 on CPU, bf16 on GPU) and tokenizer of a checkpoint folder or Hub id; no remote code."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gpu = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(
        str(folder), dtype=torch.bfloat16 if gpu else torch.float32, trust_remote_code=False
    )
    return model.to("cuda" if gpu else "cpu"), AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False)


def graded(stored: Path):
    """The stored answers of a checkpoint as a DataFrame, graded afresh: a better grader needs no new answers."""
    import pandas as pd

    frame = pd.read_parquet(stored)
    return frame.assign(right=[m[0] for m in grade([[t] for t in frame["completion"]], frame["answer"])])


def evaluate_run(folder: str | Path, progress: Callable | None = None) -> dict:
    """Score base, best and final checkpoint of a finished run on its held-out test problems; write result.json.

    Raises RuntimeError when the run is not done. Answers are kept in
    evaluation/ (the base model's beside the runs) and not drawn twice; grading reads them.
    """
    import pandas as pd

    from corelib.config import load_config

    folder = Path(folder)
    status, manifest = runs.read_status(folder), runs.read_json(folder / "manifest.json")
    if status.get("state") != "done" or manifest is None:
        raise RuntimeError(f"{folder} is {status.get('state', 'not a run')}; train it first (the same command resumes)")
    config = load_config(**manifest["config"])
    if not config.test_problems:
        raise RuntimeError(
            f"{folder.name} names no held-out test problems: set test_problems (and eval_dataset) before training"
        )
    problems = problems_of(config, "test")
    (folder / "evaluation").mkdir(exist_ok=True)
    scores = {}
    # The base model's answers are the same for every run with these problems and this decoding: drawn once
    asked = [config.base_model, config.test_problems, config.test_samples, config.eval_temperature, config.max_completion_tokens, config.eval_dataset, config.eval_problems]  # fmt: skip
    base_file = folder.parent / "base" / f"{hashlib.sha256(repr(asked).encode()).hexdigest()[:12]}.parquet"
    for which, path in (("base", config.base_model), ("best", folder / "best"), ("final", folder / "final")):
        stored = base_file if which == "base" else folder / "evaluation" / f"{which}.parquet"
        if not stored.is_file():
            model, tokenizer = load_model(path)
            texts = sample(
                model, tokenizer, [prompt_of(config, q) for q in problems["question"]], config.test_samples, config.eval_temperature,
                config.max_completion_tokens, seed=0, stop_ids=stop_ids(config, tokenizer), progress=progress,
            )  # fmt: skip
            level = problems["level"] if "level" in problems.column_names else [""] * len(problems)
            rows = [
                {"id": i, "level": v, "sample": j, "prompt": q, "completion": t, "answer": a}
                for i, v, q, a, row in zip(
                    problems["id"], level, problems["question"], problems["answer"], texts, strict=True
                )
                for j, t in enumerate(row)
            ]
            stored.parent.mkdir(parents=True, exist_ok=True)
            temporary = stored.with_name(f"{stored.name}.{os.getpid()}")
            pd.DataFrame(rows).to_parquet(temporary)
            temporary.replace(stored)
        frame = graded(stored)
        scores[which] = avg_at_k([list(g) for _, g in frame.groupby("id")["right"]])
        frame.to_parquet(folder / "evaluation" / f"{which}.graded.parquet")
    metrics = runs.load_metrics(folder)
    last = metrics.tail(10)
    has_labels = "gt/label_accuracy" in metrics
    result = {
        "method": config.method,
        "model": config.model,
        "dataset": config.dataset,
        "seed": config.seed,
        "base_accuracy": scores["base"].mean,
        "best_accuracy": scores["best"].mean,
        "final_accuracy": scores["final"].mean,
        "intervals": {k: [s.low, s.high] for k, s in scores.items()},
        "final_reward": float(last["reward"].mean()),
        "label_accuracy": float(last["gt/label_accuracy"].mean()) if has_labels else None,
        "collapsed": bool(scores["final"].mean < 0.5 * scores["best"].mean),
        "best_step": status.get("best_step"),
        "steps": status["step"],
        "tokens": status["tokens"],
        "seconds": status["seconds"],
    }
    runs.write_json(folder / "result.json", result)
    return result


def prompt_of(config: RunConfig, question: str):
    """The prompt of a question as in training: plain text in the lab, system and user message elsewhere."""
    if config.dataset == "lab":
        return question
    from corelib.data import to_prompt

    return to_prompt(question)
