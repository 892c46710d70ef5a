"""The model card of an exported checkpoint: what it is, how it was trained, how good it is and how sure that is.

Everything on it is read from the run folder; what is not stored there is said to be missing. Paths, server addresses
and environment variables of the machine never get on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from corelib import card_scores, plots, runs
from corelib.config import BOOKKEEPING, PAIRED, TEACHER, RunConfig
from corelib.data import SOURCES, SYSTEM_PROMPT

CURVE = "curve.png"
TITLES = {"lab": "the lab's arithmetic", "open-rs": "OpenRS", "math": "MATH", "dapo": "DAPO-14k", "amc": "AMC (test-time training)"}  # fmt: skip
PRIVATE = ("source", "vllm_server", "report_to")  # where the training machine keeps and sends things

# Two sentences a method, after the docstrings of corelib.rewards.
CHOSEN = {"best": " (by labelled validation)", "kept": " (by the alarm, without labels)"}
METHOD_TEXT = {
    "gt": "A rollout is rewarded with 1 when its answer equals the ground truth, else with 0. This is the supervised baseline (paper, GT-Reward).",
    "majority_voting": "A rollout is rewarded with 1 when its answer equals the majority vote of the same rollouts, else with 0 (paper Eq. 3, TTRL). The reward uses no ground truth: the policy is its own judge.",
    "co_rewarding_i": "A rollout is rewarded with 1 when its answer equals the majority vote over the rollouts of the other view of the question, a rephrasing, else with 0 (paper Eq. 6-7). Both views are trained on, and the reward uses no ground truth.",
    "co_rewarding_ii": "A rollout is rewarded with 1 when its answer equals the majority vote over a teacher's rollouts of the same prompt, else with 0 (paper Eq. 8-10). The teacher is a slowly moving average of the policy, and the reward uses no ground truth.",
    "co_rewarding_iii": "A rollout is rewarded with 1 when its answer equals the majority vote over a teacher's rollouts of the other view of the question, a rephrasing, else with 0 (released code of III). The teacher is a slowly moving average of the policy, and the reward uses no ground truth.",
    "entropy": "A rollout is rewarded with minus its mean token entropy (RENT). The policy is paid for being sure, and no answer is looked at.",
    "self_certainty": "A rollout is rewarded with KL(uniform || policy), the mean over its tokens (Intuitor). The policy is paid for being sure, and no answer is looked at.",
    "random": "A rollout is rewarded by a fair coin (Spurious Rewards). This is the control that shows what RL noise alone does.",
    "frozen_teacher": 'A rollout is rewarded with 1 when its answer equals the majority vote over the base model\'s rollouts of the same prompt, else with 0. This is Co-rewarding-II whose teacher never moves (paper table 3, "w/o Updating Reference").',
}
CITATION = """@misc{corewarding,
  title = {Co-rewarding: Stable Self-supervised RL for Eliciting Reasoning in Large Language Models},
  eprint = {2508.00410},
  archivePrefix = {arXiv},
  note = {ICLR 2026}
}"""


@dataclass(frozen=True)
class Subject:
    """What the card is about.

    `name`: how a reader loads it, a Hub id or a folder; `which`: best, final or checkpoint-N, taken after `step`;
    `stop_ids`: tokens that end an answer; `merged`: whether LoRA adapters were merged, None where there are none.
    """

    folder: Path
    config: RunConfig
    which: str
    step: int | None
    name: str
    stop_ids: Sequence[int]
    stop_tokens: Sequence[str]
    dtype: str
    license: str
    merged: bool | None = None


def write(subject: Subject, to: Path, audit: str | Path = "") -> None:
    """README.md and the figure, into the folder `to`. Raises ValueError for an audit of other data."""
    metrics = runs.load_metrics(subject.folder)
    text = render(subject, audit, has_curve="reward" in metrics)
    if "reward" in metrics:
        card_scores.draw_curve(subject.config.method, metrics, subject.step, to / CURVE)
    (to / "README.md").write_text(text, encoding="utf-8")


def render(subject: Subject, audit: str | Path = "", has_curve: bool = True) -> str:
    """The card as text: YAML header and Markdown."""
    from huggingface_hub import ModelCard

    config = subject.config
    found, notes = card_scores.results(subject.folder, config, subject.which)
    result = runs.read_json(subject.folder / "result.json")
    parts = [
        f"# {plots.name(config.method)}: {public_model(config)} trained on {TITLES[config.dataset]}",
        collapse_warning(subject, result),
        about(subject),
        f"## Results\n\n{card_scores.table(config, subject.which, found, notes)}",
        f"## Reward and accuracy while training\n\n![Reward, accuracy of the rollouts and validation accuracy over training steps]({CURVE})\n\nThe dotted line marks this checkpoint." if has_curve else "",
        f"## How to use\n\n{usage(subject)}",
        f"## Training\n\n{training(subject)}",
        f"## Data\n\n{data_text(subject, audit)}",
        f"## Limits\n\n{limits(subject, result)}",
        f"## Citation\n\n```bibtex\n{CITATION}\n```",
    ]  # fmt: skip
    body = "\n\n".join(part for part in parts if part)
    return str(ModelCard(f"---\n{header(subject, found).to_yaml()}\n---\n\n{body}\n", ignore_metadata_errors=False))


def header(subject: Subject, found: Sequence[card_scores.Result]):
    """The card's YAML (`ModelCardData`); what the Hub does not know (the lab's model and data) is left out."""
    from huggingface_hub import EvalResult, ModelCardData

    config, base = subject.config, hub_model(subject.config)
    learned = "self-supervised-learning" if config.method not in ("gt", "random") else None
    data = SOURCES[config.dataset].hub_id if config.dataset in SOURCES else None
    scored = [
        EvalResult(
            task_type="text-generation", task_name="Text Generation", dataset_type=card_scores.hub_data(r.name), dataset_name=r.title,
            metric_type="accuracy", metric_name=f"{r.metric} (%)", metric_value=round(100 * r.scores[subject.which].mean, 2),
        )
        for r in found
        if subject.which in r.scores
    ]  # fmt: skip
    return ModelCardData(
        language="en", license=subject.license, pipeline_tag="text-generation",
        library_name="peft" if subject.merged is False else "transformers",
        base_model=base, base_model_relation=base and ("adapter" if subject.merged is False else "finetune"),
        datasets=[data] if data else None,
        tags=[t for t in ("co-rewarding", config.method.replace("_", "-"), "reasoning", "math", "reinforcement-learning", learned, "grpo", "trl") if t],
        model_name=Path(subject.name).name if scored else None, eval_results=scored or None,
    )  # fmt: skip


def public_model(config: RunConfig) -> str:
    """The base model as a stranger may read it: a Hub id, or the last part of a local path."""
    local = {
        "lab": "the lab's base model",
        "lab2": "the lab's second base model",
        "smollm2": "SmolLM2-135M-Instruct (4-bit GGUF, unpacked)",
    }
    return local.get(config.model) or hub_model(config) or Path(config.model).name


def hub_model(config: RunConfig) -> str | None:
    """The base model's Hub id, None for a local folder."""
    import re

    folder = Path(config.base_model).expanduser()
    known = re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", config.model) and not folder.is_dir()
    return config.model if known else None


def collapse_warning(subject: Subject, result: dict | None) -> str:
    """What a reader must know before anything else: that the run collapsed, and on which side of it these weights lie."""
    if not result or not result["collapsed"]:
        return ""
    side = {
        "final": "These are the weights **after** the collapse, of use for studying it only.",
        "best": f"These are the weights of its best validation, at step {subject.step}, "
        + ("before the first update: those of the base model." if subject.step == 0 else "before the collapse."),
    }.get(subject.which, f"These are the weights at step {subject.step}.")
    return (
        f"> **This run collapsed.** On {_test_name(subject.config)} it scores {100 * result['final_accuracy']:.1f} % at its end, less than "
        f"half of the {100 * result['best_accuracy']:.1f} % at its best validation. {side}"
    )


def _test_name(config: RunConfig) -> str:
    trained = config.eval_dataset == config.dataset != "lab"
    return "its own training questions" if trained else "held-out problems"


def about(subject: Subject) -> str:
    """What this is, the method in two sentences, the paper."""
    config = subject.config
    lora = {None: "", True: " LoRA adapters are merged into them.", False: " They are LoRA adapters; the base model is needed beside them."}[subject.merged]  # fmt: skip
    return (
        f"Checkpoint `{subject.which}`{CHOSEN.get(subject.which, '')}{'' if subject.step is None else f', after step {subject.step}'}, of GRPO training on stock "
        f"[TRL](https://github.com/huggingface/trl) with the reward `{config.method}` of "
        f"[Co-rewarding: Stable Self-supervised RL for Eliciting Reasoning in Large Language Models](https://arxiv.org/abs/2508.00410). "
        f"Weights in {subject.dtype}.{lora} This is an independent reproduction, not a release by the paper's authors.\n\n"
        f"**Method.** {METHOD_TEXT[config.method]}"
    )


def usage(subject: Subject) -> str:
    """Snippets for transformers and vLLM that prompt as in training and stop where training stopped."""
    config = subject.config
    adapter, plain = subject.merged is False, config.dataset == "lab"
    sampling = f"do_sample=True, temperature={config.eval_temperature}, top_k=0" if config.eval_temperature else "do_sample=False"  # fmt: skip
    if plain:
        from corelib import lab

        ask = f"question = {lab.load_problems('test', 1)[0]['question']!r}"
        encode = 'inputs = tokenizer(question, add_special_tokens=False, return_tensors="pt").to(model.device)'
    else:
        ask = f'messages = [\n    {{"role": "system", "content": r"{SYSTEM_PROMPT}"}},\n    {{"role": "user", "content": "What is 7 times 8?"}},\n]'
        encode = 'inputs = tokenizer.apply_chat_template(\n    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n).to(model.device)'
    names = " and ".join(f"`{t}`" for t in subject.stop_tokens)
    extra = "import GenerationConfig, " if adapter else "import "
    stops = ", generation_config=GenerationConfig.from_pretrained(name)" if adapter else ""
    engine = f'LLM("{hub_model(config) or public_model(config)}", enable_lora=True, max_lora_rank={config.lora_rank})' if adapter else f'LLM("{subject.name}")'  # fmt: skip
    lora = f', lora_request=LoRARequest("adapter", 1, "{subject.name}")' if adapter else ""
    call = f"generate(question, params{lora})" if plain else f"chat(messages, params{lora})"
    return f"""An answer ends at {names}; `generation_config.json` names {"both" if len(subject.stop_ids) == 2 else "all of them" if len(subject.stop_ids) > 2 else "it"}.

```python
from transformers {extra}AutoModelForCausalLM, AutoTokenizer

name = "{subject.name}"
tokenizer = AutoTokenizer.from_pretrained(name)
model = AutoModelForCausalLM.from_pretrained(name, dtype="auto", device_map="auto")
{ask}
{encode}
output = model.generate(**inputs, max_new_tokens={config.max_completion_tokens}, {sampling}{stops})
print(tokenizer.decode(output[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))
```

With vLLM:

```python
from vllm import LLM, SamplingParams
{"from vllm.lora.request import LoRARequest" + chr(10) if adapter else ""}
llm = {engine}
params = SamplingParams(temperature={config.eval_temperature}, max_tokens={config.max_completion_tokens}, stop_token_ids={list(subject.stop_ids)})
{ask}
print(llm.{call}[0].outputs[0].text)
```"""


def training(subject: Subject) -> str:
    """Settings that differ from the full-scale defaults, software, and the whole configuration folded away."""
    import yaml

    config = subject.config
    manifest, status = runs.read_json(subject.folder / "manifest.json"), runs.read_status(subject.folder)
    told = {
        "profile",
        "method",
        "model",
        "dataset",
        "seed",
        "beta",
        "test_problems",
        "test_samples",
        *BOOKKEEPING,
        *PRIVATE,
    }
    told |= set() if config.paired else {"batch_unit"}
    told |= set() if config.method in TEACHER else {"teacher_start", "teacher_end", "teacher_schedule"}
    differ = [f for f in fields(config) if f.name not in told and getattr(config, f.name) != f.default]  # fmt: skip
    rows = [(f.name, getattr(config, f.name), f.default, f.metadata["help"]) for f in differ]
    beta = 0.005 if config.method == "co_rewarding_i" else 0.001
    rows += [("beta", config.beta, beta, "KL coefficient")] if config.beta != beta else []
    versions = manifest.get("versions", {})
    software = ", ".join(f"{p} {versions[p]}" for p in ("trl", "transformers", "torch", "peft", "vllm") if p in versions)  # fmt: skip
    twice = " (a question is two prompts, its two views)" if config.paired and config.batch_unit == "pairs" else ""
    spent = f" {status['tokens']:,} tokens of the policy, prompts included, in {status['seconds'] / 3600:.1f} hours." if status.get("tokens") else ""  # fmt: skip
    table = "\n".join(["| setting | here | full scale | |", "|---|---|---|---|", *(f"| `{n}` | {_cell(v)} | {_cell(d)} | {h} |" for n, v, d, h in rows)])  # fmt: skip
    public = {k: v for k, v in config.to_dict().items() if k not in PRIVATE} | {"model": hub_model(config) or Path(config.model).name}  # fmt: skip
    commit = f" Code at commit `{manifest['git_commit']}`." if manifest.get("git_commit") else ""
    return (
        f"{manifest.get('steps') or config.steps} optimizer steps of {config.prompts_per_step} {'prompts' if config.batch_unit == 'rollouts' else 'questions'}"
        f"{twice} x {config.rollouts} rollouts, learning rate {config.learning_rate:g}, KL coefficient {config.beta:g}, seed {config.seed}; "
        f"{f'LoRA of rank {config.lora_rank}' if config.lora_rank else 'all weights trained'}.{spent}\n\n"
        + (
            f"Settings that differ from the project's full-scale defaults (the paper's setup):\n\n{table}\n\n"
            if rows
            else "All other settings are the project's full-scale defaults (the paper's setup).\n\n"
        )
        + f"Software: {software}.{commit}\n\n<details><summary>Full configuration</summary>\n\n```yaml\n{yaml.safe_dump(public, sort_keys=False)}```\n\n</details>"
    )


def _cell(value) -> str:
    if isinstance(value, str):
        return " ".join(f"`{part}`" for part in value.replace("|", "\\|").split()) or "none"
    return f"{value:g}" if isinstance(value, float) else str(value)


def data_text(subject: Subject, audit: str | Path = "") -> str:
    """What the training questions are, and the counts of notebook 01's audit where they are stored."""
    from corelib.audit import ROW_COLUMNS, Audit

    config, manifest = subject.config, runs.read_json(subject.folder / "manifest.json")
    hub = SOURCES[config.dataset].hub_id if config.dataset in SOURCES else None
    kind = f"[{hub}](https://huggingface.co/datasets/{hub})" if hub else TITLES[config.dataset]
    prompts = f", {manifest['prompts']:,} prompts" if manifest.get("prompts") else ""
    text = f"Training questions: {kind}{prompts} (hash of the rows: `{manifest.get('data_hash', 'not stored')}`)."
    path = Path(audit) if audit else subject.folder / "audit.json"
    stored = runs.read_json(path)
    if stored is None:
        if audit:
            raise ValueError(f"audit {audit} is missing or not JSON; notebook 01 writes audit.json")
        return f"{text} The audit of these data (notebook 01) is not stored with this run."
    if stored["dataset"] != config.dataset:
        raise ValueError(
            f"{path} is the audit of {stored['dataset']}, and the run was trained on {config.dataset}; name the right one"
        )
    import pandas as pd

    rows = pd.DataFrame(stored["rows"], columns=ROW_COLUMNS)
    table = Audit(stored["dataset"], stored["counts"], rows, stored["not_checked"], stored["notes"]).to_frame()
    changed, counted = [], []
    for key, r in table.iterrows():
        if isinstance(r.found, int) and r.found:
            total = key.startswith(("rows", "pairs")) or key in ("dropped", "repaired", "kept")
            meaning = r.meaning.replace("<", "&lt;").replace("|", "\\|")
            row = f"| `{key}` | {r.found:,} | {r.action or '-'} | {meaning} |"
            (changed if total or r.action in ("dropped", "repaired") else counted).append(row)
    head = "| count | found | done | |\n|---|---:|---|---|\n"
    overlaps = [key for key in stored["not_checked"] if key.startswith("overlap_")]
    unchecked = " Overlap with the benchmarks was not checked by this audit." if overlaps else ""
    text += f" Counts of the audit; those that are 0 are left out.{unchecked}\n\n{head}" + "\n".join(changed)
    if counted:
        text += (
            "\n\n<details><summary>Counted, and left as they are</summary>\n\n"
            + head
            + "\n".join(counted)
            + "\n\n</details>"
        )
    return text


def limits(subject: Subject, result: dict | None) -> str:
    """What the model cannot be trusted with."""
    config = subject.config
    lines = []
    if config.method == "gt":
        lines.append("Trained on ground-truth labels, which may be wrong in places.")
    elif config.method == "random":
        lines.append("Rewarded at random: a control, not a model to use.")
    else:
        judge = (
            "the policy's own confidence"
            if config.method in ("entropy", "self_certainty")
            else "votes of a teacher model"
            if config.method in TEACHER
            else "the policy's own votes"
        )
        lines.append(
            f"Self-supervised: the rewards come from {judge}, so systematic errors are rewarded like right answers. Ground truth chose the `best` checkpoint and measured accuracy."
        )
    if config.dataset == "lab":
        lines.append(
            "A toy: it knows nothing but the lab's additions and subtractions in a vocabulary of a few dozen words."
        )
    else:
        lines.append(
            "Trained on English mathematics questions only; other tasks and languages, and safety, were not trained."
        )
    if config.method in PAIRED:
        lines.append("The second views were rephrased by a language model; some do not ask what the original asks.")
    if config.dataset == "amc":
        lines.append("Trained on the questions (not the answers) of the AMC test itself: its AMC score is not held out.")  # fmt: skip
    lines.append(
        f"Whether this run collapsed is not known: it was not evaluated on {_test_name(config)} at its end."
        if result is None
        else "This run collapsed, see the top of this card."
        if result["collapsed"]
        else f"This run did not collapse: at its end it scores at least half of its best on {_test_name(config)}. Longer training was not tried."
    )
    if config.lora_rank:
        lines.append(f"Only LoRA adapters of rank {config.lora_rank} were trained; the paper trains all weights.")
    lines.append("One seed: another one may end elsewhere.")
    lines.append(f"License of these weights: {subject.license}. The terms of the base model and of the training data apply as well.")  # fmt: skip
    return "\n".join(f"- {line}" for line in lines)
