"""`python -m corelib doctor`: versions, devices, and what each profile lacks on this machine with how to get it."""

from __future__ import annotations

import importlib.util
import os
import shutil
from pathlib import Path

from corelib import runs
from corelib.config import PROFILES, ROOT, load_config, unknown


def report(profile: str = "") -> int:
    """Print what is here; exit code 0 when the asked profile (default: lab) can run, else 1."""
    import torch
    from rich.console import Console
    from rich.table import Table

    if profile and profile not in PROFILES:
        raise ValueError(unknown("profile", profile, PROFILES))
    console = Console(width=120)
    table = Table("package", "version", title="versions")
    for name, version in runs.versions().items():
        table.add_row(name, version)
    console.print(table)
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    console.print(
        f"CPU: {os.cpu_count()} cores, {memory:.0f} GiB memory; disk free: {shutil.disk_usage(ROOT).free / 2**30:.0f} GiB"
    )
    console.print("GPU: " + (", ".join(f"{g.name} {g.total_memory / 2**30:.0f} GiB" for g in gpus) or "none"))
    table = Table("profile", "runs here", "what is missing, and how to get it", title="profiles")
    lacking = {}
    for name in [profile] if profile else PROFILES:
        lacking[name] = lacks(name, len(gpus))
        table.add_row(name, "no" if lacking[name] else "yes", "\n".join(lacking[name]))
    console.print(table)
    return 1 if lacking[profile or "lab"] else 0


def lacks(profile: str, gpus: int) -> list[str]:
    """One sentence for each thing a profile needs and this machine does not have."""
    config, missing = load_config(profile), []
    if config.model == "lab" and not (Path(config.base_model) / "model.safetensors").is_file():
        missing.append("the lab's base model: python -m corelib.lab (about 4 minutes)")
    if config.bf16 and gpus == 0:
        missing.append("a GPU: run it where CUDA is visible (nvidia-smi lists it), or use profile lab")
    if config.engine == "vllm" and importlib.util.find_spec("vllm") is None:
        missing.append("vllm: conda env create -f environment.yml")
    if config.model != "lab" and not Path(config.model).is_dir() and not _cached(config.model):
        missing.append(f"{config.model}: hf download {config.model} (or model=FOLDER)")
    return missing


def _cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)
