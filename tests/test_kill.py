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

from corelib import runs, saving, train
from corelib.config import load_config

SETTINGS = dict(steps=12, save_steps=3, learning_rate=1e-3, eval_steps=4, teacher_start=0.2, eval_problems=4)
MEASURED = ["reward", "loss", "grad_norm", "gt/accuracy", "gt/teacher_label_accuracy", "teacher/distance", "gt/validation"]  # fmt: skip


def start(config: Path, folder: Path) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-m", "corelib.train", "--config", str(config), "--out", str(folder)],
        stdout=open(folder.with_suffix(".log"), "ab"), stderr=subprocess.STDOUT, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def step_of(folder: Path) -> int:
    frame = runs.load_metrics(folder)
    return int(frame["step"].max()) if len(frame) else -1


def after_step(folder: Path, at: int, delay: float):
    """A moment: `delay` seconds after step `at` was measured."""

    def come() -> bool:
        if step_of(folder) < at:
            return False
        time.sleep(delay)
        return True

    return come


def inside_writing(folder: Path, delay: float):
    """A moment: `delay` seconds after the first file of a new checkpoint appeared, while it has no mark."""
    known = set(saving.checkpoints(folder))

    def come() -> bool:
        new = [c for c in saving.checkpoints(folder) if c not in known and not (c / saving.COMPLETE).exists()]
        if not new:
            return False
        time.sleep(delay)
        return True

    return come


def log_of(folder: Path) -> str:
    return folder.with_suffix(".log").read_text()


def run_and_kill(config: Path, folder: Path, moment, number=signal.SIGKILL, timeout: float = 300) -> bool:
    """Start or resume the run and kill it when `moment()` has come; whether it was killed before its own end."""
    child = start(config, folder)
    deadline = time.time() + timeout
    while child.poll() is None and time.time() < deadline:
        if moment():
            child.send_signal(number)
            child.wait(timeout)
            return child.returncode != 0
        time.sleep(0.002)
    assert child.poll() == 0, log_of(folder)[-3000:]
    return False


def finish(config: Path, folder: Path) -> None:
    run_and_kill(config, folder, lambda: False)


def same(a: Path, b: Path) -> None:
    steps = runs.read_status(a)["steps"]
    kept = ["kept/model.safetensors"] if (a / "kept").is_dir() else []
    for file in ("final/model.safetensors", "best/model.safetensors", f"checkpoint-{steps}/teacher.safetensors", f"checkpoint-{steps}/model.safetensors", *kept):  # fmt: skip
        one, other = load_file(a / file), load_file(b / file)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), file
    one, other = runs.load_metrics(a), runs.load_metrics(b)
    assert one["step"].tolist() == list(range(steps + 1)) and one[MEASURED].equals(other[MEASURED])
    for name in ("best", "kept"):
        assert runs.read_json(a / name / "validation.json") == runs.read_json(b / name / "validation.json")
        assert (a / name).is_dir() == (b / name).is_dir()
    assert runs.load_completions(a).equals(runs.load_completions(b))


@pytest.fixture
def config(tiny, tmp_path):
    def make(method, **settings):
        path = tmp_path / f"{method}.yaml"
        path.write_text(tiny(method, **(SETTINGS | settings)).to_yaml())
        return path

    return make


def never_stopped(config: Path, folder: Path) -> Path:
    """The run to compare with, in this process: its weights are those of a child's."""
    train.train(load_config(path=config), folder)
    return folder


def test_killed_and_resumed_equals_never_stopped(config, tmp_path):
    """kill -9; tests/test_survival.py has SIGTERM at every moment."""
    config, killed = config("co_rewarding_ii", steps=6, save_steps=2), tmp_path / "killed"
    assert run_and_kill(config, killed, after_step(killed, 3, 0.05))
    finish(config, killed)
    assert "resuming at step" in log_of(killed)
    same(never_stopped(config, tmp_path / "whole"), killed)


@pytest.mark.slow
def test_terminated_and_resumed_equals_never_stopped(config, tmp_path):
    config, told = config("co_rewarding_ii"), tmp_path / "told"
    assert run_and_kill(config, told, after_step(told, 5, 0.2), signal.SIGTERM)
    assert "stopped at step" in log_of(told)  # it saved a checkpoint where it was, and lost nothing
    assert runs.read_status(told)["state"] == "stopped"
    finish(config, told)
    same(never_stopped(config, tmp_path / "whole"), told)


@pytest.mark.slow
@pytest.mark.parametrize("method, runs_of_it", [("co_rewarding_iii", 3), ("co_rewarding_ii", 2)])
def test_twenty_kills_at_random_moments(method, runs_of_it, config, tmp_path):
    """Five runs, each killed four times: two of them between any steps, two inside the writing of a checkpoint.

    A tiny checkpoint takes tens of milliseconds on an idle core. A kill that comes after its end counts nevertheless:
    it then hits the rotation, or the next step. How many were cut off is printed and must not be none.
    """
    config, rng = config(method), random.Random(method)
    whole = never_stopped(config, tmp_path / "whole")
    unfinished = kills = 0
    for trial in range(runs_of_it):
        folder = tmp_path / f"killed{trial}"
        for kill in range(4):
            if kill % 2:
                moment = inside_writing(folder, rng.random() * 0.1)
            else:
                moment = after_step(folder, step_of(folder) + rng.randint(0, 3), rng.random() * 0.5)
            kills += run_and_kill(config, folder, moment)
            found = saving.checkpoints(folder)
            unfinished += any(saving.checkpoint_defect(c) == "it was not finished" for c in found)
            for c in found:  # unfinished or whole: nothing that looks finished and is not
                assert saving.checkpoint_defect(c) in (None, "it was not finished")
        finish(config, folder)
        same(whole, folder)
        assert (
            method != "co_rewarding_iii" or (folder / "kept").is_dir()
        )  # the votes of this run's validations name one
    print(f"{kills} kills, {unfinished} of them left an unfinished checkpoint")
    assert kills >= 4 * runs_of_it - 2 and unfinished
