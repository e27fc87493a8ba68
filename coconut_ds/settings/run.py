"""The group ``run``."""

from typing import Annotated, Literal

from pydantic import Field

from coconut_ds.schema import Group
from coconut_ds.settings.types import Natural


class RunConfig(Group):
    """Who and where: name, outputs, seed, logging, what to start from."""

    name: str = Field(min_length=1, pattern=r"^[A-Za-z0-9._-]+$")
    """Name of the run; the first folder under save_path."""
    save_path: str = "outputs"
    """Folder under which the run's directory is made."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of weights, order of problems, stage mixing and generated data."""
    debug: bool = False
    """Small run: 32 validation and at most 5,000 training problems, no wandb."""
    bf16: bool = False
    """Compute in bfloat16 with fp32 master weights and accumulation (needs ZeRO stage 1, 2 or 3)."""
    only_eval: bool = False
    """Evaluate load_model_path, write the scores and stop; nothing is trained."""
    save_only_improve: bool = False
    """Write a checkpoint only when validation accuracy beats the best of the same stage."""
    load_model_path: str | None = None
    """Checkpoint to start from: a model folder or a state dict file of the reference implementation."""
    resume: Natural = 0
    """Epochs to skip at the start, e.g. those that the loaded CoT checkpoint stands for."""
    resume_mode: Literal["auto", "force", "never"] = "auto"
    """Which attempt to continue. Every launch starts a new one, so auto and never are the same and force is refused."""
    resume_attempt_id: str | None = None
    """An attempt to continue; refused, since every launch starts a new one."""
    signature_ignore_keys: tuple[str, ...] = ()
    """Dotted keys that do not count in the signature, the name of the folder that attempts of one run share."""
    project: str = "coconut-ds"
    """wandb project."""
    wandb_entity: str | None = None
    """wandb entity; null takes the account's default."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when logged in, else disabled with one line that says so."""
