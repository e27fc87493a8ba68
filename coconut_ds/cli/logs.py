"""What a program writes to its log: its own messages, and those of the libraries that it uses.

By default, a program shows its own warnings, and of the libraries (DeepSpeed, transformers, …) only errors: most of
what they report is about choices that this project has made. ``-v`` shows their messages too.
"""

import logging
import os
import re
import warnings

LEVELS = ("debug", "info", "warning", "error")
"""The values of ``--log-level``, the most detailed first."""
OWN = ("coconut_ds", "serve")
"""Loggers of this project."""
LIBRARIES = ("accelerate", "DeepSpeed", "huggingface_hub", "torch", "torchao", "transformers", "wandb")
"""Loggers of libraries. Their names are also those of their packages, in lower case."""
_level_of_libraries = logging.ERROR


def set_up_logs(verbose: bool, level: str | None) -> None:
    """Sets what this process logs. Programs call it before they import libraries.

    Args:
        verbose: whether to show messages of libraries too, those of level ``info`` unless ``level`` is set.
        level: least severe messages to show, one of ``LEVELS``; None: ``info`` if ``verbose``, else ``warning``.
    """
    global _level_of_libraries
    chosen = level or ("info" if verbose else "warning")
    number = getattr(logging, chosen.upper())
    _level_of_libraries = number if verbose else max(number, logging.ERROR)
    if verbose or level is not None:
        # Writes the messages of programs that set up no log of their own, by default only warnings and errors.
        assert logging.lastResort is not None
        logging.lastResort.setLevel(number)
        for name in OWN:
            logging.getLogger(name).setLevel(number)
    for name in LIBRARIES:
        quiet(logging.getLogger(name))
    # transformers sets the level of its logger when it is imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", logging.getLevelName(_level_of_libraries).lower())
    if not verbose:
        packages = "|".join(re.escape(name.lower()) for name in LIBRARIES)
        warnings.filterwarnings("ignore", module=rf"({packages})(\.|$)")


def quiet(logger: logging.Logger) -> None:
    """Makes a library's logger, and its own handlers, pass on only the messages that the user wants to see."""
    logger.setLevel(_level_of_libraries)
    for handler in logger.handlers:
        # One that the root logger has too receives the messages of all loggers.
        if handler not in logging.root.handlers:
            handler.setLevel(_level_of_libraries)
