"""When and where checkpoints of a run are written, and which of them is the best."""

import platform
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from coconut_ds.checkpoint import ModelCard, marker_table, save_model
from coconut_ds.engine import Engine
from coconut_ds.evaluation import Evaluation
from coconut_ds.experiment import Experiment
from coconut_ds.position import Position
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

    def after_epoch(self, engine: Engine, position: Position, stage: int, evaluation: Evaluation) -> None:
        """Saves unless ``save_only_improve`` says no. All ranks must call it."""
        improved = stage > self.best_stage or evaluation.accuracy > self.best_accuracy
        self.last_accuracy = evaluation.accuracy
        if self.experiment.ranks.is_first:
            self.folder.write_samples(position.epoch, [p.as_dict() for p in evaluation.predictions[:NUM_SAMPLES]])
        if self.experiment.config.run.save_only_improve and not improved:
            return
        state = engine.model_state()
        target = self.folder.checkpoint(position.epoch)
        if self.experiment.ranks.is_first:
            card = self._card(position, stage, evaluation)
            save_model(target, self.experiment.backbone.model, state, self.experiment.backbone.tokenizer, card)
        self.experiment.ranks.wait()
        self.last_checkpoint = str(target)
        if improved:
            self.best_stage, self.best_accuracy, self.best_checkpoint = stage, evaluation.accuracy, str(target)

    def _card(self, position: Position, stage: int, evaluation: Evaluation) -> ModelCard:
        run = self.experiment
        return ModelCard.of(
            run.method,
            stage,
            run.spec,
            run.config.data.format,
            marker_table(run.backbone.markers),
            {
                "epoch": position.epoch,
                "global_step": position.global_step,
                "stage_switches": position.stage_switches,
                "validation_accuracy": evaluation.accuracy,
                "run": run.config.run.name,
                "seed": run.config.run.seed,
                "data": run.config.data.kind,
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
