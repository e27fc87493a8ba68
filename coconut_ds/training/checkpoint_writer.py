"""Writes one checkpoint of a run from the content that ``RunSaver`` has collected, in this thread or in another one.

A checkpoint is a sealed folder (see ``files``). Its top level is the model, for evaluation and serving; its subfolder
``engine/`` is needed only to resume the run.
"""

import copy
import errno
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor

from coconut_ds.distributed.ranks import Ranks
from coconut_ds.errors import CheckpointError, CoconutError
from coconut_ds.files import is_complete, seal
from coconut_ds.model.card import ModelCard
from coconut_ds.model.checkpoint import write_model
from coconut_ds.model.readme import Origin
from coconut_ds.runs.fencing import Fence, LostRunError, pinned
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder
from coconut_ds.runs.manifest import RunManifest
from coconut_ds.runs.resume_state import ResumeState, Scores
from coconut_ds.settings import Config
from coconut_ds.training.engine_state import SHARED, EngineSnapshot, random_file
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.metrics import MetricsLog

FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk."""
Gather = Callable[[Any], list[Any]]
"""Returns the values of all ranks, on every rank; all ranks call it."""


@dataclass
class CheckpointContent:
    """What a checkpoint consists of on one rank, at one moment of the training."""

    target: Path
    temporary: Path
    """A folder in the launch folder, with an empty subfolder for the engine; rank 0 has made it."""
    stage: int
    engine: EngineSnapshot
    model: dict[str, Tensor]
    """State dict of the model, on the CPU; empty on ranks other than 0."""
    feed: dict[str, Tensor] | None
    card: ModelCard
    resume: ResumeState

    def __post_init__(self) -> None:
        self.best_before = self.resume.scores.best_checkpoint
        """The best checkpoint when the content was collected."""

    def release(self) -> None:
        """Gives up the tensors, which take memory."""
        self.engine, self.model, self.feed = EngineSnapshot([]), {}, None


class CheckpointWriter:
    """Writes checkpoints, and removes those that are not to be kept. Only rank 0 has a fence and a manifest."""

    def __init__(
        self,
        experiment: Experiment,
        folder: RunFolder,
        fence: Fence | None,
        manifest: RunManifest | None,
        metrics: MetricsLog | None,
        notify: Callable[[str], None],
    ) -> None:
        self._ranks: Ranks = experiment.ranks
        self._config: Config = experiment.config
        self._backbone, self._folder, self._fence = experiment.backbone, folder, fence
        self._manifest, self._metrics, self._notify = manifest, metrics, notify
        self._tokenizer = experiment.backbone.tokenizer

    def own_tokenizer(self) -> None:
        """Makes a copy of the tokenizer, so that another thread can write it while this one uses the original."""
        self._tokenizer = copy.deepcopy(self._tokenizer)

    def make_folder(self, temporary: Path, target: Path) -> None:
        """Makes the folder that a checkpoint is written to. All ranks call it.

        Raises:
            CheckpointError: it cannot be made, or another launch has taken over the run.
        """

        def make() -> None:
            # Without missing parents: the launch folder is gone if another launch has taken over the run.
            temporary.mkdir()
            (temporary / ENGINE).mkdir()

        self._raise_on_all(target, temporary, self._try_on_first(make), self._ranks.gather)

    def prepare(self, content: CheckpointContent, step: Callable[[], object]) -> None:
        """Runs a step that makes the content ready to be written, without exchanges. All ranks call it.

        Raises:
            CheckpointError: the step failed on a rank, or another launch has taken over the run.
        """
        self._raise_on_all(content.target, content.temporary, _try_to(step), self._ranks.gather)

    def write(self, content: CheckpointContent, gather: Gather) -> None:
        """Writes a checkpoint, then removes those that are not to be kept. All ranks call it.

        Sets ``content.resume.scores.best_checkpoint`` to None if this checkpoint no longer exists.

        Args:
            content: of this rank.
            gather: exchanges errors between the threads that write.

        Raises:
            CheckpointError: a rank could not write, or another launch took over the run. Earlier checkpoints are
                untouched.
        """
        target, temporary = content.target, content.temporary
        self._raise_on_all(target, temporary, _try_to(lambda: _write_engine(content)), gather)
        self._raise_on_all(target, temporary, self._try_on_first(lambda: self._write_rest(content)), gather)
        self._raise_on_all(self._folder.path, temporary, self._try_on_first(lambda: self._tidy(content)), gather)

    def _write_rest(self, content: CheckpointContent) -> None:
        """Adds the model and the resume state to the engine's files, then seals the folder and gives it its name."""
        temporary, resume, fence = content.temporary, content.resume, self._fence
        assert fence is not None
        with pinned(temporary) as path:
            card, origin = content.card, origin_of(self._config)
            write_model(path, self._backbone.model, content.model, self._tokenizer, card, content.feed, origin)
        if self._metrics is not None:
            self._metrics.sync()
        resume.write(temporary / ENGINE / RESUME_STATE)
        absent = [str(rank) for rank in range(self._ranks.size) if not random_file(temporary / ENGINE, rank).is_file()]
        if absent:
            raise OSError(f"files of rank {', '.join(absent)} are missing: {SHARED}")
        position = resume.position
        facts = {"epoch": position.epoch, "global_step": position.global_step, "launch": fence.number}
        seal(temporary, signature=self._folder.signature, **facts)
        fence.put(temporary, content.target)

    def _tidy(self, content: CheckpointContent) -> None:
        """Removes checkpoints that are not to be kept, then records the new state in the manifest."""
        position, scores, manifest = content.resume.position, content.resume.scores, self._manifest
        self.prune(content.target, scores)
        if manifest is None:
            return
        manifest.resume_epoch, manifest.resume_step = position.epoch, position.global_step
        manifest.stage = content.stage
        manifest.last_checkpoint, manifest.best_checkpoint = scores.last_checkpoint, scores.best_checkpoint
        manifest.best_accuracy = None if scores.best_stage < 0 else scores.best_accuracy
        assert self._fence is not None
        manifest.write(self._folder.manifest, self._fence.write)

    def prune(self, newest: Path, scores: Scores) -> None:
        """Removes complete checkpoints that are neither among the newest nor the best; keeps damaged ones. Rank 0 only.

        Sets ``scores.best_checkpoint`` to None if this checkpoint no longer exists.
        """
        training, run, fence = self._config.training, self._config.run, self._fence
        assert fence is not None
        fence.check()
        found = self._folder.checkpoints()
        # Damaged checkpoints, and later ones than the one that was resumed from, do not count: they must not displace a
        # checkpoint that can be resumed from.
        older = found[found.index(newest) :] if newest in found else []
        there = [path for path in older if is_complete(path)]
        keep_last = 1 if run.save_only_improve else training.keep_last
        kept = there if keep_last is None else there[:keep_last]
        for path in there:
            is_best = path.name == scores.best_checkpoint and keeps_best(self._config)
            if path not in kept and not is_best:
                try:
                    fence.discard(path)
                except OSError as error:
                    # On a network file system, a folder cannot be removed while another process reads one of its files.
                    self._notify(f"warning: {path}: could not be removed ({error}); the next launch will remove it")
        best = scores.best_checkpoint
        if best is not None and not (self._folder.path / best).is_dir():
            scores.best_checkpoint = None

    def _try_on_first(self, write: Callable[[], object]) -> Exception | None:
        """Runs ``write`` on rank 0 only; returns the exception that kept it from writing, or None."""
        return _try_to(write) if self._ranks.is_first else None

    def _raise_on_all(self, target: Path, temporary: Path, error: Exception | None, gather: Gather) -> None:
        """Raises on all ranks if any rank passes an error; removes the unfinished checkpoint first.

        A rank whose error is one of the program raises that error itself.
        """
        found = None if error is None else (_text(error), getattr(error, "errno", None))
        errors = {rank: one for rank, one in enumerate(gather(found)) if one is not None}
        if not errors:
            return
        if any(gather(self._fence is not None and self._fence.find_lost())):
            raise LostRunError.of(self._folder.path)
        if self._ranks.is_first:
            shutil.rmtree(temporary, ignore_errors=True)
        if error is not None and not _is_for_users(error):
            # With its traceback; the other ranks raise its text.
            raise error
        texts = "; ".join(f"rank {rank}: {text}" for rank, (text, _) in errors.items())
        room = "make room and " if any(number in (None, *FULL) for _, number in errors.values()) else ""
        raise CheckpointError(
            f"{target}: could not be written ({texts}); earlier checkpoints are untouched: {room}start the same "
            "command again"
        ) from error


def origin_of(config: Config) -> Origin:
    """What the model card of a run's checkpoints says about the training; no path, since people publish it."""
    data, model = config.data, config.model
    is_published = model.model_init == "pretrained" and not Path(model.model_id).exists()
    return Origin(
        config.objective.kind,
        Path(data.train_path).name if data.kind == "file" and data.train_path else data.kind,
        model.model_id if is_published else None,
    )


def keeps_best(config: Config) -> bool:
    """Whether the best checkpoint is kept besides the newest ones."""
    return config.training.keep_best or config.run.save_only_improve


def _write_engine(content: CheckpointContent) -> None:
    with pinned(content.temporary / ENGINE) as path:
        content.engine.write(path)


def _text(error: Exception) -> str:
    """What other ranks are told about an error."""
    text = str(error) if _is_for_users(error) else f"{type(error).__name__}: {error}"
    return text or type(error).__name__


def _is_for_users(error: Exception) -> bool:
    """Whether it is an error of the disk or of the settings, rather than of the program."""
    # On a full disk, the writers of torch and safetensors raise RuntimeError and SafetensorError, tokenizers Exception.
    known = isinstance(error, (OSError, CoconutError, RuntimeError, SafetensorError))
    return known or type(error) is Exception


def _try_to(write: Callable[[], object]) -> Exception | None:
    """Runs ``write``; returns the exception that kept it from writing, or None.

    It catches every exception: the other ranks wait for this one in the exchange of errors.
    """
    try:
        write()
    except Exception as error:
        return error
    return None
