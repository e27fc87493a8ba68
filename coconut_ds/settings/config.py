"""The configuration of one experiment: all groups, and the checks that involve several of them."""

from typing import Any, Self

from pydantic import Field, model_validator

from coconut_ds.methods import METHODS
from coconut_ds.methods.parallel import Parallel
from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.grpo_checks import grpo_problems
from coconut_ds.settings.model import MethodConfig, ModelConfig
from coconut_ds.settings.objective import ObjectiveConfig
from coconut_ds.settings.run import RunConfig
from coconut_ds.settings.schema import Group, leaf_keys, validated
from coconut_ds.settings.sim_cot_checks import sim_cot_problems
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
        problems += [*self._feed_problems(), *self._codi_problems(), *self._lotus_problems()]
        problems += sim_cot_problems(self.objective, self.method, self.training)
        problems += grpo_problems(self.objective, self.method, self.training)
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
        if self.training.advance == "accuracy" and self.training.stage_switches is None:
            problems.append(
                f"training.advance=accuracy with data.format={self.data.format}: before the last stage several nodes "
                "can be correct, so accuracy does not show when a stage is learned; set training.advance=epochs"
            )
        return problems

    def _feed_problems(self) -> list[str]:
        method = METHODS[self.method.kind]
        if self.objective.feed == "identity" or (method.has_latents and not method.pauses):
            return []
        return [
            f"objective.feed={self.objective.feed}: method.kind={method.name} feeds no hidden state back; set "
            "objective.feed=identity, or a method with thoughts such as method=coconut"
        ]

    def _codi_problems(self) -> list[str]:
        if not self.objective.uses_codi:
            return []
        method = METHODS[self.method.kind]
        if self.objective.kind == "codi" and not method.has_latents:
            return [
                "objective.kind=codi: a sequence with thoughts learns from one with written steps, but "
                f"method.kind={method.name} has neither thoughts nor pauses; set method=coconut_no_curriculum, or "
                "objective=likelihood"
            ]
        if self.data.text_format.one_token and method.has_curriculum:
            return [
                f"objective.kind={self.objective.kind} compares states at the answer, but with "
                f"data.format={self.data.format} the sequences of method.kind={method.name} end before the answer "
                "until the last stage; set method=coconut_no_curriculum, or objective=likelihood"
            ]
        return []

    def _lotus_problems(self) -> list[str]:
        if self.objective.kind != "lotus":
            return []
        method, training, lotus = METHODS[self.method.kind], self.training, self.objective.lotus
        if not method.has_latents or method.pauses:
            return [
                "objective.kind=lotus: thoughts learn to predict the steps that they replace, but "
                f"method.kind={method.name} has no thoughts; set method=coconut, or objective=likelihood"
            ]
        problems = [
            f"objective.kind=lotus: found training.{key}=0, so there are no thoughts; set training.{key}={example}"
            for key, example in (("c_thought", "13 (GPT-2) or 25 (Llama 3)"), ("max_latent_stage", "6"))
            if not getattr(training, key)
        ]
        if not lotus.in_loop:
            return problems
        if lotus.flat:
            problems.append(
                "lotus.in_loop=true reads each block of thoughts after a round of its own, but with lotus.flat=true "
                "steps do not belong to blocks; set one of them to false"
            )
        iterations, stages = self.method.iterations, training.max_latent_stage
        if self.method.thinking != "looped":
            problems.append(
                "lotus.in_loop=true reads thoughts after each round of method.thinking=looped, found "
                f"{self.method.thinking}; set method.thinking=looped, or lotus.in_loop=false"
            )
        elif iterations is not None and iterations < stages:
            problems.append(
                f"lotus.in_loop=true reads block k after round k, but method.iterations={iterations} is below "
                f"training.max_latent_stage={stages}; set method.iterations=null, one round for each block"
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
