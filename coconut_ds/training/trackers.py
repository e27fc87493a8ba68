"""Sends the metrics of a run to experiment trackers, through the interface that accelerate has for them.

The only module that imports accelerate. ``run.wandb`` has a mirror of its own (``wandb_mirror``).
"""

import importlib.util
import logging
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.packages import install_line
from coconut_ds.runs.identity import flattened
from coconut_ds.settings import Config
from coconut_ds.training.child_processes import child_processes, kill
from coconut_ds.training.mirror_thread import MirrorThread

EXTRAS = ("mlflow", "tensorboard")
"""Trackers that are also the name of an extra of this project."""
PACKAGES = {"tensorboard": ("tensorboard", "tensorboardX")}
"""The packages of a tracker, one of which must be installed, where they are not its own name."""


@dataclass(frozen=True)
class Tracked:
    """The run that a tracker receives."""

    config: Config
    folder: Path
    """Folder of the attempt."""
    run_id: str | None
    """The id under which the tracker knows the attempt; None if it does not know it yet."""
    updates: int
    """Number of updates that the launch resumes from. What an earlier launch logged of later ones is repeated."""


@dataclass(frozen=True)
class _Kind:
    """How a tracker is started, so that a resumed run continues the same tracked run."""

    options: Callable[[Tracked, str], dict[str, Any]]
    """Options of accelerate's tracker for a run and its id; the id of a new run is chosen here."""
    id_of: Callable[[Any], str] | None = None
    """The id that the tracker itself has chosen for a new run; None: it takes the one that it is given."""


def _tensorboard(run: Tracked, run_id: str) -> dict[str, Any]:
    # TensorBoard hides what was logged from this step on, which this launch logs again.
    return {"run_name": "tensorboard", "logging_dir": str(run.folder), "purge_step": run.updates + 1}


def _mlflow(run: Tracked, run_id: str) -> dict[str, Any]:
    settings = run.config.run
    tags = {"attempt": str(run.folder)}
    return {"experiment_name": settings.project, "run_name": settings.name, "run_id": run.run_id, "tags": tags}


def _project(run: Tracked) -> dict[str, Any]:
    # What accelerate calls the name of the run is the project for these trackers.
    return {"run_name": run.config.run.project}


_KINDS: Mapping[str, _Kind] = {
    "aim": _Kind(
        lambda run, _: {**_project(run), "logging_dir": run.config.run.save_path, "run_hash": run.run_id},
        lambda tracker: str(tracker.hash),
    ),
    "clearml": _Kind(
        lambda run, _: {**_project(run), "task_name": run.config.run.name, "continue_last_task": run.run_id or False},
        lambda tracker: str(tracker.id),
    ),
    "comet_ml": _Kind(lambda run, run_id: {**_project(run), "experiment_key": run_id, "mode": "get_or_create"}),
    "dvclive": _Kind(lambda run, _: {"dir": str(run.folder / "dvclive"), "resume": run.run_id is not None}),
    "mlflow": _Kind(_mlflow, lambda tracker: str(tracker.info.run_id)),
    "swanlab": _Kind(lambda run, run_id: {**_project(run), "id": run_id, "resume": "allow"}),
    "tensorboard": _Kind(_tensorboard),
    "trackio": _Kind(
        lambda run, run_id: {**_project(run), "name": f"{run.config.run.name}-{run_id[:8]}", "resume": "allow"}
    ),
}


class _Log(logging.LoggerAdapter[logging.Logger]):
    """Takes the place of accelerate's logger, which works only after accelerate has set up the process itself.

    That would make process groups and set numbers of threads, which a run has done already.
    """

    def warning_once(self, *given: Any, **named: Any) -> None:
        """A function that only accelerate's logger has."""
        self.warning(*given, **named)


class TrackerMirror:
    """A tracker of accelerate that receives the numbers of every line of metrics.

    All calls must come from one thread: mlflow keeps the present run for each thread.
    """

    def __init__(self, name: str, run: Tracked) -> None:
        self.name, self._run, self._kind = name, run, _KINDS[name]
        self.run_id = run.run_id or uuid.uuid4().hex
        self._processes: set[int] = set()

    def start(self) -> None:
        """Starts or continues the tracked run, and stores the configuration of a new one."""
        from accelerate import tracking

        tracking.logger = _Log(logging.getLogger(tracking.__name__), {})
        before = child_processes()
        # Rank 0 alone has trackers; asking accelerate for the rank would set up the process.
        tracker = type(self.name, (tracking.LOGGER_TYPE_TO_CLASS[self.name],), {"main_process_only": False})
        self._tracker = tracker(**self._kind.options(self._run, self.run_id))
        self._tracker.start()
        self._processes = child_processes() - before
        if self._run.run_id is None:
            self._tracker.store_init_configuration(_plain(self._run.config))
            if self._kind.id_of is not None:
                self.run_id = self._kind.id_of(self._tracker.tracker)

    def log(self, values: dict[str, Any], step: int) -> None:
        """Sends the numbers of one line; lists are in the record only."""
        numbers = {key: value for key, value in values.items() if type(value) in (int, float)}
        self._tracker.log(numbers, step=step)

    def close(self) -> None:
        """Sends what has not been sent, and ends the tracked run."""
        self._tracker.finish()

    def abandon(self) -> None:
        """Kills the processes that the tracker has started."""
        kill(self._processes)


def open_tracker(name: str, run: Tracked) -> tuple[MirrorThread, str]:
    """Starts a tracker; returns the mirror that feeds it, and the id under which the tracker knows the run.

    Raises:
        ConfigError: the tracker does not start.
    """
    mirror = TrackerMirror(name, run)
    thread = MirrorThread(mirror)
    try:
        thread.begin(mirror.start)
    except Exception as error:
        # Trackers are code of other projects, whose errors have no common base.
        others = ",".join(other for other in run.config.run.trackers if other != name)
        raise ConfigError(
            f"run.trackers: {name} did not start ({type(error).__name__}: {error}); correct its settings, or set "
            f"run.trackers=[{others}]"
        ) from error
    return thread, mirror.run_id


def other_trackers(config: Config) -> list[str]:
    """The trackers to start besides wandb."""
    return [] if config.run.debug else [name for name in config.run.trackers if name != "wandb"]


def refuse_missing_trackers(config: Config) -> None:
    """Refuses trackers whose packages are not installed; loads none of them.

    Raises:
        ConfigError: a package is missing; says how to install it.
    """
    for name in other_trackers(config):
        packages = PACKAGES.get(name, (name,))
        if not any(importlib.util.find_spec(package) for package in packages):
            line = install_line(name) if name in EXTRAS else f"pip install {name}"
            raise ConfigError(f"run.trackers: the package {packages[0]} is missing; install it with: {line}")


def _plain(config: Config) -> dict[str, Any]:
    """The configuration by dotted key, with values of the kinds that every tracker takes."""
    values = flattened(config.model_dump(mode="json"))
    return {key: value if isinstance(value, (bool, int, float, str)) else str(value) for key, value in values.items()}
