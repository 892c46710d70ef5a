"""Programs that try to leave the sandbox, and a loop that runs them: python -m tests.hostile unshare|bwrap NAMES...

Apart from test_sandbox.py, so that the bare interpreter of another user can run it too.
"""

import json
import os
import socket
import sys
import time
from pathlib import Path

from corelib import sandbox

ROOT = Path(__file__).resolve().parents[1]

TRY = """
import os, sys
def attempt(name, act):
    try:
        act()
    except BaseException as error:
        print(name, "denied", type(error).__name__)
    else:
        print(name, "ESCAPED")
"""
SYSCALL = (
    TRY
    + "import ctypes\nlibc = ctypes.CDLL(None, use_errno=True)\n"
    + """
def call(name, *args):
    def act():
        ctypes.set_errno(0)
        if getattr(libc, name)(*args) < 0:
            raise OSError(ctypes.get_errno(), name)
    attempt(name, act)
"""
)

# name: (program, reasons it may end with, options of `run`). None may print ESCAPED or take its limit + 1 s.
HOSTILE = {
    "fork bomb": ("""
import os
while True:
    try:
        os.fork()
    except OSError:
        pass
""", {"timeout"}, dict(timeout=0.5)),
    "fork bomb that counts": ("""
import os, time
children = 0
try:
    while True:
        if os.fork() == 0:
            time.sleep(60)
        children += 1
except BlockingIOError:
    print(children if children < 64 else "ESCAPED")
""", {"ok"}, dict(timeout=5)),
    "thread bomb": ("""
import threading, time
threads = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(60,), daemon=True).start()
        threads += 1
except RuntimeError:
    print(threads if threads < 64 else "ESCAPED")
""", {"ok"}, dict(timeout=5)),
    "memory bomb": ("x = []\nwhile True:\n    x.append(bytearray(10**7))", {"memory"}, dict(memory_mb=128)),
    "memory of many processes": ("""
import os, time
for _ in range(20):
    if os.fork() == 0:
        x = bytearray(40 * 2**20)
        time.sleep(60)
time.sleep(60)
""", {"memory"}, dict(timeout=15, memory_mb=256)),
    "memory in files": ("""
n = 0
while True:
    with open(f"f{n}", "wb") as f:
        f.write(bytes(2**20))
    n += 1
""", {"memory", "error"}, dict(timeout=5, memory_mb=64)),
    "a million files": ("n = 0\nwhile True:\n    open(f'f{n}', 'w').close()\n    n += 1", {"memory", "error", "timeout"}, dict(timeout=2, memory_mb=64)),
    "a large file": ("with open('f', 'wb') as f:\n    while True:\n        f.write(bytes(2**20))", {"error"}, dict(timeout=5)),
    "memory outside of processes": (SYSCALL + """
for name in ("shmget", "memfd_create"):
    call(name, 0, 2**30, 0o1777) if name == "shmget" else call(name, b"x", 0)
call("msgget", 0, 0o1777)
import mmap
attempt("shared memory", lambda: mmap.mmap(-1, 2**28))
attempt("shared zero", lambda: mmap.mmap(os.open("/dev/zero", os.O_RDWR), 2**28))
mmap.mmap(-1, 2**20, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
""", {"ok"}, {}),
    "endless output": ("while True:\n    print('x' * 1000)", {"output"}, dict(timeout=5)),
    "endless errors": ("import sys\nwhile True:\n    sys.stderr.write('x' * 1000)", {"output"}, dict(timeout=5)),
    "output of many processes": ("import os\nos.fork(); os.fork()\nwhile True:\n    os.write(1, b'x' * 4096)", {"output"}, dict(timeout=5)),
    "CPU of many threads ignoring signals": ("""
import signal, os
for s in range(1, 65):
    try:
        signal.signal(s, signal.SIG_IGN)
    except (OSError, ValueError):
        pass
os.fork(); os.fork()
while True:
    pass
""", {"timeout"}, dict(timeout=0.5)),
    "ignoring SIGTERM asleep": ("""
import signal, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.pthread_sigmask(signal.SIG_BLOCK, range(1, 65))
while True:
    time.sleep(60)
""", {"timeout"}, dict(timeout=0.5)),
    "daemon": ("""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.closerange(0, 64)
        open("/proc/self/comm", "w").write("@TOKEN@")
        while True:
            time.sleep(60)
    os._exit(0)
time.sleep(0.3)
print(sum(open(f"/proc/{p}/comm").read().strip() == "@TOKEN@" for p in os.listdir("/proc") if p.isdigit()))
""", {"ok"}, dict(timeout=5)),
    "daemon that keeps the output": ("""
import os, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(60)
    os._exit(0)
""", {"ok"}, dict(timeout=5)),
    "killing the parent": (TRY + """
import signal, time
for s in range(1, 65):
    for victim in (os.getppid(), 1):
        try:
            os.kill(victim, s)
        except OSError:
            pass
time.sleep(0.2)
print("alive", os.getppid())
""", {"ok"}, dict(timeout=5)),
    "killing everyone": ("import os, time\nif os.fork() == 0:\n    time.sleep(60)\nos.kill(-1, 9)\nos.kill(os.getpid(), 9)", {"ok", "error"}, dict(timeout=5)),
    "stopping the parent": ("import os, signal\nos.kill(1, signal.SIGSTOP)\nwhile True:\n    pass", {"timeout"}, dict(timeout=0.5)),
    "flooding the parent with SIGCHLD": ("import os, signal\nwhile True:\n    os.kill(1, signal.SIGCHLD)", {"timeout"}, dict(timeout=0.5)),
    "writing outside": (TRY + """
for folder in ("/", "/usr", "/usr/lib", "/lib", "/dev", "/etc", "/proc", "/proc/sys/kernel", "/root", "@ROOT@", "@HOME@", os.path.dirname(os.__file__)):
    attempt(folder, lambda: open(folder + "/escaped_@TOKEN@", "w"))
for path in ("/", os.path.dirname(os.__file__), "/usr/lib", sys.executable):
    print("read-only" if os.statvfs(path).f_flag & os.ST_RDONLY else "ESCAPED", path)
attempt("interpreter", lambda: open(sys.executable, "ab"))
attempt("library", lambda: open(os.__file__, "a"))
attempt("program", lambda: open("/main.py", "a"))
attempt("core pattern", lambda: open("/proc/sys/kernel/core_pattern", "w"))
attempt("namespaces", lambda: open("/proc/sys/user/max_user_namespaces", "w"))
attempt("sysrq", lambda: open("/proc/sysrq-trigger", "w"))
attempt("mkdir", lambda: os.mkdir("/x"))
attempt("chmod", lambda: os.chmod("/main.py", 0o777))
attempt("chown", lambda: os.chown("/main.py", 0, 0))
attempt("mknod", lambda: os.mknod("disk", 0o60666, os.makedev(254, 0)))
""", {"ok"}, {}),
    "reading outside": (TRY + """
for path in ("@SECRET@", "/etc/passwd", "/etc/shadow", "/etc/hostname", "/proc/1/environ", "/proc/1/mem", "/proc/1/maps", "/proc/kcore", "/proc/kmsg"):
    attempt(path, lambda: open(path, "rb").read(1))
for path in ("/home", "@HOME@/.ssh", "@HOME@/.cache", "@HOME@/.bashrc", "@ROOT@/corelib", "/var", "/opt", "/sys", "/run", "/mnt", "/etc/ssl"):
    attempt(path, lambda: os.stat(path))
for link in ("cwd", "root", "exe", "fd"):
    attempt(link, lambda: os.listdir("/proc/1/" + link))
for name in ("site-packages", "dist-packages"):
    folder = os.path.dirname(os.__file__) + "/" + name
    print("ESCAPED" if os.path.isdir(folder) and os.listdir(folder) else "empty", name)
""", {"ok"}, {}),
    "symlinks": (TRY + """
for n, target in enumerate(("/etc/passwd", "@SECRET@", "/proc/1/root/etc/passwd", "/proc/self/root/etc/passwd", "../../../../etc/passwd", "/proc/self/cwd/../etc/passwd")):
    os.symlink(target, f"link{n}")
    attempt(target, lambda: open(f"link{n}").read())
    attempt(target, lambda: open(f"link{n}", "w"))
os.symlink("/usr/lib", "lib")
attempt("through a link", lambda: open("lib/escaped_@TOKEN@", "w"))
attempt("hard link", lambda: os.link("/main.py", "program"))
attempt("..", lambda: os.listdir("/../../../../etc/ssl"))
""", {"ok"}, {}),
    "network": (TRY + """
import socket
attempt("internet", lambda: socket.create_connection(("1.1.1.1", 53), 1))
attempt("loopback", lambda: socket.create_connection(("127.0.0.1", @PORT@), 1))
attempt("abstract", lambda: socket.socket(socket.AF_UNIX).connect("\\0sandbox-@TOKEN@"))
for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG", "AF_BLUETOOTH"):
    attempt(family, lambda: socket.socket(getattr(socket, family), socket.SOCK_STREAM if family == "AF_VSOCK" else socket.SOCK_RAW))
attempt("udp", lambda: socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(b"x", ("8.8.8.8", 53)))
attempt("name", lambda: socket.getaddrinfo("example.org", 80))
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev").readlines()[2:]]
print("ESCAPED" if interfaces != ["lo"] else interfaces)
""", {"ok"}, dict(timeout=10)),
    "other processes": (TRY + """
seen = [int(p) for p in os.listdir("/proc") if p.isdigit()]
print("ESCAPED" if len(seen) > 2 or os.getppid() != 1 else seen)
attempt("kill host", lambda: os.kill(@PID@, 0))
attempt("host cmdline", lambda: open("/proc/@PID@/cmdline").read())
""", {"ok"}, {}),
    "privileges": (SYSCALL + """
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
for name in ("CapPrm", "CapEff", "CapInh", "CapAmb"):
    print(name, "none" if int(status[name], 16) == 0 else "ESCAPED")
print("ESCAPED" if status["NoNewPrivs"].strip() != "1" or status["Seccomp"].strip() != "2" else "filtered")
print("ESCAPED" if "0" in status["Uid"].split() + status["Gid"].split() + status["Groups"].split() else "nobody")
print("ESCAPED" if open("/proc/self/uid_map").read().split()[0] == "0" else "no root inside")
call("ptrace", 16, 1, 0, 0)
call("ptrace", 0, 0, 0, 0)
call("unshare", 0x10000000)
call("unshare", 0x20000)
call("setns", 0, 0)
call("mount", b"tmpfs", b"/box", b"tmpfs", 0, None)
call("umount2", b"/box", 2)
call("chroot", b"/box")
call("setuid", 0)
call("setgid", 0)
call("process_vm_readv", 1, None, 0, None, 0, 0)
import resource
for name in ("NPROC", "AS", "CPU", "FSIZE", "NOFILE"):
    attempt("raise " + name, lambda: resource.setrlimit(getattr(resource, "RLIMIT_" + name), (resource.RLIM_INFINITY,) * 2))
if os.uname().machine != "x86_64":
    raise SystemExit(0)
call("syscall", ctypes.c_long(250), ctypes.c_long(0), ctypes.c_long(-3), 0)  # keyctl on x86_64
call("syscall", ctypes.c_long(56), ctypes.c_long(0x10000011), ctypes.c_long(0), 0, 0, 0)  # clone into a user namespace
call("syscall", ctypes.c_long(435), None, ctypes.c_long(0))  # clone3
""", {"ok"}, {}),
    "environment and open files": ("""
import os
print("ESCAPED" if set(os.environ) - {"LC_CTYPE"} else "empty", "ESCAPED" if os.listdir(".") else os.getcwd())
print("ESCAPED" if set(os.listdir("/proc/self/fd")) - {"0", "1", "2", "3"} else "three")  # 3: the listing itself
""", {"ok"}, {}),
    "taking over the answer": ("""
import os
for fd in range(3, 64):
    try:
        os.write(fd, b"exit 0\\n")
    except OSError:
        pass
print("exit 0")
os._exit(3)
""", {"error"}, {}),
    "a child that outlives its exit code": ("import os, time\nif os.fork() == 0:\n    time.sleep(60)\nos._exit(7)", {"error"}, dict(timeout=5)),
    "deep recursion": ("import sys\nsys.setrecursionlimit(10**9)\ndef f():\n    return [f() for _ in '1']\nf()", {"error", "memory", "timeout"}, dict(timeout=2, memory_mb=128)),
    "crash": ("import ctypes\nctypes.string_at(0)", {"error"}, {}),
}  # fmt: skip


def fill(code: str, port: int = 9) -> str:
    words = dict(TOKEN=f"sbx{os.getpid()}", ROOT=ROOT, HOME=Path.home(), SECRET=__file__, PORT=port, PID=os.getpid())
    for word, value in words.items():
        code = code.replace(f"@{word}@", str(value))
    return code


def attack(names) -> dict:
    """Outcome and seconds of each hostile program, with a listener it should not reach."""
    assert sandbox.available() == ""
    results = {}
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket(socket.AF_UNIX) as abstract:
        abstract.bind(f"\0sandbox-sbx{os.getpid()}")
        abstract.listen()
        socket.create_connection(server.getsockname()[:2], 1).close()  # from outside it is reachable
        for name in names:
            code, _, options = HOSTILE[name]
            began = time.monotonic()
            outcome = sandbox.run(fill(code, server.getsockname()[1]), **options)
            results[name] = [outcome._asdict(), time.monotonic() - began, left_over()]
    return results


def left_over() -> list[str]:
    """Processes on this machine that carry the name a hostile daemon gave itself."""
    found = []
    for path in Path("/proc").glob("[0-9]*/comm"):
        try:
            if path.read_text().strip() == f"sbx{os.getpid()}":
                found.append(path.parent.name)
        except OSError:
            pass
    return found


if __name__ == "__main__":
    sandbox._found = sys.argv[1]
    print(json.dumps(attack(sys.argv[2:] or HOSTILE)))
