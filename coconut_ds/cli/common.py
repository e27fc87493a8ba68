"""The options that all programs share: ``--version``, ``--completion=SHELL``, ``-v`` and ``--log-level=LEVEL``."""

import platform
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version

from coconut_ds import __version__
from coconut_ds.cli.completion import SHELLS, Words, script
from coconut_ds.cli.logs import LEVELS, set_up_logs
from coconut_ds.errors import ConfigError

HELP = (
    ("-v, --verbose", "also show messages of libraries, such as DeepSpeed and transformers"),
    ("--log-level=LEVEL", f"least severe messages to show: {', '.join(LEVELS)} (default: warning; info with -v)"),
    ("--completion=SHELL", f'print a script that completes arguments: {", ".join(SHELLS)} (eval "$(… )")'),
    ("--version", "print the versions of this project and of its main libraries"),
)
"""The options with what they do, for help texts."""
NAMES = ("--verbose", "--log-level=", "--completion=", "--version", "--help")
"""The same options as shells complete them."""
PACKAGES = ("torch", "deepspeed", "transformers")


def take_common(argv: Sequence[str], program: str, words: Callable[[], Words]) -> list[str]:
    """Does what the shared options ask for, and returns the words that are left.

    ``--version`` and ``--completion`` print their text and exit with code 0.

    Args:
        argv: the command line.
        program: the name under which the program is installed.
        words: makes the words that a shell completes, the shared options excepted.

    Raises:
        ConfigError: a value is missing or not one of those that an option takes.
    """
    rest: list[str] = []
    verbose, level = False, None
    given = iter(argv)
    for word in given:
        name, equals, value = word.partition("=")
        if word in ("-v", "--verbose"):
            verbose = True
        elif word == "--version":
            sys.stdout.write(f"{versions_line()}\n")
            raise SystemExit(0)
        elif name == "--log-level":
            level = _one_of(name, value if equals else next(given, ""), LEVELS)
        elif name == "--completion":
            shell = _one_of(name, value if equals else next(given, ""), SHELLS)
            found = words()
            sys.stdout.write(script(shell, program, Words([*found.names, *NAMES], found.values)))
            raise SystemExit(0)
        else:
            rest.append(word)
    set_up_logs(verbose, level)
    return rest


def versions_line() -> str:
    """Versions of this project, of Python and of the main libraries, which are not imported for it."""
    parts = [f"coconut-ds {__version__}", f"Python {platform.python_version()}"]
    for package in PACKAGES:
        try:
            parts.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{package} not installed")
    return ", ".join(parts)


def help_lines() -> list[str]:
    """One line for each shared option."""
    width = max(len(name) for name, _ in HELP) + 2
    return [f"  {name:<{width}}{text}" for name, text in HELP]


def _one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise ConfigError(f"{option}: found {value!r}, expected {', '.join(allowed)}")
    return value
