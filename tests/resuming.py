"""What the scenarios of ``resume_worker.py`` share: launches of one tiny run in this process, and their ends."""

import contextlib
import hashlib
import io
import json
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from functools import cache, cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import yaml
from equal_runs import differences
from kill_matrix import RUN

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.files import damage
from coconut_ds.runs.manifest import read_manifest
from coconut_ds.settings import Config
from coconut_ds.settings.compose import compose_config
from coconut_ds.training.launch import train
from coconut_ds.training.metrics import read_metrics
from coconut_ds.training.trainer import Trainer

SMALL = [
    *(*RUN, "size.train=32", "global_batch_size=8", "batch_size_training=8", "batch_size_eval=24", "max_new_tokens=2"),
    *("num_epochs=4", "save_every_steps=3"),
]
"""Four updates per epoch, so the checkpoints are 0_3, 1, 1_2, 2, 2_1, 3, 3_3 and 4. A run keeps the last two and the
best."""
DIES_AT = 11
"""The update after which a launch is killed. Its newest checkpoint is then 2_1, of update 9; the one before it is 2.
Updates 10 and 11 are only in ``metrics.jsonl``."""
Outcome = dict[str, Any]


class Died(BaseException):
    """Stands for the death of a process: no code catches it. ``Place.killed`` undoes what cleaning up has written."""


def small_run(save_path: Path, ranks: int, *overrides: str) -> Config:
    """The configuration of the run in a folder, with one micro batch an update unless the overrides set its size."""
    config = composed(*overrides)
    run = config.run.model_copy(update={"save_path": str(save_path)})
    if any(word.startswith("batch_size_training=") for word in overrides):
        return config.model_copy(update={"run": run})
    micro_batch = {"batch_size_training": (config.training.global_batch_size or 0) // ranks}
    return config.model_copy(update={"run": run, "training": config.training.model_copy(update=micro_batch)})


@cache
def composed(*overrides: str) -> Config:
    return compose_config([*SMALL, *overrides])


def die(*arguments: Any) -> None:
    """Raises ``Died``, whatever it is called with."""
    raise Died


def signals_this_process(number: signal.Signals) -> Callable[..., None]:
    """A function that sends the signal to this process, whatever it is called with."""
    return lambda *arguments: os.kill(os.getpid(), number)


@contextlib.contextmanager
def at(owner: Any, name: str, visit: int, action: Callable[..., Any], first: bool = False) -> Iterator[None]:
    """Calls ``action`` after (with ``first``, before) the call number ``visit`` of ``owner.name``."""
    original, calls = getattr(owner, name), 0

    def wrapped(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        mine = calls == visit
        if mine and first:
            action(*arguments)
        result = original(*arguments, **options)
        if mine and not first:
            action(*arguments)
        return result

    setattr(owner, name, wrapped)
    try:
        yield
    finally:
        setattr(owner, name, original)


def after_update(count: int, action: Callable[..., Any] = die) -> contextlib.AbstractContextManager[None]:
    """Calls ``action`` once the launch has made and recorded ``count`` updates."""
    return at(Trainer, "_log_update", count, action)


@contextlib.contextmanager
def scored(accuracies: list[float]) -> Iterator[None]:
    """Validation after each epoch finds the given accuracy."""
    original = Trainer._validate

    def validate(trainer: Trainer, position: Any, *arguments: Any) -> Any:
        accuracy = accuracies[position.epoch]
        return SimpleNamespace(accuracy=accuracy, wholly_right=0.0, mastery=lambda metric: 0.0, predictions=[])

    Trainer._validate = validate
    try:
        yield
    finally:
        Trainer._validate = original


class Place:
    """A folder for the launches of one scenario."""

    def __init__(self, path: Path, ranks: Ranks) -> None:
        self.path, self.ranks = path, ranks

    def launch(self, *overrides: str, hook: contextlib.AbstractContextManager[Any] | None = None) -> Outcome:
        """Launches the run within ``hook``; returns its output, its error and the names of all attempts."""
        said, error = io.StringIO(), None
        with contextlib.redirect_stdout(said), hook or contextlib.nullcontext():
            try:
                train(small_run(self.path, self.ranks.size, *overrides), self.ranks)
            except (Exception, Died, KeyboardInterrupt) as found:
                error = f"{type(found).__name__}: {found}"
        return {"error": error, "said": said.getvalue(), "attempts": [path.name for path in self.attempts()]}

    def killed(self, updates: int, *overrides: str) -> Outcome:
        """A launch that dies after ``updates`` updates and leaves the manifest as a killed process would."""
        outcome = self.launch(*overrides, hook=after_update(updates))
        path = self.attempt / "run_manifest.yaml"
        if self.ranks.is_first:
            values = yaml.safe_load(path.read_text())
            path.write_text(yaml.safe_dump({**values, "status": "running", "reason": None, "ended": None}))
        return outcome

    def attempts(self) -> list[Path]:
        """All attempts, the oldest first."""
        return sorted(path.parent for path in self.path.glob("*/*/*/config.yaml"))

    @property
    def attempt(self) -> Path:
        """The newest attempt."""
        return self.attempts()[-1]

    @property
    def newest(self) -> Path:
        """The newest checkpoint of the newest attempt."""
        return max(self.attempt.glob("checkpoint_*"), key=lambda path: [int(part) for part in path.name.split("_")[1:]])

    def state(self) -> Outcome:
        """The content of the newest attempt."""
        attempt = self.attempt
        manifest = read_manifest(attempt / "run_manifest.yaml")
        lost = attempt / "metrics.lost.jsonl"
        return {
            "manifest": None if manifest is None else manifest.model_dump(mode="json"),
            "checkpoints": sorted(path.name for path in attempt.glob("checkpoint_*")),
            "damaged": [path.name for path in attempt.glob("checkpoint_*") if damage(path, hashes=True)],
            "hidden": sorted(path.name for path in attempt.glob(".*")),
            "steps": steps(attempt / "metrics.jsonl"),
            "lost": steps(lost) if lost.exists() else None,
        }

    def tree(self) -> dict[str, str]:
        """The SHA-256 of each file, by its path within the place."""
        return {
            str(path.relative_to(self.path)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(self.path.rglob("*"))
            if path.is_file()
        }


class Worker:
    """Makes places, and the two runs that several scenarios start from."""

    def __init__(self, folder: Path, ranks: Ranks) -> None:
        self.folder, self.ranks = folder, ranks

    @cached_property
    def undisturbed(self) -> Place:
        """A run that was never ended."""
        place = self.place("undisturbed")
        done = place.launch()
        assert done["error"] is None, done
        return place

    @cached_property
    def killed(self) -> Place:
        """A run that was killed after update ``DIES_AT``."""
        place = self.place("killed")
        place.killed(DIES_AT)
        return place

    def place(self, name: str) -> Place:
        """An empty place."""
        return Place(self.folder / name, self.ranks)

    def copy(self, name: str, of: Place | None = None) -> Place:
        """A copy of a place; by default of the killed run's."""
        shutil.copytree((of or self.killed).path, self.folder / name)
        return self.place(name)

    def end(self, place: Place, *overrides: str) -> Outcome:
        """Launches the run to its end and compares it with the undisturbed one."""
        outcome = place.launch(*overrides)
        found = differences(place.attempt, self.undisturbed.attempt) if outcome["error"] is None else None
        return {**outcome, **place.state(), "differences": found}


def steps(path: Path) -> list[int]:
    """Numbers of the updates in a record."""
    # A full disk leaves half a line, which the next launch puts aside.
    lines = [json.loads(line) for line in path.read_text().splitlines(keepends=True) if line.endswith("}\n")]
    return [line["global_step"] for line in lines if "train/loss" in line]


def losses(place: Place) -> list[float]:
    """Training losses in the record of the newest attempt."""
    return [line["train/loss"] for line in read_metrics(place.attempt / "metrics.jsonl") if "train/loss" in line]
