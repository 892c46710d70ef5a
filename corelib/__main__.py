"""Command line: python -m corelib run | train | evaluate | publish | sweep | bench | doctor."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from corelib.config import DEFAULT_METHODS, METHOD_NAMES, PROFILES, load_config  # noqa: E402


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m corelib", description="Co-rewarding in notebooks, on stock TRL.", allow_abbrev=False
    )
    verbs = parser.add_subparsers(dest="verb", required=True)

    p = verbs.add_parser("run", help="notebooks 01 to 05, headless", allow_abbrev=False)
    p.add_argument(
        "--profile", default="", help=f"one of {', '.join(PROFILES)} (default: the --config file's, else lab)"
    )
    p.add_argument("--methods", default="", help=f"comma-separated, or all: {', '.join(METHOD_NAMES)}")
    p.add_argument("--seeds", default="", help="comma-separated (default: the --config file's, else 0)")
    p.add_argument("--stages", default="01,02,03,04,05", help="which notebooks")
    p.add_argument("--dataset", default="", help="open-rs, math, dapo, amc or lab (default: the profile's)")
    p.add_argument("--source", default="", help="folder that holds the data set (default: the Hub)")
    p.add_argument("--benchmarks", default="", help="folder of benchmark problems, for the overlap audit of 01")
    p.add_argument("--config", default="", help="YAML with settings beside the profile's")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, e.g. --set steps=60")
    p.add_argument("--workers", type=int, default=2, help="notebooks at a time")
    p.add_argument("--root", default="", help="where run folders go (default: outputs/runs)")
    p.add_argument("--dry-run", action="store_true", help="print the plan and each papermill line")

    p = verbs.add_parser("train", help="one training run, supervised; the same command resumes it", allow_abbrev=False)
    p.add_argument("--config", required=True, help="YAML with the run's settings")
    p.add_argument("--out", default="", help="run folder (default: outputs/runs/<run name>)")
    p.add_argument("--dry-run", action="store_true", help="print the resolved configuration and the command")
    p.add_argument("--machines", type=int, default=1, help="write the run's files and print each machine's command")

    p = verbs.add_parser("evaluate", help="score any checkpoint on benchmarks, or compare two", allow_abbrev=False)
    p.add_argument("run", nargs="?", default="", help="run folder: base, best and final on its held-out problems")
    p.add_argument(
        "--checkpoint",
        default="",
        help="only this one of the run: base, best, kept (chosen without labels), final or a step",
    )
    p.add_argument("--model", default="", help="folder, Hub id, id@revision, or lab")
    p.add_argument("--benchmarks", default="", help="comma-separated, or paper for the paper's seven, or lab")
    p.add_argument("--engine", default="", help="vllm or transformers (default: vllm where a GPU and vLLM are)")
    p.add_argument("--source", default="", help="folder that holds the problems (default: the Hub)")
    p.add_argument("--limit", type=int, default=0, help="so many problems of each, at random, always the same")
    p.add_argument("--k", type=int, help="answers a problem (default: the benchmark's)")
    p.add_argument("--temperature", type=float, help="0: greedy (default: the benchmark's)")
    p.add_argument("--max-new-tokens", type=int, help="length of an answer (default: the benchmark's)")
    p.add_argument("--batch-tokens", type=int, default=40_000, help="transformers: tokens of a batch, answers included")
    p.add_argument("--seed", type=int, default=0, help="of the draws")
    p.add_argument("--trained-on", default="", help="training set whose questions a second score leaves out")
    p.add_argument("--training-source", default="", help="its folder (default: the run's own, else --source)")
    p.add_argument("--regrade", action="store_true", help="grade stored answers again")
    p.add_argument("--out", default="", help="folder of the model's answers (default: below outputs/evaluations)")
    p.add_argument("--dry-run", action="store_true", help="print what would be drawn")
    p.add_argument("--compare", nargs=2, default=(), metavar=("A", "B"), help="two such folders, paired per question")
    p.add_argument(
        "--over-seeds", nargs="+", default=(), metavar="FOLDER", help="such folders of runs that differ by their seed: one mean, errors of seeds and of questions"
    )  # fmt: skip

    p = verbs.add_parser(
        "publish", help="export a checkpoint with its model card; upload it when asked", allow_abbrev=False
    )
    p.add_argument("run", help="folder of a finished run")
    p.add_argument("--checkpoint", default="best", help="best, kept (chosen without labels), final or checkpoint-N")
    p.add_argument("--out", required=True, help="folder to write")
    p.add_argument("--bf16", action="store_true", help="weights in bf16 (default: fp32, as trained)")
    p.add_argument("--keep-adapters", action="store_true", help="LoRA: do not merge the adapters into the base model")
    p.add_argument("--audit", default="", help="audit.json of notebook 01 (default: the run's own, if it has one)")
    p.add_argument("--license", default="", help="license of the weights (default: mit; Llama: its own)")
    p.add_argument("--push", default="", metavar="USER/NAME", help="upload to this private repository on the Hub")
    p.add_argument("--dry-run", action="store_true", help="print what would be written, and the card")

    p = verbs.add_parser(
        "sweep",
        help="a queue of training runs and one table (default: the nine methods on five seeds, under 90 minutes on 2 cores)",
        allow_abbrev=False,
    )
    p.add_argument("file", nargs="?", default="", help="YAML with profile, methods, seeds, settings (default: the lab's questions)")  # fmt: skip
    p.add_argument(
        "--only", default="", help="comma-separated questions to the lab, e.g. near_copy,kl (corelib/sweep.py has them)"
    )
    p.add_argument("--full", action="store_true", help="all questions to the lab: hours; stop and go on at will")
    p.add_argument("--out", default="", help="folder for tables and figure (default: the sweep's own)")
    p.add_argument("--root", default="", help="folder for run folders (default outputs/runs)")
    p.add_argument("--workers", type=int, default=2, help="runs at a time, one core each")
    p.add_argument("--dry-run", action="store_true", help="print what would run")

    p = verbs.add_parser("bench", help="speed and accuracy beside what one would otherwise use", allow_abbrev=False)
    p.add_argument("what", choices=["trainer", "answers", "evaluate", "gpu"])
    p.add_argument("--data", default="", help="bench answers, evaluate: folder with real answers")
    p.add_argument("--steps", type=int, default=15, help="bench trainer: timed steps of each trainer")
    p.add_argument("--size", default="", help="bench gpu: full, small or tiny (default: full on a GPU that holds it)")
    p.add_argument("--sections", default="", help="bench gpu: comma-separated (default: all)")
    p.add_argument("--seconds", type=float, default=420.0, help="bench gpu: budget of the timed rounds")
    p.add_argument("--out", default="", help="bench evaluate, gpu: JSON file")
    p.add_argument("--figure", default="", help="bench gpu: PNG file")

    p = verbs.add_parser("doctor", help="versions, devices, and what each profile lacks here", allow_abbrev=False)
    p.add_argument("--profile", default="", help="only this profile")
    p.add_argument("--gpus", default="", metavar="COUNTxGIB", help="plan its memory for such GPUs, e.g. 4x80")
    p.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", help="one setting, e.g. --set method=gt")
    p.add_argument("--measure", action="store_true", help="two steps on the longest prompts; peak memory and plan")

    args = parser.parse_args(argv)
    try:
        return VERBS[args.verb](args)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130


def _split(text: str) -> list[str]:
    return [part.strip() for part in text.split(",") if part.strip()]


def _settings(pairs: list[str]) -> dict:
    import yaml

    settings = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not value:
            raise ValueError(f"--set {pair!r} must be NAME=VALUE, e.g. --set steps=60")
        settings[name] = yaml.safe_load(value)
    return settings


def run(args) -> int:
    import signal

    from corelib import pipeline

    file = load_config(path=args.config).to_dict() if args.config else {}
    if file and args.profile and args.profile != file["profile"]:
        raise ValueError(
            f"--profile {args.profile} contradicts profile {file['profile']} of {args.config}; give one of them"
        )
    methods = _split(args.methods) or ([file["method"]] if file else DEFAULT_METHODS)
    seeds = _split(args.seeds) or [str(file.get("seed", 0))]
    if not all(s.isdigit() for s in seeds):
        raise ValueError(f"--seeds {args.seeds!r} must be comma-separated whole numbers, e.g. 0,1,2")
    source, benchmarks = (str(Path(p).absolute()) if p else "" for p in (args.source, args.benchmarks))
    plan = pipeline.plan(
        methods, args.profile or file.get("profile", "lab"), [int(s) for s in seeds], _split(args.stages), args.dataset, source,
        benchmarks, args.config, _settings(args.set), Path(args.root).absolute() if args.root else None,
    )  # fmt: skip
    return _execute(plan, args, signal, pipeline.run)


def sweep(args) -> int:
    import signal

    from corelib import sweep

    if sum(map(bool, (args.file, args.only, args.full))) > 1:
        raise ValueError("give a sweep file, --only, or --full: each names what is run")
    root = Path(args.root).absolute() if args.root else None
    names = list(sweep.QUESTIONS) if args.full else _split(args.only) or sweep.DEFAULT
    questions = sweep.read(args.file) if args.file else sweep.asked(names)
    whole = sweep.plan(questions, root)
    if args.dry_run:
        print(sweep.outline(questions, whole, args.workers))
        return 0
    return _execute(whole, args, signal, lambda plan, workers: sweep.run(questions, workers, args.out, root))  # fmt: skip


def _execute(plan, args, signal, go) -> int:
    import shlex

    if args.workers < 1:
        raise ValueError(f"--workers {args.workers} must be at least 1")

    if args.dry_run:
        print(f"{len(plan.jobs)} notebooks, {args.workers} at a time, into {plan.folder}")
        for job in plan.jobs:
            print(
                f"\n# {job.name}{' (done, will be skipped)' if job.done() else ''}{' after ' + ', '.join(job.needs) if job.needs else ''}"
            )
            print(shlex.join(job.command))
        return 0

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    return go(plan, args.workers)


def train(args) -> int:
    from corelib import evaluate_run, launch, runs

    config = load_config(path=args.config)
    folder = Path(args.out).absolute() if args.out else runs.run_folder(config)
    if args.dry_run or args.machines > 1:
        files = launch.prepare(config, args.machines)
        for name, text in files.items():
            comment = f"# {folder / name}:\n{text}".replace("\n", "\n# ")  # the output is a config file again
            print(text if name == "config.yaml" else comment)
            if not args.dry_run:
                runs.write_text(folder / name, text)
        print("\n".join(f"# {line}" for line in launch.train_lines(config, folder, args.machines)))
        return 0
    launch.train(config, folder)
    if config.test_problems and runs.read_json(folder / "result.json") is None:
        evaluate_run.evaluate_run(folder)
    print(f"run folder: {folder}")
    return 0


def evaluate(args) -> int:
    import json

    from corelib import evaluate_run, report
    from corelib.evaluate import evaluate_model
    from corelib.models import identify

    if (args.compare or args.over_seeds) and (args.run or args.model or args.benchmarks):
        raise ValueError("--compare and --over-seeds read folders that hold answers; they take no run, --model or --benchmarks")  # fmt: skip
    if args.compare and args.over_seeds:
        raise ValueError("--compare pairs two models, --over-seeds takes the runs of one; give one of them")
    if args.over_seeds:
        if len(args.over_seeds) < 2:
            raise ValueError("--over-seeds needs at least two folders")
        report.show_seeds(report.over_seeds(args.over_seeds), len(args.over_seeds))
        return 0
    if args.compare:
        report.show_comparison(report.compare(*args.compare), *args.compare)
        return 0
    if bool(args.run) == bool(args.model):
        raise ValueError("name a run folder, or a model with --model: one of the two")
    if args.run and not (args.checkpoint or args.benchmarks):
        unset = dict.fromkeys(("source", "trained_on", "training_source", "out"), "") | {"limit": 0, "seed": 0}
        unset |= dict.fromkeys(("k", "temperature", "max_new_tokens"))
        if given := [f"--{name.replace('_', '-')}" for name, none in unset.items() if getattr(args, name) != none]:
            raise ValueError(
                f"{', '.join(given)}: a run's held-out problems are asked as its config says; name --benchmarks to choose otherwise"
            )
        result = evaluate_run.evaluate_run(
            args.run, engine=args.engine, dry_run=args.dry_run, regrade=args.regrade, batch_tokens=args.batch_tokens
        )
        if result:
            print(json.dumps(result, indent=1))
        return 0
    names, config, out = report.chosen(args.benchmarks), None, args.out
    model = args.model
    if args.run:
        model, own, config = evaluate_run.checkpoint_of(args.run, args.checkpoint or "best")
        out = out or own
    identify(model)  # a misspelt model is told before anything else
    texts = report.training_questions(model, config, args.trained_on, args.training_source, args.source)
    evaluation = evaluate_model(
        model, names, out, args.engine, args.source, args.limit, texts, config, args.temperature, args.k,
        args.max_new_tokens, args.seed, args.batch_tokens, args.regrade, args.dry_run,
    )  # fmt: skip
    if not args.dry_run:
        report.show(evaluation, None if args.checkpoint == "base" else config)
    for name, why in evaluation.get("left_out", {}).items():
        print(f"left out: {name}: {why}", file=sys.stderr)
    return 1 if evaluation.get("left_out") else 0


def publish(args) -> int:
    from corelib import card, publish

    out = Path(args.out).expanduser().absolute()
    name = args.push or out.name
    if args.dry_run:
        source, subject = publish.describe(
            args.run, args.checkpoint, not args.keep_adapters, args.bf16, name, args.license
        )
        print("\n".join(publish.plan(source, subject, out, args.push)), card.render(subject, args.audit), sep="\n\n")
        return 0
    if args.push:
        publish.require_login(args.push)  # before an export that takes minutes
    folder = publish.export(
        args.run, out, args.checkpoint, not args.keep_adapters, args.bf16, name, args.audit, args.license
    )
    print(f"exported to {folder}")
    if args.push:
        print(f"uploaded to {publish.push(folder, args.push)}")
    return 0


def bench(args) -> int:
    if args.what == "answers":
        from corelib import bench_answers

        bench_answers.main(args.data or None)
    elif args.what == "evaluate":
        from corelib import bench_evaluate

        bench_evaluate.main(args.data, args.out)
    elif args.what == "gpu":
        from corelib import bench_gpu

        bench_gpu.run(args.size, _split(args.sections), args.out, args.figure, args.seconds)
    else:
        from corelib import bench

        bench.trainer(args.steps)
    return 0


def doctor(args) -> int:
    from corelib import doctor

    return doctor.report(args.profile, args.gpus, _settings(args.set), args.measure)


VERBS = {
    "run": run,
    "train": train,
    "evaluate": evaluate,
    "publish": publish,
    "sweep": sweep,
    "bench": bench,
    "doctor": doctor,
}

if __name__ == "__main__":
    sys.exit(main())
