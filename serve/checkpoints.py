"""The checkpoints that a server offers: their names and folders, found once when the server starts.

Requests never contain paths: a request can only name a checkpoint of this list.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coconut_ds.errors import CheckpointError
from coconut_ds.files import shell_word
from coconut_ds.model.card import ModelCard
from coconut_ds.runs.catalogue import find_attempts, is_attempt, read_attempt
from serve.errors import UnknownModelError
from serve.safety import check_folder

log = logging.getLogger("serve")


@dataclass(frozen=True)
class ServedCheckpoint:
    """A checkpoint that requests can name."""

    name: str
    folder: Path
    root: Path
    """The folder that the operator gave; nothing in the checkpoint may point outside it."""
    card: ModelCard

    @property
    def created(self) -> int:
        """When the checkpoint was written, in seconds since 1970."""
        return int((self.folder / "coconut.json").stat().st_mtime)


class Checkpoints:
    """Checkpoints by name, in the order in which they were given."""

    def __init__(self, checkpoints: Sequence[ServedCheckpoint]) -> None:
        """
        Raises:
            CheckpointError: there is no checkpoint, or two have the same name.
        """
        self._by_name: dict[str, ServedCheckpoint] = {}
        for checkpoint in checkpoints:
            if checkpoint.name in self._by_name:
                other = self._by_name[checkpoint.name].folder
                raise CheckpointError(
                    f"--checkpoint {checkpoint.folder}: the name {checkpoint.name} is already taken by {other}; choose "
                    f"another: --checkpoint NAME={shell_word(checkpoint.folder)}"
                )
            self._by_name[checkpoint.name] = checkpoint
        if not self._by_name:
            raise CheckpointError("--checkpoint: found no complete checkpoint; give a model folder or a run's folder")

    def __iter__(self) -> Iterator[ServedCheckpoint]:
        return iter(self._by_name.values())

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._by_name)

    @property
    def first_thinking(self) -> str:
        """Name of the first checkpoint that thinks, or of the first one if none does; the app selects it initially."""
        return next((checkpoint.name for checkpoint in self if checkpoint.card.num_thoughts), self.names[0])

    def __getitem__(self, name: str) -> ServedCheckpoint:
        """
        Raises:
            UnknownModelError: no checkpoint has this name.
        """
        checkpoint = self._by_name.get(name)
        if checkpoint is None:
            raise UnknownModelError(
                f"model: no checkpoint is named {name[:100]!r}; GET /v1/models lists the names", "model"
            )
        return checkpoint


def find_checkpoints(given: Iterable[str]) -> Checkpoints:
    """Finds the checkpoints that ``--checkpoint`` options refer to.

    Args:
        given: each the path of a model folder, of a run's folder, or of a folder that contains runs, optionally
            preceded by ``NAME=``. Of runs, all complete checkpoints are taken, the newest first.

    Raises:
        CheckpointError: a folder does not exist, is not safe to load, or contains no complete checkpoint. If only some
            of a folder's checkpoints are unsafe, they are skipped with a warning.
    """
    return Checkpoints([checkpoint for text in given for checkpoint in _checkpoints_of(text)])


def _checkpoints_of(text: str) -> list[ServedCheckpoint]:
    """The checkpoints that one ``--checkpoint`` option refers to."""
    name, separator, path = text.partition("=")
    folder = Path(path if separator and not Path(text).exists() else text)
    name = name if separator and not Path(text).exists() else ""
    if not folder.is_dir():
        raise CheckpointError(f"--checkpoint {folder}: no such folder; give a model folder or a run's folder")
    folder = folder.resolve()
    if (folder / "config.json").exists():
        return [_checked(name or _default_name(folder), folder, folder)]
    attempts = [read_attempt(folder)] if is_attempt(folder) else list(reversed(find_attempts(folder)))
    found = [(attempt, one) for attempt in attempts for one in attempt.complete]
    short = [f"{attempt.name}/{one.path.name}" for attempt, one in found]
    checkpoints, refused = [], []
    for (attempt, one), label in zip(found, short, strict=True):
        label = label if short.count(label) == 1 else f"{attempt.name}/{attempt.id}/{one.path.name}"
        try:
            checkpoints.append(_checked(f"{name}/{one.path.name}" if name else label, one.path, folder))
        except CheckpointError as error:
            log.warning("skipped a checkpoint: %s", error)
            refused.append(error)
    if refused and not checkpoints:
        raise refused[0]
    return checkpoints


def _default_name(folder: Path) -> str:
    """The name of a single model folder: a run's checkpoint is named after the run, as when the run is given."""
    if is_attempt(folder.parent):
        return f"{read_attempt(folder.parent).name}/{folder.name}"
    return folder.name


def _checked(name: str, folder: Path, root: Path) -> ServedCheckpoint:
    check_folder(folder, root)
    card = ModelCard.read(folder)
    assert card is not None, "check_folder requires coconut.json"
    return ServedCheckpoint(name, folder, root, card)
