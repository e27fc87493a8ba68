"""The groups ``training`` and ``deepspeed``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Decay, Natural, Positive, Share


class TrainingConfig(Group):
    """Curriculum, batches and optimizer."""

    c_thought: Natural = 1
    """Thoughts that stand for one step (the paper's c)."""
    max_latent_stage: Natural = 6
    """Last stage that adds thoughts; past it all steps go and the number of thoughts stays (the paper's stages)."""
    epochs_per_stage: Positive = 5
    """Epochs a stage lasts under advance=epochs."""
    advance: Literal["epochs", "accuracy"] = "epochs"
    """Next stage after epochs_per_stage epochs, or once validation accuracy reaches advance_at."""
    advance_at: Share = 0.95
    """Share of validation problems wholly right (all remaining steps and the answer) that ends a stage."""
    min_epochs_per_stage: Positive = 1
    """Least number of epochs a stage lasts under advance=accuracy."""
    max_epochs_per_stage: Positive | None = None
    """Largest number of epochs a stage lasts under advance=accuracy; null: no bound."""
    stop_at: Share | None = None
    """Stop once the final stage has this share of validation problems wholly right; null: train num_epochs."""
    stage_switches: tuple[Natural, ...] | None = None
    """Epochs at which stages 1, 2, ... begin; replaces the rule of advance (to repeat another run's history)."""
    pad_latent_to_max: bool = True
    """true: every problem gets stage × c_thought thoughts; false: at most c_thought for each of its steps."""
    uniform_prob: Share = 0.0
    """Probability that a problem's stage is drawn uniformly from 0 to its number of steps."""
    tokens_per_epoch: Positive = 8
    """Step tokens that method=icot removes from one epoch to the next (one stage to the next under accuracy)."""
    replay_prob: Share = 0.0
    """Probability that a problem's stage is drawn uniformly from 0 to the current stage."""
    reset_optimizer: Literal["stage", "epoch", "never"] = "stage"
    """When optimizer state is set to zero: stage (each switch; the paper), epoch (also true), never (also false)."""
    loss_reduction: Literal["token", "reference"] = "token"
    """token: mean over all target tokens of the global batch; reference: mean over micro batches of their means."""
    global_batch_size: Positive | None = 128
    """Problems an optimizer update; null: micro batch × accumulation × ranks."""
    batch_size_training: Positive = 32
    """Problems in one forward pass on one rank (micro batch)."""
    gradient_accumulation_steps: Positive | None = None
    """Micro batches an update; null: derived from global_batch_size. Setting it replaces a preset global_batch_size."""
    activation_checkpointing: bool = False
    """Keep of each layer its input, keys and values alone, and compute the rest again for its gradient: less memory,
    about a third more work, the same numbers."""
    batch_size_eval: Positive = 64
    """Problems in one validation pass on one rank."""
    save_every: Positive = 1
    """Epochs from one checkpoint to the next; the last epoch is always saved."""
    save_every_steps: Positive | None = None
    """Updates from one checkpoint within an epoch to the next; null: none within an epoch."""
    keep_last: Positive | None = 2
    """Newest checkpoints to keep; null: all."""
    keep_best: bool = True
    """Keep the best checkpoint of the latest stage too."""
    num_epochs: Positive = 50
    """Epochs in all, the skipped ones (run.resume) included."""
    lr: Annotated[float, Field(gt=0, strict=True)] = 1e-4
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's coefficients."""
    eps: Annotated[float, Field(gt=0, strict=True)] = 1e-8
    """AdamW's denominator term."""
    warmup_steps: Natural = 0
    """Updates over which the learning rate rises linearly, counted from the last reset of the optimizer."""
    max_grad_norm: Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Largest gradient norm of an update; 0: no clipping."""

    @property
    def curriculum_spec(self) -> CurriculumSpec:
        """The numbers that layouts depend on."""
        return CurriculumSpec(self.c_thought, self.max_latent_stage, self.pad_latent_to_max, self.tokens_per_epoch)

    @field_validator("reset_optimizer", mode="before")
    @classmethod
    def _reset_alias(cls, value: Any) -> Any:
        if isinstance(value, bool):
            return "epoch" if value else "never"
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.uniform_prob and self.replay_prob:
            raise ValueError(
                f"uniform_prob={self.uniform_prob} and replay_prob={self.replay_prob} are both set; "
                "set one of them to 0"
            )
        if self.max_epochs_per_stage is not None and self.max_epochs_per_stage < self.min_epochs_per_stage:
            raise ValueError(
                f"max_epochs_per_stage={self.max_epochs_per_stage} is below "
                f"min_epochs_per_stage={self.min_epochs_per_stage}"
            )
        if self.stage_switches is not None and list(self.stage_switches) != sorted(self.stage_switches):
            raise ValueError(f"stage_switches={list(self.stage_switches)} must not fall")
        return self


class DeepSpeedConfig(Group):
    """The engine's file."""

    config: str
    """Name of a file of ds_configs/ (zero0 … zero3, zero2_offload, zero3_offload) or a path to a JSON file."""
