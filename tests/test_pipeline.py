import subprocess
import sys

import pytest

from corelib import pipeline, runs
from corelib.__main__ import main
from corelib.config import DEFAULT_METHODS, METHOD_NAMES, ROOT, load_config


def test_default_plan_is_five_notebooks_with_four_trainings(tmp_path):
    plan = pipeline.plan(DEFAULT_METHODS, "lab", root=tmp_path)
    assert [j.name[:2] for j in plan.jobs].count("03") == 4 == [j.name[:2] for j in plan.jobs].count("04")
    assert {j.notebook for j in plan.jobs} == set(pipeline.STAGES.values())
    by_name = {j.name: j for j in plan.jobs}
    for job in plan.jobs:
        assert all(n in by_name for n in job.needs)
        if job.name.startswith("04"):
            assert job.needs == (job.name.replace("04", "03", 1),)
    assert len({c.run_name for c in plan.configs}) == 4 and plan.folder.parent == tmp_path
    assert len(pipeline.plan(["all"], "lab", root=tmp_path).configs) == 9 == len(METHOD_NAMES)


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["run", "--methods", "gtt"], "unknown method 'gtt': did you mean 'gt'"),
        (["run", "--profile", "labb"], "unknown profile 'labb': did you mean 'lab'"),
        (["run", "--stages", "01,06"], "unknown stage '06'"),
        (["run", "--dataset", "openrs"], "did you mean 'open-rs'"),
        (["run", "--set", "step=3"], "unknown setting 'step': did you mean 'steps'"),
        (["run", "--set", "steps"], "must be NAME=VALUE"),
        (["run", "--set", "steps="], "must be NAME=VALUE"),
        (["run", "--set", "method=gt"], "option of its own"),
        (["run", "--workers", "0", "--dry-run"], "must be at least 1"),
        (["run", "--profile", "qwen3-4b"], "no held-out test problems"),
        (["run", "--seeds", "a"], "whole numbers"),
        (["sweep", "absent.yaml"], "does not exist"),
        (["train", "--config", "absent.yaml"], "does not exist"),
        (["doctor", "--profile", "huge"], "unknown profile 'huge'"),
    ],
)
def test_mistakes_are_one_sentence_before_anything_runs(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "RUNS", tmp_path / "runs")
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_a_config_file_decides_what_the_command_line_does_not(tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text("profile: lab\nmethod: entropy\nseed: 5\n")
    assert main(["run", "--config", str(path), "--dry-run", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert "entropy-lab-lab-5-" in out and out.count("03_grpo_training.ipynb -") <= 1 and "majority_voting" not in out
    assert main(["run", "--config", str(path), "--profile", "qwen3-4b", "--dry-run"]) == 2
    assert "contradicts profile lab" in capsys.readouterr().err


def test_a_folder_that_is_not_there_is_told_before_anything_runs(tmp_path):
    for option in ("source", "benchmarks"):
        with pytest.raises(ValueError, match=f"--{option} /nowhere: there is no such folder"):
            pipeline.plan(["gt"], "lab", stages=("01",), root=tmp_path, dataset="math", **{option: "/nowhere"})


def test_other_inputs_are_another_pipeline(tmp_path):
    a, b = tmp_path / "a", tmp_path / "b"
    a.mkdir(), b.mkdir()
    folder = lambda **k: pipeline.plan(["gt"], "lab", stages=("01",), root=tmp_path, **k).folder  # noqa: E731
    assert (
        len(
            {
                folder(),
                folder(dataset="math"),
                folder(dataset="math", source=str(a)),
                folder(dataset="math", benchmarks=str(b)),
            }
        )
        == 4
    )


def test_methods_and_seeds_are_planned_once(tmp_path):
    plan = pipeline.plan(["gt", "gt"], "lab", seeds=(1, 1), root=tmp_path)
    assert len(plan.configs) == 1
    with pytest.raises(ValueError, match="no seeds"):
        pipeline.plan(["gt"], "lab", seeds=(), root=tmp_path)


def test_report_is_stale_when_a_result_is_younger(tmp_path):
    import os

    plan = pipeline.plan(["gt"], "lab", root=tmp_path)
    report, result = plan.folder / "05_collapse_diagnostics.ipynb", tmp_path / plan.configs[0].run_name / "result.json"
    job = next(j for j in plan.jobs if j.name == "05")
    runs.write_json(result, {})
    runs.write_text(report, "{}")
    runs.write_json(plan.folder / "stages.json", {"05": True})
    os.utime(result, (1, 1))
    assert job.done()
    os.utime(report, (0, 0))
    assert not job.done()


def test_dry_run_prints_every_papermill_line_and_runs_nothing(capsys, tmp_path):
    assert main(["run", "--dry-run", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert out.count("-m papermill") == 11 and "method majority_voting" in out
    assert list(tmp_path.iterdir()) == []


def test_verbs_are_the_documented_ones():
    shown = subprocess.run(
        [sys.executable, "-m", "corelib", "--help"], capture_output=True, text=True, cwd=ROOT, check=True
    ).stdout
    assert "{run,train,evaluate,publish,sweep,bench,doctor}" in shown


def test_train_verb_trains_evaluates_and_then_has_nothing_to_do(tiny, tmp_path, capsys):
    path = tmp_path / "run.yaml"
    path.write_text(tiny("gt").to_yaml())
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 0
    result = runs.read_json(tmp_path / "run" / "result.json")
    assert result["method"] == "gt" and result["steps"] == 2
    stamp = (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns
    assert main(["train", "--config", str(path), "--out", str(tmp_path / "run")]) == 0
    assert "is done" in capsys.readouterr().out
    assert (tmp_path / "run" / "final" / "model.safetensors").stat().st_mtime_ns == stamp


def test_full_scale_line_is_dry_run(capsys, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("profile: qwen3-4b\nmethod: gt\ndataset: open-rs\n")
    assert main(["train", "--config", str(path), "--dry-run"]) == 0
    out = capsys.readouterr().out
    assert "Qwen/Qwen3-4B-Base" in out and "corelib.train" in out


def test_results_table_takes_what_is_there(tmp_path, capsys):
    configs = [load_config("lab", method=m) for m in ("gt", "entropy")]
    runs.write_json(
        tmp_path / configs[0].run_name / "result.json",
        {"method": "gt", "seed": 0, "base_accuracy": 0.3, "best_accuracy": 0.9, "final_accuracy": 0.8, "final_reward": 0.8, "label_accuracy": None, "collapsed": False, "steps": 2, "tokens": 10, "seconds": 1.0, "intervals": {}},
    )  # fmt: skip
    table = pipeline.results(configs, tmp_path)
    assert table["method"].tolist() == ["gt"]
    pipeline.show(table)
    assert "80.0 %" in capsys.readouterr().out
