"""The wandb mirror of a run's numbers: the only module that imports wandb, and late: others need not wait for it."""

import os
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.settings import Config


class WandbMirror:
    """One wandb run."""

    def __init__(self, config: Config, folder: Path, mode: str, run_id: str) -> None:
        import wandb

        try:
            self._run = wandb.init(
                project=config.run.project,
                entity=config.run.wandb_entity,
                name=config.run.name,
                id=run_id,
                resume="allow",
                dir=str(folder),
                mode=mode,  # type: ignore[arg-type]
                config=config.model_dump(mode="json"),
            )
        except (wandb.Error, OSError, ValueError) as error:
            raise ConfigError(f"run.wandb={mode}: wandb did not start ({error}); set run.wandb=disabled") from error

    def log(self, values: dict[str, Any], step: int) -> None:
        """One line of numbers."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Uploads what is left."""
        self._run.finish()


def wandb_mode(config: Config) -> tuple[str, str | None]:
    """The mode to use, and a line that says why where nobody asked for it."""
    asked = config.run.wandb
    if config.run.debug:
        return "disabled", None
    if asked != "auto":
        return asked, None
    if os.environ.get("WANDB_MODE") in ("online", "offline", "disabled"):
        return os.environ["WANDB_MODE"], None
    import wandb

    if wandb.login(prompt=False, verify=False):
        return "online", None
    return (
        "disabled",
        "wandb: not logged in, so numbers go to metrics.jsonl only (run.wandb=offline|online changes that)",
    )


def open_mirror(config: Config, folder: Path, run_id: str) -> tuple[WandbMirror | None, str | None]:
    """The mirror of a run, or None when disabled, and a line to show. The same ``run_id`` goes on with the same run.

    Raises:
        ConfigError: wandb was asked for and cannot start.
    """
    mode, line = wandb_mode(config)
    return (None if mode == "disabled" else WandbMirror(config, folder, mode, run_id)), line
