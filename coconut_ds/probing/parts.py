"""Keeps the finished parts of an unfinished probe, so that an interrupted one continues with the part it was at.

A part is written as soon as it is computed, whole or not at all, to ``.partial/<signature>/`` in the folder of the
results. Its file begins with the SHA-256 of the rest; a part that does not agree with it is computed again. The folder
is removed once the results are complete.
"""

import hashlib
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter

from coconut_ds.files import write_whole
from coconut_ds.probing.export import as_plain
from coconut_ds.results import ResultFolder

FOLDER = ".partial"
Value = TypeVar("Value")


class KeptParts:
    """The parts of one result. Without a folder, nothing is kept."""

    def __init__(self, results: ResultFolder | None = None) -> None:
        self._all = None if results is None else results.path / FOLDER
        self._name = "" if results is None else results.identity.signature

    def get(self, name: str, kind: Any, make: Callable[[], Value]) -> Value:
        """The part as an earlier launch has kept it, or else what ``make`` computes.

        Args:
            name: of the part.
            kind: its type, of dataclasses with plain values: ``tuple[SweepPoint, ...]``.
            make: computes it.
        """
        if self._all is None:
            return make()
        path = self._all / self._name / f"{name}.json"
        if path.exists():
            try:
                value: Value = _read(path, kind)
            except ValueError as error:
                sys.stderr.write(f"warning: {path}: is damaged ({error}) and is computed again\n")
            else:
                sys.stderr.write(f"{name}: computed before, and read from {path}\n")
                return value
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(as_plain(made))
        write_whole(path, f"{_digest(text)}\n{text}\n")
        return made

    def discard(self) -> None:
        """Removes the parts; those of other results in the same folder stay."""
        if self._all is None or not self._all.is_dir():
            return
        shutil.rmtree(self._all / self._name, ignore_errors=True)
        if not any(self._all.iterdir()):
            self._all.rmdir()


def _read(path: Path, kind: Any) -> Any:
    content = path.read_bytes().decode()
    digest, _, text = content.rstrip("\n").partition("\n")
    if digest != _digest(text):
        raise ValueError("its SHA-256 differs")
    return TypeAdapter(kind).validate_json(text)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
