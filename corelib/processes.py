"""Several training processes on one machine: their accelerate configuration, and a starter that leaves them time to save.

    python -m corelib.processes --config_file outputs/runs/<name>/accelerate.yaml -m corelib.train --config ... --out ...

has the command line of `accelerate launch` and gives the processes the environment that it would give them, but starts
them itself. Its elastic agent (torch 2.13, torch/distributed/elastic) kills every process 30 s after SIGTERM unless told
otherwise, before a full-scale step can end; puts each in a session of its own, so that they outlive a killed agent; turns
every exit code into 1; and refuses processes without GPUs (`accelerate launch --cpu` starts one, whatever --num_processes
says). Several machines need it: `machine_commands`.
"""

from __future__ import annotations

import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from corelib.config import RunConfig

FILE = "accelerate.yaml"
STOPPED = 3  # exit code of a training that saved and stopped before its last step (corelib.train)
LEFT_BEHIND = 15.0  # seconds that the other processes get to report an error of their own when one has failed
PORT = 29500  # torch's default; only several machines have to agree on one


def visible_gpus() -> int:
    """Visible GPUs, without touching CUDA: a notebook's kernel must not hold GPU memory."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([d for d in visible.split(",") if d.strip() not in ("", "-1")])
    return len(list(Path("/proc/driver/nvidia/gpus").glob("*"))) if Path("/proc/driver/nvidia/gpus").is_dir() else 0


def die_with_parent() -> None:
    """For `preexec_fn`: SIGTERM when the parent ends, however it ends (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def count(config: RunConfig) -> int:
    """Training processes on this machine: `gpus`, or all visible GPUs, or one. Without GPUs `gpus` counts CPU processes.

    Raises ValueError when more GPUs are asked for than are visible.
    """
    visible = visible_gpus()
    if visible and config.gpus > visible:
        raise ValueError(f"gpus={config.gpus}, but {visible} are visible here; lower gpus, or set 0 for all of them")
    return config.gpus or max(visible, 1)


def accelerate_config(config: RunConfig, processes: int, machines: int = 1, gpu: bool | None = None) -> dict:
    """What `accelerate launch --config_file` reads (accelerate 1.15), for `processes` in all.

    fsdp2: weights, gradients, Adam and teacher are split; one unit a transformer layer (the model names its class).
    ddp: every GPU holds everything. `gpu` False: plain data parallelism over gloo, for accelerate shards on accelerators
    only (accelerate.state: MULTI_CPU never becomes FSDP); by default a run with vLLM is planned for GPUs even where none
    is visible. Raises ValueError for LoRA with fsdp2.
    """
    gpu = bool(visible_gpus()) or config.engine != "transformers" if gpu is None else gpu
    kind = ("FSDP" if config.sharding == "fsdp2" else "MULTI_GPU") if gpu else "MULTI_CPU"
    if kind == "FSDP" and config.lora_rank:
        raise ValueError(
            "LoRA is not sharded (TRL 1.16 cannot merge sharded adapters for vLLM); set sharding: ddp, or gpus: 1"
        )
    settings = {
        "compute_environment": "LOCAL_MACHINE",
        "distributed_type": kind,
        "use_cpu": not gpu,
        "num_processes": processes,
        "num_machines": machines,
        "mixed_precision": "bf16" if config.bf16 else "no",
        "main_process_port": 0 if machines == 1 else PORT,  # 0: any free port, so that two runs share a machine
        "rdzv_backend": "static",
        "same_network": True,
    }
    if kind == "FSDP":
        settings["fsdp_config"] = {
            "fsdp_version": 2,
            "fsdp_auto_wrap_policy": "TRANSFORMER_BASED_WRAP",
            "fsdp_reshard_after_forward": True,
            "fsdp_offload_params": False,
            # One file a checkpoint that any number of GPUs resumes; under SHARDED_STATE_DICT Trainer.save_model writes
            # nothing, so `best` and `final` would be empty (transformers 5.17)
            "fsdp_state_dict_type": "FULL_STATE_DICT",
            # True would leave TRL's reference model, our teacher, uninitialised on all ranks but the first: TRL 1.16's
            # prepare_fsdp shards without broadcasting. The price is one copy of the base model a rank in host memory.
            "fsdp_cpu_ram_efficient_loading": False,
            # `gradient_checkpointing` is TRL's, the same as on one GPU; transformers refuses to have both
            "fsdp_activation_checkpointing": False,
        }
    return settings


def environment(config_file: str | Path) -> tuple[dict[str, str], int]:
    """The environment that `accelerate launch` gives to its processes for this file, and how many there are."""
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils.launch import prepare_multi_gpu_env

    args = launch_command_parser().parse_args(["--config_file", str(config_file), "unused"])
    args, _, _ = _validate_launch_command(args)
    if args.num_machines > 1:
        raise ValueError(
            f"{config_file} is for {args.num_machines} machines: start it with accelerate launch on each "
            "(python -m corelib train --machines prints the commands)"
        )
    shared = prepare_multi_gpu_env(args)
    shared |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(args.master_port),
        "WORLD_SIZE": str(args.num_processes),
        "LOCAL_WORLD_SIZE": str(args.num_processes),
    }
    shared.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does for more than one process
    return shared, args.num_processes


def start(command: Sequence[str], config_file: str | Path) -> int:
    """Run `command` once a rank and wait for all. Returns the first failure's exit code, else the first process's.

    SIGTERM is passed on to every process, Ctrl-C reaches them by itself; both leave them as long as they need to save
    (the supervisor counts `stop_seconds`). When one process fails, the others are ended `LEFT_BEHIND` seconds later:
    they would wait for it in a collective. When this process is killed, they are told to stop.
    """
    shared, processes = environment(config_file)
    ranks: list[subprocess.Popen] = []
    # A handler that does nothing, where ignoring would be inherited by the processes
    signal.signal(signal.SIGINT, lambda *_: None)
    signal.signal(signal.SIGTERM, lambda *_: [rank.terminate() for rank in ranks])
    for i in range(processes):
        env = shared | {"RANK": str(i), "LOCAL_RANK": str(i)}
        ranks.append(subprocess.Popen(list(command), env=env, preexec_fn=die_with_parent))
    failed, deadline = None, 0.0
    while any(rank.poll() is None for rank in ranks):
        for i, rank in enumerate(ranks):
            if failed is None and rank.poll() not in (None, 0, STOPPED):
                failed, deadline = i, time.time() + LEFT_BEHIND
        if failed is not None and time.time() > deadline:
            for rank in ranks:
                rank.kill()
        time.sleep(0.1)
    codes = [rank.returncode if rank.returncode >= 0 else 128 - rank.returncode for rank in ranks]
    if failed is None:  # they may have ended between two looks
        failed = next((i for i, code in enumerate(codes) if code not in (0, STOPPED)), None)
    if failed is None:
        return codes[0]
    print(f"process {failed} of {processes} ended with {codes[failed]}; the others were ended too", flush=True)
    return codes[failed]


def machine_commands(
    module: Sequence[str], config_file: Path, machines: int, processes: int, stop_seconds: int
) -> list[str]:
    """One shell line for each of several machines, by `accelerate launch`; all must see the files that it names.

    The first line's machine is the one whose address replaces HOST0. SIGTERM or Ctrl-C for any of the lines stops the
    whole run after its step; torch's agents would kill it 30 s later, hence the variable (torch 2.13, run.py).
    """
    lines = []
    for rank in range(machines):
        parts = [
            "accelerate", "launch", "--config_file", str(config_file), "--num_machines", str(machines),
            "--num_processes", str(processes), "--machine_rank", str(rank), "--main_process_ip", "HOST0",
            "--main_process_port", str(PORT), "-m", *module,
        ]  # fmt: skip
        lines.append(f"TORCH_ELASTIC_SHUTDOWN_TIMEOUT={stop_seconds} {shlex.join(parts)}")
    return lines


def main(argv: Sequence[str]) -> int:
    if len(argv) < 4 or argv[0] != "--config_file" or argv[2] != "-m":
        print("usage: python -m corelib.processes --config_file FILE -m MODULE ...", file=sys.stderr)
        return 2
    return start([sys.executable, *argv[2:]], argv[1])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
