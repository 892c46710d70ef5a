"""Figures of runs: titles that say what is drawn, both ways, on made-up metrics and rollouts."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from corelib import diagnostics, plots_alarm
from corelib import plots_diagnostics as figures


def metrics(collapses=False, rises=True, seed=0, steps=80):
    """Accuracy .7, from step 41 on .1 where it collapses; the reward rises from .5 to .82, or stays."""
    t, noise = np.arange(1, steps + 1), np.random.default_rng(seed)
    fallen = (t > 40) & collapses
    frame = pd.DataFrame({"step": t, "reward": 0.5 + 0.004 * t * rises, "gt/accuracy": np.where(fallen, 0.1, 0.7)})
    frame["reward"] += 0.02 * noise.standard_normal(steps)
    frame["answers/top_share"], frame["answers/distinct_group"] = np.where(fallen, 0.6, 0.15), 0.4
    frame["answers/none"], frame["entropy"], frame["length/mean"] = 0.05, 0.1, 14.0
    frame["gt/policy_label_accuracy"], frame["gt/label_accuracy"] = 0.5, np.where(fallen, 0.1, 0.9)
    frame["gt/validation"] = frame["gt/accuracy"].where(t % 10 == 0)
    return frame


@pytest.fixture
def runs():
    yield {"a": metrics(True), "b": metrics(seed=1), "c": metrics(seed=2)}
    plt.close("all")


@pytest.fixture
def stacked(runs):
    return figures.stack(runs, {"a": "majority_voting", "b": "gt", "c": "gt"})


def test_reward_and_accuracy_part_only_where_the_reward_rises_and_accuracy_halves(stacked):
    said = figures.reward_and_accuracy(stacked)._suptitle.get_text()
    assert said.endswith("Majority voting (1 of 1)")
    whole = figures.reward_and_accuracy(stacked[stacked["method"] == "gt"])
    never = "No method is paid more at the end, by more than noise, and right less than half as often as at its best"
    assert whole._suptitle.get_text() == never
    coin = figures.stack(
        {"a": metrics(True, rises=False)}, {"a": "random"}
    )  # accuracy falls, the reward does not follow it
    assert figures.reward_and_accuracy(coin)._suptitle.get_text() == never
    assert figures.parted(metrics(True)) and not figures.parted(metrics(False))
    assert not any(figures.parted(metrics(True, rises=False, seed=s)) for s in range(5))  # a coin's noise is no rise
    # a peak at once is compared with ten steps, not with the first two: 0.2, 0.2, then 0.5 throughout
    early = metrics(True).assign(**{"gt/accuracy": [0.9] * 2 + [0.1] * 78}, reward=[0.2] * 2 + [0.5, 0.9] * 39)
    assert not figures.parted(early)
    # 0.2 in ten steps up to the peak, then +-0.1 about 0.2 + gap: the deviation of ten is 0.1 / 0.9 ** 0.5, its error a third of 0.1
    for gap, apart in ((0.066, False), (0.067, True)):
        late = 0.2 + gap + 0.1 * (-1.0) ** np.arange(70)
        assert (
            figures.parted(
                metrics(True).assign(**{"gt/accuracy": [0.9] * 10 + [0.1] * 70}, reward=[0.2] * 10 + [*late])
            )
            == apart
        )
    with pytest.raises(figures.Missing, match="none of these runs logged gt/accuracy"):
        figures.reward_and_accuracy(stacked.drop(columns="gt/accuracy"))


def test_votes_held_out_and_diversity_say_who_lost(stacked):
    stable = stacked[stacked["method"] == "gt"]
    assert figures.votes(stacked)._suptitle.get_text() == "Pseudo-labels right at the end: 90 % for GT reward, 10 % for Majority voting (best ten steps: 90 %)"  # fmt: skip
    assert figures.held_out(stacked)._suptitle.get_text() == "On held-out problems Majority voting loses most: from 70 % to 10 %"  # fmt: skip
    assert figures.held_out(stable)._suptitle.get_text() == "On held-out problems every method ends at its best"
    blind = stacked.assign(**{"gt/validation": stacked["gt/validation"].where(stacked["method"] == "gt")})
    assert len(figures.held_out(blind).axes) == 1  # majority voting was not validated: no panel, no crash
    with pytest.raises(figures.Missing):  # no vote was ever right: no panel is left
        figures.votes(stacked.assign(**{"gt/policy_label_accuracy": 0.0}))
    drawn = figures.diversity(stacked)
    assert drawn._suptitle.get_text() == "The commonest answer's share of a batch grew 4.0-fold for Majority voting, 1.0-fold for GT reward"  # fmt: skip
    assert len(drawn.axes[0].lines) == 2 and len(drawn.axes[0].collections) == 1  # two seeds of gt: one line, one band


def test_alarm_timeline_and_roc(stacked, runs):
    table = diagnostics.judge_runs(runs)
    timeline = plots_alarm.timeline(stacked, table)
    assert timeline._suptitle.get_text().startswith("The alarm saw 1 of 1 collapses, ")
    assert timeline._suptitle.get_text().endswith("; 0 of 2 stable runs raised it")
    missed = plots_alarm.timeline(stacked, table.assign(alarm=np.nan, lead=np.nan, failure=["missed", "", ""]))
    assert missed._suptitle.get_text() == "The alarm saw 0 of 1 collapses; 0 of 2 stable runs raised it"
    assert [ax.get_title() for ax in missed.axes] == ["Majority voting: missed", "GT reward", "GT reward"]
    curve = plots_alarm.roc(diagnostics.roc(runs, [1.0, 50.0])).axes[0]
    assert curve.get_title() == "At scale 1: 100 % of collapses seen, 0 % false alarms"
    assert curve.lines[0].get_xydata().tolist() == [[0, 0], [0, 1]]


def rollouts(step):
    """Two questions of four rollouts in one view: the first always right, the second always wrong."""
    made = [
        {"step": step, "pair_id": pair + 2 * step, "view": "original", "prompt": f"q{pair}", "completion": "<script>x</script>", "answer": "5", "label": "5", "truth": truth, "judge": 1.0, "advantage": 0.5}
        for pair, truth in ((1, "5"), (2, "8")) for _ in range(4)
    ]  # fmt: skip
    return pd.DataFrame(made)


def test_figures_of_rollouts():
    measures = diagnostics.rollout_measures(pd.concat([rollouts(1), rollouts(2)]))
    drawn = figures.rollout_measures(figures.stack({"a": measures}, {"a": "gt"}))
    assert drawn.axes[0].lines[0].get_ydata()[0] == pytest.approx(measures.loc[1, "about_question"])
    many = pd.concat([rollouts(s) for s in range(1, 41)])
    levels = {p: 1 + p % 2 for p in many["pair_id"]}  # odd pairs are right, even ones wrong
    by_level = figures.by_level(figures.stack({"a": diagnostics.label_accuracy(many, levels)}, {"a": "gt"}))
    assert {line.get_ydata()[0] for line in by_level.axes[0].lines} == {0.0, 1.0}
    few = figures.stack({"a": diagnostics.label_accuracy(rollouts(1), levels)}, {"a": "gt"})
    with pytest.raises(figures.Missing, match="store completions more often"):
        figures.by_level(few)
    plt.close("all")


def test_the_case_study_page_escapes_what_a_model_wrote():
    page = figures.case_study_html(diagnostics.case_study({"gt": rollouts(1)}, 4, {"gt": [1]}))
    assert "<script>" not in page and "&lt;script&gt;" in page
    assert "5 (wrong)" in page


def test_the_case_study_page_judges_by_equivalence_and_cuts_long_texts():
    def page(**changed):
        row = {"method": "GT", "step": 1, "question": "$q$", "truth": "1/2", "label": r"\frac{1}{2}", "answers": "", "completion": ""}  # fmt: skip
        return figures.case_study_html(pd.DataFrame([row | changed]))

    assert "(wrong)" in page(label="1/3")
    assert all("(wrong)" not in p for p in (page(), page(truth=None), page(label=None), page(truth=float("nan"))))
    long = page(completion="a" * 5000 + "$z$")
    assert long.count("a" * 300) == 1 and "[... 4403 characters left out ...]" in long and "a$z$</td>" in long
    typeset = [cell for cell in long.split("<td")[1:] if "$" in cell and "tex2jax_ignore mathjax_ignore" not in cell]
    assert len(typeset) == 1 and "$q$" in typeset[0]  # the question, which the model has not written
