"""Reads the lists of downloaded files, `preprocessing/*.sha256`, and checks the number of problems in each file.

Each line has four columns: sha256 (or "unknown"), bytes (or "-"), number of problems, file name. The shell scripts in
`preprocessing/` download the files and check the sha256. For some files only the number of problems is known.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from coconut_ds.errors import DataError


def expected_counts(path: Path) -> dict[str, int]:
    """The number of problems of each file that a list names.

    Raises:
        DataError: a line has another form and is no comment.
    """
    counts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split()
        # Python does not convert numbers with thousands of digits.
        if len(columns) != 4 or not columns[2].isdecimal() or len(columns[2]) > 18:
            raise DataError(f"{path}: line {number}: found {line[:80]!r}, expected: sha256 bytes problems name")
        counts[columns[3]] = int(columns[2])
    return counts


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
