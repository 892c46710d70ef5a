"""Export a checkpoint of a finished run as a folder that transformers and vLLM load, with its card; upload it when asked."""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path

from corelib import card, evaluate_run, runs, saving
from corelib.config import RunConfig

MARK = "corewarding.json"  # which run and checkpoint an exported folder holds; only such a folder is ever replaced
SUFFIXES = (".safetensors", ".json", ".jinja", ".md", ".png", ".txt", ".model")  # what an export consists of: no pickle
SHARD = "5GB"
TOKEN = re.compile(r"hf_[A-Za-z0-9_]{6,}")  # shape of the Hub's user and OAuth tokens


def export(
    run_folder: str | Path,
    out: str | Path,
    checkpoint: str = "best",
    merge_lora: bool = True,
    bf16: bool = False,
    name: str = "",
    audit: str | Path = "",
    license: str = "",
) -> Path:
    """Write a checkpoint of a finished run into the folder `out`, whole or not at all; returns it.

    Safetensors in shards of 5 GB (fp32, or bf16), config, tokenizer, generation_config.json with every stop token of
    training, README.md and its figure. checkpoint: best, kept, final or checkpoint-N; merge_lora=False keeps adapters;
    name: how the card's snippets load it (default: the folder's name); audit: audit.json of notebook 01 (default: the
    run's own); license: default mit, as the released checkpoints, for Llama its own. An earlier export is replaced.
    Raises RuntimeError for a run that is not finished, a checkpoint that is not whole, a folder that is not ours or does
    not fit on the disk; ValueError for what cannot be asked.
    """
    out = Path(out).expanduser().absolute()
    source, subject = describe(run_folder, checkpoint, merge_lora, bf16, name or out.name, license)
    _refuse_foreign(out)
    card.render(subject, audit)  # what is wrong with the card is told before the weights are loaded
    out.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        new = work / "new"
        new.mkdir()
        write_weights(source, subject, new, bf16)
        card.write(subject, new, audit)
        origin = {"run": subject.folder.name, "checkpoint": subject.which, "step": subject.step, "dtype": subject.dtype}
        runs.write_json(new / MARK, origin)
        _refuse_strangers(new)
        for file in new.iterdir():  # safetensors writes for its own user only; a server is often another one
            file.chmod((new / MARK).stat().st_mode)
        if out.exists():
            out.rename(work / "old")
        try:
            new.rename(out)
        except OSError:
            if (work / "old").exists():
                (work / "old").rename(out)
            raise
    except Exception as error:
        if isinstance(error, saving.DiskFull) or not saving.disk_full(error, out.parent):
            raise
        raise RuntimeError(f"the disk of {out.parent} is full; free some space or name a folder on another disk") from error  # fmt: skip
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def describe(
    run_folder: str | Path, checkpoint: str, merge_lora: bool, bf16: bool, name: str, license: str = ""
) -> tuple[Path, card.Subject]:
    """The checkpoint's folder, verified byte by byte, and what its card is about. Loads no weights; raises as `export`."""
    from corelib.generate import stop_ids
    from corelib.models import load_tokenizer

    folder = Path(run_folder).expanduser().absolute()
    if not re.fullmatch(r"best|kept|final|checkpoint-\d+", checkpoint):
        raise ValueError(f"checkpoint {checkpoint!r} must be best, kept, final or checkpoint-N, e.g. checkpoint-100")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", name):
        raise ValueError(f"name {name!r} must be a folder's name or USER/NAME of letters, digits, '-', '_' and '.'")
    _require_finished(folder)
    path, _, config = evaluate_run.checkpoint_of(folder, checkpoint.removeprefix("checkpoint-"))
    source = Path(path)
    if defect := saving.checkpoint_defect(source):
        raise RuntimeError(f"{checkpoint} of {folder.name} is not whole: {defect}; export another checkpoint")
    adapter = (source / "adapter_config.json").is_file()
    if not any(source.glob("adapter_model*.safetensors" if adapter else "model*.safetensors")):
        raise RuntimeError(f"{checkpoint} of {folder.name} holds sharded training state, no model; export best or final")  # fmt: skip
    tokenizer = load_tokenizer(source)
    stops = stop_ids(config, tokenizer)
    if config.dataset != "lab" and not tokenizer.chat_template:
        raise RuntimeError(f"the tokenizer of {source} lost its chat template; restore it from the base model")
    status = runs.read_status(folder)
    step = {"best": status.get("best_step"), "kept": status.get("kept_step"), "final": status.get("step")}
    return source, card.Subject(
        folder, config, checkpoint, step[checkpoint] if checkpoint in step else int(checkpoint.split("-")[1]), name, stops,
        tokenizer.convert_ids_to_tokens(stops), "bfloat16" if bf16 else "float32", license or _license(config),
        merge_lora if adapter else None,
    )  # fmt: skip


def write_weights(source: Path, subject: card.Subject, to: Path, bf16: bool) -> None:
    """Model, generation config and tokenizer of the folder `source` into `to`; nothing else of a checkpoint is copied."""
    import torch
    from transformers import AutoModelForCausalLM, GenerationConfig

    from corelib.models import load_tokenizer

    base = subject.config.base_model
    how = {"dtype": torch.float32, "trust_remote_code": False, "use_safetensors": True}
    if subject.merged is None:
        model = AutoModelForCausalLM.from_pretrained(source, **how)
    else:
        from peft import PeftModel

        model = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base, **how), str(source))
        if subject.merged:
            model = model.merge_and_unload(safe_merge=True)  # merged in fp32; a merge that is not finite is refused
    if bf16:
        model = model.to(torch.bfloat16)
    if subject.merged is False:  # the base model's generation config is not saved with adapters
        kept = [p for n, p in model.named_parameters() if "lora_" in n]
        model.base_model.model.generation_config.save_pretrained(to)
    else:
        kept = model.parameters()
    needed, free = sum(p.numel() * p.element_size() for p in kept), saving.free(to)
    if needed > free:
        raise RuntimeError(f"{to.parents[1]} has {free / 1e9:.1f} GB free, and the weights take {needed / 1e9:.1f} GB; free some space or name a folder on another disk")  # fmt: skip
    model.save_pretrained(to, max_shard_size=SHARD)
    tokenizer = load_tokenizer(source)
    tokenizer.save_pretrained(to)
    settings = GenerationConfig.from_pretrained(to).to_dict() | {
        "eos_token_id": list(subject.stop_ids),
        "pad_token_id": tokenizer.pad_token_id,
        "_from_model_config": False,  # else transformers takes the stop tokens of config.json again
    }
    GenerationConfig.from_dict(settings).save_pretrained(to)
    (to / "README.md").unlink(missing_ok=True)  # peft's own


def push(folder: str | Path, repo_id: str, private: bool = True) -> str:
    """Upload an exported folder to the Hub, with the login of `hf auth login` or HF_TOKEN; returns its address.

    A new repository is private unless asked otherwise, and an existing public one is refused then. Raises ValueError for
    a folder that is not an export or a malformed name, RuntimeError when there is no login or the Hub refuses. No token
    reaches a message: the Hub's are shortened, and the original exception, whose requests hold it, is let go.
    """
    from huggingface_hub import HfApi

    folder = Path(folder)
    require_login(repo_id)
    if not (folder / MARK).is_file() or not (folder / "README.md").is_file():
        raise ValueError(f"{folder} is not an exported checkpoint; make one with `python -m corelib publish RUN --out FOLDER`")  # fmt: skip
    _refuse_strangers(folder)
    adapter = runs.read_json(folder / "adapter_config.json")
    if adapter and Path(adapter["base_model_name_or_path"]).expanduser().is_dir():
        raise ValueError(f"the adapters in {folder} belong to a base model in a local folder, which nobody else has; export them merged")  # fmt: skip
    problem = public = None
    try:
        api = HfApi()
        address = api.create_repo(repo_id, private=private, exist_ok=True)
        public = private and not api.repo_info(repo_id).private
        if not public:
            api.upload_folder(repo_id=repo_id, folder_path=str(folder), commit_message=f"Upload {folder.name}")
    except Exception as error:  # huggingface_hub, httpx and offline mode raise unrelated types
        problem = f"{type(error).__name__}: {hide_token(' '.join(str(error).split()))[:300]}"
    if problem:
        raise RuntimeError(f"upload to {repo_id} failed ({problem}); {folder} is whole, upload it again with the same command")  # fmt: skip
    if public:
        raise RuntimeError(f"{repo_id} exists and is public; make it private on the Hub, or name another repository")
    return str(address)


def require_login(repo_id: str) -> None:
    """Raise ValueError unless repo_id is USER/NAME, RuntimeError when nobody is logged in to the Hub."""
    from huggingface_hub import get_token
    from huggingface_hub.utils import HFValidationError, validate_repo_id

    try:
        validate_repo_id(repo_id)
        valid = repo_id.count("/") == 1
    except HFValidationError:
        valid = False
    if not valid:
        raise ValueError(f"repository {hide_token(repo_id)!r} must be USER/NAME, e.g. me/co-rewarding-ii-4b")
    if get_token() is None:
        raise RuntimeError("nobody is logged in to the Hub: run `hf auth login`, or set HF_TOKEN")


def hide_token(text: str) -> str:
    """The text without the token of this login and without anything that has the shape of one."""
    from huggingface_hub import get_token

    token = get_token()
    return TOKEN.sub("[token]", text.replace(token, "[token]") if token else text)


def plan(source: Path, subject: card.Subject, out: Path, push_to: str = "") -> list[str]:
    """What an export would do, in lines for a reader."""
    files = source.glob("*.safetensors")
    weights = sum(f.stat().st_size for f in files if f.name != "teacher.safetensors")
    merged = {None: "", True: ", LoRA merged into the base model", False: ", as LoRA adapters"}[subject.merged]
    lines = [
        f"checkpoint: {source} (step {subject.step}, {weights / 1e6:,.1f} MB of weights as trained{merged})",
        f"folder: {out}{' (replaces an earlier export)' if out.exists() else ''}, {subject.dtype}, shards of {SHARD}",
        f"stop tokens: {', '.join(subject.stop_tokens)}",
    ]
    return [*lines, f"upload: {push_to}, private" if push_to else "upload: none"]


def _require_finished(folder: Path) -> None:
    """Raise RuntimeError for a run that is neither finished nor ended by its alarm, with what it is and what to do."""
    manifest, status = runs.read_json(folder / "manifest.json"), runs.read_status(folder)
    if manifest is None and not status:
        raise RuntimeError(f"{folder} is not a run folder (no manifest.json); train it first")
    state = status.get("state", "not started")
    by_alarm = state == "stopped" and str(status.get("error", "")).startswith("alarm at step")  # on_collapse: stop
    if state != "done" and not by_alarm:
        at = f" at step {status['step']} of {status['steps']}" if status.get("steps") else ""
        why = f" ({hide_token(str(status['error']))[:200]})" if status.get("error") else ""
        raise RuntimeError(f"run {folder.name} is {state}{at}{why}, not done; finish it first: the command that trained it resumes it")  # fmt: skip


def _license(config: RunConfig) -> str:
    """mit, as the released checkpoints; derivatives of Llama 3.2 must keep its own (its license, section 1.b)."""
    return "llama3.2" if "llama-3.2" in config.model.lower() else "mit"


def _refuse_foreign(out: Path) -> None:
    empty = out.is_dir() and not any(out.iterdir())
    if out.exists() and not empty and not (out / MARK).is_file():
        raise RuntimeError(f"{out} exists and is not an earlier export; name another folder, or delete it")
    if not os.access(next(p for p in out.parents if p.exists()), os.W_OK):
        raise RuntimeError(f"{out} cannot be written; make its parent writable, or name another folder")


def _refuse_strangers(folder: Path) -> None:
    """ValueError for a file that an export does not write: it might be a pickle or nobody's business."""
    strange = [f for f in sorted(folder.rglob("*")) if f.is_symlink() or (f.is_file() and f.suffix not in SUFFIXES)]
    if strange:
        raise ValueError(f"{strange[0].relative_to(folder)} in {folder} does not belong to an export; remove it, or export again")  # fmt: skip
