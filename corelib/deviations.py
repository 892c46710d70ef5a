"""Where the paper, its released code and this repository differ, and why: shown in notebook 03 and in the README."""

from __future__ import annotations

# (what, paper, released code, here, why)
DEVIATIONS: list[tuple[str, str, str, str, str]] = [
    ("equality of answers", "ans(y) = ans(y*), undefined", "raw strings in votes, Hendrycks for GT", "mathematical equivalence everywhere; `answer_equality=released` for theirs", "37 to 50 % of MATH and OpenRS answers have several spellings: string votes split, and GT was graded more kindly than the votes"),
    ("extraction", "-", "last box; a `\\boxed ` anywhere hides later boxes; `\\fbox` fails; spaces kept", "last box, stripped", "parser defects"),
    ("ties in a vote", "-", "first in an order that depends on response lengths", "lowest rollout index", "deterministic"),
    ("empty vote", "-", "label '': reward 0; the run dies when a batch has no label", "no label: reward 0, advantage 0, counted in label/missing", "collapse must be survivable to be seen"),
    ("pairing of views", "-", "by row position", "joined on extra_info.index", "a dropped row must not shift the rest"),
    ("broken rewrites", "99.97 % success", "76 placeholders kept", "dropped, repaired or counted by the audit of notebook 01", "their votes label the original question"),
    ("DAPO size", "14,109", "II trains on 14,116", "14,109 less what the audit drops", "paper"),
    ("teacher's end weight", "text 0.9999, Eq. 11 exactly 1", "0.99999", "0.99999; `teacher_schedule=text` or `eq11` for the others", "numerically irrelevant"),
    ("teacher's start weight, lab", "0.99", "0.99", "0.01 x 330/150 = 0.022 for the policy", "the same drift over a shorter run"),
    ("teacher on resume", "-", "lost", "in every checkpoint", "released defect: II silently restarts from the base model"),
    ("KL reference of II and III", "initial model", "the moving teacher", "the moving teacher", "released code"),
    ("KL coefficient", "one setup", "0.005 (I), 0.001 (II, III)", "0.005 for I, 0.001 for all others; lab 0", "released scripts; the fork that can run GT and majority voting is II's; in the lab KL only slows what it is built to show"),
    ("KL estimator", "k3", "k3, clamped to +-10", "k3, not clamped (TRL)", "the clamp is inactive at these distances"),
    ("advantage", "(r - mean) / std", "unbiased std + 1e-6", "unbiased std + 1e-4 (TRL)", "largest advantage 2.4742 against 2.4749"),
    ("policy loss", "mean over sequences", "token mean of each micro-batch, dual clip 3", "token mean of each micro-batch (`bnpo`), no dual clip", "released code; with one update a batch the ratio is 1 and every clip inactive"),
    ("loss of the two views", "sum", "sum of two token means", "one token mean over both", "a factor of two on the gradient: Adam removes it, clipping at 1.0 does not"),
    ("weight decay", "-", "all parameters", "all but norms and biases (transformers)", "left as the library has it"),
    ("micro-batch", "-", "8 (I, II), 4 (III)", "8; lab: the whole batch", "with `bnpo` it weighs tokens within a micro-batch, so it changes the update a little"),
    ("batch of I and III", "128", "128 pairs: twice the rollouts", "128 pairs; lab: equal rollouts (`batch_unit`)", "a fair comparison in the lab; every table shows tokens"),
    ("order of questions", "-", "one generator, lost on resume", "function of seed and epoch", "exact resume"),
    ("stop tokens", "-", "tokenizer's EOS", "<|im_end|> and <|endoftext|>", "Qwen3-Base declares only the second, its chat template ends turns with the first"),
    ("validation", "temperature 0.8 in table 5", "greedy, all 5,000 of MATH test", "greedy, 500 of them; lab: 4 draws at temperature 1", "chooses `best`; the lab's policy is a mixture of styles that greedy decoding would hide"),
    ("engine's log-probabilities", "-", "vLLM, no correction", "vLLM, no correction; the difference is logged and guarded", "released code; `trl`'s importance correction is off by default here"),
    ("order of teacher and rollouts", "-", "rollouts, teacher update, teacher's rollouts", "teacher update, rollouts, teacher's rollouts", "the policy's rollouts do not depend on the teacher: the same labels, and both can run side by side"),
    ("LoRA", "full fine-tuning", "full fine-tuning", "a profile; its teacher averages A and B apart, and vLLM gets base plus change without TRL's merge in place", "one small GPU; (mean B)(mean A) was 0.10 away from the mean of B A, relative, in a 60-step lab run whose policy was 1.8 away (`tests/test_engine.py`)"),
    ("test-time training", "settings not stated", "-", "80 of AMC's 83 questions a step, 160 steps", "a step must split over 1 to 8 GPUs; table 5 has 160 to 330 steps. `best` would be chosen by the labels of the very questions that are reported: read `final`"),
    ("reported checkpoint", "undisclosed; tables show pre-collapse peaks", "-", "base, best (by validation) and final side by side", "a collapse must not be hidden by choosing the checkpoint"),
    ("entropy, self-certainty", "trained", "not released", "mean over the rollout's tokens, GRPO on top", "RENT and Intuitor as the paper describes them"),
]  # fmt: skip


def table():
    """The deviations as a DataFrame."""
    import pandas as pd

    return pd.DataFrame(DEVIATIONS, columns=["what", "paper", "released code", "here", "why"])


def markdown() -> str:
    """The deviations as a Markdown table, as the README holds it."""
    rows = [("what", "paper", "released code", "here", "why"), ("---",) * 5, *DEVIATIONS]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)
