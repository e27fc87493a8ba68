"""The jobs of one model: hands them to the engine as slots become free, and turns what it reports into events.

Used by the model's thread only, except for the counters, which any thread may read.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable

from torch import Tensor

from coconut_ds.errors import CoconutError
from coconut_ds.generation.requests import Completion, Request, Score
from coconut_ds.generation.rows import Listener
from coconut_ds.generation.thinking_engine import Op, ThinkingEngine
from coconut_ds.methods.layout import IGNORE, Layout
from coconut_ds.reasoner import Reasoner
from serve.clients.client import Client
from serve.engine.fair_queue import FairQueue
from serve.engine.jobs import Done, Event, Failed, Job, Observer, Receiver, Thought, Token
from serve.errors import EngineFailedError, RequestError, ServiceError
from serve.limits import EngineSettings

log = logging.getLogger("serve")


class _JobListener(Listener):
    """Turns what the engine reports about one job into events."""

    def __init__(self, jobs: "EngineJobs", job: Job) -> None:
        self._jobs, self._job = jobs, job

    def on_thought(self, ticket: int, index: int, state: Tensor) -> None:
        times = self._job.times
        times.thought = time.perf_counter()
        times.encoded = times.encoded or times.thought
        self._jobs.served(self._job)
        self._jobs.observer.on_thought(self._job)
        if self._job.wants_steps:
            self._jobs.send(self._job, Thought(index, state.float().cpu().clone()))

    def on_token(self, ticket: int, token: int, score: Score | None) -> None:
        times, now = self._job.times, time.perf_counter()
        previous, times.last_token = times.last_token, now
        times.first_token = times.first_token or now
        times.encoded = times.encoded or now
        self._jobs.served(self._job)
        self._jobs.observer.on_token(self._job, previous)
        if self._job.wants_steps:
            self._jobs.send(self._job, Token(token, score))

    def on_done(self, ticket: int, completion: Completion) -> None:
        self._job.times.done = time.perf_counter()
        self._jobs.end(ticket, Done(completion))

    def on_failed(self, ticket: int, error: Exception) -> None:
        self._jobs.fail(ticket, error)


class EngineJobs:
    """The jobs that wait for a slot of a model's engine or run in it."""

    def __init__(
        self,
        reasoner: Reasoner,
        settings: EngineSettings,
        capacity: int,
        piece: int,
        observer: Observer,
        on_ended: Callable[[Job], None],
    ) -> None:
        """
        Args:
            reasoner: the model.
            settings: slots of the engine.
            capacity: positions of a slot.
            piece: see ``ThinkingEngine``.
            observer: notified of all jobs' progress.
            on_ended: called with each job that has ended, before its receiver gets its last event.
        """
        self.observer = observer
        self._reasoner, self._settings, self._on_ended = reasoner, settings, on_ended
        self._capacity, self._piece = capacity, piece
        self._waiting = FairQueue()
        self._tickets: dict[int, Job] = {}
        """The jobs that the engine has, by ticket."""
        self._held: Counter[Client] = Counter()
        """Number of slots that each client's jobs hold."""
        self._outbox: dict[Receiver, list[tuple[Job, Event]]] = {}
        self._engine = self._new_engine()
        self.num_running = 0
        """Number of jobs that hold a slot, after the last operation."""
        self.cache_use = 0.0
        """Fraction of the cache's positions that jobs occupy, 0 to 1, after the last operation."""

    @property
    def is_idle(self) -> bool:
        """Whether no job waits or runs."""
        return not self._tickets and not len(self._waiting)

    def num_held_by(self, client: Client) -> int:
        """Number of slots that the jobs of a client hold. May be called from any thread."""
        return self._held[client]

    def add(self, job: Job) -> None:
        """Adds a job to those that wait for a slot."""
        self._waiting.add(job)

    def due(self) -> Op:
        """The engine's next operation, after free slots were given to waiting jobs."""
        op = self._engine.due()
        if self._give_slots():
            op = self._engine.due()
        return op

    def step(self, op: Op) -> None:
        """Does one operation of the engine."""
        self._engine.step(op)
        self._count()

    def cancel(self, job: Job) -> None:
        """Removes a job that has not ended from the queue or from its slot."""
        if job.ended:
            return
        if not self._waiting.remove(job):
            ticket = next((ticket for ticket, other in self._tickets.items() if other is job), None)
            if ticket is not None:
                self._engine.cancel(ticket)
                self._forget(ticket)
        self._finish(job, None)

    def send(self, job: Job, event: Event) -> None:
        """Puts an event into the outbox."""
        self._outbox.setdefault(job.receiver, []).append((job, event))

    def served(self, job: Job) -> None:
        """Counts one position that a job's client was served."""
        self._waiting.charge(job.client, 1)

    def end(self, ticket: int, event: Done | Failed) -> None:
        """Ends the job with this ticket."""
        self._finish(self._forget(ticket), event)

    def fail(self, ticket: int, error: Exception) -> None:
        """Ends the job with this ticket because it alone failed."""
        job = self._tickets[ticket]
        log.error("the request %s failed alone", job.request_id, exc_info=error)
        what = str(error) if isinstance(error, CoconutError) else "the server's log has the details under its id"
        self.end(ticket, Failed(EngineFailedError(f"the request failed, and no other: {what}")))

    def take_memory(self) -> None:
        """Takes the memory of the engine's cache now."""
        self._engine.take_memory()

    def fail_all(self, error: ServiceError) -> None:
        """Ends all jobs with an error. Afterwards, the engine must not be used any more."""
        self._fail_running(error)
        for job in self._waiting.clear():
            self._finish(job, Failed(error))
        self.num_running, self.cache_use = 0, 0.0

    def deliver(self) -> None:
        """Hands the events in the outbox to their receivers."""
        outbox, self._outbox = self._outbox, {}
        for receiver, events in outbox.items():
            try:
                receiver.deliver(events)
            except Exception:
                names = ", ".join(sorted({job.request_id for job, _ in events}))
                log.exception("the events of these requests could not be delivered: %s", names)

    def recover(self, error: Exception) -> str | None:
        """Fails the jobs in the engine, and replaces it by a new one.

        Returns why the model can no longer be used, if the new engine cannot complete the simplest request either.
        """
        ids = sorted({job.request_id for job in self._tickets.values()})
        log.error(
            "a forward pass of %s failed, and with it these requests: %s",
            self._reasoner.name,
            ", ".join(ids),
            exc_info=error,
        )
        self._fail_running(
            EngineFailedError(
                "a forward pass of the model failed; the server's log has the details under the request's id"
            )
        )
        try:
            # Two caches may not fit into the memory.
            self._engine.close()
            self._engine = self._new_engine()
            self.take_memory()
            self.try_engine()
            self._count()
        except Exception as second:
            log.error("%s can no longer be used", self._reasoner.name, exc_info=second)
            return f"its engine failed, and so did a new one ({type(second).__name__})"
        return None

    def try_engine(self) -> float:
        """Has the engine generate one token after a prompt of one token. Returns how many seconds that took."""
        began = time.perf_counter()
        ids = self._reasoner.prompter.eos_ids[:1]
        self._engine.submit(Request(Layout(ids, [IGNORE], 1, 0), 1))
        self._engine.run()
        return time.perf_counter() - began

    def _new_engine(self) -> ThinkingEngine:
        prompter, rows = self._reasoner.prompter, self._settings.num_rows
        return ThinkingEngine(
            self._reasoner.loop, prompter.eos_ids, rows, self._capacity, prompter.text, piece=self._piece
        )

    def _give_slots(self) -> bool:
        """Hands waiting jobs to the engine while there are slots for them. Returns whether it handed over any."""
        before = len(self._tickets)
        while len(self._waiting) and len(self._tickets) < self._settings.num_rows:
            job = self._waiting.take(self._may_run)
            if job is None:
                break
            self._enter(job)
        return len(self._tickets) > before

    def _may_run(self, client: Client) -> bool:
        """Whether a job of a client may get a slot now.

        The spare slots are for clients that hold less than an equal share of the slots.
        """
        if len(self._tickets) < self._settings.slots:
            return True
        num_clients = len(self._held) + (client not in self._held)
        return self._held[client] * num_clients < self._settings.slots

    def _enter(self, job: Job) -> None:
        """Hands a job to the engine."""
        if job.deadline is not None and not job.deadline.remaining_s:
            self._finish(job, Failed(job.deadline.error()))
            return
        try:
            ticket = self._engine.submit(job.request, _JobListener(self, job))
        except CoconutError as error:
            self._finish(job, Failed(RequestError(str(error))))
        except Exception as error:
            log.error("the engine could not accept the request %s", job.request_id, exc_info=error)
            what = "the engine could not accept the request; the server's log has the details under its id"
            self._finish(job, Failed(EngineFailedError(what)))
        else:
            job.times.started = time.perf_counter()
            self._tickets[ticket] = job
            self._held[job.client] += 1

    def _forget(self, ticket: int) -> Job:
        """Removes and returns the job that has this ticket."""
        job = self._tickets.pop(ticket)
        self._held[job.client] -= 1
        if not self._held[job.client]:
            del self._held[job.client]
        return job

    def _finish(self, job: Job, event: Done | Failed | None) -> None:
        """Marks a job as ended and notifies its observer and receiver. ``event`` is None if the job was cancelled."""
        job.ended = True
        self._count()
        self._on_ended(job)
        try:
            if isinstance(event, Done):
                self.observer.on_done(job, event.completion)
            elif isinstance(event, Failed):
                self.observer.on_failed(job)
            else:
                self.observer.on_cancelled(job)
        except Exception:
            # The job's receiver waits for its last event, and other jobs run.
            log.exception("the end of the request %s could not be counted", job.request_id)
        if event is not None:
            self.send(job, event)

    def _fail_running(self, error: ServiceError) -> None:
        """Ends the jobs that the engine has. Does not touch the engine, which may fail again and is given up."""
        for ticket in list(self._tickets):
            self.end(ticket, Failed(error))

    def _count(self) -> None:
        """Updates the counters, so that other threads need not read the engine while it changes."""
        self.num_running = self._engine.num_running
        self.cache_use = self._engine.num_held / (self._settings.num_rows * self._capacity)
