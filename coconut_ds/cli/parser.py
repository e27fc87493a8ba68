"""The argument parser of the programs whose settings Hydra does not compose."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Reports a wrong command line in one line, like all other errors, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")
