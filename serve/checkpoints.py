"""Checkpoints that a server offers: names, and the folders behind them, found once at its start.

No path ever comes from a request: a request names a checkpoint of this list.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coconut_ds.errors import CheckpointError
from coconut_ds.model.card import ModelCard
from coconut_ds.runs.catalogue import find_attempts, is_attempt, read_attempt
from serve.errors import UnknownModelError
from serve.safety import check_folder

log = logging.getLogger("serve")


@dataclass(frozen=True)
class Entry:
    """A checkpoint under its name."""

    name: str
    folder: Path
    root: Path
    """What the operator gave; nothing in the folder may point out of it."""
    card: ModelCard

    @property
    def created(self) -> int:
        """When it was written: seconds since 1970."""
        return int((self.folder / "coconut.json").stat().st_mtime)


class Catalogue:
    """Entries by name, in the order in which they were given."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        """
        Raises:
            CheckpointError: there is none, or two have one name.
        """
        self._entries: dict[str, Entry] = {}
        for entry in entries:
            if entry.name in self._entries:
                raise CheckpointError(
                    f"--checkpoint {entry.folder}: the name {entry.name} is also that of "
                    f"{self._entries[entry.name].folder}; give it another: --checkpoint NAME={entry.folder}"
                )
            self._entries[entry.name] = entry
        if not self._entries:
            raise CheckpointError("--checkpoint: no complete checkpoint was found; give a model folder or a run")

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def names(self) -> list[str]:
        """All names."""
        return list(self._entries)

    @property
    def first_thinking(self) -> str:
        """The first that thinks, else the first: what an app shows before anything is chosen."""
        return next((entry.name for entry in self if entry.card.num_thoughts), self.names[0])

    def __getitem__(self, name: str) -> Entry:
        """
        Raises:
            UnknownModelError: no checkpoint has this name.
        """
        entry = self._entries.get(name)
        if entry is None:
            raise UnknownModelError(f"model: there is none named {name[:100]!r}; GET /v1/models lists them", "model")
        return entry


def find_checkpoints(given: Iterable[str]) -> Catalogue:
    """What ``--checkpoint`` options mean: ``PATH`` or ``NAME=PATH`` of a model folder, or the ``PATH`` of a run's
    folder or of a folder with runs, whose complete checkpoints are taken, the newest first.

    Raises:
        CheckpointError: a folder is not there or not safe, or nothing is found. Unsafe ones among several are left out
            with a warning.
    """
    return Catalogue([entry for text in given for entry in _entries(text)])


def _entries(text: str) -> list[Entry]:
    name, separator, path = text.partition("=")
    folder = Path(path if separator and not Path(text).exists() else text)
    name = name if separator and not Path(text).exists() else ""
    if not folder.is_dir():
        raise CheckpointError(f"--checkpoint {folder}: no such folder; give a model folder or a run")
    folder = folder.resolve()
    if (folder / "config.json").exists():
        return [_entry(name or _plain_name(folder), folder, folder)]
    attempts = [read_attempt(folder)] if is_attempt(folder) else list(reversed(find_attempts(folder)))
    found = [(attempt, one) for attempt in attempts for one in attempt.complete]
    short = [f"{attempt.name}/{one.path.name}" for attempt, one in found]
    entries, refused = [], []
    for (attempt, one), label in zip(found, short, strict=True):
        label = label if short.count(label) == 1 else f"{attempt.name}/{attempt.id}/{one.path.name}"
        try:
            entries.append(_entry(f"{name}/{one.path.name}" if name else label, one.path, folder))
        except CheckpointError as error:
            log.warning("left out: %s", error)
            refused.append(error)
    if refused and not entries:
        raise refused[0]
    return entries


def _plain_name(folder: Path) -> str:
    """As in a root: a checkpoint of a run is named after the run."""
    if is_attempt(folder.parent):
        return f"{read_attempt(folder.parent).name}/{folder.name}"
    return folder.name


def _entry(name: str, folder: Path, root: Path) -> Entry:
    check_folder(folder, root)
    card = ModelCard.read(folder)
    assert card is not None, "check_folder wants a card"
    return Entry(name, folder, root, card)
