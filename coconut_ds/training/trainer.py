"""The training loop: stages, epochs, updates, validation, checkpoints.

It contains no policy: stages and learning rates come from ``curriculum``, batches from ``batches``, sequences from
``Experiment``, gradients from ``Engine``. Its only state is a ``Position``, a few numbers that a checkpoint records.
"""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

import torch

from coconut_ds.data.token_arrays import ProblemArrays
from coconut_ds.distributed.interrupts import Interrupted, Interrupts
from coconut_ds.errors import CheckpointError, CoconutError, NonFiniteError, RewardError
from coconut_ds.evaluation.prediction import Evaluation
from coconut_ds.generation.prompter import Thoughts
from coconut_ds.model.latent_loop import latent_loss
from coconut_ds.runs.resume_state import Position
from coconut_ds.training.batches import BatchGeometry, epoch_batches, plan_update
from coconut_ds.training.curriculum import resets_optimizer
from coconut_ds.training.data_schedule import record_switches
from coconut_ds.training.engine import Engine
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.iterations import Iterations
from coconut_ds.training.metrics import MetricsLog
from coconut_ds.training.prefetch import Prepared, prepared_ahead
from coconut_ds.training.problems import RunProblems
from coconut_ds.training.progress_bar import ProgressBar
from coconut_ds.training.saver import RunSaver
from coconut_ds.training.update_result import UpdateResult


class Step(Protocol):
    """What the trainer does with the problems of one global batch."""

    @property
    def indices(self) -> list[int]:
        """Indices of all problems of the global batch, in the epoch's training set."""

    @property
    def num_tokens(self) -> int:
        """Number of tokens in the global batch; known once the step has run."""

    def run(self, engine: Engine, lr: float, asked_to_stop: Callable[[], bool]) -> UpdateResult:
        """Makes the update."""


@dataclass(frozen=True)
class Trainer:
    """Trains one experiment."""

    experiment: Experiment
    engine: Engine
    saver: RunSaver
    progress: ProgressBar
    metrics: MetricsLog | None
    """None on ranks other than 0."""
    interrupts: Interrupts

    def fit(self, position: Position) -> Position:
        """Trains from ``position`` to the end of the last epoch, or until ``training.stop_at`` is reached.

        Changes ``position`` as it trains, and returns it.

        Raises:
            Interrupted: the run was asked to stop, and has been saved.
            NonFiniteError: loss or gradient norm of an update is not finite.
            CheckpointError: a checkpoint could not be written, or another launch took over the run.
        """
        run, training = self.experiment, self.experiment.config.training
        # The request may have come while the model was loaded; there is nothing new to save.
        self._stop_if_requested(position, position.previous_stage or 0, saved=True)
        while position.epoch < training.num_epochs and not position.solved:
            stage = run.curriculum.stage(position.epoch, position.stage_switches)
            if position.batch == 0 and resets_optimizer(training, stage, position.previous_stage):
                self.engine.reset_optimizer()
                position.updates_since_reset = 0
            with run.ranks.progress.during("preparing the problems of an epoch", host_work=True):
                problems = run.problems_at(position).train(position.epoch)
            batches = epoch_batches(run.config.run.seed, position.epoch, len(problems), run.geometry.global_batch_size)
            left = len(batches) * (training.num_epochs - position.epoch) - position.batch
            self.progress.start(position.global_step + left, position.global_step)
            began = time.perf_counter()
            self._epoch(position, stage, problems, batches)
            evaluation = self._validate_or_save(position, stage, position.loss_sum / len(batches), began)
            self._end_epoch(position, stage, evaluation)
        self.saver.finish()
        self.progress.close()
        return position

    def _end_epoch(self, position: Position, stage: int, evaluation: Evaluation) -> None:
        """Updates schedule, curriculum and position after an epoch, then saves a checkpoint if one is due."""
        run = self.experiment
        phase = run.data_schedule.phase(position.epoch, position.data_switches)
        mastery = evaluation.mastery(run.config.training.advance_metric)
        if switched := record_switches(position, run.data_schedule, run.curriculum, evaluation.wholly_right, mastery):
            self._log(position.epoch, position.global_step, switched)
        position.next_epoch(stage)
        last = position.solved or position.epoch == run.config.training.num_epochs
        self.saver.after_epoch(self.engine, position, stage, evaluation, last, phase)
        self._stop_if_requested(position, stage, saved=self.saver.is_saved(position))

    def _epoch(self, position: Position, stage: int, problems: ProblemArrays, batches: list[list[int]]) -> None:
        """Makes the updates of the epoch that ``position`` does not count yet."""
        every = self.experiment.config.training.save_every_steps
        for step in self._steps(position, stage, problems, batches[position.batch :]):
            began = time.perf_counter()
            self.experiment.ranks.progress.begin_update(position.global_step + 1)
            lr = self.experiment.curriculum.rate(
                position.epoch, position.stage_switches, position.batch, len(batches), position.updates_since_reset
            )
            update = self._update(position, stage, step, lr)
            position.global_step += 1
            position.updates_since_reset += 1
            position.batch += 1
            position.loss_sum += update.loss
            self._log_update(position, stage, step.num_tokens, update, lr, time.perf_counter() - began)
            saves = every is not None and position.global_step % every == 0 and position.batch < len(batches)
            if saves:
                self.saver.save(self.engine, position, stage)
            # Several ranks have agreed on it within the update, so that it needs no exchange of its own.
            if update.stops or (self._is_alone and self._asked_to_stop()):
                self._stop(position, stage, saved=saves)

    @property
    def _is_alone(self) -> bool:
        return self.experiment.ranks.size == 1

    def _asked_to_stop(self) -> bool:
        """Whether this rank has been asked to stop, or must, since no more checkpoints can be written."""
        return self.interrupts.requested or self.saver.lock_lost or self.saver.failed

    def _stop_if_requested(self, position: Position, stage: int, saved: bool) -> None:
        """Stops if any rank was asked to stop. All ranks call it after the same update."""
        if self.experiment.ranks.any(self._asked_to_stop()):
            self._stop(position, stage, saved)

    def _stop(self, position: Position, stage: int, saved: bool) -> None:
        """Raises ``Interrupted``, on all ranks; saves first unless ``saved``."""
        self.progress.close()
        self.saver.finish()
        self.saver.check_lock()
        if not saved:
            self._save_now(position, stage)
        self.interrupts.handled()
        raise Interrupted(self.interrupts.reason)

    def _save_now(self, position: Position, stage: int) -> None:
        """Saves a checkpoint, and waits until it is complete."""
        self.saver.save(self.engine, position, stage)
        self.saver.finish()

    def _steps(
        self, position: Position, stage: int, problems: ProblemArrays, batches: list[list[int]]
    ) -> Iterable[Step]:
        """The updates with these batches of the epoch, to be made in order."""
        objective = self.experiment.objective
        if objective.samples:
            iterations = Iterations(self.experiment, self.experiment.problems_at(position))
            return iterations.of_batches(position.epoch, stage, problems, batches, position.global_step)
        self.engine.train()
        prepare = partial(self._prepare, position.epoch, stage, problems)
        return prepared_ahead(prepare, batches, self.experiment.ranks.device)

    def _prepare(self, epoch: int, stage: int, problems: ProblemArrays, indices: Sequence[int]) -> Prepared:
        run = self.experiment
        examples = run.objective.examples(run.sequences, epoch, stage, problems, indices)
        reduction, like = run.config.training.loss_reduction, examples.views[0]
        plans = [plan_update(view, run.geometry, run.ranks.rank, reduction, like) for view in examples.views]
        batches = [run.objective.collate(run.collator, examples, views) for views in zip(*plans, strict=True)]
        return Prepared(sorted(indices), batches, examples.num_tokens)

    def _update(self, position: Position, stage: int, step: Step, lr: float) -> UpdateResult:
        try:
            asked_to_stop = (lambda: False) if self._is_alone else self._asked_to_stop
            return step.run(self.engine, lr, asked_to_stop)
        except NonFiniteError as error:
            raise NonFiniteError(
                f"update {position.global_step + 1} (epoch {position.epoch + 1}): {error}; {_consequence(error)}. "
                f"Problems of this batch, counted from 0 in the epoch's training set: {step.indices}. "
                "A lower training.lr, more training.warmup_steps or a lower training.max_grad_norm may help"
            ) from error
        except RewardError:
            # Raised on all ranks, before the weights change.
            self.progress.close()
            if position.global_step and not self.saver.is_saved(position):
                self._save_now(position, stage)
            raise

    def _log_update(
        self, position: Position, stage: int, num_tokens: int, update: UpdateResult, lr: float, seconds: float
    ) -> None:
        tokens_per_s = num_tokens / seconds
        # Of the measures only the reward: a measure may have the name of a part, and the line is short.
        reward = {name: value for name, value in update.measures.items() if name == "reward"}
        self.progress.update(stage, update.loss, tokens_per_s, {**update.parts, **reward})
        self._log(
            position.epoch,
            position.global_step,
            {
                "train/stage": stage,
                "train/loss": update.loss,
                **{f"train/loss_{name}": value for name, value in update.parts.items()},
                **{f"train/{name}": value for name, value in update.measures.items()},
                "train/grad_norm": update.grad_norm,
                "train/lr": lr,
                "perf/tokens_per_s": round(tokens_per_s, 1),
                "perf/update_s": round(seconds, 4),
            },
        )

    def _validate_or_save(self, position: Position, stage: int, train_loss: float, train_began: float) -> Evaluation:
        """Validates. If that fails, saves first what the epoch has trained, so that a resume repeats only this."""
        try:
            with self.experiment.ranks.progress.during("validating"):
                return self._validate(position, stage, train_loss, train_began)
        except (Interrupted, CheckpointError):
            raise
        except Exception as error:
            # All ranks must take part in saving. Only errors about settings and problems are certain to be raised on
            # all ranks; after any other error, the remaining ranks may be waiting for this one somewhere else.
            if self.experiment.ranks.size == 1 or isinstance(error, CoconutError):
                self.progress.close()
                if self.saver.is_saved(position):
                    self.saver.finish()
                else:
                    self._save_now(position, stage)
                self.progress.line(
                    f"the validation of epoch {position.epoch + 1} failed; its updates are saved, so the same command "
                    "continues with the validation"
                )
            raise

    def _validate(self, position: Position, stage: int, train_loss: float, train_began: float) -> Evaluation:
        run, trained_s = self.experiment, time.perf_counter() - train_began
        problems, began = run.problems_at(position), time.perf_counter()
        phase = run.data_schedule.phase(position.epoch, position.data_switches)
        self.engine.train(False)
        loss = self._validation_loss(problems, stage)
        evaluation = run.evaluator().run(
            self.engine,
            problems.valid,
            stage,
            Thoughts(run.method.num_latents(stage, None, run.spec)),
            progress=run.ranks.is_first,
            check=lambda: self._stop_if_requested(position, stage, self.saver.is_saved(position)),
        )
        evaluation = replace(evaluation, hops=run.hop_scores(self.engine, problems.valid, stage))
        hops = evaluation.hops.values()
        self.progress.line(
            f"epoch {position.epoch + 1:>3}  stage {stage}  "
            + (f"pauses {evaluation.num_pauses}" if run.method.pauses else f"thoughts {evaluation.num_thoughts}")
            + (f"  data {phase + 1} of {1 + len(run.earlier)}" if run.earlier else "")
            + f"  "
            f"train loss {train_loss:.4f}  val loss {loss:.4f}  accuracy {evaluation.accuracy:6.1%}  "
            f"exact match (steps and answer) {evaluation.wholly_right:6.1%}  {trained_s:.1f} s"
            + (f"  in frontier by hop {' '.join(f'{one.in_frontier.estimate:.1%}' for one in hops)}" if hops else "")
        )
        # The record comes last: if anything fails before, a resume repeats the validation and records it once.
        self._log(
            position.epoch,
            position.global_step,
            {
                "eval/stage": stage,
                "eval/num_thoughts": evaluation.num_thoughts,
                "eval/num_pauses": evaluation.num_pauses,
                **({"eval/data_phase": phase} if run.earlier else {}),
                "eval/loss": loss,
                "eval/accuracy": evaluation.accuracy,
                "eval/wholly_right": evaluation.wholly_right,
                **{f"eval/{name}": value for one in hops for name, value in one.metrics.items()},
                "perf/epoch_s": round(trained_s, 3),
                "perf/eval_s": round(time.perf_counter() - began, 3),
            },
        )
        return evaluation

    @torch.no_grad()
    def _validation_loss(self, problems: RunProblems, stage: int) -> float:
        """Mean cross entropy per target token over all validation problems at ``stage``, without stage mixing."""
        run = self.experiment
        layouts = run.sequences.at_stage(problems.valid_tokens, stage)
        geometry = BatchGeometry(len(layouts), run.config.training.batch_size_eval, 1, run.ranks.size)
        plan = plan_update(layouts, geometry, run.ranks.rank, "token")
        losses = [self.engine(latent_loss, *run.collator.collate(batch).to(self.engine.device)) for batch in plan]
        return run.ranks.total(sum(torch.stack(losses).tolist()))

    def _log(self, epoch: int, global_step: int, values: dict[str, Any]) -> None:
        if self.metrics is not None:
            self.metrics.log({"epoch": epoch + 1, "global_step": global_step, **values})


def _consequence(error: NonFiniteError) -> str:
    """What became of the weights."""
    if not error.updates_made:
        return "the weights are unchanged"
    return "the updates before it changed the weights in memory, so the same command continues from the last checkpoint"
