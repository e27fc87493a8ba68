"""Rank 0 decides which attempt of a run this launch works on, and locks the run so that no other launch does."""

from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.errors import ConfigError
from coconut_ds.runs.attempts import Start, choose_start, folder_to_lock
from coconut_ds.runs.fencing import Fence
from coconut_ds.runs.identity import signature
from coconut_ds.runs.lock import RunLock
from coconut_ds.training.experiment import Experiment
from coconut_ds.training.problems import Notify


@dataclass(frozen=True)
class Claim:
    """The attempt that rank 0 has chosen and locked."""

    start: Start
    lock: RunLock
    fence: Fence
    """Through which rank 0 changes the files of the run."""
    ingredients: dict[str, Any]
    """Everything that the signature of the run is computed from."""


def claim_attempt(
    experiment: Experiment,
    ingredients: dict[str, Any],
    stack: ExitStack,
    notify: Notify,
    stalled: Callable[[], bool] = lambda: False,
) -> Claim:
    """Locks the run, chooses an attempt and removes files that killed launches left in it. Called on rank 0 only.

    Args:
        experiment: what is to be trained.
        ingredients: of the signature.
        stack: releases the lock when it closes, and then removes the folders of the run that are empty.
        notify: receives lines for the log.
        stalled: whether the run makes no progress; another launch may then take it over.

    Raises:
        ConfigError: another launch holds the lock, ``run.save_path`` cannot be written, or the requested attempt does
            not exist or belongs to another run.
        CheckpointError: the attempt has checkpoints, but none can be used; or another launch has taken over the run.
    """
    config, name = experiment.config, signature(ingredients)
    folder = folder_to_lock(config, name, ingredients)
    # Runs after the lock is released: a launch that fails before it writes anything leaves no folders behind.
    stack.callback(_remove_empty, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = stack.enter_context(RunLock(folder, notify, waits=True, stalled=stalled))
        fence = Fence(folder, lock, notify)
    except OSError as error:
        raise ConfigError(f"run.save_path={config.run.save_path}: cannot be written to ({error})") from error
    stack.callback(fence.close)
    # Read only now: from here on, no earlier launch can change what it finds.
    start = choose_start(config, name, ingredients, notify)
    lock.name_attempt(start.path.name, fence.number)
    for path in start.folder.left_overs():
        # A left-over that cannot be removed does no harm.
        with suppress(OSError):
            fence.discard(path)
    return Claim(start, lock, fence, ingredients)


def _remove_empty(folder: Path) -> None:
    """Removes the folder of a signature and its parents up to ``run.save_path``, as far as they are empty."""
    with suppress(OSError):
        for path in (folder, *folder.parents[:2]):
            path.rmdir()
