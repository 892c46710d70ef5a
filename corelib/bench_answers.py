"""`python -m corelib bench answers`: the grader beside what a user would otherwise use, measured in one run.

Needs the labelled pairs, hostile answers and real completions of the survey, which are no part of the repository.
"""

from __future__ import annotations

import json
import os
import re
import select
import signal
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from corelib import _answer_decide as _decide
from corelib.answer_study import equivalence_report
from corelib.answers import equivalent, extract, hendrycks_equal, vote
from corelib.grader import Grader

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"

# Labels of the core pairs that contradict a convention of `corelib.answers`; both counts are printed.
CONTRADICTED = {
    "p0127": "tolerance: 0.33 is not 1/3",
    "p0133": "tolerance: 2.6667 is not 8/3",
    "p0156": "brackets: (1,3) is not 1,3 (the label reads {1,3} as TeX grouping, then as a tuple)",
    "p0182": "several boxes: the last",
    "p0378": "exact: 2^(1/2^1000) is not 1",
    "p0408": "exact: 4/6 is 2/3 (the label wants lowest terms)",
}

Judge = Callable[[str, str], bool]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def _is_formula(text: str) -> bool:
    return bool(re.search(r"\$|\\boxed|\\\(|\\\[", text))


def _wrapped(text: str) -> str:
    return text if _is_formula(text) else f"${text}$"


def _math_verify() -> Judge:
    from math_verify import parse, verify

    return lambda gold, answer: verify(parse(_wrapped(gold)), parse(_wrapped(answer)))


def _trl() -> Judge:
    from trl.rewards import accuracy_reward

    def judge(gold: str, answer: str) -> bool:
        # it reads only formulas: a bare answer is boxed for it, the gold is given raw, as its users do
        return (
            accuracy_reward([[{"content": answer if _is_formula(answer) else rf"\boxed{{{answer}}}"}]], [gold])[0]
            == 1.0
        )

    return judge


def _boxed(judge: Judge) -> Judge:
    return lambda gold, answer: judge(extract(gold) or gold.strip(" $"), extract(answer) or answer.strip(" $"))


def judges() -> dict[str, Judge]:
    """The graders compared; all get the same two texts."""
    return {
        "exact string": _boxed(lambda gold, answer: gold == answer),
        "Hendrycks": _boxed(hendrycks_equal),
        "TRL accuracy_reward": _trl(),
        "math-verify, wrapped": _math_verify(),
        "corelib": equivalent,
    }


def _killable(judge: Judge, seconds: float = 10.0) -> Judge:
    """The judge in a forked child: math-verify's own alarm can get lost inside of sympy, and then it works for minutes."""

    def judged(gold: str, answer: str) -> bool:
        out, back = os.pipe()
        pid = os.fork()
        if pid == 0:
            try:
                os.write(back, b"1" if judge(gold, answer) else b"0")
            finally:
                os._exit(0)
        os.close(back)
        if not select.select([out], [], [], seconds)[0]:
            os.kill(pid, signal.SIGKILL)
        verdict = os.read(out, 1)
        os.close(out)
        os.waitpid(pid, 0)
        return verdict == b"1"

    return judged


def pair_scores(pairs: list[dict], judge: Judge) -> dict:
    """Accuracy, false positives and false negatives on core pairs, and the ids of the wrong ones."""
    wrong = [(p["id"], p["equivalent"]) for p in pairs if bool(judge(p["gold"], p["answer"])) != p["equivalent"]]
    return {
        "accuracy": 1 - len(wrong) / len(pairs),
        "false_positives": sum(not label for _, label in wrong),
        "false_negatives": sum(label for _, label in wrong),
        "wrong": [name for name, _ in wrong],
    }


def _rate(judge: Judge, golds: list[str], answers: list[str], cold: bool = True) -> tuple[float, int]:
    """(answers a second, accepted); the best of up to five passes within a second, each from empty caches if cold."""
    rates: list[float] = []
    begun = time.perf_counter()
    while len(rates) < 5 and (not rates or time.perf_counter() - begun < 1):
        if cold:
            _decide.forget()
        started = time.perf_counter()
        accepted = sum(bool(judge(gold, answer)) for gold, answer in zip(golds, answers, strict=True))
        rates.append(len(answers) / (time.perf_counter() - started))
    return max(rates), accepted


def gold_forms(gold: str) -> dict[str, str]:
    """Forms of a gold answer that say the same: boxed, in dollars, respaced, other fractions and brackets."""
    command = r"\\[a-zA-Z]+(?![a-zA-Z])|\\.|[-+=*/^_{}(),\[\]<>]"
    forms = {
        "boxed": rf"\boxed{{{gold}}}",
        "sentence": rf"The answer is $\boxed{{{gold}}}$.",
        "respaced": re.sub(command, lambda m: m[0] if re.match(r"\\[,;:! ]", m[0]) else f" {m[0]} ", gold),
        "double spaces": gold.replace(" ", "  "),
        "dfrac": re.sub(r"\\[dt]?frac(?![a-z])", r"\\dfrac", gold),
        "frac": re.sub(r"\\[dtc]frac(?![a-z])", r"\\frac", gold),
        "no left": re.sub(r"\\(?:left|right)(?![a-z])\s*(?!\.)", "", gold),
    }
    if "$" not in gold:
        forms["dollars"] = f"${gold}$"
    if gold.count("(") == gold.count(")") and not re.search(r"[\[\]]|\\left|\\[()]", gold):
        forms["left"] = gold.replace("(", r"\left(").replace(")", r"\right)")
    return forms


def golds(data: Path) -> dict[str, list[str]]:
    """Gold answers of every set at hand, by set."""
    import pandas as pd

    sets = {}
    for name in ("math/train_original", "math/test", "dapo/train_original", "open-rs/train_original"):
        table = pd.read_parquet(data / "corew_train" / f"{name}.parquet")
        sets[name.replace("_original", "")] = [str(row["ground_truth"]) for row in table["reward_model"]]
    sets["math500"] = [row["answer"] for row in _lines(data / "math500/math500_evalchemy.jsonl")]
    for part in ("train", "test"):
        rows = _lines(data / f"gsm8k/{part}.jsonl")
        sets[f"gsm8k/{part}"] = [row["answer"].split("####")[-1].strip() for row in rows]
    sets["amc"] = [str(row["answer"]) for row in json.loads((data / "amc/amc83_ttrl_test.json").read_text())]
    for year in ("24", "25"):
        rows = _lines(data / f"aime/aime{year}_evalchemy.jsonl")
        sets[f"aime{year}"] = [str(row.get("answer") or row.get("expected_answer")) for row in rows]
    return sets


def _gold_check(data: Path) -> dict:
    sets = golds(data)
    distinct = {gold: name for name, values in sets.items() for gold in values}
    failed = [
        (name, form, gold)
        for gold, name in distinct.items()
        for form, text in gold_forms(gold).items()
        if not equivalent(gold, text)
    ]
    return {
        "sets": {name: len(values) for name, values in sets.items()},
        "distinct": len(distinct),
        "not_equal": failed,
    }


def _hostile(data: Path, texts: list[str], references: list[str]) -> dict:
    cases = _lines(data / "equivalence/hostile.jsonl")
    seconds = {}
    for case in cases:
        _decide.forget()
        started = time.perf_counter()
        equivalent(case["gold"], case["answer"])
        seconds[case["id"]] = time.perf_counter() - started
    slowest = sorted(seconds, key=seconds.get, reverse=True)
    normal = [(references[i % len(texts)], texts[i % len(texts)]) for i in range(1024)]
    by_name = {case["id"]: (case["gold"], case["answer"]) for case in cases}
    batches = {"normal": normal, "ten": list(normal), "slowest": list(normal)}
    for i in range(10):
        batches["ten"][100 * i] = by_name[cases[len(cases) * i // 10]["id"]]
        batches["slowest"][100 * i] = by_name[slowest[i]]
    times: dict[str, list[float]] = {name: [] for name in batches}
    with Grader(workers=1) as grader:
        for _ in range(7):
            for name, batch in batches.items():
                _decide.forget()
                started = time.perf_counter()
                grader.equal(*zip(*batch, strict=True))
                times[name].append(time.perf_counter() - started)
        timeouts = grader.timeouts
    seconds_of = {name: statistics.median(values) for name, values in times.items()}
    return {
        "cases": len(cases),
        "slowest_s": seconds[slowest[0]],
        "slowest": slowest[0],
        "batch_ratio": seconds_of["ten"] / seconds_of["normal"],
        "batch_ratio_slowest": seconds_of["slowest"] / seconds_of["normal"],
        "batch_s": seconds_of["ten"],
        "timeouts": timeouts,
    }


def main(shared_data: str | None = None) -> dict:
    """Prints the tables of the comparison and returns their numbers; {} and a line when the data is not there."""
    console = Console()
    data = Path(shared_data) if shared_data else DATA
    if not (data / "equivalence/pairs.jsonl").exists():
        console.print(f"no labelled pairs in {data}: give their folder with --data")
        return {}
    results: dict = {}
    completions = _lines(data / "completions/qwen25math_math_cot_50x8.jsonl")
    texts = [text for row in completions for text in row["code"]]
    references = [row["gt"] for row in completions for _ in row["code"]]
    served = json.loads((data / "math500/math500_gpt_answers_rasbt.json").read_text())
    gold500, answer500 = [row["answer"] for row in served], [row["prediction"] for row in served]
    pairs = [p for p in _lines(data / "equivalence/pairs.jsonl") if p["kind"] == "equivalence" and not p["convention"]]

    table = Table(
        "grader", "accuracy", "FP", "FN", "completions/s", "MATH500/s", title=f"{len(pairs)} core pairs; one core"
    )
    results["graders"] = {}
    for name, judge in judges().items():
        row: dict = {}
        row["completions_per_s"], row["completions_accepted"] = _rate(judge, references, texts)
        if name == "corelib":
            row["completions_warm_per_s"] = _rate(judge, references, texts, cold=False)[0]
        row["math500_per_s"], row["math500_accepted"] = _rate(judge, gold500, answer500)
        if name == "corelib":
            row["math500_warm_per_s"] = _rate(judge, gold500, answer500, cold=False)[0]
        row |= pair_scores(pairs, judge if name == "corelib" else _killable(judge))
        results["graders"][name] = row
        table.add_row(
            name,
            f"{row['accuracy']:.3f}",
            str(row["false_positives"]),
            str(row["false_negatives"]),
            f"{row['completions_per_s']:,.0f}",
            f"{row['math500_per_s']:,.0f}",
        )
    console.print(table)
    ours = results["graders"]["corelib"]
    console.print(
        f"corelib, answers seen before: {ours['completions_warm_per_s']:,.0f} completions/s,"
        f" {ours['math500_warm_per_s']:,.0f} MATH500/s"
    )
    for name in ours["wrong"]:
        console.print(f"  {name}: {CONTRADICTED.get(name, 'wrong')}")
    results["wrong_not_by_convention"] = [name for name in ours["wrong"] if name not in CONTRADICTED]

    _decide.forget()
    started = time.perf_counter()
    for row in completions:
        vote([extract(text) for text in row["code"]])
    results["vote_50x8_s"] = time.perf_counter() - started
    results["hostile"] = _hostile(data, texts, references)
    results["golds"] = _gold_check(data)
    study = equivalence_report(data / "completions/qwen25math_math_cot_50x8.jsonl")
    results["study"] = study.to_dict(orient="index")

    table = Table("measure", "value", "to reach", title="speed and safety")
    hostile, checked = results["hostile"], results["golds"]
    table.add_row("vote over 50 x 8, cold", f"{results['vote_50x8_s']:.3f} s", "0.2 s")
    table.add_row(f"slowest of {hostile['cases']} hostile", f"{hostile['slowest_s'] * 1e3:.1f} ms", "1 s")
    table.add_row("1,024 with 10 hostile / without", f"{hostile['batch_ratio']:.2f}", "1.5")
    table.add_row("the same with the 10 slowest", f"{hostile['batch_ratio_slowest']:.2f}", "")
    table.add_row(f"forms of {checked['distinct']} golds not equal", str(len(checked["not_equal"])), "0, or listed")
    console.print(table)
    for name, form, gold in checked["not_equal"]:
        console.print(f"  {name}, {form}: {gold!r}", markup=False)

    table = Table(
        "measure", "released", "equivalent", "difference [95%]", title="vote over 50 x 8: what equivalence buys"
    )
    for measure, row in results["study"].items():
        interval = f"{row['difference']:+.4f} [{row['low']:+.4f}, {row['high']:+.4f}]"
        table.add_row(measure, f"{row['released']:.4f}", f"{row['equivalent']:.4f}", interval)
    console.print(table)
    return results


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
