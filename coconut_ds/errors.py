"""Errors that a user can fix. Each message says where, what was found, what was expected, and what to type.

Assertions, by contrast, check this project's own invariants; users should never see them.
"""


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
