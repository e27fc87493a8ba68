"""The group ``run``."""

from typing import Annotated, Literal

from pydantic import Field

from coconut_ds.settings.schema import Group
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
    """Keep only the best checkpoint of the latest stage, and the newest to resume from: keep_last=1 keep_best=true."""
    load_model_path: str | None = None
    """Checkpoint to start from: a model folder or a state dict file of the reference implementation."""
    resume: Natural = 0
    """Epochs to skip at the start, e.g. those that the loaded CoT checkpoint stands for."""
    resume_mode: Literal["auto", "force", "never"] = "auto"
    """auto: continue the newest unfinished attempt of this run, or a completed one once num_epochs has grown, else
    start one; force: continue the newest attempt whatever its state; never: start one."""
    resume_attempt_id: str | None = None
    """The attempt to continue, whatever resume_mode says."""
    allow_mismatch: tuple[str, ...] = ()
    """Dotted keys, or groups of them, in which the attempt of resume_attempt_id may differ from this configuration."""
    signature_ignore_keys: tuple[str, ...] = ()
    """Dotted keys that do not count in the signature, which tells whether two launches are of one run."""
    project: str = "coconut-ds"
    """wandb project."""
    wandb_entity: str | None = None
    """wandb entity; null takes the account's default."""
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    """auto: online when logged in, else disabled with one line that says so."""
