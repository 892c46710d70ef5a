"""Running programs that a language model wrote: cut off from the machine, within limits, or not at all.

Each program gets its own user, pid, network, mount, ipc, uts and cgroup namespaces, a root folder that holds only the
interpreter (read-only), an empty working folder in memory and an empty environment. Namespaces come from unshare(2)
or, where the system grants them to bubblewrap alone (AppArmor of newer Ubuntu), from `bwrap`. Nothing runs unisolated.

Inside, `_sandbox_guard.py` is process 1. It puts on the limits, filters system calls and starts the program; every
10 ms it sums the memory of the whole group. When it ends, by its own verdict or because we kill it or are gone, the
kernel kills all processes of the group, however they were detached.
"""

from __future__ import annotations

import marshal
import math
import os
import re
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import tempfile
import threading
import time
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import NamedTuple

OUTPUT = 8 * 2**20  # bytes kept of stdout and stderr together: our choice, well above any answer a problem asks for
DISK = 64 * 2**20  # bytes of the working folder
PROCESSES, FILES, FILE = 32, 64, 32 * 2**20  # processes and threads together; open files of each; bytes of a file
LIMITS = {"NPROC": PROCESSES, "NOFILE": FILES, "FSIZE": FILE, "CORE": 0, "MEMLOCK": 0, "MSGQUEUE": 0}
READY = 10.0  # seconds in which a sandbox must be set up
GRACE = 0.7  # seconds after a limit before a sandbox that did not end itself is killed from outside
LEAST_MB = 64  # an interpreter with its libraries maps about 30 MB
KERNEL = (5, 14)  # the first that counts the processes of a user namespace apart from the rest of that user's
MACHINES = ("x86_64", "aarch64")  # with a table of system calls in the guard
FIX = "run as root of a virtual machine or as a user who may make user namespaces (sysctl kernel.apparmor_restrict_unprivileged_userns=0, user.max_user_namespaces above 0), or install bubblewrap; containers need --privileged"


class Outcome(NamedTuple):
    """What a program did; `returncode` is None where the sandbox ended it or never started it.

    reason: ok | error (code not 0, or a signal) | timeout | memory | output (more than `OUTPUT` bytes) | refused (it did
    not run; stderr has the reason, and a test that ends so counts as skipped).
    """

    stdout: str
    stderr: str
    returncode: int | None
    reason: str


def run(code: str, stdin: str | bytes = "", timeout: float = 10, memory_mb: int = 512) -> Outcome:
    """Run a Python program shut off from this machine; waits for a free core and free memory before its time starts.

    `timeout` in seconds of wall clock, and of CPU for each process; `memory_mb` MiB for all its processes and files
    together. stdin and code are passed as UTF-8. Raises ValueError for limits that no program can meet.
    """
    if not 0 < timeout < math.inf:
        raise ValueError(f"timeout={timeout}: give a positive number of seconds")
    if memory_mb < LEAST_MB:
        raise ValueError(f"memory_mb={memory_mb}: an interpreter alone needs {LEAST_MB}")
    way, why = _way()
    if why:
        return Outcome("", why, None, "refused")
    with _admitted(memory_mb) as lack:
        if lack:
            return Outcome("", lack, None, "refused")
        return _execute(way, code, stdin, timeout, memory_mb)


def available() -> str:
    """The reason why `run` refuses on this machine; empty where it can isolate a program."""
    return _way()[1]


_found = ""
_probing = threading.Lock()


def _way() -> tuple[str, str]:
    """How namespaces are had here (unshare | bwrap), tried once with a small program, and why not where they are not."""
    global _found
    with _probing:
        if _found:
            return _found, ""
        system = f"this is {sys.platform} {os.uname().release} on {os.uname().machine}"
        if sys.platform != "linux" or tuple(map(int, re.findall(r"\d+", os.uname().release)[:2])) < KERNEL:
            return "", f"model-written code runs only on Linux 5.14 or newer, {system}"
        if os.uname().machine not in MACHINES:
            return "", f"model-written code runs only on {' and '.join(MACHINES)}, {system}"
        reasons = []
        for way in ("unshare", "bwrap") if shutil.which("bwrap") and not _real_root() else ("unshare",):
            why = _fails(way)
            if not why:
                _found = way
                return way, ""
            reasons.append(f"{way}: {why}")
    return "", f"model-written code cannot be isolated here ({'; '.join(reasons)}): {FIX}"


def _fails(way: str) -> str:
    """Why a small program does not run that way; "" where it does."""
    probe = _execute(way, "print(6 * 7)", "", READY, 256)
    return "" if probe.stdout == "42\n" else probe.stderr.strip() or probe.reason


def _real_root() -> bool:
    """Whether we are uid 0 of the machine, whom no limit on processes binds, and not of a user namespace only."""
    if os.geteuid() != 0:
        return False
    return any(line.split()[:2] == ["0", "0"] for line in Path("/proc/self/uid_map").read_text().splitlines())


# --- one program ---


@cache
def _layout() -> dict:
    """What a sandbox shows of this machine: the interpreter, its standard library and the system's shared libraries."""
    python = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    base = os.path.realpath(sys.base_prefix)
    system = ["/lib", "/lib32", "/lib64", "/usr/lib", "/usr/lib64"]
    links = [(path, os.readlink(path)) for path in system if os.path.islink(path)]
    folders = [path for path in system if os.path.isdir(path) and not os.path.islink(path)]
    prefixes = {
        "base": base,
        "installed_base": base,
        "platbase": base,
        "installed_platbase": base,
    }  # not those of a venv
    stdlib = [os.path.realpath(sysconfig.get_path(name, vars=prefixes)) for name in ("stdlib", "platstdlib")]
    folders += [os.path.join(base, "lib"), *stdlib, "/usr/share/zoneinfo"]
    files = [python, "/etc/ld.so.cache", *(f"/dev/{name}" for name in ("null", "random", "urandom"))]
    binds = []
    for path in sorted({path for path in folders if os.path.isdir(path)}) + files:
        if os.path.exists(path) and not any(path.startswith(bind + "/") for bind in binds):
            binds.append(path)
    links += [(f"/dev/{name}", f"/proc/self/fd/{fd}") for fd, name in enumerate(("stdin", "stdout", "stderr"))]
    links += [("/dev/fd", "/proc/self/fd"), ("/dev/shm", "/box")]
    if not any(bind.startswith("/tmp/") for bind in binds):
        links.append(("/tmp", "/box"))
    packages = [f"{stdlib[0]}/site-packages", f"{stdlib[0]}/dist-packages", "/usr/lib/python3/dist-packages"]
    hidden = [path for path in packages if os.path.isdir(path)]
    return {"python": python, "binds": binds, "links": links, "hidden": hidden}


@cache
def _guard() -> bytes:
    """The guard compiled: it runs in the same interpreter, and compiling would double the time of its start."""
    path = Path(__file__).with_name("_sandbox_guard.py")
    return marshal.dumps(compile(path.read_text(), path.name, "exec"))


def _command(way: str, setup: dict) -> list[str]:
    guard = [
        setup["python"],
        "-I",
        "-S",
        "-B",
        "-c",
        f"import marshal\nexec(marshal.loads({_guard()!r}))\nmain({setup!r})",
    ]
    if way == "unshare":
        return guard
    command = [
        shutil.which("bwrap"),
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
    ]
    command += ["--unshare-cgroup-try", "--uid", "65534", "--gid", "65534", "--die-with-parent", "--as-pid-1"]
    for path in setup["binds"]:
        command += ["--dev-bind" if path.startswith("/dev/") else "--ro-bind", path, path]
    for path, target in setup["links"]:
        command += ["--symlink", target, path]
    for path in setup["hidden"]:
        command += ["--size", "4096", "--tmpfs", path, "--remount-ro", path]
    command += ["--ro-bind-data", str(setup["code"]), "/main.py", "--proc", "/proc"]
    command += ["--size", str(setup["disk"]), "--tmpfs", "/box", "--remount-ro", "/", "--chdir", "/box", "--"]
    return command + guard


def _execute(way: str, code: str, stdin: str | bytes, timeout: float, memory_mb: int) -> Outcome:
    """Start, collect and kill one sandbox, now."""
    ours, theirs = socket.socketpair()
    fds = [theirs.fileno(), _file(code), _file(stdin)]
    setup = _layout() | {
        "control": fds[0],
        "code": fds[1],
        "own_namespaces": way == "unshare",
        "real_root": _real_root(),
        "timeout": timeout,
        "cpu": math.ceil(timeout),
        "memory": memory_mb * 2**20,
        "disk": min(DISK, memory_mb * 2**19),
        "limits": LIMITS,
    }
    try:
        process = subprocess.Popen(
            _command(way, setup), stdin=fds[2], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env={}, cwd="/", pass_fds=fds[:2], start_new_session=True,
        )  # fmt: skip
    except OSError as error:
        ours.close()
        return Outcome("", f"the sandbox did not start: {error}", None, "refused")
    finally:
        theirs.close()
        os.close(fds[1])
        os.close(fds[2])
    try:
        late, out, err, said = _collect(process, ours, timeout)
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)  # not yet waited for, so the number is still its own
        except ProcessLookupError:
            pass
        process.wait()
        for end in (process.stdout, process.stderr, ours):
            end.close()
    verdict = said.decode(errors="replace").splitlines()
    stdout, stderr = out.decode(errors="replace"), err.decode(errors="replace")
    refused = next((line[8:] for line in verdict if line.startswith("refused ")), "")
    if refused or "started" not in verdict:
        late = f"no answer in {READY:.0f} s" if late else "it ended at once"
        return Outcome("", refused or stderr.strip() or late, None, "refused")
    if late or verdict[-1] in ("timeout", "memory"):
        return Outcome(stdout, stderr, None, late or verdict[-1])
    returncode = int(verdict[-1].split()[1]) if verdict[-1].startswith("exit ") else None
    starved = returncode == 1 and stderr.rstrip().rpartition("\n")[2].startswith("MemoryError")
    return Outcome(stdout, stderr, returncode, "ok" if returncode == 0 else "memory" if starved else "error")


def _file(content: str | bytes) -> int:
    """Read-only descriptor of an unlinked file; unlike a pipe it needs nobody to feed it."""
    data = content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        os.fchmod(file.fileno(), 0o444)
        return os.open(f"/proc/self/fd/{file.fileno()}", os.O_RDONLY)


def _collect(process, control: socket.socket, timeout: float) -> tuple[str, bytearray, bytearray, bytearray]:
    """Read until every writer is gone; ("timeout" | "output" where we must end it ourselves, stdout, stderr, verdict)."""
    got = {process.stdout.fileno(): bytearray(), process.stderr.fileno(): bytearray(), control.fileno(): bytearray()}
    out, err, said = got.values()
    deadline, started = time.monotonic() + READY, False
    with selectors.DefaultSelector() as open_ends:
        for fd in got:
            open_ends.register(fd, selectors.EVENT_READ)
        while open_ends.get_map():
            ready = open_ends.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return "timeout", out, err, said
            for key, _ in ready:
                chunk = os.read(key.fd, 65536)
                got[key.fd] += chunk
                if not chunk:
                    open_ends.unregister(key.fd)
            if not started and said.startswith(b"started\n"):
                deadline, started = time.monotonic() + timeout + GRACE, True
            excess = len(out) + len(err) - OUTPUT
            if excess > 0:
                longer = max(out, err, key=len)
                del longer[len(longer) - excess :]
                return "output", out, err, said
    return "", out, err, said


# --- admission ---

_turn = threading.Lock()  # held by the one who looks for room; the others queue behind it
_freed = threading.Condition()
_running: list[int] = []  # memory_mb of each program that runs


@contextmanager
def _admitted(memory_mb: int):
    """Waits for a free core and for memory that is not promised to another; yields "" or why it can never be had."""
    lack = ""
    with _turn, _freed:
        while _running and (len(_running) >= _cores() or _free_mb() - sum(_running) < memory_mb):
            _freed.wait()
        free = _free_mb()
        if not _running and free < memory_mb:
            lack = (
                f"a program may take {memory_mb} MiB and {free} MiB are free: close other programs or lower memory_mb"
            )
        _running.append(memory_mb)
    try:
        yield lack
    finally:
        with _freed:
            _running.remove(memory_mb)
            _freed.notify_all()


def _cores(cgroup: str = "/sys/fs/cgroup") -> int:
    """Cores that this process may use: its affinity, and the quota of its container (cpu.max, cgroup v2)."""
    cores = len(os.sched_getaffinity(0))
    try:
        quota, period = Path(cgroup, "cpu.max").read_text().split()
        return cores if quota == "max" else max(1, min(cores, int(quota) // int(period)))
    except OSError:
        return cores


def _free_mb(cgroup: str = "/sys/fs/cgroup") -> int:
    """MiB that can still be had: MemAvailable, and what the container's limit leaves (memory.max, cgroup v2)."""
    text = Path("/proc/meminfo").read_text()
    free = int(re.search(r"MemAvailable:\s+(\d+)", text)[1]) * 1024
    try:
        limit, used = (Path(cgroup, name).read_text().strip() for name in ("memory.max", "memory.current"))
        cached = int(re.search(r"^inactive_file (\d+)", Path(cgroup, "memory.stat").read_text(), re.M)[1])
        free = free if limit == "max" else min(free, int(limit) - int(used) + cached)
    except OSError:
        pass
    return free // 2**20
