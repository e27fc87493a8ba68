"""The service runs requests on checkpoints, for coroutines and for plain threads. It knows nothing of HTTP.

``answer(ask)`` and ``streaming(ask)`` are for coroutines, ``answer_now(ask)`` is for plain threads; ``call(model,
function)`` and ``call_now`` run a function of a ``Reasoner`` on the model's thread, between two passes. A caller that
stops waiting (a cancelled coroutine, a closed generator) frees the slots of its requests after at most one pass.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from coconut_ds.generation.decoding import DecodedThought, decode_thoughts
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Completion, Request, Score
from coconut_ds.reasoner import Reasoner
from serve.aside import aside
from serve.asking import Ask, check_numbers, requests_of
from serve.errors import TimeLimitError, UnavailableError
from serve.jobs import Done, Event, Failed, Job, Receiver, Thought, Times, Token
from serve.limits import Limits
from serve.mailbox import AsyncMailbox, Mailbox
from serve.model_thread import ModelThread
from serve.models import Models
from serve.text import TextStream

log = logging.getLogger("serve")
Result = TypeVar("Result")
EndReason = Literal["stop", "length"]
LONG_PROMPT = 20_000
"""Characters or token ids. Prompts that are longer than this in total are read aside of the event loop."""
LONG_TEXT = 512
"""Tokens. Continuations that have more in total become text aside of the event loop."""


@dataclass(frozen=True)
class Choice:
    """One complete continuation. ``index``: its position among those of the ``Ask``, prompt by prompt."""

    index: int
    text: str
    finish_reason: EndReason
    completion: Completion
    num_prompt_tokens: int
    """Positions of the prompt, including markers but not thoughts."""
    times: Times


@dataclass(frozen=True)
class Delta:
    """What one step added to the continuation with this index."""

    index: int
    text: str = ""
    """New text; empty while ``TextStream`` holds it back."""
    token: int | None = None
    score: Score | None = None
    thought: Thought | None = None
    choice: Choice | None = None
    """The complete continuation; only set in its last delta."""


@dataclass
class Running:
    """The jobs of an accepted ``Ask``."""

    ask: Ask
    jobs: list[Job]
    prompter: Prompter
    streams: list[TextStream] = field(default_factory=list)
    """One per job; empty if the caller only wants complete continuations."""

    def choice(self, job: Job, completion: Completion) -> Choice:
        """The continuation of a completed job."""
        text = self.prompter.cut(completion.tokens, self.ask.stop)
        reason: EndReason = "length" if completion.finish_reason == "length" else "stop"
        prompt = job.request.prompt
        return Choice(job.index, text, reason, completion, len(prompt) - prompt.num_thoughts, job.times)

    def choices(self, done: Mapping[int, Completion]) -> list[Choice]:
        """The continuations of all jobs, from their completions by index."""
        return [self.choice(job, done[job.index]) for job in self.jobs]

    def delta(self, job: Job, event: Event) -> Delta:
        """What an event adds to a job's continuation.

        Raises:
            ServiceError: the job failed.
        """
        stream = self.streams[job.index]
        if isinstance(event, Thought):
            return Delta(job.index, thought=event)
        if isinstance(event, Token):
            return Delta(job.index, stream.add(event.token), event.token, event.score)
        if isinstance(event, Failed):
            raise event.error
        return Delta(job.index, stream.end(), choice=self.choice(job, event.completion))


class Service:
    """Runs requests on models, within limits."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.draining = False
        """Once set, new requests are refused."""
        self.num_requests = 0
        """Number of HTTP requests in progress; the HTTP layer counts them."""

    # For coroutines

    async def answer(self, ask: Ask, request_id: str = "") -> tuple[Prompter, list[Choice]]:
        """Returns the model's prompter and all continuations, in order of ``Choice.index``.

        Raises:
            ServiceError: the request was refused or failed.
        """
        async with self._running(ask, request_id, wants_steps=False) as (running, mailbox, ends_at):
            done: dict[int, Completion] = {}
            for _ in running.jobs:
                async with self._until(ends_at):
                    job, event = await mailbox.get()
                if isinstance(event, Failed):
                    raise event.error
                assert isinstance(event, Done)
                done[job.index] = event.completion
            is_long = sum(len(one.tokens) for one in done.values()) > LONG_TEXT
            return running.prompter, await aside(running.choices, done) if is_long else running.choices(done)

    @asynccontextmanager
    async def streaming(self, ask: Ask, request_id: str = "") -> AsyncIterator[tuple[Prompter, AsyncIterator[Delta]]]:
        """Streams the continuations step by step.

        ``async with service.streaming(ask) as (prompter, deltas): async for delta in deltas``. The request has been
        accepted once the ``async with`` block is entered.

        Raises:
            ServiceError: the request was refused (on entering), or failed (while iterating).
        """
        async with self._running(ask, request_id, wants_steps=True) as (running, mailbox, ends_at):
            yield running.prompter, self._deltas(running, mailbox, ends_at)

    async def call(self, model: str, function: Callable[[Reasoner], Result]) -> Result:
        """Runs a function on the model's thread, between two passes; the model's running requests wait for it.

        Raises:
            ServiceError: the model cannot be used, or the time limit was exceeded.
        """
        self._check_accepting()
        ends_at = self._ends_at()
        async with self._holding(model, ends_at) as thread, self._until(ends_at):
            return await asyncio.wrap_future(thread.run(function))

    async def decode_thoughts(self, model: str, thoughts: torch.Tensor, top_k: int) -> list[DecodedThought]:
        """Decodes thoughts [L, D] with the model's head: the ``top_k`` most likely tokens of each."""
        if not len(thoughts) or not top_k:
            return []
        states = thoughts.unsqueeze(0)
        return await self.call(model, lambda one: decode_thoughts(one.loop, one.backbone.tokenizer, states, top_k)[0])

    # For plain threads

    def answer_now(self, ask: Ask) -> list[Choice]:
        """Like ``answer``, but blocks, and returns only the continuations."""
        check_numbers(ask, self.limits)
        self._check_accepting()
        with self.models.holding(ask.model) as thread:
            requests, mailbox = requests_of(ask, thread.reasoner, thread.capacity, self.limits), Mailbox()
            with self._submitted(ask, requests, thread, mailbox, "in-process", wants_steps=False) as running:
                ends_at = time.monotonic() + self.limits.request_s
                done: dict[int, Completion] = {}
                while len(done) < len(running.jobs):
                    try:
                        job, event = mailbox.get(max(0.0, ends_at - time.monotonic()))
                    except TimeoutError:
                        raise self._time_limit_error() from None
                    if isinstance(event, Failed):
                        raise event.error
                    assert isinstance(event, Done)
                    done[job.index] = event.completion
                return running.choices(done)

    def call_now(self, model: str, function: Callable[[Reasoner], Result]) -> Result:
        """Like ``call``, but blocks."""
        self._check_accepting()
        with self.models.holding(model) as thread:
            try:
                return thread.run(function).result(self.limits.request_s)
            except TimeoutError:
                raise self._time_limit_error() from None

    # State and shutdown

    @property
    def problems(self) -> dict[str, str]:
        """Loaded models that cannot be used, and the reason for each."""
        threads = self.models.loaded.items()
        return {name: thread.problem for name, thread in threads if thread.problem is not None}

    def fail_all(self) -> None:
        """Fails all running and waiting requests with the error that the server is stopping."""
        self.draining = True
        for thread in self.models.loaded.values():
            thread.stop()

    def close(self) -> None:
        """Like ``fail_all``, and unloads all models."""
        self.fail_all()
        self.models.close()

    # Parts of the methods above

    def _check_accepting(self) -> None:
        if self.draining:
            raise UnavailableError("the server is stopping", retry_after_s=5)

    def _time_limit_error(self) -> TimeLimitError:
        return TimeLimitError(f"the request took longer than {self.limits.request_s:.0f} s (the option --request-s)")

    @asynccontextmanager
    async def _until(self, ends_at: float) -> AsyncIterator[None]:
        """Cancels the block with a ``TimeLimitError`` at ``ends_at``, a time of the event loop's clock."""
        try:
            async with asyncio.timeout_at(ends_at):
                yield
        except TimeoutError:
            raise self._time_limit_error() from None

    def _ends_at(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.request_s

    @asynccontextmanager
    async def _holding(self, model: str, ends_at: float) -> AsyncIterator[ModelThread]:
        """Holds a model, which another thread loads if necessary."""
        thread = self.models.hold_if_loaded(model)
        if thread is None:
            # Loading cannot be interrupted. If this coroutine stops waiting, the hold is released after loading.
            loading = asyncio.ensure_future(asyncio.to_thread(self.models.hold, model))
            try:
                async with self._until(ends_at):
                    thread = await asyncio.shield(loading)
            except (asyncio.CancelledError, TimeLimitError):
                loading.add_done_callback(lambda done: self._release_if_loaded(done, model))
                raise
        try:
            yield thread
        finally:
            self.models.release(model)

    def _release_if_loaded(self, loading: "asyncio.Future[ModelThread]", model: str) -> None:
        if loading.exception() is None:
            self.models.release(model)

    @asynccontextmanager
    async def _running(
        self, ask: Ask, request_id: str, wants_steps: bool
    ) -> AsyncIterator[tuple[Running, AsyncMailbox, float]]:
        """Accepts a request: yields its jobs, the mailbox that receives their events, and when its time limit ends."""
        check_numbers(ask, self.limits)
        self._check_accepting()
        ends_at = self._ends_at()
        async with self._holding(ask.model, ends_at) as thread:
            mailbox, arguments = AsyncMailbox(), (ask, thread.reasoner, thread.capacity, self.limits)
            if sum(map(len, ask.prompts)) > LONG_PROMPT:
                requests = await aside(requests_of, *arguments)
            else:
                requests = requests_of(*arguments)
            with self._submitted(ask, requests, thread, mailbox, request_id, wants_steps) as running:
                yield running, mailbox, ends_at

    @contextmanager
    def _submitted(
        self,
        ask: Ask,
        requests: Sequence[Request],
        thread: ModelThread,
        receiver: Receiver,
        request_id: str,
        wants_steps: bool,
    ) -> Iterator[Running]:
        """Submits jobs and cancels them at the end of the block, which has no effect on jobs that have ended."""
        name = request_id or secrets.token_hex(8)
        jobs = [Job(each, receiver, index, wants_steps, name, ask.client) for index, each in enumerate(requests)]
        prompter = thread.reasoner.prompter
        streams = [TextStream(prompter.text, ask.stop) for _ in jobs] if wants_steps else []
        thread.submit(jobs)
        try:
            yield Running(ask, jobs, prompter, streams)
        finally:
            thread.cancel(jobs)

    async def _deltas(self, running: Running, mailbox: AsyncMailbox, ends_at: float) -> AsyncIterator[Delta]:
        num_unfinished = len(running.jobs)
        while num_unfinished:
            async with self._until(ends_at):
                job, event = await mailbox.get()
            delta = running.delta(job, event)
            num_unfinished -= delta.choice is not None
            yield delta
