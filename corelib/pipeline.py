"""The five notebooks as one job: what to execute, in which order, and the table at the end."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from corelib import runs
from corelib.config import DATASETS, METHOD_NAMES, PROFILES, ROOT, RunConfig, load_config, unknown
from corelib.launch import Job, execute
from corelib.models import require_hub_id

STAGES = {
    "01": "01_data_preparation",
    "02": "02_reward_definitions",
    "03": "03_grpo_training",
    "04": "04_evaluation",
    "05": "05_collapse_diagnostics",
}
TYPICAL = {"01": 15.0, "02": 15.0, "03": 150.0, "04": 40.0, "05": 25.0}  # seconds in the lab, two at a time on 2 cores


@dataclass
class Plan:
    """Jobs of a pipeline, its own folder, and the training runs it holds."""

    folder: Path
    jobs: list[Job]
    configs: list[RunConfig]


def plan(
    methods: Sequence[str],
    profile: str,
    seeds: Sequence[int] = (0,),
    stages: Sequence[str] = tuple(STAGES),
    dataset: str = "",
    source: str = "",
    benchmarks: str = "",
    config: str = "",
    settings: dict | None = None,
    root: Path | None = None,
) -> Plan:
    """What `python -m corelib run` will do. Raises ValueError, naming the valid values, before anything runs."""
    methods = list(METHOD_NAMES) if list(methods) == ["all"] else list(methods)
    for what, values, valid in (
        ("method", methods, METHOD_NAMES),
        ("stage", stages, tuple(STAGES)),
        ("profile", [profile], PROFILES),
    ):
        for value in values:
            if value not in valid:
                raise ValueError(unknown(what, value, valid))
    if dataset and dataset not in DATASETS:
        raise ValueError(unknown("dataset", dataset, DATASETS))
    root = root or runs.RUNS
    if not seeds:
        raise ValueError("no seeds: give at least one whole number, e.g. --seeds 0")
    for name in ("method", "seed", "dataset", "source", "profile"):
        if name in (settings or {}):
            raise ValueError(
                f"{name} has an option of its own (methods, seeds, --dataset, --source, --profile), not --set"
            )
    methods, seeds = list(dict.fromkeys(methods)), list(dict.fromkeys(seeds))
    configs = []
    if {"03", "04", "05"} & set(stages):
        asked = {"profile": profile, "dataset": dataset, "source": source} | (settings or {})
        configs = [load_config(path=config, **asked, method=m, seed=s) for m in methods for s in seeds]
        if "04" in stages and not configs[0].test_problems:
            raise ValueError(
                f"profile {profile} names no held-out test problems, so notebook 04 has nothing to score: add --set test_problems=N, or leave out 04 with --stages 01,02,03"
            )
    data = dataset or (configs[0].dataset if configs else PROFILES[profile].get("dataset", "open-rs"))
    source = source or (configs[0].source if configs else "")
    for option, place in (("--source", source), ("--benchmarks", benchmarks)):
        if place and not Path(place).is_dir():
            raise ValueError(f"{option} {place}: there is no such folder")
    key = json.dumps([methods, profile, list(seeds), data, source, benchmarks, [c.hash6 for c in configs]])
    folder = root / f"pipeline-{hashlib.sha256(key.encode()).hexdigest()[:6]}"
    jobs = []

    def add(name, stage, parameters, needs=(), output=None, **kwargs):
        output = output or folder / f"{STAGES[stage]}.ipynb"
        jobs.append(
            Job(
                name,
                STAGES[stage],
                output,
                parameters,
                tuple(n for n in needs if any(j.name == n for j in jobs)),
                typical=TYPICAL[stage],
                **kwargs,
            )
        )

    common = {"profile": profile, "dataset": data, "source": source}
    if "01" in stages:
        add(
            "01",
            "01",
            common | {"benchmarks": benchmarks, "seed": seeds[0], "out": str(folder)},
            done=_stage_done(folder, "01"),
        )
    if "02" in stages:
        add("02", "02", {"profile": profile, "out": str(folder)}, done=_stage_done(folder, "02"))
    for run_config in configs:
        run = root / run_config.run_name
        label = _label(run_config)
        if "03" in stages:
            jobs.append(training_job(run_config, folder, root, ("01",) if "01" in stages else ()))
        if "04" in stages:
            add(
                f"04 {label}",
                "04",
                {"run": str(run)},
                (f"03 {label}",),
                run / "04_evaluation.ipynb",
                done=_evaluated(run),
            )
    if "05" in stages:
        names = ",".join(c.run_name for c in configs)
        add(
            "05",
            "05",
            {"runs": names, "root": str(root), "out": str(folder)},
            [j.name for j in jobs if j.name[:2] in ("03", "04")],
            any_need=True,
            done=_reported(folder, [root / c.run_name for c in configs]),
        )
    return Plan(folder, jobs, configs)


def _label(config: RunConfig) -> str:
    return f"{config.method}-{config.seed}-{config.hash6}"


def training_job(config: RunConfig, folder: Path, root: Path, needs: Sequence[str] = ()) -> Job:
    """Notebook 03 of one run, into the run's own folder; its configuration lies in `folder`/configs.

    Raises ValueError for a model that is neither known, nor a folder, nor spelt as a Hub id.
    """
    if config.model != "smollm2" and not Path(config.base_model).is_dir():  # that one is unpacked when it is trained
        require_hub_id(config.base_model)
    run = root / config.run_name
    parameters = {
        "profile": config.profile,
        "method": config.method,
        "seed": config.seed,
        "config": str(folder / "configs" / f"{config.run_name}.yaml"),
        "root": str(root),
    }
    return Job(
        f"03 {_label(config)}", STAGES["03"], run / "03_grpo_training.ipynb", parameters, tuple(needs),
        done=_trained(run), run=run, typical=TYPICAL["03"],
    )  # fmt: skip


def _stage_done(folder: Path, stage: str):
    return lambda: bool((runs.read_json(folder / "stages.json") or {}).get(stage))


def _reported(folder: Path, run_folders: Sequence[Path]):
    """05 is done when it is younger than every result that it shows."""

    def done() -> bool:
        report = folder / "05_collapse_diagnostics.ipynb"
        results = [r / "result.json" for r in run_folders if (r / "result.json").is_file()]
        return (
            _stage_done(folder, "05")()
            and report.is_file()
            and all(report.stat().st_mtime > r.stat().st_mtime for r in results)
        )

    return done


def _trained(run: Path):
    return lambda: runs.read_status(run).get("state") == "done" and (run / "03_grpo_training.ipynb").is_file()


def _evaluated(run: Path):
    return lambda: runs.read_json(run / "result.json") is not None and (run / "04_evaluation.ipynb").is_file()


def execute_plan(plan: Plan, workers: int = 2, say=print) -> dict[str, str]:
    """Write the configurations and execute the jobs; what did not finish is said. Returns {job: its end}."""
    for config in plan.configs:
        runs.write_text(plan.folder / "configs" / f"{config.run_name}.yaml", config.to_yaml())
    return execute(plan.jobs, workers, say)


def unfinished(state: dict[str, str], say=print) -> int:
    """Name the jobs that did not finish; the exit code, 0 when there is none."""
    broken = [name for name, s in state.items() if s in ("failed", "blocked")]
    if broken:
        say(
            f"{len(broken)} of {len(state)} jobs did not finish: {', '.join(broken)}; the same command goes on from here"
        )
    return 1 if broken else 0


def run(plan: Plan, workers: int = 2, say=print) -> int:
    """Execute a plan; returns the exit code: 0 when every job is done or was done before."""
    state = execute_plan(plan, workers, say)
    stages = runs.read_json(plan.folder / "stages.json") or {}
    stages |= {name: True for name, s in state.items() if s in ("done", "skipped")}
    runs.write_json(plan.folder / "stages.json", stages)
    table = results(plan.configs, root=plan.folder.parent)
    if len(table):
        table.to_csv(plan.folder / "table.csv", index=False)
        show(table)
    report = plan.folder / "05_collapse_diagnostics.ipynb"
    if state.get("05") in ("done", "skipped") and report.is_file():
        if state["05"] == "done" or not report.with_suffix(".html").is_file():
            subprocess.run(
                [sys.executable, "-m", "nbconvert", "--to", "html", "--log-level", "ERROR", str(report)],
                check=True,
                cwd=ROOT,
            )
        say(f"report: {report.with_suffix('.html')}")
    return unfinished(state, say)


def results(configs: Sequence[RunConfig], root: Path | None = None):
    """result.json of each run as one DataFrame, in the order of `configs`; runs without one are left out."""
    import pandas as pd

    rows = []
    for config in configs:
        result = runs.read_json((root or runs.RUNS) / config.run_name / "result.json")
        if result:
            rows.append({k: v for k, v in result.items() if k != "intervals"} | {"run": config.run_name})
    return pd.DataFrame(rows)


def show(table) -> None:
    """Print the results table."""
    from rich.console import Console
    from rich.table import Table

    out = Table(title="accuracy on held-out problems, original view; best is chosen on validation problems")
    for name in (
        "method",
        "seed",
        "base",
        "best",
        "final",
        "final reward",
        "label accuracy",
        "collapsed",
        "steps",
        "tokens",
    ):
        out.add_column(name, justify="left" if name == "method" else "right")
    for r in table.to_dict("records"):
        label = r["label_accuracy"]
        out.add_row(
            r["method"], str(r["seed"]), *(f"{100 * r[f'{k}_accuracy']:.1f} %" for k in ("base", "best", "final")), f"{r['final_reward']:.3f}",
            "-" if label is None or label != label else f"{100 * label:.1f} %", "yes" if r["collapsed"] else "no", str(r["steps"]), f"{r['tokens']:,}",
        )  # fmt: skip
    Console(width=120).print(out)
