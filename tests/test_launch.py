"""Supervised children leave no orphan; papermill's parameters are checked; the queue does what its jobs need."""

import os
import signal
import subprocess
import sys
import time

import pytest

from corelib import launch

SLEEPER = "import subprocess, sys, time; p = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)']); print(p.pid, flush=True); time.sleep(300)"


def alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as stat:
            return stat.read().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def wait_for(condition, seconds=30.0):
    deadline = time.time() + seconds
    while time.time() < deadline:
        if condition():
            return True
        time.sleep(0.1)
    return False


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_no_process_outlives_its_notebook(number, tmp_path):
    """The parent plays the notebook's kernel: killed or interrupted, its child and its child's child end too."""
    log = tmp_path / "log"
    parent = subprocess.Popen(
        [sys.executable, "-c", f"from corelib.launch import run_logged; import sys; run_logged([sys.executable, '-c', {SLEEPER!r}], {str(log)!r})"], start_new_session=True
    )  # fmt: skip
    assert wait_for(lambda: log.is_file() and log.read_text().strip())
    grandchild = int(log.read_text().split()[0])
    assert alive(grandchild)
    parent.send_signal(number)
    parent.wait(60)
    assert wait_for(lambda: not alive(grandchild))


def test_stubborn_child_is_killed_after_the_grace():
    code = "import signal, time, os; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(os.getpid(), flush=True); time.sleep(300)"
    child = subprocess.Popen(
        [sys.executable, "-m", "corelib.launch", "1.0", sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    pid = int(child.stdout.readline())
    started = time.time()
    child.terminate()
    child.wait(20)
    assert not alive(pid) and time.time() - started < 10


def test_failure_carries_the_end_of_the_log(tmp_path):
    (tmp_path / "log").write_text("an older run's line\n")
    with pytest.raises(RuntimeError) as error:
        launch.run_logged([sys.executable, "-c", "print('hello'); raise ValueError('the reason')"], tmp_path / "log")
    assert (
        "the reason" in str(error.value) and "ended with 1" in str(error.value) and "older run" not in str(error.value)
    )


def test_success_echoes_progress(tmp_path):
    said = []
    launch.run_logged(
        [sys.executable, "-c", "import time\nfor i in range(3): print('line', i); time.sleep(.5)"],
        tmp_path / "log",
        every=0.3,
        echo=said.append,
    )
    assert any(line.startswith("line") for line in said)


def test_unknown_papermill_parameters_are_refused():
    launch.reject_unknown("03_grpo_training", ["method", "seed"])
    with pytest.raises(ValueError, match="did you mean 'method'.*valid are profile, method"):
        launch.reject_unknown("03_grpo_training", ["metod"])


def test_setup_reads_what_papermill_injected(tmp_path):
    cell = '# Parameters\nmethod = "entropy"\nseed = 0\n'
    defaults = launch.notebook_parameters("03_grpo_training")
    nb = launch.notebook_setup(
        {"In": ["", cell], **defaults, "method": "entropy", "out": str(tmp_path)}, "03_grpo_training"
    )
    assert nb.given == {"method": "entropy", "seed": 0} and nb.config().method == "entropy"
    with pytest.raises(ValueError, match="unknown parameter of 03_grpo_training 'learning_rate'"):
        launch.notebook_setup({"In": ["# Parameters\nlearning_rate = 1\n"], "out": str(tmp_path)}, "03_grpo_training")


def test_default_parameters_do_not_override_a_config_file(tmp_path):
    path = tmp_path / "run.yaml"
    path.write_text("profile: lab\nmethod: co_rewarding_ii\nseed: 5\n")
    namespace = launch.notebook_parameters("03_grpo_training") | {"config": str(path), "out": str(tmp_path)}
    config = launch.notebook_setup(namespace, "03_grpo_training").config()
    assert (config.method, config.seed) == ("co_rewarding_ii", 5)


def test_strings_reach_papermill_as_strings(tmp_path):
    line = launch.papermill_command("03_grpo_training", tmp_path / "o.ipynb", {"method": "no", "seed": 3})
    assert line[line.index("method") - 1] == "-r" and line[line.index("seed") - 1] == "-p"


class Fake(launch.Job):
    """A job whose command is a shell line instead of a notebook."""

    @property
    def command(self):
        return ["sh", "-c", self.parameters["line"]]


def fake(tmp_path, name, line="true", **kwargs):
    return Fake(name, name, tmp_path / f"{name}.ipynb", {"line": line}, **kwargs)


def test_queue_orders_blocks_and_skips(tmp_path):
    said, order = [], tmp_path / "order"
    jobs = [
        fake(tmp_path, "a", f"echo a >> {order}"),
        fake(tmp_path, "b", f"echo b >> {order}", needs=("a",)),
        fake(tmp_path, "bad", "echo broken; exit 3"),
        fake(tmp_path, "after", needs=("bad",)),
        fake(tmp_path, "report", f"echo report >> {order}", needs=("b", "after"), any_need=True),
        fake(tmp_path, "old", done=lambda: True),
        fake(tmp_path, "stale", f"echo stale >> {order}", needs=("a",), done=lambda: True),
    ]
    state = launch.execute(jobs, 2, said.append)
    assert state == {
        "a": "done",
        "b": "done",
        "bad": "failed",
        "after": "blocked",
        "report": "done",
        "old": "skipped",
        "stale": "done",
    }
    ran = order.read_text().split()
    assert ran.index("a") < ran.index("b") < ran.index("report")
    assert any("broken" in line for line in said)


def test_queue_keeps_to_its_workers(tmp_path):
    log = tmp_path / "times"
    line = f"echo start >> {log}; sleep 1; echo end >> {log}"
    launch.execute([fake(tmp_path, str(i), line) for i in range(4)], 2, lambda _: None)
    running = most = 0
    for word in log.read_text().split():
        running += 1 if word == "start" else -1
        most = max(most, running)
    assert most == 2


def test_interrupted_queue_stops_its_children(tmp_path):
    code = f"""
import signal
from pathlib import Path
from tests.test_launch import fake
from corelib import launch
def interrupt(*_): raise KeyboardInterrupt
signal.signal(signal.SIGTERM, interrupt)
launch.execute([fake(Path({str(tmp_path)!r}), "long", "echo $$ > {tmp_path}/pid; sleep 300")], 1, lambda _: None)
"""
    parent = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=launch.ROOT,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(launch.ROOT)},
    )
    assert wait_for(lambda: (tmp_path / "pid").is_file() and (tmp_path / "pid").read_text().strip())
    pid = int((tmp_path / "pid").read_text())
    parent.terminate()
    parent.wait(40)
    assert wait_for(lambda: not alive(pid))


def test_a_stopped_training_says_that_it_is_saved_and_how_to_go_on(tiny, tmp_path, monkeypatch):
    from corelib import launch, runs

    def stopped(*_, **__):
        runs.write_status(tmp_path, "stopped", step=3, steps=9)
        raise RuntimeError("ended with 3")

    monkeypatch.setattr(launch, "run_logged", stopped)
    with pytest.raises(RuntimeError, match="stopped at step 3 of 9 and is saved; the same line goes on"):
        launch.train(tiny("gt"), tmp_path)
    monkeypatch.setattr(launch, "run_logged", lambda *_, **__: (_ for _ in ()).throw(RuntimeError("ended with 1")))
    runs.write_status(tmp_path, "failed")
    with pytest.raises(RuntimeError, match="ended with 1"):
        launch.train(tiny("gt"), tmp_path)
