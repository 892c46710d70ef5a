"""Loaders and audit: every rule and every error on hand-made files, and the counts of the released data where it is."""

import csv
import json
import time
from pathlib import Path
from types import SimpleNamespace

import datasets
import huggingface_hub
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from corelib import data
from corelib.audit import (
    EXPECTED,
    Audit,
    answer_type,
    audit_pairs,
    normalise,
    normalise_typography,
    repair_latex,
    same_answer,
    strip_answer_form,
    token_overlap,
)
from corelib.data import SYSTEM_PROMPT, DataError, load_pairs, load_problems

RELEASED = Path(__file__).resolve().parents[1].parent / "shared" / "data"
needs_released_data = pytest.mark.skipif(
    not (RELEASED / "corew_train").is_dir(), reason="the released data is not in ../shared/data"
)


def row(index, text, answer, **extra):
    turns = [{"role": "system", "content": SYSTEM_PROMPT}, {"role": "user", "content": text}]
    return {
        "prompt": turns,
        "reward_model": {"ground_truth": answer, "style": "rule"},
        "extra_info": {"index": index, "split": "train"} | extra,
    }


def write_set(folder, original, rewrite, name="math", split="train"):
    """A released-looking set: original and rewrite are lists of rows."""
    place = folder / name
    place.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(original), place / f"{split}_original.parquet")
    pq.write_table(pa.Table.from_pylist(rewrite), place / f"{split}_rewrite_Qwen3-32B.parquet")
    return folder


def write_pairs(folder, *pairs, name="math"):
    """A set from (question, rephrased, answer) triples with index 0, 1, ..."""
    original = [row(i, question, answer) for i, (question, _, answer) in enumerate(pairs)]
    rewrite = [row(i, rephrased, answer) for i, (_, rephrased, answer) in enumerate(pairs)]
    return write_set(folder, original, rewrite, name)


def audit_of(*pairs, **options):
    frame = pd.DataFrame(pairs, columns=["question", "rephrased", "answer"], dtype=object)
    frame.insert(0, "id", range(len(frame)))
    return audit_pairs(frame, "math", **options)


# ---- text rules


def test_normalisations_forget_what_they_say():
    assert normalise("What is $\\sin(-60)$?") == "whatissin60"
    assert normalise("sin 60") == normalise("sin(-60)")
    assert normalise_typography("Find $a - b$.") == normalise_typography("find \\(a-b\\)") == "finda-b"
    assert normalise_typography("sin 60") != normalise_typography("sin(-60)")


def test_answer_form_sentence_is_removed_and_nothing_else():
    text = "Find the odds. The original answer is in \\frac{k}{m} format, please give the value of k + m."
    assert strip_answer_form(text) == "Find the odds."
    assert strip_answer_form("What answer is in the box?") == "What answer is in the box?"


@pytest.mark.parametrize(
    ("broken", "whole"),
    [
        ("\frac{m}{n}", "\\frac{m}{n}"),
        ("$1 \times 2$", "$1 \\times 2$"),
        ("\textbf{(A)}", "\\textbf{(A)}"),
        ("$\nabla f$", "$\\nabla f$"),
        ("$\binom{3}{2}$", "$\\binom{3}{2}$"),
        ("\right)", "\\right)"),
        ("$A = frac{m}{n}$", "$A = \\frac{m}{n}$"),
    ],
)
def test_cut_commands_are_restored(broken, whole):
    assert repair_latex(broken) == whole


@pytest.mark.parametrize(
    "text",
    ["\\frac{1}{2}", "\\dfrac{1}{2}", "a\n\tdraw(a);", "x\r\nFind y", "\n\\begin{cases}\n\tn^n", "\ngive", "\x0cnd"],
)
def test_sound_text_is_left_alone(text):
    assert repair_latex(text) == text


def test_same_answer_compares_numbers_and_ignores_blanks():
    assert same_answer("142.0", "142") and same_answer("( 3, 4 )", "(3,4)")
    assert not same_answer("1/2", "0.5") and not same_answer("7", "-7") and not same_answer(None, "0")


def test_answer_types():
    examples = {
        "12": "integer",
        "-3.5": "decimal",
        "\\frac{3}{4}": "fraction",
        "\\frac34": "fraction",
        "\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}": "matrix",
        "\\left( 3, \\frac{\\pi}{2} \\right)": "tuple, interval",
        "x = 2": "equation",
        "\\text{Evelyn}": "text",
        "3\\sqrt{13}": "expression",
        "10,000": "other",
    }
    assert {text: answer_type(text) for text in examples} == examples


def test_token_overlap_is_the_jaccard_index_of_words_and_numbers():
    assert token_overlap("two 3 cats", "3 cats run") == 2 / 4
    assert token_overlap("a b", "b A") == 1 and token_overlap("a", "b") == 0 and token_overlap("", "") == 1


# ---- rules of the audit


def test_broken_pairs_are_dropped_and_listed_with_their_reason():
    clean, audit = audit_of(
        ("fine", "well", "1"),
        ("two", " <rewritten question> \n", "2"),
        ("three", "drei", None),
        ("four", "vier", "  "),
        ("five", "\n", "5"),
    )
    assert clean["id"].tolist() == [0]
    assert audit.counts["placeholder_rewrites"] == 1
    assert audit.counts["empty_answers"] == 2
    assert audit.counts["empty_questions"] == 1
    assert (audit.counts["pairs"], audit.counts["dropped"], audit.counts["kept"]) == (5, 4, 1)
    reasons = audit.dropped.groupby("reason")["id"].apply(list).to_dict()
    assert reasons == {"placeholder_rewrites": [1], "empty_answers": [2, 3], "empty_questions": [4]}


def test_a_rewrite_that_only_mentions_the_template_stays():
    clean, audit = audit_of(("q", "What is the <rewritten question> about?", "1"))
    assert len(clean) == 1 and audit.counts["placeholder_rewrites"] == 0


def test_damage_is_repaired_in_both_views_and_counted_apart():
    clean, audit = audit_of(
        ("is \frac{m}{n} it", "plain", " 7 "),
        ("one", "gives \frac{m}{n}", "2"),
        ("2 \times 3", "six", "6"),
        ("a", "b", "c"),
    )
    assert clean["question"].tolist() == ["is \\frac{m}{n} it", "one", "2 \\times 3", "a"]
    assert clean["rephrased"].tolist()[1] == "gives \\frac{m}{n}" and clean["answer"].tolist()[0] == "7"
    found = [audit.counts[key] for key in ("broken_frac_original", "broken_frac_rephrased", "other_latex_damage")]
    assert found == [1, 1, 1] and audit.counts["answer_whitespace"] == 1
    assert audit.counts["repaired"] == 3
    assert sorted(set(audit.repaired["id"])) == [0, 1, 2]


def test_control_characters_are_counted_not_guessed_at():
    clean, audit = audit_of(("fi\x0cnd x", "b", "1"))
    assert clean["question"].tolist() == ["fi\x0cnd x"] and audit.counts["control_characters"] == 1


def test_equal_rewrites_are_kept_and_visible():
    clean, audit = audit_of(("Find $x$.", "Find $x$.", "1"), ("Find y", "find $y$", "2"), ("Find z", "Seek z", "3"))
    assert len(clean) == 3
    assert (audit.counts["rewrite_identical"], audit.counts["rewrite_same_normalised"]) == (1, 2)
    assert len(audit_of(("a", "a", "1"), ("b", "c", "2"), drop=["rewrite_identical"])[0]) == 1


def test_duplicates_and_conflicts_by_two_normalisations():
    pairs = [
        ("sin(60)", "a", "1"),
        ("sin(-60)", "b", "2"),  # the same only once signs are gone
        ("Find $u$.", "c", "3"),
        ("find \\(u\\)", "d", "4"),  # the same in other type, other answer
        ("Find $v$.", "e", "5"),
        ("Find v", "e", "5"),
        ("alone", "f", "6"),
    ]
    clean, audit = audit_of(*pairs)
    counts = audit.counts
    assert len(clean) == 7
    assert (counts["duplicate_questions"], counts["duplicate_groups"], counts["duplicate_later_copies"]) == (6, 3, 3)
    assert counts["duplicate_conflicts"] == 2
    assert (counts["typeset_duplicates"], counts["typeset_duplicate_conflicts"]) == (4, 1)
    assert counts["duplicate_rewrites"] == 2
    assert audit_of(*pairs, drop=["duplicate_later_copies"])[0]["id"].tolist() == [0, 2, 4, 6]
    assert audit_of(*pairs, drop=["typeset_duplicate_conflicts"])[0]["id"].tolist() == [0, 1, 4, 5, 6]


def test_counted_only():
    clean, audit = audit_of(
        ("draw [asy]dot(A);[/asy] with 2 and 2", "no drawing here, but a 2", "1"),
        ("short", "a rewrite with more than three times the characters", "2"),
        ("a question with more than three times the characters", "short", "3"),
        ("abc", "nine long", "3"),  # three times the characters, not more
        ("long nine", "def", "3"),
        ("see http://a.b of 1 The answer is in the form k, find k.", "see 1 http://a.b, a picture", "4"),
        ("keep [asy]dot(A);[/asy]", "keep [asy]dot(A);[/asy] here", "5"),
    )
    wanted = {"diagrams": 2, "diagrams_lost": 1, "digits_differ": 1, "rewrite_3x_longer": 1, "rewrite_3x_shorter": 1}
    wanted |= {"image_links": 1, "answer_form_suffix": 1}
    assert {key: audit.counts[key] for key in wanted} == wanted and len(clean) == 7


def test_overlap_counts_questions_rows_and_equal_answers_apart():
    benchmark = pd.DataFrame({"question": ["Find $x$!", "Odds?", "Else"], "answer": ["142.0", "1/2", "0"]})
    pairs = [
        ("find x", "a", "142"),
        ("Find x", "b", "3"),
        ("Odds? The answer is in the form m/n, find m+n.", "c", "3"),
        ("else", "d", "1"),
    ]
    _, audit = audit_of(*pairs, benchmarks={"amc": benchmark})
    keys = ("", "_rows", "_equal_gold", "_stripped", "_stripped_rows")
    assert [audit.counts[f"overlap_amc{key}"] for key in keys] == [2, 3, 1, 3, 4]
    assert audit_of(*pairs, benchmarks={"amc": benchmark}, drop=["overlap_amc"])[0].empty


def test_an_absent_benchmark_is_not_checked_never_zero():
    _, audit = audit_of(("a", "b", "1"), benchmarks={"amc": pd.DataFrame({"question": ["z"], "answer": ["1"]})})
    assert audit.counts["overlap_amc"] == 0
    assert "overlap_math500" not in audit.counts and "overlap_math500" in audit.not_checked
    table = audit.to_frame()
    assert table.loc["overlap_math500", "found"] == "not checked"
    assert table.loc["overlap_math500", "agrees"] is None


def test_unknown_or_unchecked_reasons_to_drop_are_refused():
    with pytest.raises(ValueError, match="placeholder_rewrites"):
        audit_of(("a", "b", "1"), drop=["placeholders"])
    with pytest.raises(ValueError, match="not checked"):
        audit_of(("a", "b", "1"), drop=["overlap_amc"])


def test_table_compares_with_the_earlier_count_and_explains():
    audit = Audit("dapo", {"placeholder_rewrites": 45, "broken_frac_original": 602, "digits_differ": 5202, "kept": 9})
    table = audit.to_frame()
    assert table.loc["placeholder_rewrites", ["expected", "agrees"]].tolist() == [45, True]
    assert table.loc["broken_frac_original", ["expected", "agrees"]].tolist() == [633, False]
    assert "page break" in table.loc["broken_frac_original", "remark"]
    assert table.loc["digits_differ", ["expected", "agrees"]].tolist() == ["5200-5213", True]
    assert table.loc["kept", "agrees"] is None


def test_audit_is_saved_whole(tmp_path):
    _, audit = audit_of(("a", "<rewritten question>", "1"), ("c", "d \frac{1}{2}", "2"))
    audit.save(tmp_path / "new")
    saved = json.loads((tmp_path / "new" / "audit.json").read_text())
    assert saved["counts"] == audit.counts and saved["not_checked"] == audit.not_checked
    assert {(line["id"], line["reason"]) for line in saved["rows"]} == {
        (0, "placeholder_rewrites"),
        (1, "broken_frac_rephrased"),
    }
    lines = list(csv.DictReader((tmp_path / "new" / "audit.csv").open()))
    assert {line["count"]: line["found"] for line in lines}["placeholder_rewrites"] == "1"
    assert len(list(csv.DictReader((tmp_path / "new" / "audit_rows.csv").open()))) == len(audit.rows)
    assert len(list((tmp_path / "new").iterdir())) == 3


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "audit.json"
    path.write_text("old")

    def fail(partial):
        partial.write_text("half")
        raise OSError("disk full")

    with pytest.raises(OSError):
        data.write_atomically(path, fail)
    assert path.read_text() == "old" and list(tmp_path.iterdir()) == [path]


def test_an_open_reader_keeps_the_old_file(tmp_path):
    path = tmp_path / "audit.json"
    path.write_text("old")
    with path.open() as reader:
        data.write_atomically(path, lambda partial: partial.write_text("new"))
        assert reader.read() == "old" and path.read_text() == "new"


def test_detail_shows_the_damaged_place():
    _, audit = audit_of(("word " * 100 + "is \frac{m}{n}", "b", "1"))
    assert "\\x0crac{m}" in audit.repaired["detail"].iloc[0]


# ---- loading


def test_views_are_joined_on_index_not_on_position(tmp_path):
    original = [row(7, "seven", "7", level="Hard"), row(3, "three", "3", level="Easy")]
    rewrite = [row(3, "drei", "3", level="Easy"), row(7, "sieben", "7", level="Hard")]
    pairs, audit = load_pairs("open-rs", write_set(tmp_path, original, rewrite, "open-rs"))
    assert pairs.column_names == ["id", "question", "rephrased", "answer", "level"]
    assert pairs[:] == {
        "id": [7, 3],
        "question": ["seven", "three"],
        "rephrased": ["sieben", "drei"],
        "answer": ["7", "3"],
        "level": ["Hard", "Easy"],
    }
    assert audit.counts["rows_original"] == audit.counts["rows_rewrite"] == audit.counts["kept"] == 2
    assert all(type(value) is int for value in audit.counts.values())
    assert set(audit.files) == {"train_original.parquet", "train_rewrite_Qwen3-32B.parquet"}


def test_the_sets_own_folder_will_do_and_another_sets_folder_will_not(tmp_path):
    write_pairs(tmp_path, ("a", "b", "1"), name="math")
    assert load_pairs("math", tmp_path / "math")[0]["question"] == ["a"]
    with pytest.raises(DataError, match="another set"):
        load_pairs("dapo", tmp_path / "math")


def test_amc_is_the_test_split(tmp_path):
    write_set(tmp_path, [row(0, "a", "142.0")], [row(0, "b", "142.0")], "AMC-TTT", "test")
    assert load_pairs("amc", tmp_path)[0]["answer"] == ["142.0"]


def test_lab_and_unknown_sets_name_the_way_out():
    with pytest.raises(DataError, match="corelib.lab"):
        load_pairs("lab")
    with pytest.raises(DataError, match="open-rs, math, dapo, amc"):
        load_pairs("openrs")
    assert issubclass(DataError, ValueError)


def test_missing_folder_and_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such folder"):
        load_pairs("math", tmp_path / "nowhere")
    with pytest.raises(DataError, match="0 files train_original.*holds nothing"):
        load_pairs("math", tmp_path)


def test_unreadable_file_is_named(tmp_path):
    write_pairs(tmp_path, ("a", "b", "1"))
    (tmp_path / "math" / "train_rewrite_Qwen3-32B.parquet").write_bytes(b"version https://git-lfs.github.com/spec/v1")
    with pytest.raises(DataError, match="train_rewrite_Qwen3-32B.parquet: cannot be read as parquet"):
        load_pairs("math", tmp_path)


def test_a_file_without_rows_is_an_error(tmp_path):
    write_pairs(tmp_path, ("a", "b", "1"))
    path = tmp_path / "math" / "train_original.parquet"
    pq.write_table(pq.read_table(path).slice(0, 0), path)
    with pytest.raises(DataError, match="train_original.parquet: holds no rows"):
        load_pairs("math", tmp_path)


def test_missing_column_is_named_with_the_file(tmp_path):
    write_pairs(tmp_path, ("a", "b", "1"))
    path = tmp_path / "math" / "train_original.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["extra_info"]), path)
    with pytest.raises(DataError, match="train_original.parquet: column 'extra_info' is missing.*prompt, reward_model"):
        load_pairs("math", tmp_path)


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (row(None, "b", "2"), r"train_original.parquet: row 1: column extra_info.index is None"),
        (row(1, "b", "2") | {"prompt": []}, r"row 1: column prompt holds 0 user messages"),
        (row(1, "b", "2") | {"prompt": None}, r"row 1: column prompt holds 0 user messages"),
        (row(1, "b", "2") | {"reward_model": None}, r"row 1: column reward_model.ground_truth is None"),
        (row(0, "b", "2"), r"row 1: column extra_info.index repeats 0"),
    ],
)
def test_a_broken_row_is_named(tmp_path, broken, message):
    write_set(tmp_path, [row(0, "a", "1"), broken], [row(0, "c", "1"), row(1, "d", "2")])
    with pytest.raises(DataError, match=message):
        load_pairs("math", tmp_path)


def test_an_index_in_one_file_only_is_an_error_naming_the_other(tmp_path):
    write_set(tmp_path, [row(0, "a", "1"), row(5, "b", "2")], [row(0, "c", "1")])
    with pytest.raises(
        DataError, match=r"rewrite_Qwen3-32B.parquet: extra_info.index 5 is missing \(1 in all\); row 1"
    ):
        load_pairs("math", tmp_path)
    write_set(tmp_path, [row(0, "a", "1")], [row(0, "c", "1"), row(6, "d", "2")])
    with pytest.raises(DataError, match="train_original.parquet: extra_info.index 6 is missing"):
        load_pairs("math", tmp_path)


def test_different_answers_for_one_index_are_an_error(tmp_path):
    write_set(tmp_path, [row(0, "a", "1"), row(1, "b", "2")], [row(1, "d", "3"), row(0, "c", "1")])
    with pytest.raises(DataError, match=r"rewrite.*row 0: column reward_model.ground_truth is '3'.*index 1, but '2'"):
        load_pairs("math", tmp_path)


def test_relative_folders_are_found_from_the_repository(tmp_path, monkeypatch):
    write_pairs(tmp_path / "repo" / "data", ("a", "b", "1"))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr(data, "ROOT", tmp_path / "repo")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(load_pairs("math", "data")[0]) == 1


def test_benchmarks_folder_is_searched(tmp_path):
    write_pairs(tmp_path / "train", ("Find x", "b", "142"))
    (tmp_path / "bench" / "amc").mkdir(parents=True)
    items = [{"prompt": "find $x$", "answer": "142.0", "id": "0"}]
    (tmp_path / "bench" / "amc" / "amc83_ttrl_test.json").write_text(json.dumps(items))
    _, audit = load_pairs("math", tmp_path / "train", benchmarks=tmp_path / "bench")
    assert audit.counts["overlap_amc"] == audit.counts["overlap_amc_equal_gold"] == 1
    assert "overlap_math_test" in audit.not_checked
    with pytest.raises(DataError, match="no benchmark set"):
        load_pairs("math", tmp_path / "train", benchmarks=tmp_path / "train")


# ---- the Hub, replaced: the real one was not reachable where this was written


def fake_hub(monkeypatch, files):
    """files: name in the repository -> list of rows; returns the list of load_dataset calls."""
    calls = []

    class Api:
        def dataset_info(self, repo_id):
            return SimpleNamespace(sha="abc123", siblings=[SimpleNamespace(rfilename=name) for name in files])

    def load_dataset(path, name=None, data_files=None, split=None, revision=None):
        calls.append((path, data_files, split, revision))
        return datasets.Dataset.from_list(files[data_files])

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return calls


def test_hub_files_are_found_by_name_and_the_revision_is_recorded(monkeypatch):
    files = {"README.md": [], "data/train.parquet": [], "data/train_original.parquet": [row(0, "a", "1")]}
    files |= {"data/train_rewrite_Qwen3-32B.parquet": [row(0, "b", "1")], "data/test_original.parquet": []}
    calls = fake_hub(monkeypatch, files)
    pairs, audit = load_pairs("dapo")
    assert pairs[:] == {"id": [0], "question": ["a"], "rephrased": ["b"], "answer": ["1"]}
    hub_id = "TMLR-Group-HF/Co-rewarding-RephrasedDAPO-14k"
    assert calls == [
        (hub_id, "data/train_original.parquet", "train", "abc123"),
        (hub_id, "data/train_rewrite_Qwen3-32B.parquet", "train", "abc123"),
    ]
    assert audit.files == {hub_id: "abc123"}


def test_hub_without_the_two_files_lists_what_is_there(monkeypatch):
    fake_hub(monkeypatch, {"train_original.parquet": [row(0, "a", "1")], "notes.txt": []})
    with pytest.raises(DataError, match="0 parquet files named rewrite or rephrase.*notes.txt"):
        load_pairs("math", "hub")


def test_an_unreachable_hub_points_to_source(monkeypatch):
    class Api:
        def dataset_info(self, repo_id):
            raise RuntimeError("no route")

    def load_dataset(*args, **kwargs):
        raise RuntimeError("no route")

    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(DataError, match="Co-rewarding-RephrasedMATH: the Hub does not answer.*give source"):
        load_pairs("math", "")
    with pytest.raises(DataError, match="MATH-lighteval: the Hub does not answer.*give source"):
        load_problems("math-test")
    with pytest.raises(DataError, match="not on the Hub"):
        load_pairs("amc")


def test_problems_from_the_hub_take_the_last_box_of_a_solution(monkeypatch):
    def load_dataset(path, name=None, split=None):
        assert (path, name, split) == ("DigitalLearningGmbH/MATH-lighteval", "default", "test")
        return datasets.Dataset.from_list(
            [{"problem": "p", "solution": "so $\\boxed{1}$, thus $\\boxed{\\frac{1}{2}}$."}]
        )

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert load_problems("math-test")[:] == {"id": ["0"], "question": ["p"], "answer": ["\\frac{1}{2}"]}


# ---- held-out problems, prompt, length, prepared files


def test_problem_files_of_each_kind(tmp_path):
    write_set(tmp_path, [row(4, "q", "5")], [row(4, "r", "5")])
    (tmp_path / "math" / "train_original.parquet").rename(tmp_path / "math" / "test.parquet")
    assert load_problems("math-test", tmp_path)[:] == {"id": ["4"], "question": ["q"], "answer": ["5"]}
    assert load_problems("math-test", tmp_path / "math")["answer"] == ["5"]
    (tmp_path / "gsm8k").mkdir()
    line = {"question": "How much?", "answer": "2*600 = <<2*600=1200>>1200\n#### 1,200"}
    (tmp_path / "gsm8k" / "test.jsonl").write_text(json.dumps(line) + "\n")
    assert load_problems("gsm8k", tmp_path)[:] == {"id": ["0"], "question": ["How much?"], "answer": ["1200"]}


def test_problem_errors_name_file_row_and_column(tmp_path):
    with pytest.raises(DataError, match="math-test, math500"):
        load_problems("minerva", tmp_path)
    with pytest.raises(DataError, match="needed for math500"):
        load_problems("math500", tmp_path)
    (tmp_path / "gsm8k").mkdir()
    path = tmp_path / "gsm8k" / "test.jsonl"
    path.write_text('{"question": "a", "answer": "#### 1"}\n{"question": "b"}\n')
    with pytest.raises(DataError, match="test.jsonl: row 1: no column expected_answer or answer or solution"):
        load_problems("gsm8k", tmp_path)
    path.write_text("{half")
    with pytest.raises(DataError, match="test.jsonl: cannot be read as jsonl"):
        load_problems("gsm8k", tmp_path)


def test_prompt_is_the_released_one():
    system = "Let's think step by step and output the final answer within \\boxed{}."
    assert data.to_prompt("1+1?") == [{"role": "system", "content": system}, {"role": "user", "content": "1+1?"}]


@pytest.fixture(scope="module")
def word_tokenizer():
    """One token a word, with a chat template that adds <s> and the generation prompt."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]")
    fast.chat_template = (
        "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}"
        "{% if add_generation_prompt %}assistant{% endif %}"
    )
    return fast


def test_a_pair_with_one_overlong_view_is_dropped_and_counted(tmp_path, word_tokenizer):
    source = write_pairs(tmp_path, ("a b c", "a b c", "1"), ("a b c", "a b c d", "2"), ("a b c d", "a b c", "3"))
    pairs, audit = load_pairs("math", source)
    overhead = 3 + len(SYSTEM_PROMPT.split())  # the words system, user, assistant, and the instruction
    kept = data.length_filter(pairs, word_tokenizer, overhead + 3, audit)
    assert kept["id"] == [0]
    assert (audit.counts["prompts_too_long"], audit.counts["dropped"], audit.counts["kept"]) == (2, 2, 1)
    assert audit.dropped["id"].tolist() == [1, 2] and audit.dropped["detail"].iloc[0] == f"{overhead + 4} tokens"
    assert len(data.length_filter(pairs, word_tokenizer)) == 3


def test_prepared_pairs_come_back_as_they_were(tmp_path):
    pairs, _ = load_pairs("math", write_pairs(tmp_path, ("a", "b", "1"), ("c", "d", "2")))
    path = data.save_pairs(pairs, tmp_path / "prepared" / "math.parquet")
    assert data.read_pairs(path)[:] == pairs[:]
    assert [file.name for file in path.parent.iterdir()] == ["math.parquet"]
    pq.write_table(pa.table({"id": [1]}), path)
    with pytest.raises(DataError, match="answer.*notebook 01"):
        data.read_pairs(path)


# ---- the released data


@pytest.fixture(scope="module")
def released():
    """Name -> (pairs, audit), and under "seconds" the time for the three training sets."""
    loaded, start = {}, time.perf_counter()
    for name in ("open-rs", "math", "dapo"):
        loaded[name] = load_pairs(name, RELEASED / "corew_train", benchmarks=RELEASED)
    loaded["seconds"] = time.perf_counter() - start
    return loaded


@needs_released_data
@pytest.mark.parametrize(
    ("name", "kept", "differ"),
    [
        ("open-rs", 6986, {"broken_frac_original": 2, "duplicate_questions": 449, "duplicate_groups": 216}
         | {"overlap_math_test_equal_gold": 254}),
        ("math", 7479, {"overlap_math_test_equal_gold": 5}),
        ("dapo", 14064, {"broken_frac_original": 602, "answer_form_suffix": 1520, "overlap_math_test": 975}
         | {"overlap_math_test_rows": 1023, "overlap_math_test_equal_gold": 974, "overlap_math_test_stripped": 1255}),
    ],
)  # fmt: skip
def test_released_counts(released, name, kept, differ):
    pairs, audit = released[name]
    table = audit.to_frame()
    assert len(pairs) == audit.counts["kept"] == kept
    assert set(EXPECTED[name]) <= set(table.index), "an expected count was not made"
    assert table.loc[table["agrees"].eq(False), "found"].to_dict() == differ
    assert (table.loc[list(differ), "remark"] != "").all(), "a difference without an explanation"
    assert not audit.not_checked
    assert not any("\f" + "rac" in text for view in ("question", "rephrased") for text in pairs[view])


@needs_released_data
def test_released_placeholders_are_the_known_rows(released):
    rows = released["open-rs"][1].rows
    found = rows.loc[rows["reason"] == "placeholder_rewrites", "id"].tolist()
    assert found == [208, 277, 906, 1041, 1894, 2575, 2592, 2603, 2914, 5250, 5636, 6341]


@needs_released_data
def test_released_sets_load_within_a_minute(released):
    assert released["seconds"] < 60


@needs_released_data
def test_released_amc_and_held_out_sets():
    pairs, audit = load_pairs("amc", RELEASED / "corew_train", benchmarks=RELEASED)
    assert len(pairs) == audit.counts["overlap_amc_equal_gold"] == 83
    sizes = {name: len(load_problems(name, RELEASED)) for name in data.PROBLEM_FILES}
    assert sizes == {"math-test": 5000, "math500": 500, "amc": 83, "aime24": 30, "aime25": 30, "gsm8k": 1319}
    assert load_problems("amc", RELEASED)["answer"][0] == "142.0"
