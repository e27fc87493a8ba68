"""One thread a loaded model, which alone touches it: requests run through its engine, other work between two passes.

Any thread may submit, cancel and ask; what comes of a request goes to its receiver. A pass that fails fails the
requests that were in the engine; the thread goes on with a new one, unless that cannot do the simplest request either.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from coconut_ds.errors import CoconutError
from coconut_ds.generation.requests import Completion, Request, Score
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.reasoner import Reasoner
from serve.errors import EngineFailedError, QueueFullError, RequestError, ServiceError, UnavailableError
from serve.limits import EngineSettings

log = logging.getLogger("serve")
Result = TypeVar("Result")
STALL_S = 120.0
"""A pass, or other work, that takes longer makes the model count as unhealthy until it ends."""


@dataclass(frozen=True)
class Thought:
    """A thought was had."""

    index: int
    state: Tensor
    """[D], fp32, on the CPU."""


@dataclass(frozen=True)
class Token:
    """A token was written."""

    token: int
    score: Score | None


@dataclass(frozen=True)
class Done:
    """The request has ended."""

    completion: Completion


@dataclass(frozen=True)
class Failed:
    """The request will never end."""

    error: ServiceError


Event = Thought | Token | Done | Failed


class Receiver(Protocol):
    """Takes what happens to requests; called on the engine's thread, once a pass, so it must not wait."""

    def deliver(self, events: Sequence[tuple["Job", Event]]) -> None:
        """Events of requests that have this receiver, in order."""
        ...


@dataclass
class Times:
    """When what happened, in seconds of ``time.perf_counter``; 0.0: not yet."""

    submitted: float = 0.0
    encoded: float = 0.0
    """The prompt was there: the first thought, or token, came out of it."""
    thought: float = 0.0
    """The last thought was had."""
    first_token: float = 0.0
    last_token: float = 0.0
    done: float = 0.0


@dataclass(eq=False)
class Job:
    """A request of the engine, and who waits for it."""

    request: Request
    receiver: Receiver
    index: int = 0
    """Tells the receiver's jobs apart."""
    wants_steps: bool = False
    """Whether the receiver hears of each thought and token, not only of the end."""
    request_id: str = ""
    """For the log."""
    times: Times = field(default_factory=Times)
    ended: bool = False
    """Whether its end was sent, or it was cancelled. The engine's thread alone writes it."""


class Observer:
    """Hears of every request, for metrics; on the engine's thread. Does nothing as it stands."""

    def on_thought(self, job: Job) -> None:
        """A thought was had."""

    def on_token(self, job: Job, previous: float) -> None:
        """A token was written; ``previous``: when the last one was, or 0.0."""

    def on_done(self, job: Job, completion: Completion) -> None:
        """The request has ended."""

    def on_failed(self, job: Job) -> None:
        """The request failed."""

    def on_cancelled(self, job: Job) -> None:
        """Nobody waits for the request any more."""


class _Sink(Listener):
    """What one job's row tells, put into the thread's outbox."""

    def __init__(self, thread: "ModelThread", job: Job) -> None:
        self._thread, self._job = thread, job

    def on_thought(self, ticket: int, index: int, state: Tensor) -> None:
        times = self._job.times
        times.thought = time.perf_counter()
        times.encoded = times.encoded or times.thought
        self._thread.observer.on_thought(self._job)
        if self._job.wants_steps:
            self._thread.send(self._job, Thought(index, state.float().cpu().clone()))

    def on_token(self, ticket: int, token: int, score: Score | None) -> None:
        times, now = self._job.times, time.perf_counter()
        previous, times.last_token = times.last_token, now
        times.first_token = times.first_token or now
        times.encoded = times.encoded or now
        self._thread.observer.on_token(self._job, previous)
        if self._job.wants_steps:
            self._thread.send(self._job, Token(token, score))

    def on_done(self, ticket: int, completion: Completion) -> None:
        self._job.times.done = time.perf_counter()
        self._thread.end(ticket, Done(completion))


class ModelThread:
    """Runs a reasoner's requests on a thread of its own."""

    def __init__(
        self,
        reasoner: Reasoner,
        settings: EngineSettings,
        max_waiting: int,
        observer: Observer | None = None,
    ) -> None:
        self.reasoner, self.settings = reasoner, settings
        self.capacity = min(settings.max_positions, reasoner.context_length or settings.max_positions)
        self.observer = observer or Observer()
        self.max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: dict[Receiver, list[tuple[Job, Event]]] = {}
        self._tickets: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._open = 0
        """Jobs that were let in and have not ended."""
        self._closing = self._stopped = False
        self._failure: str | None = None
        self._busy_since: float | None = None
        self._engine = self._new_engine()
        self._thread = threading.Thread(target=self._work, name=f"engine-{reasoner.name}", daemon=True)
        self._thread.start()

    # For any thread

    @property
    def num_running(self) -> int:
        """Requests that hold a slot."""
        return self._engine.num_running

    @property
    def num_waiting(self) -> int:
        """Requests that were let in and hold none yet."""
        return max(0, self._open - self.num_running)

    @property
    def num_open(self) -> int:
        """Requests that were let in and have not ended."""
        return self._open

    @property
    def cache_use(self) -> float:
        """The share of the cache's positions that requests hold."""
        return self._engine.num_held / (self.settings.slots * self.capacity)

    @property
    def problem(self) -> str | None:
        """Why the model cannot be used; None: it can."""
        since = self._busy_since
        if self._failure is not None:
            return self._failure
        if not self._thread.is_alive():
            return "its thread has ended"
        if since is not None and time.perf_counter() - since > STALL_S:
            return f"it has been at one piece of work for more than {STALL_S:.0f} s"
        return None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Lets jobs in, all or none.

        Raises:
            QueueFullError: too many wait already.
            UnavailableError: the model cannot be used.
        """
        if self.problem is not None:
            raise UnavailableError(f"the model cannot be used: {self.problem}")
        with self._lock:
            if self._closing:
                raise UnavailableError("the model is being closed")
            if self._open + len(jobs) > self.settings.slots + self.max_waiting:
                raise QueueFullError(
                    f"{self._open} completions run or wait, {self.settings.slots + self.max_waiting} may; try later",
                    retry_after_s=1,
                )
            self._open += len(jobs)
            now = time.perf_counter()
            for job in jobs:
                job.times.submitted = now
                self._inbox.put(lambda job=job: self._enter(job))  # type: ignore[misc]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forgets jobs; their receivers hear nothing more once the engine's thread knows. Those that ended are fine."""
        for job in jobs:
            if not job.ended:
                self._inbox.put(lambda job=job: self._forget(job))  # type: ignore[misc]

    def run(self, function: Callable[[Reasoner], Result]) -> "Future[Result]":
        """Calls ``function`` with the reasoner on the engine's thread, between two passes. Running requests wait."""
        future: Future[Result] = Future()

        def call() -> None:
            if future.set_running_or_notify_cancel():
                try:
                    with torch.no_grad():
                        future.set_result(function(self.reasoner))
                except Exception as error:
                    future.set_exception(error)

        with self._lock:
            if self._closing or self.problem is not None:
                raise UnavailableError(f"the model cannot be used: {self.problem or 'it is being closed'}")
            self._inbox.put(call)
        return future

    def stop(self) -> None:
        """Has the thread end; requests that are still there fail. Does not wait."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._inbox.put(self._stop)

    def close(self, timeout_s: float = 10.0) -> None:
        """As ``stop``, and waits."""
        self.stop()
        self._thread.join(timeout_s)

    # For the engine's thread

    def send(self, job: Job, event: Event) -> None:
        """Puts an event into the outbox, which is emptied after each pass."""
        self._outbox.setdefault(job.receiver, []).append((job, event))

    def end(self, ticket: int, event: Done | Failed) -> None:
        """A job has ended."""
        job = self._tickets.pop(ticket)
        self._finish(job, event)

    def _finish(self, job: Job, event: Done | Failed | None) -> None:
        """Counts a job out and tells its receiver; None: it was cancelled."""
        job.ended = True
        with self._lock:
            self._open -= 1
        if isinstance(event, Done):
            self.observer.on_done(job, event.completion)
        elif isinstance(event, Failed):
            self.observer.on_failed(job)
        else:
            self.observer.on_cancelled(job)
        if event is not None:
            self.send(job, event)

    def _new_engine(self) -> ThinkingEngine:
        prompter = self.reasoner.prompter
        return ThinkingEngine(self.reasoner.loop, prompter.eos_ids, self.settings.slots, self.capacity, prompter.text)

    def _work(self) -> None:
        while not self._stopped:
            try:
                self._take_in()
                if op := self._engine.due():
                    self._engine.step(op)
            except Exception as error:
                self._recover(error)
            self._flush()
            self._busy_since = None

    def _take_in(self) -> None:
        """Does what others asked for; waits for it where nothing runs."""
        wait = not self._tickets
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            self._busy_since = time.perf_counter()
            command()

    def _enter(self, job: Job) -> None:
        if self._failure is not None:
            self._finish(job, Failed(UnavailableError(f"the model cannot be used: {self._failure}")))
            return
        try:
            ticket = self._engine.submit(job.request, _Sink(self, job))
        except CoconutError as error:
            self._finish(job, Failed(RequestError(str(error))))
        else:
            self._tickets[ticket] = job

    def _forget(self, job: Job) -> None:
        if job.ended:
            return
        for ticket, other in self._tickets.items():
            if other is job:
                self._engine.cancel(ticket)
                del self._tickets[ticket]
                break
        self._finish(job, None)

    def _stop(self) -> None:
        self._stopped = True
        for ticket in list(self._tickets):
            self._engine.cancel(ticket)
            self.end(ticket, Failed(UnavailableError("the server is stopping")))

    def _recover(self, error: Exception) -> None:
        """Fails what was in the engine, and goes on with a new one if that can do the simplest request."""
        ids = sorted({job.request_id for job in self._tickets.values()})
        log.error("a pass of %s failed; its requests: %s", self.reasoner.name, ", ".join(ids), exc_info=error)
        failed = EngineFailedError("a pass of the model failed; the server's log has more under the request's id")
        for ticket in list(self._tickets):
            self.end(ticket, Failed(failed))
        try:
            self._engine = self._new_engine()
            self._check()
        except Exception as second:
            log.error("%s cannot be used any more", self.reasoner.name, exc_info=second)
            self._failure = f"its engine failed ({type(second).__name__}), and a new one did too"

    def _check(self) -> None:
        """One token after one token."""
        ids = self.reasoner.prompter.eos_ids[:1]
        self._engine.submit(Request(Layout(ids, [IGNORE], 1, 0), 1))
        self._engine.run()

    def _flush(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for receiver, events in outbox.items():
            receiver.deliver(events)
