"""Stores the predictions of an unfinished evaluation, so that an interrupted evaluation continues where it stopped.

Each prediction is written to disk as soon as it is made, and no prediction is made twice. The files are in
``.partial/<hash of everything that predictions depend on>/`` in the folder of the results, one file per process. A line
that a process was writing when it was killed is ignored. The folder is removed once the evaluation is complete.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from coconut_ds.errors import DataError
from coconut_ds.evaluation.prediction import Prediction
from coconut_ds.files import remove_folder
from coconut_ds.strict_json import parse_loosely

FOLDER = ".partial"
Key = tuple[int, int]
"""Index of the thought budget, and index of the problem."""


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
        self._file: IO[str] | None = None

    @property
    def folder(self) -> Path:
        """The folder of the stored predictions."""
        return self._folder

    def read(self) -> dict[Key, Prediction]:
        """The predictions that earlier launches of this evaluation stored.

        Raises:
            DataError: a complete line of a file is not a prediction.
        """
        found: dict[Key, Prediction] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            # A complete line ends with a newline; what follows the last newline was cut off.
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                try:
                    item = parse_loosely(line)
                    found[item["arm"], item["prediction"]["index"]] = Prediction(**item["prediction"])
                except (ValueError, TypeError, KeyError) as error:
                    raise DataError(
                        f"{path}: a stored prediction is damaged ({error}); remove the file and start again"
                    ) from error
        return found

    def add(self, budget: int, prediction: Prediction) -> None:
        """Stores a prediction made with thought budget number ``budget``.

        Raises:
            DataError: the file cannot be created.
        """
        if self._file is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = f"{os.uname().nodename}-{os.getpid()}.jsonl"
                self._file = (self._folder / name).open("a", encoding="utf-8")
            except OSError as error:
                raise DataError(f"{self._folder}: cannot be written ({error}); set out= to another folder") from error
        line: Mapping[str, Any] = {"arm": budget, "prediction": prediction.as_dict()}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Closes the file, if one was opened."""
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Removes the stored predictions; those of other evaluations in the same results folder stay."""
        if self._folder.is_dir():
            remove_folder(self._folder)
        if self._all.is_dir() and not any(self._all.iterdir()):
            self._all.rmdir()
