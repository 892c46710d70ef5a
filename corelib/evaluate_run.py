"""Score the checkpoints of a training run: base, best, final, or that of a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from corelib import runs
from corelib.alarm import keep
from corelib.config import RunConfig, load_config
from corelib.evaluate import evaluate_model, held_out, stored_scores
from corelib.generate import default_engine
from corelib.models import identify

CHECKPOINTS = ("base", "best", "final")


def checkpoint_of(folder: str | Path, which: str) -> tuple[str, Path, RunConfig]:
    """Model and evaluation folder of a run's checkpoint, and the run's configuration.

    which: base, best (by labelled validation), kept (by the alarm, without labels), final or a step. The base model's
    answers lie beside the runs, once for all of them. Raises RuntimeError for what is not a run or a checkpoint that is
    not there.
    """
    folder = Path(folder)
    manifest = runs.read_json(folder / "manifest.json")
    if manifest is None:
        raise RuntimeError(
            f"{folder} is not a run folder (no manifest.json); train it first, or name one below {runs.RUNS}"
        )
    config = load_config(**manifest["config"])
    if which == "base":
        checkpoint = identify(config.base_model)
        return config.base_model, folder.parent / "base" / checkpoint.label, config
    path = folder / (which if which in ("best", "kept", "final") else f"checkpoint-{which}")
    if not path.is_dir():
        there = [p.name.removeprefix("checkpoint-") for p in sorted(folder.iterdir()) if (p / "config.json").is_file() or (p / "adapter_config.json").is_file()]  # fmt: skip
        why = f" ({_not_kept(folder)})" if which == "kept" else ""
        raise RuntimeError(
            f"{folder.name} has no checkpoint {which}{why}; there are base, {', '.join(there) or 'no others'}"
        )
    return str(path), folder / "evaluation" / path.name, config


def _not_kept(folder: Path) -> str:
    named = keep(runs.load_metrics(folder))
    if named is None:
        return "no validation was made, so nothing could be chosen"
    if not named:
        return "no validation before the alarm agreed with the others as well as the base model's"
    return f"step {named} would be it, and its weights are gone: the run is older than kept/, or was resumed before it"


def evaluate_checkpoints(
    folder: str | Path, benchmarks: Sequence, which: Sequence[str] = CHECKPOINTS, **options
) -> dict[str, dict]:
    """Score checkpoints of a run on benchmarks; `options` are those of `evaluate_model`. Returns an evaluation of each."""
    made = {}
    for name in which:
        model, out, config = checkpoint_of(folder, name)
        known = stored_scores(out)
        if name != "base" and known and known["digest"] != identify(model).digest and not options.get("dry_run"):
            (out / "evaluation.json").unlink()  # the folder was trained anew: these are scores of the old weights
        made[name] = evaluate_model(model, benchmarks, out, config=config, **options)
    return made


def evaluate_run(folder: str | Path, say: Callable = print, engine: str = "", dry_run: bool = False, **options) -> dict:
    """Score base, best and final checkpoint of a finished run on its held-out test problems; write result.json.

    engine: default transformers where the run used it, else vllm where a GPU and vLLM are. dry_run says what would be
    drawn, writes nothing and returns {}. `options` are those of `evaluate_model`. Raises RuntimeError when the run is not done or names no test problems.
    """
    folder = Path(folder)
    status = runs.read_status(folder)
    if status.get("state") != "done":
        raise RuntimeError(f"{folder} is {status.get('state', 'not a run')}; train it first (the same command resumes)")
    config = checkpoint_of(folder, "base")[2]
    if not config.test_problems:
        raise RuntimeError(
            f"{folder.name} names no held-out test problems: set test_problems (and eval_dataset) before training"
        )
    test = held_out(config)
    engine = engine or ("transformers" if config.engine == "transformers" else default_engine())
    made = evaluate_checkpoints(folder, [test], engine=engine, dry_run=dry_run, say=say, **options)
    if dry_run:
        return {}
    scores = {which: evaluation["benchmarks"][test.name] for which, evaluation in made.items()}
    metrics = runs.load_metrics(folder)
    last = metrics.tail(10)
    has_labels = "gt/label_accuracy" in metrics
    result = {
        "method": config.method,
        "model": config.model,
        "dataset": config.dataset,
        "seed": config.seed,
        "base_accuracy": scores["base"]["mean"],
        "best_accuracy": scores["best"]["mean"],
        "final_accuracy": scores["final"]["mean"],
        "intervals": {which: [row["low"], row["high"]] for which, row in scores.items()},
        "final_reward": float(last["reward"].mean()),
        "label_accuracy": float(last["gt/label_accuracy"].mean()) if has_labels else None,
        "collapsed": bool(scores["final"]["mean"] < 0.5 * scores["best"]["mean"]),
        "best_step": status.get("best_step"),
        "steps": status["step"],
        "tokens": status["tokens"],
        "seconds": status["seconds"],
    }
    runs.write_json(folder / "result.json", result)
    return result
