import pandas as pd
import pytest

from corelib import launch, plots, runs
from corelib.config import METHOD_NAMES


def metrics(method, steps=30):
    return pd.DataFrame(
        {"step": range(steps), "method": method, "reward": 0.5, "gt/accuracy": 0.4, "length/mean": 12.0}
    )


def test_every_method_has_its_own_colour_and_name():
    assert tuple(sorted(plots.STYLE)) == tuple(sorted(METHOD_NAMES))
    assert len({s[0] for s in plots.STYLE.values()}) == len({s[2] for s in plots.STYLE.values()}) == 9


def test_seeds_become_one_line_with_a_band():
    frames = {"a": metrics("gt"), "b": metrics("gt").assign(reward=0.7), "c": metrics("entropy").drop(columns="reward")}
    ax = plots.curves(frames, "reward")
    assert len(ax.lines) == 1 and len(ax.collections) == 1
    assert ax.lines[0].get_ydata()[0] == pytest.approx(0.6)
    assert ax.get_xlabel() == "training step" and ax.get_ylabel() == "mean reward"


def test_live_plot_waits_for_the_first_step(tmp_path, monkeypatch):
    shown = []
    import IPython.display

    monkeypatch.setattr(
        IPython.display,
        "display",
        lambda figure, display_id: shown.append(figure) or type("H", (), {"update": shown.append}),
    )
    poll = plots.live(tmp_path, "gt")
    poll(force=True)
    runs.append_metrics(tmp_path, {"step": 0, "gt/validation": 0.3})
    poll(force=True)
    assert shown == []
    runs.append_metrics(tmp_path, {"step": 1, "reward": 0.3, "gt/accuracy": 0.2, "length/mean": 3.0})
    poll(force=True)
    poll(force=True)
    assert len(shown) == 2


def test_a_failing_live_plot_does_not_stop_the_run(tmp_path):
    import sys

    said = []

    def broken():
        raise ZeroDivisionError("axis")

    launch.run_logged(
        [sys.executable, "-c", "import time; time.sleep(3)"], tmp_path / "log", every=0.5, echo=said.append, poll=broken
    )
    assert said == ["no live plot any more: ZeroDivisionError: axis"]


def test_rollouts_worth_reading():
    rows = []
    for pair, answers, rewards in (
        (1, ["1"] * 4, [1] * 4),
        (2, ["1", "2", "3", "4"], [0, 0, 1, 0]),
        (3, ["5", None, None, "5"], [0] * 4),
    ):
        rows += [
            {
                "pair_id": pair,
                "view": "original",
                "prompt": "q",
                "completion": "c",
                "answer": a,
                "label": "1",
                "truth": "1",
                "judge": r,
                "advantage": 0.0,
            }
            for a, r in zip(answers, rewards, strict=True)
        ]
    shown = plots.rollouts(pd.DataFrame(rows))
    assert shown["group"].unique().tolist() == ["paid most", "paid least", "most disputed"]
    votes = shown[shown["group"] == "paid least"]["votes"]
    assert votes.iloc[0] == 2 and votes.isna().sum() == 2  # no answer, no vote
    assert shown[shown["group"] == "most disputed"]["answer"].tolist() == ["1", "2", "3", "4"]
