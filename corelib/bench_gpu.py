"""`python -m corelib bench gpu`: each part of a full-scale step beside its floor and beside stock TRL, in one process.

Nothing is downloaded: the model has Qwen3-4B's shape and random weights. On a machine without a large GPU the same code
measures a reduced model, and says so.
"""

from __future__ import annotations

import inspect
import os
import platform
import shlex
import statistics
import time
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch

from corelib import bench_kit as kit
from corelib import runs
from corelib.bench_kit import SIZES, Size, row
from corelib.bench_steps import memory, steps
from corelib.config import unknown

MEGABYTE = 1e6
MEMORY_GOAL, EMA_GOAL, TIME_GOAL, PLAN_GOAL = 64.0, 0.80, 1.05, 1.10
# Dense bf16 FLOP/s with fp32 accumulation, NVIDIA's data sheets of the H200, H100 and A100 (half of the figure "with sparsity")
DATA_SHEET = {
    "NVIDIA H200": 989.5e12,
    "NVIDIA H100 80GB HBM3": 989.5e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
}


def ema(size: Size, device, budget: float) -> dict:
    """The teacher's update: bytes a second over those of a copy; TRL's `SyncRefModelCallback` loop is the comparison.

    Floor: read both weights, write one. 12 bytes a parameter from an fp32 policy, 10 from a bf16 one.
    """
    from trl.trainer.callbacks import SyncRefModelCallback

    from corelib.teacher import Teacher

    teacher = Teacher(kit.random_model(size, device))
    policy = {"fp32": kit.random_model(size, device), "bf16": kit.random_model(size, device, torch.bfloat16)}
    count = sum(p.numel() for p in policy["fp32"].parameters())
    source = torch.rand(min(count, 2**30), device=device)
    sink = torch.empty_like(source)
    functions = {"copy": lambda: sink.copy_(source)}
    for kind, model in policy.items():
        functions[kind] = partial(teacher.update, model, 0.01)
        functions[f"TRL {kind}"] = partial(SyncRefModelCallback._sync_target_model, model, teacher.model, 0.01)
    functions["distance"] = partial(teacher.distance, policy["fp32"])
    seconds = kit.in_turn(functions, budget, device)
    bandwidth = 8 * source.numel() / statistics.median(seconds["copy"])
    rows = []
    for kind, moved in (("fp32", 12), ("bf16", 10)):
        share = moved * count / (8 * source.numel()) / kit.ratio(seconds[kind], seconds["copy"])
        rows.append(
            row(
                f"EMA from {kind}: share of copy bandwidth",
                share,
                "of 1",
                EMA_GOAL if kind == "fp32" else None,
                "higher",
                f"{moved} bytes a parameter, {moved * count / bandwidth * 1e3:.2f} ms",
                kit.ratio(seconds[kind], seconds[f"TRL {kind}"]),
            )
        )
    extra = kit.peak_bytes(functions["bf16"], device) / MEGABYTE
    rows.append(row("EMA from bf16: memory beyond the weights", extra, "MB", floor="0 MB"))
    return {"rows": rows, "parameters": count, "copy_bytes_a_second": bandwidth, "seconds": kit.medians(seconds)}


def confidence(size: Size, device, budget: float) -> dict:
    """Entropy and self-certainty of whole rollouts: memory and time beyond TRL's fused LM head."""
    from trl.trainer.utils import add_fused_lm_head

    from corelib.confidence import sequence_confidence, with_mean_logits

    model = kit.random_model(size, device)
    plain, heads = model.forward, {}
    for name in ("log-probabilities", "TRL's policy head", "self-certainty"):
        model.forward = plain
        if name == "self-certainty":
            with_mean_logits(model, 1.0)
        else:  # the second is what GRPOTrainer gives its policy
            add_fused_lm_head(
                model, outputs=("log_probs",) if name == "log-probabilities" else ("log_probs", "entropy")
            )
        heads[name] = model.forward
    heads["entropy"] = heads["TRL's policy head"]
    state = {}

    def scored(name):
        model.forward = heads[name]
        with _autocast(device):
            if name in ("entropy", "self-certainty"):
                prompts, completions = state["lists"]
                sequence_confidence(
                    model, prompts, completions, 0, len(prompts), device, certainty=name == "self-certainty"
                )
            else:
                with torch.no_grad():
                    model(**state["batch"], fused_lm_head=True)

    def train():
        model.forward = heads["TRL's policy head"]
        _forward_backward(model, state["batch"], device)

    def attempt(rows):
        state["lists"] = _random_rollouts(size, rows)
        state["batch"] = _batch(size, *state["lists"], device)
        scored("self-certainty")
        train()

    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    rows_at_once = kit.largest(size.rows, attempt)
    peaks = {name: kit.peak_bytes(partial(scored, name), device) for name in heads}
    seconds = kit.in_turn(
        {name: partial(scored, name) for name in heads} | {"forward and backward": train}, budget, device
    )
    rows = []
    for name in ("entropy", "self-certainty"):
        extra = (peaks[name] - peaks["TRL's policy head"]) / MEGABYTE
        rows += [
            row(f"{name}: peak memory beyond TRL's head", extra, "MB", MEMORY_GOAL, floor="0 MB"),
            row(
                f"{name}: time over the log-prob forward",
                kit.ratio(seconds[name], seconds["log-probabilities"]),
                "x",
                TIME_GOAL,
                floor="1: the forward itself",
                over_stock=kit.ratio(seconds[name], seconds["TRL's policy head"]),
            ),
        ]
    own, update = (statistics.median(seconds[n]) for n in ("self-certainty", "forward and backward"))
    rows.append(row("self-certainty: share of a step without generation", own / (own + update), "of 1"))
    return {
        "rows": rows,
        "rows_at_once": rows_at_once,
        "tokens_a_row": [size.prompt, size.completion],
        "peak_bytes": peaks,
        "seconds": kit.medians(seconds),
    }


def train(size: Size, device, budget: float) -> dict:
    """Forward and backward through TRL's fused head with gradient checkpointing: tokens a second and MFU.

    The same code runs under stock TRL, so there is no ratio to it.
    """
    from trl.trainer.utils import add_fused_lm_head

    model = kit.random_model(size, device)
    add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    model.gradient_checkpointing_enable({"use_reentrant": False})
    model.train()
    state = {}

    def attempt(rows):
        state["batch"] = _batch(size, *_random_rollouts(size, rows), device)
        _forward_backward(model, state["batch"], device)

    rows_at_once = kit.largest(size.rows, attempt)
    cuda = torch.device(device).type == "cuda"
    side = 8192 if cuda else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16 if cuda else torch.float32) for _ in range(2))
    seconds = kit.in_turn(
        {"matmul": lambda: a @ b, "update": partial(_forward_backward, model, state["batch"], device)}, budget, device
    )
    flops = rows_at_once * model_flops(size, size.prompt + size.completion, size.completion)
    tokens = rows_at_once * (size.prompt + size.completion)
    peak = 2 * side**3 / statistics.median(seconds["matmul"])
    # the product and the update share a round, so that what slows the machine slows both
    utilization = flops / (2 * side**3) / kit.ratio(seconds["update"], seconds["matmul"])
    median = statistics.median(seconds["update"])
    rows = [
        row("forward + backward", tokens / median, "tokens/s", floor=f"{tokens / flops * peak:,.0f} at the peak"),
        row("MFU, of the measured matmul", utilization, "of 1", floor=f"{peak / 1e12:.2f} TFLOP/s measured"),
    ]
    sheet = DATA_SHEET.get(torch.cuda.get_device_name(0)) if cuda else None
    if sheet:
        rows.append(row("MFU, of the data sheet", flops / median / sheet, "of 1", floor=f"{sheet / 1e12:.1f} TFLOP/s"))
    return {
        "rows": rows,
        "rows_at_once": rows_at_once,
        "tokens_a_row": [size.prompt, size.completion],
        "flops_a_row": flops / rows_at_once,
        "formula": inspect.getdoc(model_flops),
        "seconds": kit.medians(seconds),
    }


def model_flops(size: Size, tokens: int, scored: int) -> float:
    """FLOPs of one row, forward and backward: 6 N a token and 12 L H Q T a token for attention, halved: it is causal.

    Source: PaLM (arXiv 2204.02311), appendix B. N counts the weights that are multiplied; the LM head only at the
    `scored` tokens. Recomputation is not counted: it is no progress (that would be hardware utilization).
    """
    layer = size.hidden * size.head_dim * 2 * (size.heads + size.kv_heads) + 3 * size.hidden * size.intermediate
    weights = 6 * (size.layers * layer * tokens + size.vocab * size.hidden * scored)
    return weights + 6 * size.layers * size.heads * size.head_dim * tokens**2


SECTIONS = {"ema": ema, "confidence": confidence, "train": train, "memory": memory, "steps": steps}
SHARE = {
    "ema": 0.1,
    "confidence": 0.2,
    "train": 0.15,
    "memory": 0.05,
    "steps": 0.5,
}  # of the time, over the chosen sections


def run(size: str = "", sections=(), out="", figure="", seconds: float = 420.0) -> dict:
    """Measure the chosen sections, print a line a figure, write JSON and a figure; returns what the JSON holds.

    A section that fails (out of memory, say) is reported with its error and loses nothing of the others. `seconds` is
    the budget of all rounds; building the models comes on top of it, and each section makes three rounds in any case.
    Raises ValueError for an unknown size or section.
    """
    from transformers.utils import logging

    logging.disable_progress_bar()
    chosen = list(sections) or list(SECTIONS)
    for name in chosen:
        if name not in SECTIONS:
            raise ValueError(unknown("section", name, SECTIONS))
    size = size or kit.default_size()
    if size not in SIZES:
        raise ValueError(unknown("size", size, SIZES))
    if seconds <= 0:
        raise ValueError(f"--seconds {seconds:g} must be above 0")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "command": _command(size, chosen, seconds, out, figure),
        "note": _note(size, device),
        "device": _describe(device),
        "clock": "wall clock, device synchronized" if device == "cuda" else "seconds that the process computed",
        "size": size,
        "model_and_lengths": asdict(SIZES[size]),
        "versions": runs.versions(),
        "load": [round(x, 1) for x in os.getloadavg()],  # processes that wanted a core, before the first section
        "sections": {},
    }
    print(result["note"], flush=True)
    began = time.monotonic()
    for name in chosen:
        started = time.monotonic()
        print(f"{name} ...", flush=True)
        budget = seconds * SHARE[name] / sum(SHARE[c] for c in chosen)
        try:
            found = SECTIONS[name](SIZES[size], device, budget)
        except Exception as error:  # one section must not lose the others; KeyboardInterrupt still ends the bench
            found = {"rows": [], "error": f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"}  # fmt: skip
        kit.free()
        result["sections"][name] = found | {"seconds_in_all": round(time.monotonic() - started, 1)}
        for line in found["rows"]:
            print(_line(line), flush=True)
        if "error" in found:
            print(f"  {name} failed: {found['error']}", flush=True)
    result["seconds_in_all"] = round(time.monotonic() - began, 1)
    if out:
        runs.write_json(out, result)
    if figure:
        draw(result, figure)
    return result


def draw(result: dict, path: str | Path) -> None:
    """One bar a figure that has a goal: how far it is from it, 1 being the goal and more being better."""
    import matplotlib.pyplot as plt

    rows = [line for section in result["sections"].values() for line in section["rows"] if line["goal"] is not None]
    if not rows:
        raise RuntimeError("no section with a goal was measured: nothing to draw; choose ema, confidence or steps")
    scores = [score(line) for line in rows]
    fig, ax = plt.subplots(figsize=(8, 1.2 + 0.42 * len(rows)))
    bars = ax.barh(
        [line["what"] for line in rows], scores, color=["#009E73" if line["met"] else "#D55E00" for line in rows]
    )
    ax.bar_label(bars, [f"{line['value']:.3g} {line['unit']}" for line in rows], padding=3, fontsize=8)
    ax.axvline(1, color="black", lw=1)
    ax.invert_yaxis()
    ax.set_xlim(0, 2.4)
    ax.set_xlabel("measured over goal, so that more is better (bars end at 2)")
    ax.set_title(f"{_finding(result, rows)}\n({result['device']['name']}, {result['size']} model)", fontsize=10)
    fig.savefig(path, dpi=150, bbox_inches="tight")
    plt.close(fig)


def _finding(result: dict, rows: list[dict]) -> str:
    """The goals are those of Qwen3-4B on a GPU: anything else is no verdict on them, whatever its figures."""
    if result["size"] == "full" and not result["device"]["name"].startswith("CPU"):
        return f"{sum(line['met'] for line in rows)} of {len(rows)} goals are reached"
    return "No verdict on the goals: they are for Qwen3-4B on a GPU"


def score(line: dict) -> float:
    """How a row stands to its goal, from 0 to 2: goal / value where less is better, value / goal where more is."""
    if line["better"] == "higher":
        return min(2.0, line["value"] / line["goal"])
    return 2.0 if line["value"] <= line["goal"] / 2 else line["goal"] / line["value"]


def _command(size, sections, seconds, out, figure) -> str:
    """The line that repeats this run, the thread settings that decide a CPU's speed included."""
    flags = {"size": size, "sections": ",".join(sections), "seconds": f"{seconds:g}", "out": out, "figure": figure}
    environment = [
        f"{name}={os.environ[name]}" for name in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY") if name in os.environ
    ]
    words = ["python", "-m", "corelib", "bench", "gpu"]
    return shlex.join([*environment, *words, *(w for flag, v in flags.items() if v for w in (f"--{flag}", str(v)))])


def _line(line: dict) -> str:
    text = f"  {line['what']:<52} {line['value']:>10,.3f} {line['unit']:<9}"
    if line["goal"] is not None:
        text += f" goal {'<=' if line['better'] == 'lower' else '>='} {line['goal']:g} {'met' if line['met'] else 'MISSED'};"
    if line["floor"]:
        text += f" floor {line['floor']};"
    return text + (f" {line['over_stock']:.2f} x stock TRL" if line["over_stock"] is not None else "")


def _note(size: str, device: str) -> str:
    shape = "Qwen3-4B's shape" if size == "full" else f"a reduced model ({size}), not Qwen3-4B"
    where = "GPU" if device == "cuda" else "CPU run: its figures say nothing about a GPU"
    return f"random weights, {shape}; {where}; transformers engine, no vLLM"


def _describe(device: str) -> dict:
    if device == "cuda":
        p = torch.cuda.get_device_properties(0)
        return {"name": p.name, "GiB": round(p.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    info = Path("/proc/cpuinfo")
    names = [x.split(":", 1)[1].strip() for x in info.read_text().splitlines() if x.startswith("model name")] if info.is_file() else []  # fmt: skip
    return {"name": f"CPU {names[0] if names else platform.machine()}", "threads": torch.get_num_threads()}


def _autocast(device):
    """As the trainer computes: bf16 over fp32 weights on a GPU; fp32 on a CPU."""
    cuda = torch.device(device).type == "cuda"
    return torch.autocast("cuda", torch.bfloat16) if cuda else nullcontext()


def _random_rollouts(size: Size, rows: int) -> tuple[list, list]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(2, size.vocab, (rows, size.prompt + size.completion), generator=generator)
    return ids[:, : size.prompt].tolist(), ids[:, size.prompt :].tolist()


def _batch(size: Size, prompts, completions, device) -> dict:
    ids = torch.tensor([p + c for p, c in zip(prompts, completions, strict=True)], device=device)
    labels = ids.clone()
    labels[:, : size.prompt] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def _forward_backward(model, batch, device) -> None:
    with _autocast(device):
        out = model(**batch, fused_lm_head=True)
    out.loss.backward()
    model.zero_grad(set_to_none=True)
