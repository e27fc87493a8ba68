"""Errors that a user can fix. Each message says where, what was found, what was expected, and what to type.

Assertions, by contrast, check this project's own invariants; users should never see them.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager


class CoconutError(ValueError):
    """Base of all errors that a change of configuration, data or files can fix."""


class ConfigError(CoconutError):
    """The configuration has an unknown key, an impossible value or a contradiction."""


class DataError(CoconutError):
    """A data file or a generator's settings cannot provide the requested problems."""


class CheckpointError(CoconutError):
    """A checkpoint, model folder or state dict is missing, incomplete or of another shape, or cannot be written."""


class ModelError(CoconutError):
    """A backbone, attention kernel or tokenizer is not available or cannot be used."""


class NonFiniteError(CoconutError):
    """Loss or gradient norm of an optimizer update is not finite; raised before this update changes a weight."""

    def __init__(self, message: str, updates_made: int = 0) -> None:
        super().__init__(message)
        self.updates_made = updates_made
        """Number of optimizer updates of the same iteration that were made before (objectives that sample)."""


class RewardError(CoconutError):
    """The reward of a completion could not be computed; raised on all ranks, before any weight changes."""


MAX_NAME_BYTES, MAX_PATH_BYTES = 255, 4095
"""What Linux allows for each part of a path, and for all of it."""


@contextmanager
def paths_checked() -> Iterator[None]:
    """Within this context, a path that is too long for the system is an error that the user can fix.

    Entry points use it, since a path may come from any key, and may be made of several.

    Raises:
        ConfigError: says which path, how long it is and what to do.
    """
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        path = str(error.filename)
        longest = max(path.split("/"), key=lambda part: len(part.encode()))
        if len(longest.encode()) > MAX_NAME_BYTES:
            found = (
                f"'{longest[:40]}…' has {len(longest.encode()):,} bytes, expected at most {MAX_NAME_BYTES} for a name"
            )
        else:
            found = f"has {len(path.encode()):,} bytes, expected at most {MAX_PATH_BYTES:,}"
        shown = path if len(path) <= 120 else f"{path[:60]}…{path[-40:]}"
        raise ConfigError(f"{shown}: the path is too long: {found}; set a shorter one") from error
