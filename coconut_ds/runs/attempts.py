"""Chooses the attempt that a launch continues, and its checkpoint. Only reads files."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coconut_ds.errors import CheckpointError, ConfigError
from coconut_ds.files import damage, shell_word
from coconut_ds.runs.edits import how_to_accept
from coconut_ds.runs.folder import ENGINE, RESUME_STATE, RunFolder, new_attempt_id
from coconut_ds.runs.identity import IngredientDifference, differences, read_ingredients
from coconut_ds.runs.manifest import RunManifest, read_manifest
from coconut_ds.runs.pickles import refusal
from coconut_ds.runs.resume_state import ResumeState
from coconut_ds.settings import Config

SOLVED = "solved"
"""``reason`` of a completed attempt that ended before ``num_epochs`` (``training.stop_at``)."""


@dataclass(frozen=True)
class Start:
    """What a launch starts from."""

    path: Path
    """Folder of the attempt."""
    is_new: bool
    checkpoint: Path | None = None
    """Checkpoint to resume from; None: start from the beginning."""
    resume_state: ResumeState | None = None
    """Recorded in the checkpoint; None without one."""
    is_complete: bool = False
    """Whether the attempt has ended, so that there is nothing to train."""
    accepted: tuple[IngredientDifference, ...] = ()
    """Differences between the attempt's ingredients and this launch's that ``run.allow_mismatch`` accepts."""

    @property
    def folder(self) -> RunFolder:
        """Paths of the attempt."""
        return RunFolder(self.path)


def folder_to_lock(config: Config, signature: str, ingredients: dict[str, Any]) -> Path:
    """The folder of the signature whose attempts ``choose_start`` chooses from; the launch must lock it first.

    Does not look at checkpoints, since another process may be writing them.

    Raises:
        ConfigError: the requested attempt does not exist, or belongs to another run.
    """
    run = Path(config.run.save_path) / config.run.name
    if config.run.resume_attempt_id is not None:
        return _asked(config, run, ingredients)[0].path.parent
    if config.run.allow_mismatch:
        raise ConfigError(
            "run.allow_mismatch: needs run.resume_attempt_id; set that to the id of the attempt to continue"
        )
    return run / signature


def choose_start(config: Config, signature: str, ingredients: dict[str, Any], notify: Callable[[str], None]) -> Start:
    """The attempt that ``run.resume_mode`` and ``run.resume_attempt_id`` select; a new one gets an id, but no folder.

    Raises:
        ConfigError: the requested attempt does not exist, or belongs to another run.
        CheckpointError: the attempt has checkpoints, but none is usable; or the resume state of the newest usable one
            has another shape than this version expects.
    """
    run, num_epochs = Path(config.run.save_path) / config.run.name, config.training.num_epochs
    if config.run.resume_attempt_id is not None:
        attempt, accepted = _asked(config, run, ingredients)
        return _start(attempt, num_epochs, notify, accepted)
    attempts = attempts_of(run / signature)
    if config.run.resume_mode == "force" and attempts:
        return _start(attempts[0], num_epochs, notify)
    if config.run.resume_mode == "auto":
        for attempt in attempts:
            if is_unfinished(read_manifest(attempt.manifest), num_epochs):
                return _start(attempt, num_epochs, notify)
        if attempts:
            return Start(attempts[0].path, is_new=False, is_complete=True)
    if not attempts:
        _say_what_is_new(run, ingredients, notify)
    return Start(run / signature / new_attempt_id(), is_new=True)


def _say_what_is_new(run: Path, ingredients: dict[str, Any], notify: Callable[[str], None]) -> None:
    """Reports why the newest attempt under this name is not continued."""
    others = _attempts_under(run)
    if others:
        newest = others[-1].path
        try:
            keys = [one.key for one in differences(read_ingredients(newest.parent), ingredients)]
        except ConfigError:
            # The other run's table cannot be read; a new run does not need it.
            return
        more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
        notify(f"a new run: {newest.parent.name}/{newest.name} differs in {', '.join(keys[:4])}{more}")


def _attempts_under(run: Path) -> list[RunFolder]:
    """Attempts of all runs with this name, the newest last."""
    found = [folder for signature in run.glob("*/") for folder in attempts_of(signature)]
    return sorted(found, key=lambda folder: folder.path.name)


def attempts_of(folder: Path) -> list[RunFolder]:
    """Attempts in the folder of a signature, the newest first."""
    found = [path for path in folder.glob("*") if (path / "config.yaml").is_file()]
    return [RunFolder(path) for path in sorted(found, reverse=True)]


def is_unfinished(manifest: RunManifest | None, num_epochs: int) -> bool:
    """Whether there is more to train. True if there is no readable manifest: then the checkpoints decide."""
    if manifest is None or manifest.status != "completed":
        return True
    return manifest.reason != SOLVED and num_epochs > manifest.resume_epoch


def complete_text(folder: RunFolder) -> str:
    """What a launch says about an attempt that has ended: its result, and how to train further or again."""
    manifest = read_manifest(folder.manifest)
    assert manifest is not None
    best = manifest.best_checkpoint or manifest.last_checkpoint
    accuracy = "" if manifest.best_accuracy is None else f", {manifest.best_accuracy:.1%} on validation problems"
    result = "" if best is None else f" Its best checkpoint: {shell_word(folder.path / Path(best).name)}{accuracy}."
    further = "" if manifest.reason == SOLVED else "A larger training.num_epochs continues it; "
    again = "run.resume_mode=never starts a new attempt."
    return f"This run is complete.{result} {further}{again}"


def usable_checkpoint(folder: RunFolder, notify: Callable[[str], None]) -> Path | None:
    """The newest checkpoint whose files all match their hashes, and none of which is a pickle; None if there is no
    checkpoint at all.

    Raises:
        CheckpointError: there are checkpoints, and all are damaged or hold pickles.
    """
    there, refused = folder.checkpoints(), 0
    for path in there:
        pickled = refusal(path)
        refused += pickled is not None
        found = [pickled] if pickled else damage(path, hashes=True)
        if not found and not (path / ENGINE / RESUME_STATE).is_file():
            found = [f"{ENGINE}/{RESUME_STATE} is missing"]
        if not found:
            return path
        accepting = how_to_accept(path)
        hint = f" ({accepting})" if accepting else ""
        notify(f"warning: {path} cannot be used: {'; '.join(found[:3])}; trying the previous one{hint}")
    if there:
        what = "convert those with pickles (see the warnings above)" if refused else "restore the damaged files"
        raise CheckpointError(
            f"{folder.path}: none of its {len(there)} checkpoints can be used; {what}, or start a new attempt with "
            "run.resume_mode=never"
        )
    return None


def _start(
    folder: RunFolder, num_epochs: int, notify: Callable[[str], None], accepted: tuple[IngredientDifference, ...] = ()
) -> Start:
    checkpoint = usable_checkpoint(folder, notify)
    if checkpoint is None:
        return Start(folder.path, is_new=False, accepted=accepted)
    resume_state = ResumeState.read(checkpoint / ENGINE / RESUME_STATE)
    position = resume_state.position
    if (position.epoch, position.batch) > (num_epochs, 0):
        epochs = position.epoch + (position.batch > 0)
        raise ConfigError(
            f"training.num_epochs={num_epochs}: {folder.path.name} is already past that, at {checkpoint.name}; set "
            f"num_epochs={epochs} or more, or start a new attempt with run.resume_mode=never"
        )
    return Start(folder.path, is_new=False, checkpoint=checkpoint, resume_state=resume_state, accepted=accepted)


def _asked(
    config: Config, run: Path, ingredients: dict[str, Any]
) -> tuple[RunFolder, tuple[IngredientDifference, ...]]:
    """The attempt that ``run.resume_attempt_id`` names, and the accepted differences between its run and this one."""
    wanted, allowed = config.run.resume_attempt_id, config.run.allow_mismatch
    there = _attempts_under(run)
    found = [folder for folder in there if folder.path.name == wanted]
    if not found:
        known = f"there are {', '.join(one.path.name for one in there[-5:])}" if there else "there are none"
        raise ConfigError(f"run.resume_attempt_id={wanted}: no such attempt under {run}; {known}")
    table = read_ingredients(found[0].path.parent)
    unknown = [name for name in allowed if not any(_stands_for(name, key) for key in {**table, **ingredients})]
    if unknown:
        raise ConfigError(
            f"run.allow_mismatch: found {', '.join(unknown)}, expected a key of signature.json or a group of keys"
        )
    other = differences(table, ingredients)
    refused = [one for one in other if not any(_stands_for(name, one.key) for name in allowed)]
    if refused:
        lines = "".join(f"\n  {one.key}: {one.left!r} there, {one.right!r} here" for one in refused)
        keys = ",".join(one.key for one in refused)
        raise ConfigError(
            f"run.resume_attempt_id={wanted}: belongs to another run; it differs in{lines}\nset these as they "
            f"were, or accept the differences with 'run.allow_mismatch=[{keys}]'"
        )
    return found[0], tuple(other)


def _stands_for(name: str, key: str) -> bool:
    """Whether a name in ``run.allow_mismatch`` is this key, or a group that contains it."""
    return key == name or key.startswith(f"{name}.")
