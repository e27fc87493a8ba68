"""Command lines that are not composed by Hydra."""

import argparse
from typing import NoReturn


class Parser(argparse.ArgumentParser):
    """Refuses a command line in one line, as all other errors are told."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"error: {message}\n")
