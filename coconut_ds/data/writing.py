"""Writes the files of a data set, one problem per line, and a manifest that describes them.

Either all files of a data set are replaced or none, and files with other content only with ``overwrite``. The scripts
in `preprocessing/` create the problems; `coconut_ds.data.problem` reads them. The manifest contains no dates and no
folders, so the same problems always give the same manifest.
"""

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.files import fingerprint, shell_word
from coconut_ds.runs.identity import differences, flattened
from coconut_ds.strict_json import read_json


class ProblemWriter:
    """Writes a JSON list of problems, one problem at a time. `Outputs.open` creates it."""

    def __init__(self, path: Path) -> None:
        self.problems = 0
        self._stream = path.open("w", encoding="utf-8", newline="\n")

    def write(self, problem: Problem) -> None:
        """Appends one problem."""
        self._stream.write((",\n" if self.problems else "[\n") + json.dumps(problem.as_dict()))
        self.problems += 1

    def finish(self) -> None:
        """Writes the end of the list and closes the file."""
        self._stream.write("\n]\n" if self.problems else "[]\n")
        self.close()

    def close(self) -> None:
        """Closes the file without completing the list."""
        self._stream.close()


@dataclass
class _Output:
    temporary: Path
    problems: int | ProblemWriter
    inputs: Sequence[Path]

    @property
    def count(self) -> int:
        return self.problems.problems if isinstance(self.problems, ProblemWriter) else self.problems


class Outputs:
    """The files of one data set: ``with Outputs(folder, "gsm") as outputs: outputs.open("gsm_test.json").write(...)``.

    The files have temporary names until the block ends without an error; then they are renamed, `<name>_manifest.json`
    last. After an error the folder is as before. An existing file with other content is an error unless ``overwrite``
    is set.

    For each output, the manifest contains its number of problems, size in bytes, sha256 and ``options``, and the name,
    size and sha256 of each input. Entries of earlier outputs are kept as long as their files exist.
    """

    def __init__(self, folder: Path, name: str, overwrite: bool = False, **options: Any) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._manifest = folder / f"{name}_manifest.json"
        self._options = options
        self._outputs: dict[str, _Output] = {}

    def open(self, file: str, inputs: Sequence[Path] = ()) -> ProblemWriter:
        """Starts a new file in the folder; ``inputs`` are the files that its problems come from."""
        temporary = self._temporary(file)
        problems = ProblemWriter(temporary)
        self._outputs[file] = _Output(temporary, problems, inputs)
        return problems

    def copy(self, source: Path, problems: int) -> None:
        """Copies a file with ``problems`` problems unchanged, under the same name."""
        self._outputs[source.name] = _Output(self._temporary(source.name), problems, [source])
        shutil.copyfile(source, self._outputs[source.name].temporary)

    def summary(self) -> str:
        """One line per file: its path and its number of problems."""
        return "\n".join(
            f"{shell_word(self._folder / file)}: {output.count} problems" for file, output in self._outputs.items()
        )

    def __enter__(self) -> Self:
        self._folder.mkdir(parents=True, exist_ok=True)
        self._earlier = _read_manifest(self._manifest)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        manifest = self._temporary(self._manifest.name)
        try:
            if kind is None:
                for output in self._outputs.values():
                    if isinstance(output.problems, ProblemWriter):
                        output.problems.finish()
                if not self._overwrite:
                    self._refuse_other_content()
                manifest.write_text(json.dumps({"outputs": self._entries()}, indent=2) + "\n", encoding="utf-8")
                for file, output in self._outputs.items():
                    os.replace(output.temporary, self._folder / file)
                os.replace(manifest, self._manifest)
        finally:
            for output in self._outputs.values():
                if isinstance(output.problems, ProblemWriter):
                    output.problems.close()
                output.temporary.unlink(missing_ok=True)
            manifest.unlink(missing_ok=True)

    def _refuse_other_content(self) -> None:
        """Raises a ``DataError`` if a file exists that has other content than the new one."""
        others = [
            file
            for file, output in self._outputs.items()
            if (self._folder / file).exists() and fingerprint(self._folder / file) != fingerprint(output.temporary)
        ]
        if others:
            earlier = self._earlier.get(others[0], {}).get("options", {})
            pairs = differences(flattened(earlier), flattened(self._options)) if earlier else []
            told = f" ({', '.join(map(str, pairs))})" if pairs else ""
            raise DataError(
                f"{', '.join(str(self._folder / file) for file in others)}: found other content than the new{told}, "
                "and changed nothing; set --out to another folder, or add --overwrite to replace"
            )

    def _temporary(self, file: str) -> Path:
        return self._folder / f".{file}.{os.getpid()}.tmp"

    def _entries(self) -> dict[str, Any]:
        entries = {file: entry for file, entry in self._earlier.items() if (self._folder / file).is_file()}
        of_input = {path: {"name": path.name, **fingerprint(path)} for o in self._outputs.values() for path in o.inputs}
        for file, output in self._outputs.items():
            entries[file] = {
                "problems": output.count,
                **fingerprint(output.temporary),
                "options": self._options,
                "inputs": [of_input[path] for path in output.inputs],
            }
        return dict(sorted(entries.items()))


def _read_manifest(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        return dict(read_json(path)["outputs"])
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{path}: is not a manifest of this project; delete it and run again") from error
