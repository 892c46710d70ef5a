"""The README's commands exist, its numbers are those of the committed evidence, the two requirement files agree."""

import re
import shlex

import pytest
import yaml

from corelib import deviations, diagnostics, runs
from corelib.__main__ import main
from corelib.config import METHOD_NAMES, ROOT
from corelib.launch import notebook_parameters

README = (ROOT / "README.md").read_text()
REFERENCE = ROOT / "outputs" / "reference"
SHELL = [
    line
    for block in re.findall(r"```bash\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line and not line.startswith("#")
]


def test_linked_files_exist():
    for target in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / target).exists(), target


@pytest.mark.parametrize("line", SHELL)
def test_commands_exist(line, capsys, monkeypatch, tmp_path):
    for command in line.split("&&"):
        words = [str(tmp_path) if word == "FOLDER" else word for word in shlex.split(command)]
        if "corelib" in words:
            monkeypatch.setattr("sys.argv", ["corelib"])
            verb = words[words.index("corelib") + 1 :]
            code = main([*verb, "--dry-run"] if verb[0] in ("run", "train", "sweep", "evaluate") else verb)
            # offline, a checkpoint of the Hub is refused with the remedy
            assert code == 0 or "TMLR-Group-HF" in command and "hf download" in capsys.readouterr().err
        elif "papermill" in words:
            name = words[1].split("/")[-1].removesuffix(".ipynb")
            given = [words[i + 1] for i, w in enumerate(words) if w == "-p"]
            assert (ROOT / words[1]).is_file() and set(given) <= set(notebook_parameters(name))
        elif "-r" in words:
            assert (ROOT / words[words.index("-r") + 1]).is_file()
        elif "-f" in words:
            assert (ROOT / words[words.index("-f") + 1]).is_file()


def test_the_two_lines_do_all_their_set_up():
    lines = [s for s in SHELL if s.startswith("python3 -m venv .venv && .venv/bin/pip install -r requirements.txt && ")]
    assert [s.rsplit("&& ", 1)[1] for s in lines] == [".venv/bin/python -m corelib run", ".venv/bin/python -m pytest"]
    script = (ROOT / ".ci" / "run").read_text()
    assert lines[1] in script  # CI types the README's line


def test_deviations_are_the_table_of_the_code():
    assert deviations.markdown() in README


def test_every_method_is_described():
    assert all(f"`{m}`" in README for m in METHOD_NAMES)


def test_lab_table_is_the_committed_sweep():
    from corelib import story

    nine = story.main_runs(story.committed()).table
    assert story.markdown(nine) in README
    assert story.answers(story.committed().table) in README
    every = story.committed()
    assert story.verdict(every.table, diagnostics.judge_runs(every.metrics())) in README
    assert every.table["run"].nunique() == int(re.search(r"On the (\d+) runs above", README)[1])
    assert set(nine["method"]) == set(METHOD_NAMES) and nine.groupby("method")["seed"].nunique().eq(5).all()
    assert sum((REFERENCE / name).stat().st_size for name in ("sweep.csv", "sweep.parquet", "sweep_rollouts.parquet")) < 2e6  # fmt: skip


def test_bench_table_is_the_committed_measurement():
    bench = runs.read_json(REFERENCE / "bench_trainer.json")
    for method, ratio in bench["ratio"].items():
        assert re.search(rf"\| `{method}` \| {ratio:.2f} \|", README), method


def test_requirements_and_environment_agree():
    pins = [line for line in (ROOT / "requirements.txt").read_text().splitlines() if line and not line.startswith("#")]
    assert pins[-1] == "-e ." and all("==" in p for p in pins[:-1])
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    listed = next(d["pip"] for d in environment["dependencies"] if isinstance(d, dict))
    assert listed == [*pins[:-1], "vllm==0.31.0", "-e ."]
    assert "python=3.11" in environment["dependencies"]


def test_installed_versions_are_the_pinned_ones():
    import importlib.metadata

    for line in (ROOT / "requirements.txt").read_text().splitlines():
        if "==" in line and not line.startswith("#"):
            name, version = line.split("==")
            assert importlib.metadata.version(name.split("[")[0]).split("+")[0] == version


def test_top_level_is_the_fixed_one():
    import subprocess

    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    top = {p.split("/")[0] for p in tracked if not p.startswith(".")}
    assert top <= {
        "README.md",
        "LICENSE",
        "requirements.txt",
        "environment.yml",
        "pyproject.toml",
        "notebooks",
        "corelib",
        "outputs",
        "tests",
    }


@pytest.mark.slow
def test_gpu_set_resolves():
    """pip's resolver only: the pins of environment.yml fit together with vLLM. Needs a package index."""
    import subprocess
    import sys

    listed = next(
        d["pip"] for d in yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"] if isinstance(d, dict)
    )
    pins = [p for p in listed if p != "-e ."]
    command = [sys.executable, "-m", "pip", "install", "--dry-run", "--ignore-installed", "--quiet", *pins]
    done = subprocess.run(command, capture_output=True, text=True, timeout=1500)
    if "No matching distribution" in done.stderr or "Could not find a version" in done.stderr:
        pytest.skip("the package index does not serve these pins: " + done.stderr.strip().splitlines()[-1])
    assert done.returncode == 0, done.stderr[-2000:]
