"""Errors that a user can mend. Each message says where, what was found, what was expected, and what to type.

Assertions, by contrast, guard this project's own invariants and are never meant for users.
"""


class CoconutError(ValueError):
    """Base of all errors that a change of configuration, data or files can mend."""


class ConfigError(CoconutError):
    """The composed configuration is unknown, impossible or contradicts itself."""


class DataError(CoconutError):
    """A data file or a generator's setting cannot give the problems asked for."""


class CheckpointError(CoconutError):
    """A model folder or a state dict is missing, incomplete or of another shape."""


class ModelError(CoconutError):
    """A backbone, an attention kernel or a tokenizer cannot be had or cannot be used."""


class NonFiniteError(CoconutError):
    """Loss or gradient norm stopped being finite; raised before the optimizer moved."""
