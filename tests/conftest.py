"""Shared fixtures. Tests that need real data find it beside the repository and say so when it is not there."""

import os
import signal
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("MPLBACKEND", "agg")

# A shell starts background jobs with Ctrl-C ignored, and the processes that tests interrupt would inherit that
signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED.is_dir():
        pytest.skip(f"real data is not at {SHARED.parent.name}/{SHARED.name} beside the repository")
    return SHARED


@pytest.fixture
def tiny():
    """A lab configuration whose run takes a few seconds: same code path, 4 prompts x 4 rollouts."""
    from corelib.config import load_config

    def make(method="gt", **settings):
        small = dict(prompts_per_step=4, rollouts=4, steps=2, warmup=0, micro_batch=16, eval_problems=4, eval_samples=1, eval_steps=100, test_problems=6, test_samples=2, save_steps=100, completions_every=1)  # fmt: skip
        return load_config("lab", method=method, **(small | settings))

    return make
