"""When and where checkpoints of a run are written, and which of them is the best."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from coconut_ds.checkpoint import ModelCard, marker_table, save_model
from coconut_ds.engine import Engine
from coconut_ds.evaluation import Evaluation
from coconut_ds.experiment import Experiment
from coconut_ds.run_folder import RunFolder

NUM_SAMPLES = 5


@dataclass
class RunSaver:
    """Writes a model folder after each epoch. Accuracies are compared within a stage: earlier stages are easier."""

    experiment: Experiment
    folder: RunFolder
    best_stage: int = -1
    best_accuracy: float = -1.0
    best_checkpoint: str | None = None
    last_checkpoint: str | None = None
    last_accuracy: float = -1.0
    _versions: dict[str, str] = field(default_factory=dict)

    def after_epoch(self, engine: Engine, epoch: int, global_step: int, stage: int, evaluation: Evaluation) -> None:
        """Saves unless ``save_only_improve`` says no. All ranks must call it."""
        improved = stage > self.best_stage or evaluation.accuracy > self.best_accuracy
        self.last_accuracy = evaluation.accuracy
        if self.experiment.ranks.is_first:
            self.folder.write_samples(epoch, [p.as_dict() for p in evaluation.predictions[:NUM_SAMPLES]])
        if self.experiment.config.run.save_only_improve and not improved:
            return
        state = engine.model_state()
        target = self.folder.checkpoint(epoch)
        if self.experiment.ranks.is_first:
            card = self._card(epoch, global_step, stage, evaluation)
            save_model(target, self.experiment.backbone.model, state, self.experiment.backbone.tokenizer, card)
        self.experiment.ranks.wait()
        self.last_checkpoint = str(target)
        if improved:
            self.best_stage, self.best_accuracy, self.best_checkpoint = stage, evaluation.accuracy, str(target)

    def _card(self, epoch: int, global_step: int, stage: int, evaluation: Evaluation) -> ModelCard:
        return ModelCard(
            method=self.experiment.method.name,
            stage=stage,
            num_thoughts=evaluation.num_thoughts,
            c_thought=self.experiment.spec.c_thought,
            max_latent_stage=self.experiment.spec.max_latent_stage,
            marker_ids=marker_table(self.experiment.backbone.markers),
            provenance={
                "epoch": epoch,
                "global_step": global_step,
                "validation_accuracy": evaluation.accuracy,
                "run": self.experiment.config.run.name,
                "seed": self.experiment.config.run.seed,
                "data": self.experiment.config.data.kind,
                **self.versions(),
            },
        )

    def versions(self) -> dict[str, Any]:
        """Versions of what computed the numbers."""
        if not self._versions:
            names = ("coconut-ds", "torch", "transformers", "deepspeed")
            self._versions = {"python": platform.python_version(), **{name: _version(name) for name in names}}
        return self._versions


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        # A checkout that was never installed has no metadata of its own.
        return "not installed"
