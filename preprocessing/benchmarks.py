"""Writes published benchmarks: ``python preprocessing/benchmarks.py NAME[@COMMIT][=PATH] ... [--out data]``.

Reads each from the Hugging Face hub or GitHub through the library ``datasets`` (``pip install -e '.[hub]'``), or from
PATH, a file or folder in the published format, and writes data/NAME.json, or data/NAME_{train,valid,test}.json. No row
is skipped, except training problems without an answer, which are counted. The numbers of problems are checked, and the
SHA-256 of the problems where it is known. Existing files with other content are replaced only with ``--overwrite``.
``--list`` shows the names.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Run as a file: put the root of the checkout on the path instead of this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.benchmarks import BENCHMARKS, Benchmark, Part
from coconut_ds.data.downloads import ContentHash
from coconut_ds.data.problem import file_digest
from coconut_ds.data.published import at_revision, hub_rows, local_rows
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import CoconutError, DataError
from coconut_ds.files import shell_word

MANIFEST = "benchmarks"
"""The first part of the manifest's name, which all benchmarks share."""


def write(benchmark: Benchmark, out: Path, place: Path | None, mirror: Path | None, overwrite: bool) -> str:
    """Writes the files of a benchmark. Returns a summary.

    Args:
        benchmark: what to write.
        out: folder of the new files.
        place: local file or folder in the published format; None: the hub.
        mirror: see ``hub_rows``.
        overwrite: whether existing files with other content are replaced.

    Raises:
        DataError: it cannot be read, or is not as published.
    """
    rows, files = (hub_rows(benchmark, mirror), list[Path]()) if place is None else local_rows(benchmark, place)
    lines = [f"{benchmark.name}, from {benchmark.source if place is None else place}"]
    lines += [f"  {shell_word(path)}: sha256 {file_digest(path)}" for path in files]
    options = {"benchmark": benchmark.name, "source": str(benchmark.source)}
    with Outputs(out, MANIFEST, overwrite, **options) as outputs:
        for name in benchmark.parts:
            lines += [
                f"  {shell_word(out / benchmark.file(name))}: {_write_part(benchmark, name, rows, files, outputs)}"
            ]
    return "\n".join(lines)


def _write_part(
    benchmark: Benchmark, name: str, rows: dict[str, list[Any]], files: Sequence[Path], outputs: Outputs
) -> str:
    part, file = benchmark.parts[name], benchmark.file(name)
    found = part.rows(rows)
    where = f"{benchmark.name}, {' and '.join(part.splits)}"
    if not found:
        raise DataError(f"{where}: found {sum(len(rows[s]) for s in part.splits)} rows, too few for {file}")
    _check_count(where, part, len(found))
    content, written, left_out = ContentHash(), outputs.open(file, files), 0
    for problem in benchmark.problems(found, where):
        if name == "train" and not problem.has_answer:
            left_out += 1
            continue
        written.write(problem)
        content.add(problem.question, problem.answer, problem.steps)
    digest = content.hexdigest()
    if part.content not in (None, digest):
        raise DataError(f"{where}: found problems with sha256 {digest}, expected {part.content}")
    count = f"{written.problems:,} problems" + (f", {left_out:,} without an answer left out" if left_out else "")
    counted = "as published" if part.problems else "number not checked: not known"
    return f"{count} ({counted}); sha256 of the problems {digest}{'' if part.content else ', not checked: not known'}"


def _check_count(where: str, part: Part, found: int) -> None:
    if part.problems and found not in part.problems:
        raise DataError(f"{where}: found {found:,} rows, expected {' or '.join(f'{n:,}' for n in part.problems)}")


def requested(word: str) -> tuple[Benchmark, Path | None]:
    """The benchmark and the local path that ``NAME[@COMMIT][=PATH]`` names.

    Raises:
        DataError: there is no benchmark of this name.
    """
    left, _, path = word.partition("=")
    name, _, revision = left.partition("@")
    if name not in BENCHMARKS:
        raise DataError(f"{name}: unknown benchmark; expected one of {', '.join(BENCHMARKS)}")
    return at_revision(BENCHMARKS[name], revision or None), Path(path).expanduser() if path else None


def table() -> str:
    """One line for each benchmark: name, source, files and numbers of problems."""
    lines = []
    for one in BENCHMARKS.values():
        parts = []
        for name, part in one.parts.items():
            parts.append(f"{one.file(name)} {' or '.join(f'{n:,}' for n in part.problems) or '?'}")
        lines.append(f"{one.name:<16} {one.source}: {', '.join(parts)}")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    parser = argparse.ArgumentParser(description="Write problem files of published benchmarks.")
    parser.add_argument("names", nargs="*", metavar="NAME[@COMMIT][=PATH]", help="benchmarks, see --list")
    parser.add_argument("--list", action="store_true", help="show the names, sources and numbers of problems")
    parser.add_argument("--out", type=Path, default=Path("data"), help="output folder (%(default)s)")
    parser.add_argument(
        "--mirror", type=Path, metavar="FOLDER", help="copies of the sources by name, such as FOLDER/ChilleD/SVAMP"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace existing files with other content")
    options = parser.parse_args(arguments)
    if options.list or not options.names:
        print(table())
        return 0 if options.list else 2
    try:
        for benchmark, place in map(requested, options.names):
            print(write(benchmark, options.out, place, options.mirror, options.overwrite), flush=True)
    except (CoconutError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
