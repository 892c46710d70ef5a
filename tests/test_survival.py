"""Whatever happens to a run (full disk, signals, flipped bits, NaN, time limit), it ends cleanly and goes on exactly."""

import errno
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from corelib import callbacks, runs, saving, train
from corelib import trainer as trainer_module
from corelib.trainer import CoRewardingTrainer

ROOT = Path(__file__).resolve().parents[1]
MEASURED = ["reward", "gt/accuracy", "gt/teacher_label_accuracy", "teacher/distance", "gt/validation", "loss"]


def checkpoint(folder: Path, step: int, whole: bool = True) -> Path:
    path = folder / f"checkpoint-{step}"
    path.mkdir()
    (path / "model.safetensors").write_bytes(bytes(range(256)) * 10)
    (path / "shard").mkdir()
    (path / "shard" / "optimizer.pt").write_bytes(b"y" * 99)
    if whole:
        saving.mark_complete(path)
    return path


# --- what is wrong with a checkpoint ---------------------------------------------------------------------------------


def test_the_mark_is_a_known_hash_of_every_file(tmp_path):
    """XXH3-128 of the empty input is the reference implementation's published 99aa06d3014798d86001c324468d497f."""
    path = tmp_path / "checkpoint-1"
    (path / "sub").mkdir(parents=True)
    (path / "sub" / "empty").touch()
    (path / "training_args.bin").write_bytes(b"a pickle")
    saving.mark_complete(path)
    assert json.loads((path / "complete.json").read_text()) == {
        "sub/empty": {"size": 0, "xxh3_128": "99aa06d3014798d86001c324468d497f"}
    }
    assert not (path / "training_args.bin").exists() and saving.checkpoint_defect(path) is None


def test_every_flipped_bit_is_seen(tmp_path):
    path = checkpoint(tmp_path, 1)
    file = path / "model.safetensors"
    whole, rng = bytearray(file.read_bytes()), random.Random(0)
    for bit in (0, 8 * len(whole) - 1, *rng.sample(range(8 * len(whole)), 100)):
        broken = bytearray(whole)
        broken[bit // 8] ^= 1 << bit % 8
        file.write_bytes(broken)
        assert saving.checkpoint_defect(path) == "model.safetensors is not what was written (some of its bytes changed)"
    assert saving.checkpoint_defect(path, contents=False) is None
    file.write_bytes(whole)
    assert saving.checkpoint_defect(path) is None


def test_each_defect_is_named(tmp_path, monkeypatch):
    def broken(step, change):
        path = checkpoint(tmp_path, step)
        change(path)
        return saving.checkpoint_defect(path)

    def truncate(path):
        os.truncate(path / "model.safetensors", 2000)

    def plant(path):
        (path / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'true'\ntR.")

    def tear(path):
        (path / "complete.json").write_text('{"model.safetensors": {"si')

    assert broken(1, lambda p: (p / "complete.json").unlink()) == "it was not finished"
    assert broken(2, truncate) == "model.safetensors has 2,000 bytes instead of 2,560"
    assert broken(3, lambda p: (p / "shard" / "optimizer.pt").unlink()) == "shard/optimizer.pt is missing"
    assert broken(4, plant) == "pytorch_model.bin was not written by the run"
    assert broken(5, tear) == "complete.json is not readable"
    assert broken(6, lambda p: (p / "complete.json").write_text('{"model.safetensors": 100}')) == "complete.json is not readable"  # fmt: skip

    def unreadable(file):
        raise OSError(errno.EIO, "Input/output error")

    path = checkpoint(tmp_path, 7)
    monkeypatch.setattr(saving, "_hash", unreadable)
    assert saving.checkpoint_defect(path) == "model.safetensors cannot be read (Input/output error)"


def test_killed_between_and_inside_any_files_the_one_before_is_used(tmp_path):
    """Every prefix of the writing: whole files, then a part of the next, then nothing. The mark comes last."""
    good, model = checkpoint(tmp_path, 10), tmp_path / "model"
    whole = checkpoint(tmp_path, 20)
    files = sorted(f for f in whole.rglob("*") if f.is_file() and f.name != saving.COMPLETE)
    files += [whole / saving.COMPLETE]
    shutil.copytree(whole, model)
    for n, file in enumerate(files):
        for cut in (0, 1, file.stat().st_size // 2):
            shutil.rmtree(whole)
            whole.mkdir()
            for written in [*files[:n], file]:
                target = whole / written.relative_to(whole)
                target.parent.mkdir(exist_ok=True)
                shutil.copy(model / written.relative_to(whole), target)
            target = whole / file.relative_to(whole)
            os.truncate(target, cut)
            if file.name == saving.COMPLETE:
                target.rename(whole / f".{saving.COMPLETE}.123.tmp")  # how write_json writes it
            said = []
            assert saving.last_checkpoint(tmp_path, said.append) == good
            assert said == [
                "checkpoint checkpoint-20 is not used: it was not finished",
                "checkpoint-10, the one before, is used instead",
            ]
        shutil.rmtree(whole)
        shutil.copytree(model, whole)
    assert saving.last_checkpoint(tmp_path) == whole


def test_no_whole_checkpoint_left_is_an_error_only_when_one_was_finished(tmp_path):
    assert saving.last_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 30, whole=False)
    (tmp_path / "checkpoint-old").mkdir()  # a name that someone else gave
    assert saving.last_checkpoint(tmp_path, lambda _: None) is None
    os.truncate(checkpoint(tmp_path, 5) / "model.safetensors", 0)
    with pytest.raises(RuntimeError, match="no whole checkpoint is left.*checkpoint-5: model.safetensors has 0 bytes"):
        saving.last_checkpoint(tmp_path, lambda _: None)


def test_rotation_counts_whole_checkpoints_and_a_kill_inside_it_leaves_an_unfinished_one(tmp_path, monkeypatch):
    for step, whole in ((5, True), (10, True), (20, True), (30, False), (40, True)):
        checkpoint(tmp_path, step, whole)
    saving.rotate_checkpoints(tmp_path, keep=2)
    assert [c.name for c in saving.checkpoints(tmp_path)] == ["checkpoint-40", "checkpoint-20"]
    monkeypatch.setattr(shutil, "rmtree", lambda *a, **k: None)
    saving.rotate_checkpoints(tmp_path, keep=1)
    assert saving.checkpoint_defect(tmp_path / "checkpoint-20") == "it was not finished"
    (tmp_path / "checkpoint-40" / "model.safetensors").unlink()
    saving.rotate_checkpoints(tmp_path)
    assert len(saving.checkpoints(tmp_path)) == 2  # nothing is deleted while nothing is whole


def test_a_broken_checkpoint_of_the_same_step_lends_nothing_to_the_new_one(tmp_path):
    os.truncate(checkpoint(tmp_path, 10) / "model.safetensors", 7)
    with pytest.raises(KeyboardInterrupt):
        with saving.writing(tmp_path / "checkpoint-10"):
            assert not (tmp_path / "checkpoint-10").exists()
            (tmp_path / "checkpoint-10").mkdir()
            raise KeyboardInterrupt
    assert saving.checkpoints(tmp_path) == []


def test_best_is_replaced_whole_and_a_kill_in_between_is_mended(tmp_path, monkeypatch):
    best, new = tmp_path / "best", tmp_path / "best.new"
    for value in ("1", "2"):
        new.mkdir()
        (new / "v").write_text(value)
        saving.replace_folder(new, best)
    assert (best / "v").read_text() == "2" and sorted(p.name for p in tmp_path.iterdir()) == ["best"]
    best.rename(tmp_path / "best.old")  # killed between the two renames
    saving.mend_folder(best)
    assert (best / "v").read_text() == "2"


# --- a full disk -----------------------------------------------------------------------------------------------------


def test_a_full_disk_is_recognised_in_every_library_that_writes():
    number = OSError(errno.ENOSPC, "No space left on device")
    quota = OSError(errno.EDQUOT, "Disk quota exceeded")
    rust = Exception("Error while serializing: I/O error: No space left on device (os error 28)")
    wrapped = RuntimeError("saving failed")
    wrapped.__cause__ = number
    for error in (number, quota, rust, wrapped, saving.DiskFull("...")):
        assert saving.disk_full(error, "/nowhere"), error
    for error in (OSError(errno.EIO, "Input/output error"), RuntimeError("CUDA error"), Exception("(os error 2)")):
        assert not saving.disk_full(error, "/nowhere") and saving.no_space(error, "/nowhere") is None


def test_room_is_asked_for_before_a_checkpoint_is_written(tmp_path, monkeypatch):
    checkpoint(tmp_path, 10)
    need = saving.size(tmp_path / "checkpoint-10")
    monkeypatch.setattr(saving, "free", lambda _: need - 1)
    with pytest.raises(saving.DiskFull, match=r"checkpoint-20 \(0.0 MB\) does not fit.*goes on from \S+checkpoint-10"):
        with saving.writing(tmp_path / "checkpoint-20"):
            raise AssertionError("nothing may be written")
    assert [c.name for c in saving.checkpoints(tmp_path)] == ["checkpoint-10"]


def test_room_is_asked_for_before_the_run_starts(tmp_path, monkeypatch):
    """1 M fp32 parameters with a teacher: 3 checkpoints of 16 MB and 4 x 4 MB of weights are 64 MB."""
    weights = [torch.nn.Parameter(torch.zeros(1000, 1000)), torch.nn.Parameter(torch.zeros(9), requires_grad=False)]
    monkeypatch.setattr(saving, "free", lambda _: 63_999_999)
    with pytest.raises(saving.DiskFull, match="3 checkpoints of 16.0 MB and 4 copies of the weights of 4.0 MB"):
        saving.require_space(tmp_path, weights, teacher=True)
    saving.require_space(tmp_path, weights, teacher=False)  # 3 x 12 + 4 x 4
    monkeypatch.setattr(saving, "free", lambda _: 64_000_000)
    saving.require_space(tmp_path, weights, teacher=True)
    with pytest.raises(saving.DiskFull, match="3 checkpoints of 20.0 MB"):
        saving.require_space(tmp_path, weights, teacher=True, sharded=True)
    monkeypatch.setattr(saving, "free", lambda _: 64_000_000 - 2560 - 99)
    with pytest.raises(saving.DiskFull):
        saving.require_space(tmp_path, weights, teacher=True)
    there = checkpoint(tmp_path, 1)  # what is there already is not needed again
    saving.require_space(tmp_path, weights, teacher=True)
    for name in ("best", "kept", "final"):
        there = there.rename(tmp_path / name)
        saving.require_space(tmp_path, weights, teacher=True)


@pytest.mark.parametrize("part", [0, 5])
def test_metrics_on_a_full_disk_hold_no_half_line(part, tmp_path, monkeypatch):
    runs.append_metrics(tmp_path, {"step": 1, "reward": 0.5})
    before = (tmp_path / "metrics.jsonl").read_bytes()

    class FullFile(runs.io.FileIO):
        def write(self, data):
            super().write(data[:part])
            if not part:
                raise OSError(errno.ENOSPC, "No space left on device")
            return part

    monkeypatch.setattr(runs.io, "FileIO", FullFile)
    with pytest.raises(OSError, match="No space"):
        runs.append_metrics(tmp_path, {"step": 2, "reward": 0.25})
    monkeypatch.undo()
    assert (tmp_path / "metrics.jsonl").read_bytes() == before
    runs.append_metrics(tmp_path, {"step": 2, "reward": 0.25})
    assert runs.load_metrics(tmp_path)["reward"].tolist() == [0.5, 0.25]


@pytest.fixture
def small_disk(tmp_path):
    """A real file system of 48 MB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(mount)]
    if os.geteuid() or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a small file system needs root")
    yield mount
    subprocess.run(["umount", "-l", str(mount)], check=True)


def fill(mount: Path, leave: int) -> Path:
    """Fill a file system up to `leave` bytes."""
    filler = mount / "filler"
    with open(filler, "wb") as sink:
        os.posix_fallocate(sink.fileno(), 0, shutil.disk_usage(mount).free - leave)
    return filler


def test_status_can_be_written_on_a_full_disk_and_metrics_stay_whole(small_disk):
    runs.write_status(small_disk, "running", step=7, last_step_at=1.5)
    runs.append_metrics(small_disk, {"step": 7, "reward": 1.0})
    fill(small_disk, 0)
    runs.write_status(small_disk, "failed", error="x")
    status = runs.read_status(small_disk)
    assert status["state"] == "failed" and status["step"] == 7 and status["last_step_at"] == 1.5
    with pytest.raises(OSError, match="No space"):
        for _ in range(200):  # the last block of the file takes a few lines
            runs.append_metrics(small_disk, {"step": 8, "text": "y" * 300})
    lines = (small_disk / "metrics.jsonl").read_text().splitlines()
    assert all(json.loads(line)["step"] in (7, 8) for line in lines)


# --- whole runs ------------------------------------------------------------------------------------------------------


def settings(tiny, method="co_rewarding_iii", **more):
    given = dict(steps=6, save_steps=2, eval_steps=2, learning_rate=1e-3, teacher_start=0.2, stop_seconds=1)
    return tiny(method, **(given | more))


@pytest.fixture(autouse=True, scope="module")
def pairs_made_once():
    """The lab's questions are a function of the seed; making them takes longer than a step of a tiny run."""
    make, made = train.load_pairs, {}

    def once(config, *rest):
        if config.seed not in made:
            made[config.seed] = make(config, *rest)
        return made[config.seed]

    train.load_pairs = once
    yield
    train.load_pairs = make


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The run that was never stopped."""
    from tests.conftest import tiny

    folder = tmp_path_factory.mktemp("whole")
    train.train(settings(tiny.__wrapped__()), folder)
    return folder


def same(a: Path, b: Path) -> None:
    for file in ("final/model.safetensors", "best/model.safetensors", "checkpoint-6/teacher.safetensors"):
        one, other = load_file(a / file), load_file(b / file)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), file
    one, other = runs.load_metrics(a), runs.load_metrics(b)
    assert one["step"].tolist() == other["step"].tolist() == list(range(7))
    assert one[MEASURED].equals(other[MEASURED])


def test_every_folder_of_weights_is_marked_whole_and_holds_no_full_pickle(whole):
    for name in ("best", "final", "checkpoint-4", "checkpoint-6"):
        assert saving.checkpoint_defect(whole / name) is None, name
        assert not (whole / name / "training_args.bin").exists()
        assert not list((whole / name).glob("*.bin"))
    assert {f.name for f in (whole / "checkpoint-6").iterdir()} >= {
        "model.safetensors", "teacher.safetensors", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"
    }  # fmt: skip


def test_a_disk_that_fills_up_costs_no_good_checkpoint(tiny, small_disk, whole, monkeypatch):
    """Full inside checkpoint-4, after some of its files: the half is removed, the run says what to free and goes on."""
    folder = small_disk / "run"
    monkeypatch.setattr(saving, "free", lambda _: 10**12)  # the first look may be wrong: somebody else writes too
    save = CoRewardingTrainer._save_optimizer_and_scheduler

    def somebody_writes(self, output_dir):
        if self.state.global_step == 4:
            fill(small_disk, 400_000)
        save(self, output_dir)

    monkeypatch.setattr(CoRewardingTrainer, "_save_optimizer_and_scheduler", somebody_writes)
    with pytest.raises(saving.DiskFull, match="is full: checkpoint-4 .* free .* goes on from .*checkpoint-2"):
        train.train(settings(tiny), folder)
    status = runs.read_status(folder)
    assert status["state"] == "failed" and status["last_good"] == str(folder / "checkpoint-2")
    assert status["step"] == 4 and "no unfinished file was left" in status["error"]
    assert [c.name for c in saving.checkpoints(folder)] == ["checkpoint-2"]
    assert runs.load_metrics(folder)["step"].tolist() == [0, 1, 2, 3, 4]  # what was measured is all there
    monkeypatch.undo()
    with pytest.raises(saving.DiskFull, match="this run needs"):  # and it does not start again before there is room
        train.train(settings(tiny), folder)
    (small_disk / "filler").unlink()
    train.train(settings(tiny), folder)
    same(whole, folder)


def test_a_run_told_to_stop_at_any_moment_goes_on_exactly(tiny, tmp_path, whole, monkeypatch, capsys):
    """SIGTERM while loading, in two validations, while a checkpoint is written; max_hours; then the teacher's bits flip."""
    term, config = lambda: os.kill(os.getpid(), signal.SIGTERM), settings(tiny)
    handler = signal.getsignal(signal.SIGTERM)

    def status():
        found = runs.read_status(tmp_path)
        return found["state"], found.get("step"), Path(found.get("last_good", "")).name

    def at(owner, name, when):
        """Send the signal inside a method, at the step where `when(self, *args)` holds."""
        original = getattr(owner, name)

        def told(*args, **kwargs):
            if when(*args):
                term()
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, told)

    at(train, "training_rows", lambda *_: True)
    with pytest.raises(callbacks.Stopped) as stopped:
        train.train(config, tmp_path)
    assert stopped.value.code == 3 and status()[0] == "stopped"

    monkeypatch.undo()
    at(callbacks.Validate, "_validate", lambda _, state: True)
    with pytest.raises(callbacks.Stopped):  # the validation before the first step: there is nothing to save
        train.train(config, tmp_path)
    assert status() == ("stopped", 0, "") and saving.checkpoints(tmp_path) == []

    monkeypatch.undo()
    at(callbacks.Validate, "_validate", lambda _, state: state.global_step == 2)
    assert train.train(config, tmp_path)["step"] == 2
    assert status()[:2] == ("stopped", 2) and saving.last_checkpoint(tmp_path).name == "checkpoint-2"

    monkeypatch.undo()
    assert train.train(settings(tiny, max_hours=1e-6), tmp_path)["step"] == 3  # over, but a call makes one step
    assert status()[:2] == ("stopped", 3)

    at(CoRewardingTrainer, "_save_rng_state", lambda trainer, _: trainer.state.global_step == 4)
    assert train.train(config, tmp_path)["step"] == 4  # no further step is made, the checkpoint is whole
    assert status()[:2] == ("stopped", 4)

    monkeypatch.undo()
    assert signal.getsignal(signal.SIGTERM) == handler  # given back
    teacher = tmp_path / "checkpoint-4" / "teacher.safetensors"
    bits = bytearray(teacher.read_bytes())
    bits[len(bits) // 2] ^= 16
    teacher.write_bytes(bits)
    capsys.readouterr()
    train.train(config, tmp_path)
    said = capsys.readouterr().out
    assert "checkpoint-4 is not used: teacher.safetensors is not what was written (some of its bytes changed)" in said
    assert "checkpoint-3, the one before, is used instead" in said and "resuming at step 3 of 6" in said
    same(whole, tmp_path)


def test_a_second_signal_stops_at_once_and_a_doubled_one_does_not(monkeypatch):
    seconds = SimpleNamespace(now=100.0)
    monkeypatch.setattr(callbacks.time, "monotonic", lambda: seconds.now)
    stop = callbacks.StopOnSignal()
    try:
        with pytest.raises(callbacks.Stopped):
            os.kill(os.getpid(), signal.SIGINT)  # not training yet
        stop.on_train_begin(None, None, None)
        os.kill(os.getpid(), signal.SIGTERM)
        seconds.now += 0.5
        os.kill(os.getpid(), signal.SIGTERM)  # a launcher passes on what its whole group got
        assert stop.told == 100.0
        seconds.now += 5
        with pytest.raises(callbacks.Stopped):
            os.kill(os.getpid(), signal.SIGTERM)
    finally:
        stop.release()


# --- numbers that are none -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["loss", "grad_norm", "reward", "weights"])
def test_nothing_spoilt_is_ever_saved(what, tiny, tmp_path, monkeypatch):
    """Injected in step 4, which also validates and saves: neither best nor a checkpoint may hold it."""
    value = {"loss": float("nan"), "grad_norm": float("inf"), "reward": float("inf"), "weights": float("nan")}[what]
    fourth = lambda trainer: trainer.state.global_step == 3  # noqa: E731
    if what == "loss":
        compute = CoRewardingTrainer._compute_loss
        monkeypatch.setattr(CoRewardingTrainer, "_compute_loss", lambda self, *a: compute(self, *a) * (value if fourth(self) else 1))  # fmt: skip
    elif what == "reward":
        judge = trainer_module.judge_batch

        def one_bad(rows, size, config, step):
            rewards, labels, metrics = judge(rows, size, config, step)
            return [value if step == 3 and i == 5 else r for i, r in enumerate(rewards)], labels, metrics

        monkeypatch.setattr(trainer_module, "judge_batch", one_bad)
    elif what == "grad_norm":
        clip = CoRewardingTrainer._clip_grad_norm

        def spoil(self, model):
            norm = clip(self, model)
            if fourth(self):
                next(p.grad for p in model.parameters() if p.grad is not None).view(-1)[0] = value
            return norm

        monkeypatch.setattr(CoRewardingTrainer, "_clip_grad_norm", spoil)
    else:
        create = CoRewardingTrainer.create_optimizer

        def spoiling(self, *args):
            optimizer = create(self, *args)
            optimizer.register_step_post_hook(
                lambda *_: [p.data.view(-1)[:1].fill_(value) for p in list(self.model.parameters())[:1] if fourth(self)]
            )
            return optimizer

        monkeypatch.setattr(CoRewardingTrainer, "create_optimizer", spoiling)
    scored = iter([0.1, 0.2, 0.3, 0.4])
    monkeypatch.setattr(callbacks.evaluate, "avg_at_k", lambda _: SimpleNamespace(mean=next(scored)))  # each is a best
    with pytest.raises(FloatingPointError, match=f"{what} is {value} at step 4; the last good .*checkpoint-2"):
        train.train(settings(tiny, "majority_voting"), tmp_path)
    status = runs.read_status(tmp_path)
    assert status["state"] == "failed" and status["last_good"] == str(tmp_path / "checkpoint-2")
    assert runs.read_json(tmp_path / "best" / "validation.json")["step"] == 2
    assert [c.name for c in saving.checkpoints(tmp_path)] == ["checkpoint-2"] and not (tmp_path / "final").exists()
    for folder in ("best", "checkpoint-2"):
        assert all(t.isfinite().all() for t in load_file(tmp_path / folder / "model.safetensors").values())


def test_one_ranks_nan_and_one_ranks_signal_stop_all(monkeypatch, tmp_path):
    args, state = SimpleNamespace(world_size=2), SimpleNamespace(global_step=3, is_world_process_zero=False)
    finite = callbacks.FiniteOnly(tmp_path)
    model = torch.nn.Linear(2, 2)
    finite.trainer = SimpleNamespace(_tr_loss=torch.tensor(1.0), model=model)
    model(torch.ones(2)).sum().backward()
    other = []
    monkeypatch.setattr(callbacks, "gather_object", lambda mine: mine + other)
    finite.on_pre_optimizer_step(args, state, None)
    other.append(("loss", float("-inf")))
    with pytest.raises(FloatingPointError, match="loss is -inf at step 4; the last good checkpoint is none"):
        finite.on_pre_optimizer_step(args, state, None)
    stop, control = callbacks.StopOnSignal(), SimpleNamespace(should_save=False, should_training_stop=False)
    stop.release()
    other[:] = [False]
    stop.on_step_end(args, state, control)
    assert not control.should_training_stop
    other[:] = [True]
    stop.on_step_end(args, state, control)
    assert control.should_training_stop and control.should_save


# --- the time limit and the time left ----------------------------------------------------------------------------------


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def step(heartbeat, stop, clock, n, seconds, saving_seconds=None):
    """One step of a run on a fake clock; returns whether the run is told to stop after it."""
    args, state = SimpleNamespace(world_size=1), SimpleNamespace(global_step=n - 1, is_world_process_zero=True)
    control = SimpleNamespace(should_save=saving_seconds is not None, should_training_stop=False)
    heartbeat.on_step_begin(args, state, control)
    clock.now += seconds
    state.global_step = n
    stop.on_step_end(args, state, control)
    heartbeat.on_log(args, state, control, logs={"loss": 0.1, "reward": 0.5, "grad_norm": 1.0})
    if control.should_save:
        clock.now += saving_seconds or 0.0
        stop.on_save(args, state, control)
    return control.should_training_stop


@pytest.fixture
def timed(tmp_path):
    clock, said = Clock(), []

    def make(max_hours=0.0, steps=100, before=None):
        heartbeat = callbacks.Heartbeat(tmp_path, steps, 1, before=before, say=said.append, clock=clock)
        heartbeat.trainer = SimpleNamespace()
        stop = callbacks.StopOnSignal(max_hours, heartbeat, clock=clock)
        stop.release()
        return heartbeat, stop, clock, said

    return make


def test_max_hours_leaves_room_for_the_longest_step_and_a_checkpoint(timed):
    """Limit 1000 s; steps of 100 s, the third takes 200 s; a checkpoint takes 50 s after step 2.

    After step n: 100, 200 (+50), 450, 550, 650, 750. Another step needs 1.1 x 200 + 50 = 270: 650 + 270 <= 1000, so step
    6 is made, and 750 + 270 > 1000 stops the run there.
    """
    heartbeat, stop, clock, said = timed(max_hours=1000 / 3600)
    told = [step(heartbeat, stop, clock, n, 200 if n == 3 else 100, 50 if n == 2 else None) for n in range(1, 6)]
    assert not any(told) and clock.now == 650
    assert step(heartbeat, stop, clock, 6, 100, 50) and clock.now == 800
    assert said[-2] == "max_hours=0.277778 is near: another step takes up to 200 s, a checkpoint 50 s"


def test_max_hours_knows_the_first_validation_and_an_earlier_calls_longest_step(timed):
    heartbeat, stop, clock, _ = timed(max_hours=1)
    heartbeat.on_init_end(None, None, None)
    clock.now += 500  # the validation before the first step
    assert not step(heartbeat, stop, clock, 1, 100)
    assert heartbeat.longest == 600
    heartbeat, stop, clock, _ = timed(max_hours=1, before=runs.read_json(heartbeat.folder / "status.json"))
    start = clock.now
    assert not step(heartbeat, stop, clock, 2, 100) and heartbeat.longest == 600
    clock.now = start + 3600 - 1300
    assert step(heartbeat, stop, clock, 3, 100)  # 1.1 x 600 and as much again for a checkpoint not yet measured


def test_no_limit_and_one_that_is_over_before_the_first_step(timed):
    heartbeat, stop, clock, _ = timed()
    assert not step(heartbeat, stop, clock, 1, 10**9)
    heartbeat, stop, clock, _ = timed(max_hours=0.001)
    clock.now += 60
    assert step(heartbeat, stop, clock, 1, 1)  # each call makes one step, or a run would never end


def test_time_left_after_a_resume_starts_from_the_earlier_calls_steps(timed):
    """10 s a step before; the first step after the resume takes 60 s (warm-up): (60 + 4 x 10) / 5 = 20 s a step."""
    heartbeat, stop, clock, said = timed(steps=100, before={"step_seconds": 10.0, "seconds": 500.0})
    clock.now = 1000.0
    step(heartbeat, stop, clock, 51, 60)
    status = runs.read_json(heartbeat.folder / "status.json")
    assert status["eta"] == 20 * 49 and status["last_step_at"] == 1060 and status["seconds"] == 560
    assert "step 51/100" in said[-1] and "980 s left" in said[-1]
    for n in range(52, 57):
        step(heartbeat, stop, clock, n, 5)
    status = runs.read_json(heartbeat.folder / "status.json")
    assert status["step_seconds"] == pytest.approx((60 + 5 * 5) / 6) and status["last_step_at"] == 1085


@pytest.mark.slow
def test_max_hours_stops_a_real_run_before_the_limit_and_the_same_command_goes_on(tiny, tmp_path, whole):
    """As a child process, with the exit code of SIGTERM; a limit that allows some steps and not all of 600."""
    file, calls = tmp_path / "run.yaml", []
    file.write_text(settings(tiny, steps=600, save_steps=50, eval_steps=50, max_hours=30 / 3600).to_yaml())
    for _ in range(2):
        before = time.time()
        child = subprocess.run([sys.executable, "-m", "corelib.train", "--config", str(file), "--out", str(tmp_path / "run")])  # fmt: skip
        status = runs.read_status(tmp_path / "run")
        assert child.returncode == 3 and status["state"] == "stopped"
        assert status["time"] - before < 30 + 30  # the limit counts from the end of the imports
        assert before < status["last_step_at"] <= status["time"]
        calls.append(status["step"])
        assert saving.last_checkpoint(tmp_path / "run").name == f"checkpoint-{status['step']}"
    assert 1 < calls[0] < calls[1] < 600


# --- folders -----------------------------------------------------------------------------------------------------------


def test_a_read_only_folder_is_one_sentence(small_disk, tiny):
    folder = small_disk / "run"
    folder.mkdir()
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    with pytest.raises(RuntimeError, match=r"run cannot be written \(Read-only file system\); make it writable, or"):
        train.train(settings(tiny), folder)
    with pytest.raises(RuntimeError, match="cannot be written"):
        runs.write_text(folder / "config.yaml", "a: 1")


def test_a_folder_is_held_by_one_process(tmp_path):
    code = "import sys, time; from corelib import runs; h = runs.hold(sys.argv[1], 0); print('held', flush=True); time.sleep(60)"
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(RuntimeError, match="being trained by process .* wait for it, or stop it first"):
        runs.hold(tmp_path, 0)  # no status yet: the lock alone says so
    other.kill()
    other.wait()
    runs.hold(tmp_path, 0).close()


def test_a_lost_or_torn_manifest_stops_a_resume(tiny, tmp_path):
    config = settings(tiny)
    runs.refuse_other_settings(tmp_path, config)
    checkpoint(tmp_path, 2)
    with pytest.raises(RuntimeError, match="manifest.json is missing or unreadable"):
        runs.refuse_other_settings(tmp_path, config)
    runs.write_manifest(tmp_path, config)
    runs.refuse_other_settings(tmp_path, config)
    os.truncate(tmp_path / "manifest.json", 40)
    with pytest.raises(RuntimeError, match="manifest.json is missing or unreadable"):
        runs.refuse_other_settings(tmp_path, config)


def test_a_deleted_best_is_said_and_started_anew(tiny, tmp_path):
    said = []
    validate = callbacks.Validate(settings(tiny), tmp_path, None, None, [])
    validate.say = said.append
    state = SimpleNamespace(global_step=4, is_world_process_zero=True)
    runs.append_metrics(tmp_path, {"step": 2, "gt/validation": 0.75})
    validate.on_train_begin(None, state, None)
    assert validate.best == -1 and said == [f"{tmp_path / 'best'} is gone, with the weights that scored 0.750; the next validation starts a new one"]  # fmt: skip
    runs.write_json(tmp_path / "best.old" / "validation.json", {"step": 2, "accuracy": 0.75})
    validate.on_train_begin(None, state, None)
    assert validate.best == 0.75 and len(said) == 1  # killed while it was replaced


def test_a_half_written_file_of_rollouts_is_left_out(tmp_path, capsys):
    import pandas as pd

    (tmp_path / "completions").mkdir()
    for n in (1, 2):
        pd.DataFrame({"step": [n]}).to_parquet(tmp_path / "completions" / f"completions_0000{n}.parquet")
    os.truncate(tmp_path / "completions" / "completions_00002.parquet", 200)
    assert runs.load_completions(tmp_path)["step"].tolist() == [1]
    assert "completions_00002.parquet is not whole" in capsys.readouterr().err


# --- nothing from outside is unpickled -----------------------------------------------------------------------------------


class Exploit:
    def __reduce__(self):
        return (open, (os.environ["EXPLOIT"], "w"))


def test_a_planted_pickle_is_refused_before_it_is_loaded(tiny, tmp_path, whole, monkeypatch):
    """optimizer.pt replaced: by its hash. With the mark forged as well: by torch's restricted loader, and nothing ran."""
    monkeypatch.setenv("EXPLOIT", str(tmp_path / "pwned"))
    folder = tmp_path / "run"
    shutil.copytree(whole, folder)
    runs.write_json(folder / "status.json", {"state": "stopped"})
    saving.discard(folder / "checkpoint-6")
    shutil.rmtree(folder / "final")
    for forged in (False, True):
        torch.save({"state": Exploit()}, folder / "checkpoint-4" / "optimizer.pt")
        if forged:
            saving.mark_complete(folder / "checkpoint-4")
        with pytest.raises(Exception, match="Weights only load failed" if forged else "no whole checkpoint is left.*optimizer.pt"):  # fmt: skip
            train.train(settings(tiny), folder)
        assert not (tmp_path / "pwned").exists()


def test_models_that_are_pickles_are_refused(tmp_path, tiny):
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ValueError, match="holds its weights as pytorch_model.bin, a pickle"):
        train.train(tiny("gt", model=str(tmp_path)), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    (tmp_path / "model.safetensors").write_bytes(b"")
    saving.require_safetensors(tmp_path)
    saving.require_safetensors("Qwen/Qwen3-4B-Base")


def test_evaluation_refuses_pickles_too(tmp_path):
    from corelib import models
    from corelib.config import LAB_BASES

    shutil.copytree(LAB_BASES["lab"], tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "pytorch_model.bin").write_bytes(b"cposix\nsystem\n(S'true'\ntR.")
    with pytest.raises(ValueError, match="holds its weights as pytorch_model.bin, a pickle"):
        models.load_model(tmp_path)


def test_the_code_unpickles_nothing_and_trusts_no_remote_code():
    """A grep: every word below would open a way to run a stranger's code."""
    forbidden = r"trust_remote_code[\"']?\s*[=:](?!\s*False)|weights_only\s*=\s*False|allow_pickle\s*=\s*True|\btorch\.load\(|\bimport (pickle|dill|joblib|cloudpickle)\b|\bfrom (pickle|dill|joblib)\b|Unpickler|read_pickle|yaml\.(unsafe_)?load\(|use_safetensors\s*=\s*(False|None)"  # fmt: skip
    assert re.search(forbidden, "trust_remote_code = True") and re.search(forbidden, "torch.load(path)")
    assert not re.search(forbidden, '"trust_remote_code": False, trust_remote_code=False, pickletools')
    sources = [*ROOT.glob("corelib/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]
    assert len(sources) > 20
    for source in sources:
        found = re.search(forbidden, source.read_text())
        assert not found, f"{source.name}: {found[0]}"


def test_trainer_still_loads_its_own_files_restrictedly():
    """The table in corelib/saving.py was read in transformers 5.17: a newer one must be read again."""
    import inspect

    import transformers
    from transformers import Trainer

    assert transformers.__version__.startswith("5.17."), "read the loading paths again, then change this line"
    calls = re.findall(r"torch\.load\((?:[^()]|\([^()]*\))*\)", inspect.getsource(Trainer))
    assert len(calls) >= 8 and all("weights_only=True" in call for call in calls)
