"""Stores the predictions of an unfinished evaluation, so that an interrupted evaluation continues where it stopped.

Each prediction is written to disk as soon as it is made, and no prediction is made twice. The files are in
``.partial/<hash of everything that predictions depend on>/`` in the folder of the results. The folder is removed once
the evaluation is complete.

Each process writes a file of its own, whose name contains a random part, and never appends to an existing file: the
process id alone does not tell two processes apart, since containers and Slurm jobs often reuse one. Each line begins
with a checksum of the rest; a whole line of an earlier version, which wrote none, counts too. A line that a process was
writing when it was killed, or that the disk has changed, is ignored, and its prediction is made again.
"""

import json
import os
import secrets
import shutil
import zlib
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from coconut_ds.errors import DataError
from coconut_ds.evaluation.prediction import Prediction
from coconut_ds.files import remove_folder
from coconut_ds.strict_json import parse_loosely

FOLDER = ".partial"
Key = tuple[int, int, int]
"""Index of the thought budget, index of the problem, and number of the sample."""


class PartialPredictions:
    """The predictions that one rank stores during one evaluation."""

    def __init__(self, out: Path, identity: str) -> None:
        """Creates no file yet.

        Args:
            out: folder of the results.
            identity: hash of everything that predictions depend on; predictions with another hash are not read.
        """
        self._all = out / FOLDER
        self._folder = self._all / identity
        self._file: IO[bytes] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the stored predictions."""
        return self._folder

    def read(self, warn: Callable[[str], None] = lambda line: None) -> dict[Key, Prediction]:
        """The predictions that earlier launches of this evaluation stored.

        Args:
            warn: receives a line for each file with whole lines that are damaged; their predictions are left out.

        Raises:
            DataError: a file cannot be read.
        """
        found: dict[Key, Prediction] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            try:
                content = path.read_bytes()
            except OSError as error:
                raise DataError(f"{path}: cannot be read ({error}); remove the file and start again") from error
            # A whole line ends with a newline. What follows the last newline was cut off: half a line, half a character
            # of UTF-8, or the zeros that a file system leaves after a power failure.
            read = [_read(line) for line in content.split(b"\n")[:-1]]
            found |= dict(item for item in read if item is not None)
            if damaged := read.count(None):
                warn(f"warning: {path}: {damaged:,} stored predictions are damaged and are made again")
        return found

    def add(self, budget: int, prediction: Prediction) -> None:
        """Stores a prediction made with thought budget number ``budget``.

        Raises:
            DataError: the file cannot be created or written.
        """
        text = json.dumps({"arm": budget, "prediction": prediction.as_dict()}, ensure_ascii=False)
        try:
            if self._file is None:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = f"{os.uname().nodename}-{os.getpid()}-{secrets.token_hex(6)}.jsonl"
                self._file = (self._folder / name).open("xb")
            self._file.write(_line(text.encode()))
            self._file.flush()
        except OSError as error:
            raise DataError(
                f"{self._folder}: cannot be written ({error}); the predictions stored there so far are kept; make room "
                "there, or set out= to another folder"
            ) from error

    def close(self) -> None:
        """Closes the file, if one was opened."""
        if self._file is not None:
            # After a write that failed, the file still holds the rest of the line; that error has been raised.
            with suppress(OSError):
                self._file.close()

    def discard(self) -> None:
        """Removes the stored predictions; those of other evaluations in the same results folder stay."""
        if self._folder.is_dir():
            remove_folder(self._folder)
        # What processes left that were killed here.
        for path in self._all.glob(f".{self._folder.name}.gone.*"):
            shutil.rmtree(path, ignore_errors=True)
        if self._all.is_dir() and not any(self._all.iterdir()):
            self._all.rmdir()


def _line(text: bytes) -> bytes:
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _read(line: bytes) -> tuple[Key, Prediction] | None:
    """What a whole line stores; None if it is damaged."""
    # A line of an earlier version is the object alone.
    text = line if line.startswith(b"{") else line[9:]
    if text is not line and _line(text) != line + b"\n":
        return None
    try:
        item: Mapping[str, Any] = parse_loosely(text.decode())
        prediction = Prediction(**item["prediction"])
        return (item["arm"], prediction.index, prediction.sample or 0), prediction
    except (ValueError, TypeError, KeyError):
        return None
