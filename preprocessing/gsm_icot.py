"""Writes GSM8K files: ``python preprocessing/gsm_icot.py [FILE.txt ...] [--raw data/gsm_raw] [--out data]``.

Reads lines ``question||step step ... #### answer`` of GSM8K-Aug, which `gsm_icot.bash` downloads; a line may have no
steps. Writes gsm_train.json, gsm_valid.json and gsm_test.json, each from the file whose name has the same ending. Texts
are not changed; commas in answers stay. `as_line` is the inverse of the conversion. One line is in memory at a time.
Existing files with other content are replaced only with ``--overwrite``.
"""

import argparse
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

if __name__ == "__main__":
    # Run as a file: put the root of the checkout on the path instead of this folder.
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from tqdm import tqdm

from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.downloads import ContentHash, check_count, downloaded, expected_contents, expected_counts
from coconut_ds.data.problem import Problem
from coconut_ds.data.writing import Outputs
from coconut_ds.errors import DataError

SPLITS = ("train", "valid", "test")
FORM = "question||step step ... #### answer"
# Spaces separate steps, but a calculation in <<double brackets>> is one step even if it contains spaces.
STEP = re.compile(r"(?:<<.*?>>|\S)+")


def as_problem(line: str, where: str) -> Problem:
    """The problem of one line, without its line break. A line with other spacing is kept in the extra key ``line`` too.

    Raises:
        DataError: the line has another form; ``where`` names it.
    """
    question, _, rest = line.partition("||")
    body, _, answer = (part.strip() for part in rest.partition("####"))
    if line.count("||") != 1 or line.count("####") != 1 or not question.strip() or not answer:
        shown = line if len(line) <= 80 else line[:38] + " ... " + line[-37:]
        raise DataError(f"{where}: found {_fault(line, question)} in {shown!r}, expected {FORM}")
    problem = Problem(question, tuple(STEP.findall(body)), answer)
    return problem if as_line(problem) == line else replace(problem, extra={"line": line})


def as_line(problem: Problem) -> str:
    """The line from which `as_problem` created the problem."""
    return str(problem.extra.get("line", f"{problem.question}||{' '.join(problem.steps)} #### {problem.answer}"))


def _fault(line: str, question: str) -> str:
    for mark in ("||", "####"):
        if line.count(mark) != 1:
            return f"'{mark}' {line.count(mark)} times"
    return "no answer" if question.strip() else "no question"


def read_problems(path: Path) -> Iterator[Problem]:
    """The problems of a file, line by line.

    Raises:
        DataError: a line has another form or is not UTF-8 text; names the file and the line, counted from 1.
    """
    hidden = not sys.stderr.isatty()
    size = path.stat().st_size
    with path.open("rb") as stream, tqdm(total=size, unit="B", unit_scale=True, desc=path.name, disable=hidden) as bar:
        for number, raw in enumerate(stream, start=1):
            where = f"{path}: line {number}"
            try:
                line = raw.decode("utf-8").removesuffix("\n").removesuffix("\r")
            except UnicodeDecodeError as error:
                raise DataError(f"{where}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
            yield as_problem(line, where)
            bar.update(len(raw))


def plain_steps(problem: Problem) -> list[str]:
    """The steps as the reference implementation reads them: what is between single spaces of the line."""
    return as_line(problem).partition("||")[2].partition("##")[0].strip().split(" ")


def convert(
    files: Mapping[str, Path],
    out: Path,
    counts: Mapping[str, int],
    overwrite: bool = False,
    contents: Mapping[str, str] = MappingProxyType({}),
) -> str:
    """Writes gsm_SPLIT.json for each split's file, and the manifest. Returns a summary of the files.

    Args:
        files: by split.
        out: folder of the new files.
        counts: expected numbers of problems, by file name.
        overwrite: whether existing files with other content are replaced.
        contents: expected hashes of problems, by file name.
    """
    for path in files.values():
        if not path.is_file():
            raise DataError(f"{path}: no such file; download it with: bash preprocessing/gsm_icot.bash")
    without_steps = other_spacing = 0
    with Outputs(out, "gsm", overwrite) as outputs:
        for split, path in files.items():
            file, content = outputs.open(f"gsm_{split}.json", [path]), ContentHash()
            with downloaded(path, counts):
                for problem in read_problems(path):
                    file.write(problem)
                    if path.name in contents:
                        content.add(problem.question, problem.answer, plain_steps(problem))
                    without_steps += not problem.steps
                    other_spacing += bool(problem.extra)
                if not file.problems:
                    raise DataError(f"{path}: holds no problems, expected lines {FORM}")
                check_count(path, file.problems, counts)
                content.check(path, {name: digest for name, digest in contents.items() if name == path.name})
    notes = [f"problems without steps: {without_steps}"]
    notes += [f"lines with other spacing, kept in the key 'line': {other_spacing}"] if other_spacing else []
    return "\n".join([outputs.summary(), *notes])


def by_split(paths: Sequence[Path]) -> dict[str, Path]:
    """The files by split, which is the ending of a file's name.

    Raises:
        DataError: a name ends with no split, or two names end with the same.
    """
    found: dict[str, Path] = {}
    for path in paths:
        split = path.stem.rpartition("_")[2]
        if split not in SPLITS:
            raise DataError(f"{path}: found a name that ends with '{split}', expected train, valid or test")
        if split in found:
            raise DataError(
                f"{path}: is a second file for gsm_{split}.json in addition to {found[split]}, expected one"
            )
        found[split] = path
    return found


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    parser = argparse.ArgumentParser(description="Write problem files from lines of GSM8K-Aug.")
    parser.add_argument(
        "files", type=Path, nargs="*", metavar="FILE.txt", help="files to convert instead of the three in --raw"
    )
    parser.add_argument(
        "--raw",
        type=Path,
        default=Path("data/gsm_raw"),
        help="folder of train.txt, valid.txt and test.txt (%(default)s)",
    )
    parser.add_argument("--out", type=Path, default=Path("data"), help="output folder (%(default)s)")
    parser.add_argument("--counts", type=Path, metavar="LIST", help="check the files against this list")
    parser.add_argument("--overwrite", action="store_true", help="replace existing files with other content")
    options = parser.parse_args(arguments)
    try:
        files = by_split(options.files or [options.raw / f"{split}.txt" for split in SPLITS])
        counts = expected_counts(options.counts) if options.counts else {}
        contents = expected_contents(options.counts) if options.counts else {}
        print(convert(files, options.out, counts, options.overwrite, contents))
    except (DataError, OSError) as error:
        print(error, file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
