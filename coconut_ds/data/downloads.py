"""Lists of downloads as `preprocessing/*.sha256` keep them: what a downloaded file must hold. Not here: downloading.

A line is: sha256 (or "unknown"), bytes (or "-"), problems, file name. The sums are the shell scripts' to check; the
number of problems is all that is known of some files, and is checked here.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from coconut_ds.errors import DataError


def expected_counts(path: Path) -> dict[str, int]:
    """Problems of each file that a list names.

    Raises:
        DataError: a line is neither of the form above nor a comment.
    """
    counts = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        columns = line.split()
        if len(columns) != 4 or not columns[2].isdecimal():
            raise DataError(f"{path}: line {number}: found {line!r}, expected: sha256 bytes problems name")
        counts[columns[3]] = int(columns[2])
    return counts


def check_count(path: Path, found: int, counts: Mapping[str, int]) -> None:
    """Refuses a file with another number of problems than its list says; one that no list names passes.

    Raises:
        DataError: the number differs.
    """
    if found != counts.get(path.name, found):
        raise DataError(f"{path}: found {found} problems, expected {counts[path.name]}")


@contextmanager
def downloaded(path: Path, counts: Mapping[str, int]) -> Iterator[None]:
    """Adds to an error about a file of a list how to mend it."""
    try:
        yield
    except DataError as error:
        if path.name not in counts or not path.exists():
            raise
        raise DataError(f"{error}; delete {path} and run the script that downloads it again") from error
