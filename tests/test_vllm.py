"""Real vLLM on a CPU, in an environment of its own: one swap of weights policy -> teacher -> policy with every run.

The environment (2 GB, pins in tests/vllm/requirements.txt) is made once and kept in the user's cache folder. The other
tests of tests/vllm: `-m slow` here, or that folder's requirements.txt by hand.
"""

import fcntl
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PINS = ROOT / "tests" / "vllm" / "requirements.txt"
TORCH_CPU = "https://download.pytorch.org/whl/cpu"  # where pip's own index has the CUDA build only
OFFLINE = ("connection broken by", "Could not fetch URL", "Network is unreachable", "name resolution")


def pip(python: Path, *arguments: str) -> str:
    """Install; returns what pip printed when it failed, else nothing."""
    command = [python, "-m", "pip", "install", "--no-deps", "--no-compile", "--retries", "2", *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return done.stdout if done.returncode else ""


def make(folder: Path) -> None:
    """Build beside `folder`, then rename, so that a killed build leaves nothing that looks whole."""
    partial = folder.with_name(f"{folder.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a killed build: the lock is ours
    subprocess.run([sys.executable, "-m", "venv", partial], check=True)
    python = partial / "bin" / "python"
    torch = next(line for line in PINS.read_text().splitlines() if line.startswith("torch=="))
    refused = pip(python, torch) and pip(python, torch, "--index-url", TORCH_CPU) or pip(python, "-r", str(PINS))
    if refused:
        shutil.rmtree(partial)
        if any(sign in refused for sign in OFFLINE):
            pytest.skip("pip cannot reach a package registry, so vLLM's environment cannot be made")
        pytest.fail(f"vLLM's environment cannot be made:\n{refused[-3000:]}", pytrace=False)
    partial.rename(folder)


@pytest.fixture(scope="module")
def vllm_python() -> Path:
    """Python of the cached environment, which is made when it is missing; one process makes it, others wait."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        pytest.skip(f"vLLM's CPU build is for x86-64 Linux, not {platform.system()} on {platform.machine()}")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "corewarding"
    cache.mkdir(parents=True, exist_ok=True)
    recipe = PINS.read_text() + platform.python_version()
    folder = cache / f"vllm-{hashlib.sha256(recipe.encode()).hexdigest()[:12]}"
    with open(cache / "vllm.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.is_dir():
            make(folder)
    return folder / "bin" / "python"


def run(python: Path, marker: str, minutes: float) -> None:
    """The tests of tests/vllm with this marker, which must exist and pass."""
    started = time.time()
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # compiled once: half of a first run's time
    command = [python, "-m", "pytest", "tests/vllm", "-m", marker, "-p", "no:cacheprovider", "--show-capture=no"]
    done = subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=60 * minutes,
    )
    if done.returncode:
        pytest.fail(
            f"in vLLM's environment, after {time.time() - started:.0f} s:\n{done.stdout[-6000:]}", pytrace=False
        )


def test_teacher_and_policy_take_turns_in_real_vllm(vllm_python):
    run(vllm_python, "swap", minutes=10)


@pytest.mark.slow
def test_everything_else_in_real_vllm(vllm_python):
    run(vllm_python, "not swap", minutes=45)
