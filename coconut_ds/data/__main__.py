"""Reports on files of problems: ``python -m coconut_ds.data FILE...``; ``convert FILE OUT`` converts other shapes.

Prints the lengths of the problems, their numbers of steps, duplicates, the accuracy of a constant answer, and the
training sequences of a few problems at each stage of a method. Give the training file first: it determines the last
stage. Draws the same as a picture, which stores what it was made from; a picture of something else is replaced only
with ``--overwrite``.
"""

import argparse
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from coconut_ds.cli.parser import Parser
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.data.problem import Problem, file_digest, load_problems
from coconut_ds.errors import CoconutError
from coconut_ds.files import shell_word
from coconut_ds.methods import METHODS
from coconut_ds.results import Identity, picture_metadata, refuse_other_picture
from coconut_ds.runs.code import code_identity
from coconut_ds.runs.identity import flattened

DEFAULT_PNG = Path("outputs/data_report.png")
"""Where the picture is written, apart from the signature that is added to its name."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line. Returns the exit code: 2 for an error that the user can fix."""
    prepare_streams()
    given = list(sys.argv[1:] if argv is None else argv)
    if given[:1] == ["convert"]:
        from coconut_ds.data.convert_files import main as convert

        return convert(given[1:])
    options = _parser().parse_program(given, "coconut-data")
    try:
        files = list(zip(file_names(options.files), map(load_problems, options.files), strict=True))
        # Imported here, so that invalid files are reported before torch is loaded.
        from coconut_ds.data.report.picture import draw_report
        from coconut_ds.data.report.statistics import make_report
        from coconut_ds.data.report.text import render_report
        from coconut_ds.data.tokens import build_word_tokenizer, digest_tokenizer, load_tokenizer

        if options.tokenizer == "dataset":
            tokenizer = build_word_tokenizer(words(problem for _, problems in files for problem in problems))
        else:
            tokenizer = load_tokenizer(options.tokenizer)
        identity = report_identity(options, digest_tokenizer(tokenizer))
        png = options.png or DEFAULT_PNG.with_name(f"{DEFAULT_PNG.stem}-{identity.signature}.png")
        if not options.overwrite:
            refuse_other_picture(png, identity, "--png")
        png.parent.mkdir(parents=True, exist_ok=True)
        report = make_report(
            files, tokenizer, METHODS[options.method], options.c_thought, options.max_latent_stage, options.examples
        )
        draw_report(report, png, picture_metadata(identity))
    except (CoconutError, OSError) as error:
        # Messages about the tokenizer name the training setting; here it is an option.
        sys.stderr.write(f"error: {error}\n".replace("model.tokenizer", "--tokenizer"))
        return 2
    _show(f"{render_report(report)}\n{shell_word(png)}\n")
    return 0


def report_identity(options: argparse.Namespace, tokenizer: str) -> Identity:
    """What a report is made from: the contents of the files, the tokenizer, the options and the code.

    Args:
        options: the command line.
        tokenizer: ``digest_tokenizer`` of the tokenizer.
    """
    kept = {key: getattr(options, key) for key in ("method", "c_thought", "max_latent_stage", "examples")}
    files = {"names": file_names(options.files), "contents": [file_digest(path) for path in options.files]}
    asked = {"files": [str(path) for path in options.files], "tokenizer": options.tokenizer}
    return Identity(flattened({**kept, "files": files, "tokenizer": tokenizer, "code": code_identity()}), asked)


def file_names(paths: Sequence[Path]) -> list[str]:
    """Names for files: the last part of each path, or full paths if two files have the same name."""
    names = [path.name for path in paths]
    return names if len(set(names)) == len(names) else [str(path) for path in paths]


def words(problems: Iterable[Problem]) -> list[str]:
    """The distinct words of all problems, as separated by spaces."""
    found: dict[str, None] = {}
    for problem in problems:
        for text in (problem.question, *problem.steps, problem.answer):
            found |= dict.fromkeys(text.split(" "))
    return list(found)


def _parser() -> Parser:
    parser = Parser(
        prog="python -m coconut_ds.data", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", type=Path, metavar="FILE", help="JSON: question, steps, answer")
    parser.add_argument(
        "--tokenizer",
        default="dataset",
        help="a folder, a hub name, or dataset to build one from the files (%(default)s)",
    )
    parser.add_argument("--method", choices=METHODS, default="coconut", help="%(default)s")
    parser.add_argument("--c-thought", type=_from(1), default=1, metavar="C", help="thoughts per step (%(default)s)")
    parser.add_argument(
        "--max-latent-stage",
        type=_from(0),
        metavar="M",
        help="last stage that adds thoughts (default: the most steps of a problem of the first file)",
    )
    parser.add_argument(
        "--png",
        type=Path,
        help=f"the picture (default: {DEFAULT_PNG.with_suffix('')}-SIGNATURE.png, named after what it was made from)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace a picture that was made from something else")
    parser.add_argument(
        "--examples", type=_from(0), default=3, metavar="N", help="problems to show at each stage (%(default)s)"
    )
    return parser


def _from(least: int) -> Callable[[str], int]:
    def whole_number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return whole_number


def _show(text: str) -> None:
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as head, has closed the pipe; writing the rest of the buffer must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    raise SystemExit(main())
