"""The groups ``training`` and ``deepspeed``."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Decay, Natural, Positive, Share


class TrainingConfig(Group):
    """Curriculum, batches, checkpoints and optimizer."""

    c_thought: Natural = 1
    """Number of thoughts that replace one step (the paper's c)."""
    max_latent_stage: Natural = 6
    """Last stage that adds thoughts (the paper's number of stages). After it, all remaining steps are removed and the
    number of thoughts stays."""
    epochs_per_stage: Positive = 5
    """Number of epochs per stage (advance=epochs)."""
    advance: Literal["epochs", "accuracy"] = "epochs"
    """epochs: start the next stage after epochs_per_stage epochs. accuracy: once validation accuracy reaches
    advance_at."""
    advance_at: Share = 0.95
    """Validation accuracy that ends a stage (advance=accuracy): the share of problems with all remaining steps and the
    answer correct, or what advance_metric measures."""
    advance_metric: Literal["accuracy", "in_frontier", "mass"] = "accuracy"
    """What must reach advance_at (advance=accuracy). accuracy: see there. in_frontier, mass: what the model's head
    predicts at the states that become thoughts, at the hop where it is smallest. in_frontier: share of validation
    problems whose likeliest token is in the frontier (without a graph: is that of the step). mass: mean probability of
    the frontier. A stage without such states, such as stage 0 where steps are text, ends by accuracy."""
    min_epochs_per_stage: Positive = 1
    """Minimum number of epochs per stage (advance=accuracy)."""
    max_epochs_per_stage: Positive | None = None
    """Maximum number of epochs per stage (advance=accuracy); null: no limit."""
    stop_at: Share | None = None
    """Stop once validation accuracy in the final stage, counted as for advance_at, reaches this value; null: train
    num_epochs."""
    stage_switches: tuple[Natural, ...] | None = None
    """Epochs at which stages 1, 2, ... begin, instead of the rule of advance (to repeat the history of another run)."""
    pad_latent_to_max: bool = True
    """true: at each stage all problems have the same number of thoughts, stage × c_thought. false: a problem has at
    most c_thought for each of its steps."""
    uniform_prob: Share = 0.0
    """Probability of drawing a problem's stage uniformly from 0 to its number of steps."""
    tokens_per_epoch: Positive = 8
    """Number of step tokens that method=icot removes per epoch (per stage with advance=accuracy)."""
    replay_prob: Share = 0.0
    """Probability of drawing a problem's stage uniformly from 0 to the current stage."""
    reset_optimizer: Literal["stage", "epoch", "never"] = "stage"
    """When to reset the optimizer state: stage (at each new stage, as in the paper), epoch (true means the same) or
    never (false means the same)."""
    loss_reduction: Literal["token", "reference"] = "token"
    """token: mean over all target tokens of the global batch. reference: mean over micro batches of the mean of each,
    as in the reference implementation."""
    global_batch_size: Positive | None = 128
    """Number of problems per update; null: micro batch × accumulation × ranks."""
    batch_size_training: Positive = 32
    """Micro batch: number of problems per forward pass on one rank."""
    gradient_accumulation_steps: Positive | None = None
    """Number of micro batches per update; null: computed from global_batch_size. Setting it on the command line
    replaces an option's global_batch_size."""
    activation_checkpointing: bool = False
    """Keep only the input, keys and values of each layer and recompute the rest for the gradient. Needs less memory and
    about a third more computation; the numbers are the same."""
    defer_gradients: bool | None = None
    """Add up the gradient of each weight over all passes after the prefix in one product. null: on a CPU, where it is
    faster, except under ZeRO-3. true: on GPUs too; it saves a gradient of each weight for every thought, and keeps the
    inputs and gradients of these passes until the end of the backward pass (coconut-plan shows it); needs ZeRO stage 0,
    1 or 2 and attn_implementation=sdpa. false: never. The numbers are the same up to rounding."""
    batch_size_eval: Positive = 64
    """Number of problems per batch on one rank during validation."""
    save_every: Positive = 1
    """Number of epochs between checkpoints; the last epoch is always saved."""
    save_every_steps: Positive | None = None
    """Number of updates between checkpoints within an epoch; null: none within an epoch."""
    keep_last: Positive | None = 2
    """Number of newest checkpoints to keep; null: all."""
    keep_best: bool = True
    """Also keep the best checkpoint of the latest stage."""
    num_epochs: Positive = 50
    """Total number of epochs, including those that run.resume skips."""
    lr: Annotated[float, Field(gt=0, strict=True)] = 1e-4
    """Learning rate."""
    lr_schedule: Literal["constant", "cosine", "linear"] = "constant"
    """The learning rate after the warm-up: constant, or falling to 0 along half a cosine or a line. A run with cosine
    or linear has another result if num_epochs changes, so it is then another run."""
    lr_schedule_over: Literal["run", "stage"] = "run"
    """run: lr_schedule ends with the run, whatever its stages. stage: it ends with each stage, and schedule and warm-up
    begin again with the next one. With advance=accuracy a stage ends at max_epochs_per_stage at the latest."""
    weight_decay: Annotated[float, Field(ge=0, strict=True)] = 0.01
    """AdamW's decoupled weight decay."""
    betas: tuple[Decay, Decay] = (0.9, 0.999)
    """AdamW's coefficients of the running averages."""
    eps: Annotated[float, Field(gt=0, strict=True)] = 1e-8
    """AdamW's term for numerical stability."""
    warmup_steps: Natural = 0
    """Number of updates over which the learning rate rises linearly, counted from the last reset of the optimizer, and
    with lr_schedule_over=stage from the beginning of each stage."""
    max_grad_norm: Annotated[float, Field(ge=0, strict=True)] = 0.0
    """Maximum gradient norm; gradients of an update are clipped to it. 0: no clipping."""

    @property
    def curriculum_spec(self) -> CurriculumSpec:
        """The settings that determine layouts."""
        return CurriculumSpec(self.c_thought, self.max_latent_stage, self.pad_latent_to_max, self.tokens_per_epoch)

    @field_validator("reset_optimizer", mode="before")
    @classmethod
    def _reset_alias(cls, value: Any) -> Any:
        # A command line gives the words, a file the booleans.
        return {"true": "epoch", "false": "never"}.get(str(value).lower(), value)

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
            raise ValueError(f"stage_switches={list(self.stage_switches)} must not decrease")
        return self


class DeepSpeedConfig(Group):
    """The DeepSpeed configuration."""

    config: str
    """Name of a file in ds_configs/ (zero0 … zero3, zero2_offload, zero3_offload), or path of a JSON file."""
    hold_weights: bool = True
    """Under ZeRO-3, gather every weight once per update and keep it whole until the optimizer step, instead of once for
    each pass of the latent loop; validation and generation gather once too. false: DeepSpeed gathers and releases the
    weights of each module, within the limits of the file (stage3_max_live_parameters). The numbers are the same.
    Without effect if the file keeps weights on NVMe (offload_param), or if it quantizes or duplicates them (ZeRO++)."""
