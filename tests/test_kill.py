"""Killed at any moment, a run ends with the weights of the run that was never stopped."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from corelib import runs

SETTINGS = dict(steps=12, save_steps=3, learning_rate=1e-3, eval_steps=4, teacher_start=0.2, eval_problems=4)


def start(config: Path, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "corelib.train", "--config", str(config), "--out", str(folder)],
        stdout=open(folder.with_suffix(".log"), "ab"), stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def step_of(folder: Path) -> int:
    frame = runs.load_metrics(folder)
    return int(frame["step"].max()) if len(frame) else -1


def run_with_kills(config, folder, kills, number=signal.SIGKILL, timeout=300):
    """Kill the run once at each step of `kills` (a little into it), then let it finish."""
    folder.parent.mkdir(exist_ok=True)
    for at in [*kills, None]:
        child = start(config, folder)
        deadline = time.time() + timeout
        while child.poll() is None and time.time() < deadline:
            if at is not None and step_of(folder) >= at:
                time.sleep(random.random() * 0.5)
                child.send_signal(number)
                child.wait(60)
                break
            time.sleep(0.02)
        if at is None:
            assert child.wait(timeout) == 0, folder.with_suffix(".log").read_text()[-3000:]


def same(a: Path, b: Path) -> None:
    for file in ("final/model.safetensors", "checkpoint-12/teacher.safetensors"):
        one, other = load_file(a / file), load_file(b / file)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), file
    columns = ["reward", "gt/accuracy", "gt/teacher_label_accuracy", "teacher/distance", "gt/validation"]
    assert runs.load_metrics(a)[columns].equals(runs.load_metrics(b)[columns])


@pytest.fixture
def config(tiny, tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text(tiny("co_rewarding_ii", **SETTINGS).to_yaml())
    return path


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["kill-9", "term"])
def test_killed_and_resumed_equals_never_stopped(number, config, tmp_path):
    run_with_kills(config, tmp_path / "whole", [])
    run_with_kills(config, tmp_path / "killed", [7], number)
    log = (tmp_path / "killed.log").read_text()
    assert "resuming at step" in log
    if number == signal.SIGTERM:
        assert "stopped at step" in log  # it saved a checkpoint where it was, and lost nothing
    same(tmp_path / "whole", tmp_path / "killed")


@pytest.mark.slow
def test_twenty_kills_at_random_moments(config, tmp_path):
    run_with_kills(config, tmp_path / "whole", [])
    rng = random.Random(0)
    for trial in range(5):
        run_with_kills(config, tmp_path / f"killed{trial}", sorted(rng.randint(-1, 11) for _ in range(4)))
        same(tmp_path / "whole", tmp_path / f"killed{trial}")
