"""A colocated engine in each of two ranks: DDP and FSDP2, an engine over both ranks, and a stop in the middle."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from corelib import processes, runs
from corelib.config import load_config
from tests.test_processes import ENVIRONMENT, LAST, ROOT, SMALL, prepared, relative_gap, same_runs, stopped_and_resumed

pytestmark = pytest.mark.slow
WORKER = Path(__file__).parent / "sharded_worker.py"


def command_of(config, folder: Path, sharding: str) -> list[str]:
    config = replace(config, sharding=sharding)
    command = prepared(config, folder, sharded=False)
    runs.write_text(
        folder / processes.FILE, yaml.safe_dump(processes.accelerate_config(config, 2, gpu=sharding == "fsdp2"))
    )
    return [sys.executable, str(WORKER), *command[command.index("--config_file") + 1 :]]


def train(config, folder: Path, sharding: str):
    done = subprocess.run(command_of(config, folder, sharding), capture_output=True, text=True, timeout=500, env=ENVIRONMENT, cwd=ROOT)  # fmt: skip
    assert done.returncode == 0, done.stderr[-4000:]
    metrics = runs.load_metrics(folder)
    gap = metrics["sampling/logp_difference"].dropna()
    # The engine that answers has the policy's weights, in every step between two swaps for the teacher's
    assert len(gap) == LAST and (gap < 1e-4).all()
    assert metrics["teacher/distance"].max() > 0 and metrics["reward"].max() > 0


def test_engines_in_two_ranks_sharded_and_not(tmp_path):
    """Teacher, KL and recomputed layers; DDP and FSDP2 draw the same rollouts; a stopped FSDP2 run has the same end."""
    config = load_config("lab", method="co_rewarding_ii", engine="vllm", vllm_sleep=False, gradient_checkpointing=True, **SMALL)  # fmt: skip
    for sharding in ("ddp", "fsdp2"):
        train(config, tmp_path / sharding, sharding)
        assert (tmp_path / sharding / f"checkpoint-{LAST}" / "pytorch_model_fsdp.bin").is_file() == (
            sharding == "fsdp2"
        )
    for file in ("final/model.safetensors", f"checkpoint-{LAST}/teacher.safetensors"):
        assert relative_gap(tmp_path / "ddp" / file, tmp_path / "fsdp2" / file) < 5e-3
    stopped_and_resumed(command_of(config, tmp_path / "stopped", "fsdp2"), tmp_path / "stopped")
    same_runs(tmp_path / "fsdp2", tmp_path / "stopped")


def test_one_engine_over_two_sharded_ranks(tmp_path):
    """`vllm_tensor_parallel: 2`: vLLM's own shards take the gathered weights of FSDP2's."""
    config = load_config("lab", method="co_rewarding_iii", engine="vllm", vllm_sleep=False, **SMALL)
    train(replace(config, vllm_tensor_parallel=2), tmp_path / "run", "fsdp2")
