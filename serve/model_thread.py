"""The thread that owns a loaded model: runs requests through its engine, and other functions between two passes.

Only this thread touches the model. Any thread may submit or cancel jobs and may have a function run; events of a job go
to the job's receiver. When a forward pass fails, the requests in the engine fail with it. The thread then continues
with a new engine, unless that one cannot complete the simplest request either; then the model becomes unusable.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TypeVar

import torch
from torch import Tensor

from coconut_ds.errors import CoconutError
from coconut_ds.generation.requests import Completion, Request, Score
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import ThinkingEngine
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.reasoner import Reasoner
from serve.errors import EngineFailedError, QueueFullError, RequestError, UnavailableError
from serve.jobs import Done, Event, Failed, Job, Observer, Receiver, Thought, Token
from serve.limits import EngineSettings

log = logging.getLogger("serve")
Result = TypeVar("Result")
STALL_S = 120.0
"""Seconds. While a pass or a function runs for longer than this, the model is reported as unhealthy."""


class _JobListener(Listener):
    """Turns what the engine reports about one job into events in the thread's outbox."""

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
    """Runs a reasoner's requests on a dedicated thread."""

    def __init__(
        self,
        reasoner: Reasoner,
        settings: EngineSettings,
        max_waiting: int,
        observer: Observer | None = None,
    ) -> None:
        """``max_waiting``: maximum number of jobs waiting for a slot; ``observer``: notified of all jobs' progress."""
        self.reasoner, self.settings = reasoner, settings
        self.capacity = min(settings.max_positions, reasoner.context_length or settings.max_positions)
        self.observer = observer or Observer()
        self.max_waiting = max_waiting
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._outbox: dict[Receiver, list[tuple[Job, Event]]] = {}
        self._tickets: dict[int, Job] = {}
        self._lock = threading.Lock()
        self._open = 0
        """Number of accepted jobs that have not ended."""
        self._closing = self._stopped = False
        self._failure: str | None = None
        self._busy_since: float | None = None
        self._engine = self._new_engine()
        self._thread = threading.Thread(target=self._work, name=f"model-{reasoner.name}", daemon=True)
        self._thread.start()

    # Called from any thread

    @property
    def num_running(self) -> int:
        """Number of requests that occupy a slot."""
        return self._engine.num_running

    @property
    def num_waiting(self) -> int:
        """Number of accepted requests that do not have a slot yet."""
        return max(0, self._open - self.num_running)

    @property
    def num_open(self) -> int:
        """Number of accepted requests that have not ended."""
        return self._open

    @property
    def cache_use(self) -> float:
        """Fraction of the cache's positions that requests occupy, 0 to 1."""
        return self._engine.num_held / (self.settings.slots * self.capacity)

    @property
    def problem(self) -> str | None:
        """Why the model cannot be used; None if it can."""
        since = self._busy_since
        if self._failure is not None:
            return self._failure
        if not self._thread.is_alive():
            return "its thread has ended"
        if since is not None and time.perf_counter() - since > STALL_S:
            return f"one pass or function has been running for more than {STALL_S:.0f} s"
        return None

    def submit(self, jobs: Sequence[Job]) -> None:
        """Accepts either all of the jobs or none.

        Raises:
            QueueFullError: too many jobs are already waiting.
            UnavailableError: the model cannot be used.
        """
        if self.problem is not None:
            raise UnavailableError(f"the model cannot be used: {self.problem}")
        with self._lock:
            if self._closing:
                raise UnavailableError("the model is being unloaded")
            if self._open + len(jobs) > self.settings.slots + self.max_waiting:
                raise QueueFullError(
                    f"the queue is full: {self._open} completions are running or waiting, expected at most "
                    f"{self.settings.slots + self.max_waiting} (the options --slots and --max-waiting); retry later",
                    retry_after_s=1,
                )
            self._open += len(jobs)
            now = time.perf_counter()
            for job in jobs:
                job.times.submitted = now
                self._inbox.put(lambda job=job: self._enter(job))  # type: ignore[misc]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancels jobs that have not ended. Once the model's thread has processed this, they have no more events."""
        for job in jobs:
            if not job.ended:
                self._inbox.put(lambda job=job: self._forget(job))  # type: ignore[misc]

    def run(self, function: Callable[[Reasoner], Result]) -> "Future[Result]":
        """Calls ``function`` with the reasoner on the model's thread, between two passes; running requests wait.

        Raises:
            UnavailableError: the model cannot be used, or is being unloaded.
        """
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
                raise UnavailableError(f"the model cannot be used: {self.problem or 'it is being unloaded'}")
            self._inbox.put(call)
        return future

    def stop(self) -> None:
        """Makes unfinished requests fail and the thread end. Returns immediately."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._inbox.put(self._stop)

    def close(self, timeout_s: float = 10.0) -> None:
        """Like ``stop``, but waits for the thread to end, for at most ``timeout_s`` seconds."""
        self.stop()
        self._thread.join(timeout_s)

    # Called on the model's thread

    def send(self, job: Job, event: Event) -> None:
        """Puts an event into the outbox, which is delivered after each pass."""
        self._outbox.setdefault(job.receiver, []).append((job, event))

    def end(self, ticket: int, event: Done | Failed) -> None:
        """Ends the job with this ticket."""
        job = self._tickets.pop(ticket)
        self._finish(job, event)

    def _finish(self, job: Job, event: Done | Failed | None) -> None:
        """Marks a job as ended and notifies its observer and receiver. ``event`` is None if the job was cancelled."""
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
                self._run_commands()
                if op := self._engine.due():
                    self._engine.step(op)
            except Exception as error:
                self._recover(error)
            self._deliver()
            self._busy_since = None

    def _run_commands(self) -> None:
        """Runs the commands in the inbox. Blocks until there is one if the engine has no jobs."""
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
        """Hands a job to the engine."""
        if self._failure is not None:
            self._finish(job, Failed(UnavailableError(f"the model cannot be used: {self._failure}")))
            return
        try:
            ticket = self._engine.submit(job.request, _JobListener(self, job))
        except CoconutError as error:
            self._finish(job, Failed(RequestError(str(error))))
        else:
            self._tickets[ticket] = job

    def _forget(self, job: Job) -> None:
        """Removes a cancelled job from the engine."""
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
        """Fails the jobs in the engine, then continues with a new engine if that can complete the simplest request."""
        ids = sorted({job.request_id for job in self._tickets.values()})
        log.error(
            "a forward pass of %s failed, and with it these requests: %s",
            self.reasoner.name,
            ", ".join(ids),
            exc_info=error,
        )
        failed = EngineFailedError(
            "a forward pass of the model failed; the server's log has the details under the request's id"
        )
        for ticket in list(self._tickets):
            self.end(ticket, Failed(failed))
        try:
            self._engine = self._new_engine()
            self._check()
        except Exception as second:
            log.error("%s can no longer be used", self.reasoner.name, exc_info=second)
            self._failure = f"its engine failed, and so did a new one ({type(second).__name__})"

    def _check(self) -> None:
        """Has the engine generate one token after a prompt of one token."""
        ids = self.reasoner.prompter.eos_ids[:1]
        self._engine.submit(Request(Layout(ids, [IGNORE], 1, 0), 1))
        self._engine.run()

    def _deliver(self) -> None:
        outbox, self._outbox = self._outbox, {}
        for receiver, events in outbox.items():
            receiver.deliver(events)
