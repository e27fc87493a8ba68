"""Jobs of a model's engine: a request, the events it produces, and the receiver of these events."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from coconut_ds.generation.requests import Completion, Request, Score
from serve.clients.client import IN_PROCESS, Client
from serve.engine.deadlines import Deadline
from serve.errors import ServiceError


@dataclass(frozen=True)
class Thought:
    """The model produced one continuous thought."""

    index: int
    """Position among the request's thoughts, from 0."""
    state: Tensor
    """[D], fp32, on the CPU."""


@dataclass(frozen=True)
class Token:
    """The model generated one token."""

    token: int
    score: Score | None


@dataclass(frozen=True)
class Done:
    """The request completed."""

    completion: Completion


@dataclass(frozen=True)
class Failed:
    """The request failed and will not complete."""

    error: ServiceError


Event = Thought | Token | Done | Failed


class Receiver(Protocol):
    """Receives the events of jobs. Called on the model's thread once per forward pass, so it must not block."""

    def deliver(self, events: Sequence[tuple["Job", Event]]) -> None:
        """Takes the events of all jobs that have this receiver, in order."""
        ...


@dataclass
class Times:
    """When each step of a job happened, in seconds of ``time.perf_counter``; 0.0: not yet."""

    submitted: float = 0.0
    started: float = 0.0
    """When the job got a slot."""
    encoded: float = 0.0
    """When the prompt was encoded, i.e. when the first thought or token came out of it."""
    thought: float = 0.0
    """When the last thought was produced."""
    first_token: float = 0.0
    last_token: float = 0.0
    done: float = 0.0


@dataclass(eq=False)
class Job:
    """A request for the engine, and the receiver of its events."""

    request: Request
    receiver: Receiver
    index: int = 0
    """Distinguishes the jobs of one receiver."""
    wants_steps: bool = False
    """Whether the receiver gets an event for each thought and token, not only for the end."""
    request_id: str = ""
    """Identifies the HTTP request in the log."""
    client: Client = IN_PROCESS
    """Who asked for it."""
    deadline: Deadline | None = None
    """When its caller stops waiting; it then gets no slot any more."""
    times: Times = field(default_factory=Times)
    ended: bool = False
    """Whether the job completed, failed or was cancelled. Only the model's thread writes it."""


class Observer:
    """Is notified of the progress of every job, on the model's thread; used for metrics. This base does nothing."""

    def on_thought(self, job: Job) -> None:
        """The model produced a thought."""

    def on_token(self, job: Job, previous: float) -> None:
        """The model generated a token. ``previous``: time of the job's previous token, 0.0 for its first."""

    def on_done(self, job: Job, completion: Completion) -> None:
        """The job completed."""

    def on_failed(self, job: Job) -> None:
        """The job failed."""

    def on_cancelled(self, job: Job) -> None:
        """The job was cancelled because its caller stopped waiting."""
