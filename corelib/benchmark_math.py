r"""Benchmarks with a boxed answer: the training prompt, a few-shot prompt of fixed form, and the verdict.

The few-shot prompt exists because a base model that was never shown \boxed{} is judged on its format as much as on its
mathematics. Its problems were written for this project; none is taken from a training or test set.
"""

from __future__ import annotations

from corelib.answers import extract
from corelib.benchmark_base import Verdict
from corelib.data import to_prompt
from corelib.grader import shared

STOP = "\n\nQuestion:"  # a base model goes on with a next question; what follows is not its answer to this one

GSM8K_SHOTS = (
    (
        "A baker fills 6 trays with 12 rolls each. In the morning 45 rolls are sold, and the rest is packed in bags of 3. "
        "How many bags are there?",
        r"The baker makes 6 * 12 = 72 rolls. After the morning 72 - 45 = 27 rolls are left. They fill 27 / 3 = 9 bags. "
        r"The answer is \boxed{9}.",
    ),
    (
        "Nora saves $15 a week for 8 weeks. She then buys a lamp for $48 and a book for a quarter of what is left. "
        "How much money does she have in the end?",
        r"Nora saves 15 * 8 = 120 dollars. After the lamp she has 120 - 48 = 72 dollars. The book costs 72 / 4 = 18 dollars. "
        r"In the end she has 72 - 18 = 54 dollars. The answer is \boxed{54}.",
    ),
    (
        "A train travels 60 miles in the first hour. In each of the next two hours it travels 10 miles more than in the hour "
        "before. How many miles does it travel in these three hours?",
        r"In the second hour it travels 60 + 10 = 70 miles, in the third 70 + 10 = 80 miles. Together that is "
        r"60 + 70 + 80 = 210 miles. The answer is \boxed{210}.",
    ),
    (
        "Of the 40 children in a choir, 30% sing alto and half of the others sing soprano. How many children sing neither?",
        r"30% of 40 is 0.3 * 40 = 12, so 12 children sing alto and 40 - 12 = 28 do not. Half of them, 28 / 2 = 14, sing "
        r"soprano. The other 28 - 14 = 14 sing neither. The answer is \boxed{14}.",
    ),
)
MATH_SHOTS = (
    (
        r"What is the sum of the solutions of $x^2 - 7x + 10 = 0$?",
        r"The polynomial factors as $(x-2)(x-5)$, so the solutions are $2$ and $5$. Their sum is $7$. "
        r"The answer is \boxed{7}.",
    ),
    (
        r"Two fair six-sided dice are rolled. What is the probability that the sum of the numbers is $4$? "
        r"Express your answer as a common fraction.",
        r"There are $36$ equally likely outcomes. The sum is $4$ for $(1,3)$, $(2,2)$ and $(3,1)$, which are $3$ outcomes. "
        r"The probability is $\frac{3}{36} = \frac{1}{12}$. The answer is \boxed{\frac{1}{12}}.",
    ),
    (
        r"For which real numbers $x$ is $\sqrt{9 - 3x}$ defined? Express your answer in interval notation.",
        r"The expression under the root must not be negative: $9 - 3x \ge 0$, that is $x \le 3$. "
        r"The answer is \boxed{(-\infty, 3]}.",
    ),
    (
        r"A right triangle has legs of length $6$ and $10$. What is the length of its hypotenuse, in simplest radical form?",
        r"By the Pythagorean theorem the square of the hypotenuse is $6^2 + 10^2 = 136$. Since $136 = 4 \cdot 34$, its length "
        r"is $2\sqrt{34}$. The answer is \boxed{2\sqrt{34}}.",
    ),
)


def training_prompt(problem: dict) -> list[dict]:
    """The prompt of training: system instruction and bare question."""
    return to_prompt(problem["question"])


def few_shot_prompt(problem: dict, shots: tuple[tuple[str, str], ...]) -> str:
    r"""Solved questions, each ending in \boxed{}, then the question: plain text, so that no chat template is needed."""
    solved = "\n\n".join(f"Question: {question}\nAnswer: {answer}" for question, answer in shots)
    return f"{solved}{STOP} {problem['question']}\nAnswer:"


def gsm8k_messages(problem: dict, few_shot: bool = False) -> str | list[dict]:
    """Prompt of one GSM8K problem: as in training, or after four solved problems."""
    return few_shot_prompt(problem, GSM8K_SHOTS) if few_shot else training_prompt(problem)


def math_messages(problem: dict, few_shot: bool = False) -> str | list[dict]:
    """Prompt of one MATH500 problem: as in training, or after four solved problems."""
    return few_shot_prompt(problem, MATH_SHOTS) if few_shot else training_prompt(problem)


def grade_boxed(completions: list[str], problem: dict, few_shot: bool = False) -> list[Verdict]:
    """Last boxed answer against the gold answer, by mathematical equivalence; few_shot cuts where a next question begins.

    detail is "timeout" when comparing ran out of time and "unparsed" when no parser reads the answer.
    """
    texts = [text.split(STOP.strip(), 1)[0] for text in completions] if few_shot else completions
    answers = [extract(text) for text in texts]
    outcomes = shared().equal([problem["answer"]] * len(answers), answers)
    return [
        Verdict(answer, outcome == "equal", outcome if answer and outcome in ("timeout", "unparsed") else "")
        for answer, outcome in zip(answers, outcomes, strict=True)
    ]
