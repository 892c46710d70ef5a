import json
import os
import subprocess
import sys

import pytest

from corelib import runs
from corelib.config import load_config


def test_write_is_all_or_nothing(tmp_path, monkeypatch):
    path = tmp_path / "status.json"
    runs.write_json(path, {"a": 1})

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        runs.write_json(path, {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [path]  # no temporary file stays behind


def test_status_of_a_dead_process_reads_as_killed(tmp_path):
    assert runs.read_status(tmp_path) == {}
    runs.write_status(tmp_path, "running", step=3)
    assert runs.read_status(tmp_path)["state"] == "running"
    child = subprocess.run(
        [sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, text=True, check=True
    )
    status = runs.read_json(tmp_path / "status.json") | {"pid": int(child.stdout)}
    runs.write_json(tmp_path / "status.json", status)
    assert runs.read_status(tmp_path)["state"] == "killed"


def test_metrics_merge_truncate_and_survive_a_torn_line(tmp_path):
    runs.append_metrics(tmp_path, {"step": 1, "gt/validation": 0.5})
    runs.append_metrics(tmp_path, {"step": 1, "reward": 0.1})
    runs.append_metrics(tmp_path, {"step": 2, "reward": 0.2})
    with open(tmp_path / "metrics.jsonl", "a") as sink:
        sink.write('{"step": 3, "rew')
    frame = runs.load_metrics(tmp_path)
    assert (
        frame["step"].tolist() == [1, 2] and frame["reward"].tolist() == [0.1, 0.2] and frame["gt/validation"][0] == 0.5
    )
    runs.truncate_metrics(tmp_path, 1)
    assert runs.load_metrics(tmp_path)["step"].tolist() == [1]
    assert len(runs.load_metrics(tmp_path / "absent")) == 0


def test_manifest_says_what_was_run(tmp_path):
    runs.write_manifest(tmp_path, load_config("lab", method="gt", seed=4), data_hash="abc")
    manifest = runs.read_json(tmp_path / "manifest.json")
    assert manifest["config"]["seed"] == 4 and manifest["data_hash"] == "abc"
    assert {"python", "torch", "trl"} <= manifest["versions"].keys() and "git_commit" in manifest


def test_data_hash_depends_on_content_and_order():
    a, b = {"q": "1"}, {"q": "2"}
    assert runs.data_hash([a, b]) == runs.data_hash([a, b]) != runs.data_hash([b, a])


def test_a_reused_pid_is_not_the_run(tmp_path):
    runs.write_status(tmp_path, "running")
    runs.write_json(tmp_path / "status.json", runs.read_json(tmp_path / "status.json") | {"born": "another boot"})
    assert runs.read_status(tmp_path)["state"] == "killed"


def test_a_folder_belongs_to_one_configuration(tmp_path):
    runs.write_manifest(tmp_path, load_config("lab", method="gt"))
    runs.refuse_other_settings(tmp_path, load_config("lab", method="gt", save_steps=7))
    with pytest.raises(RuntimeError, match=r"other settings \(method, learning_rate\)"):
        runs.refuse_other_settings(tmp_path, load_config("lab", method="entropy", learning_rate=1e-5))
