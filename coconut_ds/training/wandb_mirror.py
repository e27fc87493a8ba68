"""Mirrors the metrics of a run to wandb. The only module that imports wandb, and only when wandb may be used."""

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.settings import Config
from coconut_ds.training.child_processes import child_processes, kill
from coconut_ds.training.mirror_thread import MirrorThread

TEARDOWN_S = 5.0
"""Seconds for wandb's own cleaning up after its process was killed."""


class WandbMirror:
    """A wandb run that receives every line of metrics.

    wandb does not receive what the run prints: to capture that, it would take the place of the standard streams, and
    once its process has died, every line that the run prints would fail.
    """

    name = "wandb"

    def __init__(self, config: Config, folder: Path, mode: str, run_id: str) -> None:
        import wandb

        before = child_processes()
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
                settings=wandb.Settings(console="off"),
            )
        except (wandb.Error, OSError, ValueError) as error:
            raise ConfigError(f"run.wandb={mode}: wandb did not start ({error}); set run.wandb=disabled") from error
        self._processes = child_processes() - before

    def log(self, values: dict[str, Any], step: int) -> None:
        """Sends the values of one line."""
        self._run.log(values, step=step)

    def close(self) -> None:
        """Uploads what has not been sent, and ends the wandb run."""
        self._run.finish()

    def abandon(self) -> None:
        """Kills wandb's processes, and makes it forget them: it would wait for them when this process ends."""
        import wandb

        kill(self._processes)
        thread = threading.Thread(target=lambda: _quietly(lambda: wandb.teardown(exit_code=1)), daemon=True)
        thread.start()
        thread.join(TEARDOWN_S)


def _quietly(call: Any) -> None:
    # wandb's errors have no common base; what fails here has been reported.
    with suppress(Exception):
        call()


def wandb_mode(config: Config) -> tuple[str, str | None]:
    """The wandb mode to use, and a line for the log if wandb is off because the user is not logged in.

    Raises:
        ConfigError: the user is not logged in or has disabled wandb, and ``run.trackers`` has wandb.
    """
    asked = config.run.wandb
    if config.run.debug:
        return "disabled", None
    if asked != "auto":
        return asked, None
    set_mode = os.environ.get("WANDB_MODE")
    if set_mode == "disabled" and "wandb" in config.run.trackers:
        raise ConfigError(
            "run.trackers has wandb, but WANDB_MODE=disabled; unset it, or set run.wandb=online or offline"
        )
    if set_mode in ("online", "offline", "disabled"):
        return set_mode, None
    import wandb

    try:
        if wandb.login(prompt=False, verify=False):
            return "online", None
        why = "not logged in"
    except Exception as error:
        # An invalid key or a file that cannot be read; wandb's errors have no common base.
        why = f"cannot log in ({error})"
    if "wandb" in config.run.trackers:
        raise ConfigError(f"run.trackers has wandb, but wandb is {why}; run wandb login, or set run.wandb=offline")
    return (
        "disabled",
        f"wandb: {why}, so metrics go to metrics.jsonl only (to change this, set run.wandb=offline|online)",
    )


def open_mirror(config: Config, folder: Path, run_id: str) -> tuple[MirrorThread | None, str | None]:
    """Starts the mirror of a run.

    Args:
        config: holds ``run.wandb`` and the names of project and run.
        folder: where wandb keeps its files.
        run_id: the id of the wandb run; a resumed attempt passes the same id to continue the same wandb run.

    Returns:
        The mirror, None if wandb is disabled; and a line for the log, if there is something to say.

    Raises:
        ConfigError: wandb was requested and cannot start.
    """
    mode, line = wandb_mode(config)
    return (None if mode == "disabled" else MirrorThread(WandbMirror(config, folder, mode, run_id))), line
