"""Entry point ``coconut-import SOURCE OUT``: makes a model folder of a checkpoint that others have published.

SOURCE is a file, a folder or a name on the hub: a state dict of Coconut's own program, of CODI or SIM-CoT, or a folder
of LatentTTS or SVP. No code in it runs: only tensors and JSON are read. LoRA is merged, CODI's projection becomes the
feed of the new folder, and auxiliary decoders, which only take part in training, are left out. What cannot be expressed
is refused. docs/reproduce.md has a command for each published checkpoint.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from coconut_ds.cli.parser import Parser, exit_code
from coconut_ds.cli.streams import prepare_streams
from coconut_ds.files import shell_word
from coconut_ds.methods import METHODS

FORMATS = ("auto", "reference", "sim_cot", "codi", "latent_tts", "svp")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code: 0, or 2 for an error that the user can fix."""
    prepare_streams()
    options = parser().parse_program(sys.argv[1:] if argv is None else argv, "coconut-import")
    return exit_code(lambda: _run(options))


def parser() -> Parser:
    """The parser of the command line."""
    made = Parser(prog="coconut-import", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("source", metavar="SOURCE", help="a file, a folder, or a name on the hub such as zen-E/CODI-gpt2")
    add("out", metavar="OUT", type=Path, help="the model folder to write")
    add("--format", choices=FORMATS, default="auto", help="default: recognised by the files")
    add(
        "--base",
        help="for state dicts: folder or hub name of the model that the training started from, for "
        "architecture and tokenizer; default: gpt2, if the weights are of that size",
    )
    add("--tokenizer", help="folder or hub name of the tokenizer, if it is not that of --base")
    add("--method", choices=sorted(METHODS), help="for state dicts of models without thoughts")
    add(
        "--n-thoughts",
        type=_number(0),
        metavar="N",
        help="number of thoughts; default: as the authors evaluate; needed for state dicts of Coconut's own program",
    )
    add("--c-thought", type=_number(1), metavar="C", help="thoughts for each step; default: 2, and 1 for CODI")
    add("--lora-alpha", type=float, default=32.0, metavar="ALPHA", help="of CODI's adapters (%(default)s)")
    return made


def _number(least: int) -> Callable[[str], int]:
    """Reads a whole number that is at least ``least``."""

    def number(text: str) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{value} is less than {least}")
        return value

    return number


def _run(options: argparse.Namespace) -> None:
    # Imported here, so that a wrong command line is reported before torch is imported.
    from coconut_ds.importing.convert import ImportOptions, import_checkpoint

    given = ImportOptions(
        options.format,
        options.base,
        options.tokenizer,
        options.method,
        options.n_thoughts,
        options.c_thought,
        options.lora_alpha,
    )
    found, reasoner = import_checkpoint(options.source, options.out, given)
    card = reasoner.card
    feed = "" if card.feed is None else f", fed back through a {card.feed}"
    sys.stdout.write(
        f"format {found.format}: method {card.method}, {card.num_thoughts} thoughts{feed}\n"
        f"wrote {shell_word(options.out)}; evaluate it with: coconut-eval checkpoint={shell_word(options.out)} "
        "data=gsm_eval\n"
    )


if __name__ == "__main__":
    raise SystemExit(main())
