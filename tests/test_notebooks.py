"""The notebooks: the house's rules as static checks, and every one of them run headless in a tiny setting, offline."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
import torch
from safetensors.torch import load_file

from corelib import runs
from corelib.config import ROOT
from corelib.lab import BASE_MODEL
from corelib.launch import notebook_parameters
from corelib.pipeline import STAGES

BOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
TINY = [
    "--set",
    "steps=2",
    "--set",
    "prompts_per_step=4",
    "--set",
    "rollouts=4",
    "--set",
    "micro_batch=16",
    "--set",
    "warmup=0",
    "--set",
    "save_steps=2",
]
TINY += [
    "--set",
    "learning_rate=1e-3",
    "--set",
    "eval_problems=6",
    "--set",
    "test_problems=8",
    "--set",
    "completions_every=1",
]
OFFLINE = {
    **os.environ,
    "PYTHONPATH": str(Path(__file__).parent / "no_network"),
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def test_there_are_the_five():
    assert [b.stem for b in BOOKS] == list(STAGES.values())


@pytest.mark.parametrize("path", BOOKS, ids=lambda p: p.stem[:2])
def test_house_rules(path):
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert book.metadata.kernelspec.name == "python3" and "widgets" not in book.metadata
    code = [c for c in book.cells if c.cell_type == "code"]
    assert all(not c.outputs and c.execution_count is None for c in code), "committed with outputs"
    assert len({c.id for c in book.cells}) == len(book.cells)
    first = book.cells[0].source
    assert "You will learn" in first and "| reads |" in first and "| writes |" in first and "| time |" in first
    assert book.cells[1].metadata.get("tags") == ["parameters"]
    parameters = notebook_parameters(path.stem)
    assert len(parameters) <= 9 and "config" in parameters
    for line in book.cells[1].source.splitlines():
        assert re.fullmatch(r"\w+: (str|int|float|bool) = [^=#]+  # [^=]+", line), line
    assert "notebook_setup(globals()" in book.cells[2].source
    last = book.cells[-1].source
    assert "## What to try next" in last and "**Question.**" in last and "<details><summary>Answer" in last
    for cell in code:
        assert len(cell.source.splitlines()) <= 40, f"move to corelib:\n{cell.source[:200]}"
        assert not re.search(r"^\s*(class |!|%pip|import sys)", cell.source, re.M) and "sys.path" not in cell.source
    text = "\n".join(c.source for c in book.cells if c.cell_type == "markdown")
    for target in re.findall(r"\]\((\w[^)]*\.ipynb)\)", text):
        assert (path.parent / target).is_file(), target


@pytest.fixture(scope="module")
def pipeline_run(tmp_path_factory):
    """`python -m corelib run` over all five notebooks, offline, with real training of two methods."""
    root = tmp_path_factory.mktemp("runs")
    command = [sys.executable, "-m", "corelib", "run", "--methods", "gt,co_rewarding_ii", "--root", str(root), *TINY]
    done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=OFFLINE, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]
    return root, command, done.stdout


def test_all_five_run_headless_and_offline(pipeline_run):
    root, _, said = pipeline_run
    (pipeline,) = root.glob("pipeline-*")
    assert {p.name for p in pipeline.glob("*.ipynb")} == {
        "01_data_preparation.ipynb",
        "02_reward_definitions.ipynb",
        "05_collapse_diagnostics.ipynb",
    }
    assert (pipeline / "05_collapse_diagnostics.html").is_file() and (pipeline / "table.csv").is_file()
    assert "co_rewarding_ii" in said and str(pipeline / "05_collapse_diagnostics.html") in said.replace("\n", "")
    folders = [p.parent for p in root.glob("*/result.json")]
    assert len(folders) == 2
    for folder in folders:
        expected = {
            "manifest.json",
            "status.json",
            "metrics.jsonl",
            "result.json",
            "completions",
            "03_grpo_training.ipynb",
            "04_evaluation.ipynb",
            "best",
            "final",
        }
        assert expected <= {p.name for p in folder.iterdir()} and list(folder.glob("checkpoint-*"))
        base, final = load_file(BASE_MODEL / "model.safetensors"), load_file(folder / "final" / "model.safetensors")
        assert any(not torch.equal(base[k].float(), final[k]) for k in base)
        stored = runs.load_completions(folder)
        assert stored["step"].nunique() == 2 and stored["label"].notna().any()
        result = runs.read_json(folder / "result.json")
        assert result["steps"] == 2 and 0 <= result["final_accuracy"] <= 1
    for path in [*root.glob("*/*.ipynb")]:
        for cell in nbformat.read(path, as_version=4).cells:
            assert not any(o.output_type == "error" for o in cell.get("outputs", []))


def test_figures_are_there(pipeline_run):
    root, _, _ = pipeline_run
    for pattern, least in (
        ("pipeline-*/02*.ipynb", 3),
        ("gt-*/03*.ipynb", 3),
        ("gt-*/04*.ipynb", 1),
        ("pipeline-*/05*.ipynb", 4),
    ):
        (path,) = root.glob(pattern)
        images = [
            o
            for c in nbformat.read(path, as_version=4).cells
            for o in c.get("outputs", [])
            if "image/png" in o.get("data", {})
        ]
        assert len(images) >= least, pattern


def test_second_call_skips_everything(pipeline_run):
    root, command, _ = pipeline_run
    stamps = {p: p.stat().st_mtime_ns for p in root.rglob("*.ipynb")}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=OFFLINE, cwd=ROOT)
    assert done.returncode == 0 and done.stdout.count("skipped") == 7
    assert stamps == {p: p.stat().st_mtime_ns for p in root.rglob("*.ipynb")}


def papermill(name, out, *parameters, cwd=ROOT):
    command = [
        sys.executable,
        "-m",
        "papermill",
        str(ROOT / "notebooks" / f"{name}.ipynb"),
        str(out),
        "--kernel",
        "python3",
        *parameters,
    ]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, env=OFFLINE, cwd=cwd)


def test_unknown_parameter_by_hand_is_an_error(tmp_path):
    done = papermill("03_grpo_training", tmp_path / "o.ipynb", "-p", "metod", "gt")
    assert (
        done.returncode != 0 and "unknown parameter of 03_grpo_training 'metod': did you mean 'method'" in done.stderr
    )


def test_full_scale_line_in_dry_run(tmp_path):
    done = papermill(
        "03_grpo_training",
        tmp_path / "o.ipynb",
        "-p",
        "profile",
        "qwen3-4b",
        "-p",
        "method",
        "gt",
        "-p",
        "dataset",
        "open-rs",
        "-p",
        "dry_run",
        "True",
        "-p",
        "root",
        str(tmp_path),
    )
    assert done.returncode == 0, done.stderr[-2000:]
    text = (tmp_path / "o.ipynb").read_text()
    assert (
        "corelib.train" in text
        and "128 prompts x 8 rollouts = 1024 completions a step" in text
        and "dry run: stopping here" in text
    )
    assert not list(tmp_path.glob("gt-*"))


@pytest.mark.parametrize("name", ["02_reward_definitions", "05_collapse_diagnostics"])
def test_runs_alone_from_the_notebooks_folder(name, pipeline_run, tmp_path):
    root, _, _ = pipeline_run
    given = ["-p", "root", str(root)] if name.startswith("05") else []
    done = papermill(name, tmp_path / "o.ipynb", "-p", "out", str(tmp_path), *given, cwd=ROOT / "notebooks")
    assert done.returncode == 0, done.stderr[-3000:]
