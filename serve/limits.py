"""What the server allows, and what it takes for itself."""

from dataclasses import dataclass

from coconut_ds.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of one request, and of all that wait."""

    body_bytes: int = 1 << 20
    body_s: float = 30.0
    """Seconds in which a body has to arrive."""
    max_prompts: int = 16
    """Prompts a request."""
    max_prompt_tokens: int = 8192
    max_new_tokens: int = 2048
    max_samples: int = 16
    """``n``: continuations of each prompt."""
    max_completions: int = 32
    """Prompts times ``n``."""
    max_thoughts: int = 64
    max_top_k: int = 50
    """Tokens shown for each thought, or with each log probability."""
    max_stop: int = 4
    """Stop strings."""
    max_stop_characters: int = 64
    max_waiting: int = 256
    """Completions of one model that wait for a slot."""
    request_s: float = 300.0
    """Seconds that a request may run, waiting included."""
    drain_s: float = 30.0
    """Seconds in which running requests may finish once the server was told to stop."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value <= 0:
                raise ConfigError(f"{name}={value}: expected more than 0")
        if self.max_waiting < self.max_completions:
            raise ConfigError(
                f"max_waiting={self.max_waiting}: one request may have {self.max_completions} completions; raise it"
            )


@dataclass(frozen=True)
class EngineSettings:
    """How each model is run."""

    slots: int = 32
    """Completions that run at a time."""
    max_positions: int = 2048
    """Positions of a slot: prompt, thoughts and new tokens; the model's context where that is shorter."""
    dtype: str = "float32"
    """Of the parameters: float32, bfloat16 or float16."""
    device: str | None = None
    """None: the accelerator where there is one."""

    def __post_init__(self) -> None:
        if self.slots < 1 or self.max_positions < 2:
            raise ConfigError(f"slots={self.slots}, max_positions={self.max_positions}: expected 1 and 2 or more")
