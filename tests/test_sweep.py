"""Sweeps: what a question runs, and what its tables say."""

import pandas as pd
import pytest

from corelib import runs, sweep
from corelib.__main__ import main
from corelib.config import load_config


def test_a_file_crosses_methods_seeds_and_settings(tmp_path):
    path = tmp_path / "rate.yaml"
    path.write_text(
        "profile: lab\nmethods: [gt, majority_voting]\nseeds: [0, 1]\nsettings:\n  learning_rate: [1e-4, 2.5e-4]\n  steps: [20]\n"
    )
    questions = sweep.read(path)
    plan = sweep.plan(questions, tmp_path)
    assert list(questions) == ["rate"] and len(plan.configs) == 8 == len({c.run_name for c in plan.configs})
    assert {c.learning_rate for c in plan.configs} == {1e-4, 2.5e-4} and {c.steps for c in plan.configs} == {20}
    assert len(plan.jobs) == 8 and all(str(plan.folder) in job.parameters["config"] for job in plan.jobs)
    for text, word in (
        ("methods: [gt]\nlearning_rates: [1]\n", "unknown key of a sweep file 'learning_rates'"),
        ("methods: [gt]\nsettings:\n  learning_rate: 1e-4\n", "must be a list"),
        ("methods: [gtt]\n", "did you mean 'gt'"),
        ("- gt\n", "must be a mapping"),
        ("seeds: 3\n", "seeds: 3 must be a list"),
        ("methods: gt\n", "methods: 'gt' must be a list"),
        ("methods:\n", "methods: None must be a list"),
        ("settings:\n  learning_rate: []\n", "at least one value"),
        ("settings: [1]\n", "must be a mapping of setting"),
        ("settings:\n  seed: [1]\n", "name it above"),
        ("methods: [gt\n", "not YAML"),
        ("profile: [lab]\n", "profile: \\['lab'\\] must be the name of one profile"),
        ("settings:\n  1: [2]\n", "unknown setting 1: valid are"),
        ("settings:\n  path: [x]\n", "unknown setting 'path'"),
        ("methods: [gt]\nseeds: [0, 0]\n", "gt-lab-lab-0-\\w+ 2 times; give each method, seed and value once"),
        ("methods: [gt]\nsettings:\n  report_to: [none, tensorboard]\n", "2 times; give report_to one value"),
        ("settings:\n  model: [nope]\n", "model 'nope' is neither a folder here nor a Hub id"),
    ):
        path.write_text(text)
        with pytest.raises(ValueError, match=word):
            sweep.plan(sweep.read(path), tmp_path)
    path.write_bytes("methods: [gté]\n".encode("latin-1"))
    with pytest.raises(ValueError, match=f"{path} is not YAML"):
        sweep.read(path)


def test_the_projects_own_questions_share_their_runs():
    questions = sweep.asked(list(sweep.QUESTIONS))
    assert {c.method for c in questions["nine"]} == set(sweep.METHOD_NAMES) and len(questions["nine"]) == 45
    assert all(c.seed >= 10 for part in questions.values() for c in part)  # tuned on 0 to 4
    names = [c.run_name for part in questions.values() for c in part]
    assert len(names) == len(set(names))
    # what a question varies is the only thing that differs from the runs it is compared with
    usual = {c.method: c.to_dict() for c in questions["nine"]}
    for config in questions["near_copy"]:
        differs = {k for k, v in config.to_dict().items() if usual[config.method][k] != v}
        assert differs <= {"rewording", "seed"}
    assert {c.prompts_per_step * c.rollouts for c in questions["group"]} == {128}
    with pytest.raises(ValueError, match="did you mean 'near_copy'"):
        sweep.asked(["near_copies"])


def test_tables_of_finished_runs(tmp_path, capsys):
    """Accuracy .8 for 40 steps, then .1: peak .8, final .1, collapsed at the first mean of ten below .4."""
    config = load_config("lab", method="majority_voting", seed=10)
    folder = tmp_path / config.run_name
    folder.mkdir()
    for step in range(1, 61):
        accuracy = 0.8 if step <= 40 else 0.1
        runs.append_metrics(folder, {"step": step, "reward": 0.01 * step, "answers/support": 0.5, "answers/none": 0.0, "gt/accuracy": accuracy, "gt/validation": accuracy, "gt/label_accuracy": 0.25, "tokens": 100 * step})  # fmt: skip
    questions = {"nine": [config, load_config("lab", method="gt", seed=10)]}
    runs.write_status(folder, "running")
    assert len(sweep.gather(questions, tmp_path)[0]) == 0
    runs.write_status(folder, "done")
    table, metrics = sweep.gather(questions, tmp_path)
    (row,) = table.to_dict("records")
    assert row["peak"] == pytest.approx(0.8) and row["final"] == pytest.approx(0.1) == row["held_out"]
    assert row["collapse"] == 46  # means: 45 -> .45, 46 -> .38
    assert row["reward"] == pytest.approx(0.555) and row["tokens"] == 6000 and row["label_accuracy"] == 0.25
    assert sweep.write(table, metrics, tmp_path / "out") == ["sweep.csv", "sweep.parquet", "collapse.png"]
    assert (tmp_path / "out" / "collapse.png").is_file()
    again = pd.read_parquet(tmp_path / "out" / "sweep.parquet")
    assert len(again) == 60 and again["gt/accuracy"].iloc[-1] == pytest.approx(0.1, abs=1e-4)
    stored = pd.read_csv(tmp_path / "out" / "sweep.csv")
    assert stored["collapse"].tolist() == [46] and stored["learning_rate"].tolist() == [2.5e-4]  # settings unrounded
    short = metrics[metrics["step"] <= 4].assign(**{"gt/validation": 0.3, "tokens": 1})
    assert sweep.describe(config, short)["peak_step"] == 4  # shorter than ten steps: one mean of all
    sweep.show(table)
    assert "1 of 1" in capsys.readouterr().out
    assert sweep.changed(row) == "" and sweep.changed(row | {"learning_rate": 1e-4}) == "learning_rate=0.0001"


def finished(root, accuracies, columns=("reward", "answers/none", "gt/accuracy"), **settings):
    config = load_config("lab", **({"method": "gt", "seed": 10} | settings))
    folder = root / config.run_name
    folder.mkdir()
    for step, accuracy in enumerate(accuracies, 1):
        row = {"step": step, "reward": accuracy, "answers/none": 0.0, "gt/accuracy": accuracy}
        runs.append_metrics(folder, {k: row[k] for k in ("step", *columns)})
    runs.write_status(folder, "done")
    return config


def test_every_setting_that_a_file_crosses_is_told_apart(tmp_path):
    """`temperature` is none of the project's own questions; two of its values are two rows, not two seeds of one."""
    hot = finished(tmp_path, [0.2] * 20, temperature=1.2)
    cold = finished(tmp_path, [0.8] * 20, temperature=0.7)
    table, metrics = sweep.gather({"heat": [hot, cold]}, tmp_path)
    rows = sweep.by_setting(table).set_index("temperature")
    assert rows["seeds"].tolist() == [1, 1] and rows["final"].to_dict() == pytest.approx({1.2: 0.2, 0.7: 0.8})
    assert [sweep.changed(row) for row in table.to_dict("records")] == ["temperature=1.2", "temperature=0.7"]
    same, _ = sweep.gather({"heat": [hot]}, tmp_path)
    assert "temperature" not in same and sweep.settings_of(same) == sweep.settings_of(sweep.SETTINGS)


def test_a_sweep_of_few_steps_has_tables_and_no_case_study(tmp_path):
    asked = {"nine": [finished(tmp_path, [0.2] * 5, steps=5)]}
    assert sweep.gather(asked, tmp_path)[0]["final"].tolist() == pytest.approx([0.2])
    assert sweep.rollouts(asked, tmp_path).empty


def test_a_folder_that_cannot_be_written_is_told_before_the_first_run(tmp_path, monkeypatch):
    monkeypatch.setattr(sweep.pipeline, "execute_plan", lambda *_: pytest.fail("a run was started"))
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="name another folder with --out"):
        sweep.run({"q": [load_config("lab")]}, out=tmp_path / "taken", root=tmp_path)


def test_a_sweep_that_is_stopped_leaves_tables_of_what_is_done(tmp_path, monkeypatch, capsys):
    done, waiting = finished(tmp_path, [0.2] * 20), load_config("lab", method="gt", seed=11)

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(sweep.pipeline, "execute_plan", interrupted)
    with pytest.raises(KeyboardInterrupt):
        sweep.run({"nine": [done, waiting]}, out=tmp_path / "out", root=tmp_path)
    assert pd.read_csv(tmp_path / "out" / "sweep.csv")["seed"].tolist() == [10]
    assert f"written to {tmp_path / 'out'}: sweep.csv, sweep.parquet, collapse.png\n" in capsys.readouterr().out


def test_a_run_whose_metrics_are_broken_costs_no_other_its_table(tmp_path, monkeypatch, capsys):
    whole = finished(tmp_path, [0.2] * 20)
    broken = [
        finished(tmp_path, [], seed=11),
        finished(tmp_path, [0.2] * 20, columns=["gt/accuracy", "answers/none"], seed=12),
        finished(tmp_path, ["much"] * 20, seed=13),
        finished(tmp_path, [0.2] * 20, seed=14),
    ]
    runs.append_metrics(tmp_path / broken[-1].run_name, {"step": 21, "kl": "text"})  # nothing that `fate` reads
    monkeypatch.setattr(sweep.pipeline, "execute_plan", lambda *_: {})
    assert sweep.run({"nine": [*broken, whole], "again": [*broken, whole]}, out=tmp_path / "out", root=tmp_path) == 0
    said = capsys.readouterr().out
    for config in broken:
        assert said.count(f"{config.run_name} is left out, its metrics cannot be judged (") == 1
    assert said.count("left out") == 4
    assert pd.read_csv(tmp_path / "out" / "sweep.csv")["run"].tolist() == [whole.run_name] * 2


def test_a_sweep_without_labels_has_tables_and_dashes(tmp_path, monkeypatch, capsys):
    blind = ["reward", "answers/none"]
    asked = {"nine": [finished(tmp_path, [0.5] * 20, blind, seed=s) for s in (10, 11)]}
    for config in asked["nine"]:
        stored = tmp_path / config.run_name / "completions"
        stored.mkdir()
        pd.DataFrame({"step": [1]}).to_parquet(stored / "completions_00001.parquet")
    monkeypatch.setattr(sweep.pipeline, "execute_plan", lambda *_: {})
    assert sweep.run(asked, out=tmp_path / "out", root=tmp_path) == 0
    said = capsys.readouterr().out
    assert "none of these runs logged gt/accuracy" in said and "sweep.csv, sweep.parquet\n" in said
    (line,) = (line for line in said.splitlines() if "│ gt " in line)
    cells = [cell.strip() for cell in line.strip("│").split("│")]
    assert cells == ["nine", "gt", "", "2", "-", "-", "0.500", "-", "0 of 2"]
    half = {"file": [*asked["nine"], finished(tmp_path, [0.8] * 20, seed=12)]}
    sweep.show(sweep.gather(half, tmp_path)[0])
    assert "80 % (80 to 80)" in (said := capsys.readouterr().out) and "0 of 1" in said  # one of three is known
    assert sweep.write(*sweep.gather(half, tmp_path), tmp_path / "out") == ["sweep.csv", "sweep.parquet"]


def test_the_verb_names_what_it_would_run(capsys, tmp_path):
    assert main(["sweep", "--dry-run", "--root", str(tmp_path)]) == 0
    first, nine, left, command = capsys.readouterr().out.splitlines()
    assert first.startswith("45 runs of notebook 03, 2 at a time") and nine == "  nine (Which of the nine methods collapse?): 45 runs, 0 done"  # fmt: skip
    assert left.startswith("45 are left: about 56 min") and "03_grpo_training.ipynb" in command  # 45 x 150 s / 2
    assert main(["sweep", "--only", "equality", "--dry-run"]) == 0 and "released" not in capsys.readouterr().err
    assert main(["sweep", "absent.yaml"]) == 2 and "does not exist" in capsys.readouterr().err
    assert main(["sweep", "--workers", "0", "--dry-run"]) == 2 and "must be at least 1" in capsys.readouterr().err
    assert main(["sweep", "absent.yaml", "--full"]) == 2 and "--only, or --full" in capsys.readouterr().err
