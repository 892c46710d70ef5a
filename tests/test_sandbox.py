"""Hostile programs against the sandbox, run as we are, as an unprivileged user, and under bubblewrap where it is installed."""

import json
import marshal
import math
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest

from corelib import sandbox
from tests.hostile import HOSTILE, ROOT, attack, fill, left_over

SYSTEM_PYTHON = "/usr/bin/python3"
NOBODY = dict(user=65534, group=65534, extra_groups=[])


def check(name: str, outcome: dict, seconds: float, left: list) -> None:
    code, reasons, options = HOSTILE[name]
    said = outcome["stdout"][:2000] + outcome["stderr"][-2000:]
    assert outcome["reason"] in reasons, f"{name}: {outcome['reason']} {said}"
    assert "ESCAPED" not in said, said
    assert left == [], f"{name}: processes {left} live on"
    assert seconds < options.get("timeout", 10) + 1, f"{name}: {seconds:.2f} s"
    assert len(outcome["stdout"].encode()) + len(outcome["stderr"].encode()) <= sandbox.OUTPUT


@pytest.fixture
def isolated():
    why = sandbox.available()
    if why:
        pytest.skip(why)


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile(name, isolated):
    check(name, *attack([name])[name])


@pytest.mark.parametrize("name", ["reading outside", "network", "other processes", "environment and open files"])
def test_hostile_programs_escape_where_there_is_no_sandbox(name, tmp_path):
    """Otherwise the test above could not fail. Only those that do no harm."""
    code = fill(HOSTILE[name][0])
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd="/", stdout=subprocess.PIPE, text=True, timeout=30)
    assert "ESCAPED" in done.stdout


def test_daemons_are_seen_while_they_run(isolated):
    code = fill(HOSTILE["daemon"][0]) + "\ntime.sleep(1)"
    with ThreadPoolExecutor(1) as pool:
        outcome = pool.submit(sandbox.run, code)
        deadline = time.monotonic() + 10
        while not left_over() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert left_over()
        assert outcome.result().stdout == "1\n"
    assert left_over() == []


def test_ordinary_programs(isolated):
    run = sandbox.run
    assert run("print(input()[::-1])", "h\u00e4llo\n") == ("oll\u00e4h\n", "", 0, "ok")
    assert run("import sys; print(len(sys.stdin.read())); exit(0)", "x" * 5_000_000).stdout == "5000000\n"
    assert run("pass", "x" * 5_000_000).reason == "ok"  # input that nobody reads
    assert run("import sys; print(sys.stdin.buffer.read())", b"\xff\0").stdout == "b'\\xff\\x00'\n"
    assert run("import sys; sys.stdout.buffer.write(b'a\\xffb')").stdout == "a\ufffdb"
    assert run("print(open('/dev/stdin').read(), open(0).read())", "hi").stdout.startswith("hi")
    failed = run("print(1)\n1 / 0")
    assert (failed.stdout, failed.returncode, failed.reason) == ("1\n", 1, "error")
    assert failed.stderr.endswith("ZeroDivisionError: division by zero\n") and '"/main.py", line 2' in failed.stderr
    assert run("import sys; sys.exit(5)")[2:] == (5, "error")
    assert run("import os; os.abort()")[2:] == (-6, "error")
    for unreadable in "x = 1\0", "'\udce9'", "def f(:":
        assert "SyntaxError" in run(unreadable).stderr
    library = "import asyncio, decimal, hashlib, multiprocessing, sqlite3, ssl, tempfile, zoneinfo\n"
    library += "with multiprocessing.get_context('fork').Pool(2) as pool:\n    print(pool.map(abs, [-1, -2]))\n"
    library += "async def f():\n    return 7\nprint(asyncio.run(f()), tempfile.TemporaryFile().read())"
    assert run(library).stdout == "[1, 2]\n7 b''\n"
    for name in "numpy", "torch", "pip", "corelib":
        assert "ModuleNotFoundError" in run(f"import {name}").stderr


def test_limits_are_those_asked_for(isolated):
    assert sandbox.run("bytearray(100 * 2**20)", memory_mb=256).reason == "ok"
    assert sandbox.run("bytearray(300 * 2**20)", memory_mb=256).reason == "memory"
    began = time.monotonic()
    assert sandbox.run("print('before', flush=True)\nwhile True: pass", timeout=0.5) == (
        "before\n",
        "",
        None,
        "timeout",
    )
    assert 0.5 <= time.monotonic() - began < 1.5
    assert sandbox.run("import time; time.sleep(0.5)", timeout=2).reason == "ok"
    threads = "import threading\ndef f():\n    while True: pass\nfor _ in range(3): threading.Thread(target=f).start()"
    assert sandbox.run(threads, timeout=0.5).reason == "timeout"
    assert sandbox.run("print(open('/proc/self/oom_score_adj').read())").stdout.strip() == "1000"
    for wrong in dict(timeout=0), dict(timeout=float("nan")), dict(timeout=float("inf")), dict(memory_mb=8):
        with pytest.raises(ValueError, match="=(0|nan|inf|8): "):
            sandbox.run("", **wrong)


@pytest.mark.parametrize("heed", ["", "import signal; signal.signal(signal.SIGXCPU, signal.SIG_IGN)\n"])
def test_an_end_by_the_processors_time_is_a_timeout(isolated, monkeypatch, heed):
    """The kernel may end a process a little before its accounts show the limit; that is no error of the program."""
    monkeypatch.setattr(sandbox, "math", SimpleNamespace(inf=math.inf, ceil=lambda _: 1))  # second of CPU, 8 of wall
    assert [sandbox.run(heed + "while True: pass", timeout=8.0).reason for _ in range(3)] == ["timeout"] * 3


def test_shared_pages_count_once(isolated):
    """16 children that only read 100 MiB of their parent: 1.6 GiB by resident size, 0.1 GiB in truth."""
    code = "import os, time\nx = bytearray(b'1') * (100 * 2**20)\n"
    code += "for _ in range(16):\n    if os.fork() == 0:\n        sum(x[::4096]); time.sleep(60)\ntime.sleep(1); print('done')"
    assert sandbox.run(code, memory_mb=400).stdout == "done\n"


def test_output_at_the_limit(isolated, monkeypatch):
    monkeypatch.setattr(sandbox, "OUTPUT", 10_000)
    assert sandbox.run("print('x' * 9_999)")[2:] == (0, "ok")
    cut = sandbox.run("print('x' * 10_000)")
    assert cut[2:] == (None, "output") and cut.stdout == "x" * 10_000
    both = sandbox.run("import sys; sys.stderr.write('e' * 100); sys.stderr.flush(); print('x' * 100_000)")
    assert both.reason == "output" and both.stderr == "e" * 100 and len(both.stdout) == 9_900


def test_nothing_is_left_open(isolated):
    def descriptors():
        return sorted(os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}"))  # fmt: skip

    sandbox.run("pass")
    before = descriptors()
    for code in "pass", "1 / 0", "while True: pass", "while True: print('x' * 10**6)":
        sandbox.run(code, timeout=0.3)
    assert descriptors() == before


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGINT])
def test_programs_end_with_their_caller(isolated, sign):
    token = f"sbx{os.getpid()}"
    code = f"open('/proc/self/comm', 'w').write('{token}')\nimport time\ntime.sleep(60)"
    caller = subprocess.Popen([sys.executable, "-c", f"from corelib import sandbox; sandbox.run({code!r}, timeout=60)"], cwd=ROOT, stderr=subprocess.DEVNULL)  # fmt: skip
    deadline = time.monotonic() + 15
    while not left_over() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_over()
    caller.send_signal(sign)
    caller.wait(timeout=5)
    deadline = time.monotonic() + 2
    while left_over() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert left_over() == []


REFUSED = """
from corelib import sandbox
outcome = sandbox.run("print('it ran')")
assert outcome.reason == "refused" and outcome.returncode is None and outcome.stdout == "", outcome
assert outcome.stderr == sandbox.available(), outcome
print(outcome.stderr)
"""


LOCKED = """
import os, sys
lock = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$0" -c "$1"'
os.execvp("unshare", ["unshare", "--user", "--map-root-user", "sh", "-c", lock, sys.executable, sys.argv[1]])
"""


@pytest.mark.parametrize("nobody", [True, False])
def test_refused_where_the_kernel_grants_no_user_namespace(nobody):
    """Inside a namespace in which no other may be made, as in a container; root there is root of one user only."""
    if nobody:
        done = as_nobody("-c", LOCKED, REFUSED)
    else:
        done = subprocess.run([sys.executable, "-c", LOCKED, REFUSED], cwd=ROOT, capture_output=True, text=True)
    if "unshare:" in done.stderr or "No such file" in done.stderr:
        pytest.skip(f"no namespace to forbid namespaces in: {done.stderr}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("model-written code cannot be isolated here (unshare: ")
    assert ("No space left" if nobody else "setgroups: Operation not permitted") in done.stdout or os.geteuid() != 0
    assert "install bubblewrap" in done.stdout


@pytest.mark.parametrize("fault", ["mount", "capset", "setrlimit", "seccomp", "interpreter", "guard"])
def test_refused_where_any_step_of_the_isolation_fails(fault, monkeypatch):
    """Each protection is made to fail; the program must then not run at all."""
    layout = dict(sandbox._layout())
    if fault == "mount":
        layout["binds"] = [*layout["binds"], "/no/such/folder"]
    elif fault == "setrlimit":
        monkeypatch.setattr(sandbox, "LIMITS", sandbox.LIMITS | {"NOFILE": -2})
    else:
        changed_guard(monkeypatch, dict(
            capset=("0x20080522", "0x1"),
            seccomp=('call("prctl", 22, 2,', 'call("prctl", 22, 7,'),
            interpreter=('os.execve(setup["python"]', 'os.execve("/no/python"'),
            guard=("import ctypes", "raise SystemExit(3)"),
        )[fault])  # fmt: skip
    monkeypatch.setattr(sandbox, "_layout", lambda: layout)
    monkeypatch.setattr(sandbox, "_found", "")
    outcome = sandbox.run("print('it ran')")
    assert outcome.reason == "refused" and outcome.stdout == "" and outcome.stderr == sandbox.available() != ""


def changed_guard(monkeypatch, *changes):
    text = (ROOT / "corelib" / "_sandbox_guard.py").read_text()
    for old, new in changes:
        assert text.count(old) == 1
        text = text.replace(old, new)
    code = marshal.dumps(compile(text, "guard", "exec"))
    monkeypatch.setattr(sandbox, "_guard", lambda: code)


def test_a_sandbox_that_does_not_end_itself_is_killed(isolated, monkeypatch):
    changed_guard(monkeypatch, ("if time.monotonic() >= deadline:", "if False:"))
    began = time.monotonic()
    assert sandbox.run("import time\nprint(1, flush=True)\ntime.sleep(60)", timeout=0.5) == ("1\n", "", None, "timeout")
    assert time.monotonic() - began < 1.5
    changed_guard(monkeypatch, ("        harden(setup)\n", "        time.sleep(60)\n"))
    monkeypatch.setattr(sandbox, "READY", 0.5)
    assert sandbox.run("print(1)") == ("", "no answer in 0 s", None, "refused")


def test_a_guard_that_dies_under_a_program_is_no_excuse(isolated, monkeypatch):
    """`refused` would be skipped in a score; whatever happens once the program runs is the program's failure."""
    changed_guard(monkeypatch, ("        size = in_use(resident)\n", "        raise MemoryError\n"))
    outcome = sandbox.run("import time\ntime.sleep(5)")
    assert (outcome.returncode, outcome.reason) == (None, "error")


PROTECTIONS = {  # what hostile program shows that it is gone, and how it is taken out of the guard
    "process limit": ("fork bomb that counts", '(getattr(resource, "RLIMIT_" + name), (limit, limit))', '(getattr(resource, "RLIMIT_" + name), (limit * 4, limit * 4))'),
    "hidden process 1": ("reading outside", 'call("prctl", 4, 0)', "pass"),
    "filter of system calls": ("memory outside of processes", "allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000", "allow = kill = error = 0x7FFF0000"),
    "sum over the group": ("memory of many processes", "if held > memory:", "if False:"),
    "end with the program": ("daemon that keeps the output", "if pid == guest:", "if False:"),
    "read-only": ("writing outside", "attributes, 0, 0, 0), 32", "0, 0, 0, 0), 32"),
    "network": ("network", "0x40000000 | 0x08000000", "0x08000000"),
    "pid namespace": ("daemon that keeps the output", "0x00020000 | 0x20000000 | ", "0x00020000 | "),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", PROTECTIONS)
def test_each_protection_matters(name, isolated, monkeypatch):
    """With one taken out, the hostile program against it gets through or nothing runs: the tests above can fail."""
    program, old, new = PROTECTIONS[name]
    changed_guard(monkeypatch, (old, new))
    result = attack([program])[program]
    with pytest.raises(AssertionError):
        check(program, *result)


def test_refused_on_kernels_that_do_not_bound_processes(monkeypatch):
    real = os.uname()
    for release, machine, word in ("5.4.0-1", "x86_64", "5.14"), ("6.1.0", "riscv64", "riscv64"):
        monkeypatch.setattr(os, "uname", lambda r=release, m=machine: os.uname_result((*real[:2], r, real[3], m)))
        monkeypatch.setattr(sandbox, "_found", "")
        assert word in sandbox.available() and sandbox.run("print(1)").reason == "refused"


@pytest.fixture
def counted(monkeypatch):
    """Programs are stood in for by 50 ms of waiting; how many of them ran at once, and their memory."""
    state = dict(now=0, most=0, memory=0, most_memory=0, lock=threading.Lock())

    def execute(way, code, stdin, timeout, memory_mb):
        with state["lock"]:
            state["now"] += 1
            state["memory"] += memory_mb
            state["most"] = max(state["most"], state["now"])
            state["most_memory"] = max(state["most_memory"], state["memory"])
        time.sleep(0.05)
        with state["lock"]:
            state["now"] -= 1
            state["memory"] -= memory_mb
        return sandbox.Outcome("", "", 0, "ok")

    monkeypatch.setattr(sandbox, "_execute", execute)
    monkeypatch.setattr(sandbox, "_found", "unshare")
    return state


def submit(n, **options):
    with ThreadPoolExecutor(n) as pool:
        return [job.result() for job in [pool.submit(sandbox.run, "", **options) for _ in range(n)]]


def test_admission_by_cores(counted, monkeypatch):
    monkeypatch.setattr(sandbox, "_cores", lambda: 4)
    monkeypatch.setattr(sandbox, "_free_mb", lambda: 10**6)
    assert {outcome.reason for outcome in submit(40)} == {"ok"}
    assert counted["most"] == 4 and sandbox._running == []


def test_admission_by_memory(counted, monkeypatch):
    monkeypatch.setattr(sandbox, "_cores", lambda: 100)
    monkeypatch.setattr(sandbox, "_free_mb", lambda: 1100)
    assert {outcome.reason for outcome in submit(20, memory_mb=500)} == {"ok"}
    assert counted["most"] == 2 and counted["most_memory"] == 1000
    (refused,) = submit(1, memory_mb=2000)
    assert refused.reason == "refused" and "2000 MiB and 1100 MiB are free" in refused.stderr
    assert sandbox._running == []


def test_limits_of_a_container(tmp_path):
    files = {"cpu.max": "150000 100000", "memory.max": str(300 * 2**20), "memory.current": str(200 * 2**20), "memory.stat": f"anon 1\ninactive_file {50 * 2**20}\n"}  # fmt: skip
    here, free = len(os.sched_getaffinity(0)), sandbox._free_mb(str(tmp_path))
    assert sandbox._cores(str(tmp_path)) == here and free > 0
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    assert sandbox._cores(str(tmp_path)) == 1
    assert sandbox._free_mb(str(tmp_path)) == min(free, 150) or free < 150
    (tmp_path / "memory.max").write_text("max\n")
    (tmp_path / "cpu.max").write_text("max 100000\n")
    assert sandbox._cores(str(tmp_path)) == here and sandbox._free_mb(str(tmp_path)) > 150


def storm(n: int, workers: int, monkeypatch):
    """n programs at once, every fourth of them endless: waiting for a turn must cost no program its own time."""
    monkeypatch.setattr(sandbox, "_cores", lambda: workers)
    honest, endless = "import time\ntime.sleep(0.2)\nprint(@)", "while True: pass"
    with ThreadPoolExecutor(n) as pool:
        jobs = [pool.submit(sandbox.run, endless if i % 4 == 0 else honest.replace("@", str(i)), "", 2, 64) for i in range(n)]  # fmt: skip
        for i, job in enumerate(jobs):
            outcome = job.result()
            assert outcome.reason == ("timeout" if i % 4 == 0 else "ok"), outcome
            assert outcome.stdout == ("" if i % 4 == 0 else f"{i}\n")


def test_many_at_once(isolated, monkeypatch):
    storm(12, 3, monkeypatch)


@pytest.mark.slow
def test_two_hundred_at_once(isolated, monkeypatch):
    began = time.monotonic()
    storm(200, 8, monkeypatch)
    assert time.monotonic() - began > 50 * 2 / 8  # the endless ones really took turns


def as_nobody(*args, **options) -> subprocess.CompletedProcess:
    """A Python program of this repository run by an unprivileged user, or by us where we are one."""
    python = sys.executable
    if os.geteuid() == 0:
        python, options = SYSTEM_PYTHON, options | NOBODY
        probe = "import sys; import corelib.sandbox; sys.exit(sys.version_info < (3, 11))"
        if (
            not os.path.exists(python)
            or subprocess.run([python, "-c", probe], cwd=ROOT, capture_output=True, **NOBODY).returncode
        ):
            pytest.skip(f"no interpreter that user nobody can start ({python} is missing, too old, or cannot read us)")
    env = {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", "PATH": os.environ["PATH"]}
    return subprocess.run([python, *args], env=env, cwd="/", capture_output=True, text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("way", ["unshare", "bwrap"])
def test_hostile_to_an_unprivileged_user(way):
    if way == "bwrap" and not shutil.which("bwrap"):
        pytest.skip("bubblewrap is not installed")
    why = as_nobody("-c", f"from corelib import sandbox; print(sandbox._fails('{way}'))").stdout.strip()
    if why:
        pytest.skip(why)
    done = as_nobody("-m", "tests.hostile", way, timeout=300)
    assert done.returncode == 0, done.stderr
    results = json.loads(done.stdout)
    assert set(results) == set(HOSTILE)
    for name, result in results.items():
        check(name, *result)
