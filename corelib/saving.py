"""Checkpoints: when one is whole, what is wrong with one that is not, and room on the disk for the next.

`checkpoint-<step>` holds the policy, the teacher, optimizer, scheduler and random states, and trainer_state.json, whose
step is also the sampler's position (the order of questions is a function of seed and epoch). `complete.json` is written
last, when every other file is on the disk: size and XXH3-128 of each file. So a kill at any moment leaves a folder
without the mark, and a truncated, changed, missing or added file is seen before anything is loaded. best/, kept/ and
final/ have the same mark.

Cost: every byte is read once, right after it was written and from the page cache, at 3.4 GB/s on one core of the
development machine (reading alone: 4.7; crc32 1.4, sha256 0.9, blake2b 0.4). That is 19 s for the 64 GB of a 4B
policy with Adam's moments and a teacher (24 s under FSDP), where writing them at 2 GB/s takes 32 s. A sampled hash would be faster and blind to most
flipped bits, so all bytes are hashed. Not detected: what was already wrong in memory before it was written, and a
deliberate change of a file together with its mark (XXH3 is not a cryptographic hash, and the mark is not signed).

What is loaded how, read in transformers 5.17, accelerate 1.15 and torch 2.13:

| file | written by | loaded with |
|---|---|---|
| model.safetensors, adapter_model.safetensors, teacher.safetensors | save_pretrained, Teacher.save | safetensors |
| optimizer.pt, scheduler.pt, rng_state*.pth (scaler.pt: fp16 only, unused) | Trainer, torch.save | torch.load, weights_only=True |
| trainer_state.json, complete.json, *.json, *.jinja | Trainer, tokenizer, this module | JSON, text |
| training_args.bin | Trainer, a full pickle | by nobody; it is deleted before the mark is written |
| FSDP: pytorch_model_fsdp.bin, optimizer.bin (FULL_STATE_DICT) | accelerate | torch.load, weights_only=True |
| FSDP: pytorch_model_fsdp_0/, optimizer_0/ (SHARDED_STATE_DICT) | torch.distributed.checkpoint | its `.metadata` is unpickled by torch without restriction: only a checkpoint whose mark fits reaches it |

All of these come from the run's own folder. From outside come models (a Hub id or a folder): safetensors only
(`require_safetensors`, and `use_safetensors=True` where they are loaded), and never remote code.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable, Iterable
from contextlib import contextmanager
from pathlib import Path

import xxhash

from corelib.runs import read_json, write_json

COMPLETE = "complete.json"
KEEP = 2  # whole checkpoints that stay: the newest, and the one before it in case the newest is damaged
FULL = (errno.ENOSPC, errno.EDQUOT)
PROBE = 1 << 20  # bytes


class DiskFull(RuntimeError):
    """No space was left: one sentence with what was lost (nothing before the last good checkpoint) and what to free."""


def checkpoints(folder: str | Path) -> list[Path]:
    """The checkpoints of a run, newest first, whole or not."""
    found = [p for p in Path(folder).glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """The step after which a checkpoint was taken."""
    return int(checkpoint.name.rsplit("-", 1)[1])


def mark_complete(folder: str | Path) -> None:
    """Declare a folder of weights whole: all files on the disk, then size and hash of each in complete.json."""
    folder = Path(folder)
    (folder / "training_args.bin").unlink(missing_ok=True)
    mark = {}
    for file in _files(folder):
        # Some file systems report a full disk only here (network, quotas), and rotation must not believe them before
        _sync(file)
        mark[str(file.relative_to(folder))] = {"size": file.stat().st_size, "xxh3_128": _hash(file)}
    write_json(folder / COMPLETE, mark)
    for directory in (folder, folder.parent):
        _sync(directory)


def checkpoint_defect(checkpoint: str | Path, contents: bool = True) -> str | None:
    """What is wrong with a checkpoint (or best/, kept/, final/), None when it is what was written.

    `contents=False` looks at names and sizes only: cheap, and enough where nothing is loaded.
    """
    checkpoint = Path(checkpoint)
    if not (checkpoint / COMPLETE).is_file():
        return "it was not finished"
    mark = read_json(checkpoint / COMPLETE)
    if not isinstance(mark, dict) or not all(isinstance(v, dict) and {"size", "xxh3_128"} <= v.keys() for v in mark.values()):  # fmt: skip
        return f"{COMPLETE} is not readable"
    present = {str(f.relative_to(checkpoint)): f for f in _files(checkpoint)}
    for name in mark.keys() - present.keys():
        return f"{name} is missing"
    for name in present.keys() - mark.keys():
        return f"{name} was not written by the run"
    for name, file in present.items():
        if file.stat().st_size != mark[name]["size"]:
            return f"{name} has {file.stat().st_size:,} bytes instead of {mark[name]['size']:,}"
    for name, file in present.items() if contents else ():
        try:
            if _hash(file) != mark[name]["xxh3_128"]:
                return f"{name} is not what was written (some of its bytes changed)"
        except OSError as error:
            return f"{name} cannot be read ({error.strerror})"
    return None


def last_checkpoint(folder: str | Path, say: Callable = print) -> Path | None:
    """The newest whole checkpoint of a run, verified byte by byte; broken ones are named and passed over.

    Raises RuntimeError when a finished checkpoint was damaged since and no whole one is left: starting over would throw
    the run away. (Unfinished ones alone mean that the run died before its first checkpoint.)
    """
    damaged, passed = None, False
    for checkpoint in checkpoints(folder):
        defect = checkpoint_defect(checkpoint)
        if defect is None:
            if passed:
                say(f"{checkpoint.name}, the one before, is used instead")
            return checkpoint
        passed = True
        say(f"checkpoint {checkpoint.name} is not used: {defect}")
        if (checkpoint / COMPLETE).is_file():
            damaged = damaged or f"{checkpoint.name}: {defect}"
    if damaged:
        raise RuntimeError(
            f"no whole checkpoint is left in {folder} ({damaged}); restore it, or delete the folder to start over"
        )
    return None


def last_good(folder: str | Path) -> Path | None:
    """The newest checkpoint that was finished, by names and sizes: for messages; a resume verifies every byte."""
    return next((c for c in checkpoints(folder) if checkpoint_defect(c, contents=False) is None), None)


def not_a_number(name: str, value, step: int, folder: str | Path) -> FloatingPointError:
    """The error for a value that stops a run, naming the checkpoint from which it could go on."""
    good = last_good(folder)
    return FloatingPointError(f"{name} is {value} at step {step}; the last good checkpoint is {good or 'none'}")


def rotate_checkpoints(folder: str | Path, keep: int = KEEP) -> None:
    """Delete all but the newest `keep` whole checkpoints. Called after a checkpoint was declared whole, never before."""
    whole = [c for c in checkpoints(folder) if checkpoint_defect(c, contents=False) is None]
    for checkpoint in checkpoints(folder):
        if whole and checkpoint not in whole[:keep]:
            discard(checkpoint)


@contextmanager
def writing(folder: str | Path, main: bool = True):
    """Around the writing of a folder of weights: it starts empty and ends marked whole, or is removed.

    With several processes `main` is true in one of them; the caller sees to it that the others write after this one
    entered, and are done before it leaves. Raises DiskFull, with what to free, when there is no room: for a checkpoint
    before anything is written when the last one would not fit either.
    """
    folder = Path(folder)
    if not main:
        yield
        return
    discard(folder)  # a broken one of the same step must not lend its mark to the new files
    run, previous = folder.parent, last_good(folder.parent)
    expected = size(previous) if previous and folder.name.startswith("checkpoint-") else 0
    if expected > free(run):
        raise DiskFull(_full(run, folder.name, expected))
    try:
        yield
        mark_complete(folder)
    except BaseException as error:
        full = disk_full(error, run)
        written = size(folder)
        if checkpoint_defect(folder, contents=False):
            discard(folder)
        if full:
            raise DiskFull(_full(run, folder.name, expected or written)) from error
        raise


def replace_folder(new: str | Path, target: str | Path) -> None:
    """Put a finished folder in another's place. A kill in between is mended by `mend_folder`."""
    new, target = Path(new), Path(target)
    old = target.with_name(f"{target.name}.old")
    discard(old)
    if target.exists():
        target.rename(old)
    new.rename(target)
    discard(old)


def mend_folder(target: str | Path) -> None:
    """After a kill inside `replace_folder`: the folder is there, the old one or the new one."""
    target = Path(target)
    old = target.with_name(f"{target.name}.old")
    if not target.exists() and old.exists():
        old.rename(target)


def discard(folder: str | Path) -> None:
    """Delete a folder, its mark first: a kill in between must leave an unfinished one, not a damaged one."""
    (Path(folder) / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def size(*folders: str | Path) -> int:
    """Bytes of all files under the folders."""
    return sum(f.stat().st_size for folder in folders for f in Path(folder).rglob("*") if f.is_file())


def free(folder: str | Path) -> int:
    """Bytes that may still be written where `folder` is."""
    return shutil.disk_usage(folder).free


def require_space(
    folder: str | Path, parameters: Iterable, teacher: bool, sharded: bool = False, keep: int = KEEP
) -> None:
    """Raise DiskFull, before the first step, when the run's checkpoints and weights will not fit on its disk.

    One checkpoint: the trained weights, two fp32 moments of Adam each, and an fp32 teacher. There are `keep` of them
    and the one being written, and the weights four times: best, kept, the next of them while it is written, final.
    `sharded`: FSDP stores the policy twice in a checkpoint, for transformers to read and for itself.
    """
    trained = [p for p in parameters if p.requires_grad]
    weights = sum(p.numel() * p.element_size() for p in trained)
    checkpoint = weights * (2 if sharded else 1) + sum(p.numel() for p in trained) * 4 * (3 if teacher else 2)
    have = size(*checkpoints(folder), *(Path(folder) / name for name in ("best", "kept", "final")))
    short = (keep + 1) * checkpoint + 4 * weights - have - free(folder)
    if short > 0:
        raise DiskFull(
            f"the disk of {folder} has {_gb(free(folder))} free, and this run needs {_gb(short + free(folder))} more: "
            f"{keep + 1} checkpoints of {_gb(checkpoint)} and 4 copies of the weights of {_gb(weights)}; "
            f"free {_gb(short)}, or put the run on another disk with --out"
        )


def disk_full(error: BaseException, folder: str | Path) -> bool:
    """Whether an exception says that the disk is full: by its number, its text, or because nothing can be written."""
    seen = error
    while seen is not None:
        if isinstance(seen, DiskFull) or getattr(seen, "errno", None) in FULL:
            return True
        if any(f"os error {number}" in str(seen) for number in FULL):  # safetensors
            return True
        seen = seen.__cause__ or seen.__context__
    # torch.save only says that a file's position is unexpected
    return isinstance(error, RuntimeError) and "inline_container" in str(error) and not _can_write(Path(folder))


def no_space(error: BaseException, folder: str | Path) -> DiskFull | None:
    """The sentence for a full disk, whatever was being written; None for any other error."""
    if isinstance(error, DiskFull):
        return error
    if not disk_full(error, folder):
        return None
    previous = last_good(folder)
    return DiskFull(_full(Path(folder), "the next line or file", size(previous) if previous else PROBE))


def require_safetensors(model: str | Path) -> None:
    """Raise ValueError for a folder whose weights are pickles: unpickling a stranger's file runs the stranger's code."""
    folder = Path(model)
    if not folder.is_dir() or any(folder.glob("*.safetensors")):
        return
    pickles = sorted(f.name for pattern in ("*.bin", "*.pt", "*.pth", "*.ckpt") for f in folder.glob(pattern))
    if pickles:
        raise ValueError(
            f"model {folder} holds its weights as {pickles[0]}, a pickle, which can run code when it is loaded; use a model that is published as safetensors, or convert it where you trust it"
        )


def _full(run: Path, what: str, needed: int) -> str:
    good = last_good(run)
    return (
        f"the disk of {run} is full: {what} ({_gb(needed)}) does not fit into {_gb(free(run))}; "
        f"free {_gb(max(needed - free(run), PROBE))} and run the same command again: it goes on from {good or 'the start'}, "
        "and no unfinished file was left behind"
    )


def _gb(number: float) -> str:
    return f"{number / 1e9:.1f} GB" if number >= 1e8 else f"{number / 1e6:.1f} MB"


def _can_write(folder: Path) -> bool:
    probe = folder / f".probe.{os.getpid()}"
    try:
        with open(probe, "wb") as sink:
            sink.write(bytes(PROBE))
            os.fsync(sink.fileno())
    except OSError:
        return False
    finally:
        probe.unlink(missing_ok=True)
    return True


def _files(folder: Path) -> list[Path]:
    """Every file of a checkpoint but the mark, and what the mark's own writing or a network file system leaves."""
    skip = (COMPLETE, f".{COMPLETE}.", ".nfs")
    return sorted(f for f in folder.rglob("*") if f.is_file() and not f.name.startswith(skip))


def _hash(file: Path) -> str:
    digest, buffer = xxhash.xxh3_128(), memoryview(bytearray(1 << 20))
    with open(file, "rb", buffering=0) as source:
        while count := source.readinto(buffer):
            digest.update(buffer[:count])
    return digest.hexdigest()


def _sync(path: Path) -> None:
    """fsync of a file or directory."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
