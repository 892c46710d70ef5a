"""Several processes: accelerate's configuration arrives, ranks have time to save, and they compute what one computes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from corelib import launch, processes, runs
from corelib.__main__ import main
from corelib.config import LAB_BASES, ROOT, load_config

HERE = Path(__file__).parent
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
GPUS = "0,1,2,3"


# --- configuration ---------------------------------------------------------------------------------------------------


def environment_of(config, tmp_path, monkeypatch, total=4):
    path = tmp_path / "accelerate.yaml"
    path.write_text(yaml.safe_dump(processes.accelerate_config(config, total, gpu=True)))
    env, count = processes.environment(path)
    for name in list(os.environ):
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.delenv(name)
    for name, value in env.items():
        if name.startswith(("FSDP_", "ACCELERATE_")):
            monkeypatch.setenv(name, value)
    return env, count


def test_every_key_of_fsdp2_reaches_the_plugin(tmp_path, monkeypatch):
    from accelerate.utils import FullyShardedDataParallelPlugin
    from torch.distributed.fsdp import OffloadPolicy, StateDictType
    from torch.distributed.fsdp.wrap import transformer_auto_wrap_policy

    env, count = environment_of(load_config("qwen3-4b"), tmp_path, monkeypatch)
    assert count == 4 and env["WORLD_SIZE"] == env["LOCAL_WORLD_SIZE"] == "4" and env["MASTER_ADDR"] == "127.0.0.1"
    assert env["ACCELERATE_USE_FSDP"] == "true" and env["ACCELERATE_MIXED_PRECISION"] == "bf16"
    plugin = FullyShardedDataParallelPlugin()  # from the environment, as Accelerator() makes it
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is True
    assert plugin.auto_wrap_policy is transformer_auto_wrap_policy and plugin.transformer_cls_names_to_wrap is None
    assert plugin.state_dict_type == StateDictType.FULL_STATE_DICT and plugin.state_dict_config.offload_to_cpu
    assert type(plugin.cpu_offload) is OffloadPolicy  # none
    assert plugin.cpu_ram_efficient_loading is False and plugin.activation_checkpointing is False


def test_model_names_its_layer_class():
    from transformers import AutoModelForCausalLM

    assert set(AutoModelForCausalLM.from_pretrained(LAB_BASES["lab"])._no_split_modules) == {"Qwen3DecoderLayer"}


def test_outputs_and_gradients_stay_in_fp32_under_bf16(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from accelerate.utils import FullyShardedDataParallelPlugin

    from corelib import sharding

    environment_of(load_config("qwen3-4b"), tmp_path, monkeypatch)
    plugin = FullyShardedDataParallelPlugin()
    plugin.set_mixed_precision("bf16")  # what AcceleratorState does
    assert plugin.mixed_precision_policy.output_dtype == torch.bfloat16  # log-probabilities with three digits
    sharding.mixed_precision(SimpleNamespace(state=SimpleNamespace(fsdp_plugin=plugin), mixed_precision="bf16"))
    policy = plugin.mixed_precision_policy
    assert (policy.param_dtype, policy.reduce_dtype, policy.output_dtype) == (torch.bfloat16, torch.float32, None)


def test_ddp_is_not_sharded(tmp_path, monkeypatch):
    env, _ = environment_of(load_config("qwen3-4b", sharding="ddp", bf16=False), tmp_path, monkeypatch)
    assert "ACCELERATE_USE_FSDP" not in env and env["ACCELERATE_MIXED_PRECISION"] == "no"


def test_lora_is_not_sharded():
    with pytest.raises(ValueError, match="LoRA is not sharded.*set sharding: ddp, or gpus: 1"):
        processes.accelerate_config(load_config("qwen3-4b-lora", gpus=2), 2)
    assert "fsdp_config" not in processes.accelerate_config(load_config("qwen3-4b-lora", sharding="ddp"), 2)


def test_number_of_processes(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS)
    assert processes.count(load_config("qwen3-4b")) == 4 and processes.count(load_config("qwen3-4b", gpus=2)) == 2
    with pytest.raises(ValueError, match="gpus=8, but 4 are visible here; lower gpus"):
        processes.count(load_config("qwen3-4b", gpus=8))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert processes.count(load_config("lab")) == 1 and processes.count(load_config("lab", gpus=2)) == 2


def test_one_process_needs_no_starter(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    config = load_config("qwen3-4b")
    train = ["-m", "corelib.train", "--config", "out/config.yaml", "--out", "out"]
    assert launch.train_command(config, "out") == [sys.executable, *train]
    assert list(launch.prepare(config)) == ["config.yaml"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS)
    starter = ["-m", "corelib.processes", "--config_file", "out/accelerate.yaml"]
    assert launch.train_command(config, "out") == [sys.executable, *starter, *train]
    assert yaml.safe_load(launch.prepare(config)["accelerate.yaml"])["num_processes"] == 4


def test_dry_run_prints_each_machines_command_and_stays_a_config_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", GPUS)
    (tmp_path / "run.yaml").write_text("profile: qwen3-4b\n")
    out = tmp_path / "out"
    assert (
        main(["train", "--config", str(tmp_path / "run.yaml"), "--out", str(out), "--dry-run", "--machines", "2"]) == 0
    )
    text = capsys.readouterr().out
    assert not out.exists()
    assert load_config(path="", **yaml.safe_load(text)) == load_config("qwen3-4b")
    assert "#   fsdp_version: 2" in text and "# num_processes: 8" in text and "# main_process_port: 29500" in text
    lines = [line for line in text.splitlines() if "accelerate launch" in line]
    assert len(lines) == 2
    for rank, line in enumerate(lines):
        assert f"--num_machines 2 --num_processes 8 --machine_rank {rank} --main_process_ip HOST0" in line
        assert line.endswith(f"-m corelib.train --config {out}/config.yaml --out {out}")
        assert "# TORCH_ELASTIC_SHUTDOWN_TIMEOUT=600 accelerate launch" in line
    assert main(["train", "--config", str(tmp_path / "run.yaml"), "--out", str(out), "--machines", "2"]) == 0
    assert sorted(f.name for f in out.iterdir()) == ["accelerate.yaml", "config.yaml"]
    with pytest.raises(ValueError, match="is for 2 machines: start it with accelerate launch on each"):
        processes.environment(out / "accelerate.yaml")


# --- starting and stopping -------------------------------------------------------------------------------------------

# A rank that trains: its step takes `STEP` seconds, and only at its end it looks whether it was told to stop, and saves
STEP = 3.0
RANK = f"""
import os, signal, sys, time
from pathlib import Path
folder, rank = Path(sys.argv[1]), os.environ["RANK"]
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
signal.signal(signal.SIGINT, lambda *_: told.append(1))
(folder / f"pid{{rank}}").write_text(str(os.getpid()))
while not told:
    end = time.time() + {STEP}
    while time.time() < end:
        time.sleep(0.05)
(folder / f"saved{{rank}}").write_text("")
sys.exit(3)
"""
# The starter with two ranks; what accelerate adds to the environment is tested above and takes seconds to import
STARTER = """
import os, sys
from corelib import processes
processes.environment = lambda file: (dict(os.environ), 2)
processes.LEFT_BEHIND = 1.0
sys.exit(processes.start([sys.executable, "-c", *sys.argv[1:]], ""))
"""


def start(rank: str, folder: Path, supervised: bool = True, grace: float = 30.0) -> subprocess.Popen:
    command = [sys.executable, "-c", STARTER, rank, str(folder)]
    if supervised:
        command = [sys.executable, "-m", "corelib.launch", str(grace), *command]
    log = open(folder / "log", "wb")
    return subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True, cwd=ROOT)


def wait_for(condition, seconds=60.0) -> None:
    deadline = time.time() + seconds
    while not condition():
        assert time.time() < deadline, "waited in vain"
        time.sleep(0.05)


def ranks_of(folder: Path) -> list[int]:
    files = [folder / f"pid{i}" for i in range(2)]
    wait_for(lambda: all(f.is_file() and f.read_text() for f in files), 300)
    return [int(f.read_text()) for f in files]


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def children(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.parametrize("how", ["supervisor told", "everybody told", "Ctrl-C", "supervisor killed"])
def test_ranks_finish_their_step_and_save(how, tmp_path):
    """Told in the middle of a step, with whatever reaches the processes, both ranks end after it with exit code 3."""
    child = start(RANK, tmp_path, supervised=how != "Ctrl-C")
    pids = ranks_of(tmp_path)
    told_at = time.time()
    if how == "everybody told":  # a batch system
        for pid in [child.pid, *children(child.pid), *pids]:
            os.kill(pid, signal.SIGTERM)
    elif how == "Ctrl-C":  # the printed command in a terminal: the whole foreground group is interrupted
        os.killpg(child.pid, signal.SIGINT)
    else:
        child.send_signal(signal.SIGTERM if how == "supervisor told" else signal.SIGKILL)
    code = child.wait(60)
    wait_for(lambda: all(gone(pid) for pid in pids))
    assert all((tmp_path / f"saved{i}").is_file() for i in range(2)), (tmp_path / "log").read_text()
    assert time.time() - told_at > 0.5  # they were not shot
    assert code == (-signal.SIGKILL if how == "supervisor killed" else 3)


def test_after_the_grace_nobody_is_left(tmp_path):
    child = start(RANK.replace("while not told:", "while True:"), tmp_path, grace=1.0)
    pids = ranks_of(tmp_path)
    child.terminate()
    assert child.wait(30) == 128 + signal.SIGTERM or child.returncode == 128 + signal.SIGKILL
    wait_for(lambda: all(gone(pid) for pid in pids), 10)
    assert not (tmp_path / "saved0").exists()


@pytest.mark.parametrize(
    "end, code", [("raise ValueError('the reason')", 1), ("os.kill(os.getpid(), 9)", 137)], ids=["error", "kill-9"]
)
def test_a_rank_that_dies_ends_the_run_with_its_code(end, code, tmp_path):
    """The other one waits for it in a collective, deaf to SIGTERM."""
    dies = RANK.replace("while not told:", f"if rank == '1':\n    {end}\nwhile True:")
    child = start(dies, tmp_path)
    pids = ranks_of(tmp_path)
    assert child.wait(30) == code
    assert all(gone(pid) for pid in pids)
    log = (tmp_path / "log").read_text()
    assert f"process 1 of 2 ended with {code}" in log and (code != 1 or "the reason" in log)


def test_ranks_that_end_well_end_well(tmp_path):
    child = start("import os, sys; print('rank', os.environ['RANK'], os.environ['LOCAL_RANK'])", tmp_path)
    assert child.wait(30) == 0
    assert sorted((tmp_path / "log").read_text().split("\n")) == ["", "rank 0 0", "rank 1 1"]


@pytest.mark.slow
@pytest.mark.parametrize("stop_seconds, saved", [(60, True), (1, False)])
def test_agents_of_several_machines_wait_as_long_as_they_are_told(stop_seconds, saved, tmp_path):
    """Two `machines`, both this one, by the printed lines; their agents are told to stop in the middle of a step."""
    (tmp_path / "trainer_of_three_seconds.py").write_text(RANK)
    settings = processes.accelerate_config(load_config("qwen3-4b"), 2, machines=2, gpu=True)
    (tmp_path / "accelerate.yaml").write_text(yaml.safe_dump(settings))
    module = ["trainer_of_three_seconds", str(tmp_path)]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    agents, path = [], f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    for line in processes.machine_commands(module, tmp_path / "accelerate.yaml", 2, 2, stop_seconds):
        line = line.replace("HOST0", "127.0.0.1").replace(str(processes.PORT), port)
        env = ENVIRONMENT | {"PATH": path, "PYTHONPATH": f"{ROOT}:{tmp_path}"}
        name, _, command = line.partition(" ")
        env |= dict([name.split("=")])
        log = open(tmp_path / "log", "ab")
        agents.append(subprocess.Popen(["sh", "-c", f"exec {command}"], env=env, stdout=log, stderr=log))
    try:
        pids = ranks_of(tmp_path)
        for agent in agents:
            agent.terminate()
        wait_for(lambda: all(gone(pid) for pid in pids))
        assert [(tmp_path / f"saved{i}").is_file() for i in range(2)] == [saved, saved], (tmp_path / "log").read_text()
    finally:
        for agent in agents:
            agent.terminate()
            agent.wait(90)


# --- what they compute -----------------------------------------------------------------------------------------------


def torchrun(ranks: int, *command) -> None:
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(ranks)] if ranks > 1 else []
    done = subprocess.run(
        [sys.executable, *launcher, *map(str, command)], capture_output=True, text=True, timeout=500, env=ENVIRONMENT
    )
    assert done.returncode == 0, done.stderr[-3000:]


def relative_gap(a: Path, b: Path) -> float:
    """Euclidean distance of two runs' weights over the distance that they moved from the base model."""
    a, b, base = load_file(a), load_file(b), load_file(LAB_BASES["lab"] / "model.safetensors")
    names = [name for name in base if name in a]  # a tied head is stored once or twice
    gap, moved = (sum((x[n].double() - y[n].double()).square().sum() for n in names) for x, y in ((a, b), (a, base)))
    assert moved > 0
    return float((gap / moved).sqrt())


@pytest.mark.parametrize(
    "ranks, cases",
    [
        (2, ["majority_voting:3:6", "co_rewarding_i:2:6", "co_rewarding_ii:3:6"]),
        pytest.param(4, ["co_rewarding_ii:6:6", "co_rewarding_iii:2:6"], marks=pytest.mark.slow),
    ],
)
def test_ranks_have_labels_rewards_and_teacher_of_one_process(ranks, cases, tmp_path):
    """Groups and pairs span ranks: 3 prompts x 6 rollouts on 2 ranks, 1 pair x 2 views x 6 rollouts on 2 and 4.

    Three steps. Weights agree to 0.5 % of what they moved (measured: 0.06 to 0.2 %), not to rounding: Adam turns a
    gradient that is zero but for rounding into a full step of either sign.
    """
    for n in (1, ranks):
        torchrun(n, HERE / "ranks_worker.py", tmp_path / str(n), *cases)
    for case in cases:
        method, prompts, rollouts = case.split(":")
        one, many = tmp_path / "1" / method, tmp_path / str(ranks) / method
        seen = json.loads((one / "seen.json").read_text())
        assert seen == json.loads((many / "seen.json").read_text())
        assert [len(r) for r in seen["rewards"]] == [int(prompts) * int(rollouts)] * 3
        assert 0 < sum(map(sum, seen["rewards"])) < 3 * int(prompts) * int(rollouts)
        assert relative_gap(one / "model.safetensors", many / "model.safetensors") < 5e-3
        if method in ("co_rewarding_ii", "co_rewarding_iii"):
            assert relative_gap(one / "teacher.safetensors", many / "teacher.safetensors") < 5e-3


def test_teacher_is_averaged_saved_and_loaded_on_shards(tmp_path):
    """tests/sharding_worker.py holds the assertions: bit for bit as unsharded, and nothing sent during an update."""
    torchrun(2, HERE / "sharding_worker.py", tmp_path)


def same_runs(a: Path, b: Path) -> None:
    for file in ("final/model.safetensors", f"checkpoint-{LAST}/teacher.safetensors"):
        one, other = load_file(a / file), load_file(b / file)
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one), file
    columns = ["reward", "gt/accuracy", "teacher/distance", "kl"]
    assert runs.load_metrics(a)[columns].equals(runs.load_metrics(b)[columns])


LAST = 12
SMALL = dict(
    prompts_per_step=4, rollouts=4, micro_batch=4, steps=LAST, save_steps=100, warmup=0, learning_rate=1e-3, beta=0.05,
    teacher_start=0.5, eval_problems=3, eval_samples=1, eval_steps=6, test_problems=0, gpus=2, stop_seconds=120,
)  # fmt: skip


def stopped_and_resumed(command: list[str], folder: Path) -> None:
    """Start a run under the supervisor, tell everybody to stop after some step, then let the same command finish."""
    supervised = [sys.executable, "-m", "corelib.launch", "120", *command]
    with open(folder / "train.log", "wb") as log:
        child = subprocess.Popen(supervised, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True, cwd=ROOT)
        wait_for(lambda: runs.read_status(folder).get("step", 0) >= 2 or child.poll() is not None, 300)
        starter = children(child.pid)
        for pid in [*starter, *(rank for s in starter for rank in children(s)), child.pid]:
            os.kill(pid, signal.SIGTERM)
        assert child.wait(150) == 3, (folder / "train.log").read_text()[-3000:]
    status = runs.read_status(folder)
    assert status["state"] == "stopped" and 2 <= status["step"] < LAST
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming at step {status['step']} of {LAST}" in done.stdout


def prepared(config, folder: Path, sharded: bool) -> list[str]:
    """Write a run's files; its command. Sharding on a CPU needs the workaround of tests/fsdp_worker.py."""
    for file, text in launch.prepare(config).items():
        runs.write_text(folder / file, text)
    command = launch.train_command(config, folder)
    if sharded:
        settings = processes.accelerate_config(config, config.gpus, gpu=True)
        runs.write_text(folder / processes.FILE, yaml.safe_dump(settings))
        command = [sys.executable, str(HERE / "fsdp_worker.py"), *command[command.index("--config_file") + 1 :]]
    return command


@pytest.mark.slow
def test_two_ranks_stopped_and_resumed_equal_never_stopped(tmp_path):
    """The real trainer with teacher, KL and accumulation, under DDP and under FSDP2, which agree with one another.

    (Not with one process: every rank draws its rollouts from a random state of its own.)
    """
    config = load_config("lab", method="co_rewarding_ii", **SMALL)
    # Under FSDP2 the layers are recomputed too: hooks that gather meet hooks that recompute
    for name, settings in {"ddp": config, "fsdp2": replace(config, gradient_checkpointing=True)}.items():
        command = prepared(settings, tmp_path / name, sharded=name == "fsdp2")
        subprocess.run(command, check=True, timeout=400, env=ENVIRONMENT, cwd=ROOT)
        stopped_and_resumed(
            prepared(settings, tmp_path / "stopped" / name, name == "fsdp2"), tmp_path / "stopped" / name
        )
        same_runs(tmp_path / name, tmp_path / "stopped" / name)
    for file in ("final/model.safetensors", f"checkpoint-{LAST}/teacher.safetensors"):
        assert relative_gap(tmp_path / "ddp" / file, tmp_path / "fsdp2" / file) < 5e-3
    assert (tmp_path / "fsdp2" / f"checkpoint-{LAST}" / "pytorch_model_fsdp.bin").is_file()  # it was sharded
    assert not (tmp_path / "ddp" / f"checkpoint-{LAST}" / "pytorch_model_fsdp.bin").exists()


@pytest.mark.slow
def test_a_killed_sharded_run_goes_on_with_another_number_of_ranks(tmp_path):
    """Two ranks, kill -9, four: the checkpoint's shards are dealt out anew, and the teacher is not lost."""
    config = load_config("lab", method="co_rewarding_ii", **(SMALL | dict(save_steps=4, micro_batch=2)))
    with open(tmp_path / "train.log", "wb") as log:
        command = prepared(config, tmp_path, sharded=True)
        child = subprocess.Popen(command, stdout=log, stderr=log, env=ENVIRONMENT, start_new_session=True, cwd=ROOT)
        wait_for(lambda: runs.read_status(tmp_path).get("step", 0) >= 5 or child.poll() is not None, 300)
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    assert [p.name for p in tmp_path.glob("checkpoint-*")] == ["checkpoint-4"]
    first = load_file(tmp_path / "checkpoint-4" / "teacher.safetensors")
    command = prepared(replace(config, gpus=4), tmp_path, sharded=True)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=ENVIRONMENT, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert f"resuming at step 4 of {LAST}" in done.stdout
    metrics = runs.load_metrics(tmp_path)
    assert metrics["step"].tolist() == list(range(LAST + 1))
    # One that began anew would lie on the base model, at a distance of 0
    distance = metrics.set_index("step")["teacher/distance"]
    assert 0.8 < distance[5] / distance[4] < 1.5
    last = load_file(tmp_path / f"checkpoint-{LAST}" / "teacher.safetensors")
    assert first.keys() == last.keys() and all(first[k].shape == last[k].shape for k in last)
