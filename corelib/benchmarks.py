"""The benchmarks of the paper, each with its protocol beside its code; `table()` is what a reader sees.

MATH500, GSM8K, AMC, AIME: `benchmark_math`. CRUXEval: `benchmark_code`. LiveCodeBench: `benchmark_lcb`.
IFEval and MMLU-Pro: `benchmark_harness`, which delegates to lm-evaluation-harness.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from functools import partial

import datasets
import pandas as pd

from corelib import benchmark_code as code
from corelib import benchmark_harness as harness
from corelib import benchmark_lcb as lcb
from corelib import benchmark_math as maths
from corelib.audit import normalise, strip_answer_form
from corelib.benchmark_base import Benchmark, Verdict
from corelib.config import unknown
from corelib.data import load_problems

__all__ = ["BENCHMARKS", "Benchmark", "Verdict", "find", "overlap", "table"]

BOXED = "last \\boxed{} of the completion, mathematical equivalence (corelib.answers)"
TRAINING = "system instruction of training, then the bare question, in the model's chat template"
ROLLOUT = 3072  # tokens of a rollout in training (paper, table 5)


def _math(name: str, title: str, source: str, split: str, size: int, k: int, paper: str, differs: str) -> Benchmark:
    return Benchmark(
        name=name, title=title, source=source, split=split, size=size, prompt=TRAINING, shots=0,
        decoding={"temperature": 0.8 if k > 1 else 0.0, "k": k, "max_new_tokens": ROLLOUT},
        metric=f"avg@{k}" if k > 1 else "pass@1", grader=BOXED, paper=paper, differs=differs,
        load=partial(load_problems, name), messages=maths.training_prompt, grade=maths.grade_boxed,
    )  # fmt: skip


def _few_shot(benchmark: Benchmark) -> Benchmark:
    return replace(
        benchmark, name=f"{benchmark.name}_few_shot", title=f"{benchmark.title}, 4-shot", shots=4,
        prompt="four solved problems ending in \\boxed{}, plain text, no chat template",
        decoding=benchmark.decoding | {"max_new_tokens": 1024, "stop": [maths.STOP]},
        grader=f"as {benchmark.name}, of the text before a next question",
        differs="format-controlled baseline for base models, beside the paper's row before RL",
        messages=partial(benchmark.messages, few_shot=True), grade=partial(benchmark.grade, few_shot=True),
    )  # fmt: skip


MATH500 = replace(
    _math(
        "math500", "MATH500", "HuggingFaceH4/MATH-500 (math500/math500_ttrl.json)", "test", 500, 1,
        "lighteval pass@1; its prompt, shots and answer extraction are not stated, table 5 gives temperature 0.8",
        "training prompt and this project's grader; greedy, so that a second run gives the same score",
    ),
    messages=maths.math_messages,
)  # fmt: skip
GSM8K = replace(
    _math(
        "gsm8k", "GSM8K", "openai/gsm8k (gsm8k/test.jsonl)", "test", 1319, 1,
        "lighteval pass@1; 26.15 for Qwen3-4B-Base before RL is probably lighteval's limit of 256 tokens a completion",
        "training prompt and its 3,072 tokens; greedy; gold is the number after ####, without thousands commas",
    ),
    messages=maths.gsm8k_messages,
)  # fmt: skip

_ALL = [
    MATH500,
    GSM8K,
    _math(
        "amc", "AMC", "AI-MO/aimo-validation-amc (amc/amc83_ttrl_test.json)", "train", 83, 8,
        "avg@8 at temperature 0.8 with the grader of TTRL, which is PRM800K's",
        "training prompt; golds such as 142.0 equal 142; 14 of the 83 questions are in DAPO-14k: see overlap",
    ),
    _math(
        "aime24", "AIME 2024", "HuggingFaceH4/aime_2024 (aime/aime24_evalchemy.jsonl)", "train", 30, 32,
        "in the third version only; the number of draws is not known",
        "32 draws: with 30 questions the interval is wide at any k",
    ),
    _math(
        "aime25", "AIME 2025", "math-ai/aime25 (aime/aime25_evalchemy.jsonl)", "test", 30, 32,
        "not used", "32 draws: with 30 questions the interval is wide at any k",
    ),
    Benchmark(
        name="cruxeval", title="CRUXEval", source="cruxeval-org/cruxeval (cruxeval/cruxeval.jsonl)", split="test", size=800,
        prompt="ZeroEval: one user message that asks for JSON with reasoning and answer", shots=0,
        decoding={"temperature": 0.0, "k": 1, "max_new_tokens": 4096},
        metric="pass@1", grader="ZeroEval: equal as strings without outer quotes; nothing is executed",
        paper="ZeroEval, pass@1; two of its values are not k/800", differs="nothing known; the paper states no decoding",
        load=code.load, messages=code.zeroeval_messages, grade=code.grade_zeroeval,
    ),
    Benchmark(
        name="cruxeval_exec", title="CRUXEval, executed", source="cruxeval-org/cruxeval (cruxeval/cruxeval.jsonl)",
        split="test", size=800, prompt="official: two examples in [ANSWER] tags, plain text, no chat template", shots=2,
        decoding={"temperature": 0.2, "k": 10, "max_new_tokens": 1024, "stop": [code.STOP]},
        metric="pass@1 of 10 draws", grader="official: assert output == answer, run in the sandbox, 3 seconds",
        paper="not used", differs="a second protocol: equal values in other spellings count; top-p 1 (official 0.95)",
        load=code.load, messages=code.direct_messages, grade=code.grade_executed,
    ),
    Benchmark(
        name="livecodebench", title="LiveCodeBench", split="release_v6, May 2023 to April 2025", size=1055,
        source="livecodebench/code_generation_lite (livecodebench/test.jsonl, test2.jsonl ... test6.jsonl)",
        prompt="official chat prompt (system and user message)", shots=0,
        decoding={"temperature": 0.2, "k": 10, "max_new_tokens": 2000},
        metric="pass@1 of 10 draws",
        grader="official comparison of output or returned value, in the sandbox: 6 seconds, 1 GiB, standard library only",
        paper="official repository, pass@1; its values mix releases (k/400 beside k/1055), so its column is not comparable",
        differs="top-p 1 (official 0.95); each test in its own process, nested tuples count as lists, no numpy; 16 problems have errata (column erratum)",
        load=lcb.load, messages=lcb.messages, grade=lcb.grade,
    ),
    Benchmark(
        name="ifeval", title="IFEval", source="google/IFEval (ifeval/input_data.jsonl)", split="train", size=541,
        prompt="the instruction as one user message", shots=0,
        decoding={"temperature": 0.0, "k": 1, "max_new_tokens": 1280},
        metric="mean of prompt and instruction level, strict and loose (ifeval_scores)",
        grader="lm-evaluation-harness, ifeval 4.0", paper="lm-evaluation-harness, mean of the four measures",
        differs="chat template (the paper does not say); language detection and the harness's random letters seeded",
        load=harness.load_ifeval, messages=harness.ifeval_messages, grade=harness.grade_ifeval, harness="ifeval",
    ),
    Benchmark(
        name="mmlu_pro", title="MMLU-Pro", split="test", size=12032,
        source="TIGER-Lab/MMLU-Pro (mmlu_pro/test_12032.jsonl, mmlu_pro/validation_70.jsonl)",
        prompt="lm-evaluation-harness: five solved questions of the category, plain text, no chat template", shots=5,
        decoding={"temperature": 0.0, "k": 1, "max_new_tokens": 2048, "stop": ["Question:"]},
        metric="exact match", grader='lm-evaluation-harness, mmlu_pro 3.1: first letter after "answer is"',
        paper="lm-evaluation-harness, exact match; shots are not stated",
        differs="nothing known; the local mirror of the solved questions pads options with N/A, the Hub may not",
        load=harness.load_mmlu_pro, messages=harness.mmlu_pro_messages, grade=harness.grade_mmlu_pro, harness="mmlu_pro",
    ),
    _few_shot(MATH500),
    _few_shot(GSM8K),
]  # fmt: skip
BENCHMARKS: dict[str, Benchmark] = {benchmark.name: benchmark for benchmark in _ALL}


def find(name: str) -> Benchmark:
    """The benchmark of that name; ValueError with the names there are."""
    if name not in BENCHMARKS:
        raise ValueError(unknown("benchmark", name, [*BENCHMARKS, "lab", "paper"]))
    return BENCHMARKS[name]


def table() -> pd.DataFrame:
    """The protocol of every benchmark, one row each, in words."""
    rows = []
    for b in BENCHMARKS.values():
        d = b.decoding
        how = "greedy" if not d["temperature"] else f"temperature {d['temperature']}"
        rows.append(
            {
                "benchmark": b.title, "name": b.name, "problems": b.size, "source": b.source, "split": b.split,
                "prompt": b.prompt, "shots": b.shots,
                "decoding": f"{how}, {d['k']} draw{'s' * (d['k'] > 1)}, {d['max_new_tokens']} tokens",
                "metric": b.metric, "grader": b.grader, "paper": b.paper, "here": b.differs,
            }
        )  # fmt: skip
    return pd.DataFrame(rows).set_index("name")


def overlap(problems: datasets.Dataset, training_rows: Iterable[str]) -> set:
    """Ids of the problems whose text is in a training set, so that a score can also be given without them.

    problems: columns id and question; training_rows: the texts of all training questions (both views). Texts are equal when
    their letters and digits are (`audit.normalise`), also once DAPO's sentence on the form of the answer is removed.
    Normalisation forgets signs, and this compares no answers: it rather leaves a problem out too many.
    """
    seen = set()
    for text in training_rows:
        if text:
            seen |= {normalise(text), normalise(strip_answer_form(text))}
    seen.discard("")
    return {problem["id"] for problem in problems if normalise(problem["question"]) in seen}
