"""Sweeps: a question to the lab is a grid of runs; the queue executes them, two tables hold what came out.

`QUESTIONS` are this project's own, asked on seeds on which nothing was tuned. A sweep file asks another one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from corelib import pipeline, runs
from corelib.alarm import SIGNALS
from corelib.alarm_study import fate, smooth_accuracy
from corelib.config import BOOKKEEPING, DEFAULT_METHODS, METHOD_NAMES, RunConfig, load_config, unknown
from corelib.plots_diagnostics import Missing
from corelib.plots_sweep import collapse_figure
from corelib.probe import with_probe

REPORT = [10, 11, 12, 13, 14]  # seeds of every figure that is reported; the lab was tuned on seeds 0 to 4
FEW = [10, 11]
MAIN = list(DEFAULT_METHODS)

# name -> what is asked, and its grids: `methods` x `seeds` x every combination of `settings`
QUESTIONS: dict[str, dict] = {
    "nine": {
        "asks": "Which of the nine methods collapse?",
        "grids": [{"methods": list(METHOD_NAMES), "seeds": REPORT}],
    },
    "views": {
        "asks": "Is it the label from the other view, or the other view's data?",
        "grids": [{"methods": ["majority_voting"], "seeds": REPORT, "settings": {"views": ["rephrased", "both"]}}],
    },
    "near_copy": {
        "asks": "Are rewordings that are near copies why Co-rewarding-I fails?",
        "grids": [
            {
                "methods": ["co_rewarding_i", "co_rewarding_iii"],
                "seeds": REPORT,
                "settings": {"rewording": ["near_copy"]},
            }
        ],
    },
    "learning_rate": {
        "asks": "In which window of learning rates do the methods part?",
        "grids": [
            {
                "methods": [*MAIN, "random"],
                "seeds": FEW,
                "settings": {"learning_rate": [1e-4, 1.75e-4, 3.5e-4]},
            }
        ],
    },
    "base": {
        "asks": "Does another base model show the same?",
        "grids": [{"methods": MAIN, "seeds": REPORT[:3], "settings": {"model": ["lab2"]}}],
    },
    "teacher": {
        "asks": "How slow must the teacher of Co-rewarding-II be?",
        "grids": [
            {"methods": ["co_rewarding_ii"], "seeds": FEW, "settings": {"teacher_start": [0.002, 0.1, 0.5, 1.0]}}
        ],
    },
    "horizon": {
        "asks": "Does what is stable in 150 steps stay so in 300?",
        "grids": [
            {"methods": ["co_rewarding_i"], "seeds": FEW, "settings": {"steps": [300]}},
            {  # 0.01 x 330/300: the same drift of the teacher
                "methods": ["co_rewarding_ii"],
                "seeds": FEW,
                "settings": {"steps": [300], "teacher_start": [0.011]},
            },
        ],
    },
    "wrong_rewrites": {
        "asks": "How many wrong rewrites do I and III bear?",
        "grids": [
            {
                "methods": ["co_rewarding_i", "co_rewarding_iii"],
                "seeds": FEW,
                "settings": {"wrong_rewrites": [0.1, 0.2, 0.3]},
            }
        ],
    },
    "group": {
        "asks": "Does a larger group, at equal rollouts a step, delay the collapse?",
        "grids": [
            {
                "methods": ["majority_voting", "co_rewarding_i"],
                "seeds": FEW,
                "settings": {"rollouts": [rollouts], "prompts_per_step": [128 // rollouts]},
            }
            for rollouts in (4, 16)
        ],
    },
    "kl": {
        "asks": "Does a KL penalty prevent the collapse?",
        "grids": [
            {
                "methods": ["majority_voting", "co_rewarding_i"],
                "seeds": FEW,
                "settings": {"beta": [0.005, 0.05]},
            }
        ],
    },
    "equality": {
        "asks": "Does the released string equality change a vote in the lab?",
        "grids": [{"methods": ["majority_voting"], "seeds": [10], "settings": {"answer_equality": ["released"]}}],
    },
}
DEFAULT = ("nine",)

SETTINGS = (
    "views", "rewording", "learning_rate", "model", "teacher_start", "steps", "wrong_rewrites", "rollouts", "beta", "answer_equality",
)  # fmt: skip
COLUMNS = (
    *SIGNALS, "reward", "answers/support", "length/mean", "length/clipped", "views/agreement", "answers/distinct_batch", "label/support", "label/missing", "label/top_share", "reward/std", "reward/zero_std",
    "teacher/distance", "kl", "grad_norm", "gt/accuracy", "gt/accuracy_rephrased", "gt/label_accuracy",
    "gt/policy_label_accuracy", "gt/teacher_label_accuracy", "gt/validation",
)  # fmt: skip


def read(path: str | Path) -> dict[str, list[RunConfig]]:
    """A sweep file as {its name: configurations}: YAML with `profile`, `methods`, `seeds`, and `settings`, a mapping of
    setting: list of values to cross. Raises ValueError for a missing file, unknown keys, settings or values.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise ValueError(f"sweep file {path} does not exist; it is YAML with profile, methods, seeds, settings")
    try:
        spec = yaml.safe_load(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"sweep file {path} is not YAML: {error}") from None
    if not isinstance(spec, dict):
        raise ValueError(f"sweep file {path} holds a {type(spec).__name__}; it must be a mapping of key: value")
    return {path.stem: grid(spec)}


def asked(names: Sequence[str]) -> dict[str, list[RunConfig]]:
    """{question: configurations} of `QUESTIONS`. Raises ValueError for a name that is not one."""
    for name in names:
        if name not in QUESTIONS:
            raise ValueError(unknown("question", name, QUESTIONS))
    return {name: [config for part in QUESTIONS[name]["grids"] for config in grid(part)] for name in names}


def grid(spec: Mapping) -> list[RunConfig]:
    """Every combination of methods, seeds and settings. Raises ValueError, naming the valid ones, for what is unknown, and
    for a run that is asked for twice.

    >>> [c.learning_rate for c in grid({"methods": ["gt"], "settings": {"learning_rate": [1e-4, 2e-4]}})]
    [0.0001, 0.0002]
    """
    for key in spec:
        if key not in ("profile", "methods", "seeds", "settings"):
            raise ValueError(unknown("key of a sweep file", key, ("profile", "methods", "seeds", "settings")))
    profile, settings = spec.get("profile", "lab"), spec.get("settings") or {}
    if not isinstance(profile, str):
        raise ValueError(f"profile: {profile!r} must be the name of one profile, e.g. lab")
    if not isinstance(settings, Mapping):
        raise ValueError(f"settings: {settings!r} must be a mapping of setting: list of values")
    methods, seeds = spec.get("methods", ["all"]), spec.get("seeds", [0])
    for key, values in {"methods": methods, "seeds": seeds, **settings}.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{key}: {values!r} must be a list of at least one value, e.g. [{values or 1!r}]")
        if key in ("profile", "method", "seed"):
            raise ValueError(f"settings: {key} does not belong here; name it above as profile, methods or seeds")
    known = [f.name for f in fields(RunConfig)]
    for key in settings:
        if key not in known:
            raise ValueError(unknown("setting", key, known))
    configs = [
        load_config(profile, method=method, seed=seed, **dict(zip(settings, values, strict=True)))
        for values in itertools.product(*settings.values())
        for method in (METHOD_NAMES if methods == ["all"] else methods)
        for seed in seeds
    ]
    name, times = Counter(config.run_name for config in configs).most_common(1)[0]
    if times > 1:
        unnamed = [key for key in settings if key in BOOKKEEPING and len(settings[key]) > 1]
        remedy = f"give {', '.join(unnamed)} one value, for no run's name holds it" if unnamed else "give each method, seed and value once"  # fmt: skip
        raise ValueError(f"this sweep asks for the run {name} {times} times; {remedy}")
    return configs


def plan(questions: Mapping[str, Sequence[RunConfig]], root: Path | None = None) -> pipeline.Plan:
    """Notebook 03 once for every run of the questions; one seed of everything comes before two of anything."""
    root = root or runs.RUNS
    configs = sorted({c.run_name: c for part in questions.values() for c in part}.values(), key=lambda c: c.seed)
    digest = hashlib.sha256(json.dumps([c.run_name for c in configs]).encode()).hexdigest()[:6]
    folder = root / f"sweep-{digest}"
    return pipeline.Plan(folder, [pipeline.training_job(c, folder, root) for c in configs], configs)


def outline(questions: Mapping[str, Sequence[RunConfig]], whole: pipeline.Plan, workers: int) -> str:
    """A dry run: each question with its runs and those that are done, the time the rest may take, and one run's line.

    Raises ValueError for fewer than one worker.
    """
    if workers < 1:
        raise ValueError(f"--workers {workers} must be at least 1")
    jobs = {config.run_name: job for config, job in zip(whole.configs, whole.jobs, strict=True)}
    done = {name: job.done() for name, job in jobs.items()}
    lines = [f"{len(done)} runs of notebook 03, {workers} at a time, into {whole.folder.parent}"]
    for name, configs in questions.items():
        names = [config.run_name for config in configs]
        asks = f" ({QUESTIONS[name]['asks']})" if name in QUESTIONS else ""
        lines.append(f"  {name}{asks}: {len(names)} runs, {sum(done[n] for n in names)} done")
    left = [job for name, job in jobs.items() if not done[name]]
    if left:
        minutes = len(left) * pipeline.TYPICAL["03"] / workers / 60
        lines.append(f"{len(left)} are left: about {minutes:.0f} min at the lab's usual length. The first of them:")
        lines.append(shlex.join(left[0].command))
    return "\n".join(lines)


def run(questions: Mapping[str, Sequence[RunConfig]], workers: int = 2, out: str | Path = "", root: Path | None = None, say=print) -> int:  # fmt: skip
    """Execute what is not done, then write tables and figure, also when stopped; returns 0 when every run is done.

    out: folder for them; default the sweep's own below `root`. Raises ValueError, before any run, when it cannot be written.
    """
    whole = plan(questions, root)
    folder = Path(out or whole.folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"no tables can be written to {folder} ({error.strerror}); name another folder with --out") from None  # fmt: skip
    if not os.access(folder, os.W_OK):
        raise ValueError(f"no tables can be written to {folder}; name another folder with --out")
    try:
        state = pipeline.execute_plan(whole, workers, say)
    finally:  # also of a sweep that is stopped on its way: hours of runs are worth a table
        table, metrics = gather(questions, root)
        if len(table):
            written = write(table, metrics, folder, rollouts(questions, root))
            show(table)
            say(f"written to {folder}: {', '.join(written)}")
    return pipeline.unfinished(state, say)


def gather(questions: Mapping[str, Sequence[RunConfig]], root: Path | None = None) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The finished runs of the questions: a row a run and question, and the runs' metrics, a row a step.

    A finished run whose metrics cannot be judged is named and left out.
    """
    root, judged, metrics = root or runs.RUNS, {}, []
    configs = {config.run_name: config for part in questions.values() for config in part}
    names = varied(list(configs.values()))
    for name, config in configs.items():
        folder = root / name
        if runs.read_status(folder).get("state") != "done":
            continue
        try:
            measured = metrics_of(folder)
            long = measured.reindex(columns=["step", *COLUMNS]).astype(dict.fromkeys(COLUMNS, float)).assign(run=name)
            judged[name] = describe(config, measured, names)
        except (LookupError, TypeError, ValueError) as error:  # one run must not cost all others their table
            print(f"{name} is left out, its metrics cannot be judged ({type(error).__name__}: {error}); delete {folder} to run it again")  # fmt: skip
            continue
        metrics.append(long)
    rows = [{"question": q} | judged[c.run_name] for q, part in questions.items() for c in part if c.run_name in judged]
    return pd.DataFrame(rows), pd.concat(metrics, ignore_index=True) if metrics else pd.DataFrame()


def metrics_of(folder: Path) -> pd.DataFrame:
    """A run's metrics; where validation did not log the probe's columns yet, they are made from its stored votes."""
    metrics, votes = runs.load_metrics(folder), runs.read_json(folder / "probe.json")
    return with_probe(metrics, votes) if votes and "probe/settled" not in metrics else metrics


def varied(configs: Sequence[RunConfig]) -> list[str]:
    """`SETTINGS`, and every other setting in which these runs differ: what a sweep file crosses is told apart."""
    rows = [config.to_dict() for config in configs]
    others = [f.name for f in fields(RunConfig) if f.name not in (*SETTINGS, "method", "seed")]
    return [*SETTINGS, *(name for name in others if any(row[name] != rows[0][name] for row in rows))]


def settings_of(columns) -> list[str]:
    """Which of these columns of sweep.csv are settings."""
    return [f.name for f in fields(RunConfig) if f.name in columns and f.name not in ("method", "seed")]


def describe(config: RunConfig, metrics: pd.DataFrame, names: Sequence[str] = SETTINGS) -> dict:
    """One run in a row: these settings of it, and its `corelib.alarm_study.fate`."""
    settings = {name: getattr(config, name) for name in names}
    return {"run": config.run_name, "method": config.method, "seed": config.seed} | settings | fate(metrics)


def rollouts(
    questions: Mapping[str, Sequence[RunConfig]], root: Path | None = None, seed: int = REPORT[0]
) -> pd.DataFrame:
    """Stored rollouts of one seed of the nine methods for a case study: the first stored step, the one nearest to the
    peak, the last; columns of `corelib.runs.load_completions` and `method`. Empty where none of these runs is done and
    knows its accuracy.
    """
    root, parts = root or runs.RUNS, []
    for config in questions.get("nine", ()):
        folder = root / config.run_name
        if config.seed != seed or runs.read_status(folder).get("state") != "done":
            continue
        try:
            stored, accuracy = runs.load_completions(folder), smooth_accuracy(runs.load_metrics(folder)).dropna()
        except (LookupError, TypeError, ValueError):  # no labels, so no peak; a broken run is named by `gather`
            continue
        if accuracy.empty or not len(stored):  # a sweep file named nine may ask for less than ten steps
            continue
        there, peak = sorted(set(stored["step"])), accuracy.idxmax()
        steps = {there[0], min(there, key=lambda step: abs(step - peak)), there[-1]}
        parts.append(stored[stored["step"].isin(steps)].assign(method=config.method))
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame()


def write(table: pd.DataFrame, metrics: pd.DataFrame, folder: Path, stored: pd.DataFrame | None = None) -> list[str]:
    """sweep.csv, sweep.parquet and, where there are any, the stored rollouts and the figure of the nine methods.

    Returns the names of the files written. Metrics are float32 rounded to four digits, so that hundreds of runs stay below 2 MB.
    """
    folder.mkdir(parents=True, exist_ok=True)
    measured = {c: 4 for c in table.columns.difference(settings_of(table)) if table[c].dtype.kind == "f"}
    table.round(measured).to_csv(folder / "sweep.csv", index=False)
    small = metrics.astype({c: "float32" for c in COLUMNS} | {"step": "int16", "run": "category"}).round(4)
    small.to_parquet(folder / "sweep.parquet", index=False, compression="zstd")
    written = ["sweep.csv", "sweep.parquet"]
    if stored is not None and len(stored):
        stored.to_parquet(folder / "sweep_rollouts.parquet", index=False, compression="zstd")
        written.append("sweep_rollouts.parquet")
    if set(MAIN) & set(table.loc[table["question"] == "nine", "method"]):
        try:
            figure = collapse_figure(table, metrics)
        except Missing as reason:  # trained without labels
            print(reason)
            return written
        figure.savefig(folder / "collapse.png", dpi=150)
        plt.close(figure)
        written.append("collapse.png")
    return written


def by_setting(table: pd.DataFrame) -> pd.DataFrame:
    """Seeds together: one row a question, method and settings; means over seeds, and how many of the `known` collapsed."""
    told = table.astype({"collapsed": float})  # nan where no label says so
    groups = told.groupby(["question", "method", *settings_of(table)], sort=False, dropna=False)
    return groups.agg(
        seeds=("seed", "size"), peak=("peak", "mean"), final=("final", "mean"), low=("final", "min"), high=("final", "max"),
        reward=("reward", "mean"), collapsed=("collapsed", "sum"), known=("collapsed", "count"), alarmed=("alarm", "count"),
    ).reset_index()  # fmt: skip


def changed(row: Mapping) -> str:
    """What a row of settings changes of the lab's profile: "learning_rate=0.0001", "" for nothing."""
    usual = load_config("lab", method=row["method"])
    return ", ".join(f"{name}={row[name]}" for name in settings_of(row) if row[name] != getattr(usual, name))


def show(table: pd.DataFrame) -> None:
    """Print the table, seeds together."""
    from rich.console import Console
    from rich.table import Table

    out = Table(title="accuracy of rollouts (mean of ten steps), mean over seeds; lowest and highest final")
    for name in ("question", "method", "changed", "seeds", "peak", "final", "reward", "collapsed", "alarms"):
        out.add_column(name, justify="left" if name in ("question", "method", "changed") else "right")
    for r in by_setting(table).to_dict("records"):
        final = f"{_percent(r['final'])} ({100 * r['low']:.0f} to {100 * r['high']:.0f})" if r["known"] else "-"
        out.add_row(
            r["question"], r["method"], changed(r), str(r["seeds"]), _percent(r["peak"]), final,
            "-" if r["reward"] != r["reward"] else f"{r['reward']:.3f}",
            f"{r['collapsed']:.0f} of {r['known']}" if r["known"] else "-", f"{r['alarmed']} of {r['seeds']}",
        )  # fmt: skip
    Console(width=140).print(out)


def _percent(share: float) -> str:
    return "-" if share != share else f"{100 * share:.0f} %"
