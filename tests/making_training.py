"""Short runs in this process, for tests of the trainer, and what they have written."""

import json
from pathlib import Path

import pytest
from making_saver import make_saver
from torch_engine import TorchEngine, run_folder, tiny_experiment

from coconut_ds.distributed.background import Background
from coconut_ds.distributed.interrupts import Interrupted
from coconut_ds.evaluation.prediction import Evaluation, Prediction
from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.resume_state import Position
from coconut_ds.training.metrics import MetricsLog, begin_metrics, read_metrics
from coconut_ds.training.progress_bar import ProgressBar
from coconut_ds.training.saver import Scores
from coconut_ds.training.trainer import Trainer


class AskedToStop:
    """Interrupts that come when the trainer looks for the ``at``-th time, counted from 0; None: never."""

    reason = "SIGTERM"

    def __init__(self, at: int | None = None) -> None:
        self.at, self.num_looks = at, -1

    def handled(self) -> None:
        """No signals come."""

    @property
    def requested(self) -> bool:
        self.num_looks += 1
        return self.at is not None and self.num_looks >= self.at


class Scripted:
    """An evaluator that finds the given shares of problems wholly right, one evaluation after the other."""

    def __init__(self, shares: list[float]) -> None:
        self.shares = shares

    def run(self, call, problems, stage, thoughts, progress, check) -> Evaluation:
        right = round(self.shares.pop(0) * 10)
        made = [Prediction(i, "", "", "", "", False, False, i < right, 0, 0, 0, 0, "eos", None, 0.0) for i in range(10)]
        return Evaluation(made, thoughts.count, 0)


def train(
    folder: RunFolder,
    *overrides: str,
    interrupts: AskedToStop | None = None,
    engine_class: type = TorchEngine,
    background: Background | None = None,
) -> tuple[Position, TorchEngine]:
    """One launch: it continues from the newest checkpoint of the folder, if there is one."""
    experiment = tiny_experiment(*overrides)
    engine, position, scores = engine_class(experiment), Position(epoch=experiment.config.run.resume), Scores()
    newest = folder.checkpoints()[:1]
    for checkpoint in newest:
        state = json.loads((checkpoint / ENGINE / RESUME_STATE).read_text())
        engine.load_state(checkpoint / ENGINE)
        position, scores = Position(**state["position"]), Scores(**state["scores"])
        begin_metrics(folder.metrics, state["metrics_bytes"], Fence(folder.path.parent))
    with MetricsLog(folder.metrics) as metrics:
        own_saver = make_saver(experiment, folder, metrics=metrics, scores=scores, background=background)
        progress = ProgressBar(is_first=False)
        trainer = Trainer(experiment, engine, own_saver, progress, metrics, interrupts or AskedToStop())
        return trainer.fit(position), engine


def run_left_alone_and_stopped(
    path: Path, *overrides: str, stops: tuple[int, int] = (4, 3)
) -> tuple[RunFolder, RunFolder, TorchEngine]:
    """The same run twice: once in one launch, and once stopped in each of two launches. Also the first one's engine.

    Args:
        path: an empty folder.
        overrides: of the run.
        stops: at which look for interruptions, counted from 0, each launch stops.
    """
    whole, stopped = run_folder(path / "whole"), run_folder(path / "stopped")
    _, engine = train(whole, *overrides)
    for at in stops:
        with pytest.raises(Interrupted):
            train(stopped, *overrides, interrupts=AskedToStop(at))
    train(stopped, *overrides)
    return whole, stopped, engine


def record(folder: RunFolder) -> list[dict]:
    """The lines of the record, without what depends on the clock."""
    lines = read_metrics(folder.metrics)
    return [{k: v for k, v in line.items() if k != "time" and not k.startswith("perf/")} for line in lines]


def column(folder: RunFolder, name: str) -> list:
    return [line[name] for line in record(folder) if name in line]
