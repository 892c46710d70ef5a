"""The audit of a set of question pairs: rules on text, what each found, and what an earlier count had found."""

import json
import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

PLACEHOLDER = "<rewritten question>"  # the rewriting template's own words, kept by the released parser as if a rewrite
DEFAULT_DROP = ("placeholder_rewrites", "empty_answers", "empty_questions")
ROW_COLUMNS = ["id", "reason", "action", "detail"]

# Key of Audit.counts -> meaning; the order is the order of the table.
MEANING = {
    "rows_original": "rows in the file of originals",
    "rows_rewrite": "rows in the file of rewrites",
    "pairs": "rows joined on extra_info.index",
    "dropped": "pairs left out",
    "repaired": "kept pairs whose text or answer was changed",
    "kept": "pairs in the prepared set",
    "placeholder_rewrites": f"rewrite is the template's own {PLACEHOLDER}: its vote would label the original",
    "empty_answers": "answer null or blank: no method could be scored on it",
    "empty_questions": "one of the two views is blank",
    "prompts_too_long": "one rendered prompt is longer than the token limit",
    "broken_frac_original": "form feed + rac{ in the original: \\frac whose \\f was read as an escape",
    "broken_frac_rephrased": "the same in the rewrite",
    "other_latex_damage": "\\times, \\textbf or \\nabla cut the same way, or frac{ without its backslash",
    "answer_whitespace": "answer with leading or trailing blanks",
    "control_characters": "other control characters (glyph numbers of PDF fonts): which letter was meant is a guess",
    "rewrite_identical": "rewrite equals the original: no second view, so I falls back to majority voting there",
    "rewrite_same_normalised": "the same after alphanumeric normalisation",
    "duplicate_questions": "rows whose question occurs more than once (alphanumeric normalisation)",
    "duplicate_groups": "such questions",
    "duplicate_conflicts": "such questions with more than one answer string",
    "duplicate_later_copies": "rows beyond the first of each such question",
    "typeset_duplicates": "rows whose question occurs more than once when only typography is ignored (signs stay)",
    "typeset_duplicate_conflicts": "such questions with more than one answer string",
    "duplicate_rewrites": "rows whose rewrite occurs more than once (alphanumeric; placeholders included)",
    "answer_form_suffix": 'question ends "The answer is in the form ..."',
    "diagrams": "original holds an [asy] diagram",
    "diagrams_lost": "the rewrite does not",
    "image_links": "original refers to a picture or page by URL",
    "digits_differ": "the two views do not hold the same digit runs (with repetition)",
    "rewrite_3x_longer": "rewrite has more than 3 times the characters",
    "rewrite_3x_shorter": "rewrite has less than a third of the characters",
}
REPAIRS = ("broken_frac_original", "broken_frac_rephrased", "other_latex_damage", "answer_whitespace")
_ROW_REASONS = [
    key for key in MEANING if key not in ("rows_original", "rows_rewrite", "pairs", "dropped", "repaired", "kept")
]
LAB_MEANING = {
    "rows": "problems generated",
    "pairs_kept": "pairs in the prepared set",
    "duplicates": "problems that occur twice",
    "wrong_rewrites": "pairs whose rewrite is another problem (for the noise sweep)",
    "overlap_held_out": "problems that are also in the lab's validation or test problems",
}
BENCHMARKS = ("math_test", "math500", "amc", "aime24", "aime25", "gsm8k")
OVERLAP_MEANING = {
    "": "distinct {} questions found among the training questions (alphanumeric normalisation)",
    "_rows": "training rows that hold one of them",
    "_equal_gold": "of the distinct questions, those whose answer is the same too",
    "_stripped": "distinct {} questions found once the answer-form sentence is removed",
    "_stripped_rows": "training rows that hold one of them",
}

# Counted before this module existed, by other code, on the same parquet files (official repository, commit 6c60ea4);
# a pair of numbers is a percentage with one decimal, written as the range of counts that round to it.
EXPECTED = {
    "open-rs": {
        "rows_original": 6999, "rows_rewrite": 6999, "pairs": 6999, "placeholder_rewrites": 12, "empty_answers": 1,
        "answer_whitespace": 0, "broken_frac_original": 0, "rewrite_identical": 0, "duplicate_questions": 451,
        "duplicate_groups": 217, "duplicate_conflicts": 54, "duplicate_rewrites": 56, "diagrams": 9,
        "diagrams_lost": 4, "digits_differ": (1985, 1991), "rewrite_3x_longer": 42, "rewrite_3x_shorter": 12,
        "overlap_math_test": 256, "overlap_math_test_equal_gold": 252, "overlap_math500_equal_gold": 7,
        "overlap_amc": 0, "overlap_aime24": 0, "overlap_aime25": 0, "overlap_gsm8k": 0,
    },
    "math": {
        "rows_original": 7500, "rows_rewrite": 7500, "pairs": 7500, "placeholder_rewrites": 19, "empty_answers": 2,
        "answer_whitespace": 18, "broken_frac_original": 0, "rewrite_identical": 2, "duplicate_questions": 18,
        "duplicate_groups": 9, "duplicate_conflicts": 7, "duplicate_rewrites": 23, "diagrams": 707,
        "diagrams_lost": 583, "digits_differ": (2344, 2351), "rewrite_3x_longer": 184, "rewrite_3x_shorter": 112,
        "overlap_math_test": 10, "overlap_math_test_equal_gold": 4, "overlap_math500_equal_gold": 0,
        "overlap_amc": 0, "overlap_aime24": 0, "overlap_aime25": 0, "overlap_gsm8k": 0,
    },
    "dapo": {
        "rows_original": 14109, "rows_rewrite": 14109, "pairs": 14109, "placeholder_rewrites": 45, "empty_answers": 0,
        "answer_whitespace": 0, "broken_frac_original": 633, "broken_frac_rephrased": 19, "rewrite_identical": 0,
        "rewrite_same_normalised": 2, "duplicate_questions": 1437, "duplicate_groups": 707, "duplicate_conflicts": 21,
        "duplicate_rewrites": 131, "answer_form_suffix": 1743, "diagrams": 559, "diagrams_lost": 424,
        "image_links": 28, "digits_differ": (5200, 5213), "rewrite_3x_longer": 20, "rewrite_3x_shorter": 128,
        "overlap_math_test": 976, "overlap_math_test_rows": 1024, "overlap_math_test_equal_gold": 971,
        "overlap_math_test_stripped": 1244, "overlap_math500_equal_gold": 6, "overlap_amc": 14,
        "overlap_amc_equal_gold": 14, "overlap_amc_stripped": 15, "overlap_aime24": 0, "overlap_aime25": 0,
        "overlap_gsm8k": 0,
    },
    "amc": {
        "rows_original": 83, "rows_rewrite": 83, "pairs": 83, "placeholder_rewrites": 0, "empty_answers": 0,
        "answer_whitespace": 0, "broken_frac_original": 0, "rewrite_identical": 0, "duplicate_questions": 0,
        "duplicate_groups": 0, "duplicate_conflicts": 0, "duplicate_rewrites": 0, "diagrams": 2, "diagrams_lost": 2,
        "digits_differ": 34, "rewrite_3x_longer": 0, "rewrite_3x_shorter": 0,
    },
}  # fmt: skip

# Why a count differs from EXPECTED; checked by hand on the rows named by Audit.rows.
DIFFERENCES = {
    ("open-rs", "broken_frac_original"): "rows 1277 and 5496, which the earlier count does not mention",
    ("open-rs", "duplicate_questions"): "one group of two less: fits the one question without a rewrite (index 6668), "
    "which the earlier count still had (7000 rows)",
    ("open-rs", "overlap_math_test_equal_gold"): "the earlier count left out two short questions (3643, 6912)",
    ("math", "overlap_math_test_equal_gold"): "the earlier count left out one short question (3152)",
    ("dapo", "broken_frac_original"): "633 rows hold a form feed; in 31 it is a page break or the fi of a PDF font "
    "(see control_characters), not \\frac",
    ("dapo", "answer_form_suffix"): "the earlier count's pattern is not known; this one is "
    'a sentence starting "The [original] answer is in"',
    ("dapo", "overlap_math_test"): "one row less: fits the 7 questions without a rewrite, which the earlier count had",
    ("dapo", "overlap_math_test_equal_gold"): "the earlier count left out two short questions (9081, 10334) and one "
    "that occurs with two answers (8715, 9841)",
    ("dapo", "overlap_math_test_stripped"): "as answer_form_suffix: another pattern removes other endings",
}
DIFFERENCES["open-rs", "duplicate_groups"] = DIFFERENCES["open-rs", "duplicate_questions"]
DIFFERENCES["dapo", "overlap_math_test_rows"] = DIFFERENCES["dapo", "overlap_math_test"]


def normalise(text: str) -> str:
    """Normalisation "alphanumeric": lower case, a-z and 0-9 only. It forgets signs: sin(-60) becomes sin60."""
    return re.sub(r"[^a-z0-9]", "", text.lower())


def normalise_typography(text: str) -> str:
    """Lower case without blanks, math delimiters, spacing commands and a final stop; signs and operators stay."""
    return re.sub(r"\s|\$|\\[()\[\],;:! ]|\\left|\\right|~", "", text.lower()).rstrip(".?")


def strip_answer_form(text: str) -> str:
    """Remove DAPO's closing "The [original] answer is in ..." with everything after it."""
    return re.sub(r"(?is)\s*the (original )?answer is in .*$", "", text)


_ESCAPED = {"\f": "f", "\t": "t", "\b": "b", "\r": "r", "\n": "n", "\v": "v", "\a": "a"}
_CUT_COMMAND = re.compile(
    r"(?:\f(?=(?:rac|orall)\W)|\t(?=(?:imes|heta|ext|extbf|riangle)\W)|[\b](?=(?:inom|eta|oxed|egin)\W)"
    r"|\r(?=(?:ight|ho)\W)|\n(?=(?:abla|eq|otin)\W)|\v(?=(?:ec|arphi)\W)|\a(?=(?:lpha|ngle)\W))"
)
_BARE_FRAC = re.compile(r"(?<![\\a-zA-Z])frac(?=\{)")
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_BROKEN_FRAC = "\frac"


def repair_latex(text: str) -> str:
    r"""Restore LaTeX commands whose first letters were read as an escape (form feed + rac -> \frac) or lost."""
    text = _CUT_COMMAND.sub(lambda found: "\\" + _ESCAPED[found.group()], text)
    return _BARE_FRAC.sub(r"\\frac", text)


def same_answer(left: str | None, right: str | None) -> bool:
    """Equal as strings without blanks, or as numbers ("142.0" and "142"); no mathematics beyond that."""
    left, right = re.sub(r"\s", "", left or ""), re.sub(r"\s", "", right or "")
    try:
        return left == right or float(left) == float(right)
    except ValueError:
        return False


_ANSWER_TYPES = (
    ("integer", r"-?\d+"),
    ("decimal", r"-?\d*\.\d+"),
    ("fraction", r"-?(\\[dt]?frac\s*(\{-?\d+\}|\d)\s*(\{\d+\}|\d)|\d+/\d+)"),
    ("matrix", r".*\\begin\{\w*matrix\}.*"),
    ("tuple, interval", r"(\\left)?\s*[(\[].*,.*(\\right)?\s*[)\]]"),
    ("equation", r".*=.*"),
    ("text", r"(\\(text|mbox|textbf|mathrm)\s*\{[^{}]*\}|[A-Za-z][A-Za-z ]+)"),
    ("expression", r".*[\\^a-zA-Z].*"),
)


def answer_type(answer: str) -> str:
    """Class of an answer by its surface: integer, decimal, fraction, matrix, ..., expression, other."""
    text = answer.strip().strip("$")
    return next((name for name, pattern in _ANSWER_TYPES if re.fullmatch(pattern, text, re.DOTALL)), "other")


def token_overlap(left: str, right: str) -> float:
    """Jaccard overlap of the two sets of lower-case words and numbers: 0 nothing shared, 1 the same words."""
    a, b = (set(re.findall(r"[a-z]+|\d+", text.lower())) for text in (left, right))
    return len(a & b) / len(a | b) if a | b else 1.0


@dataclass
class Audit:
    """Counts of what was dropped, repaired or only counted in a set of pairs, and the rows behind them.

    counts: key -> rows or questions; rows: DataFrame of ROW_COLUMNS, one line per row and reason;
    not_checked: keys that were not computed (never reported as 0); notes: key -> remark; files: name -> sha256.
    """

    dataset: str
    counts: dict[str, int]
    rows: pd.DataFrame = field(default_factory=lambda: pd.DataFrame(columns=ROW_COLUMNS))
    not_checked: list[str] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)

    @property
    def dropped(self) -> pd.DataFrame:
        """Rows left out, with reason and detail."""
        return self.rows[self.rows["action"] == "dropped"]

    @property
    def repaired(self) -> pd.DataFrame:
        """Rows that were changed, with reason and the changed text."""
        return self.rows[self.rows["action"] == "repaired"]

    def to_frame(self) -> pd.DataFrame:
        """One line per count: found, expected, agrees (None where nothing was expected), action, meaning, remark."""
        expected = EXPECTED.get(self.dataset, {})
        actions = self.rows.drop_duplicates("reason").set_index("reason")["action"].to_dict()
        lines = []
        for key in [*self.counts, *self.not_checked]:
            found, wanted = self.counts.get(key, "not checked"), expected.get(key)
            low, high = wanted if isinstance(wanted, tuple) else (wanted, wanted)
            agrees = None if wanted is None or key not in self.counts else low <= found <= high
            remark = self.notes.get(key, "" if agrees in (True, None) else DIFFERENCES.get((self.dataset, key), ""))
            shown = f"{low}-{high}" if low != high else low
            lines.append((key, found, shown, agrees, actions.get(key, ""), _meaning(key), remark))
        columns = ["count", "found", "expected", "agrees", "action", "meaning", "remark"]
        return pd.DataFrame(lines, columns=columns, dtype=object).set_index("count")

    def to_json(self) -> str:
        """Everything but the rows that were only counted, as a JSON object."""
        expected = {key: EXPECTED.get(self.dataset, {}).get(key) for key in [*self.counts, *self.not_checked]}
        changed = self.rows[self.rows["action"] != "counted"]
        content = {
            "dataset": self.dataset,
            "counts": self.counts,
            "expected": {key: value for key, value in expected.items() if value is not None},
            "not_checked": self.not_checked,
            "notes": self.notes,
            "files": self.files,
            "rows": changed.to_dict("records"),
        }
        return json.dumps(content, indent=1, ensure_ascii=False)

    def save(self, folder: str | Path) -> None:
        """Write audit.json, audit.csv (the table) and audit_rows.csv (every row) into folder, each in one step."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / "audit.json", lambda path: path.write_text(self.to_json(), encoding="utf-8"))
        write_atomically(folder / "audit.csv", lambda path: self.to_frame().to_csv(path))
        write_atomically(folder / "audit_rows.csv", lambda path: self.rows.to_csv(path, index=False))

    def add(self, reason: str, action: str, ids: Iterable[int], details: Iterable[str]) -> None:
        """Record one more finding; a dropped row lowers `kept` and raises `dropped`."""
        new = pd.DataFrame({"id": list(ids), "reason": reason, "action": action, "detail": list(details)})
        self.counts[reason] = len(new)
        if action == "dropped":
            self.counts["dropped"] = self.counts.get("dropped", 0) + len(new)
            self.counts["kept"] = self.counts.get("kept", 0) - len(new)
        self.rows = pd.concat([self.rows, new], ignore_index=True) if len(self.rows) else new


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call write on a neighbour of path, then rename it, so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        write(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def _meaning(key: str) -> str:
    name = next((name for name in BENCHMARKS if key.startswith(f"overlap_{name}")), None)
    if name is None:
        return (MEANING | LAB_MEANING).get(key, "")
    return OVERLAP_MEANING.get(key.removeprefix(f"overlap_{name}"), "").format(name)


def audit_pairs(
    pairs: pd.DataFrame,
    dataset: str,
    benchmarks: dict[str, pd.DataFrame] | None = None,
    drop: Iterable[str] = DEFAULT_DROP,
) -> tuple[pd.DataFrame, Audit]:
    """Check, repair and filter joined pairs (id, question, rephrased, answer): the prepared pairs and the audit.

    Counts describe the pairs as they came; `drop` names the counts whose rows are left out. `benchmarks` maps names
    of BENCHMARKS to frames with question and answer; a missing one is listed in `not_checked`.
    Raises ValueError when `drop` holds a name that is not a reason.
    """
    drop = set(drop)
    known = {*_ROW_REASONS, *(f"overlap_{name}" for name in BENCHMARKS)} - {"prompts_too_long", *REPAIRS}
    if unknown := drop - known:
        raise ValueError(f"drop: unknown reasons {sorted(unknown)}; valid are {sorted(known)}")
    repaired = pairs.copy()
    for column in ("question", "rephrased"):
        repaired[column] = [repair_latex(text) for text in pairs[column].fillna("")]
    repaired["answer"] = pairs["answer"].fillna("").str.strip()
    keys = pd.Series([normalise(text) for text in repaired["question"]], index=pairs.index)
    flags = _flags(pairs, repaired, keys)
    counts = {"pairs": len(pairs)} | {reason: int(flag.sum()) for reason, flag in flags.items()}
    counts["duplicate_groups"] = counts["duplicate_questions"] - counts["duplicate_later_copies"]
    for key in ("duplicate_conflicts", "typeset_duplicate_conflicts"):  # rows so far; the counts are questions
        by = keys if key == "duplicate_conflicts" else repaired["question"].map(normalise_typography)
        counts[key] = int(by[flags[key]].nunique())
    overlaps, not_checked = _overlaps(repaired, keys, benchmarks or {}, flags)
    counts |= overlaps
    if unchecked := drop - flags.keys():
        raise ValueError(f"drop: {sorted(unchecked)} were not checked; give the folder of the benchmarks")
    out = np.zeros(len(pairs), dtype=bool)
    for reason in drop:
        out |= flags[reason]
    changed = (pairs[["question", "rephrased", "answer"]] != repaired[["question", "rephrased", "answer"]]).any(axis=1)
    counts |= {"dropped": int(out.sum()), "repaired": int((changed & ~out).sum()), "kept": int((~out).sum())}
    order = [key for key in MEANING if key in counts] + sorted(overlaps, key=list(overlaps).index)
    audit = Audit(dataset, {key: counts[key] for key in order}, _rows(pairs, repaired, flags, drop), not_checked)
    return repaired[~out].reset_index(drop=True), audit


def _flags(pairs: pd.DataFrame, repaired: pd.DataFrame, keys: pd.Series) -> dict[str, np.ndarray]:
    """Reason -> boolean mask over the rows; keys are the alphanumeric normalisation of the questions."""
    question, rephrased = pairs["question"].fillna(""), pairs["rephrased"].fillna("")
    fixed, fixed_rephrased = repaired["question"], repaired["rephrased"]

    def where(test: Callable[..., bool], *columns: pd.Series) -> np.ndarray:
        return np.array([bool(test(*texts)) for texts in zip(*columns, strict=True)], dtype=bool)

    def several_answers(key: pd.Series) -> np.ndarray:
        answers = pd.Series(pd.factorize(repaired["answer"])[0], index=key.index).groupby(key)
        return (answers.transform("min") != answers.transform("max")).to_numpy()

    typeset = fixed.map(normalise_typography)
    rewrite_keys = rephrased.map(normalise)
    flags = {
        "placeholder_rewrites": where(lambda r: r.strip() == PLACEHOLDER, rephrased),
        "empty_answers": (repaired["answer"] == "").to_numpy(),
        "empty_questions": where(lambda q, r: not q.strip() or not r.strip(), question, rephrased),
        "broken_frac_original": where(lambda q: _BROKEN_FRAC in q, question),
        "broken_frac_rephrased": where(lambda r: _BROKEN_FRAC in r, rephrased),
        "other_latex_damage": where(
            lambda q, r: any(_BROKEN_FRAC not in text and repair_latex(text) != text for text in (q, r)),
            question,
            rephrased,
        ),
        "answer_whitespace": where(lambda a: a != a.strip() and a.strip(), pairs["answer"].fillna("")),
        "control_characters": where(lambda q, r: _CONTROL.search(q) or _CONTROL.search(r), fixed, fixed_rephrased),
        "rewrite_identical": (question == rephrased).to_numpy(),
        "rewrite_same_normalised": (keys == rewrite_keys).to_numpy(),
        "duplicate_questions": keys.duplicated(keep=False).to_numpy(),
        "duplicate_conflicts": several_answers(keys),
        "duplicate_later_copies": keys.duplicated(keep="first").to_numpy(),
        "typeset_duplicates": typeset.duplicated(keep=False).to_numpy(),
        "typeset_duplicate_conflicts": several_answers(typeset),
        "duplicate_rewrites": rewrite_keys.duplicated(keep=False).to_numpy(),
        "answer_form_suffix": where(lambda q: strip_answer_form(q) != q, question),
        "diagrams": where(lambda q: "[asy]" in q, question),
        "diagrams_lost": where(lambda q, r: "[asy]" in q and "[asy]" not in r, question, rephrased),
        "image_links": where(lambda q: "http" in q, question),
        "digits_differ": where(lambda q, r: _digit_runs(q) != _digit_runs(r), question, rephrased),
        "rewrite_3x_longer": where(lambda q, r: len(r) > 3 * len(q), question, rephrased),
        "rewrite_3x_shorter": where(lambda q, r: 3 * len(r) < len(q), question, rephrased),
    }
    return flags


def _digit_runs(text: str) -> list[str]:
    return sorted(re.findall(r"\d+", text))


def _overlaps(
    repaired: pd.DataFrame, keys: pd.Series, benchmarks: dict[str, pd.DataFrame], flags: dict[str, np.ndarray]
) -> tuple[dict[str, int], list[str]]:
    """Counts of OVERLAP_MEANING for each benchmark that is there, and the keys of those that are not."""
    stripped = repaired["question"].map(strip_answer_form).map(normalise)
    counts, not_checked = {}, []
    for name in BENCHMARKS:
        if name not in benchmarks:
            not_checked += [f"overlap_{name}{part}" for part in OVERLAP_MEANING]
            continue
        frame = benchmarks[name]
        gold = frame["answer"].groupby(frame["question"].map(normalise)).agg(list).to_dict()
        raw, cut = keys.isin(gold).to_numpy(), stripped.isin(gold).to_numpy()
        pairs = zip(keys[raw], repaired["answer"][raw], strict=True)
        equal = {key for key, answer in pairs if any(same_answer(answer, other) for other in gold[key])}
        values = (keys[raw].nunique(), raw.sum(), len(equal), stripped[cut].nunique(), cut.sum())
        counts |= {f"overlap_{name}{part}": int(value) for part, value in zip(OVERLAP_MEANING, values, strict=True)}
        flags[f"overlap_{name}"] = raw | cut
    return counts, not_checked


def _rows(
    pairs: pd.DataFrame, repaired: pd.DataFrame, flags: dict[str, np.ndarray], drop: Iterable[str]
) -> pd.DataFrame:
    """One line for each row and reason; the detail shows the text that the rule saw."""
    shown = {"placeholder_rewrites": "rephrased", "broken_frac_rephrased": "rephrased"}
    shown |= {"empty_answers": "answer", "answer_whitespace": "answer", "duplicate_conflicts": "answer"}
    shown |= {"duplicate_rewrites": "rephrased", "typeset_duplicate_conflicts": "answer"}
    parts = []
    for reason, flag in flags.items():
        action = "dropped" if reason in drop else "repaired" if reason in REPAIRS else "counted"
        detail = [_excerpt(text) for text in pairs.loc[flag, shown.get(reason, "question")]]
        part = {"id": pairs.loc[flag, "id"].to_numpy(), "reason": reason, "action": action, "detail": detail}
        parts.append(pd.DataFrame(part, columns=ROW_COLUMNS))
    rows = pd.concat(parts, ignore_index=True)
    return rows.sort_values("id", kind="stable", ignore_index=True)


def _excerpt(text: str | None, width: int = 80) -> str:
    """Python literal of up to width characters, around the first damaged place if there is one."""
    found = next((hit for rule in (_CUT_COMMAND, _BARE_FRAC, _CONTROL) if (hit := rule.search(text or ""))), None)
    start = max(0, found.start() - width // 2) if found else 0
    return repr(text if text is None else text[start : start + width])
