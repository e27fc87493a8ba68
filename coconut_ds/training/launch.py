"""One launch of a run: which attempt it continues or starts, its record, the trainer, and what came out."""

import errno
import json
import time
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from coconut_ds.distributed.interrupts import Interrupted, Interrupts
from coconut_ds.distributed.random_states import seed_generators
from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.files import remove, write_whole
from coconut_ds.model.precision import SLOW_BF16, multiplies_bf16
from coconut_ds.runs.attempts import SOLVED, Start, choose_start, folder_to_lock
from coconut_ds.runs.folder import ENGINE, RUN_LINE, RunFolder
from coconut_ds.runs.identity import signature, write_ingredients
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest, command_line, now, read_manifest, this_launch
from coconut_ds.settings import Config
from coconut_ds.training.engine import Engine, convert_state
from coconut_ds.training.engine_file import read_engine_file, zero_stage
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.ingredients import run_ingredients
from coconut_ds.training.metrics import MetricsLog, cut_metrics
from coconut_ds.training.position import Position
from coconut_ds.training.progress import ProgressBar
from coconut_ds.training.saver import RunSaver, versions
from coconut_ds.training.trainer import Trainer
from coconut_ds.training.wandb_mirror import open_mirror

UPDATES_APART = 1_000_003
"""Seeds of two updates lie so far apart, and those of two ranks one: where random states cannot be put back, what is
drawn after a resume is at least not what was drawn before."""
CANNOT_WRITE = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
"""Errors of a disk that a user can mend."""


def train(config: Config, ranks: Ranks) -> RunFolder:
    """One launch of the run of ``config``. All ranks call it.

    Raises:
        Interrupted: it was asked to stop, and has saved; the same call carries on.
    """
    started = time.perf_counter()
    progress = ProgressBar(ranks.is_first)
    read_engine_file(config)
    with ExitStack() as stack:
        interrupts = stack.enter_context(Interrupts(ranks.launched))
        experiment = Experiment.prepare(config, ranks, progress.line)
        launch = Launch(experiment, progress, stack)
        start = ranks.first_decides(launch.choose)
        engine = launch.engine(start)
        with launch.on_record(start) as (manifest, metrics):
            saver = RunSaver(experiment, start.folder, manifest, metrics, launch.lock, notify=progress.line)
            position = _position(config, start, saver)
            progress.line(f"{RUN_LINE}{start.path}\n{launch.describe()}")
            if start.checkpoint is not None:
                progress.line(f"resuming from {start.checkpoint.name}: {position.global_step:,} updates done")
            if start.checkpoint is None and ranks.is_first:
                experiment.problems.write(start.folder.problems)
            Trainer(experiment, engine, saver, progress, metrics, interrupts).fit(position)
            if manifest is not None:
                _write_summary(start.folder, position, saver, time.perf_counter() - started)
                manifest.reason = SOLVED if position.solved else None
    progress.line(
        f"done: {saver.scores.best_accuracy:.1%} on validation problems at stage {saver.scores.best_stage}, "
        f"{start.folder.path / str(saver.scores.best_checkpoint or saver.scores.last_checkpoint)}"
    )
    return start.folder


@dataclass
class Launch:
    """What a launch is made of before training begins."""

    experiment: Experiment
    progress: ProgressBar
    stack: ExitStack
    """Holds the lock of the run until the launch ends."""
    lock: RunLock | None = None
    """On rank 0, once an attempt is chosen."""
    ingredients: dict[str, Any] = field(default_factory=dict)
    """What the run is made of; as the lock."""

    def describe(self) -> str:
        """What is trained, for the log."""
        description = self.experiment.describe()
        if self.experiment.config.run.bf16 and not multiplies_bf16(self.experiment.ranks.device):
            description += f"\nrun.bf16=true, but {SLOW_BF16}: fp32 would be many times faster here"
        return description

    def choose(self) -> Start:
        """Rank 0: the lock on the run, and where to begin."""
        config = self.experiment.config
        self.ingredients = run_ingredients(self.experiment)
        name = signature(self.ingredients)
        folder = folder_to_lock(config, name, self.ingredients)
        # Called after the lock is gone: a launch that came to nothing leaves nothing.
        self.stack.callback(_remove_empty, folder)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"run.save_path={config.run.save_path}: cannot be written to ({error})") from error
        self.lock = self.stack.enter_context(RunLock(folder, self.progress.line, waits=True))
        start = choose_start(config, name, self.ingredients, self.progress.line)
        self.lock.name_attempt(start.path.name)
        for path in start.folder.left_overs():
            # What cannot be removed is in nobody's way.
            with suppress(OSError):
                remove(path)
        return start

    def engine(self, start: Start) -> Engine:
        """The engine, with the state of the checkpoint to start from."""
        run = self.experiment
        saved_by = start.resume_state["world_size"] if start.resume_state else run.ranks.size
        converts = saved_by != run.ranks.size and zero_stage(run.config) > 0
        engine = Engine(run.loop(), run.config, run.geometry, run.ranks, load_universal=converts)
        # Weights are drawn; from here on ranks differ, so that dropout does.
        updates = start.resume_state["position"]["global_step"] if start.resume_state else 0
        seed_generators(run.config.run.seed + run.ranks.rank + UPDATES_APART * updates)
        if start.checkpoint is None:
            return engine
        folder = start.checkpoint / ENGINE
        if not converts:
            engine.load_state(folder, same_ranks=saved_by == run.ranks.size)
            return engine
        self.progress.line(f"converting the state of {saved_by} ranks for {run.ranks.size}")
        out = start.path / f".{start.checkpoint.name}.universal"
        run.ranks.first_decides(lambda: convert_state(folder, out))
        engine.load_state(out, same_ranks=False)
        run.ranks.wait()
        run.ranks.first_decides(lambda: remove(out))
        return engine

    @contextmanager
    def on_record(self, start: Start) -> Iterator[tuple[RunManifest | None, MetricsLog | None]]:
        """On rank 0, manifest and record, which say what becomes of the block; on others nothing."""
        record: list[tuple[RunManifest, MetricsLog]] = []
        with _clear_disk_errors(start.path), ExitStack() as stack:
            # What hinders the first rank ends all.
            self.experiment.ranks.first_decides(lambda: record.append(self._open(start, stack)))
            if not record:
                yield None, None
                return
            manifest, metrics = record[0]
            try:
                yield manifest, metrics
                manifest.status, manifest.ended = "completed", now()
                manifest.write(start.folder.manifest)
            except BaseException as error:
                if self.lock is not None and not self.lock.still_ours():
                    # The manifest is another launch's by now.
                    raise
                manifest.status, manifest.ended = "failed", now()
                interrupted = isinstance(error, (Interrupted, KeyboardInterrupt))
                manifest.reason = "interrupted" if interrupted else f"{type(error).__name__}: {error}"
                # A full disk may take no word of it; the next launch goes by the checkpoints.
                with suppress(OSError):
                    manifest.write(start.folder.manifest)
                raise

    def _open(self, start: Start, stack: ExitStack) -> tuple[RunManifest, MetricsLog]:
        manifest = self._manifest(start)
        with _clear_disk_errors(start.path):
            metrics = self._metrics(start, manifest, stack)
            manifest.write(start.folder.manifest)
        return manifest, metrics

    def _manifest(self, start: Start) -> RunManifest:
        run = self.experiment
        launch = this_launch(run.ranks.size, run.geometry.describe())
        if start.resume_state is not None and start.checkpoint is not None:
            launch.from_checkpoint = start.checkpoint.name
            launch.converted = start.resume_state["world_size"] != run.ranks.size
        old = read_manifest(start.folder.manifest)
        launch.note = self._note(start, old)
        if old is None:
            old = RunManifest(
                name=run.config.run.name,
                signature=start.folder.signature,
                attempt=start.path.name,
                status="running",
                num_epochs=run.config.training.num_epochs,
                host=launch.host,
                pid=launch.pid,
                world_size=launch.world_size,
                code={},
                versions=versions(),
                started=now(),
                updated=now(),
            )
        return old.model_copy(
            update={
                "status": "running",
                "reason": None,
                "ended": None,
                "num_epochs": run.config.training.num_epochs,
                "host": launch.host,
                "pid": launch.pid,
                "world_size": launch.world_size,
                "versions": versions(),
                "code": {key.removeprefix("code."): self.ingredients[key] for key in self.ingredients if _is_code(key)},
                "launches": [*old.launches, launch],
                "command": command_line(),
            }
        )

    def _note(self, start: Start, old: RunManifest | None) -> str | None:
        """What makes this not quite the run that it continues; said, and kept."""
        parts = [str(difference) for difference in start.accepted]
        if old is not None:
            here = versions()
            parts += [
                f"{name}: {there} → {here[name]}" for name, there in old.versions.items() if here.get(name) != there
            ]
        note = "; ".join(parts) or None
        if note:
            self.progress.line(f"not as in earlier launches: {note}")
        return note

    def _metrics(self, start: Start, manifest: RunManifest, stack: ExitStack) -> MetricsLog:
        """The record, cut to what the checkpoint knows of, and its mirror."""
        config, folder = self.experiment.config, start.folder
        folder.path.mkdir(parents=True, exist_ok=True)
        manifest.wandb_run_id = manifest.wandb_run_id or uuid.uuid4().hex[:8]
        try:
            mirror, line = open_mirror(config, folder.path, manifest.wandb_run_id)
        except ConfigError:
            if start.is_new:
                remove(folder.path)
            raise
        if line:
            self.progress.line(line)
        lost = cut_metrics(folder.metrics, start.resume_state["metrics_bytes"] if start.resume_state else 0)
        if lost is not None:
            self.progress.line(f"lines of updates after the checkpoint, which are made again, went to {lost.name}")
        if start.is_new:
            write_ingredients(folder.path.parent, self.ingredients)
        write_whole(folder.config, yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False))
        return stack.enter_context(MetricsLog(folder.metrics, mirror))


def _position(config: Config, start: Start, saver: RunSaver) -> Position:
    if start.checkpoint is None or start.resume_state is None:
        return Position(epoch=config.run.resume)
    saver.carry_on(start.checkpoint, start.resume_state["scores"])
    return Position(**start.resume_state["position"])


@contextmanager
def _clear_disk_errors(attempt: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in CANNOT_WRITE:
            raise
        raise CheckpointError(
            f"{attempt}: could not be written to ({error}); its checkpoints are untouched: make room and start the "
            "same command again"
        ) from error


def _remove_empty(folder: Path) -> None:
    """The folder of a signature and those above it up to ``run.save_path``, as far as nothing is in them."""
    with suppress(OSError):
        for path in (folder, *folder.parents[:2]):
            path.rmdir()


def _is_code(key: str) -> bool:
    return key.startswith("code.")


def _write_summary(folder: RunFolder, position: Position, saver: RunSaver, seconds: float) -> None:
    scores = saver.scores
    values: dict[str, Any] = {
        "epochs": position.epoch,
        "updates": position.global_step,
        "stage_switches": position.stage_switches,
        "best_checkpoint": _path(folder, scores.best_checkpoint),
        "best_accuracy": scores.best_accuracy,
        "best_stage": scores.best_stage,
        "last_checkpoint": _path(folder, scores.last_checkpoint),
        "last_accuracy": scores.last_accuracy,
        "duration_s": round(seconds, 1),
        "saving_s": round(saver.seconds, 1),
    }
    write_whole(folder.summary, json.dumps(values, indent=2) + "\n")


def _path(folder: RunFolder, name: str | None) -> str | None:
    return None if name is None else str(folder.path / name)
