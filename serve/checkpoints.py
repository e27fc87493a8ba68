"""The checkpoints that a server offers: their names and folders, found once when the server starts.

Requests never contain paths: a request can only name a checkpoint of this list.
"""

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from coconut_ds.errors import CheckpointError
from coconut_ds.files import MAX_TEXT, SEAL, damage, shell_word
from coconut_ds.hub import cache_of, cached_name
from coconut_ds.model.card import CARD, ModelCard
from coconut_ds.model.feed_file import check_feed_file
from coconut_ds.model.folder_files import models_inside
from coconut_ds.runs.catalogue import find_attempts, is_attempt, read_attempt
from coconut_ds.runs.edits import advice_on_damage
from coconut_ds.runs.folder import ENGINE
from serve.errors import UnknownModelError
from serve.safety import check_folder

log = logging.getLogger("serve")


@dataclass(frozen=True)
class ServedCheckpoint:
    """A checkpoint that requests can name."""

    name: str
    folder: Path
    root: Path
    """The folder that the operator gave, or the cache entry that it belongs to; no link may lead out of it."""
    card: ModelCard

    @property
    def created(self) -> int:
        """When the checkpoint was written, in seconds since 1970."""
        return int((self.folder / CARD).stat().st_mtime)


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
        given: each the path of a model folder, of a run's folder, or of a folder that contains runs or model folders,
            optionally preceded by ``NAME=``. Of runs, all complete checkpoints are taken, the newest first.

    Raises:
        CheckpointError: a folder does not exist, is not safe to load, is damaged, or contains no complete checkpoint.
            If only some of a folder's checkpoints are unsafe or damaged, they are skipped with a warning.
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
    found = _of_runs(folder, name) if is_attempt(folder) else [*_of_runs(folder, name), *_of_models(folder, name)]
    checkpoints, refused = [], []
    for label, place in found:
        try:
            checkpoints.append(_checked(label, place, folder))
        except CheckpointError as error:
            log.warning("skipped a checkpoint: %s", error)
            refused.append(error)
    if refused and not checkpoints:
        raise refused[0]
    return checkpoints


def _of_runs(folder: Path, name: str) -> list[tuple[str, Path]]:
    """Names and folders of the checkpoints of an attempt, or of all attempts in a folder, the newest first."""
    attempts = [read_attempt(folder)] if is_attempt(folder) else list(reversed(find_attempts(folder)))
    found = [(attempt, one) for attempt in attempts for one in attempt.checkpoints]
    short = [f"{attempt.name}/{one.path.name}" for attempt, one in found if not one.problems]
    labelled = []
    for attempt, one in found:
        label = f"{attempt.name}/{one.path.name}"
        if short.count(label) > 1:
            label = f"{attempt.name}/{attempt.id}/{one.path.name}"
        labelled.append((f"{name}/{one.path.name}" if name else label, one.path))
    return labelled


def _of_models(folder: Path, name: str) -> list[tuple[str, Path]]:
    """Names and folders of the models in a folder that do not belong to a run."""
    found = []
    for path in models_inside(folder):
        inside = [each for each in (path, *path.parents) if each != folder and each.is_relative_to(folder)]
        if not any(map(is_attempt, inside)):
            found.append(path)
    return [(f"{name}/{label}" if name else label, path) for label, path in _model_labels(folder, found)]


def _model_labels(folder: Path, found: list[Path]) -> list[tuple[str, Path]]:
    """A name for each model folder: its path inside ``folder``, or its name on the hub if it is in a cache."""
    caches = [cache_of(path) for path in found]
    labels = []
    for path, cache in zip(found, caches, strict=True):
        label = str(path.relative_to(folder)) if cache is None else cached_name(cache)
        labels.append((label if caches.count(cache) == 1 or cache is None else f"{label}@{path.name[:8]}", path))
    return labels


def _default_name(folder: Path) -> str:
    """The name of a single model folder.

    A run's checkpoint is named after the run, as when the run is given, and a model in a cache as on the hub.
    """
    if is_attempt(folder.parent):
        return f"{read_attempt(folder.parent).name}/{folder.name}"
    cache = cache_of(folder)
    return folder.name if cache is None else cached_name(cache)


def _checked(name: str, folder: Path, root: Path) -> ServedCheckpoint:
    # The files of a cached model are links to another folder of its cache entry.
    cache = cache_of(folder)
    if cache is not None and root.is_relative_to(cache):
        root = cache
    check_folder(folder, root)
    # Only small files are read here; loading reads and checks all of them.
    if (folder / SEAL).exists() and (found := damage(folder, hashes=True, without=ENGINE, largest=MAX_TEXT)):
        raise CheckpointError(f"{folder}: is damaged: {'; '.join(found[:3])}; {advice_on_damage(folder)}")
    card = ModelCard.read(folder)
    assert card is not None, "check_folder requires coconut.json"
    check_feed_file(folder, card.feed)
    return ServedCheckpoint(name, folder, root, card)
