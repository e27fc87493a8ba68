"""The command ``python -m coconut_ds.data convert FILE OUT``: reads and writes files, and shows the mapping."""

import argparse
import csv
import io
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coconut_ds.cli.parser import Parser
from coconut_ds.data import convert
from coconut_ds.data.checks import warnings_about
from coconut_ds.data.convert import SPLITS, Converter, KeyMapping
from coconut_ds.data.problem import Problem, parse_items
from coconut_ds.data.writing import ProblemWriter
from coconut_ds.errors import CoconutError, DataError
from coconut_ds.files import fingerprint
from coconut_ds.formats import TEXT
from coconut_ds.strict_json import JsonError, parse_loosely, printable, shown


def main(argv: Sequence[str]) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    options = _parser().parse_args(argv)
    given = {key: getattr(options, key) for key in ("question", "steps", "answer", "split", "mark")}
    try:
        items = read_items(options.file, options.part)
        keys = KeyMapping.found_in(items, str(options.file), **given)
        converter = Converter(keys, str(options.file))
        problems = list(converter.convert(items))
        _write(problems, options.out, options.overwrite)
    except (CoconutError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    sys.stdout.write(printable(describe(converter, problems, options.out)))
    return 0


def read_items(path: Path, part: str | None = None) -> list[Any]:
    """The items of a JSON, JSON Lines, CSV or Parquet file, not checked yet.

    A JSON object may contain the items under one of its keys, or be a table of items by name. Items of the form
    ``{"row": {…}}`` are unpacked.

    Args:
        path: the file.
        part: the key of a JSON object under which the items are; None: the only key with a list of objects.

    Raises:
        DataError: the file is missing, cannot be read, or contains no items.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file; expected JSON, JSON Lines, CSV or Parquet")
    if path.suffix == ".parquet":
        items = _read_parquet(path)
    else:
        try:
            text = path.read_bytes().decode("utf-8-sig")
        except UnicodeDecodeError as error:
            raise DataError(f"{path}: is not UTF-8 text ({error.reason} at byte {error.start})") from error
        items = _read_csv(path, text) if path.suffix == ".csv" else _json(path, text, part)
    if not items:
        raise DataError(f"{path}: holds no problems, expected at least one")
    return [item["row"] if isinstance(item, dict) and isinstance(item.get("row"), dict) else item for item in items]


def describe(converter: Converter, problems: Sequence[Problem], out: Path) -> str:
    """The mapping, the first problem, and what else there is to know, as text."""
    keys, counts, first = converter.keys, converter.counts, problems[0]
    number = ""
    if converter.number is not None:
        number = f"; numbers written as text: {counts['numbers']:,}, such as {' → '.join(converter.number)}"
    others = sorted({key for problem in problems for key in problem.extra})
    answer = keys.answer or (f"{keys.steps}, after '{keys.mark}'" if keys.steps else "none")
    steps = keys.steps or (f"{keys.answer}, before '{keys.mark}'" if any(one.steps for one in problems) else "none")
    lines = [
        f"{converter.where}: {len(problems):,} problems written to {out}",
        f"  question  from {' and '.join(keys.question)}",
        f"  steps     from {steps}",
        f"  answer    from {answer}{number}",
        f"  kept      {', '.join(others) or 'no other keys'}",
        "first problem",
        f"  question  {shown(first.question, 100)}",
        *(f"  {f'step {place}':<9} {shown(step, 100)}" for place, step in enumerate(first.steps, start=1)),
        f"  answer    {shown(first.answer, 100) if first.has_answer else 'none'}",
        *(f"problems {what}: {counts[what]:,}" for what in ("without steps", "without an answer") if counts[what]),
        *([f"blank steps left out: {counts['blank steps']:,}"] if counts["blank steps"] else []),
        *warnings_about(problems, TEXT, str(out)),
    ]
    return "\n".join(lines) + "\n"


def _json(path: Path, text: str, part: str | None) -> list[Any]:
    if not text.lstrip().startswith("{"):
        return parse_items(path, text)
    try:
        values = parse_loosely(text)
    except JsonError:
        return parse_items(path, text)
    lists = [key for key, value in values.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if part is not None:
        if part not in lists:
            raise DataError(f"{path}: --part {part}: expected one of {', '.join(lists) or 'no keys: none has a list'}")
        return list(values[part])
    if len(lists) > 1:
        raise DataError(f"{path}: found lists of items under {', '.join(lists)}; choose one with --part KEY")
    if lists:
        return list(values[lists[0]])
    return list(values.values()) if values and all(isinstance(one, dict) for one in values.values()) else [values]


def _read_csv(path: Path, text: str) -> list[Any]:
    try:
        return list(csv.DictReader(io.StringIO(text, newline=""), restkey="more columns"))
    except csv.Error as error:
        raise DataError(f"{path}: is not a CSV file ({error})") from error


def _read_parquet(path: Path) -> list[Any]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        return list(parquet.read_table(path).to_pylist())
    except (pa.ArrowException, ValueError) as error:
        raise DataError(f"{path}: is not a Parquet file ({error})") from error


def _write(problems: Sequence[Problem], out: Path, overwrite: bool) -> None:
    """Writes the file completely or not at all. Raises a ``DataError`` rather than replacing another content."""
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.{os.getpid()}.part")
    try:
        writer = ProblemWriter(temporary)
        try:
            for problem in problems:
                writer.write(problem)
            writer.finish()
        finally:
            writer.close()
        if out.exists() and not overwrite and fingerprint(out) != fingerprint(temporary):
            raise DataError(f"{out}: exists with other content and was not changed; add --overwrite to replace it")
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m coconut_ds.data convert",
        description=convert.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "file", type=Path, metavar="FILE", help="JSON, JSON Lines, CSV or Parquet, one problem per item"
    )
    parser.add_argument("out", type=Path, metavar="OUT", help="the JSON file to write")
    parser.add_argument("--question", nargs="+", metavar="KEY", help="key of the question; several texts are joined")
    parser.add_argument("--steps", metavar="KEY", help="key of the steps")
    parser.add_argument("--answer", metavar="KEY", help="key of the answer")
    parser.add_argument("--split", choices=SPLITS, help="how one text becomes steps (auto: into lines or calculations)")
    parser.add_argument(
        "--mark",
        type=_not_empty,
        metavar="TEXT",
        help=f"text between steps and answer, if both are in one ({convert.MARK})",
    )
    parser.add_argument("--part", metavar="KEY", help="key of a JSON object under which the items are")
    parser.add_argument("--overwrite", action="store_true", help="replace OUT if it has other content")
    return parser


def _not_empty(text: str) -> str:
    if not text:
        raise argparse.ArgumentTypeError("is empty, expected a text")
    return text
