"""The argument parser of the programs whose settings Hydra does not compose."""

import argparse
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from coconut_ds.cli.common import help_lines, take_common
from coconut_ds.cli.completion import words_of_parser
from coconut_ds.errors import CoconutError, ConfigError, paths_checked


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, like all other errors, with exit code 2."""

    def parse_program(self, argv: Sequence[str], program: str, subcommand: str | None = None) -> argparse.Namespace:
        """Parses the command line of a whole program, with the options that all programs share.

        Args:
            argv: the command line.
            program: the name under which the program is installed.
            subcommand: the one that the installed program always runs, if any: shells then complete its options only.
        """
        self.epilog = "\n".join(["options of all programs:", *help_lines()])
        self.formatter_class = argparse.RawDescriptionHelpFormatter
        try:
            rest = take_common(argv, program, lambda: words_of_parser(self, subcommand))
        except ConfigError as error:
            self.error(str(error))
        return self.parse_args(rest)

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")


def exit_code(work: Callable[[], object]) -> int:
    """Does a program's work and returns its exit code: 0, or 2 after reporting an error that the user can fix."""
    try:
        with paths_checked():
            work()
    except CoconutError as error:
        sys.stderr.write(f"error: {error}\n")
        return 2
    return 0
