"""Limits of requests and of connections, and the settings of each model's engine."""

from dataclasses import dataclass

from coconut_ds.errors import ConfigError

HEADROOM = 16
"""Connections that are kept free of work, so that the state of a busy server can still be asked for."""


@dataclass(frozen=True)
class Limits:
    """Limits of one request, of the waiting queue, and of shutdown."""

    body_bytes: int = 1 << 20
    body_s: float = 30.0
    """Seconds within which a body must arrive."""
    max_prompts: int = 16
    """Prompts per request."""
    max_prompt_tokens: int = 8192
    max_new_tokens: int = 2048
    max_samples: int = 16
    """Continuations per prompt (``n``)."""
    max_completions: int = 32
    """Continuations per request (prompts times ``n``)."""
    max_thoughts: int = 64
    max_top_k: int = 50
    """Most likely tokens reported with each log probability."""
    max_probabilities: int = 1 << 17
    """Probabilities that the answer to one request may report: of tokens, with the most likely ones of each position,
    and of thoughts. Each takes about 20 to 100 bytes in the answer."""
    max_stop: int = 4
    """Stop strings per request."""
    max_stop_characters: int = 64
    max_waiting: int = 256
    """Completions per model that wait for a slot."""
    client_room: int = 32
    """Completions per model that each client may have even if those of other clients fill the queue; if it is less
    than ``max_completions``, that number counts (``guaranteed_room``), so that one request always fits."""
    request_s: float = 300.0
    """Seconds that a request may take, including waiting."""
    stream_comment_s: float = 15.0
    """Seconds after which a stream that has no event to send gets a comment, so that proxies do not end it."""
    drain_s: float = 30.0
    """Seconds that running requests may still take after the server is asked to stop."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value <= 0:
                raise ConfigError(f"{name}={value}: expected more than 0")
        if self.max_waiting < self.max_completions:
            raise ConfigError(
                f"max_waiting={self.max_waiting}: expected at least max_completions={self.max_completions}, the "
                "number of completions that one request may have"
            )

    @property
    def guaranteed_room(self) -> int:
        """Completions per model that each client may have even if those of other clients fill the queue."""
        return max(self.client_room, self.max_completions)


@dataclass(frozen=True)
class ConnectionLimits:
    """Limits of connections."""

    most: int = 768
    """Connections at the same time."""
    head_s: float = 10.0
    """Seconds that a request's head may take, from its first byte or the opening of the connection."""
    idle_s: float = 12.0
    """Seconds that a connection is kept open without a request."""
    unread_s: float = 30.0
    """Seconds after which an answer is given up if its client reads nothing of it."""

    def __post_init__(self) -> None:
        for name, value in self.__dict__.items():
            if value <= 0:
                raise ConfigError(f"{name}={value}: expected more than 0")

    @property
    def most_of_an_address(self) -> int:
        """Connections that one address may have, unless it is this machine's own or that of a trusted proxy."""
        return max(1, self.most // 4)

    @property
    def most_working(self) -> int:
        """Connections that may work at the same time."""
        return max(1, self.most - HEADROOM)


@dataclass(frozen=True)
class EngineSettings:
    """Settings of each model's engine."""

    slots: int = 32
    """Completions that run at the same time."""
    max_positions: int = 2048
    """Positions of a slot, for prompt, thoughts and new tokens together; limited by the model's context length."""
    dtype: str = "float32"
    """Of the parameters: float32, bfloat16 or float16."""
    device: str | None = None
    """None: the accelerator if there is one, else the CPU."""
    tf32: bool = False
    """Whether products of fp32 matrices on CUDA are computed in TF32."""
    spare_slots: int | None = None
    """Further slots, for clients that hold less than an equal share while others hold all slots; None: an eighth of
    ``slots``, at least 1."""
    piece: int | None = None
    """Positions of prompts that are encoded between two steps of a few running completions; None: see
    ``default_piece`` in ``coconut_ds/generation/prefill.py``."""

    def __post_init__(self) -> None:
        if self.slots < 1 or self.max_positions < 2:
            raise ConfigError(
                f"slots={self.slots}, max_positions={self.max_positions}: expected at least 1 slot and 2 positions"
            )
        if self.spare_slots is not None and self.spare_slots < 0:
            raise ConfigError(f"spare_slots={self.spare_slots}: expected 0 or more")
        if self.piece is not None and self.piece < 1:
            raise ConfigError(f"piece={self.piece}: expected 1 or more positions")

    @property
    def num_rows(self) -> int:
        """Rows of the engine's cache: slots and spare slots."""
        return self.slots + (max(1, self.slots // 8) if self.spare_slots is None else self.spare_slots)
