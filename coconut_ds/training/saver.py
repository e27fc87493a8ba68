"""Saves the checkpoints of a run: decides when, collects what they consist of, and keeps track of the best one.

``checkpoint_writer`` writes them, in the background if the run is configured so.
"""

import copy
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path

from coconut_ds.distributed.background import Background
from coconut_ds.evaluation.prediction import Evaluation, Prediction, with_category, writes_all_steps
from coconut_ds.model.card import ModelCard, marker_table
from coconut_ds.model.feed import feed_state
from coconut_ds.runs.fencing import Fence, LostRunError
from coconut_ds.runs.folder import ENGINE, RunFolder
from coconut_ds.runs.lock import RunLock
from coconut_ds.runs.manifest import RunManifest
from coconut_ds.runs.resume_state import Position, ResumeState, Scores
from coconut_ds.training.checkpoint_writer import CheckpointContent, CheckpointWriter, keeps_best
from coconut_ds.training.engine import Engine
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog
from coconut_ds.training.versions import versions

NUM_SAMPLES = 5
"""Validation problems per epoch that are written to the run folder with the model's answers."""


@dataclass
class RunSaver:
    """Writes checkpoints. All ranks must make the same calls; only rank 0 has manifest, metrics, lock and fence."""

    experiment: Experiment
    folder: RunFolder
    fence: Fence | None
    """Through which rank 0 changes the files of the run."""
    manifest: RunManifest | None = None
    metrics: MetricsLog | None = None
    lock: RunLock | None = None
    background: Background | None = None
    """The thread that writes checkpoints while training goes on; None: training waits."""
    scores: Scores = field(default_factory=Scores)
    notify: Callable[[str], None] = print
    seconds: float = 0.0
    """Time for which this launch has not trained because of saving."""
    _unfinished: CheckpointContent | None = None
    """The checkpoint that is being written in the background."""
    _said_no_room: bool = False

    def __post_init__(self) -> None:
        assert (self.fence is not None) == self.experiment.ranks.is_first
        self._writer = CheckpointWriter(
            self.experiment, self.folder, self.fence, self.manifest, self.metrics, self.notify
        )
        if self.background is not None:
            self._writer.own_tokenizer()

    def after_epoch(
        self, engine: Engine, position: Position, stage: int, evaluation: Evaluation, last: bool, phase: int = 0
    ) -> None:
        """Saves a checkpoint if one is due after this epoch, and always after the last one (``last``).

        Some predictions are analysed and written afterwards: they are optional, and an error must not cost an epoch.
        ``phase`` is that of ``data.schedule`` in the epoch.
        """
        improved = self.scores.record(stage, evaluation.accuracy, phase)
        due = position.epoch % self.experiment.config.training.save_every == 0
        with self._saving():
            if due or last or (improved and keeps_best(self.experiment.config)):
                self.save(engine, position, stage, improved)
            if self.experiment.ranks.is_first:
                self._write_samples(position.epoch, stage, evaluation, phase)

    def _write_samples(self, epoch: int, stage: int, evaluation: Evaluation, phase: int) -> None:
        run = self.experiment
        valid = (*run.earlier, run.problems)[phase].valid

        def analysed(one: Prediction) -> Prediction:
            writes_all = writes_all_steps(run.method, stage, evaluation.num_thoughts + evaluation.num_pauses)
            return with_category(one, valid[one.index], run.config.data.text_format, writes_all)

        samples = [analysed(one) for one in evaluation.predictions[:NUM_SAMPLES]]
        try:
            assert self.fence is not None
            self.folder.write_samples(epoch, [one.as_dict() for one in samples], self.fence.write)
        except LostRunError:
            # All ranks learn of it at the next update.
            return
        except OSError as error:
            self.notify(f"warning: {self.folder.path}: the samples of epoch {epoch} could not be written ({error})")

    def is_saved(self, position: Position) -> bool:
        """Whether the checkpoint written last is of this position."""
        return self.scores.last_checkpoint == self.folder.checkpoint(position.epoch, position.batch).name

    def save(self, engine: Engine, position: Position, stage: int, improved: bool = False) -> None:
        """Writes a checkpoint, then removes those that are not to be kept.

        With ``background``, it only copies what the checkpoint consists of, provided that there is memory for it on
        every rank; ``finish`` waits until it is written. A checkpoint that is still being written is waited for first.

        Args:
            engine: holds weights and optimizer state.
            position: how far the run has trained.
            stage: of the current epoch.
            improved: whether this is the best checkpoint so far.

        Raises:
            CheckpointError: a rank could not write this checkpoint or the one before, or another launch took over the
                run. Earlier checkpoints are untouched.
        """
        self.finish()
        began = time.perf_counter()
        with self._saving():
            self.check_lock()
            content = self._content(engine, position, stage, improved)
            self._writer.prepare(content, content.engine.encode)
            if self._copies(content):
                assert self.background is not None
                self._unfinished = content
                self.background.start(lambda: self._write_copy(content))
            else:
                self._writer.write(content, self.experiment.ranks.gather)
                self._forget_best(content)
        self.seconds += time.perf_counter() - began

    def _write_copy(self, content: CheckpointContent) -> None:
        """What the second thread does."""
        assert self.background is not None
        try:
            self._writer.write(content, self.background.gather)
        finally:
            content.release()

    def _content(self, engine: Engine, position: Position, stage: int, improved: bool) -> CheckpointContent:
        """Collects what the checkpoint consists of on this rank; the engine's tensors are not copied yet."""
        ranks, trained = self.experiment.ranks, self.experiment.backbone.feed
        target = self.folder.checkpoint(position.epoch, position.batch)
        temporary = ranks.from_first(None if self.fence is None else self.fence.part(target.name))
        assert temporary is not None
        self._writer.make_folder(temporary, target)
        snapshot, state = engine.snapshot(temporary / ENGINE), engine.model_state()
        feed = None if trained is None else feed_state(trained, ranks.is_first)
        self.scores.last_checkpoint = target.name
        if improved:
            self.scores.best_checkpoint = target.name
        metrics_bytes = self.metrics.num_bytes if self.metrics is not None else 0
        resume = ResumeState(copy.deepcopy(position), replace(self.scores), metrics_bytes, ranks.size)
        return CheckpointContent(target, temporary, stage, snapshot, state, feed, self._card(position, stage), resume)

    def _copies(self, content: CheckpointContent) -> bool:
        """Copies the engine's tensors if the checkpoint is to be written in the background; returns whether it is."""
        if self.background is None:
            return False
        num_bytes = content.engine.num_bytes
        if self.experiment.ranks.any(not self.background.has_room(num_bytes)):
            if not self._said_no_room:
                self.notify(
                    "run.async_save: there is too little memory for a copy of the engine's state "
                    f"({num_bytes / 1e9:.1f} GB on rank 0), so training waits while checkpoints are written"
                )
            self._said_no_room = True
            return False
        self._writer.prepare(content, content.engine.copy)
        return True

    def finish(self) -> None:
        """Waits until the checkpoint that is being written is complete. All ranks call it.

        Raises:
            CheckpointError: it could not be written, or another launch took over the run.
        """
        if self.background is None or self._unfinished is None:
            return
        began, content, self._unfinished = time.perf_counter(), self._unfinished, None
        with self._saving():
            error = self.background.wait()
        self.seconds += time.perf_counter() - began
        if error is not None:
            raise error
        self._forget_best(content)

    def close(self) -> None:
        """Waits until the checkpoint that is being written is complete, and reports if it could not be written. Unlike
        ``finish``, a rank may call it alone: after an error, the others may be elsewhere."""
        self._unfinished = None
        with self._saving():
            error = None if self.background is None else self.background.wait()
        if error is not None:
            self.notify(f"warning: {error}")

    def _saving(self) -> AbstractContextManager[None]:
        """Tells the watchdog what this process is doing."""
        return self.experiment.ranks.progress.during("saving a checkpoint", host_work=True)

    @property
    def failed(self) -> bool:
        """Whether a checkpoint could not be written in the background; ``finish`` raises the error."""
        return self.background is not None and self.background.failed

    def _forget_best(self, content: CheckpointContent) -> None:
        """Forgets the best checkpoint if it was gone once ``content`` had been written."""
        if content.resume.scores.best_checkpoint is None and self.scores.best_checkpoint == content.best_before:
            self.scores.best_checkpoint = None

    @property
    def lock_lost(self) -> bool:
        """Whether the last heartbeat of the lock found that another launch had taken over the run."""
        return self.lock is not None and self.lock.lost

    def check_lock(self) -> None:
        """Checks that this launch still holds the lock of the run. A launch that was suspended may have lost it.

        Raises:
            LostRunError: another launch has taken over the run; raised on all ranks.
        """
        if self.experiment.ranks.any(self.fence is not None and self.fence.find_lost()):
            raise LostRunError.of(self.folder.path)

    def resume_from(self, checkpoint: Path, scores: Scores) -> None:
        """Restores the scores of a checkpoint, and removes old checkpoints that its launch may have had no time for."""
        self.scores = replace(scores)
        if self.experiment.ranks.is_first:
            self._writer.prune(checkpoint, self.scores)

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
                # The trainer changes its list while the card may still be written.
                "stage_switches": list(position.stage_switches),
                **({"data_switches": list(position.data_switches)} if run.earlier else {}),
                "validation_accuracy": None if position.batch else self.scores.last_accuracy,
                "run": run.config.run.name,
                "signature": self.folder.signature,
                "seed": run.config.run.seed,
                "data": run.config.data.kind,
                **versions(),
            },
            run.config.parallel,
            None if run.backbone.feed is None else run.backbone.feed.spec,
            run.config.data.chat_template,
        )
