"""Files of problems that visitors can choose from: those of ``--data``, and held-out problems stored by runs."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.errors import CoconutError
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring
from serve.app.conventions import convention_of
from serve.checkpoints.finding import ServedCheckpoint

log = logging.getLogger("serve")
MAX_PROBLEMS = 2000
"""Maximum number of problems loaded from a file."""
HELD_OUT_FILES = ("test.json", "valid.json")
"""Files of generated problems that a run stores and does not train on, in order of preference."""


@dataclass(frozen=True)
class ProblemFile:
    """Problems that visitors can choose from."""

    name: str
    problems: tuple[Problem, ...]
    scoring: Scoring = EXACT
    """Decides which answers are right."""


def find_files(
    paths: Sequence[Path], checkpoints: Iterable[ServedCheckpoint]
) -> tuple[dict[str, ProblemFile], dict[str, str]]:
    """Loads files of problems: those given, and the held-out problems of the checkpoints' runs.

    Returns:
        Files by name; and by name of a checkpoint, the name of its run's file.

    Raises:
        DataError: a given file does not contain problems.
    """
    files: dict[str, ProblemFile] = {}
    for path in paths:
        name = path.stem if path.stem not in files else str(path)
        problems = tuple(load_problems(path, need_answers=False)[:MAX_PROBLEMS])
        files[name] = ProblemFile(name, problems, convention_of(path))
    file_of: dict[str, str] = {}
    known: dict[Path, str] = {}
    for checkpoint in checkpoints:
        # Those of a released checkpoint are in its own folder, those of a run next to its checkpoints.
        folder = checkpoint.folder if (checkpoint.folder / "problems").is_dir() else checkpoint.folder.parent
        found = _held_out_file(folder / "problems")
        if found is None:
            continue
        path, problems = found
        if path not in known:
            known[path] = _free_name(f"{checkpoint.name.split('/')[0]}: {path.stem}", files)
            files[known[path]] = ProblemFile(known[path], problems, convention_of(path))
        file_of[checkpoint.name] = known[path]
    return files, file_of


def _held_out_file(folder: Path) -> tuple[Path, tuple[Problem, ...]] | None:
    for name in HELD_OUT_FILES:
        path = folder / name
        try:
            if path.is_file():
                return path, tuple(load_problems(path)[:MAX_PROBLEMS])
        except CoconutError as error:
            log.warning("skipped a file of problems: %s", error)
    return None


def _free_name(name: str, taken: dict[str, ProblemFile]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free
