"""Predictions of an evaluation that has not ended: each is on the disk as soon as it is made, and none is made twice.

They lie beside the results, in ``.partial/<what they depend on>/``, one file a process. What a process was writing when
it was killed is left out. When all are there the folder goes.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from coconut_ds.errors import DataError
from coconut_ds.evaluation.prediction import Prediction
from coconut_ds.files import remove_folder

FOLDER = ".partial"
Key = tuple[int, int]
"""Which number of thoughts, and which problem."""


class PartialPredictions:
    """The record of one evaluation, on one rank."""

    def __init__(self, out: Path, identity: str) -> None:
        """``identity``: stands for all that predictions depend on; others' are left alone."""
        self._all = out / FOLDER
        self._folder = self._all / identity
        self._file: IO[str] | None = None

    @property
    def folder(self) -> Path:
        """Where they lie."""
        return self._folder

    def read(self) -> dict[Key, Prediction]:
        """What launches before this one have made."""
        found: dict[Key, Prediction] = {}
        for path in sorted(self._folder.glob("*.jsonl")):
            # Every whole line ends with a newline.
            for line in path.read_text(encoding="utf-8").split("\n")[:-1]:
                item = json.loads(line)
                found[item["arm"], item["prediction"]["index"]] = Prediction(**item["prediction"])
        return found

    def add(self, arm: int, prediction: Prediction) -> None:
        """Writes one."""
        if self._file is None:
            try:
                self._folder.mkdir(parents=True, exist_ok=True)
                name = f"{os.uname().nodename}-{os.getpid()}.jsonl"
                self._file = (self._folder / name).open("a", encoding="utf-8")
            except OSError as error:
                raise DataError(f"{self._folder}: cannot be written ({error}); set out= to another folder") from error
        line: Mapping[str, Any] = {"arm": arm, "prediction": prediction.as_dict()}
        self._file.write(json.dumps(line, ensure_ascii=False) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Lets go of the file."""
        if self._file is not None:
            self._file.close()

    def discard(self) -> None:
        """Removes it, and what other evaluations with the same place left behind."""
        if self._all.is_dir():
            remove_folder(self._all)
