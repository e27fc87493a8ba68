"""The error of a checkpoint, a setting or a vLLM that the plugin cannot serve with."""


class NotSupported(ValueError):
    """The engine must not start. The message says what was found, what is expected, and what to do."""


class CannotTell(NotSupported):
    """Whether a checkpoint has a file is not known, because the hub cannot be asked."""
