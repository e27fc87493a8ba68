"""Scenarios of ``resume_worker.py``: signals that ask a launch to stop."""

import contextlib
import json
import shutil
import signal
from collections.abc import Callable
from typing import Any

from resuming import Outcome, Worker, after_update, at, signals_this_process

from coconut_ds.evaluation.evaluator import Evaluator
from coconut_ds.training.engine import Engine
from coconut_ds.training.trainer import Trainer

STOPS: dict[str, tuple[Callable[[Callable[..., Any]], contextlib.AbstractContextManager[None]], signal.Signals]] = {
    "update": (lambda action: after_update(5, action), signal.SIGTERM),
    "interrupt": (lambda action: after_update(5, action), signal.SIGINT),
    "saved anyway": (lambda action: after_update(3, action), signal.SIGTERM),
    "saving": (lambda action: at(Engine, "snapshot", 2, action), signal.SIGTERM),
    "evaluation": (lambda action: at(Evaluator, "generate", 2, action, first=True), signal.SIGTERM),
    "last evaluation": (lambda action: at(Evaluator, "generate", 4, action), signal.SIGTERM),
    "before the first update": (lambda action: at(Trainer, "fit", 1, action, first=True), signal.SIGTERM),
}
"""For each case: how an action is tied to a moment of the launch, and the signal that is sent at that moment."""


def stopped(worker: Worker) -> Outcome:
    """Sends each signal of ``STOPS`` at its moment, then launches again."""
    outcomes = {}
    for name, (hook, number) in STOPS.items():
        place = worker.place(f"stopped_{name.replace(' ', '_')}")
        stopped = {**place.launch(hook=hook(signals_this_process(number))), **place.state()}
        if stopped["checkpoints"]:
            resume_state = json.loads((place.newest / "engine" / "resume_state.json").read_text())
            stopped["knows"] = resume_state["metrics_bytes"]
            stopped["bytes"] = (place.attempt / "metrics.jsonl").stat().st_size
        outcomes[name] = {"stopped": stopped, "ended": worker.end(place)}
        shutil.rmtree(place.path)
    return outcomes
