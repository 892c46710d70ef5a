"""Process 1 of a sandbox: shuts itself in, starts the program, and watches it from inside (see sandbox.py).

Its text is run by a bare interpreter (`python -I -S -c`), so it imports neither corelib nor anything that starts slowly.
Lines written to the control descriptor: `refused WHY` | `started`, then `exit CODE` | `timeout` | `memory`. Source of
the constants: Linux uapi headers (sched.h, mount.h, prctl.h, seccomp.h, filter.h, unistd.h).
"""

import _signal as signal  # without the enumerations of `signal`, whose import takes as long as the rest
import ctypes
import os
import resource
import time
from struct import pack

NEW_USER = 0x10000000
NEW_REST = 0x00020000 | 0x20000000 | 0x40000000 | 0x08000000 | 0x04000000 | 0x02000000  # mnt pid net ipc uts cgroup
NOSUID, NODEV, BIND, REC, PRIVATE, DETACH = 2, 4, 4096, 16384, 1 << 18, 2
NO_WRITE, NO_SUID, NO_DEV, NO_EXEC = 1, 2, 4, 8  # attributes of mount_setattr
NOBODY = 65534
TICK = 0.01  # seconds between two looks at the memory of the group
RECOUNT = 0.1  # seconds; writing to shared pages takes memory that the resident size does not show
INODE = 1024  # bytes of kernel memory charged for one file in the working folder

libc = ctypes.CDLL(None, use_errno=True)


def call(name: str, *args, what: str = "") -> None:
    """A function of libc; OSError names it where it fails."""
    words = [ctypes.c_long(a) if isinstance(a, int) else os.fsencode(a) if isinstance(a, str) else a for a in args]
    if getattr(libc, name)(*words) < 0:
        raise OSError(f"{name}{what and ' ' + what}: {os.strerror(ctypes.get_errno())}")


def main(setup: dict) -> None:
    control = setup["control"]
    os.set_inheritable(control, False)
    try:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # process 1 gets the signals that it handles; Python handles this
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write(
                "1000"
            )  # where the machine itself runs out of memory, the kernel is to end us and not our caller
        if setup["own_namespaces"]:
            isolate(setup)
        harden(setup)
        guest = start(setup)
        os.write(control, b"started\n")
    except BaseException as error:  # whatever it was, nothing of the program has run
        os.write(control, f"refused {error}\n".replace("\n", " ").encode() + b"\n")
        os._exit(1)
    try:
        os.write(control, watch(setup, guest).encode() + b"\n")
    finally:
        os._exit(0)  # the end of process 1 is the end of all others: the kernel kills the pid namespace


def isolate(setup: dict) -> None:
    """Own namespaces and root folder. Returns in process 1 of the new pid namespace; the caller stays outside and waits.

    Real root drops to `nobody` before its user namespace begins: the kernel exempts its uid 0 from process limits even
    under another name. Anybody else gets the namespace first, since only there may it mount.
    """
    real_root, uid, gid = setup["real_root"], os.getuid(), os.getgid()
    call("unshare", NEW_REST if real_root else NEW_REST | NEW_USER)
    if not real_root:
        name_ids(uid, gid)
    child = os.fork()
    if child:  # it holds the output pipes, so their end says that every process of the sandbox is gone
        os.waitpid(child, 0)
        os._exit(0)
    build_root(setup)
    if real_root:
        call("setgroups", 0, None)
        call("setresgid", NOBODY, NOBODY, NOBODY)
        call("setresuid", NOBODY, NOBODY, NOBODY)
        call("prctl", 4, 1)  # PR_SET_DUMPABLE: the change of user took the right to write our own uid_map
        call("unshare", NEW_USER)
        name_ids(NOBODY, NOBODY)


def name_ids(uid: int, gid: int) -> None:
    """The only user and group inside: nobody, and not root."""
    for name, text in ("setgroups", "deny"), ("uid_map", f"{NOBODY} {uid} 1"), ("gid_map", f"{NOBODY} {gid} 1"):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(text)


def restrict(path: str, attributes: int, deep: bool = True) -> None:
    """mount_setattr(2), over all mounts below `path` when deep."""
    call(
        "syscall", 442, -100, path, 0x8000 if deep else 0, pack("4Q", attributes, 0, 0, 0), 32, what=f"read-only {path}"
    )


def build_root(setup: dict) -> None:
    """A root folder of nothing but the interpreter's own files, read-only, and an empty working folder /tmp."""
    os.umask(0o022)
    call("mount", None, "/", None, REC | PRIVATE, None, what="private /")
    call("mount", "tmpfs", "/tmp", "tmpfs", NOSUID | NODEV, "size=64m,nr_inodes=4096,mode=755", what="new root")
    os.mkdir("/tmp/old")
    call("syscall", DENIED[os.uname().machine]["pivot_root"], "/tmp", "/tmp/old", what="pivot_root")
    os.chdir("/")
    for path in setup["binds"]:
        source = "/old" + path
        os.makedirs(path if os.path.isdir(source) else os.path.dirname(path), exist_ok=True)
        if not os.path.isdir(source):
            open(path, "x").close()
        call("mount", source, path, None, BIND | REC, None, what=path)
        restrict(path, NO_WRITE | NO_SUID | (NO_EXEC if path.startswith("/dev/") else NO_DEV))
    for path, target in setup["links"]:
        os.symlink(target, path)
    for path in setup["hidden"]:
        call("mount", "tmpfs", path, "tmpfs", NOSUID | NODEV, "size=4k,mode=555", what=f"over {path}")
        restrict(path, NO_WRITE)
    with open("/main.py", "wb") as file, open(setup["code"], "rb") as code:
        file.write(code.read())
    os.mkdir("/proc")
    call("mount", "proc", "/proc", "proc", NOSUID | NODEV | 8, None, what="/proc")
    call("umount2", "/old", DETACH)
    os.rmdir("/old")
    os.mkdir("/box")
    call("mount", "tmpfs", "/box", "tmpfs", NOSUID | NODEV, f"size={setup['disk']},mode=1777", what="/box")
    restrict("/", NO_WRITE, deep=False)
    os.chdir("/box")


# What a program of this kind never needs and what would weaken the rest: other processes' memory, new namespaces and
# mounts, keys of the user, and memory that no process's resident size shows (memfd, System V, message queues).
DENIED = {
    "x86_64": dict(ptrace=101, process_vm_readv=310, process_vm_writev=311, kcmp=312, pidfd_getfd=438, unshare=272, setns=308, mount=165, umount2=166, pivot_root=155, chroot=161, mount_setattr=442, fsopen=430, open_tree=428, move_mount=429, keyctl=250, add_key=248, request_key=249, bpf=321, perf_event_open=298, userfaultfd=323, io_uring_setup=425, memfd_create=319, memfd_secret=447, shmget=29, msgget=68, semget=64, mq_open=240, open_by_handle_at=304, fanotify_init=300, modify_ldt=154),
    "aarch64": dict(ptrace=117, process_vm_readv=270, process_vm_writev=271, kcmp=272, pidfd_getfd=438, unshare=97, setns=268, mount=40, umount2=39, pivot_root=41, chroot=51, mount_setattr=442, fsopen=430, open_tree=428, move_mount=429, keyctl=219, add_key=217, request_key=218, bpf=280, perf_event_open=241, userfaultfd=282, io_uring_setup=425, memfd_create=279, memfd_secret=447, shmget=194, msgget=186, semget=190, mq_open=180, open_by_handle_at=265, fanotify_init=262),
}  # fmt: skip
AUDIT = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}


def harden(setup: dict) -> None:
    """No capability, no way to get one, and limits; of this process too, so that taking it over would give nothing."""
    call("capset", pack("Ii", 0x20080522, 0), bytes(24))
    call("prctl", 38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    call("prctl", 4, 0)  # PR_SET_DUMPABLE: nobody of the same user reads or traces process 1
    for name, limit in setup["limits"].items():
        resource.setrlimit(getattr(resource, "RLIMIT_" + name), (limit, limit))
    rules = filter_of(os.uname().machine)
    program = ctypes.create_string_buffer(rules)
    call("prctl", 22, 2, pack("HxxxxxxP", len(rules) // 8, ctypes.addressof(program)), 0, 0, what="seccomp")


def filter_of(machine: str) -> bytes:
    """Classic BPF: the denied calls fail with EPERM, sockets but Unix ones with EAFNOSUPPORT, clone3 with ENOSYS.

    Shared anonymous memory is denied too: MADV_DONTNEED takes it out of the resident size and does not free it.
    """
    load, equal, at_least, any_bit, mask, give = 0x20, 0x15, 0x35, 0x45, 0x54, 0x06
    allow, kill, error = 0x7FFF0000, 0x80000000, 0x00050000
    socket, clone, mmap = {"x86_64": (41, 56, 9), "aarch64": (198, 220, 222)}[machine]
    rules = [(load, 0, 0, 4), (equal, 1, 0, AUDIT[machine]), (give, 0, 0, kill), (load, 0, 0, 0)]
    rules += [(at_least, 0, 1, 0x40000000), (give, 0, 0, error | 1)]  # the x32 names of the same calls
    for number in DENIED[machine].values():
        rules += [(equal, 0, 1, number), (give, 0, 0, error | 1)]
    rules += [(equal, 0, 1, 435), (give, 0, 0, error | 38)]  # clone3: its flags are out of sight; libc then takes clone
    rules += [(equal, 0, 4, socket), (load, 0, 0, 16), (equal, 0, 1, 1), (give, 0, 0, allow), (give, 0, 0, error | 97)]
    rules += [(equal, 0, 3, clone), (load, 0, 0, 16), (any_bit, 0, 1, NEW_REST | NEW_USER), (give, 0, 0, error | 1)]
    rules += [(equal, 0, 4, mmap), (load, 0, 0, 40), (mask, 0, 0, 0x21), (equal, 0, 1, 0x21), (give, 0, 0, error | 1)]
    rules += [(give, 0, 0, allow)]
    return b"".join(pack("HBBI", *rule) for rule in rules)


def start(setup: dict) -> int:
    """Pid of the program: a fresh interpreter with an empty environment."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])  # `watch` waits for it
    os.set_blocking(setup["control"], False)
    guest = os.fork()
    if guest == 0:
        try:
            resource.setrlimit(resource.RLIMIT_AS, (setup["memory"], setup["memory"]))
            # SIGXCPU at the limit, SIGKILL a second later for a program that does not heed it
            resource.setrlimit(resource.RLIMIT_CPU, (setup["cpu"], setup["cpu"] + 1))
            signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGCHLD])
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            # not -S: `site` defines exit() and quit(); the packages it looks for are hidden
            os.execve(setup["python"], [setup["python"], "-I", "-B", "-X", "utf8", "/main.py"], {})
        except BaseException as error:
            os.write(setup["control"], f"refused {error}\n".encode())
        os._exit(127)
    return guest


def watch(setup: dict, guest: int) -> str:
    """The verdict: `exit CODE`, or the limit that was reached. Ends without one when the caller is gone."""
    deadline, memory = time.monotonic() + setup["timeout"], setup["memory"]
    trusted, again = memory, 0.0  # resident size up to which the group cannot be over its limit, and for how long
    while True:
        signal.sigtimedwait([signal.SIGCHLD], TICK)
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            if pid == guest:
                spent = resource.getrusage(resource.RUSAGE_CHILDREN)
                code = os.waitstatus_to_exitcode(status)
                # the signal says so by itself: the kernel's timer ends a process a little before rusage shows the limit
                late = code == -signal.SIGXCPU or (code < 0 and spent.ru_utime + spent.ru_stime >= setup["cpu"])
                return "timeout" if late else f"exit {code}"
        if time.monotonic() >= deadline:
            return "timeout"
        size = in_use(resident)
        if size > trusted or (size > memory and time.monotonic() > again):
            to_all(signal.SIGSTOP)  # nothing grows while it is counted, or keeps us from counting
            held = in_use(proportional)
            if held > memory:
                return "memory"
            to_all(signal.SIGCONT)
            trusted, again = size + memory - held, time.monotonic() + RECOUNT
        try:
            if os.read(setup["control"], 1) == b"":
                os._exit(1)
        except BlockingIOError:
            pass


def to_all(sign: int) -> None:
    """A signal to every process inside but this one."""
    try:
        os.kill(-1, sign)
    except ProcessLookupError:
        pass


def in_use(size_of) -> int:
    """Bytes held by all processes but this one, and by the files of the working folder."""
    box = os.statvfs("/box")
    total = (box.f_blocks - box.f_bfree) * box.f_bsize + (box.f_files - box.f_ffree) * INODE
    for name in os.listdir("/proc"):
        if name.isdigit() and name != "1":
            try:
                total += size_of(name)
            except (OSError, ValueError):  # it has ended
                pass
    return total


def resident(pid: str) -> int:
    """Quick; counts what processes share once for each."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def proportional(pid: str) -> int:
    """Slow; shared memory counts once. A process that hides itself is charged in full."""
    try:
        with open(f"/proc/{pid}/smaps_rollup") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:"))
    except (PermissionError, StopIteration):
        return resident(pid)
