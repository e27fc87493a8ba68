"""Reads the lists of downloaded files, `preprocessing/*.sha256`, and checks the problems in each file.

Each line has four columns: sha256 (or "unknown"), bytes (or "-"), number of problems, file name. The shell scripts in
`preprocessing/` download the files and check the sha256. Of some files only the sha256 of their problems is known, as
"content:" and the sha256 of the JSON that the reference implementation makes of them. That is checked when they are
converted.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from coconut_ds.errors import DataError

CONTENT = "content:"
"""How the first column of a line begins that has the sha256 of a file's problems."""


def expected_counts(path: Path) -> dict[str, int]:
    """The number of problems of each file that a list names.

    Raises:
        DataError: a line has another form and is no comment.
    """
    return {name: count for name, (count, _) in _read(path).items()}


def expected_contents(path: Path) -> dict[str, str]:
    """The sha256 of the problems of each file for which a list states it (see ``ContentHash``).

    Raises:
        DataError: as ``expected_counts``.
    """
    found = {name: digest for name, (_, digest) in _read(path).items()}
    return {name: digest.removeprefix(CONTENT) for name, digest in found.items() if digest.startswith(CONTENT)}


def _read(path: Path) -> dict[str, tuple[int, str]]:
    """Number of problems and first column of each file of a list."""
    counts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split()
        # Python does not convert numbers with thousands of digits.
        if len(columns) != 4 or not columns[2].isdecimal() or len(columns[2]) > 18:
            raise DataError(f"{path}: line {number}: found {line[:80]!r}, expected: sha256 bytes problems name")
        counts[columns[3]] = int(columns[2]), columns[0]
    return counts


class ContentHash:
    """SHA-256 of problems in the JSON of the reference implementation: a list of objects with the keys question, answer
    and steps in this order, indented by two spaces, in UTF-8."""

    def __init__(self) -> None:
        self._digest, self._count = hashlib.sha256(), 0

    def add(self, question: str, answer: str, steps: Sequence[str]) -> None:
        """Adds one problem, with the texts of the downloaded file."""
        item = json.dumps(
            [{"question": question, "answer": answer, "steps": list(steps)}], indent=2, ensure_ascii=False
        )
        # Without the brackets of its list; the first problem follows the bracket, each other one a comma.
        text = item.removeprefix("[").removesuffix("\n]")
        self._digest.update((("," if self._count else "[") + text).encode())
        self._count += 1

    def hexdigest(self) -> str:
        """The hash of the problems so far."""
        whole = self._digest.copy()
        whole.update(b"\n]" if self._count else b"[]")
        return whole.hexdigest()

    def check(self, path: Path, contents: Mapping[str, str]) -> None:
        """Checks the problems of a file; files that are not in ``contents`` pass.

        Raises:
            DataError: they are others than expected.
        """
        found = self.hexdigest()
        if found != contents.get(path.name, found):
            raise DataError(f"{path}: found problems with sha256 {found}, expected {contents[path.name]}")


def check_count(path: Path, found: int, counts: Mapping[str, int]) -> None:
    """Checks the number of problems of a file; files that are not in ``counts`` pass.

    Raises:
        DataError: the number differs from the expected one.
    """
    if found != counts.get(path.name, found):
        raise DataError(f"{path}: found {found} problems, expected {counts[path.name]}")


@contextmanager
def downloaded(path: Path, counts: Mapping[str, int]) -> Iterator[None]:
    """Context manager that adds to a ``DataError`` about a downloaded file how to repair it."""
    try:
        yield
    except DataError as error:
        if path.name not in counts or not path.exists():
            raise
        raise DataError(f"{error}; delete {path} and run the script that downloads it again") from error
