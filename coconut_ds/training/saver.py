"""Writes the checkpoints of a run: decides when, keeps track of the best one, and removes those not to be kept.

A checkpoint is a sealed folder (see ``files``). Its top level is the model, for evaluation and serving; its subfolder
``engine/`` is needed only to resume the run.
"""

import errno
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from coconut_ds.errors import CheckpointError, CoconutError
from coconut_ds.evaluation.prediction import Evaluation, Prediction, with_category, writes_all_steps
from coconut_ds.files import is_complete, seal
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.checkpoint import write_model
from coconut_ds.model.feed import feed_state
from coconut_ds.runs.fencing import Fence, LostRunError, pinned
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest
from coconut_ds.runs.resume_state import Position, ResumeState, Scores
from coconut_ds.training.engine import SHARED, Engine, random_file
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog
from coconut_ds.training.versions import versions

NUM_SAMPLES = 5
"""Validation problems per epoch that are written to the run folder with the model's answers."""
FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""


@dataclass
class RunSaver:
    """Writes checkpoints. All ranks must make the same calls; only rank 0 has manifest, metrics, lock and fence."""

    experiment: Experiment
    folder: RunFolder
    manifest: RunManifest | None = None
    metrics: MetricsLog | None = None
    lock: RunLock | None = None
    fence: Fence | None = None
    """Through which the files of the run are changed; None: ``lock`` gets a new one on rank 0."""
    scores: Scores = field(default_factory=Scores)
    notify: Callable[[str], None] = print
    seconds: float = 0.0
    """Time that this launch has spent on saving."""

    def __post_init__(self) -> None:
        if self.fence is None and self.experiment.ranks.is_first:
            self.fence = Fence(self.folder.path.parent, self.lock)

    def after_epoch(self, engine: Engine, position: Position, stage: int, evaluation: Evaluation, last: bool) -> None:
        """Saves a checkpoint if one is due after this epoch, and always after the last one (``last``).

        Some predictions are analysed and written afterwards: they are optional, and an error must not cost an epoch.
        """
        improved = self.scores.record(stage, evaluation.accuracy)
        due = position.epoch % self.experiment.config.training.save_every == 0
        if due or last or (improved and self._keeps_best):
            self.save(engine, position, stage, improved)
        if self.experiment.ranks.is_first:
            self._write_samples(position.epoch, stage, evaluation)

    def _write_samples(self, epoch: int, stage: int, evaluation: Evaluation) -> None:
        run = self.experiment

        def analysed(one: Prediction) -> Prediction:
            writes_all = writes_all_steps(run.method, stage, evaluation.num_thoughts + evaluation.num_pauses)
            return with_category(one, run.problems.valid[one.index], run.config.data.text_format, writes_all)

        samples = [analysed(one) for one in evaluation.predictions[:NUM_SAMPLES]]
        try:
            assert self.fence is not None
            self.folder.write_samples(epoch, [one.as_dict() for one in samples], self.fence.write)
        except LostRunError:
            # All ranks learn of it at the next update.
            return
        except OSError as error:
            self.notify(f"warning: {self.folder.path}: the samples of epoch {epoch} could not be written ({error})")

    @property
    def _keeps_best(self) -> bool:
        return self.experiment.config.training.keep_best or self.experiment.config.run.save_only_improve

    def is_saved(self, position: Position) -> bool:
        """Whether the checkpoint written last is of this position."""
        return self.scores.last_checkpoint == self.folder.checkpoint(position.epoch, position.batch).name

    def save(self, engine: Engine, position: Position, stage: int, improved: bool = False) -> None:
        """Writes a checkpoint, then removes those that are not to be kept.

        Args:
            engine: holds weights and optimizer state.
            position: how far the run has trained.
            stage: of the current epoch.
            improved: whether this is the best checkpoint so far.

        Raises:
            CheckpointError: a rank could not write, or another launch took over the run. Earlier checkpoints are
                untouched.
        """
        began, ranks = time.perf_counter(), self.experiment.ranks
        self.check_lock()
        target = self.folder.checkpoint(position.epoch, position.batch)
        temporary = ranks.from_first(None if self.fence is None else self.fence.part(target.name))
        assert temporary is not None
        self._raise_on_all(target, temporary, self._try_on_first(lambda: _make(temporary)))
        self._raise_on_all(target, temporary, _try_to(lambda: _save_state(engine, temporary)))
        state, trained = engine.model_state(), self.experiment.backbone.feed
        feed = None if trained is None else feed_state(trained, ranks.is_first)
        self.scores.last_checkpoint = target.name
        if improved:
            self.scores.best_checkpoint = target.name
        self._raise_on_all(
            target,
            temporary,
            self._try_on_first(lambda: self._write_rest(temporary, target, state, feed, position, stage)),
        )
        self._raise_on_all(self.folder.path, temporary, self._try_on_first(lambda: self._tidy(target, position, stage)))
        self.seconds += time.perf_counter() - began

    @property
    def lock_lost(self) -> bool:
        """Whether the last heartbeat of the lock found that another launch had taken over the run."""
        return self.lock is not None and self.lock.lost

    def check_lock(self) -> None:
        """Checks that this launch still holds the lock of the run. A launch that was suspended may have lost it.

        Raises:
            LostRunError: another launch has taken over the run; raised on all ranks.
        """
        if self.experiment.ranks.any(self.fence is not None and self.fence.lost):
            raise LostRunError(self.folder.path)

    def resume_from(self, checkpoint: Path, scores: Scores) -> None:
        """Restores the scores of a checkpoint, and removes old checkpoints that its launch may have had no time for."""
        self.scores = replace(scores)
        if self.experiment.ranks.is_first:
            self._prune(checkpoint)

    def _write_rest(
        self,
        temporary: Path,
        target: Path,
        state: dict[str, Any],
        feed: dict[str, Any] | None,
        position: Position,
        stage: int,
    ) -> None:
        """Adds the model and the resume state to the engine's files, then seals the folder and gives it its name."""
        backbone, fence = self.experiment.backbone, self.fence
        assert fence is not None
        with pinned(temporary) as path:
            write_model(path, backbone.model, state, backbone.tokenizer, self._card(position, stage), feed)
        metrics_bytes = self.metrics.flushed() if self.metrics is not None else 0
        resume_state = ResumeState(position, self.scores, metrics_bytes, self.experiment.ranks.size)
        resume_state.write(temporary / ENGINE / RESUME_STATE)
        absent = [str(rank) for rank in range(self.experiment.ranks.size) if not _wrote(temporary, rank)]
        if absent:
            raise OSError(f"files of rank {', '.join(absent)} are missing: {SHARED}")
        facts = {"epoch": position.epoch, "global_step": position.global_step, "launch": fence.number}
        seal(temporary, signature=self.folder.signature, **facts)
        fence.put(temporary, target)

    def _try_on_first(self, write: Callable[[], object]) -> Exception | None:
        """Runs ``write`` on rank 0 only; returns the exception that kept it from writing, or None."""
        return _try_to(write) if self.experiment.ranks.is_first else None

    def _raise_on_all(self, target: Path, temporary: Path, error: Exception | None) -> None:
        """Raises on all ranks if any rank passes an error; removes the unfinished checkpoint first."""
        found = None if error is None else (str(error) or type(error).__name__, getattr(error, "errno", None))
        errors = {rank: one for rank, one in enumerate(self.experiment.ranks.gather(found)) if one is not None}
        if not errors:
            return
        self.check_lock()
        if self.experiment.ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        texts = "; ".join(f"rank {rank}: {text}" for rank, (text, _) in errors.items())
        room = "make room and " if any(number in (None, *FULL) for _, number in errors.values()) else ""
        raise CheckpointError(
            f"{target}: could not be written ({texts}); earlier checkpoints are untouched: {room}start the same "
            "command again"
        )

    def _tidy(self, newest: Path, position: Position, stage: int) -> None:
        """Removes checkpoints that are not to be kept, then records the new state in the manifest."""
        self._prune(newest)
        if self.manifest is None:
            return
        scores = self.scores
        self.manifest.resume_epoch, self.manifest.resume_step = position.epoch, position.global_step
        self.manifest.stage = stage
        self.manifest.last_checkpoint, self.manifest.best_checkpoint = scores.last_checkpoint, scores.best_checkpoint
        self.manifest.best_accuracy = None if scores.best_stage < 0 else scores.best_accuracy
        assert self.fence is not None
        self.manifest.write(self.folder.manifest, self.fence.write)

    def _prune(self, newest: Path) -> None:
        """Removes complete checkpoints that are neither among the newest nor the best. Keeps damaged ones."""
        training, run = self.experiment.config.training, self.experiment.config.run
        found = self.folder.checkpoints()
        # Damaged checkpoints, and later ones than the one that was resumed from, do not count: they must not displace a
        # checkpoint that can be resumed from.
        there = [path for path in found[found.index(newest) :] if is_complete(path)]
        keep_last = 1 if run.save_only_improve else training.keep_last
        kept = there if keep_last is None else there[:keep_last]
        for path in there:
            is_best = path.name == self.scores.best_checkpoint and self._keeps_best
            if path not in kept and not is_best:
                try:
                    assert self.fence is not None
                    self.fence.discard(path)
                except OSError as error:
                    # On a network file system, a folder cannot be removed while another process reads one of its files.
                    self.notify(f"warning: {path}: could not be removed ({error}); the next launch will remove it")
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
            run.config.parallel,
            None if run.backbone.feed is None else run.backbone.feed.spec,
        )


def _make(temporary: Path) -> None:
    # Without missing parents: the launch folder no longer exists if another launch has taken over the run.
    temporary.mkdir()
    (temporary / ENGINE).mkdir()


def _save_state(engine: Engine, temporary: Path) -> None:
    with pinned(temporary / ENGINE) as path:
        engine.save_state(path)


def _wrote(temporary: Path, rank: int) -> bool:
    """Whether the files of a rank have arrived; the one checked here is written last."""
    return random_file(temporary / ENGINE, rank).is_file()


def _try_to(write: Callable[[], object]) -> Exception | None:
    """Runs ``write``; returns the exception that kept it from writing, or None. Other exceptions are raised."""
    try:
        write()
    # On a full disk, the writers of DeepSpeed and torch raise RuntimeError.
    except (OSError, RuntimeError, SafetensorError, CoconutError) as error:
        return error
    except Exception as error:
        # The tokenizers library raises plain Exception; a subclass is another error.
        if type(error) is not Exception:
            raise
        return error
    return None
