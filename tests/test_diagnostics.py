"""Measures against values worked by hand, the alarm on synthetic runs whose fate is known by construction."""

import json
import math
import threading
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainerControl

from corelib import alarm_callback, diagnostics, probe, runs, saving, story
from corelib.alarm import RULE, Alarm, first_fired
from corelib.alarm_callback import AlarmCallback
from corelib.alarm_study import fate


def run(steps=80, seed=0, **late):
    """A run that learns, with noise like the lab's; `late`: column -> function of the step that replaces it."""
    t, noise = np.arange(1, steps + 1), np.random.default_rng(seed)
    learnt = 1 - np.exp(-t / 15)
    frame = pd.DataFrame(
        {
            "step": t,
            "reward": 0.35 + 0.45 * learnt,
            "answers/support": 0.42 + 0.42 * learnt,
            "answers/none": 0.18 * (1 - learnt),
            "length/clipped": 0.17 * (1 - learnt),
            "answers/distinct_group": 0.48 - 0.24 * learnt,
            "answers/top_share": 0.15 + 0 * t,
            "entropy": 0.19 - 0.14 * learnt,
            "length/mean": 13.5 + 3 * learnt,
            "gt/accuracy": 0.35 + 0.45 * learnt,
        }
    )
    for column, value in late.items():
        frame[column.replace("__", "/")] = [value(s) for s in t]
    for column in frame.columns.drop("step"):
        frame[column] *= 1 + 0.01 * noise.standard_normal(steps)
    return frame


def collapses_at_40(s):
    return 0.7 if s <= 40 else 0.1


def validated(frame, settled, keep=lambda s: s):
    """With a validation every ten steps."""
    at = frame["step"].where(frame["step"] % 10 == 0)
    return frame.assign(**{"probe/settled": at.map(settled, "ignore"), "probe/keep": at.map(keep, "ignore")})


FATES = {
    "silent": run(answers__none=lambda s: 0.05 if s <= 30 else 0.9, gt__accuracy=collapses_at_40),
    "drifting": run(
        entropy=lambda s: 0.2 + 0.004 * s,
        answers__distinct_group=lambda s: 0.48 + 0.002 * s,
        gt__accuracy=collapses_at_40,
    ),
    "constant": run(answers__top_share=lambda s: 0.15 if s <= 20 else 0.9),
    "forgetting": validated(run(), lambda s: 0.95 if s <= 40 else 0.6, keep=lambda s: min(s, 30)),
}
WELL = validated(run(), lambda s: 0.9)


@pytest.mark.parametrize("name", FATES)
def test_each_condition_fires_on_its_own_failure_and_says_why(name):
    found = diagnostics.alarm(FATES[name])
    assert first_fired(diagnostics.evidence(FATES[name]))[1] == [name]
    assert 10 <= found.step <= 60
    assert len(found.reasons) == 1 and any(c.isdigit() for c in found.reasons[0])


def test_the_evidence_is_that_worked_by_hand():
    # window 5, rise 0.3: a step from 0.1 to 0.7 shows 0.12 k / 0.3 after k steps, so it fires at the third
    frame = pd.DataFrame({"step": range(1, 31), "answers/none": [0.1] * 20 + [0.7] * 10})
    silent = diagnostics.evidence(frame)["silent"]
    assert silent.loc[21:26].tolist() == pytest.approx([0.4, 0.8, 1.2, 1.6, 2.0, 2.0])
    assert diagnostics.alarm(frame).step == 23
    assert diagnostics.alarm(frame).reasons == ("46% of the rollouts give no answer, up from 10%",)
    # entropy 0.1 for the first ten steps, 0.12 later: 20 % over the beginning when five steps are, 10 % are 1
    unsure = pd.DataFrame({"step": range(1, 31), "entropy": [0.1] * 10 + [0.12] * 20, "answers/distinct_group": [0.4] * 10 + [0.5] * 20})  # fmt: skip
    assert diagnostics.evidence(unsure)["drifting"].loc[[10, 14, 15]].tolist() == pytest.approx([0, 1.6, 2.0])
    assert diagnostics.alarm(unsure.drop(columns="entropy")).step is None
    assert (
        diagnostics.alarm(unsure.assign(**{"answers/distinct_group": 0.4})).step is None
    )  # one of the two is no drift
    # of the settled answers 20 % lost at step 40, 30 % at 50; 25 % fire, at once, until the next validation
    lost = validated(frame.assign(**{"answers/none": 0.0}), lambda s: 0.8)
    assert diagnostics.evidence(lost)["forgetting"].loc[[9, 10, 19]].tolist() == pytest.approx([0, 0.8, 0.8])
    assert diagnostics.alarm(lost).step is None
    assert diagnostics.alarm(validated(frame.iloc[:20], lambda s: 0.8 if s < 20 else 0.7)).step == 20


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_raises_no_alarm(seed):
    assert diagnostics.alarm(run(200, seed)) == diagnostics.Alarm(None, ())
    assert diagnostics.alarm(validated(run(200, seed), lambda s: 0.85)).step is None


@pytest.mark.parametrize("frame", [*FATES.values(), WELL], ids=[*FATES, "healthy"])
def test_the_alarm_never_sees_the_future(frame):
    whole, strength = diagnostics.alarm(frame), diagnostics.evidence(frame)
    near = [] if whole.step is None else range(whole.step - 2, whole.step + 3)
    for t in sorted({*range(1, len(frame), 9), *near}):
        sofar = frame[frame["step"] <= t]
        pd.testing.assert_frame_equal(diagnostics.evidence(sofar), strength.loc[:t])
        fired = whole.step is not None and whole.step <= t
        assert diagnostics.alarm(sofar) == (whole if fired else diagnostics.Alarm(None))
        if fired:  # then the choice is made, too
            assert diagnostics.keep(sofar) == diagnostics.keep(frame)


def test_the_alarm_sees_no_truth_method_or_seed():
    for frame in (*FATES.values(), WELL):
        seen = diagnostics.alarm(frame)
        shuffled = frame.assign(**{"gt/accuracy": frame["gt/accuracy"].sample(frac=1, random_state=1).to_numpy()})
        shuffled = shuffled.assign(**{"gt/label_accuracy": 0.0, "method": "majority_voting", "seed": 3})
        assert diagnostics.alarm(shuffled) == seen
        assert diagnostics.alarm(frame.drop(columns="gt/accuracy")) == seen
        assert diagnostics.keep(shuffled) == diagnostics.keep(frame)


def test_one_bad_step_is_no_collapse():
    for length, expected in ((1, None), (12, "fires")):
        frame = run(answers__none=lambda s, n=length: 0.9 if 40 < s <= 40 + n else 0.03)
        assert (diagnostics.alarm(frame).step is not None) == (expected is not None)


def test_scale_makes_it_deaf():
    frame = run(answers__none=lambda s: 0.05 if s <= 30 else 0.5)  # evidence 0.45 / 0.3 and more: 0.03 was the lowest
    assert diagnostics.alarm(frame, scale=1.3).step is not None
    assert diagnostics.alarm(frame, scale=1.7).step is None


def test_metrics_without_signals_are_refused_and_an_unstarted_run_is_not():
    with pytest.raises(ValueError, match="none of the alarm's signals"):
        diagnostics.alarm(pd.DataFrame({"step": [1, 2], "loss": [0.0, 0.0]}))
    with pytest.raises(ValueError, match="no column `step`"):
        diagnostics.alarm(pd.DataFrame({"reward": [1.0]}))
    assert diagnostics.alarm(pd.DataFrame({"step": [0], "gt/validation": [0.3]})).step is None
    for column in ("step", "answers/none"):
        with pytest.raises(ValueError, match=f"column {column} of these metrics holds text"):
            diagnostics.alarm(FATES["silent"].assign(**{column: "1"}))
    with pytest.raises(ValueError, match="scale is 0"):
        diagnostics.alarm(FATES["silent"], scale=0)


def test_keep_is_the_consensus_of_the_validations_before_the_alarm():
    assert diagnostics.keep(WELL) == 80  # each validation agreed best when it was made
    assert diagnostics.keep(FATES["forgetting"]) == 30  # then 30 agreed best, at 40 and later too
    # the last two name 60 and 20: when 80 was made it was not the best, and 60 was not when it was made
    assert diagnostics.keep(validated(run(), lambda s: 0.9, keep=lambda s: {70: 60, 80: 20}.get(s, min(s, 50)))) == 50
    silent = FATES["silent"]  # answers vanish after step 30; the alarm goes off before 40
    assert 30 < diagnostics.alarm(silent).step < 40
    assert diagnostics.keep(validated(silent, lambda s: 0.9)) == 30  # 40 to 80 agreed best, too, after the alarm
    at_once = validated(silent.assign(**{"answers/none": [0.05] * 7 + [0.9] * 73}), lambda s: 0.9)
    assert (
        diagnostics.alarm(at_once).step == 9 and diagnostics.keep(at_once) == 0
    )  # the first validation comes too late
    assert diagnostics.keep(silent) is None  # no validation, nothing to choose from
    fires = validated(run(), lambda s: 0.95 if s <= 40 else 0.6)  # at 50, by the validation of that very step
    assert diagnostics.alarm(fires).step == 50 and diagnostics.keep(fires) == 40
    assert diagnostics.keep(fires, scale=9.0) == 80  # an alarm that deaf is silent
    before = pd.DataFrame({"step": [0], "probe/keep": [0]})
    assert diagnostics.keep(pd.concat([before, silent])) == 0 and diagnostics.keep(before) == 0


def test_a_run_holds_what_keep_names(tmp_path, monkeypatch):
    """Each row is written, then the callback asked, as in training; weights of no other step than `keep`'s may be there."""
    monkeypatch.setattr(
        alarm_callback,
        "save_weights",
        lambda trainer, folder, said: (folder.mkdir(exist_ok=True), runs.write_json(folder / "validation.json", said)),
    )
    doubts = validated(FATES["silent"], lambda s: 0.9, keep=lambda s: {20: 10}.get(s, s))
    for name, frame in {
        **FATES,
        "doubts": doubts,
        "well": WELL,
        "silent": validated(FATES["silent"], lambda s: 0.9),
    }.items():
        folder = tmp_path / name
        folder.mkdir()
        for start in (1, 36):  # as two processes of a run that was stopped
            callback = AlarmCallback(folder, "warn", lambda _: None)
            for row in frame[frame["step"].between(start, 35 if start == 1 else 80)].to_dict("records"):
                runs.append_metrics(folder, {k: v for k, v in row.items() if v == v})
                state = SimpleNamespace(global_step=row["step"], is_world_process_zero=True)
                callback.on_log(SimpleNamespace(world_size=1), state, TrainerControl(), logs={"loss": 0.0})
                kept = diagnostics.keep(runs.load_metrics(folder))
                assert (runs.read_json(folder / "kept" / "validation.json") or {"step": 0})["step"] == (kept or 0)
    assert diagnostics.keep(doubts) == 30 and runs.read_json(tmp_path / "doubts" / "kept" / "validation.json") == {
        "step": 30
    }


def test_collapse_is_half_of_the_peak_of_the_ten_step_mean():
    accuracy = [0.8] * 20 + [0.2] * 20
    frame = pd.DataFrame({"step": range(1, 41), "gt/accuracy": accuracy})
    # k bad steps in the window: 0.8 - 0.06 k < 0.4 from k = 7 on
    assert diagnostics.collapse_step(frame) == 27
    assert diagnostics.collapse_step(frame[frame["step"] <= 26]) is None
    assert diagnostics.collapse_step(frame[::-1]) == 27
    with pytest.raises(ValueError, match="no gt/accuracy"):
        diagnostics.collapse_step(frame.drop(columns="gt/accuracy"))


def test_evaluation_counts_leads_and_failures():
    sees = run(answers__none=lambda s: 0.05 if s <= 30 else 0.9, gt__accuracy=collapses_at_40)
    late = run(answers__none=lambda s: 0.05 if s <= 60 else 0.9, gt__accuracy=collapses_at_40)
    unseen = run(gt__accuracy=collapses_at_40)
    false = FATES["constant"]
    table = diagnostics.evaluate_alarm({"sees": sees, "late": late, "unseen": unseen, "false": false, "well": run()})
    assert table.loc["detected", ["count", "of", "note"]].tolist() == [2, 3, "unseen"]
    assert table.loc["in time", ["count", "of", "note"]].tolist() == [1, 3, "late"]
    assert table.loc["false alarms", ["count", "of", "note"]].tolist() == [1, 2, "false"]
    # Wilson (1927) for 1 of 2, worked by hand: centre 0.5, half 1.96 / (1 + 1.96^2 / 2) * sqrt(1/8 + 1.96^2 / 16)
    half = 1.96 / (1 + 1.96**2 / 2) * math.sqrt(0.25 / 2 + 1.96**2 / 16)
    assert table.loc["false alarms", ["low", "high"]].tolist() == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    rows = diagnostics.judge_runs({"sees": sees}).iloc[0]
    assert rows["lead"] == rows["collapse"] - rows["alarm"] > 0
    assert math.isnan(rows["kept"]) and math.isnan(rows["kept_share"])  # no validation, so nothing was kept
    assert table.loc["kept", "of"] == 0
    wrong = story.failures(diagnostics.judge_runs({"sees": sees, "late": late, "unseen": unseen, "false": false}))
    assert wrong[["run", "failure"]].to_numpy().tolist() == [["false", "false alarm"], ["late", "late"], ["unseen", "missed"]]  # fmt: skip
    assert wrong["halved at"].isna().tolist() == [True, False, False] and (wrong["left at the end"][1:] < 0.5).all()
    assert table.loc["lead", "of"] == 2 and math.isnan(table.loc["labelled", "median"])


def test_a_long_table_is_as_good_as_a_dict_and_the_labelled_choice_is_compared():
    # rollouts: 0.4 for 20 steps, then 0.8 for 20; the labelled validation liked step 10, the votes step 30
    frame = pd.DataFrame({"step": range(1, 41), "gt/accuracy": [0.4] * 20 + [0.8] * 20, "answers/none": 0.0})
    frame = validated(frame, lambda s: 0.9, keep=lambda s: min(s, 30))
    frame["gt/validation"] = frame["step"].map({10: 0.7, 20: 0.5, 30: 0.6, 40: 0.6})
    long = pd.concat([frame.assign(run="a"), frame.assign(run="b", **{"gt/validation": float("nan")})])
    table = diagnostics.judge_runs(long).set_index("run")
    assert table.loc["a", ["kept", "kept_share", "labelled", "labelled_share"]].tolist() == pytest.approx(
        [30, 1, 10, 0.5]
    )
    assert math.isnan(table.loc["b", "labelled_share"]) and table["last_share"].tolist() == [1, 1]
    found = diagnostics.evaluate_alarm(long)
    assert found.loc["kept", ["count", "of", "median"]].tolist() == [2, 2, 1.0]
    assert found.loc["labelled", ["count", "of", "median"]].tolist() == [0, 1, 0.5]
    with pytest.raises(ValueError, match="no column `run`"):
        diagnostics.judge_runs(frame)
    with pytest.raises(ValueError, match="no runs"):
        diagnostics.evaluate_alarm({})


def test_roc_goes_from_everything_to_nothing():
    pool = {"bad": FATES["silent"], "well": run()}
    table = diagnostics.roc(pool, [0.001, 1.0, 50.0])
    assert table["detected"].tolist() == [1.0, 1.0, 0.0]
    assert table["false_alarms"].tolist() == [1.0, 0.0, 0.0]
    bought = diagnostics.sensitivity(pool, "rise", [0.3, 5.0])
    assert bought["detected"].tolist() == [1, 0]


# Beside each field of the rule stands the range that saw every collapse of the lab in time and nothing else
RANGES = {"window": (3, 10), "start": (5, 15), "rise": (0.2, 0.6), "drift": (0.02, 0.3), "scatter": (0.01, 0.15), "forget": (0.17, 0.4)}  # fmt: skip


@pytest.mark.parametrize("name, low, high", [(name, *ends) for name, ends in RANGES.items()])
def test_every_constant_may_move_within_its_range(name, low, high):
    for value in (low, high):
        rule = replace(RULE, **{name: value})
        assert all(diagnostics.alarm(frame, rule).step is not None for frame in FATES.values())
        assert diagnostics.alarm(run(200), rule).step is None
    assert low < getattr(RULE, name) < high and set(RANGES) == set(vars(RULE))


def votes_of(*answers, support=1.0):
    """A run's probe.json; `answers`: a string a validation, a letter a question, "-" for no answer."""
    labels = [[None if a == "-" else a for a in word] for word in answers]
    return {str(10 * i): {"labels": x, "support": [support] * len(x)} for i, x in enumerate(labels)}


def test_settled_weighs_answers_by_their_support_cubed():
    # 20 questions never change, 10 were answered a, b, b and now a: b had 2/3 of the support, 8/27 of the weight
    votes = votes_of("a" * 30, "a" * 20 + "b" * 10, "a" * 20 + "b" * 10, "a" * 30)
    assert probe.measures(votes, 30)["probe/settled"] == pytest.approx(20 / (20 + 10 * 8 / 27))
    silent = votes_of(*["a" * 30] * 3, "a" * 24 + "b" * 3 + "-" * 3)
    assert probe.measures(silent, 30)["probe/settled"] == pytest.approx(24 / 30)
    unsure = {s: vote | {"support": [1.0] * 24 + [0.5] * 6} for s, vote in silent.items()}
    assert probe.measures(unsure, 30)["probe/settled"] == pytest.approx(24 / (24 + 6 / 8))
    assert "probe/settled" not in probe.measures(silent, 20)  # two validations before
    assert "probe/settled" not in probe.measures(votes_of(*["a" * 29] * 4), 30)  # few questions
    assert probe.measures(votes_of(*["-" * 30] * 4), 30) == {"probe/keep": 30}  # none was ever answered


def test_keep_is_the_validation_that_agrees_best_with_all():
    # with everyone's votes a, b, b, c the habit is b; of the two that gave it the later, unless the earlier was surer
    votes = votes_of("aaaa", "bbbb", "bbbb", "cccc")
    assert probe.measures(votes, 30)["probe/keep"] == 20
    votes["10"]["support"], votes["20"]["support"] = [0.9] * 4, [0.8] * 4
    assert probe.measures(votes, 30)["probe/keep"] == 10
    assert probe.measures(votes_of("--", "--"), 10) == {"probe/keep": 10}


def test_the_probe_never_sees_the_future():
    word = "a" * 10 + "b" * 10 + "c" * 20
    votes = votes_of("abca" * 10, word, word, word, word, "c" * 40)
    for step in range(0, 60, 10):
        sofar = {s: vote for s, vote in votes.items() if int(s) <= step}
        assert probe.measures(votes, step) == probe.measures(sofar, step)
    made = probe.with_probe(pd.DataFrame({"step": range(0, 51), "probe/settled": 7.0}), votes).set_index("step")
    assert 0.45 < made.loc[50, "probe/settled"] < 0.55  # half of the answers are c, at unlike support in the first step
    assert made.loc[50, "probe/keep"] == 40 and math.isnan(made.loc[45, "probe/settled"])
    untouched = pd.DataFrame({"step": [1], "probe/settled": [0.5]})
    assert probe.with_probe(untouched, {}) is untouched


def test_validation_stores_its_votes_and_forgets_those_that_a_resumed_run_makes_again(tmp_path):
    from corelib.callbacks import Validate

    validate = SimpleNamespace(folder=tmp_path, config=SimpleNamespace(answer_equality="equivalent"))
    said = {}
    for step in (0, 10, 20, 30, 40, 30):
        answer = {30: "7", 40: "7"}.get(step, "0.5" if step else "1/2")
        said[step] = Validate._probe(validate, step, [(i, "5" if i else answer, 1.0) for i in range(30)])
    assert said[0] == {"probe/keep": 0} and said[20] == {"probe/keep": 20}
    assert said[30] == {"probe/settled": pytest.approx(29 / 30), "probe/keep": 20}
    stored = runs.read_json(tmp_path / "probe.json")
    assert list(stored) == ["0", "10", "20", "30"] and stored["20"]["labels"][:2] == ["1/2", "5"]
    fewer = Validate._probe(validate, 40, [(i, "5", 1.0) for i in range(29)])  # another source: nothing to compare with
    assert fewer == {"probe/keep": 40} and list(runs.read_json(tmp_path / "probe.json")) == ["40"]


def test_one_answer_keeps_its_first_spelling():
    votes = {
        "0": {"labels": ["1/2", "7", None], "support": [1, 1, 0]},
        "10": {"labels": ["3", "7", "x"], "support": [1, 1, 1]},
    }
    assert probe.one_spelling(["0.5", "7.0", None], votes, "equivalent") == ["1/2", "7", None]
    assert probe.one_spelling(["0.5", "8", "x"], votes, "released") == ["0.5", "8", "x"]
    assert probe.one_spelling(["0.5", None], {}, "equivalent") == ["0.5", None]


def batch(step=1):
    """Two pairs in two views, four rollouts a group; every number below is counted by hand from this table."""
    groups = [
        # pair, view, answers, label, teacher's answers, advantages
        (1, "original", ["5", "5.0", "5", "7"], "5", ["5"] * 4, [0.5, 0.5, 0.5, -1.5]),
        (1, "rephrased", ["5", "5", "5", "5"], "5", ["5"] * 4, [0.0] * 4),
        (2, "original", ["5", "5", None, "8"], "5", ["8"] * 4, [1.0, 1.0, -1.0, -1.0]),
        (2, "rephrased", ["8", "8", "8", None], "8", ["8"] * 4, [0.0] * 4),
    ]
    rows = []
    for pair, view, answers, label, teacher, advantages in groups:
        for a, t, adv in zip(answers, teacher, advantages, strict=True):
            truth = "5" if pair == 1 else "8"
            rows.append({"step": step, "pair_id": pair, "view": view, "prompt": f"q{pair}", "completion": "x x y", "answer": a, "label": label, "truth": truth, "teacher_answer": t, "judge": 0.0, "advantage": adv})  # fmt: skip
    return pd.DataFrame(rows)


def test_rollout_measures_by_hand():
    row = diagnostics.rollout_measures(batch()).loc[1]
    h31 = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))  # 5, 5.0, 5 are one answer
    h21 = -(2 / 3 * math.log(2 / 3) + 1 / 3 * math.log(1 / 3))
    h512 = -(5 / 7 * math.log(5 / 7) + 2 * (1 / 7) * math.log(1 / 7))
    assert row["entropy_group"] == pytest.approx((h31 + h21) / 4)
    assert row["entropy_batch"] == pytest.approx(h512)
    assert row["about_question"] == pytest.approx(h512 - (h31 + h21) / 2)
    assert row["top_answer"] == 5 / 8 and row["top_label"] == 1.0
    assert row["distinct_1"] == pytest.approx(2 / 48) and row["distinct_2"] == pytest.approx(2 / 32)
    assert row["agreement"] == 0.5
    assert row["advantage"] == pytest.approx((3.0 + 4.0) / 16) and row["silent_groups"] == 0.5


def test_a_constant_answer_says_nothing_about_the_question():
    constant = batch().assign(answer="2", label="2")
    row = diagnostics.rollout_measures(constant).loc[1]
    assert row["about_question"] == 0 and row["top_answer"] == row["top_label"] == 1


def test_label_accuracy_by_difficulty():
    table = diagnostics.label_accuracy(batch(), levels={1: "easy", 2: "hard"}).set_index(["level", "view"])
    assert table.loc[("easy", "original"), ["policy", "teacher", "label"]].tolist() == [1, 1, 1]
    assert table.loc[("hard", "original"), ["policy", "teacher", "label"]].tolist() == [0, 1, 0]
    assert table.loc[("hard", "rephrased"), "policy"] == 1
    whole = diagnostics.label_accuracy(batch().drop(columns=["teacher_answer", "label"])).set_index("view")
    assert whole.loc["original", "policy"] == 0.5 and math.isnan(whole.loc["original", "teacher"])


def test_text_measures_by_hand():
    assert diagnostics.repetition("a b c d") == 0.0 and diagnostics.repetition("") == 0.0
    assert diagnostics.repetition("a a a a a a a a", 4) == pytest.approx(4 / 5)
    assert diagnostics.distinct_n(["a a a a"], 1) == 0.25
    assert math.isnan(diagnostics.distinct_n([""], 1))
    assert diagnostics.answer_entropy([None, None]) == 0.0
    with pytest.raises(ValueError, match="lack pair_id"):
        diagnostics.rollout_measures(pd.DataFrame({"step": [1]}))


def test_case_study_shows_the_question_or_a_stand_in():
    frame = pd.concat([batch(1), batch(9)[lambda f: f["pair_id"] == 2]])
    shown = diagnostics.case_study({"gt": frame}, 1, {"gt": [1, 9]})
    assert shown["question"].tolist() == ["q1", "q2"]
    assert shown["answers"].tolist()[1] == "5 x 2, none x 1, 8 x 1"
    with pytest.raises(ValueError, match="stored are"):
        diagnostics.case_study({"gt": frame}, 1, {"gt": [2]})


@pytest.mark.parametrize("missing", [None, float("nan")])
def test_a_missing_completion_is_an_empty_one(missing):
    frame = batch().assign(completion=missing)
    row = diagnostics.rollout_measures(frame).loc[1]
    assert math.isnan(row["distinct_1"]) and row["repetition"] == 0.0
    assert diagnostics.case_study({"gt": frame}, 1, {"gt": [1]})["completion"].tolist() == [""]


@pytest.mark.parametrize("choice, saves, stops", [("warn", False, False), ("save", True, False), ("stop", True, True)])
def test_the_callback_acts_once_also_after_a_resume(tmp_path, choice, saves, stops):
    said, frame = [], FATES["silent"]
    expected = diagnostics.alarm(frame).step
    args = SimpleNamespace(world_size=1)

    def train(first, last):
        callback, acted = AlarmCallback(tmp_path, choice, said.append), []
        for row in frame[frame["step"].between(first, last)].to_dict("records"):
            runs.append_metrics(tmp_path, row)
            control = TrainerControl()
            state = SimpleNamespace(global_step=row["step"], is_world_process_zero=True)
            callback.on_log(args, state, control, logs={"loss": 0.0})
            if control.should_save or control.should_training_stop:
                acted.append((row["step"], control.should_save, control.should_training_stop))
        return acted

    acted = train(1, expected + 3)
    assert acted == ([(expected, saves, stops)] if saves else [])
    assert train(expected + 4, expected + 8) == []
    assert len(said) == 1 and said[0].startswith(f"alarm at step {expected}: ")
    stored = runs.load_metrics(tmp_path)
    assert stored["alarm/step"].dropna().tolist() == [expected]
    assert stored.loc[stored["step"] == expected, "answers/none"].notna().all()


def test_a_run_on_rephrased_questions_alone_is_judged_on_them():
    """.8 for 40 steps, then .1: mean of ten below .4 first at step 46; the other view does not count where both are drawn."""
    steps = pd.DataFrame({"step": range(1, 61), "reward": 0.5, "answers/none": 0.0})
    right = np.where(steps["step"] <= 40, 0.8, 0.1)
    alone = steps.assign(**{"gt/accuracy_rephrased": right})
    for column in ({}, {"gt/accuracy": np.nan}):  # as in a run's folder, and as in the sweep's table
        row = fate(alone.assign(**column))
        assert (row["peak"], row["final"], row["collapsed"], row["collapse"]) == (pytest.approx(0.8), pytest.approx(0.1), True, 46)  # fmt: skip
        assert diagnostics.judge_runs({"run": alone.assign(**column)})["failure"].tolist() == ["missed"]
    assert not fate(alone.assign(**{"gt/accuracy": 0.7}))["collapsed"]
    assert fate(alone[::-1])["final"] == pytest.approx(0.1)
    assert math.isnan(fate(steps)["collapsed"])
    with pytest.raises(ValueError, match="no gt/accuracy"):
        diagnostics.judge_runs({"run": steps})


def test_all_ranks_save_and_stop_after_the_same_step(tmp_path, monkeypatch):
    """Only rank 0 reads the metrics; one that did not hear of the alarm would wait in the next collective for ever."""
    frame, spoken, meeting = validated(FATES["silent"], lambda s: 0.9), {}, threading.Barrier(2, timeout=20)

    def gather(own):  # as accelerate's: every rank's list, one after the other
        spoken[threading.current_thread().name] = own
        meeting.wait()
        both = [word for _, words in sorted(spoken.items()) for word in words]
        meeting.wait()
        return both

    monkeypatch.setattr(alarm_callback, "gather_object", gather)
    rows, saved = frame.to_dict("records"), []
    monkeypatch.setattr(alarm_callback, "save_weights", lambda trainer, folder, said: saved.append(said["step"]))
    acted = {}

    def rank(number):
        callback, control = AlarmCallback(tmp_path, "stop", lambda _: None), TrainerControl()
        for step, upto in ((10, 10), (40, 80), (41, 80)):
            if number == 0:
                (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows[:upto]))
            state = SimpleNamespace(global_step=step, is_world_process_zero=number == 0)
            callback.on_log(SimpleNamespace(world_size=2), state, control, logs={"loss": 0.0})
            acted.setdefault(number, []).append((control.should_save, control.should_training_stop))

    ranks = [threading.Thread(target=rank, args=(n,), name=str(n)) for n in (0, 1)]
    for thread in ranks:
        thread.start()
    for thread in ranks:
        thread.join()
    assert saved == [10, 10]  # both ranks, or the saving hangs
    once = [(False, False), (True, True), (True, True)]
    assert acted == {0: once, 1: once}


def test_the_callback_refuses_an_unknown_choice_and_waits_for_metrics(tmp_path):
    with pytest.raises(ValueError, match="choose one of warn, save, stop"):
        AlarmCallback(tmp_path, "halt")
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    AlarmCallback(tmp_path).on_log(SimpleNamespace(world_size=1), state, TrainerControl(), logs={"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_rule_has_no_method_in_it():
    from corelib.config import METHOD_NAMES

    assert not {name for name in vars(RULE)} & set(METHOD_NAMES)


def test_an_alarm_that_breaks_does_not_end_the_run(tmp_path):
    said = []
    callback = AlarmCallback(tmp_path, "stop", said.append)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "entropy": "low"}\n')
    control, state = TrainerControl(), SimpleNamespace(global_step=1, is_world_process_zero=True)
    for _ in range(2):
        callback.on_log(SimpleNamespace(world_size=1), state, control, logs={"loss": 0.0})
    assert (
        len(said) == 1
        and said[0].startswith("no alarm any more: ValueError: column entropy of these")
        and not control.should_training_stop
    )


def test_weights_chosen_without_labels_are_kept_evaluated_and_published(tiny, tmp_path, monkeypatch):
    from corelib import evaluate_run, publish, train

    monkeypatch.setattr(probe, "measures", lambda votes, step: {"probe/keep": min(step, 2)})
    folder = tmp_path / "run"
    train.train(tiny("gt", steps=3, eval_steps=1, save_steps=1), folder)
    assert diagnostics.keep(runs.load_metrics(folder)) == 2
    assert runs.read_json(folder / "kept" / "validation.json") == {"step": 2}
    assert saving.checkpoint_defect(folder / "kept") is None and not (folder / "kept.new").exists()
    kept, then, last = (load_file(folder / f / "model.safetensors") for f in ("kept", "checkpoint-2", "final"))
    assert all(torch.equal(kept[k], then[k]) for k in then) and any(not torch.equal(kept[k], last[k]) for k in last)
    assert runs.read_status(folder)["kept_step"] == 2
    model, out, _ = evaluate_run.checkpoint_of(folder, "kept")
    assert model == str(folder / "kept") and out == folder / "evaluation" / "kept"
    card = publish.export(folder, tmp_path / "out", "kept") / "README.md"
    assert "`kept` (by the alarm, without labels), after step 2," in card.read_text()


@pytest.mark.parametrize("killed", ["", "in between"])
def test_weights_of_a_step_that_is_made_again_are_not_kept(tiny, tmp_path, monkeypatch, killed):
    """The first life kept step 4 and ended; the second goes on from 3, and its validations name 2, whose weights are gone."""
    from corelib import evaluate_run, train

    folder = tmp_path / "run"
    config = tiny("gt", steps=5, eval_steps=1, save_steps=3)
    monkeypatch.setattr(probe, "measures", lambda votes, step: {"probe/keep": step if step in (2, 4) else 2})
    train.train(config, folder)
    assert runs.read_json(folder / "kept" / "validation.json") == {"step": 4}
    saving.discard(folder / "checkpoint-5")
    saving.discard(folder / "final")
    runs.write_status(folder, "stopped", step=4, steps=5)
    if killed:  # between the two renames of a replacement
        (folder / "kept").rename(folder / "kept.old")
    monkeypatch.setattr(probe, "measures", lambda votes, step: {"probe/keep": 2})
    train.train(config, folder)
    assert diagnostics.keep(runs.load_metrics(folder)) == 2 and runs.read_status(folder)["kept_step"] is None
    assert not list(folder.glob("kept*"))
    with pytest.raises(RuntimeError, match=r"no checkpoint kept \(step 2 would be it, and its weights are gone"):
        evaluate_run.checkpoint_of(folder, "kept")
    runs.write_text(folder / "metrics.jsonl", '{"step": 0, "probe/keep": 0}\n')
    with pytest.raises(RuntimeError, match="agreed with the others as well as the base model's"):
        evaluate_run.checkpoint_of(folder, "kept")
    runs.write_text(folder / "metrics.jsonl", '{"step": 1, "reward": 0.5}\n')
    with pytest.raises(RuntimeError, match="no validation was made"):
        evaluate_run.checkpoint_of(folder, "kept")


def test_kept_weights_survive_a_kill_while_they_are_replaced(tmp_path):
    (tmp_path / "kept.old").mkdir()
    runs.write_json(tmp_path / "kept.old" / "validation.json", {"step": 3})
    alarm_callback.mend_kept(tmp_path, 3)
    assert runs.read_json(tmp_path / "kept" / "validation.json") == {"step": 3}
    alarm_callback.mend_kept(tmp_path, 2)
    assert not (tmp_path / "kept").exists()


def test_a_run_that_the_alarm_stops_says_so_and_goes_on_when_asked(tiny, tmp_path, monkeypatch):
    """Stopped after the step of the alarm, with a checkpoint and the reason in its status; the same call ends it."""
    from corelib import publish, train

    monkeypatch.setattr(alarm_callback, "alarm", lambda metrics: Alarm(1, ("it fell",)) if len(metrics) > 1 else Alarm(None))  # fmt: skip
    config = tiny("gt", steps=3, on_collapse="stop")
    train.train(config, tmp_path)
    status = runs.read_status(tmp_path)
    assert (status["state"], status["error"]) == ("stopped", "alarm at step 1: it fell")
    assert (tmp_path / f"checkpoint-{status['step']}" / "complete.json").is_file() and status["step"] < 3
    assert (publish.export(tmp_path, tmp_path / "out") / "README.md").is_file()  # no need to train through a collapse
    train.train(config, tmp_path)
    status = runs.read_status(tmp_path)
    assert (status["state"], status["step"]) == ("done", 3) and "error" not in status
