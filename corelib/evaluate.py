"""Score a checkpoint on benchmarks: draw each answer once, grade it, say how sure the number is and what lies beside it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from corelib import runs, sandbox, stored
from corelib.audit import write_atomically
from corelib.benchmark_base import Benchmark
from corelib.benchmark_math import grade_boxed
from corelib.config import ROOT, RunConfig, load_config
from corelib.generate import (
    BATCH_TOKENS,
    Decoding,
    Engine,
    default_engine,
    encode,
    mixed_seed,
    render,
    stop_ids,
)
from corelib.generate import (
    sample as sample,
)
from corelib.models import context_length, identify
from corelib.stats import Estimate, avg_at_k, maj_at_k, pass_at_k

KINDS = ("level", "subject", "category", "difficulty")  # columns of a problem that scores can be told apart by
EVALUATIONS = ROOT / "outputs" / "evaluations"
EXECUTE = ("livecodebench", "cruxeval_exec")  # their graders run programs that the model wrote
OWN = ("temperature", "k", "max_new_tokens")  # decoding that a benchmark names itself


@dataclass(frozen=True)
class Job:
    """One benchmark, ready to be drawn: its questions, their token ids and the decoding."""

    benchmark: Benchmark
    decoding: Decoding
    questions: list[stored.Question]
    ids: list[list[int]]
    folder: Path


def prepare(
    benchmark: Benchmark, engine: Engine, out: Path, source: str, limit: int, config: RunConfig, **given
) -> Job:
    """Load the problems, render and measure the prompts. Raises ValueError for what cannot be asked of this model.

    `limit` takes that many problems at random, the same ones always. `given`: temperature, k, max_new_tokens, seed; None
    leaves the benchmark's own. Raises RuntimeError for a benchmark that cannot be graded on this machine.
    """
    import torch

    if benchmark.name in EXECUTE and (why := sandbox.available()):
        raise RuntimeError(f"{benchmark.name}: its answers are programs that cannot be run here, because {why}")
    problems = benchmark.load(source)
    if limit:
        problems = problems.shuffle(seed=0).select(range(min(limit, len(problems))))
    problems = problems.to_list()
    decoding = Decoding(
        **{n: benchmark.decoding[n] if given[n] is None else given[n] for n in OWN},
        stop_ids=tuple(stop_ids(config, engine.tokenizer)), stop=tuple(benchmark.decoding.get("stop", ())),
        seed=given.get("seed", 0), engine=engine.kind, dtype="bfloat16" if torch.cuda.is_available() else "float32",
    )  # fmt: skip
    if benchmark.harness == "ifeval" and decoding.k > 1:
        raise ValueError(f"ifeval with k={decoding.k}: its score is that of one answer a prompt; leave --k out")
    prompts = render(engine.tokenizer, [benchmark.messages(p) for p in problems])
    ids = encode(engine.tokenizer, prompts)
    longest, room = max(map(len, ids)), context_length(engine.checkpoint)
    if longest + decoding.max_new_tokens > room:
        raise ValueError(
            f"{benchmark.name}: the longest prompt has {longest} tokens, and with max_new_tokens={decoding.max_new_tokens} that exceeds "
            f"the {room} of {engine.checkpoint.name}; give --max-new-tokens of at most {room - longest}"
            if longest < room
            else f"{benchmark.name}: the longest prompt has {longest} tokens; {engine.checkpoint.name} reads {room}"
        )
    how = asdict(decoding)
    questions = [
        stored.Question(stored.digest(engine.checkpoint.digest, how, text, str(p["id"])), text, p)
        for text, p in zip(prompts, problems, strict=True)
    ]
    return Job(benchmark, decoding, questions, ids, out / f"{benchmark.name}-{stored.digest(how, size=8)}")


def answer(job: Job, engine: Engine, regrade: bool = False, say: Callable = print, keep: bool = False):
    """All answers of a job as a DataFrame, a row a completion; only what is not stored yet is drawn.

    keep: leave the stored verdicts (scores.parquet) as they are, because they are those of more questions.
    """
    seeds = [mixed_seed(job.decoding.seed, q.key) for q in job.questions]
    table = stored.collect(
        job.folder, job.questions, engine.plan(job.ids, job.decoding),
        lambda batch: engine.draw([job.ids[i] for i in batch], [seeds[i] for i in batch], job.decoding),
        job.benchmark.grade, regrade, say, job.benchmark.name,
    )  # fmt: skip
    problems = {str(q.problem["id"]): q.problem for q in job.questions}
    for kind in KINDS:
        if kind in job.questions[0].problem:
            table[kind] = [problems[i][kind] for i in table["id"]]
    scores = table.drop(columns=["prompt", "completion"])
    if not keep:
        write_atomically(job.folder / "scores.parquet", lambda partial: scores.to_parquet(partial, index=False))
    return table


def label(job: Job) -> str:
    """What names a job's row in evaluation.json: the benchmark, and in brackets how the decoding differs from its own.

    So `math500` is always the benchmark as its protocol has it, and `math500[k=4, temperature=0.6]` a row beside it.
    """
    own = {**job.benchmark.decoding, "seed": 0}
    differs = {n: v for n in sorted((*OWN, "seed")) if (v := getattr(job.decoding, n)) != own[n]}
    return job.benchmark.name + (f"[{', '.join(f'{n}={v}' for n, v in differs.items())}]" if differs else "")


def _part(job: Job, known: dict) -> bool:
    """Whether more questions than the job's, and all of these, are scored already: its score must not replace theirs."""
    row, path = known.get("benchmarks", {}).get(label(job)), job.folder / "scores.parquet"
    if not row or row["answers"] != job.folder.name or not path.is_file():
        return False
    import pandas as pd

    return {str(q.problem["id"]) for q in job.questions} < set(pd.read_parquet(path, columns=["id"])["id"])


def score(table, benchmark: Benchmark, seen: Iterable = ()) -> dict:
    """What is reported of one benchmark: avg@k, with several draws also pass@k and maj@k, each with its interval; shares
    of truncated, unparsed and timed-out answers; the score without the questions `seen` in training.

    A truncated answer ran into the token limit, and is graded by what it boxed before; an unparsed one holds nothing to
    grade, and counts as wrong.
    """
    right = verdicts(table)
    k = len(right[0])
    estimate, detail = main_score(table, benchmark), table["detail"].fillna("").astype(str)
    row = {
        "title": benchmark.title, "metric": benchmark.metric, **asdict(estimate),
        "truncated": float((table["finish"] == "length").mean()), "unparsed": float((table["answer"].isna() | (detail == "unparsed")).mean()),
        "timeouts": float(detail.str.startswith("timeout").mean()), "tokens": float(table["tokens"].mean()),
    }  # fmt: skip
    if k > 1:
        row[f"pass@{k}"] = asdict(pass_at_k(right, k))
        if getattr(benchmark.grade, "func", benchmark.grade) is grade_boxed:
            answers = [[a if isinstance(a, str) else None for a in g] for _, g in by_question(table)["answer"]]
            row[f"maj@{k}"] = asdict(maj_at_k(answers, right, k))
    if seen := set(map(str, seen)):
        rest = table[~table["id"].isin(seen)]
        row["seen_in_training"] = int(table[table["id"].isin(seen)]["id"].nunique())
        row["without_seen"] = asdict(main_score(rest, benchmark)) if len(rest) else None
    return row


def main_score(table, benchmark: Benchmark) -> Estimate:
    """The score that is reported first: avg@k, for IFEval the mean of its four measures."""
    return mean_of_four(table["detail"]) if benchmark.harness == "ifeval" else avg_at_k(verdicts(table))


def mean_of_four(details: Iterable[str]) -> Estimate:
    """IFEval's score, the mean of prompt and instruction accuracy, strict and loose, with its error clustered by prompt."""
    return avg_at_k([[value] for value in four_by_prompt(details)])


def four_by_prompt(details: Iterable[str]) -> list[float]:
    """Each prompt's part in IFEval's score, which is their mean.

    Instruction accuracy is a ratio of two sums over prompts, linearised for its error (delta method), so a part may lie
    outside [0, 1]. `details`: those of `benchmark_harness.grade_ifeval`, one a prompt.
    """
    import numpy as np

    rows = [json.loads(detail) for detail in details]
    length = np.array([len(row["inst_strict"]) for row in rows])
    parts = [np.array([float(row[f"prompt_{how}"]) for row in rows]) for how in ("strict", "loose")]
    for how in ("strict", "loose"):
        followed = np.array([sum(row[f"inst_{how}"]) for row in rows])
        share = followed.sum() / length.sum()
        parts.append(share + (followed - share * length) / length.mean())
    return np.mean(parts, axis=0).tolist()


def by_question(table):
    """The rows of each question, in the order asked."""
    return table.groupby("id", sort=False)


def verdicts(table) -> list[list[bool]]:
    """right[i][j]: whether answer j to question i is right; what `corelib.stats` works on."""
    return [list(map(bool, g)) for _, g in by_question(table)["right"]]


def evaluate_model(
    model: str | Path,
    benchmarks: Sequence[str | Benchmark],
    out: str | Path = "",
    engine: str = "",
    source: str = "",
    limit: int = 0,
    trained_on: Sequence[str] = (),
    config: RunConfig | None = None,
    temperature: float | None = None,
    k: int | None = None,
    max_new_tokens: int | None = None,
    seed: int = 0,
    batch_tokens: int = BATCH_TOKENS,
    regrade: bool = False,
    dry_run: bool = False,
    say: Callable = print,
) -> dict:
    """Score a checkpoint; writes and returns evaluation.json of the folder `out` (default: one a model below outputs/).

    model: folder, Hub id, `id@revision` or `lab`; benchmarks: names, see `corelib.benchmarks.table`; source: folder that
    holds the problems, empty for the Hub; trained_on: training questions (`training_texts`), without which a second score
    is given; config: the run that made the model, for its stop tokens. Of several benchmarks one that this machine lacks
    something for is left out: the returned dict then has `left_out` (name -> why), which is not stored. The returned rows
    are those of this call; on disk a row of more questions stays. Raises ValueError for what cannot be asked, before the
    model is loaded, and RuntimeError for a folder that holds another model's answers or when no benchmark can be scored.
    """
    if limit < 0 or (temperature is not None and not 0 <= temperature < math.inf):
        raise ValueError(f"limit {limit}, temperature {temperature}: neither may be negative or endless; limit 0 is all problems")  # fmt: skip
    checkpoint = identify(model)
    out = Path(out) if out else EVALUATIONS / checkpoint.label
    known = stored_scores(out)
    if known.get("digest", checkpoint.digest) != checkpoint.digest:
        raise RuntimeError(
            f"{out} holds answers of {known['model']} ({known['digest']}), not of {model} ({checkpoint.digest}); use another folder"
        )
    answering = Engine(checkpoint, engine or default_engine(), batch_tokens)
    given = {"temperature": temperature, "k": k, "max_new_tokens": max_new_tokens, "seed": seed}
    chosen = [b if isinstance(b, Benchmark) else named(b) for b in benchmarks]
    jobs, left_out = [], {}
    for b in chosen:
        try:
            jobs.append(prepare(b, answering, out, source, limit, config or RunConfig(), **given))
        except RuntimeError as error:
            if len(chosen) == 1:
                raise
            left_out[b.name] = str(error)
            say(f"left out: {b.name}: {error}")  # again at the end, but hours may pass until then
    if not jobs:
        raise RuntimeError(f"nothing can be scored here: {'; '.join(left_out.values())}")
    say(
        f"{model} ({checkpoint.digest}{', commit ' + checkpoint.revision if checkpoint.revision else ''}), {answering.kind}, answers in {out}"
    )
    if dry_run:
        for job in jobs:
            _say_plan(job, answering, say)
        return known | ({"left_out": left_out} if left_out else {})
    made = {}
    for job in jobs:
        keep = _part(job, known)
        table = answer(job, answering, regrade, say, keep)
        row = score(table, job.benchmark, _seen(job, trained_on))
        row |= {"answers": job.folder.name, "decoding": asdict(job.decoding), "of": job.benchmark.size}
        row["name"], name = job.benchmark.name, label(job)
        row["title"] += name.removeprefix(job.benchmark.name).replace("[", " [")
        made[name] = row
        with stored.alone(out, say):
            known = stored_scores(out)
            known |= {
                "model": str(model),
                "path": checkpoint.path,
                "revision": checkpoint.revision,
                "digest": checkpoint.digest,
            }
            known |= {
                "versions": runs.versions(),
                "benchmarks": known.get("benchmarks", {}) | ({} if keep else {name: row}),
            }
            runs.write_json(out / "evaluation.json", known)
        say(f"{row['title']}: {Estimate(*(row[f] for f in Estimate.__dataclass_fields__))}")
    known = known | {"benchmarks": known["benchmarks"] | made}
    return known | ({"left_out": left_out} if left_out else {})


def stored_scores(out: Path) -> dict:
    """evaluation.json of a folder, {} where it has none. Raises ValueError for a file as folder, RuntimeError when damaged."""
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; --out names a folder for the model's answers")
    path = out / "evaluation.json"
    known = runs.read_json(path)
    if path.exists() and not isinstance(known, dict):
        raise RuntimeError(
            f"{path} is damaged; delete it and evaluate again: the answers beside it are not drawn again"
        )
    return known or {}


def _say_plan(job: Job, engine: Engine, say: Callable) -> None:
    there = {key for frame in stored.read(job.folder, say).values() for key in frame["key"]}
    left = [i for i, q in enumerate(job.questions) if q.key not in there]
    d = job.decoding
    say(
        f"{job.benchmark.name}: {len(job.questions)} questions x {d.k}, {len(left)} to draw in {len(engine.plan([job.ids[i] for i in left], d))} batches; "
        f"{'greedy' if not d.temperature else f'temperature {d.temperature}'}, prompts of at most {max(map(len, job.ids))} tokens, "
        f"answers of at most {d.max_new_tokens}"
    )


def training_texts(dataset: str, source: str = "") -> list[str]:
    """All questions of a training set, both views; none for the lab, whose splits share no problem."""
    if dataset == "lab":
        return []
    from corelib.data import load_pairs

    pairs, _ = load_pairs(dataset, source)
    return [*pairs["question"], *pairs["rephrased"]]


def _seen(job: Job, texts: Sequence[str]) -> set:
    """Ids of the job's questions that are among the training set's."""
    if not texts:
        return set()
    import datasets

    from corelib.benchmarks import overlap

    rows = [{"id": q.problem["id"], "question": q.problem["question"]} for q in job.questions]
    return overlap(datasets.Dataset.from_list(rows), texts)


def named(name: str) -> Benchmark:
    """A benchmark of `corelib.benchmarks`, or `lab`: the lab's held-out problems. Raises ValueError with the names there are."""
    if name == "lab":
        return held_out(load_config("lab"))
    from corelib.benchmarks import find

    return find(name)


def held_out(config: RunConfig) -> Benchmark:
    """The test problems of a run, asked as in training and graded by mathematical equivalence.

    Held out, except in test-time training (`problems_of`), whose title and name say so. The name is never that of a
    benchmark: `amc` has a protocol of its own.
    """
    title, name = f"{config.eval_dataset}, held out", f"{config.eval_dataset}_held_out"
    if config.eval_dataset == "lab":
        name = "lab"
    elif config.eval_dataset == config.dataset:
        title, name = f"{config.eval_dataset}, training questions", f"{config.eval_dataset}_training"
    return Benchmark(
        name=name, title=title, source=config.eval_dataset, split="test",
        size=config.test_problems, prompt="as in training", shots=0,
        decoding={"temperature": config.eval_temperature, "k": config.test_samples, "max_new_tokens": config.max_completion_tokens},
        metric=f"avg@{config.test_samples}", grader="last \\boxed{}, mathematical equivalence", paper="not used", differs="",
        load=lambda source: problems_of(config, "test"), messages=lambda p: prompt_of(config, p["question"]), grade=grade_boxed,
    )  # fmt: skip


def grade(texts: Sequence[Sequence[str]], answers: Sequence[str]) -> list[list[bool]]:
    """Whether each completion's last boxed answer equals the gold answer."""
    return [
        [v.right for v in grade_boxed(list(row), {"answer": gold})] for row, gold in zip(texts, answers, strict=True)
    ]


def problems_of(config: RunConfig, split: str):
    """Problems of a run: `validation` (chooses the best checkpoint) or `test` (is reported), without overlap.

    Test-time training (paper, table 9) trains on the test's own questions: both splits are then that whole set.
    """
    n = config.eval_problems if split == "validation" else config.test_problems
    if config.eval_dataset == "lab":
        from corelib import lab

        return lab.load_problems(split, n, seed=0)
    from corelib.data import load_problems

    problems = load_problems(config.eval_dataset, config.source).shuffle(seed=0)
    if config.eval_dataset == config.dataset:
        return problems.select(range(min(n, len(problems))))
    used = config.eval_problems
    picked = range(min(used, len(problems))) if split == "validation" else range(used, min(used + n, len(problems)))
    return problems.select(picked)


def prompt_of(config: RunConfig, question: str):
    """The prompt of a question as in training: plain text in the lab, system and user message elsewhere."""
    if config.dataset == "lab":
        return question
    from corelib.data import to_prompt

    return to_prompt(question)
