"""What lies beside a score: the paper's number, another model's answers to the same questions, other seeds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from corelib import paper, stored
from corelib.config import RunConfig
from corelib.evaluate import four_by_prompt, stored_scores, training_texts, verdicts
from corelib.stats import Estimate, SeedsAndQuestions, holm, mcnemar, paired_difference, seeds_and_questions

FIELDS = tuple(Estimate.__dataclass_fields__)


def read_evaluation(out: str | Path) -> dict:
    """evaluation.json of a folder that `evaluate_model` wrote; RuntimeError where there is none or it is damaged."""
    evaluation = stored_scores(Path(out))
    if not evaluation:
        raise RuntimeError(f"{out} holds no evaluation.json; evaluate a model into it first")
    return evaluation


def load_answers(out: str | Path, benchmark: str, texts: bool = True) -> pd.DataFrame:
    """Stored answers of one benchmark, a row a completion, in the order asked; without `texts` verdicts and lengths only.

    Raises RuntimeError where they are not there.
    """
    rows = read_evaluation(out)["benchmarks"]
    if benchmark not in rows:
        raise RuntimeError(f"{out} has no answers to {benchmark}; there are {', '.join(rows)}")
    folder = Path(out) / rows[benchmark]["answers"]
    if not (folder / "scores.parquet").is_file():
        raise RuntimeError(
            f"{folder} holds no scores.parquet; evaluate {benchmark} again, which draws no stored answer twice"
        )
    scores = pd.read_parquet(folder / "scores.parquet")
    if not texts:
        return scores
    shards = pd.concat(stored.read(folder).values())[["key", "sample", "prompt", "completion"]]
    return scores.merge(shards.drop_duplicates(["key", "sample"]), "left", ["key", "sample"])


def table(evaluations: dict[str, dict]) -> pd.DataFrame:
    """Scores of evaluations (name -> evaluation.json), a model and benchmark a line; shares in [0, 1].

    Estimate and interval, pass@k and maj@k, the score without questions seen in training, and the shares of answers that
    were truncated, unparsed or timed out.
    """
    rows = []
    for name, evaluation in evaluations.items():
        for benchmark, row in evaluation["benchmarks"].items():
            row = {k: v["mean"] if isinstance(v, dict) and "mean" in v else v for k, v in row.items()}
            rows.append({"model": name, "benchmark": benchmark} | row)
    return (
        pd.DataFrame(rows)
        .drop(columns=["answers", "decoding", "title", "name"], errors="ignore")
        .set_index(["model", "benchmark"])
    )


def intervals_figure(scores: pd.DataFrame, title: str, colours: Sequence[str] = ("0.55", "#0072B2", "#D55E00")):
    """Every score of `table` with its 95 % interval: a row a benchmark and model, a colour a model."""
    import matplotlib.pyplot as plt

    models = list(dict.fromkeys(scores.index.get_level_values("model")))
    figure, ax = plt.subplots(figsize=(7, 1.2 + 0.45 * len(scores)))
    ordered = scores.sort_index(level="benchmark", sort_remaining=False)
    for y, ((model, _), row) in enumerate(ordered.iterrows()):
        colour = colours[models.index(model) % len(colours)]
        ax.hlines(y, 100 * row["low"], 100 * row["high"], color=colour, linewidth=3)
        ax.plot(100 * row["mean"], y, "o", color=colour)
    ax.set_yticks(range(len(ordered)), [f"{benchmark}: {model}" for model, benchmark in ordered.index])
    ax.set(xlabel="right answers, % (bar: 95 % interval, clustered by question)", xlim=(0, 100), title=title)
    ax.set_ylim(len(ordered) - 0.5, -0.5)
    ax.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    return figure


def paper_row(model: str, config: RunConfig | None = None) -> tuple[str, str, str] | None:
    """(trained_on, backbone, method) of the paper's row for a model: a run's own, a released checkpoint (also a copy of
    it in a folder of the same name), or a base model (`before_rl`); None where the paper has none.

    >>> paper_row("TMLR-Group-HF/GT-Qwen3-4B-Base-OpenRS"), paper_row("Qwen/Qwen3-4B-Base")
    (('open-rs', 'Qwen3-4B-Base', 'gt'), ('open-rs', 'Qwen3-4B-Base', 'before_rl'))
    """
    results = paper.load_paper_results()
    name = Path(model.partition("@")[0]).name
    released = {Path(c).name: c for c in paper.RELEASED_CHECKPOINTS}
    if config is not None:
        asked = (config.dataset, Path(config.model).name, config.method)
    elif name in released:
        method, backbone, trained_on = paper.RELEASED_CHECKPOINTS[released[name]]
        asked = (trained_on, backbone, method)
    else:
        there = results[(results.backbone == name) & (results.method == "before_rl")]
        asked = (next((t for t in ("open-rs", *there.trained_on) if t in set(there.trained_on)), ""), name, "before_rl")
    main = results[results["table"].isin(paper.MAIN_TABLES)]
    rows = main[(main.trained_on == asked[0]) & (main.backbone == asked[1]) & (main.method == asked[2])]
    return asked if len(rows) else None


def trained_on(model: str, config: RunConfig | None = None) -> str:
    """The training set behind a run's or a released checkpoint; "" where it is not known or there is none.

    >>> trained_on("TMLR-Group-HF/GT-Qwen3-4B-Base-OpenRS"), trained_on("Qwen/Qwen3-4B-Base")
    ('open-rs', '')
    """
    if config is not None:
        return config.dataset
    asked = paper_row(model)
    return asked[0] if asked and asked[2] != "before_rl" else ""


def training_questions(
    model: str, config: RunConfig | None = None, dataset: str = "", folder: str = "", source: str = ""
) -> Sequence[str]:
    """Questions of the training set behind a model, for `evaluate_model`; none where the set is not known or not here.

    dataset: names the set (then ValueError where it is missing); folder: holds it, default the run's own, else `source`.
    """
    seen = dataset or trained_on(model, config)
    try:
        return training_texts(seen, folder or (config.source if config else source)) if seen else ()
    except ValueError as error:
        if dataset:
            raise
        print(f"no score without the training questions: {error}")
        return ()


def chosen(names: str) -> list[str]:
    """Benchmarks named with commas; `paper` stands for the paper's seven. Raises ValueError for none."""
    out = []
    for name in filter(None, (part.strip() for part in names.split(","))):
        out += paper.BENCHMARKS if name == "paper" else [name]
    if not out:
        raise ValueError("no benchmarks: give --benchmarks, e.g. math500,gsm8k, or paper for the paper's seven, or lab")
    return list(dict.fromkeys(out))


def beside_paper(evaluation: dict, config: RunConfig | None = None) -> pd.DataFrame | None:
    """Our scores next to the paper's row for the same model (`paper.beside`), a benchmark a line, in percent; None where
    the paper has none. A few-shot variant stands beside the paper's number for the benchmark.
    """
    asked = paper_row(evaluation["model"], config)
    if asked is None or not evaluation["benchmarks"]:
        return None
    names = list(evaluation["benchmarks"])
    ours = pd.DataFrame(
        {"benchmark": row.get("name", name).removesuffix("_few_shot"), **{f: row[f] for f in FIELDS}}
        for name, row in evaluation["benchmarks"].items()
    )
    return paper.beside(ours, *asked).assign(benchmark=names)


def compare(a: str | Path, b: str | Path) -> pd.DataFrame:
    """Model a minus model b on the questions that both have answered, a benchmark a line; shares in [0, 1].

    a and b are means over the questions that both have; IFEval's are those of `four_by_prompt`, the rest shares of right
    answers. Paired per question: difference with 95 % interval, p of a sign-flip permutation test (with one answer a question also
    the exact McNemar test on `only_a`, `only_b`), and p after Holm over the benchmarks. `note` names what differs between
    the two besides the model: decoding, or questions that only one has answered. Raises RuntimeError where the folders
    share no benchmark.
    """
    first, second = read_evaluation(a)["benchmarks"], read_evaluation(b)["benchmarks"]
    plain = {row.get("name", name): name for name, row in reversed(second.items())}
    names = {n: n if n in second else plain.get(row.get("name", n)) for n, row in first.items()}
    names = {left: right for left, right in names.items() if right}
    if not names:
        raise RuntimeError(f"{a} ({', '.join(first)}) and {b} ({', '.join(second)}) share no benchmark")
    rows = []
    for name, other in names.items():
        left, right = load_answers(a, name, texts=False), load_answers(b, other, texts=False)
        both = sorted(set(left["id"]) & set(right["id"]))
        if not both:
            raise RuntimeError(f"{name}: the two models answered no question in common")
        left_both, right_both = (f[f["id"].isin(both)].sort_values(["id", "sample"]) for f in (left, right))
        four = first[name].get("name", name) == "ifeval"
        if four:
            x, y = ([[part] for part in four_by_prompt(f["detail"])] for f in (left_both, right_both))
        else:
            x, y = verdicts(left_both), verdicts(right_both)
        d = paired_difference(x, y)
        notes = [f"{key} differs" for key in decoded_differently(first[name], second[other])]
        if only := left["id"].nunique() + right["id"].nunique() - 2 * len(both):
            notes.append(f"{only} questions of one model only")
        means = {which: sum(sum(r) / len(r) for r in rows) / len(rows) for which, rows in (("a", x), ("b", y))}
        row = {"benchmark": name} | means | d._asdict()
        if len(x[0]) == len(y[0]) == 1 and not four:
            exact = mcnemar([r[0] for r in x], [r[0] for r in y])
            row |= {"only_a": exact.only_a, "only_b": exact.only_b, "p_mcnemar": exact.p}
        rows.append(row | {"note": "; ".join(notes)})
    adjusted = holm({row["benchmark"]: row["p"] for row in rows})
    frame = pd.DataFrame(rows).rename(columns={"mean": "difference"})
    frame.insert(frame.columns.get_loc("p") + 1, "p_holm", [adjusted[n] for n in frame["benchmark"]])
    return frame.set_index("benchmark")


def decoded_differently(one: dict, other: dict) -> dict[str, tuple]:
    """{setting of decoding: both values} where two benchmark rows of evaluation.json differ."""
    theirs = other.get("decoding", {})
    return {k: (v, theirs.get(k)) for k, v in one.get("decoding", {}).items() if v != theirs.get(k)}


def over_seeds(folders: Sequence[str | Path]) -> dict[str, SeedsAndQuestions]:
    """Evaluations of runs that differ by their seed: one mean a benchmark, its error split into seeds and questions.

    Raises RuntimeError where the folders share no benchmark, ValueError where they share fewer than two questions of one
    or one was drawn with other settings of decoding: that difference would be taken for the seeds'.
    """
    rows = [read_evaluation(folder)["benchmarks"] for folder in folders]
    if not (names := sorted(set.intersection(*map(set, rows)))):
        raise RuntimeError(f"{', '.join(map(str, folders))} share no benchmark")
    made = {}
    for name in names:
        for folder, row in zip(folders, rows, strict=True):
            differs = decoded_differently(rows[0][name], row[name])
            differs.pop("seed", None)  # of which there must be several
            if differs:
                said = ", ".join(f"{key} {one} and {other}" for key, (one, other) in differs.items())
                raise ValueError(f"{name} was drawn differently in {folders[0]} and {folder} ({said}); evaluate them alike")  # fmt: skip
        tables = [load_answers(f, name, texts=False).groupby("id")["right"].mean() for f in folders]
        made[name] = seeds_and_questions(pd.concat(tables, axis=1, join="inner").T.to_numpy())
    return made


def show_seeds(made: dict[str, SeedsAndQuestions], seeds: int) -> None:
    """Print means over seeds, with the interval for each of the three questions one may ask."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    out = Table(title=f"mean of {seeds} runs, 95 % intervals")
    for name in ("benchmark", "mean", "these runs, other questions", "other seeds, these questions", "other seeds, other questions", "sd of seeds", "sd of questions"):  # fmt: skip
        out.add_column(name, justify="left" if name == "benchmark" else "right")
    for name, s in made.items():
        intervals = [f"{100 * e.low:.1f} to {100 * e.high:.1f}" for e in (s.same_seeds, s.same_questions, s.both)]
        out.add_row(escape(name), f"{100 * s.mean:.1f} %", *intervals, f"{100 * s.seed_sd:.1f}", f"{100 * s.question_sd:.1f}")  # fmt: skip
    Console(width=170).print(out)


def show(evaluation: dict, config: RunConfig | None = None) -> None:
    """Print the scores, what could not be graded, and the paper's numbers beside them with what is wrong with those."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    near = beside_paper(evaluation, config)
    near = {} if near is None else near.set_index("benchmark").to_dict("index")
    out = Table(title=f"{escape(evaluation['model'])} ({evaluation['digest']}), 95 % intervals")
    for name in ("benchmark", "score", "draws", "truncated", "unparsed", "timeouts", "without seen", "paper", "ours - paper", "verdict"):  # fmt: skip
        out.add_column(name, justify="left" if name in ("benchmark", "verdict") else "right")
    notes = []
    for name, row in evaluation["benchmarks"].items():
        there, rest = near.get(name, {}), row.get("without_seen")
        known = there and there["verdict"] != "not in the paper"
        out.add_row(
            escape(row["title"]), str(Estimate(*(row[f] for f in FIELDS))), f"{row['problems']} x {row['samples']}",
            *(f"{100 * row[c]:.1f} %" for c in ("truncated", "unparsed", "timeouts")),
            f"{100 * rest['mean']:.1f} % (-{row['seen_in_training']})" if rest else "-",
            f"{there['paper']:.2f}" if known else "-",
            f"{there['difference']:+.1f} ({there['difference_low']:+.1f} to {there['difference_high']:+.1f})" if known else "-",
            there.get("verdict", "-"),
        )  # fmt: skip
        k = row["samples"]
        if k > 1:
            others = [m for m in (f"pass@{k}", f"maj@{k}") if m in row]
            notes.append(f"{row['title']}: " + ", ".join(f"{m} {Estimate(**row[m])}" for m in others))
        if row["problems"] != row["of"]:
            notes.append(f"{row['title']}: {row['problems']} of {row['of']} problems")
        if there.get("note"):
            notes.append(f"{row['title']}: {there['note']}")
        if known and "release_v1" in there["flag"]:
            notes.append(
                f"{row['title']}: the printed value is k/400, a share of release_v1's problems, not of release_v6's 1,055"
            )
    console = Console(width=170)
    console.print(out)
    for note in notes:
        console.print(note, markup=False)


def show_comparison(frame: pd.DataFrame, a: str, b: str) -> None:
    """Print a paired comparison, in points."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    out = Table(
        title=f"a = {escape(str(a))}, b = {escape(str(b))}; paired per question, 95 % intervals, p by sign flips, Holm over benchmarks"
    )
    for name in ("benchmark", "a", "b", "a - b", "p", "p (Holm)", "questions", "note"):
        out.add_column(name, justify="left" if name in ("benchmark", "note") else "right")
    for name, r in frame.iterrows():
        out.add_row(
            escape(str(name)), f"{100 * r.a:.1f} %", f"{100 * r.b:.1f} %",
            f"{100 * r.difference:+.1f} ({100 * r.low:+.1f} to {100 * r.high:+.1f})", f"{r.p:.4f}", f"{r.p_holm:.4f}",
            str(r.problems), r.note,
        )  # fmt: skip
    Console(width=170).print(out)
