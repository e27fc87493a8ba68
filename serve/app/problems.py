"""Files of problems to choose from: those given, and those that runs keep of what they were not trained on."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from coconut_ds.data.problem import Problem, load_problems
from coconut_ds.errors import CoconutError
from serve.checkpoints import Entry

log = logging.getLogger("serve")
MAX_PROBLEMS = 2000
"""Kept of a file."""
OWN_FILES = ("test.json", "valid.json")
"""Problems that a run keeps of generated data and has not trained on, the best first."""


@dataclass(frozen=True)
class ProblemFile:
    """Problems to choose from."""

    name: str
    problems: tuple[Problem, ...]


def find_files(paths: Sequence[Path], entries: Iterable[Entry]) -> tuple[dict[str, ProblemFile], dict[str, str]]:
    """Files of problems: those given, and those that runs keep of what they were not trained on.

    Returns:
        Files by name, and by checkpoint the name of its run's own.

    Raises:
        DataError: a given file is no file of problems.
    """
    files: dict[str, ProblemFile] = {}
    for path in paths:
        name = path.stem if path.stem not in files else str(path)
        files[name] = ProblemFile(name, tuple(load_problems(path, need_answers=False)[:MAX_PROBLEMS]))
    owners: dict[str, str] = {}
    known: dict[Path, str] = {}
    for entry in entries:
        found = _own_file(entry.folder.parent / "problems")
        if found is None:
            continue
        path, problems = found
        if path not in known:
            known[path] = _free_name(f"{entry.name.split('/')[0]}: {path.stem}", files)
            files[known[path]] = ProblemFile(known[path], problems)
        owners[entry.name] = known[path]
    return files, owners


def _own_file(folder: Path) -> tuple[Path, tuple[Problem, ...]] | None:
    for name in OWN_FILES:
        path = folder / name
        try:
            if path.is_file():
                return path, tuple(load_problems(path)[:MAX_PROBLEMS])
        except CoconutError as error:
            log.warning("left out: %s", error)
    return None


def _free_name(name: str, taken: dict[str, ProblemFile]) -> str:
    number, free = 1, name
    while free in taken:
        number += 1
        free = f"{name} {number}"
    return free
