"""The alarm while a run trains: warn, save or stop by choice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pandas as pd
from accelerate.utils import gather_object
from transformers import TrainerCallback

from corelib import runs, saving
from corelib.alarm import SIGNALS, alarm
from corelib.callbacks import save_weights

CHOICES = ("warn", "save", "stop")


def mend_kept(folder: Path, step: int) -> None:
    """Before a run goes on at `step`: its kept/ is whole, and gone where a step is made again that may come out otherwise."""
    kept = folder / "kept"
    saving.mend_folder(kept)
    if ((runs.read_json(kept / "validation.json") or {}).get("step") or 0) > step:
        saving.discard(kept)


class AlarmCallback(TrainerCallback):
    """Asks the alarm after every step, when its metrics are written; acts once in a run, also across resumes.

    Until then it keeps the weights that `corelib.alarm.keep` names in the run's folder `kept/`. The folder is not there where
    that is the base model, or where a resumed run went another way than before and the weights named now were replaced.

    `on_collapse`: "warn" says it and logs the metric `alarm/step`; "save" also asks for a checkpoint of this step; "stop"
    also ends the training after that checkpoint. Must come after `corelib.callbacks.Heartbeat` in the list of callbacks,
    which writes the metrics that it reads. Asking costs about 5 ms. Raises ValueError for another choice.
    """

    def __init__(self, folder: Path, on_collapse: str = "warn", say: Callable = print):
        if on_collapse not in CHOICES:
            raise ValueError(f"on_collapse is {on_collapse!r}; choose one of {', '.join(CHOICES)}")
        self.folder, self.choice, self.say, self.done = Path(folder), on_collapse, say, False
        self.trainer = None
        self.rows: dict[int, dict] = {}  # signals by step
        self.read = 0  # bytes of metrics.jsonl that are in `rows`
        self.stopped = ""  # what ended the training, for the run's status

    def on_log(self, args, state, control, logs=None, **_):
        if self.done or "loss" not in (logs or {}):
            return
        heard = [self._ask(state.global_step) if state.is_world_process_zero else ""]
        if args.world_size > 1:  # all ranks save and stop after the same step, or a collective hangs
            heard = gather_object(heard)
        self.done = any(word not in ("", "keep") for word in heard)
        if "keep" in heard:
            save_weights(self.trainer, self.folder / "kept", {"step": state.global_step})
        if "now" in heard:
            control.should_save = control.should_save or self.choice != "warn"
            control.should_training_stop = control.should_training_stop or self.choice == "stop"

    def _ask(self, step: int) -> str:
        """ "now", "before" when an earlier call of this run has said it, "keep" for weights to keep, or else ""."""
        try:
            if self._read_on():
                return "before"
            metrics = pd.DataFrame(list(self.rows.values()))
            found = alarm(metrics) if any(name in metrics for name in SIGNALS) else None
        except Exception as error:  # what only looks on must not end a run of two days, nor leave other ranks waiting
            self.say(f"no alarm any more: {type(error).__name__}: {error}")
            return "broken"
        if found is None or found.step is None:
            return "keep" if self.rows.get(step, {}).get("probe/keep") == step else ""
        runs.append_metrics(self.folder, {"step": step, "alarm/step": found.step})
        act = {"warn": "", "save": "; a checkpoint is saved", "stop": "; the run saves and stops"}[self.choice]
        why = f"alarm at step {found.step}: {'; '.join(found.reasons)}"
        self.stopped = why if self.choice == "stop" else ""
        self.say(why + act)
        return "now"

    def _read_on(self) -> bool:
        """Take in what metrics.jsonl holds since the last time; whether an alarm is among it."""
        path = self.folder / "metrics.jsonl"
        if not path.is_file():
            return False
        with path.open("rb") as lines:
            lines.seek(self.read)
            new = lines.read()
        self.read += len(new)
        said = False
        for line in new.splitlines():
            row = runs.parse_row(line)
            if row is None:  # cut by a kill; the resumed run measures the step again
                continue
            said |= "alarm/step" in row
            seen = {name: row[name] for name in SIGNALS if name in row}
            self.rows.setdefault(row["step"], {"step": row["step"]}).update(seen)
        return said
