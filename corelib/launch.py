"""Child processes and notebooks: run a command so that nothing outlives its parent, and run notebooks in a queue.

A training never runs inside a notebook's kernel. The kernel starts a supervisor, the supervisor starts the training (in
one process or, through `corelib.processes`, in several): whether the cell is interrupted, papermill is terminated or the
kernel is killed with -9, all of it ends, after it had time to save (`stop_seconds`). PR_SET_PDEATHSIG on the training
alone would leave its own children behind.
"""

from __future__ import annotations

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

from corelib import processes, runs
from corelib.config import ROOT, RunConfig, load_config, unknown

NOTEBOOKS = ROOT / "notebooks"
GRACE = 20.0  # seconds between the request to stop and the kill, where a run does not say (`stop_seconds`)


def child_environment() -> dict[str, str]:
    """The environment of every child: unbuffered output, no widgets, thread settings for shared cores."""
    quiet = {
        "PYTHONUNBUFFERED": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    threads = {"OMP_WAIT_POLICY": "PASSIVE"} | ({} if processes.visible_gpus() else {"OMP_NUM_THREADS": "1"})
    inherited = {k: v for k, v in os.environ.items() if k != "MPLBACKEND"}  # a notebook's kernel chooses inline figures
    return {**inherited, **quiet, **{k: os.environ.get(k, v) for k, v in threads.items()}}


def run_logged(
    command: Sequence[str],
    log: str | Path,
    every: float = 10.0,
    tail: int = 30,
    echo: Callable = print,
    poll: Callable | None = None,
    grace: float = GRACE,
) -> None:
    """Run `command` under the supervisor with all its output in `log`; echo its last line every `every` seconds.

    `poll` is called about once a second (a live plot). On interrupt or error the whole process group is asked to stop,
    and killed `grace` seconds later.
    Raises RuntimeError with the last `tail` lines of the log when the command fails.
    """
    log = Path(log)
    log.parent.mkdir(parents=True, exist_ok=True)
    shown, last_echo, last_poll = "", time.time(), 0.0
    with open(log, "ab") as sink:
        begin = sink.tell()
        child = _start([str(c) for c in command], sink, grace)
    try:
        while child.poll() is None:
            time.sleep(0.2)
            now = time.time()
            if poll and now - last_poll > 1:
                last_poll = now
                try:
                    poll()
                except Exception as error:  # a figure that fails must not stop a two-day run
                    poll = echo(f"no live plot any more: {type(error).__name__}: {error}")
            if now - last_echo > every:
                last_echo = now
                line = (log.read_text(errors="replace")[-2000:].strip().splitlines() or [""])[-1]
                if line != shown:
                    shown = line
                    echo(line)
    finally:
        stop(child, grace)
    if child.returncode:
        with open(log, "rb") as source:
            source.seek(begin)
            lines = source.read().decode(errors="replace").strip().splitlines()[-tail:]
        raise RuntimeError(
            f"`{' '.join(map(str, command))}` ended with {child.returncode}; whole log: {log}\n" + "\n".join(lines)
        )


def _start(command: list[str], sink, grace: float = GRACE) -> subprocess.Popen:
    """Start a command under a supervisor in a session of its own."""
    supervised = [sys.executable, "-m", "corelib.launch", str(grace), *command]
    return subprocess.Popen(
        supervised, stdin=subprocess.DEVNULL, stdout=sink, stderr=subprocess.STDOUT, cwd=ROOT, env=child_environment(), start_new_session=True, preexec_fn=processes.die_with_parent
    )  # fmt: skip


def stop(child: subprocess.Popen, grace: float = GRACE) -> None:
    """Ask a supervised child and its whole group to end, and see to it that it does."""
    if child.poll() is None:
        child.terminate()
        try:
            child.wait(grace + 5)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def supervise(command: Sequence[str], grace: float = GRACE) -> int:
    """Run a command in a group of its own and return its exit code; no member of the group outlives this call.

    On SIGTERM, SIGINT or the parent's death the group gets SIGTERM, and SIGKILL `grace` seconds later.
    """
    told = []
    parent = os.getppid()
    signal.signal(signal.SIGTERM, lambda *_: told.append(1))
    signal.signal(signal.SIGINT, lambda *_: told.append(1))
    child = subprocess.Popen(list(command), process_group=0, preexec_fn=processes.die_with_parent)
    # Waiting inside the handler would deadlock on the lock of the outer wait: poll.
    while child.poll() is None and not told and os.getppid() == parent:
        time.sleep(0.1)
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)
        deadline = time.time() + grace
        while child.poll() is None and time.time() < deadline:
            time.sleep(0.1)
    try:
        os.killpg(child.pid, signal.SIGKILL)  # a command that ended may have left children of its own
    except ProcessLookupError:
        pass
    child.wait()
    return child.returncode if child.returncode >= 0 else 128 - child.returncode


def train_command(config: RunConfig, folder: str | Path) -> list[str]:
    """The command that trains or resumes the run in `folder`, once the files of `prepare` are there."""
    several = ["corelib.processes", "--config_file", str(Path(folder) / processes.FILE), "-m"]
    return [sys.executable, "-m", *(several if processes.count(config) > 1 else []), *_module(folder)]


def train_lines(config: RunConfig, folder: str | Path, machines: int = 1) -> list[str]:
    """The same as shell lines, one for each machine; before them those of vLLM's servers, where the run asks servers."""
    serve = []
    if config.engine == "vllm_server":
        from corelib.engine import server_lines

        serve = server_lines(config)
    if machines == 1:
        return [*serve, shlex.join(train_command(config, folder))]
    total = processes.count(config) * machines
    file = Path(folder) / processes.FILE
    return serve + processes.machine_commands(_module(folder), file, machines, total, config.stop_seconds)


def _module(folder: str | Path) -> list[str]:
    return ["corelib.train", "--config", str(Path(folder) / "config.yaml"), "--out", str(folder)]


def prepare(config: RunConfig, machines: int = 1) -> dict[str, str]:
    """What a training reads from its folder before it starts, as {file name: text}: settings and, for several processes,
    accelerate's configuration. Raises ValueError for more GPUs than there are, or rollouts that do not split over them.
    """
    import yaml

    files = {"config.yaml": config.to_yaml()}
    total = processes.count(config) * machines
    rollouts = config.prompts * config.rollouts
    micro = min(config.micro_batch, rollouts // total)
    if not micro or rollouts % (micro * total):
        raise ValueError(
            f"{rollouts} rollouts a step do not split over {total} processes x micro_batch={config.micro_batch}; choose a micro_batch that divides {rollouts // total}"
        )
    if config.engine == "vllm" and total % config.vllm_tensor_parallel:
        raise ValueError(f"vllm_tensor_parallel={config.vllm_tensor_parallel} does not divide {total} GPUs")
    if total > 1:
        settings = processes.accelerate_config(config, total, machines)
        files[processes.FILE] = yaml.safe_dump(settings, sort_keys=False)
    return files


def train(config: RunConfig, folder: Path | None = None, echo: Callable = print, poll: Callable | None = None) -> Path:
    """Train a run in a supervised child, or resume it, or do nothing when it is done. Returns the run folder.

    Raises RuntimeError when it ended early: stopped and saved (a signal, `max_hours`), or failed, with the log's end.
    """
    folder = Path(folder or runs.run_folder(config)).absolute()
    runs.refuse_other_settings(folder, config)
    if runs.read_status(folder).get("state") == "done":
        echo(f"{folder.name} is done; delete the folder to train again")
        return folder
    for name, text in prepare(config).items():
        runs.write_text(folder / name, text)
    started = time.time()
    try:
        run_logged(
            train_command(config, folder),
            folder / "train.log",
            echo=echo,
            poll=poll,
            grace=config.stop_seconds,
        )
    except RuntimeError:
        status = runs.read_status(folder)
        # An older status may be another call's: this one may have died before it wrote its own
        if status.get("state") != "stopped" or status.get("time", 0) < started or not status.get("last_good", True):
            raise
        why = f" ({status['error']})" if str(status.get("error", "")).startswith("alarm") else ""
        raise RuntimeError(
            f"{folder.name} was stopped at step {status.get('step', 0)} of {status.get('steps')} and is saved{why}; the same line goes on from there"
        ) from None
    return folder


# --- notebooks ----------------------------------------------------------------------------------------------------


def notebook_parameters(name: str) -> dict[str, object]:
    """Names and defaults of a notebook's `parameters` cell."""
    import nbformat

    book = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cells = [c for c in book.cells if "parameters" in c.metadata.get("tags", [])]
    return {name: ast.literal_eval(value) for name, value in _assignments(cells[0].source)}


def _assignments(source: str) -> list[tuple[str, ast.expr]]:
    found = []
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and node.value is not None:
            found.append((node.target.id, node.value))
        elif isinstance(node, ast.Assign):
            found += [(t.id, node.value) for t in node.targets if isinstance(t, ast.Name)]
    return found


def reject_unknown(name: str, given) -> None:
    """Raise ValueError for a parameter that the notebook does not have, naming the nearest and all valid ones."""
    valid = notebook_parameters(name)
    for parameter in given:
        if parameter not in valid:
            raise ValueError(unknown(f"parameter of {name}", parameter, valid))


@dataclass
class Notebook:
    """What a notebook's third cell needs: the parameters that were given, and its folder for files."""

    name: str
    given: dict  # parameters that papermill injected or the reader changed
    out: Path | None  # where the notebook's own files go; None for those that write into a run folder

    def config(self) -> RunConfig:
        """The run's configuration: the profile, then the file `config`, then the parameters that were given."""
        names = {f.name for f in fields(RunConfig)}
        return load_config(path=self.given.get("config", ""), **{k: v for k, v in self.given.items() if k in names})


def notebook_setup(namespace: dict, name: str) -> Notebook:
    """Third cell of every notebook: reject parameters papermill injected but the notebook does not have, show versions.

    papermill only warns about an unknown `-p name value` and runs on; a two-day run must not start with a misspelt one.
    """
    warnings.filterwarnings("ignore", message="IProgress")  # progress is plain text: widgets bloat a saved notebook
    injected = []
    for source in namespace.get("In", []):
        if source.startswith("# Parameters\n"):  # how papermill marks the cell that it injects
            injected += [parameter for parameter, _ in _assignments(source)]
    reject_unknown(name, injected)
    given = {
        k: namespace[k]
        for k, default in notebook_parameters(name).items()
        if k in namespace and (k in injected or namespace[k] != default)
    }
    print("  ".join(f"{k} {v}" for k, v in runs.versions().items() if k != "platform"))
    out = None
    if "out" in notebook_parameters(name):
        out = ROOT / (namespace.get("out") or runs.RUNS / "pipeline-interactive")
        out.mkdir(parents=True, exist_ok=True)
        print(f"files go to {_short(out)}")
    return Notebook(name, given, out)


def _short(path: Path) -> str:
    return str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else str(path)


def papermill_command(name: str, output: Path, parameters: dict) -> list[str]:
    """One papermill line. Strings go through -r, so that YAML does not turn `no` into False."""
    line = [
        sys.executable,
        "-m",
        "papermill",
        str(NOTEBOOKS / f"{name}.ipynb"),
        str(output),
        "--kernel",
        "python3",
        "--no-progress-bar",
    ]
    for key, value in parameters.items():
        line += ["-r", key, value] if isinstance(value, str) else ["-p", key, str(value)]
    return line


# --- a queue of notebooks -----------------------------------------------------------------------------------------


@dataclass
class Job:
    """One notebook to execute: after `needs`, unless `done()`; `run` is the training run whose progress it shows."""

    name: str
    notebook: str
    output: Path
    parameters: dict
    needs: tuple[str, ...] = ()
    any_need: bool = False  # run when all needs have ended and one of them well: a report on what there is
    done: Callable[[], bool] = lambda: False
    run: Path | None = None
    typical: float = 20.0  # seconds, until a job of the same notebook has been timed
    child: subprocess.Popen | None = field(default=None, repr=False)
    started: float = 0.0

    @property
    def command(self) -> list[str]:
        return papermill_command(self.notebook, self.output, self.parameters)


def execute(jobs: Sequence[Job], workers: int = 2, say: Callable = print, every: float = 15.0) -> dict[str, str]:
    """Run the jobs, `workers` at a time, in the order their needs allow. Returns {job: done | skipped | failed | blocked}.

    A job whose need failed is blocked; the others still run. Everything is stopped when this call is interrupted.
    """
    state, timed, last, started = {}, {}, time.time(), time.time()
    waiting, active = list(jobs), []
    try:
        while waiting or active:
            for job in list(active):
                if job.child.poll() is not None:
                    active.remove(job)
                    seconds = time.time() - job.started
                    timed.setdefault(job.notebook, []).append(seconds)
                    state[job.name] = "done" if job.child.returncode == 0 else "failed"
                    say(f"{_clock(started)} {state[job.name]:>7}  {job.name} ({seconds:.0f} s)")
                    if job.child.returncode:
                        say(_last_lines(job.output.with_suffix(".log")))
            for job in list(waiting):
                needs = [state.get(n) for n in job.needs]
                good, bad = [s in ("done", "skipped") for s in needs], [s in ("failed", "blocked") for s in needs]
                ended = all(g or b for g, b in zip(good, bad, strict=True))
                if ended and any(bad) and not (job.any_need and any(good)) or any(bad) and not job.any_need:
                    state[job.name] = "blocked"
                    waiting.remove(job)
                    say(
                        f"{_clock(started)} blocked  {job.name}: {', '.join(n for n in job.needs if state.get(n) in ('failed', 'blocked'))} failed"
                    )
                elif ended:
                    if job.done() and all(s == "skipped" for s in needs):
                        state[job.name] = "skipped"
                        waiting.remove(job)
                        say(f"{_clock(started)} skipped  {job.name}: it is done")
                    elif len(active) < workers:
                        job.output.parent.mkdir(parents=True, exist_ok=True)
                        with open(job.output.with_suffix(".log"), "wb") as sink:
                            job.child = _start(job.command, sink)
                        job.started = time.time()
                        waiting.remove(job)
                        active.append(job)
            if time.time() - last > every and active:
                last = time.time()
                say(_progress(jobs, state, active, waiting, timed, workers, started))
            time.sleep(0.2)
    finally:
        for job in active:
            stop(job.child)
    return state


def _clock(started: float) -> str:
    minutes, seconds = divmod(int(time.time() - started), 60)
    return f"[{minutes:02d}:{seconds:02d}]"


def _progress(jobs, state, active, waiting, timed, workers, started) -> str:
    """One line: what is done, what runs and how far it is, how long the rest will take."""
    work, parts = 0.0, []
    for job in active:
        status = runs.read_status(job.run) if job.run else {}
        spent = time.time() - job.started
        expected = _mean(timed.get(job.notebook), job.typical)
        work += status.get("eta") or max(expected - spent, 5.0)
        parts.append(f"{job.name} {status['step']}/{status['steps']}" if status.get("step") else job.name)
    work += sum(_mean(timed.get(job.notebook), job.typical) for job in waiting if not job.done())
    left = work / max(1, min(workers, len(active) + len(waiting)))
    return (
        f"{_clock(started)} {len(state)}/{len(jobs)} done; running {', '.join(parts)}; about {left / 60:.1f} min left"
    )


def _mean(values, default: float) -> float:
    return sum(values) / len(values) if values else default


def _last_lines(log: Path, n: int = 25) -> str:
    return "\n".join(log.read_text(errors="replace").strip().splitlines()[-n:]) if log.is_file() else f"no log at {log}"


if __name__ == "__main__":
    sys.exit(supervise(sys.argv[2:], float(sys.argv[1])))
