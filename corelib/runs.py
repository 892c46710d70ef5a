"""Run folders: what a run is (manifest), where it stands (status), what it measured (metrics), and who holds it (lock).

Every file is written so that a kill at any moment leaves either the old or the new content. A run's state is read from
these files and never from a notebook: papermill marks every cell of a killed notebook as completed.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import importlib.metadata
import io
import json
import os
import platform
import socket
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

from corelib.config import BOOKKEEPING, ROOT, RunConfig

RUNS = ROOT / "outputs" / "runs"
CARRIED = (
    "step",
    "steps",
    "step_seconds",
    "longest_step",
    "last_step_at",
)  # of the last step made, whoever writes next
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
    """Replace a file in one step: readers see the old or the new content, also after kill -9.

    Raises RuntimeError when the folder is read-only, OSError when the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w") as sink:
            sink.write(text)
            sink.flush()
            os.fsync(sink.fileno())
        os.replace(temporary, path)
    except OSError as error:
        _explain(path.parent, error)
        raise
    finally:
        try:
            temporary.unlink(missing_ok=True)
        except OSError:  # a read-only file system
            pass


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
    path = Path(folder) / "manifest.json"
    manifest = read_json(path)
    if manifest is None and not path.exists() and not any(Path(folder).glob("checkpoint-*")):
        return
    if not isinstance(manifest, dict) or "config" not in manifest:
        raise RuntimeError(
            f"{path} is missing or unreadable, so nobody knows what this run is; restore it, or delete the folder to start over"
        )
    defaults = {f.name: f.default for f in fields(asked)}  # what a run had before a setting existed
    found, asked = defaults | manifest["config"], asked.to_dict()
    differ = [k for k, v in asked.items() if k not in BOOKKEEPING and v != found[k]]
    if differ:
        raise RuntimeError(
            f"{folder} holds a run with other settings ({', '.join(differ)}); use another folder, or delete it"
        )


def write_status(folder: Path, state: str, **extra) -> None:
    """Where a run stands. `state`: running, done, stopped or failed; a running one carries its pid and a heartbeat.

    What is known of the last step (`last_step_at`: when it ended, in Unix seconds) is carried over. On a full disk the
    old file's own blocks are written over, so that a run can still say why it ended.
    """
    path = Path(folder) / "status.json"
    own = {
        "state": state,
        "pid": os.getpid(),
        "born": _born(os.getpid()),
        "host": socket.gethostname(),
        "time": time.time(),
    }
    carried = {k: v for k, v in (read_json(path) or {}).items() if k in CARRIED}
    status = carried | own | extra
    try:
        write_json(path, status)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        try:
            with open(path, "r+") as sink:
                sink.write(json.dumps(status, default=str))
                sink.truncate()
        except OSError:
            print(f"{path} could not be written ({error.strerror}): {status}", file=sys.stderr)


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


def hold(folder: str | Path, seconds: float):
    """Take a run folder for this process, making it when it is new; returns the lock, held while it stays open.

    A POSIX lock: the kernel frees it with the process, it also works between machines on most network file systems, and
    where it does not, the pid in status.json still tells processes of one machine apart. Waits up to `seconds` for a run
    that was just stopped and may still be saving. Raises RuntimeError when it is trained elsewhere or cannot be written.
    """
    folder, deadline = Path(folder), time.time() + seconds
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle = open(folder / "lock", "a+")
    except OSError as error:
        _explain(folder, error)
        raise
    while True:
        status = read_status(folder)
        pid, host = status.get("pid"), status.get("host", "this machine")
        elsewhere = status.get("state") == "running" and pid != os.getpid()
        try:
            fcntl.lockf(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if not elsewhere:
                return handle
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EAGAIN) and not elsewhere:
                return handle  # a file system without locks
        if time.time() > deadline:
            handle.close()
            raise RuntimeError(f"{folder} is being trained by process {pid} on {host}; wait for it, or stop it first")
        time.sleep(0.5)


def _explain(folder: Path, error: OSError) -> None:
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        raise RuntimeError(
            f"{folder} cannot be written ({error.strerror}); make it writable, or name another folder with --out"
        ) from error


def append_metrics(folder: Path, row: dict) -> None:
    """Append one line to metrics.jsonl, all of it or (on a full disk) nothing; it holds `step` and measured columns."""
    line = (json.dumps(row) + "\n").encode()
    with io.FileIO(Path(folder) / "metrics.jsonl", "a") as sink:
        before = os.fstat(sink.fileno()).st_size
        try:
            if sink.write(line) != len(line):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), sink.name)
        except OSError:
            sink.truncate(before)
            raise


def truncate_metrics(folder: Path, step: int) -> None:
    """Forget what was measured after `step`: a resumed run measures it again."""
    path = Path(folder) / "metrics.jsonl"
    if path.is_file():
        kept = [
            line
            for line in path.read_text().splitlines()
            if (row := parse_row(line)) is not None and row["step"] <= step
        ]
        write_text(path, "".join(line + "\n" for line in kept))


def load_metrics(folder: str | Path):
    """metrics.jsonl as a DataFrame, one row a step; an unfinished last line (kill -9) is dropped."""
    import pandas as pd

    path = Path(folder) / "metrics.jsonl"
    rows = (
        [row for line in path.read_text().splitlines() if (row := parse_row(line)) is not None]
        if path.is_file()
        else []
    )
    if not rows:
        return pd.DataFrame({"step": pd.Series(dtype=int)})
    return pd.DataFrame(rows).groupby("step", as_index=False).last()


def parse_row(line: str) -> dict | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and "step" in row else None


def load_completions(folder: str | Path):
    """All stored rollouts of a run as a DataFrame, empty when there are none; a half-written file (kill -9) is named."""
    import pandas as pd
    from pyarrow.lib import ArrowInvalid

    frames = []
    for file in sorted((Path(folder) / "completions").glob("completions_*.parquet")):
        try:
            frames.append(pd.read_parquet(file))
        except ArrowInvalid:  # a resumed run writes it again
            print(f"{file.name} is not whole and left out", file=sys.stderr)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
