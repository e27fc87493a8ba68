"""Optional packages: what to install for each extra, and errors that say so where a package is missing."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from coconut_ds.errors import ModelError
from coconut_ds.files import shell_word

NAME = "coconut-ds"
"""The name under which this project is installed; no package index has it."""
OWN = ("coconut_ds", "serve")
"""The packages of this project."""


def install_line(extra: str) -> str:
    """The command that installs the packages of an extra, such as ``lora``, from any working directory."""
    checkout = Path(__file__).resolve().parent.parent
    if (checkout / "pyproject.toml").is_file():
        return f"pip install -e {shell_word(f'{checkout}[{extra}]')}"
    return f"pip install {' '.join(map(shell_word, _requirements(extra)))}"


@contextmanager
def needs(extra: str) -> Iterator[None]:
    """Around imports: a package that is not installed becomes an error that says how to install the extra.

    Raises:
        ModelError: a package is missing.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] in OWN:
            raise
        raise ModelError(f"the package {error.name} is missing; install it with: {install_line(extra)}") from error


def _requirements(extra: str) -> list[str]:
    """The packages of an extra, with their versions, as the metadata of the installed package lists them."""
    found = []
    for line in metadata.requires(NAME) or []:
        package, _, marker = (part.strip() for part in line.partition(";"))
        if re.search(rf"""extra == ['"]{extra}['"]""", marker) is None:
            continue
        other = re.fullmatch(rf"{NAME}\[(\w+)\]", package)
        found += _requirements(other[1]) if other else [package]
    return found
