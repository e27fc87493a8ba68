"""The thread that owns a loaded model: runs requests through its engine, and other functions between two passes.

Only this thread touches the model. Any thread may submit or cancel jobs and may have a function run; events of a job go
to the job's receiver. While both requests and functions wait, the thread alternates between forward passes, which get
two thirds of the time, and parts of functions. When a forward pass fails, the requests in the engine fail with it. The
thread then continues with a new engine, unless that one cannot complete the simplest request either; then the model
becomes unusable.
"""

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Literal, TypeVar

from coconut_ds.generation.prefill import default_piece
from coconut_ds.generation.thinking_engine import PASS_POSITIONS
from coconut_ds.parts import Parts
from coconut_ds.reasoner import Reasoner
from serve.clients.client import IN_PROCESS, Client
from serve.engine.engine_jobs import EngineJobs
from serve.engine.functions import Function, Functions
from serve.engine.jobs import Job, Observer
from serve.engine.open_jobs import OpenJobs
from serve.engine.pass_clock import PassClock
from serve.engine.shares import Shares
from serve.errors import UnavailableError
from serve.limits import EngineSettings, Limits

log = logging.getLogger("serve")
Result = TypeVar("Result")
PART_WEIGHT = 2.0
"""A second of parts of functions counts as this many seconds of forward passes when they take turns."""
PROBING_PIECES = 2
"""Passes of probing have at most this many times the positions of a piece of a prompt (``generation/prefill.py``)."""
BATCHED = 16
"""A pass over n positions plausibly takes at most n / BATCHED times as long as a pass over one."""


class ModelThread:
    """Runs a reasoner's requests on a dedicated thread."""

    def __init__(
        self,
        reasoner: Reasoner,
        settings: EngineSettings,
        max_waiting: int,
        observer: Observer | None = None,
        client_room: int = Limits.client_room,
    ) -> None:
        """
        Args:
            reasoner: the model.
            settings: settings of its engine.
            max_waiting: maximum number of jobs waiting for a slot.
            observer: notified of all jobs' progress.
            client_room: number of jobs that each client may have even if those of others fill the queue.
        """
        # Probing must not keep requests waiting for long.
        piece = default_piece(reasoner.loop) if settings.piece is None else settings.piece
        self.reasoner = reasoner = replace(reasoner, pass_positions=PROBING_PIECES * piece)
        self.settings = settings
        self.capacity = min(settings.max_positions, reasoner.context_length or settings.max_positions)
        self._inbox: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._open = OpenJobs(settings.slots, max_waiting, client_room)
        self._lock = threading.Lock()
        self._closing = self._stopped = False
        self._failure: str | None = None
        self._clock = PassClock()
        self._jobs = EngineJobs(reasoner, settings, self.capacity, piece, observer or Observer(), self._open.remove)
        self._functions = Functions(reasoner, wake=lambda: self._inbox.put(_nothing))
        self._turns: Shares[Literal["pass", "part"]] = Shares()
        """Seconds of forward passes and of parts of functions."""
        self._waited: set[Literal["pass", "part"]] = set()
        """The kinds of work that waited at the last turn."""
        self._thread = threading.Thread(target=self._work, name=f"model-{reasoner.name}", daemon=True)
        self._thread.start()

    # Called from any thread

    @property
    def num_running(self) -> int:
        """Number of requests that occupy a slot."""
        return self._jobs.num_running

    @property
    def num_waiting(self) -> int:
        """Number of accepted requests that do not have a slot yet."""
        return max(0, self._open.total - self.num_running)

    @property
    def num_open(self) -> int:
        """Number of accepted requests that have not ended."""
        return self._open.total

    @property
    def cache_use(self) -> float:
        """Fraction of the cache's positions that requests occupy, 0 to 1."""
        return self._jobs.cache_use

    @property
    def problem(self) -> str | None:
        """Why the model cannot be used; None if it can."""
        if self._failure is not None:
            return self._failure
        if not self._thread.is_alive():
            return "its thread has ended"
        return self._clock.problem

    def submit(self, jobs: Sequence[Job]) -> None:
        """Accepts either all of the jobs, which have one client, or none.

        Raises:
            QueueFullError: too many jobs are already waiting.
            UnavailableError: the model cannot be used.
        """
        with self._lock:
            self._check_usable()
            self._open.add(jobs, self._jobs.num_held_by(jobs[0].client))
            now = time.perf_counter()
            for job in jobs:
                job.times.submitted = now
                self._inbox.put(lambda job=job: self._jobs.add(job))  # type: ignore[misc]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Cancels jobs that have not ended. Once the model's thread has processed this, they have no more events."""
        for job in jobs:
            if not job.ended:
                self._inbox.put(lambda job=job: self._jobs.cancel(job))  # type: ignore[misc]

    def run(self, function: Callable[[Reasoner], Result], client: Client = IN_PROCESS) -> "Future[Result]":
        """Calls ``function`` with the reasoner on the model's thread, between two passes; running requests wait.

        Raises:
            UnavailableError: the model cannot be used, or is being unloaded.
        """

        def in_one_part(reasoner: Reasoner) -> Parts[Result]:
            yield from ()
            return function(reasoner)

        return self.run_in_parts(in_one_part, client)

    def run_in_parts(self, begin: Callable[[Reasoner], Parts[Result]], client: Client = IN_PROCESS) -> "Future[Result]":
        """Like ``run``, for work in parts, between which requests and the functions of other clients get their turns.

        A caller that no longer wants the result cancels the future; then no further part runs.

        Args:
            begin: given the reasoner, returns the work; see ``coconut_ds.parts``.
            client: who wants the result.

        Raises:
            UnavailableError: the model cannot be used, or is being unloaded.
        """
        function = Function(begin, client)
        with self._lock:
            self._check_usable()
            self._inbox.put(lambda: self._functions.add(function))
        return function.future

    def stop(self) -> None:
        """Makes unfinished requests and functions fail and the thread end. Returns immediately."""
        with self._lock:
            if not self._closing:
                self._closing = True
                self._inbox.put(self._stop)

    def close(self, timeout_s: float | None = 10.0) -> bool:
        """Like ``stop``, but waits for the thread to end, for at most ``timeout_s`` seconds (None: as long as it
        takes). Returns whether it did."""
        self.stop()
        self._thread.join(timeout_s)
        return not self._thread.is_alive()

    def _check_usable(self) -> None:
        if (problem := self.problem) is not None:
            raise self._unusable(problem)
        if self._closing:
            raise UnavailableError("the model is being unloaded")

    # Called on the model's thread

    def _work(self) -> None:
        self._warm_up()
        while not self._stopped:
            try:
                self._run_commands()
                if self._failure is None:
                    self._take_turn()
                else:
                    self._fail_all(self._unusable(self._failure))
            except Exception as error:
                self._recover(error)
            self._jobs.deliver()

    def _warm_up(self) -> None:
        """Takes the memory of the cache, and measures the shortest pass, from which follows how long any pass may
        plausibly take."""
        try:
            with self._clock.running("the first pass"):
                self._jobs.take_memory()
                self._jobs.try_engine()
                shortest_s = self._jobs.try_engine()
            self._clock.plausible_s = shortest_s * PASS_POSITIONS / BATCHED
        except Exception as error:
            self._recover(error)

    def _run_commands(self) -> None:
        """Runs the commands in the inbox. Blocks until there is one if there is no other work."""
        wait = self._jobs.is_idle and not self._functions.can_run
        while True:
            try:
                command = self._inbox.get(block=wait)
            except queue.Empty:
                return
            wait = False
            command()

    def _take_turn(self) -> None:
        """Does one forward pass or runs one part of a function, whichever kind has had less time."""
        began = time.perf_counter()
        with self._clock.running("a forward pass"):
            op = self._jobs.due()
        waiting: set[Literal["pass", "part"]] = set()
        if op:
            waiting.add("pass")
        if self._functions.can_run:
            waiting.add("part")
        if not waiting:
            return
        for kind in waiting - self._waited:
            self._turns.enter(kind)
        self._waited = waiting
        kind = self._turns.first(sorted(waiting, reverse=True))
        if kind == "pass":
            with self._clock.running("a forward pass"):
                self._jobs.step(op)
        else:
            with self._clock.running("a part of a function"):
                self._functions.run_part()
        used_s = time.perf_counter() - began
        self._turns.charge(kind, used_s if kind == "pass" else PART_WEIGHT * used_s)

    def _stop(self) -> None:
        self._stopped = True
        self._fail_all(UnavailableError("the server is stopping"))

    def _recover(self, error: Exception) -> None:
        """Replaces the engine after an error. Whatever else fails meanwhile, the thread goes on, and answers all."""
        if self._failure is not None or self._stopped:
            log.error("the thread of %s failed again", self.reasoner.name, exc_info=error)
        else:
            try:
                with self._clock.running("the start of a new engine"):
                    self._failure = self._jobs.recover(error)
            except Exception as second:
                log.error("%s can no longer be used", self.reasoner.name, exc_info=second)
                self._failure = f"its engine failed, and could not be replaced ({type(second).__name__})"
        if self._failure is not None:
            self._fail_all(self._unusable(self._failure))

    @staticmethod
    def _unusable(failure: str) -> UnavailableError:
        return UnavailableError(f"the model cannot be used: {failure}")

    def _fail_all(self, error: UnavailableError) -> None:
        self._jobs.fail_all(error)
        self._functions.fail_all(error)


def _nothing() -> None:
    """Wakes the thread."""
