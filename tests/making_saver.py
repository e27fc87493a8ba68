"""An engine whose state is a small file, and helpers for the tests of saving."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from coconut_ds.evaluation.prediction import Evaluation, Prediction
from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.folder import RunFolder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest, now
from coconut_ds.runs.resume_state import Position
from coconut_ds.training.engine_state import random_file
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.saver import RunSaver


@dataclass
class WrittenLater:
    """Takes the place of ``EngineSnapshot``: ``write`` calls a function with the folder."""

    write: Callable[[Path], None]
    num_bytes: int = 0

    def encode(self) -> None:
        """The function writes files of its own."""

    def copy(self) -> None:
        """The function writes what does not change."""


class StillEngine:
    """An engine that learns nothing; its state is one small file a rank. ``failing`` is called before it is written."""

    def __init__(self, experiment: Experiment, failing: Callable[[], None] = lambda: None) -> None:
        self.experiment, self.failing = experiment, failing

    def snapshot(self, folder: Path) -> "WrittenLater":
        return WrittenLater(self.save_state)

    def save_state(self, folder: Path) -> None:
        (folder / f"state_{self.experiment.ranks.rank}.bin").write_bytes(b"state")
        self.failing()
        random_file(folder, self.experiment.ranks.rank).write_bytes(b"random")

    def model_state(self) -> dict[str, torch.Tensor]:
        return dict(self.experiment.backbone.model.state_dict()) if self.experiment.ranks.is_first else {}


def with_settings(experiment: Experiment, **training: Any) -> Experiment:
    """The experiment with other settings of the group ``training``, or ``run`` for save_only_improve."""
    config = experiment.config
    run = config.run.model_copy(update={"save_only_improve": training.pop("save_only_improve", False)})
    changed = config.model_copy(update={"training": config.training.model_copy(update=training), "run": run})
    return replace(experiment, config=changed)


def evaluation(accuracy: float, count: int = 20) -> Evaluation:
    right = round(accuracy * count)
    made = [
        Prediction(i, f"q{i}", "", "", "", i < right, None, None, 0, 0, 0, 0, "eos", None, 0.0) for i in range(count)
    ]
    return Evaluation(made, 0, 0)


def make_saver(
    experiment: Experiment, folder: RunFolder, *more: Any, lock: RunLock | None = None, **options: Any
) -> RunSaver:
    """A saver with a new fence on rank 0."""
    fence = Fence(folder.path.parent, lock) if experiment.ranks.is_first else None
    return RunSaver(experiment, folder, fence, *more, lock=lock, **options)


def names(folder: RunFolder) -> set[str]:
    """Names of checkpoints and of anything left of them, hidden folders included."""
    return {path.name for path in folder.path.iterdir() if "checkpoint" in path.name}


def manifest_of(folder: RunFolder) -> RunManifest:
    fixed = {"name": "tiny", "signature": folder.signature, "attempt": folder.path.name, "host": "here", "pid": 1}
    values = {"status": "running", "world_size": 1, "num_epochs": 9, "code": {}, "versions": {}}
    return RunManifest(**fixed, **values, started=now(), updated=now())


def run_epochs(saver: RunSaver, outcomes: list[tuple[int, float]]) -> None:
    """One epoch after the other with these stages and accuracies; the last one ends the run."""
    engine = StillEngine(saver.experiment)
    for epoch, (stage, accuracy) in enumerate(outcomes, start=1):
        position = Position(epoch=epoch, global_step=3 * epoch)
        saver.after_epoch(engine, position, stage, evaluation(accuracy), last=epoch == len(outcomes))


def raising(error: Exception) -> Callable[[], None]:
    def fail() -> None:
        raise error

    return fail
