"""The group ``run``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Natural, Positive

Tracker = Literal["aim", "clearml", "comet_ml", "dvclive", "mlflow", "swanlab", "tensorboard", "trackio", "wandb"]
"""The experiment trackers that accelerate has an interface for."""


class RunConfig(Group):
    """Name and folder of the run, seed, logging, and the checkpoint to start from or to resume."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run, and first folder under save_path. Letters, digits, ".", "_" and "-" are allowed."""
    save_path: str = "outputs"
    """Folder under which the run's folder is created."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of all random choices. They are initial weights, order of problems, mixing of stages and generated data."""
    debug: bool = False
    """Small run for debugging: 32 validation problems, at most 5,000 training problems, no wandb and no trackers."""
    bf16: bool = False
    """Compute in bfloat16. Master weights and accumulation stay fp32; needs ZeRO stage 1, 2 or 3."""
    tf32: bool = False
    """On CUDA, multiply fp32 matrices in TF32, with 10 bits of mantissa instead of 23, in training and evaluation. An
    A100 then multiplies at most 156 instead of 19.5 TFLOP/s. Without effect on a CPU and with bf16=true."""
    only_eval: bool = False
    """Evaluate the checkpoint load_model_path and write its scores, without training."""
    save_only_improve: bool = False
    """Keep only the newest checkpoint and the best one of the latest stage (as keep_last=1 keep_best=true)."""
    async_save: bool = True
    """Copy a checkpoint to the memory of the host and write it while training goes on. Training waits instead where the
    copy would take more than half of the available memory."""
    load_model_path: str | None = None
    """Checkpoint to start from. A model folder, or a state dict file of the reference implementation."""
    resume: Natural = 0
    """Number of epochs to skip at the start, for example those that a loaded CoT checkpoint was trained for."""
    resume_mode: Literal["auto", "force", "never"] = "auto"
    """auto: continue the newest unfinished attempt of this run, or a completed one if num_epochs has grown; stop if all
    attempts are complete; start one if there is none. force: continue the newest attempt whatever its state. never:
    start a new attempt."""
    resume_attempt_id: str | None = None
    """Attempt to continue, regardless of resume_mode."""
    allow_mismatch: tuple[str, ...] = ()
    """Dotted keys, or whole groups, in which the attempt of resume_attempt_id may differ from this configuration."""
    signature_ignore_keys: tuple[str, ...] = ()
    """Dotted keys to leave out of the signature, which decides whether two launches belong to the same run."""
    watchdog_s: Annotated[float, Field(gt=0)] | None = 300.0
    """Seconds without any progress of any rank after which each rank writes to its log where it waits, and the lock's
    heartbeat stops. Null: never."""
    watchdog_ends: bool = False
    """Whether the ranks of a run without progress are then ended, with exit code 70 and without saving."""
    log_every: Positive | None = 10
    """Where standard error is not a terminal, print a line with loss, rate, time left and memory every log_every
    updates or every 30 s, whichever is longer. Null: no such lines."""
    project: str = "coconut-ds"
    """wandb project."""
    wandb_entity: str | None = None
    """wandb entity; null uses the account's default."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online if logged in to wandb, otherwise disabled with one line that says so."""
    trackers: tuple[Tracker, ...] = ()
    """Experiment trackers that receive every line of metrics.jsonl, for example [tensorboard,mlflow]. A resumed run
    continues the same tracked run. With wandb in the list, not being logged in is an error; run.wandb sets its mode."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if len(set(self.trackers)) != len(self.trackers):
            raise ValueError(f"trackers={list(self.trackers)}: expected different names")
        if "wandb" in self.trackers and self.wandb == "disabled":
            raise ValueError("trackers has wandb, but run.wandb=disabled; set run.wandb=online or offline")
        return self
