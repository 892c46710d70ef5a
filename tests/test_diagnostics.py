"""Measures against values worked by hand, the alarm on synthetic runs whose fate is known by construction."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from transformers import TrainerControl

from corelib import diagnostics, runs
from corelib.alarm import RULE, first_held
from corelib.alarm_callback import AlarmCallback


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


FATES = {
    "silent": run(answers__none=lambda s: 0.05 if s <= 30 else 0.9, gt__accuracy=collapses_at_40),
    "drifting": run(
        entropy=lambda s: 0.2 + 0.004 * s,
        answers__distinct_group=lambda s: 0.48 + 0.002 * s,
        gt__accuracy=collapses_at_40,
    ),
    "constant": run(answers__top_share=lambda s: 0.15 if s <= 20 else 0.6),
    "shrinking": run(length__mean=lambda s: 16 if s <= 40 else 8),
    "parting": run(views__agreement=lambda s: 0.9 if s <= 40 else 0.4),
    "forgetting": run(probe__kept=lambda s: 0.9 if s <= 40 else 0.2),
}


def stalled(**more):
    """Majority voting whose agreement stops at 0.7 after step 20 while its answers move."""
    frame = run(
        answers__support=lambda s: 0.42 + 0.014 * min(s, 20), entropy=lambda s: 0.19 - 0.005 * min(s, 20), **more
    )
    return frame.assign(reward=frame["answers/support"])


@pytest.mark.parametrize("name", FATES)
def test_each_condition_fires_on_its_own_failure_and_says_why(name):
    found = diagnostics.alarm(FATES[name])
    assert first_held(diagnostics.evidence(FATES[name]))[1] == [name]
    assert 10 <= found.step <= 60
    assert len(found.reasons) == 1 and any(c.isdigit() for c in found.reasons[0])


@pytest.mark.parametrize("seed", range(5))
def test_a_run_that_learns_raises_no_alarm(seed):
    assert diagnostics.alarm(run(200, seed)) == diagnostics.Alarm(None, ())


def test_a_stall_counts_only_where_the_reward_is_the_policys_own_agreement():
    assert first_held(diagnostics.evidence(stalled()))[1] == ["churning"]
    paid_by_others = stalled().assign(reward=0.6)
    assert diagnostics.alarm(paid_by_others).step is None


def test_a_probe_that_holds_contradicts_a_stall():
    held = stalled(probe__kept=lambda s: 0.9)
    assert diagnostics.alarm(held).step is None
    assert diagnostics.alarm(stalled(probe__kept=lambda s: 0.9 if s < 25 else 0.65)).step is not None


@pytest.mark.parametrize("frame", [*FATES.values(), stalled(), run()], ids=[*FATES, "churning", "healthy"])
def test_the_alarm_never_sees_the_future(frame):
    whole, strength = diagnostics.alarm(frame), diagnostics.evidence(frame)
    near = [] if whole.step is None else range(whole.step - 2, whole.step + 3)
    for t in sorted({*range(1, len(frame), 9), *near}):
        pd.testing.assert_frame_equal(diagnostics.evidence(frame[frame["step"] <= t]), strength.loc[:t])
        found = diagnostics.alarm(frame[frame["step"] <= t])
        assert found == (whole if whole.step is not None and whole.step <= t else diagnostics.Alarm(None))


def test_the_alarm_sees_no_truth_method_or_seed():
    for frame in (*FATES.values(), stalled(), run()):
        seen = diagnostics.alarm(frame)
        shuffled = frame.assign(**{"gt/accuracy": frame["gt/accuracy"].sample(frac=1, random_state=1).to_numpy()})
        shuffled = shuffled.assign(**{"gt/label_accuracy": 0.0, "method": "majority_voting", "seed": 3})
        assert diagnostics.alarm(shuffled) == seen
        assert diagnostics.alarm(frame.drop(columns="gt/accuracy")) == seen
        assert diagnostics.keep(shuffled) == diagnostics.keep(frame)


def test_two_views_of_a_question_are_no_takeover():
    # Learning to answer both views alike doubles each answer's share of the batch
    agree = run(views__agreement=lambda s: min(s / 20, 1), answers__top_share=lambda s: 0.15 * (1 + min(s / 20, 1)))
    assert diagnostics.alarm(agree).step is None
    assert diagnostics.alarm(agree.drop(columns="views/agreement")).step is not None


def test_one_bad_step_is_no_collapse():
    for length, expected in ((1, None), (12, "fires")):
        frame = run(answers__none=lambda s, n=length: 0.9 if 40 < s <= 40 + n else 0.03)
        assert (diagnostics.alarm(frame).step is not None) == (expected is not None)


def test_scale_makes_it_deaf():
    frame = run(answers__none=lambda s: 0.05 if s <= 30 else 0.35)  # evidence 0.3 / 0.2
    assert diagnostics.alarm(frame, scale=1.3).step is not None
    assert diagnostics.alarm(frame, scale=1.7).step is None


def test_metrics_without_signals_are_refused_and_an_unstarted_run_is_not():
    with pytest.raises(ValueError, match="none of the alarm's signals"):
        diagnostics.alarm(pd.DataFrame({"step": [1, 2], "loss": [0.0, 0.0]}))
    with pytest.raises(ValueError, match="no column `step`"):
        diagnostics.alarm(pd.DataFrame({"reward": [1.0]}))
    assert diagnostics.alarm(pd.DataFrame({"step": [0], "gt/validation": [0.3]})).step is None


def test_keep_returns_to_before_the_failure_and_to_what_was_saved():
    frame = FATES["silent"]  # answers vanish after step 30
    assert 26 <= diagnostics.keep(frame) <= 30
    assert diagnostics.keep(frame, steps=[0, 10, 20, 50]) == 20
    assert diagnostics.keep(frame, steps=[50, 80]) == 50
    assert diagnostics.keep(run(80)) == 80
    # the stall is held from about step 20 + lag on, and began `lag` steps before
    assert 15 <= diagnostics.keep(stalled()) <= 25


def test_collapse_is_half_of_the_peak_of_the_ten_step_mean():
    accuracy = [0.8] * 20 + [0.2] * 20
    frame = pd.DataFrame({"step": range(1, 41), "gt/accuracy": accuracy})
    # k bad steps in the window: 0.8 - 0.06 k < 0.4 from k = 7 on
    assert diagnostics.collapse_step(frame) == 27
    assert diagnostics.collapse_step(frame[frame["step"] <= 26]) is None
    with pytest.raises(ValueError, match="no gt/accuracy"):
        diagnostics.collapse_step(frame.drop(columns="gt/accuracy"))


def test_evaluation_counts_leads_and_failures():
    sees = run(answers__none=lambda s: 0.05 if s <= 30 else 0.9, gt__accuracy=collapses_at_40)
    late = run(answers__none=lambda s: 0.05 if s <= 60 else 0.9, gt__accuracy=collapses_at_40)
    unseen = run(gt__accuracy=collapses_at_40)
    false = run(length__mean=lambda s: 16 if s <= 40 else 8)
    table = diagnostics.evaluate_alarm({"sees": sees, "late": late, "unseen": unseen, "false": false, "well": run()})
    assert table.loc["detected", ["count", "of", "note"]].tolist() == [2, 3, "unseen"]
    assert table.loc["in time", ["count", "of", "note"]].tolist() == [1, 3, "late"]
    assert table.loc["false alarms", ["count", "of", "note"]].tolist() == [1, 2, "false"]
    # Wilson (1927) for 1 of 2, worked by hand: centre 0.5, half 1.96 / (1 + 1.96^2 / 2) * sqrt(1/8 + 1.96^2 / 16)
    half = 1.96 / (1 + 1.96**2 / 2) * math.sqrt(0.25 / 2 + 1.96**2 / 16)
    assert table.loc["false alarms", ["low", "high"]].tolist() == pytest.approx([0.5 - half, 0.5 + half], abs=1e-4)
    rows = diagnostics.judge_runs({"sees": sees}).iloc[0]
    assert rows["lead"] == rows["collapse"] - rows["alarm"] > 0
    assert rows["kept_share"] == pytest.approx(1.0, abs=0.03)


def test_roc_goes_from_everything_to_nothing():
    pool = {"bad": FATES["silent"], "well": run()}
    table = diagnostics.roc(pool, [0.001, 1.0, 50.0])
    assert table["detected"].tolist() == [1.0, 1.0, 0.0]
    assert table["false_alarms"].tolist() == [1.0, 0.0, 0.0]
    bought = diagnostics.sensitivity(pool, "silent", [0.2, 5.0])
    assert bought["detected"].tolist() == [1, 0]


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
    assert math.isnan(diagnostics.kept_share(["1"], ["1"], [0.2]))
    with pytest.raises(ValueError, match="lack pair_id"):
        diagnostics.rollout_measures(pd.DataFrame({"step": [1]}))


def test_case_study_shows_the_question_or_a_stand_in():
    frame = pd.concat([batch(1), batch(9)[lambda f: f["pair_id"] == 2]])
    shown = diagnostics.case_study({"gt": frame}, 1, {"gt": [1, 9]})
    assert shown["question"].tolist() == ["q1", "q2"]
    assert shown["answers"].tolist()[1] == "5 x 2, none x 1, 8 x 1"
    with pytest.raises(ValueError, match="stored are"):
        diagnostics.case_study({"gt": frame}, 1, {"gt": [2]})


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


def test_the_callback_refuses_an_unknown_choice_and_waits_for_metrics(tmp_path):
    with pytest.raises(ValueError, match="choose one of warn, save, stop"):
        AlarmCallback(tmp_path, "halt")
    state = SimpleNamespace(global_step=0, is_world_process_zero=True)
    AlarmCallback(tmp_path).on_log(SimpleNamespace(world_size=1), state, TrainerControl(), logs={"loss": 1.0})
    assert not (tmp_path / "metrics.jsonl").exists()


def test_the_rule_has_no_method_in_it():
    from corelib.config import METHOD_NAMES

    assert not {name for name in vars(RULE)} & set(METHOD_NAMES)


@pytest.fixture
def frame():
    from corelib import plots_diagnostics

    voting = run(gt__accuracy=collapses_at_40, reward=lambda s: 0.5 + 0.004 * s).assign(
        **{"gt/policy_label_accuracy": 0.5, "gt/label_accuracy": [0.9] * 40 + [0.1] * 40}
    )
    runs_ = {"a": voting, "b": run(seed=1), "c": run(seed=2)}
    return plots_diagnostics.stack(runs_, {"a": "majority_voting", "b": "gt", "c": "gt"}), runs_


def test_titles_say_what_is_drawn(frame):
    import matplotlib.pyplot as plt

    from corelib import plots_diagnostics as figures

    stacked, by_run = frame
    said = figures.reward_and_accuracy(stacked)._suptitle.get_text()
    assert "Majority voting end" in said and "GT" not in said
    assert figures.reward_and_accuracy(stacked[stacked["method"] == "gt"])._suptitle.get_text().startswith("Reward and")
    assert (
        figures.votes(stacked)
        ._suptitle.get_text()
        .startswith("Pseudo-labels: 10 % right at the end for Majority voting")
    )
    table = diagnostics.judge_runs(by_run)
    timeline = figures.alarm_timeline(stacked, table)
    assert timeline._suptitle.get_text() == "The alarm saw 0 of 1 collapses; 0 of 2 stable runs raised it"
    assert [ax.get_title() for ax in timeline.axes] == ["Majority voting: missed", "GT reward", "GT reward"]
    curve = figures.roc(diagnostics.roc({"bad": FATES["silent"], "well": run()}, [0.001, 1.0, 50.0])).axes[0]
    assert curve.get_title() == "At scale 1: 100 % of collapses seen, 0 % false alarms"
    assert curve.lines[0].get_xydata().tolist() == [[0, 0], [0, 1], [1, 1]]
    seeds = figures.diversity(stacked).axes[0]
    assert len(seeds.lines) == 2 and len(seeds.collections) == 1  # two seeds of gt are one line with a band
    plt.close("all")


def test_figures_of_rollouts(frame):
    import matplotlib.pyplot as plt

    from corelib import plots_diagnostics as figures

    measures = diagnostics.rollout_measures(pd.concat([batch(1), batch(2).assign(answer="2")]))
    drawn = figures.rollout_measures(figures.stack({"a": measures}, {"a": "gt"}))
    assert drawn.axes[0].lines[0].get_ydata()[0] == pytest.approx(measures.loc[1, "about_question"])
    many = pd.concat([batch(s).assign(pair_id=lambda f, s=s: f["pair_id"] + 2 * s) for s in range(1, 41)])
    levels = {p: 1 + p % 2 for p in many["pair_id"]}  # odd pairs are right, even ones wrong
    by_level = figures.by_level(figures.stack({"a": diagnostics.label_accuracy(many, levels)}, {"a": "gt"}))
    assert {line.get_ydata()[0] for line in by_level.axes[0].lines} == {0.0, 1.0}
    plt.close("all")


def test_the_case_study_page_escapes_what_a_model_wrote():
    from corelib.plots_diagnostics import case_study_html

    hostile = batch().assign(completion="<script>alert(1)</script>")
    page = case_study_html(diagnostics.case_study({"gt": hostile}, 2, {"gt": [1]}))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "5 (wrong)" in page
