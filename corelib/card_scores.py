"""The scores and the curve on a model card: what a run and its evaluations have stored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from corelib import evaluate_run, plots, runs
from corelib.config import RunConfig
from corelib.data import PROBLEM_HUB
from corelib.evaluate import held_out
from corelib.models import identify
from corelib.stats import Estimate


@dataclass
class Result:
    """One benchmark: scores by checkpoint (base, best, final, checkpoint-N) and the stored row of the exported one."""

    name: str
    title: str
    metric: str
    scores: dict[str, Estimate] = field(default_factory=dict)
    row: dict | None = None


def hub_data(benchmark: str) -> str:
    """Hub id of a benchmark's problems; its own name where there is none. Takes the names of rows in evaluation.json."""
    from corelib.benchmarks import BENCHMARKS

    benchmark = benchmark.partition("[")[0].removesuffix("_held_out").removesuffix("_training")
    if benchmark in PROBLEM_HUB:
        return PROBLEM_HUB[benchmark][0]
    return BENCHMARKS[benchmark].source.split(" ")[0] if benchmark in BENCHMARKS else f"corewarding-{benchmark}"


def results(folder: Path, config: RunConfig, which: str) -> tuple[list[Result], list[str]]:
    """Scores of base, best, final and the exported checkpoint, by benchmark, and sentences about what is left out.

    From evaluation.json of each (`corelib.evaluate`), the held-out test problems also from result.json. Scores of
    weights that are no longer there are left out.
    """
    found: dict[str, Result] = {}
    notes = []
    result, test = runs.read_json(folder / "result.json"), held_out(config)
    if result:
        held = found[test.name] = Result(test.name, test.title, test.metric)
        for name, (low, high) in result["intervals"].items():
            held.scores[name] = Estimate(result[f"{name}_accuracy"], low, high, config.test_problems, config.test_samples)  # fmt: skip
    for name in dict.fromkeys((*evaluate_run.CHECKPOINTS, which)):
        if name == "base" and not (folder.parent / "base").is_dir():
            continue  # nothing is stored, and a Hub id need not be looked up
        try:
            model, out, _ = evaluate_run.checkpoint_of(folder, name.removeprefix("checkpoint-"))
            evaluation = runs.read_json(out / "evaluation.json")
            if not evaluation:
                if (out / "evaluation.json").exists():
                    notes.append(f"Stored scores of `{name}` are damaged and left out.")
                continue
            if evaluation["digest"] != identify(model).digest:
                notes.append(f"Stored scores of `{name}` belong to other weights and are left out.")
                for entry in found.values():
                    entry.scores.pop(name, None)
                continue
        except (RuntimeError, ValueError):  # a checkpoint that was deleted, or a base model that is not here
            continue
        for benchmark, row in evaluation["benchmarks"].items():
            if row["title"] == f"{config.eval_dataset}, held out":
                benchmark = test.name  # older evaluations name these problems like the benchmark
            entry = found.setdefault(benchmark, Result(benchmark, row["title"], row["metric"]))
            if (
                benchmark != test.name or name not in entry.scores
            ):  # runs share the base model's, result.json is this run's
                entry.scores[name] = Estimate(*(row[f.name] for f in fields(Estimate)))
            entry.row = row if name == which else entry.row
    return list(found.values()), notes


def table(config: RunConfig, which: str, found: Sequence[Result], notes: Sequence[str]) -> str:
    """Table of scores with 95 % intervals, how `best` was chosen, and what lies behind each number."""
    if not any(which in r.scores for r in found):
        told = "\n\n".join(notes)
        return f"This checkpoint has not been evaluated: no score of it is stored with the run.{' ' + told if told else ''}"
    columns = [c for c in dict.fromkeys((*evaluate_run.CHECKPOINTS, which)) if any(c in r.scores for r in found)]
    heads = [f"**{c}** (this)" if c == which else c for c in columns]
    lines = [
        "Right answers in percent with 95 % intervals, clustered by question.",
        "",
        "| benchmark | metric | questions x answers | " + " | ".join(heads) + " |",
        "|---|---|---|" + "---:|" * len(columns),
    ]
    for r in found:
        size = r.scores.get(which) or next(iter(r.scores.values()))
        cells = [_cell(r.scores.get(c), size) for c in columns]
        cells = [f"**{cell}**" if c == which else cell for c, cell in zip(columns, cells, strict=True)]
        lines.append(f"| {r.title} | {r.metric} | {size.problems:,} x {size.samples} | " + " | ".join(cells) + " |")
    lines += [
        "",
        f"`best` was chosen among the validations, every {config.eval_steps} steps on {config.eval_problems} validation problems of "
        f"`{config.eval_dataset}`, with their labels; `final` is where training ended.",
    ]
    remarks = []
    for r in found:
        if r.row and (told := _behind(r.row)):
            remarks.append(f"{r.title}: {told}.")
    listed = [f"- {remark}" for remark in (*remarks, *notes)]
    return "\n".join([*lines, *([""] if listed else []), *listed])


def _cell(score: Estimate | None, size: Estimate) -> str:
    """A score; with its number of questions and answers where these are not the line's."""
    if score is None:
        return "-"
    same = (score.problems, score.samples) == (size.problems, size.samples)
    text = str(score).replace(" ", "\u00a0").replace("\u00a0(", " (")  # a line may break before the interval only
    return text if same else f"{text}, on {score.problems:,} x {score.samples}"


def _behind(row: dict) -> str:
    """What a score hides: truncated and unparsed answers, a sample of the questions, questions seen in training."""
    told = [f"{100 * row[kind]:.1f} % of the answers {text}" for kind, text in (("truncated", "were cut off at the token limit"), ("unparsed", "hold no readable answer"), ("timeouts", "ran out of time when graded")) if row.get(kind)]  # fmt: skip
    if row.get("of") and row["problems"] != row["of"]:
        told.append(f"{row['problems']:,} of the benchmark's {row['of']:,} questions")
    if row.get("seen_in_training"):
        rest = row.get("without_seen")
        told.append(
            f"{row['seen_in_training']} questions are among the training questions"
            + (f", without them {Estimate(**rest)}" if rest else "")
        )
    return "; ".join(told)


def draw_curve(method: str, metrics, step: int | None, path: Path) -> None:
    """Reward, accuracy of the rollouts and validation accuracy over steps, the checkpoint marked; a PNG."""
    import matplotlib.pyplot as plt

    reward = metrics["reward"].dropna()
    first, last = reward.head(10).mean(), reward.tail(10).mean()
    title = f"{plots.name(method)}: mean reward {first:.2f} at the start, {last:.2f} at the end"
    columns = [c for c in ("reward", "gt/accuracy", "gt/validation") if c in metrics and metrics[c].notna().any()]
    if "gt/accuracy" in metrics:
        right = metrics["gt/accuracy"].dropna()
        title += f"; right answers {right.head(10).mean():.0%} and {right.tail(10).mean():.0%}"
    frame = metrics.assign(method=method)
    figure = plots.grid({method: frame}, columns, title, per_row=len(columns))
    if step is not None:
        for ax in figure.axes:
            ax.axvline(step, color="0.4", linestyle=":", linewidth=1)
    figure.set_size_inches(3.7 * len(columns), 3.1)  # a card is narrow: smaller panels keep their text readable
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
