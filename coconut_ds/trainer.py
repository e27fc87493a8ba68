"""The training loop: stages, epochs, updates, validation, checkpoints.

It decides nothing: stages and rates come from ``curriculum``, batches from ``data.batches``, layouts from ``layout``,
gradients from ``engine``. Its own state is ``Position``: a few numbers.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from coconut_ds.curriculum import Curriculum, learning_rate, mixed_stage, resets_optimizer
from coconut_ds.data.batches import BatchGeometry, epoch_batches, plan_update
from coconut_ds.data.problem import Problem
from coconut_ds.data.sources import Source
from coconut_ds.distributed import Ranks
from coconut_ds.engine import Engine, Update
from coconut_ds.errors import DataError, NonFiniteError
from coconut_ds.evaluation import Evaluation, Evaluator
from coconut_ds.layout import Layout, lay_out
from coconut_ds.methods.base import CurriculumSpec, Method, TokenizedProblem
from coconut_ds.metrics import MetricsLog
from coconut_ds.model.backbone import Backbone
from coconut_ds.model.collate import collate
from coconut_ds.model.latent_loop import latent_loss
from coconut_ds.progress import Progress
from coconut_ds.run_saver import RunSaver
from coconut_ds.settings import Config
from coconut_ds.tokens import tokenize


class RunProblems:
    """The problems of a run as tokens. What does not change from epoch to epoch is tokenized once."""

    def __init__(self, source: Source, tokenizer: PreTrainedTokenizerBase) -> None:
        self._source, self._tokenizer = source, tokenizer
        self.valid = source.valid()
        self.valid_tokens = tokenize(tokenizer, self.valid)
        self._texts: list[Problem] = []
        self._tokens: list[TokenizedProblem] = []

    def train(self, epoch: int) -> list[TokenizedProblem]:
        """Training problems of an epoch."""
        texts = self._source.train(epoch)
        if texts != self._texts:
            self._texts, self._tokens = texts, tokenize(self._tokenizer, texts)
        return self._tokens


@dataclass
class Position:
    """Where a run stands."""

    epoch: int = 0
    """Epochs done."""
    global_step: int = 0
    """Updates done."""
    updates_since_reset: int = 0
    stage_switches: list[int] = field(default_factory=list)
    """Epochs at which stages 1, 2, ... began, as the curriculum decided."""


@dataclass(frozen=True)
class Trainer:
    """Everything a run needs, put together by ``experiment``."""

    config: Config
    method: Method
    spec: CurriculumSpec
    curriculum: Curriculum
    problems: "RunProblems"
    backbone: Backbone
    engine: Engine
    geometry: BatchGeometry
    evaluator: Evaluator
    ranks: Ranks
    progress: Progress
    saver: RunSaver
    metrics: MetricsLog | None
    """None on ranks that keep no record."""

    def fit(self) -> Position:
        """Trains to the end of the last epoch, or until solved (``training.stop_at``)."""
        training = self.config.training
        position = Position(epoch=self.config.run.resume)
        previous_stage: int | None = None
        started = False
        while position.epoch < training.num_epochs:
            stage = self.curriculum.stage(position.epoch, position.stage_switches)
            if resets_optimizer(training, stage, previous_stage):
                self.engine.reset_optimizer()
                position.updates_since_reset = 0
            problems = self.problems.train(position.epoch)
            batches = epoch_batches(
                self.config.run.seed, position.epoch, len(problems), self.geometry.global_batch_size
            )
            if not started:
                self.progress.start(len(batches) * (training.num_epochs - position.epoch))
                started = True
            began = time.perf_counter()
            loss = self._epoch(position, stage, problems, batches)
            trained_s = time.perf_counter() - began
            evaluation = self._validate(position, stage, loss, trained_s)
            previous_stage = stage
            done = self.curriculum.solved(position.epoch, position.stage_switches, evaluation.wholly_right)
            if self.curriculum.advances(position.epoch, position.stage_switches, evaluation.wholly_right):
                position.stage_switches.append(position.epoch + 1)
            position.epoch += 1
            self.saver.after_epoch(self.engine, position.epoch, position.global_step, stage, evaluation)
            if done:
                break
        self.progress.close()
        return position

    def _epoch(
        self, position: Position, stage: int, problems: Sequence[TokenizedProblem], batches: list[list[int]]
    ) -> float:
        """All updates of one epoch; returns their mean loss."""
        self.engine.train()
        losses = []
        for indices in batches:
            began = time.perf_counter()
            layouts = [self._layout(position.epoch, stage, index, problems[index]) for index in indices]
            lr = learning_rate(self.config.training, position.updates_since_reset)
            update = self._update(position, layouts, indices, lr)
            position.global_step += 1
            position.updates_since_reset += 1
            losses.append(update.loss)
            self._log_update(position, stage, layouts, update, lr, time.perf_counter() - began)
        return sum(losses) / len(losses)

    def _layout(self, epoch: int, stage: int, index: int, problem: TokenizedProblem) -> Layout:
        if self.method.has_curriculum:
            training, seed = self.config.training, self.config.run.seed
            stage = mixed_stage(training, seed, epoch, index, stage, len(problem.steps))
        return lay_out(self.method, problem, stage, self.spec, self.backbone.markers)

    def _update(self, position: Position, layouts: list[Layout], indices: list[int], lr: float) -> Update:
        plan = plan_update(layouts, self.geometry, self.ranks.rank, self.config.training.loss_reduction)
        pad = int(self.backbone.tokenizer.eos_token_id)
        try:
            return self.engine.update(
                [collate(batch.layouts, batch.weights, batch.num_thoughts, pad) for batch in plan], lr
            )
        except NonFiniteError as error:
            raise NonFiniteError(
                f"update {position.global_step + 1} (epoch {position.epoch + 1}): {error}; nothing was updated. "
                f"Problems of this batch, counted from 0 in the epoch's training set: {sorted(indices)}. "
                "A lower training.lr, training.warmup_steps or training.max_grad_norm may help"
            ) from error

    def _log_update(
        self, position: Position, stage: int, layouts: list[Layout], update: Update, lr: float, seconds: float
    ) -> None:
        tokens_per_s = sum(map(len, layouts)) / seconds
        self.progress.update(stage, update.loss, tokens_per_s)
        if self.metrics is not None:
            self.metrics.log(
                {
                    "epoch": position.epoch + 1,
                    "global_step": position.global_step,
                    "train/stage": stage,
                    "train/loss": update.loss,
                    "train/grad_norm": update.grad_norm,
                    "train/lr": lr,
                    "perf/tokens_per_s": round(tokens_per_s, 1),
                    "perf/update_s": round(seconds, 4),
                }
            )

    def _validate(self, position: Position, stage: int, train_loss: float, trained_s: float) -> Evaluation:
        began = time.perf_counter()
        self.engine.train(False)
        loss = self._validation_loss(stage)
        evaluation = self.evaluator.run(
            self.engine,
            self.problems.valid,
            self.method.num_thoughts(stage, None, self.spec),
            lambda num_steps: self.method.num_removed(stage, num_steps, self.spec),
            progress=self.ranks.is_first,
        )
        if self.metrics is not None:
            self.metrics.log(
                {
                    "epoch": position.epoch + 1,
                    "global_step": position.global_step,
                    "eval/stage": stage,
                    "eval/num_thoughts": evaluation.num_thoughts,
                    "eval/loss": loss,
                    "eval/accuracy": evaluation.accuracy,
                    "eval/wholly_right": evaluation.wholly_right,
                    "perf/epoch_s": round(trained_s, 3),
                    "perf/eval_s": round(time.perf_counter() - began, 3),
                }
            )
        self.progress.line(
            f"epoch {position.epoch + 1:>3}  stage {stage}  thoughts {evaluation.num_thoughts}  "
            f"train loss {train_loss:.4f}  val loss {loss:.4f}  accuracy {evaluation.accuracy:6.1%}  "
            f"wholly right {evaluation.wholly_right:6.1%}  {trained_s:.1f} s"
        )
        return evaluation

    @torch.no_grad()
    def _validation_loss(self, stage: int) -> float:
        """Token mean over all validation problems at ``stage``, without mixing."""
        tokenized = self.problems.valid_tokens
        layouts = [lay_out(self.method, problem, stage, self.spec, self.backbone.markers) for problem in tokenized]
        geometry = BatchGeometry(len(layouts), self.config.training.batch_size_eval, 1, self.ranks.size)
        pad = int(self.backbone.tokenizer.eos_token_id)
        mine = 0.0
        for batch in plan_update(layouts, geometry, self.ranks.rank, "token"):
            inputs, targets = collate(batch.layouts, batch.weights, batch.num_thoughts, pad)
            loss = self.engine(latent_loss, inputs.to(self.engine.device), targets.to(self.engine.device))
            mine += float(loss.item())
        return self.ranks.total(mine)


def check_lengths(
    problems: Sequence[TokenizedProblem], method: Method, last_stage: int, spec: CurriculumSpec, context: int | None
) -> None:
    """Refuses problems that do not fit the model's context at some stage.

    Raises:
        DataError: names the first one.
    """
    if context is None:
        return
    for index, problem in enumerate(problems):
        markers = 2 + method.num_thoughts(last_stage, None, spec)
        longest = len(problem.question) + sum(map(len, problem.steps)) + len(problem.answer) + markers
        if longest > context:
            raise DataError(
                f"problem {index} has {longest} tokens with its thoughts; the model's context is {context}; "
                "shorten it, use fewer thoughts, or set model.model_config_overrides (n_positions) for scratch models"
            )


def summary_of(position: Position, extra: dict[str, Any]) -> dict[str, Any]:
    """What a finished run says of itself."""
    return {
        "epochs": position.epoch,
        "updates": position.global_step,
        "stage_switches": position.stage_switches,
        **extra,
    }
