"""A model named on the command line: which weights exactly that is, and how to load them. No remote code, ever."""

from __future__ import annotations

import hashlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from corelib import saving
from corelib.config import LAB_BASES

WHOLE = 64 * 2**20  # weight files up to this many bytes are hashed whole
BLOCK, BLOCKS = 64 * 1024, 64  # of a larger one, so many blocks spread evenly
TEXTS = ("config.json", "adapter_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")  # fmt: skip
WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True)
class Checkpoint:
    """Weights of one model: `name` as asked for, `path` a folder or Hub id, `revision` its commit, `digest` 12 hex digits."""

    name: str
    path: str
    revision: str | None
    digest: str

    @property
    def label(self) -> str:
        """For folder names: the last part of the path and the digest, e.g. `GT-Qwen3-4B-Base-OpenRS-0123456789ab`."""
        return f"{re.sub(r'[^A-Za-z0-9._-]', '_', Path(self.path).name)}-{self.digest}"


def identify(model: str | Path) -> Checkpoint:
    """Which weights `model` names: a folder, a Hub id, `id@revision`, or `lab` for the lab's base model.

    A folder's digest is over its configuration, tokenizer and weights: small files whole, of large ones the size, the
    head (for safetensors: names and shapes) and 64 blocks of 64 KiB, for a checkpoint of another step differs all over.
    A Hub id's is over the commit. Copying a folder does not change it. Raises ValueError for what is neither.
    """
    name = str(model)
    path = LAB_BASES.get(name) or Path(name).expanduser()
    if path.is_dir():
        return Checkpoint(name, str(path.resolve()), None, _folder_digest(path))
    require_hub_id(name)
    path, _, asked = name.partition("@")
    from huggingface_hub import snapshot_download

    try:  # the commit behind the name; a tiny download, or a look into the local cache
        patterns = ["config.json", "adapter_config.json"]
        found = snapshot_download(path, revision=asked or None, allow_patterns=patterns)
    except Exception as error:  # httpx, offline mode and huggingface_hub raise unrelated types
        raise ValueError(
            f"{path}: not in the local cache and the Hub does not answer ({type(error).__name__}); "
            "name a folder, or fetch it once with `hf download`"
        ) from error
    commit = Path(found).name
    return Checkpoint(name, path, commit, hashlib.sha256(f"{path}@{commit}".encode()).hexdigest()[:12])


def require_hub_id(name: str) -> None:
    """Raise ValueError for a model that is no folder and is not spelt as a Hub id; the Hub is not asked."""
    if not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", name) or name.startswith("."):
        raise ValueError(f"model {name!r} is neither a folder here nor a Hub id (OWNER/NAME); check the path")


def _folder_digest(folder: Path) -> str:
    weights = sorted(f for pattern in WEIGHTS for f in folder.glob(pattern) if f.name != "training_args.bin")
    if not weights:
        raise ValueError(f"{folder} holds no weights ({' or '.join(WEIGHTS)}); name a checkpoint folder")
    digest = hashlib.sha256()
    for file in [folder / name for name in TEXTS if (folder / name).is_file()]:
        digest.update(f"{file.name}\0".encode() + file.read_bytes())
    for file in weights:
        size = file.stat().st_size
        digest.update(f"{file.name}\0{size}\0".encode())
        with open(file, "rb") as source:
            if size <= WHOLE:
                digest.update(source.read())
                continue
            digest.update(source.read(2**20))
            for block in range(BLOCKS):
                source.seek(block * (size - BLOCK) // (BLOCKS - 1))
                digest.update(source.read(BLOCK))
    if (adapter := _adapter(folder)) and Path(adapter).is_dir():  # its answers depend on the base model as well
        digest.update(_folder_digest(Path(adapter)).encode())
    return digest.hexdigest()[:12]


def _adapter(folder: Path) -> str | None:
    """The base model that the LoRA adapter in a folder belongs to; None where the folder holds a whole model."""
    config = folder / "adapter_config.json"
    return json.loads(config.read_text())["base_model_name_or_path"] if config.is_file() else None


def _base(folder: Path) -> str | None:
    """As `_adapter`; ValueError where the base model is neither a folder nor to be had from the cache or the Hub."""
    base = _adapter(folder)
    if base and not Path(base).is_dir():
        try:
            identify(base)
        except ValueError as error:
            raise ValueError(
                f"{folder} holds LoRA adapters of {base}, which is missing ({error}); put the base model there, or name "
                "another in base_model_name_or_path of adapter_config.json"
            ) from error
    return base


def _local(checkpoint: Checkpoint) -> Path:
    """A folder with the checkpoint's files; fetches a Hub id's."""
    if checkpoint.revision is None:
        return Path(checkpoint.path)
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(checkpoint.path, revision=checkpoint.revision, ignore_patterns=["*.pth", "original/*"])
    )


def load_tokenizer(model: str | Path | Checkpoint):
    """The checkpoint's tokenizer (an adapter's without one: its base model's), with a pad token."""
    from transformers import AutoTokenizer

    checkpoint = model if isinstance(model, Checkpoint) else identify(model)
    path, revision = checkpoint.path, checkpoint.revision
    if revision is None and not (Path(path) / "tokenizer_config.json").is_file():
        path = _base(Path(path)) or path
    tokenizer = AutoTokenizer.from_pretrained(path, revision=revision or "main", trust_remote_code=False)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def end_ids(checkpoint: Checkpoint) -> list[int]:
    """Tokens that end an answer by the checkpoint's generation_config.json (an adapter's without one: its base model's).

    Empty where there is no such file. Only its `eos_token_id` is read.
    """
    from transformers import GenerationConfig

    folder = _local(checkpoint)
    for place in (str(folder), _base(folder)):
        try:
            ends = GenerationConfig.from_pretrained(place).eos_token_id if place else None
        except OSError:  # no such file; its base model's, or none
            continue
        if ends is not None:
            return [ends] if isinstance(ends, int) else list(ends)
    return []


def context_length(checkpoint: Checkpoint) -> int:
    """Tokens that the model reads, prompt and completion together."""
    from transformers import AutoConfig

    base = _base(Path(checkpoint.path)) if checkpoint.revision is None else None
    config = AutoConfig.from_pretrained(
        base or checkpoint.path, revision=checkpoint.revision or "main", trust_remote_code=False
    )
    return config.get_text_config().max_position_embeddings


def load_model(model: str | Path | Checkpoint):
    """Model (fp32 on CPU, bf16 on GPU) and tokenizer of a checkpoint; LoRA adapters are merged into their base model."""
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = model if isinstance(model, Checkpoint) else identify(model)
    gpu = torch.cuda.is_available()
    folder = _local(checkpoint)
    base = _base(folder)
    for weights in (folder, base or folder):
        saving.require_safetensors(weights)
    try:
        loaded = AutoModelForCausalLM.from_pretrained(
            base or str(folder),
            dtype=torch.bfloat16 if gpu else torch.float32,
            trust_remote_code=False,
            use_safetensors=True,
        )
    except OSError as error:
        if not base:
            raise
        raise ValueError(f"{folder} holds LoRA adapters of {base}, whose weights cannot be had ({error})") from error
    if base:
        from peft import PeftModel

        loaded = PeftModel.from_pretrained(loaded, str(folder)).merge_and_unload()
    return loaded.to("cuda" if gpu else "cpu"), load_tokenizer(checkpoint)


def load_vllm(checkpoint: Checkpoint, **settings):
    """Offline `vllm.LLM` (bf16 on GPU, fp32 on CPU) and tokenizer of a checkpoint; a merged copy of LoRA adapters.

    `settings` go to `vllm.LLM`. Raises RuntimeError where vLLM is not installed.
    """
    try:
        from vllm import LLM
    except ImportError as error:
        raise RuntimeError(
            f"vLLM cannot be imported here ({error}); install the GPU set with `conda env create -f environment.yml`, "
            "or use --engine transformers"
        ) from error
    import torch

    tokenizer, folder = load_tokenizer(checkpoint), _local(checkpoint)
    saving.require_safetensors(folder)
    gpu = torch.cuda.is_available()
    settings = {
        "dtype": "bfloat16" if gpu else "float32",
        "enforce_eager": not gpu,
        "trust_remote_code": False,
    } | settings
    if not _adapter(folder):
        return LLM(model=str(folder), tokenizer=str(folder), **settings), tokenizer
    with tempfile.TemporaryDirectory() as merged:  # read once, when the engine starts
        model, _ = load_model(checkpoint)
        model.cpu().save_pretrained(merged)
        tokenizer.save_pretrained(merged)
        del model
        if gpu:
            torch.cuda.empty_cache()  # else vLLM finds the merged model's memory taken
        return LLM(model=merged, tokenizer=merged, **settings), tokenizer
