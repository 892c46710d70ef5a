"""Run folders: what a run is (manifest), where it stands (status), what it measured (metrics), what it left (checkpoints).

Every file is written so that a kill at any moment leaves either the old or the new content. A run's state is read from
these files and never from a notebook: papermill marks every cell of a killed notebook as completed.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import time
from dataclasses import fields
from pathlib import Path

from corelib.config import BOOKKEEPING, ROOT, RunConfig

RUNS = ROOT / "outputs" / "runs"
COMPLETE = "complete.json"  # written last into a checkpoint: names and sizes of its files
PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "accelerate",
    "datasets",
    "math-verify",
    "vllm",
    "numpy",
    "papermill",
)


def run_folder(config: RunConfig, root: str | Path = "") -> Path:
    """`outputs/runs/<run name>`, or the same under another root."""
    return (Path(root).absolute() if root else RUNS) / config.run_name


def write_text(path: str | Path, text: str) -> None:
    """Replace a file in one step: readers see the old or the new content, also after kill -9."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "w") as sink:
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(path: str | Path, value) -> None:
    """Replace a JSON file in one step."""
    write_text(path, json.dumps(value, indent=1, default=str) + "\n")


def read_json(path: str | Path):
    """The content of a JSON file, None when it is missing or unreadable."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


def versions() -> dict[str, str]:
    """Python, platform and the packages that decide a result; a package that is not installed is left out."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def git_commit() -> str | None:
    """The commit of the checkout, with `+changes` when the tree is dirty; None outside a checkout."""
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
        dirty = subprocess.run(
            ["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + ("+changes" if dirty else "")


def data_hash(rows) -> str:
    """12 hex digits over the rows of a dataset, in order."""
    digest = hashlib.sha256()
    for row in rows:
        digest.update(json.dumps(row, sort_keys=True, ensure_ascii=False, default=str).encode())
    return digest.hexdigest()[:12]


def write_manifest(folder: Path, config: RunConfig, **extra) -> None:
    """What was run: configuration, commit, versions, seed and data hash."""
    write_json(
        folder / "manifest.json",
        {"config": config.to_dict(), "git_commit": git_commit(), "versions": versions()} | extra,
    )


def refuse_other_settings(folder: str | Path, asked: RunConfig) -> None:
    """Raise RuntimeError when a folder holds a run with other settings: its metrics would be mixed and mislabelled."""
    manifest = read_json(Path(folder) / "manifest.json")
    if manifest is None:
        return
    defaults = {f.name: f.default for f in fields(asked)}  # what a run had before a setting existed
    found, asked = defaults | manifest["config"], asked.to_dict()
    differ = [k for k, v in asked.items() if k not in BOOKKEEPING and v != found[k]]
    if differ:
        raise RuntimeError(
            f"{folder} holds a run with other settings ({', '.join(differ)}); use another folder, or delete it"
        )


def write_status(folder: Path, state: str, **extra) -> None:
    """Where a run stands. `state`: running, done, stopped or failed; a running one carries its pid and a heartbeat."""
    own = {"state": state, "pid": os.getpid(), "born": _born(os.getpid()), "time": time.time()}
    write_json(folder / "status.json", own | extra)


def read_status(folder: Path) -> dict:
    """The status, {} before the first. A `running` status whose process is gone reads as `killed`."""
    status = read_json(Path(folder) / "status.json") or {}
    born = _born(status.get("pid", -1))
    if status.get("state") == "running" and (born is None or born != status.get("born")):
        status["state"] = "killed"
    return status


def _born(pid: int) -> str | None:
    """Boot and start time of a live process, so that a reused pid is not taken for the run; None when there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except (OSError, IndexError):
        return None
    return None if fields[0] == "Z" else f"{boot}-{fields[19]}"


def append_metrics(folder: Path, row: dict) -> None:
    """Append one line to metrics.jsonl; a line holds `step` and any of the measured columns."""
    with open(Path(folder) / "metrics.jsonl", "a") as sink:
        sink.write(json.dumps(row) + "\n")


def truncate_metrics(folder: Path, step: int) -> None:
    """Forget what was measured after `step`: a resumed run measures it again."""
    path = Path(folder) / "metrics.jsonl"
    if path.is_file():
        kept = [
            line for line in path.read_text().splitlines() if (row := _parse(line)) is not None and row["step"] <= step
        ]
        write_text(path, "".join(line + "\n" for line in kept))


def load_metrics(folder: str | Path):
    """metrics.jsonl as a DataFrame, one row a step; an unfinished last line (kill -9) is dropped."""
    import pandas as pd

    path = Path(folder) / "metrics.jsonl"
    rows = (
        [row for line in path.read_text().splitlines() if (row := _parse(line)) is not None] if path.is_file() else []
    )
    if not rows:
        return pd.DataFrame({"step": pd.Series(dtype=int)})
    return pd.DataFrame(rows).groupby("step", as_index=False).last()


def _parse(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def load_completions(folder: str | Path):
    """All stored rollouts of a run as a DataFrame, empty when there are none."""
    import pandas as pd

    files = sorted((Path(folder) / "completions").glob("completions_*.parquet"))
    frames = [pd.read_parquet(f) for f in files]
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()


def mark_complete(checkpoint: str | Path) -> None:
    """Declare a checkpoint whole: the sizes of its files, written last."""
    checkpoint = Path(checkpoint)
    sizes = {f.name: f.stat().st_size for f in sorted(checkpoint.iterdir()) if f.is_file() and f.name != COMPLETE}
    write_json(checkpoint / COMPLETE, sizes)


def checkpoint_defect(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, None when it can: half written, a file missing or of another size."""
    sizes = read_json(checkpoint / COMPLETE)
    if not isinstance(sizes, dict):
        return "it was not finished"
    for name, size in sizes.items():
        file = checkpoint / name
        if not file.is_file() or file.stat().st_size != size:
            return f"{name} is missing or not of the recorded size"
    return None


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, newest first, whole or not."""
    return sorted(Path(folder).glob("checkpoint-*"), key=lambda p: int(p.name.rsplit("-", 1)[1]), reverse=True)


def last_checkpoint(folder: str | Path, say=print) -> Path | None:
    """The newest whole checkpoint of a run; broken ones are named and passed over.

    Raises RuntimeError when a finished checkpoint was damaged since and no whole one is left: starting over would throw
    the run away. (Unfinished ones alone mean that the run died before its first checkpoint.)
    """
    damaged = None
    for checkpoint in checkpoints(folder):
        defect = checkpoint_defect(checkpoint)
        if defect is None:
            return checkpoint
        say(f"checkpoint {checkpoint.name} is not used: {defect}")
        if (checkpoint / COMPLETE).is_file():
            damaged = damaged or f"{checkpoint.name}: {defect}"
    if damaged:
        raise RuntimeError(
            f"no whole checkpoint is left in {folder} ({damaged}); restore it, or delete the folder to start over"
        )
    return None


def rotate_checkpoints(folder: str | Path, keep: int = 2) -> None:
    """Delete all but the newest `keep` whole checkpoints. Called after a checkpoint was declared whole, never before."""
    whole = [c for c in checkpoints(folder) if checkpoint_defect(c) is None]
    for checkpoint in checkpoints(folder):
        if whole and checkpoint not in whole[:keep]:
            shutil.rmtree(checkpoint)
