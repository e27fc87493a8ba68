"""Finds the checkpoints that ``--checkpoint`` options refer to, names them, and checks whether they may be served."""

from dataclasses import dataclass
from pathlib import Path

from coconut_ds.errors import CheckpointError
from coconut_ds.files import MAX_TEXT, README, SEAL, damage
from coconut_ds.hub import cache_of, cached_name
from coconut_ds.model.card import CARD, ModelCard
from coconut_ds.model.feed_file import check_feed_file
from coconut_ds.model.folder_files import models_inside
from coconut_ds.runs.catalogue import Attempt, find_attempts, is_attempt, read_attempt
from coconut_ds.runs.edits import advice_on_damage
from coconut_ds.runs.folder import ENGINE
from serve.checkpoints.safety import check_folder, entries

Mark = tuple[tuple[str, int, int, int], ...]
"""For each file of a folder its path, inode, size and time of the last change: these change when its content does."""


@dataclass(frozen=True)
class Standing:
    """What a checkpoint is among those of its run."""

    is_best: bool
    """Whether the run names it as its best checkpoint."""
    is_finished: bool
    """Whether the run is complete."""

    @classmethod
    def of(cls, attempt: Attempt, checkpoint: Path) -> "Standing":
        """The standing of a checkpoint of an attempt."""
        best = attempt.best
        return cls(best is not None and best.path.name == checkpoint.name, attempt.status == "completed")


@dataclass(frozen=True)
class ServedCheckpoint:
    """A checkpoint that requests can name."""

    name: str
    folder: Path
    root: Path
    """The folder that the operator gave, or the cache entry that it belongs to; no link may lead out of it."""
    card: ModelCard
    created: int = 0
    """When the checkpoint was written, in seconds since 1970."""
    mark: Mark = ()
    """The state of its files when they were checked."""
    standing: Standing | None = None
    """None: it belongs to no run."""

    @property
    def is_best_of_run(self) -> bool:
        """Whether it belongs to a run that names it as its best checkpoint."""
        return self.standing is not None and self.standing.is_best

    @property
    def accuracy(self) -> float | None:
        """Accuracy on the run's validation problems, from 0 to 1; None if it is not known."""
        accuracy = self.card.provenance.get("validation_accuracy")
        return float(accuracy) if isinstance(accuracy, (int, float)) else None


@dataclass(frozen=True)
class Found:
    """A folder that an option refers to, before it is checked."""

    name: str
    folder: Path
    root: Path
    """The folder that the operator gave."""
    is_given: bool = False
    """Whether the operator gave this folder itself, not one that contains it."""
    standing: Standing | None = None
    """None: it belongs to no run."""


def folders_of(text: str) -> list[Found]:
    """The folders that one ``--checkpoint`` option refers to, with their names. Of runs, the newest comes first.

    Raises:
        CheckpointError: there is no such folder.
    """
    name, separator, path = text.partition("=")
    folder = Path(path if separator and not Path(text).exists() else text)
    name = name if separator and not Path(text).exists() else ""
    if not folder.is_dir():
        raise CheckpointError(f"--checkpoint {folder}: no such folder; give a model folder or a run's folder")
    folder = folder.resolve()
    if (folder / "config.json").exists():
        standing = Standing.of(read_attempt(folder.parent), folder) if is_attempt(folder.parent) else None
        return [Found(name or _default_name(folder), folder, folder, is_given=True, standing=standing)]
    found = _of_runs(folder, name)
    if not is_attempt(folder):
        found += [Found(label, place, folder) for label, place in _of_models(folder, name)]
    return found


def _of_runs(folder: Path, name: str) -> list[Found]:
    """The checkpoints of an attempt, or of all attempts in a folder, the newest first."""
    attempts = [read_attempt(folder)] if is_attempt(folder) else list(reversed(find_attempts(folder)))
    found = [(attempt, one) for attempt in attempts for one in attempt.checkpoints]
    short = [f"{attempt.name}/{one.path.name}" for attempt, one in found if not one.problems]
    labelled = []
    for attempt, one in found:
        label = f"{attempt.name}/{one.path.name}"
        if short.count(label) > 1:
            label = f"{attempt.name}/{attempt.id}/{one.path.name}"
        label = f"{name}/{one.path.name}" if name else label
        labelled.append(Found(label, one.path, folder, standing=Standing.of(attempt, one.path)))
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


def mark_of(folder: Path) -> Mark:
    """The state of a folder's files, except those that loading does not open, and ``README.md``.

    Raises:
        OSError: the folder cannot be read, or a file vanished meanwhile.
    """
    # Links that lead nowhere are refused by the checks.
    states = (
        (str(path.relative_to(folder)), path.stat() if path.exists() else path.lstat())
        for path in entries(folder)
        if path != folder / README
    )
    return tuple((name, state.st_ino, state.st_size, state.st_mtime_ns) for name, state in states)


def checked(found: Found) -> ServedCheckpoint:
    """The checkpoint in a folder, if it may be served. Reads small files only; loading reads and checks all of them.

    Raises:
        CheckpointError: it is not safe to load, or damaged, or vanished meanwhile.
    """
    folder, root = found.folder, found.root
    try:
        mark = mark_of(folder)
        # The files of a cached model are links to another folder of its cache entry.
        cache = cache_of(folder)
        if cache is not None and root.is_relative_to(cache):
            root = cache
        check_folder(folder, root)
        if (folder / SEAL).exists() and (faults := damage(folder, hashes=True, without=ENGINE, largest=MAX_TEXT)):
            raise CheckpointError(f"{folder}: is damaged: {'; '.join(faults[:3])}; {advice_on_damage(folder)}")
        card = ModelCard.read(folder)
        assert card is not None, "check_folder requires coconut.json"
        check_feed_file(folder, card.feed)
        created = int((folder / CARD).stat().st_mtime)
    except (OSError, RuntimeError) as error:
        # RuntimeError: links that lead back to themselves, up to Python 3.12.
        raise CheckpointError(f"{folder}: cannot be read ({error}); was it removed or replaced meanwhile?") from error
    return ServedCheckpoint(found.name, folder, root, card, created, mark, found.standing)
