"""When and where checkpoints of a run are written, which of them is the best, and which are kept.

A checkpoint is a sealed folder: the model at its top, for evaluation and serving, and ``engine/`` for a resume alone.
"""

import errno
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from coconut_ds.errors import CheckpointError
from coconut_ds.evaluation.prediction import Evaluation
from coconut_ds.files import is_complete, put_in_place, remove_folder, seal
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import write_model
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest
from coconut_ds.runs.resume_state import Position, ResumeState, Scores
from coconut_ds.training.engine import SHARED, Engine, random_file
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog
from coconut_ds.training.versions import versions

NUM_SAMPLES = 5
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Errors of a disk without room."""


@dataclass
class RunSaver:
    """Writes checkpoints. All ranks must make the same calls; rank 0 has manifest and record."""

    experiment: Experiment
    folder: RunFolder
    manifest: RunManifest | None = None
    metrics: MetricsLog | None = None
    lock: RunLock | None = None
    scores: Scores = field(default_factory=Scores)
    notify: Callable[[str], None] = print
    seconds: float = 0.0
    """Spent on saving by this launch."""

    def after_epoch(self, engine: Engine, position: Position, stage: int, evaluation: Evaluation, last: bool) -> None:
        """Saves where it is due. ``last``: no epoch follows."""
        improved = self.scores.record(stage, evaluation.accuracy)
        if self.experiment.ranks.is_first:
            self.folder.write_samples(position.epoch, [p.as_dict() for p in evaluation.predictions[:NUM_SAMPLES]])
        due = position.epoch % self.experiment.config.training.save_every == 0
        if due or last or (improved and self._keeps_best):
            self.save(engine, position, stage, improved)

    @property
    def _keeps_best(self) -> bool:
        return self.experiment.config.training.keep_best or self.experiment.config.run.save_only_improve

    def is_saved(self, position: Position) -> bool:
        """Whether the last checkpoint is of this position."""
        return self.scores.last_checkpoint == self.folder.checkpoint(position.epoch, position.batch).name

    def save(self, engine: Engine, position: Position, stage: int, improved: bool = False) -> None:
        """Writes a checkpoint, then removes those that are not to be kept.

        Raises:
            CheckpointError: it could not be written; those before it are untouched.
        """
        began, ranks = time.perf_counter(), self.experiment.ranks
        self.stand_down_if_lost()
        target = self.folder.checkpoint(position.epoch, position.batch)
        # Nobody else writes to a folder of this name, not even ranks of a launch that died and were left behind.
        temporary = target.with_name(f".{target.name}.part.{ranks.from_first(secrets.token_hex(4))}")
        self._agree(target, temporary, self._first(lambda: (temporary / ENGINE).mkdir(parents=True)))
        self._agree(target, temporary, _tried(lambda: engine.save_state(temporary / ENGINE)))
        state = engine.model_state()
        self.scores.last_checkpoint = target.name
        if improved:
            self.scores.best_checkpoint = target.name
        self._agree(target, temporary, self._first(lambda: self._finish(temporary, target, state, position, stage)))
        self._agree(self.folder.path, temporary, self._first(lambda: self._settle(target, position, stage)))
        self.seconds += time.perf_counter() - began

    @property
    def lost(self) -> bool:
        """Whether this process found, at its last heartbeat, that another launch took over."""
        return self.lock is not None and self.lock.lost

    def stand_down_if_lost(self) -> None:
        """A launch that slept too long may not write into what another goes on with.

        Raises:
            CheckpointError: on all ranks, where another launch took the lock over.
        """
        if self.experiment.ranks.any(self.lock is not None and not self.lock.still_ours()):
            raise CheckpointError(
                f"{self.folder.path}: another launch took the run over while this one gave no sign of life; this one "
                "ends"
            )

    def resume_from(self, checkpoint: Path, scores: Scores) -> None:
        """Restores the scores recorded in a checkpoint, and finishes the pruning that its launch may not have done."""
        self.scores = replace(scores)
        if self.experiment.ranks.is_first:
            self._prune(checkpoint)

    def _finish(self, temporary: Path, target: Path, state: dict[str, Any], position: Position, stage: int) -> None:
        backbone = self.experiment.backbone
        write_model(temporary, backbone.model, state, backbone.tokenizer, self._card(position, stage))
        metrics_bytes = self.metrics.flushed() if self.metrics is not None else 0
        resume_state = ResumeState(position, self.scores, metrics_bytes, self.experiment.ranks.size)
        resume_state.write(temporary / ENGINE / RESUME_STATE)
        absent = [str(rank) for rank in range(self.experiment.ranks.size) if not _wrote(temporary, rank)]
        if absent:
            raise OSError(f"the part of rank {', '.join(absent)} is not here: {SHARED}")
        seal(temporary, signature=self.folder.signature, epoch=position.epoch, global_step=position.global_step)
        put_in_place(temporary, target)

    def _first(self, write: Callable[[], object]) -> Exception | None:
        """What hindered rank 0; others do nothing."""
        return _tried(write) if self.experiment.ranks.is_first else None

    def _agree(self, target: Path, temporary: Path, error: Exception | None) -> None:
        """If one rank could not write, all stop; what was written of this checkpoint goes."""
        found = None if error is None else (str(error) or type(error).__name__, getattr(error, "errno", None))
        errors = {rank: one for rank, one in enumerate(self.experiment.ranks.gather(found)) if one is not None}
        if not errors:
            return
        if self.experiment.ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        texts = "; ".join(f"rank {rank}: {text}" for rank, (text, _) in errors.items())
        room = "make room and " if any(number in (None, *FULL) for _, number in errors.values()) else ""
        raise CheckpointError(
            f"{target}: could not be written ({texts}); earlier checkpoints are untouched: {room}start the same "
            "command again"
        )

    def _settle(self, newest: Path, position: Position, stage: int) -> None:
        """Removes checkpoints that are not to be kept, then notes in the manifest what is there."""
        self._prune(newest)
        if self.manifest is None:
            return
        scores = self.scores
        self.manifest.resume_epoch, self.manifest.resume_step = position.epoch, position.global_step
        self.manifest.stage = stage
        self.manifest.last_checkpoint, self.manifest.best_checkpoint = scores.last_checkpoint, scores.best_checkpoint
        self.manifest.best_accuracy = None if scores.best_stage < 0 else scores.best_accuracy
        self.manifest.write(self.folder.manifest)

    def _prune(self, newest: Path) -> None:
        """Removes what is neither new nor best. A folder that is damaged is left for people to look at."""
        training, run = self.experiment.config.training, self.experiment.config.run
        found = self.folder.checkpoints()
        # Those further on could not be resumed from: they must not push out one that can.
        there = [path for path in found[found.index(newest) :] if is_complete(path)]
        keep_last = 1 if run.save_only_improve else training.keep_last
        kept = there if keep_last is None else there[:keep_last]
        for path in there:
            is_best = path.name == self.scores.best_checkpoint and self._keeps_best
            if path not in kept and not is_best:
                try:
                    remove_folder(path)
                except OSError as error:
                    # Over a network, a file that somebody reads keeps its folder.
                    self.notify(f"warning: {path}: could not be removed ({error}); the next launch does it")
        best = self.scores.best_checkpoint
        if best is not None and not (self.folder.path / best).is_dir():
            self.scores.best_checkpoint = None

    def _card(self, position: Position, stage: int) -> ModelCard:
        run = self.experiment
        return ModelCard.of(
            run.method,
            stage,
            run.spec,
            run.config.data.format,
            marker_table(run.backbone.markers),
            {
                "epoch": position.epoch,
                "batch": position.batch,
                "global_step": position.global_step,
                "stage_switches": position.stage_switches,
                "validation_accuracy": None if position.batch else self.scores.last_accuracy,
                "run": run.config.run.name,
                "signature": self.folder.signature,
                "seed": run.config.run.seed,
                "data": run.config.data.kind,
                **versions(),
            },
            run.config.method.jacobi_iterations,
        )


def _wrote(temporary: Path, rank: int) -> bool:
    return random_file(temporary / ENGINE, rank).is_file()


def _tried(write: Callable[[], object]) -> Exception | None:
    """What hindered it."""
    try:
        write()
    # DeepSpeed's and torch's writers turn a full disk into RuntimeErrors.
    except (OSError, RuntimeError, SafetensorError) as error:
        return error
    except Exception as error:
        # The writer of tokenizers raises this very class.
        if type(error) is not Exception:
            raise
        return error
    return None
