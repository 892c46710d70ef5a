"""`python -m corelib bench evaluate`: what an evaluation costs beside bare generation and beside lm-eval's own loop.

Same model (the lab's), problems, batches and tokens, in turn in one process, one CPU thread; a ratio is the median over
rounds. Grading is timed on real answers to MATH500, which are no part of the repository (--data).
"""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import statistics
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from corelib import runs
from corelib.config import load_config
from corelib.evaluate import Job, answer, held_out, prepare
from corelib.generate import Engine, mixed_seed
from corelib.models import identify

PROBLEMS, DRAWS, ROWS, ROUNDS = 500, 2, 125, 4
GOALS = {"over_generation": 1.10, "math500_seconds": 2.0, "over_lm_eval": 1.0}
REAL = "math500/math500_gpt_answers_rasbt.json"


def main(data: str = "", out: str = "") -> dict:
    """Print and return the ratios; with `out` also write them as JSON. `data`: folder that holds math500/."""
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    engine = Engine(identify("lab"), "transformers")
    engine.model  # noqa: B018  loading is not part of what is compared
    result = {"problems": PROBLEMS, "rounds": ROUNDS, "goals": GOALS, "versions": runs.versions()}
    for name, measure in (
        ("over_generation", lambda: over_generation(engine)),
        ("math500", lambda: math500(Path(data)) if data else {"missing": f"--data FOLDER, a folder with {REAL}"}),
        ("over_lm_eval", lambda: over_lm_eval(engine)),
    ):
        result[name] = measure()
        shown = {k: round(v, 3) if isinstance(v, float) else v for k, v in result[name].items() if k != "all"}
        print(f"{name}: " + ", ".join(f"{k} {v}" for k, v in shown.items()), flush=True)
    if out:
        runs.write_json(out, result)
    return result


def job(engine: Engine, folder: Path, **given) -> Job:
    """500 problems of the lab, ready to be drawn into an empty folder."""
    test = held_out(load_config("lab", test_problems=PROBLEMS))
    given = {"temperature": None, "k": None, "max_new_tokens": None, "seed": 0} | given
    return prepare(test, engine, folder, "", 0, load_config("lab"), **given)


def over_generation(engine: Engine) -> dict:
    """Seconds of an evaluation (plan, draw, decode, grade, store) over those of the same calls of `generate` alone.

    Both start from loaded problems and token ids: making the lab's problems would be counted as evaluation otherwise.
    """
    import torch
    from transformers import GenerationConfig

    model, tokenizer = engine.model, engine.tokenizer
    engine.batch_tokens = 20_000
    asked = job(engine, Path(), k=DRAWS)
    plan = engine.plan(asked.ids, asked.decoding)
    seeds = [mixed_seed(asked.decoding.seed, q.key) for q in asked.questions]

    def bare() -> int:
        made = 0
        for batch in plan:
            torch.manual_seed(mixed_seed(0, [seeds[i] for i in batch for _ in range(DRAWS)]))
            ids = [asked.ids[i] for i in batch for _ in range(DRAWS)]
            inputs = tokenizer.pad({"input_ids": ids}, padding_side="left", return_tensors="pt")
            with torch.no_grad():
                rows = model.generate(
                    **inputs, max_new_tokens=asked.decoding.max_new_tokens, pad_token_id=0, eos_token_id=[1],
                    do_sample=True, temperature=1.0, top_k=0, top_p=1.0,
                )  # fmt: skip
            new = rows[:, inputs["input_ids"].shape[1] :]
            made += int((new != 0).sum())
        return made

    def ours() -> int:
        with tempfile.TemporaryDirectory() as folder:
            return int(answer(replace(asked, folder=Path(folder)), engine, say=lambda _: None)["tokens"].sum())

    defaults, model.generation_config = model.generation_config, GenerationConfig()
    try:
        return _in_turn(ours, bare, "evaluation", "generation")
    finally:
        model.generation_config = defaults


def math500(folder: Path) -> dict:
    """Seconds to grade 500 real answers to MATH500, and how many are right; the grader's worker process is started before."""
    from corelib.benchmarks import find
    from corelib.grader import shared

    rows = json.loads((folder / REAL).read_text())
    grade = find("math500").grade
    shared().equal([r"\int_0^1 x dx"], [r"\frac{1}{2}"])
    started = time.perf_counter()
    right = sum(grade([row["prediction"]], {"answer": row["answer"]})[0].right for row in rows)
    return {
        "answers": len(rows),
        "seconds": time.perf_counter() - started,
        "right": right,
        "goal": GOALS["math500_seconds"],
    }


def over_lm_eval(engine: Engine) -> dict:
    """Throughput of an evaluation over that of lm-eval's `evaluate` with HFLM: greedy, the same rows a batch.

    Only its loop: what `simple_evaluate` does once a call (indexing some 14,000 task files, asking the system for its
    versions) is left out, and so are our loading and tokenizing of problems, which are given to both.
    """
    if importlib.util.find_spec("lm_eval") is None:
        return {"missing": "lm_eval, the harness itself: pip install lm-eval==0.4.13 beside this project"}
    from lm_eval.api.task import ConfigurableTask
    from lm_eval.evaluator import evaluate as loop
    from lm_eval.models.huggingface import HFLM

    asked = job(engine, Path(), k=1, temperature=0.0)
    longest = max(map(len, asked.ids))
    engine.batch_tokens = ROWS * (longest + asked.decoding.max_new_tokens)
    rows = [{"question": q.prompt, "answer": q.problem["answer"]} for q in asked.questions]
    lm = HFLM(pretrained=engine.model, tokenizer=engine.tokenizer, batch_size=ROWS, add_bos_token=False)
    texts: dict = {}

    def right(doc: dict, results: list[str]) -> dict:
        from corelib.benchmark_math import grade_boxed

        texts[doc["question"]] = results[0]
        return {"right": float(grade_boxed(results, doc)[0].right)}  # the same grader on both sides

    def task() -> ConfigurableTask:
        import datasets

        return ConfigurableTask(
            config={
                "task": "lab", "test_split": "test", "output_type": "generate_until", "doc_to_text": "{{question}}",
                "doc_to_target": "{{answer}}", "process_results": right, "target_delimiter": "",
                "custom_dataset": lambda **_: {"test": datasets.Dataset.from_list(rows)},
                "generation_kwargs": {"until": ["<eos>"], "do_sample": False, "max_gen_toks": asked.decoding.max_new_tokens},
                "metric_list": [{"metric": "right", "aggregation": "mean", "higher_is_better": True}],
            }
        )  # fmt: skip

    def theirs() -> int:
        texts.clear()
        with open(os.devnull, "w") as nowhere, contextlib.redirect_stderr(nowhere):  # its progress bars
            loop(lm, {"tasks": {"lab": task()}, "groups": {}}, bootstrap_iters=0, verbosity="ERROR")
        return sum(len(engine.tokenizer(t)["input_ids"]) for t in texts.values())

    same: dict = {}

    def ours() -> int:
        with tempfile.TemporaryDirectory() as folder:
            table = answer(replace(asked, folder=Path(folder)), engine, say=lambda _: None)
        same.update(zip(table["prompt"], table["completion"], strict=True))
        return int((table["tokens"] - (table["finish"] == "stop")).sum())

    made = _in_turn(theirs, ours, "lm_eval", "ours")
    made["same_answers"] = sum(texts[q].strip() == same[q].strip() for q in texts)
    made["questions"], made["batches"] = len(texts), len(engine.plan(asked.ids, asked.decoding))
    return made


def _in_turn(a, b, a_name: str, b_name: str) -> dict:
    """Median over rounds of (seconds of a) / (seconds of b), one after the other; both return the tokens they made.

    `cpu_ratio`: the same of this process's CPU seconds, which other work on the machine hardly moves.
    """
    wall, cpu, tokens = {a_name: [], b_name: []}, {a_name: [], b_name: []}, {}
    for round_ in range(ROUNDS + 1):
        pair = [(a_name, a), (b_name, b)]
        for name, work in pair if round_ % 2 else reversed(pair):
            started, used = time.perf_counter(), time.process_time()
            tokens[name] = work()
            if round_:  # the first round allocates
                wall[name].append(time.perf_counter() - started)
                cpu[name].append(time.process_time() - used)
    ratios, cpu_ratios = ([x / y for x, y in zip(s[a_name], s[b_name], strict=True)] for s in (wall, cpu))
    return {
        "ratio": statistics.median(ratios), "cpu_ratio": statistics.median(cpu_ratios), "all": ratios,
        **{f"{n}_seconds": statistics.median(s) for n, s in wall.items()},
        **{f"{n}_tokens": t for n, t in tokens.items()},
    }  # fmt: skip
