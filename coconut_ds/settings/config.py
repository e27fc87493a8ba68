"""The configuration of one experiment: all groups, and the checks that involve several of them."""

from typing import Any, Self

from pydantic import Field, model_validator

from coconut_ds.methods import METHODS
from coconut_ds.methods.parallel import Parallel
from coconut_ds.settings.advance_checks import advance_problems
from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.data_schedule import phases_of
from coconut_ds.settings.model import MethodConfig, ModelConfig
from coconut_ds.settings.objective import ObjectiveConfig
from coconut_ds.settings.objective_checks import objective_problems
from coconut_ds.settings.run import RunConfig
from coconut_ds.settings.schema import Group, leaf_keys, validated
from coconut_ds.settings.training import DeepSpeedConfig, TrainingConfig


class Config(Group):
    """The configuration of one experiment."""

    run: RunConfig
    data: DataConfig
    method: MethodConfig
    objective: ObjectiveConfig = Field(default_factory=ObjectiveConfig)
    model: ModelConfig
    training: TrainingConfig
    deepspeed: DeepSpeedConfig

    @model_validator(mode="after")
    def _check(self) -> Self:
        problems = [*self._file_problems(), *self._run_problems(), *self._format_problems()]
        problems += self._data_schedule_problems()
        problems += advance_problems(self.method, self.training)
        problems += objective_problems(self.objective, self.method, self.training, self.data)
        if problems:
            raise ValueError("; ".join(problems))
        return self

    def _file_problems(self) -> list[str]:
        if self.data.kind != "file":
            return []
        if self.run.only_eval:
            if not (self.data.test_path or self.data.val_path):
                return ["data.test_path: found null, expected a file to evaluate; set data.test_path=FILE"]
            return []
        return [
            f"data.{key}: found null, expected a file to train with; set data.{key}=FILE"
            for key in ("train_path", "val_path")
            if getattr(self.data, key) is None
        ]

    def _run_problems(self) -> list[str]:
        known = leaf_keys(type(self))
        problems = [
            f"run.signature_ignore_keys: found {key!r}, which is not a key; expected dotted keys such as training.lr"
            for key in self.run.signature_ignore_keys
            if key not in known
        ]
        if self.run.only_eval and self.run.load_model_path is None:
            problems.append(
                "run.load_model_path: found null with run.only_eval=true, expected the checkpoint to evaluate; "
                "set load_model_path=PATH"
            )
        if self.model.attn_implementation.startswith("flash") and not self.run.bf16:
            problems.append(
                f"model.attn_implementation={self.model.attn_implementation} computes in half precision; "
                "set run.bf16=true, or model.attn_implementation=sdpa"
            )
        if self.training.defer_gradients and self.model.attn_implementation != "sdpa":
            problems.append(
                "training.defer_gradients=true needs model.attn_implementation=sdpa, found "
                f"{self.model.attn_implementation}; set one of them to another value"
            )
        if self.run.resume and self.run.load_model_path is None:
            problems.append(
                f"run.resume={self.run.resume} skips epochs that a loaded checkpoint has been trained for, but "
                "run.load_model_path is null; set load_model_path=PATH, or resume=0"
            )
        if not self.run.only_eval and self.run.resume >= self.training.num_epochs:
            problems.append(
                f"run.resume={self.run.resume} skips all of training.num_epochs={self.training.num_epochs}; "
                f"set run.resume below {self.training.num_epochs} or num_epochs above {self.run.resume}"
            )
        return [*problems, *self._schedule_problems()]

    @property
    def _ends_rate_by_recorded_stage(self) -> bool:
        """Whether the learning rate falls over stages that end by accuracy."""
        training = self.training
        by_stage = training.lr_schedule != "constant" and training.lr_schedule_over == "stage"
        return by_stage and training.advance == "accuracy" and training.stage_switches is None

    def _schedule_problems(self) -> list[str]:
        training = self.training
        if not (self._ends_rate_by_recorded_stage and METHODS[self.method.kind].has_curriculum):
            return []
        if training.max_epochs_per_stage is not None:
            return []
        return [
            f"training.lr_schedule={training.lr_schedule} with lr_schedule_over=stage and advance=accuracy: nothing "
            "says when a stage ends at the latest; set training.max_epochs_per_stage, or lr_schedule_over=run"
        ]

    def _data_schedule_problems(self) -> list[str]:
        try:
            phases = phases_of(self.data)
        except ValueError as error:
            return [f"data.{error}"]
        problems = []
        curriculum = METHODS[self.method.kind].has_curriculum
        for index, phase in enumerate(phases):
            where = f"data.schedule[{index}]"
            if phase.data.kind == "file" and not (phase.data.train_path and phase.data.val_path):
                problems.append(f"{where}: problems of files need train_path and val_path; add both")
            by_accuracy = curriculum and self.training.advance_metric == "accuracy"
            if phase.mastery is not None and self.data.text_format.one_token and by_accuracy:
                problems.append(
                    f"{where}.mastery={phase.mastery} with data.format={self.data.format}: before the last stage "
                    "several nodes can be correct, so accuracy does not show mastery; set epochs instead"
                )
        if phases and curriculum and self._ends_rate_by_recorded_stage:
            problems.append(
                "data.schedule with training.advance=accuracy: the first stage lasts until the schedule has ended, so "
                "no one knows its length; set training.lr_schedule_over=run"
            )
        return problems

    def _format_problems(self) -> list[str]:
        if not self.data.text_format.one_token:
            return []
        problems = []
        if METHODS[self.method.kind].starts_thinking:
            problems.append(
                f"method.kind={self.method.kind}: the model starts thinking by writing a marker, but "
                f"data.format={self.data.format} has no markers; set method=coconut"
            )
        by_accuracy = self.training.advance == "accuracy" and self.training.advance_metric == "accuracy"
        if by_accuracy and self.training.stage_switches is None:
            problems.append(
                f"training.advance=accuracy with data.format={self.data.format}: before the last stage several nodes "
                "can be correct, so accuracy does not show when a stage is learned; set training.advance=epochs, or "
                "training.advance_metric=in_frontier"
            )
        return problems

    @property
    def parallel(self) -> Parallel | None:
        """How all thoughts are computed at once; None if they are computed one after the other."""
        method = self.method
        if method.thinking == "sequential":
            return None
        return Parallel(method.thinking, method.iterations, max(self.training.c_thought, 1))

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Config":
        """Validates plain values, as composed from YAML files and overrides.

        Raises:
            ConfigError: some values are invalid; names each field, the value found and what was expected.
        """
        return validated(cls, values)
