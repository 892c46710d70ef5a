"""`python -m corelib doctor`: versions, devices, what each profile lacks here; with --gpus or --measure: its memory."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import math
import os
import re
import shutil
from pathlib import Path

from corelib import memory, runs
from corelib.config import LAB_BASES, PROFILES, RunConfig, load_config, unknown

WIDTH = 100
# The GPU set of environment.yml: vLLM, and what its wheel's metadata asks of torch and transformers
VLLM, NEEDS = "0.31.0", {"torch": "==2.13.0", "transformers": ">=5.10.4,<5.18.0"}


def report(profile: str = "", gpus: str = "", settings: dict | None = None, measure: bool = False) -> int:
    """Print what is here; exit code 0 when the asked profile (default: lab) can run or, with `gpus`, fits there, else 1.

    gpus: such as 4x80, the machine to plan for; settings: changes to the profile. Raises ValueError for what cannot be
    planned or measured.
    """
    if profile and profile not in PROFILES:
        raise ValueError(unknown("profile", profile, PROFILES))
    if (gpus or settings or measure) and not profile:
        raise ValueError("--gpus, --set and --measure need --profile")
    config = load_config(profile, **(settings or {})) if profile else None
    if measure:
        return _measured(config, gpus)
    if gpus:
        return show_plan(config, *machine(gpus))
    code = _here(profile, settings or {})
    if profile:
        found = _visible()
        if found or _on_cpu(config):
            show_plan(config, *(found or (1, _memory())), cpu=not found)
        else:
            _console().print("memory plan: add --gpus COUNTxGIB, e.g. --gpus 4x80")
    return code


def machine(text: str) -> tuple[int, float]:
    """Number of GPUs and GiB of each from `4x80`, `80` (one), `4x79.6`. Raises ValueError for anything else.

    >>> machine("4x80"), machine("24")
    ((4, 80.0), (1, 24.0))
    """
    found = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?)", text.strip().lower())
    count, gib = (int(found[1] or 1), float(found[2])) if found else (0, 0.0)
    if count < 1 or gib <= 0:
        raise ValueError(f"--gpus {text!r} must be COUNTxGIB, e.g. 4x80 for four GPUs of 80 GiB each")
    return count, gib


def show_plan(config: RunConfig, gpus: int, gib: float, cpu: bool = False) -> int:
    """Print the memory plan and whether it fits, what helps when it does not; exit code 0 when it fits, else 1."""
    from rich.table import Table

    plan, console = memory.plan(config, gpus, gib, cpu), _console()
    place = f"a CPU with {gib:.0f} GiB" if cpu else f"{gpus} x {gib:.4g} GiB"
    unit, scale = ("MiB", 1024) if cpu else ("GiB", 1)
    title = f"{config.profile}, {config.method}, {config.model} on {place}: {unit} {'in each process' if cpu else 'on each GPU'}"
    table = Table("", *plan.phases, title=title, box=None, pad_edge=False)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in plan.rows:
        table.add_row(row["part"], *(f"{scale * row[p]:.2f}" if row[p] else "" for p in plan.phases))
    worst = max(plan.phases, key=plan.phases.get)
    sums = (f"[bold]{scale * v:.2f}[/bold]" if p == worst else f"{scale * v:.2f}" for p, v in plan.phases.items())
    table.add_row("[bold]sum[/bold]", *sums)
    console.print(table)
    console.print("score: log-probabilities without gradient; head: backward of the LM head; update: Adam")
    if plan.fits:
        console.print(f"fits: {plan.peak:.1f} of {gib:.4g} GiB in phase {worst}, {plan.room:.1f} left")
    else:
        console.print(f"does not fit: {plan.problem}")
        console.print(_remedy(config, gpus, gib, cpu))
    console.print(_cache_line(config, plan))
    for what, parts in (("host memory", plan.host), ("disk", plan.disk)):
        if parts:
            listed = "; ".join(f"{p['part']} {p['GiB']:.1f}" for p in parts)
            console.print(f"{what}: {sum(p['GiB'] for p in parts):.1f} GiB ({listed})")
    if not cpu:
        console.print(
            "Sizes follow from the code, activations from formulas checked on a CPU; a peak on a GPU has not been "
            "measured (--measure does). GiB are those nvidia-smi shows: an 80 GB card has 79.6, a 48 GB L40S 45.0."
        )
    return 0 if plan.fits else 1


def _cache_line(config: RunConfig, plan: memory.Plan) -> str:
    if plan.sequences is None:
        return "KV cache: on the vLLM servers, not on these GPUs"
    tokens = config.max_prompt_tokens + config.max_completion_tokens
    rounds = math.ceil(plan.rollouts / plan.sequences) if plan.sequences else "no"
    return (
        f"KV cache: {plan.sequences} sequences of {tokens:,} tokens at once; a step's {plan.rollouts} rollouts a process "
        f"take {rounds} round{'s' if rounds != 1 else ''} at most"
    )


def _remedy(config: RunConfig, gpus: int, gib: float, cpu: bool) -> str:
    found = memory.cure(config, gpus, gib, cpu)
    if found is None:
        tried = ", ".join(dict.fromkeys(name for choices in memory.knobs(config, gpus, cpu) for name in choices[0]))
        return f"nothing tried makes it fit ({tried}; up to three together): use larger GPUs or a smaller model"
    change, plan = found
    turned = ", ".join(f"{name}={value}" for name, value in change.items())
    warn = " (another run: micro_batch changes the update a little)" if "micro_batch" in change else ""
    warn = " (another kind of training: LoRA)" if "lora_rank" in change else warn
    return f"turn first: {turned}, then {plan.peak:.1f} of {gib:.4g} GiB{warn}"


def _measured(config: RunConfig, gpus: str) -> int:
    """Plan and measured peak side by side."""
    from corelib import measure

    found = _visible()
    if not found and not _on_cpu(config):
        raise ValueError(
            f"profile {config.profile} is measured on a GPU, and none is visible here; use --measure with profile lab or "
            "smollm2 (peak memory of a CPU process), or plan with --gpus 4x80"
        )
    count, gib = machine(gpus) if gpus and found else (found or (1, _memory()))
    count = config.gpus or count
    code, console = show_plan(config, count, gib, cpu=not found), _console()
    if not found:
        console.print("no GPU is visible: measuring the peak resident memory of the training process on the CPU")
    console.print("measuring: two steps on the longest prompts, every answer of full length ...")
    peaks = measure.measure(config)
    planned = memory.plan(config, count, gib, cpu=not found).peak
    for peak in peaks:
        share = peak["GiB"] / planned
        console.print(f"process {peak['rank']}: {peak['what']} {peak['GiB']:.2f} GiB, plan {planned:.2f} ({share:.0%})")
    return code


def _here(profile: str, settings: dict) -> int:
    """Print versions, devices and what each profile lacks."""
    from rich.markup import escape
    from rich.table import Table

    console, found = _console(), _gpus()
    table = Table("package", "version", title="versions")
    for name, version in runs.versions().items():
        table.add_row(name, version)
    console.print(table)
    console.print(vllm_line(), markup=False)
    console.print(f"CPU: {os.cpu_count()} cores, {_memory():.0f} GiB memory; disk free: {_free():.0f} GiB")
    console.print("GPU: " + (", ".join(f"{name} {gib:.1f} GiB" for name, gib in found) or "none"))
    console.print(sandbox_line(), markup=False)
    table = Table("profile", "runs here", "disk, GiB", "what is missing, and how to get it", title="profiles")
    lacking = {}
    for name in [profile] if profile else PROFILES:
        config = load_config(name, **settings)
        lacking[name] = lacks(config, len(found))
        try:
            disk = f"{_disk(config):.1f}"
        except ValueError:  # a model whose size is not known
            disk = "?"
        table.add_row(name, "no" if lacking[name] else "yes", disk, escape("\n".join(lacking[name])))
    console.print(table)
    return 1 if lacking[profile or "lab"] else 0


def lacks(config: RunConfig, gpus: int) -> list[str]:
    """One sentence for each thing that a run needs and this machine does not have."""
    missing = []
    if config.model in LAB_BASES and not (Path(config.base_model) / "model.safetensors").is_file():
        missing.append("the lab's base model: python -m corelib.lab (about 4 minutes)")
    if config.bf16 and gpus == 0:
        missing.append("a GPU: run it where CUDA is visible (nvidia-smi lists it), or use profile lab")
    if config.engine.startswith("vllm") and importlib.util.find_spec("vllm") is None:
        missing.append("vllm: conda env create -f environment.yml")
    if config.model == "smollm2":
        from corelib import smollm2

        missing += [smollm2.lacks()] if smollm2.lacks() else []
    elif config.model not in LAB_BASES and not Path(config.model).is_dir() and not _cached(config.model):
        missing.append(f"{config.model}: hf download {config.model} (or model=FOLDER)")
    try:
        if (need := _disk(config)) > _free():
            missing.append(f"disk: a run takes {need:.0f} GiB with its checkpoints, {_free():.0f} are free")
    except ValueError as error:
        missing.append(str(error))
    return missing


def vllm_line() -> str:
    """Whether the installed torch and transformers are those that vLLM needs: one line."""
    from packaging.requirements import Requirement
    from packaging.specifiers import SpecifierSet

    try:
        version = importlib.metadata.version("vllm")
        asked = [Requirement(line) for line in importlib.metadata.requires("vllm") or []]
        needs = {r.name: r.specifier for r in asked if r.name in NEEDS and not r.marker}
        who = f"vllm {version}"
    except importlib.metadata.PackageNotFoundError:
        needs, who = {name: SpecifierSet(spec) for name, spec in NEEDS.items()}, f"vllm {VLLM} (not installed)"
    said = []
    for name, spec in needs.items():
        have = importlib.metadata.version(name)
        fits = spec.contains(have.split("+")[0], prereleases=True)
        said.append(f"{name} {have} {'fits' if fits else 'DOES NOT FIT'} {spec}")
    return f"{who}: {', '.join(said)}"


def sandbox_line() -> str:
    """Whether model-written programs can be run in isolation here (benchmarks of code)."""
    if importlib.util.find_spec("corelib.sandbox") is None:
        return "sandbox for programs: not in this version"
    from corelib import sandbox

    reason = sandbox.available()
    return f"sandbox for programs: {'no: ' + reason if reason else 'yes'}"


def _console():
    from rich.console import Console

    return Console(width=WIDTH, highlight=False)


def _gpus() -> list[tuple[str, float]]:
    """Name and GiB of each visible GPU."""
    import torch

    found = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return [(gpu.name, gpu.total_memory / memory.GIB) for gpu in found]


def _visible() -> tuple[int, float] | None:
    """Number of visible GPUs and GiB of the smallest; None without one."""
    found = _gpus()
    return (len(found), min(gib for _, gib in found)) if found else None


def _on_cpu(config: RunConfig) -> bool:
    return not config.bf16 and config.engine == "transformers"


def _memory() -> float:
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / memory.GIB


def _free() -> float:
    folder = next(p for p in (runs.RUNS, *runs.RUNS.parents) if p.is_dir())
    return shutil.disk_usage(folder).free / memory.GIB


def _disk(config: RunConfig) -> float:
    return sum(part["GiB"] for part in memory.disk(config))


def _cached(model: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(model, "config.json"), str)
