"""The lab: a world small enough for a laptop in which rewards, votes and collapse are real.

A problem is a chain of additions and subtractions. Its original view is symbolic (`Q 9 - 3 + 8 = ?`), its rephrased
view tells the same signed terms as a story in another order (`Q ann had 9 got 8 gave 3 now ?`), so that the two views
are solved through different intermediate sums. The base model is trained on a mixture of solution styles, a careful
one that is nearly always right and three that are not, so that, like a real base model, it has ability that RL can
elicit: reinforcement learning picks a style, it does not teach arithmetic.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import json
import random
import time
from dataclasses import dataclass
from pathlib import Path

from corelib.config import LAB_BASES

BASE_MODEL = LAB_BASES["lab"]
MAX_SUM = 24  # partial sums stay in 0..MAX_SUM: one token a number
MAX_COMPLETION_TOKENS = 24  # the longest careful solution has 21 tokens
MAX_PROMPT_TOKENS = 16
WORDS = ["Q", "=", "?", "+", "-", "ann", "had", "got", "gave", "now", "\\boxed{", "}"]

# Share of each solution style in the base model's training text by number of operations (an earlier lab study chose them among three worlds).
STYLES = ("careful", "guess", "habit", "ramble")
STYLE_SHARE = {
    1: (0.50, 0.25, 0.05, 0.20),
    2: (0.50, 0.25, 0.05, 0.20),
    3: (0.40, 0.30, 0.10, 0.20),
    4: (0.35, 0.25, 0.20, 0.20),
}
GUESS_SD = 6.0  # a guess is Gaussian around the truth
HABIT = {"original": 6, "rephrased": 9}  # the constant that the habit style boxes, per view
SLIP = 0.05  # probability that one step of a careful solution is off by one or two


@dataclass(frozen=True)
class Problem:
    """One problem: signed terms in the order of the original view and in the order of the rephrased view."""

    terms: tuple[int, ...]
    story: tuple[int, ...]

    @property
    def answer(self) -> int:
        return sum(self.terms)

    @property
    def level(self) -> int:
        """Number of operations, 1 to 4."""
        return len(self.terms) - 1

    @property
    def split(self) -> str:
        """`test`, `validation` or `train`, fixed by the multiset of terms: no reordering crosses a split."""
        digest = hashlib.sha256(repr(sorted(self.terms)).encode()).digest()[0]
        return "test" if digest < 38 else "validation" if digest < 64 else "train"  # 15 % / 10 % / 75 %

    def text(self, view: str) -> str:
        """The question as the policy sees it.

        >>> Problem((9, -3, 8), (9, 8, -3)).text("original")
        'Q 9 - 3 + 8 = ?'
        >>> Problem((9, -3, 8), (9, 8, -3)).text("rephrased")
        'Q ann had 9 got 8 gave 3 now ?'
        """
        if view == "original":
            return f"Q {_chain(self.terms)} = ?"
        moves = " ".join(f"{'got' if term > 0 else 'gave'} {abs(term)}" for term in self.story[1:])
        return f"Q ann had {self.story[0]} {moves} now ?"


def _chain(terms) -> str:
    return " ".join([str(terms[0])] + [f"{'+' if t > 0 else '-'} {abs(t)}" for t in terms[1:]])


def _valid(terms) -> bool:
    total = 0
    for term in terms:
        total += term
        if not 0 <= total <= MAX_SUM:
            return False
    return True


def draw(rng: random.Random, near_copy: bool = False) -> Problem:
    """Draw one problem: 1 to 4 operations on distinct numbers 1..9. `near_copy` keeps the story in the same order."""
    while True:
        numbers = rng.sample(range(1, 10), rng.randint(1, 4) + 1)
        terms = tuple([numbers[0]] + [n * rng.choice((1, -1)) for n in numbers[1:]])
        if not _valid(terms):
            continue
        if near_copy:
            return Problem(terms, terms)
        for _ in range(20):
            story = tuple(rng.sample(terms, len(terms)))
            if story[0] > 0 and _valid(story) and (story != terms or all(t < 0 for t in terms[1:]) and len(terms) == 2):
                return Problem(terms, story)


def problems(n: int, split: str, seed: int, near_copy: bool = False) -> list[Problem]:
    """`n` distinct problems of one split, in an order fixed by `seed`. Raises ValueError for an unknown split."""
    if split not in ("train", "validation", "test"):
        raise ValueError(f"unknown split {split!r}: use 'train', 'validation' or 'test'")
    rng, found = random.Random(f"{split}-{seed}"), {}
    while len(found) < n:
        problem = draw(rng, near_copy)
        if problem.split == split:
            found.setdefault(problem.terms, problem)
    return list(found.values())


def solution(problem: Problem, view: str, style: str, rng: random.Random, slip: float = SLIP) -> list[str]:
    """Tokens of one solution in a style. Only `careful` solves; `ramble` never boxes an answer and never stops.

    >>> " ".join(solution(Problem((9, -3, 8), (9, 8, -3)), "original", "careful", random.Random(0), slip=0))
    '9 - 3 = 6 + 8 = 14 \\\\boxed{ 14 } <eos>'
    """
    terms = problem.terms if view == "original" else problem.story
    if style == "ramble":
        loop = _chain(terms[:2]).split()
        return (loop * MAX_COMPLETION_TOKENS)[: MAX_COMPLETION_TOKENS + 1]
    if style == "careful":
        total, steps = terms[0], [str(terms[0])]
        for term in terms[1:]:
            total += term
            if rng.random() < slip:
                total += rng.choice((-2, -1, 1, 2))
            total = min(max(total, 0), MAX_SUM)
            steps += ["+" if term > 0 else "-", str(abs(term)), "=", str(total)]
    else:
        guess = problem.answer + rng.gauss(0, GUESS_SD)
        total = HABIT[view] if style == "habit" else min(max(round(guess), 0), MAX_SUM)
        steps = []
    return [*steps, "\\boxed{", str(total), "}", "<eos>"]


def pairs(n: int = 2000, seed: int = 0, near_copy: bool = False, wrong_rewrites: float = 0.0):
    """RL problems of the lab: (Dataset with columns id, question, rephrased, answer, level; counts of its audit).

    `wrong_rewrites` is the share of pairs whose rephrased view is another problem (for the noise sweep). The counts
    include the overlap with held-out problems, which the splits make impossible.
    """
    from datasets import Dataset

    pool = problems(n, "train", seed, near_copy)
    rng = random.Random(f"wrong-{seed}")
    wrong = set(rng.sample(range(n), round(wrong_rewrites * n)))
    strangers = iter(problems(len(wrong), "train", seed + 10_000, near_copy))
    rows = [
        {
            "id": i,
            "question": p.text("original"),
            "rephrased": (next(strangers) if i in wrong else p).text("rephrased"),
            "answer": str(p.answer),
            "level": p.level,
        }
        for i, p in enumerate(pool)
    ]
    held_out = {tuple(sorted(p.terms)) for s in ("validation", "test") for p in problems(400, s, seed)}
    counts = {
        "rows": n,
        "pairs_kept": n,
        "duplicates": n - len({row["question"] for row in rows}),
        "wrong_rewrites": len(wrong),
        "overlap_held_out": sum(tuple(sorted(p.terms)) in held_out for p in pool),
    }
    return Dataset.from_list(rows), counts


def load_pairs(n: int = 2000, seed: int = 0):
    """The lab's problems as `(Dataset, Audit)`, the shape of `corelib.data.load_pairs`."""
    from corelib.data import Audit

    dataset, counts = pairs(n, seed)
    return dataset, Audit(dataset="lab", counts=counts)


def load_problems(split: str, n: int, seed: int = 0):
    """Held-out problems as a Dataset with columns id, question, rephrased, answer, level. `split`: validation or test."""
    from datasets import Dataset

    rows = [
        {
            "id": i,
            "question": p.text("original"),
            "rephrased": p.text("rephrased"),
            "answer": str(p.answer),
            "level": p.level,
        }
        for i, p in enumerate(problems(n, split, seed))
    ]
    return Dataset.from_list(rows)


def tokenizer():
    """One token a word: numbers 0..24, operators, the words of the story, `\\boxed{` and `}`."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<eos>", "<unk>", *WORDS, *map(str, range(MAX_SUM + 1))]
    inner = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        model_max_length=64,
    )


def untrained_model(seed: int = 0, hidden: int = 96, layers: int = 3):
    """A Qwen3-architecture model of 0.37 M parameters, fp32; head_dim 32 so that vLLM's CPU build can run it too."""
    import torch
    from transformers import Qwen3Config, Qwen3ForCausalLM

    tok = tokenizer()
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tok),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=64,
        tie_word_embeddings=True,
        pad_token_id=tok.pad_token_id,
        eos_token_id=tok.eos_token_id,
        bos_token_id=None,
    )
    return Qwen3ForCausalLM(config)


@functools.cache
def _base_problems(seed: int, near_copy: bool) -> list[Problem]:
    return problems(20_000, "train", seed, near_copy)


def _training_rows(rng: random.Random, n: int, clean: float, seed: int, tok) -> tuple:
    """`n` padded (input_ids, labels) rows; a share `clean` of them careful without slips, the rest the mixture."""
    import torch

    pool, rows = _base_problems(seed, False), []
    for _ in range(n):
        problem, view = rng.choice(pool), rng.choice(("original", "rephrased"))
        if rng.random() < clean:
            tokens = solution(problem, view, "careful", rng, slip=0.0)
        else:
            tokens = solution(problem, view, rng.choices(STYLES, STYLE_SHARE[problem.level])[0], rng)
        prompt = tok.convert_tokens_to_ids(problem.text(view).split())
        rows.append((prompt, tok.convert_tokens_to_ids(tokens)))
    width = max(len(p) + len(c) for p, c in rows)
    ids = torch.full((n, width), tok.pad_token_id)
    labels = torch.full((n, width), -100)
    for i, (p, c) in enumerate(rows):
        ids[i, : len(p) + len(c)] = torch.tensor(p + c)
        labels[i, len(p) : len(p) + len(c)] = torch.tensor(c)
    return ids, labels


def train_base(out: Path, seed: int = 0, steps: int = 1000, batch: int = 64, progress=print) -> dict:
    """Train the base model on the mixture of styles and save it (fp16 safetensors) with its measured quality.

    For the first 60 % of the steps 90 % of the rows are careful without slips, then the mixture: without this order
    the model learns to guess before it can compute, and there is nothing for RL to elicit.
    """
    import torch

    model, tok, rng = untrained_model(seed), tokenizer(), random.Random(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    started = time.time()
    for step in range(steps):
        ids, labels = _training_rows(rng, batch, 0.9 if step < 0.6 * steps else 0.0, seed, tok)
        loss = model(input_ids=ids, attention_mask=(ids != tok.pad_token_id).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 99:
            left = (time.time() - started) / (step + 1) * (steps - step - 1)
            progress(f"base model: step {step + 1}/{steps}, loss {loss.item():.3f}, {left:.0f} s left")
    out = Path(out)
    out.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(out)  # 0.75 MB; the quality below is measured on what was saved
    tok.save_pretrained(out)
    quality = measure(out, seed=seed) | {"seed": seed, "steps": steps, "batch": batch}
    (out / "quality.json").write_text(json.dumps(quality, indent=1) + "\n")
    return quality


def measure(folder: Path, n: int = 200, k: int = 8, seed: int = 0) -> dict:
    """pass@1, maj@8 and the accuracy of careful solutions on `n` validation problems, `k` draws at temperature 1."""
    import torch
    from transformers import AutoModelForCausalLM

    from corelib.answers import extract, vote

    model, tok = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), tokenizer()
    result = {}
    for view in ("original", "rephrased"):
        pool = problems(n, "validation", seed)
        inputs = tok([p.text(view) for p in pool for _ in range(k)], return_tensors="pt", padding=True)
        torch.manual_seed(seed)
        with torch.no_grad():
            out = model.generate(
                input_ids=inputs["input_ids"],
                attention_mask=inputs["attention_mask"],
                do_sample=True,
                top_k=0,
                max_new_tokens=MAX_COMPLETION_TOKENS,
                pad_token_id=tok.pad_token_id,
                eos_token_id=tok.eos_token_id,
            )
        texts = tok.batch_decode(out[:, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        answers = [extract(t) for t in texts]
        truth = [str(p.answer) for p in pool for _ in range(k)]
        right = [a == t for a, t in zip(answers, truth, strict=True)]
        careful = [r for r, t in zip(right, texts, strict=True) if "=" in t and "\\boxed{" in t]
        maj = [vote(answers[i : i + k]).label == truth[i] for i in range(0, len(answers), k)]
        result[view] = {
            "pass@1": sum(right) / len(right),
            "maj@8": sum(maj) / len(maj),
            "careful_right": sum(careful) / max(len(careful), 1),
            "careful_share": len(careful) / len(right),
        }
    return result


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="train the lab's base model (about 4 minutes on one core)")
    parser.add_argument("--out", type=Path, default=BASE_MODEL)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--steps", type=int, default=1000)
    args = parser.parse_args()
    if (args.out / "model.safetensors").is_file():
        parser.error(f"{args.out} holds a model already; give another --out, or delete it first")
    print(json.dumps(train_base(args.out, args.seed, args.steps), indent=1))
