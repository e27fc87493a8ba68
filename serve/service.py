"""The service: checkpoints that answer, for coroutines and plain threads alike. Knows nothing of HTTP.

``service.answer(ask)`` and ``service.stream(ask)`` are for coroutines, ``answer_now(ask)`` for plain threads;
``call(model, function)`` runs a function of a ``Reasoner`` on the engine's thread, between two passes. Whoever stops
waiting (a cancelled coroutine, a closed generator) frees the slots of its requests at once.
"""

import asyncio
import logging
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Literal, TypeVar

import torch

from coconut_ds.generation.decoding import DecodedThought, decode_thoughts
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Completion, Request, Score
from coconut_ds.reasoner import Reasoner
from serve.asking import Ask, check_numbers, requests_of
from serve.errors import TimeLimitError, UnavailableError
from serve.limits import Limits
from serve.mailbox import AsyncMailbox, Mailbox
from serve.model_thread import Done, Event, Failed, Job, ModelThread, Receiver, Thought, Times, Token
from serve.models import Models
from serve.text import TextStream

log = logging.getLogger("serve")
Result = TypeVar("Result")
EndReason = Literal["stop", "length"]
LONG_PROMPT = 20_000
"""Characters of a request's prompts from which on another thread turns them into tokens."""


@dataclass(frozen=True)
class Choice:
    """One continuation."""

    index: int
    text: str
    finish_reason: EndReason
    completion: Completion
    num_prompt_tokens: int
    """Positions of the prompt, markers included, thoughts not."""
    times: Times


@dataclass(frozen=True)
class Delta:
    """What a step added to one continuation."""

    index: int
    text: str = ""
    """New text; empty while it is held back."""
    token: int | None = None
    score: Score | None = None
    thought: Thought | None = None
    choice: Choice | None = None
    """Set in the last piece."""


@dataclass
class Running:
    """Requests that were let in."""

    model: str
    thread: ModelThread
    ask: Ask
    jobs: list[Job]
    prompter: Prompter
    streams: list[TextStream] = field(default_factory=list)

    def choice(self, job: Job, completion: Completion) -> Choice:
        """A job's continuation, now that it has ended."""
        text = self.prompter.cut(completion.tokens, self.ask.stop)
        reason: EndReason = "length" if completion.finish_reason == "length" else "stop"
        prompt = job.request.prompt
        return Choice(job.index, text, reason, completion, len(prompt) - prompt.num_thoughts, job.times)

    def piece(self, job: Job, event: Event) -> Delta:
        """What an event adds.

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
    """All that a server offers."""

    def __init__(self, models: Models, limits: Limits) -> None:
        self.models, self.limits = models, limits
        self.draining = False
        """Once set, nothing new is let in."""
        self.num_requests = 0
        """HTTP requests at work; whoever answers them counts."""

    # For coroutines

    async def answer(self, ask: Ask, request_id: str = "") -> tuple[Prompter, list[Choice]]:
        """All continuations, in order, and what knows the model's tokens.

        Raises:
            ServiceError: it cannot be done, or was not.
        """
        async with self._running(ask, request_id, wants_steps=False) as (running, mailbox, ends_at):
            choices: list[Choice | None] = [None] * len(running.jobs)
            for _ in running.jobs:
                async with self._until(ends_at):
                    job, event = await mailbox.get()
                if isinstance(event, Failed):
                    raise event.error
                assert isinstance(event, Done)
                choices[job.index] = running.choice(job, event.completion)
            return running.prompter, [choice for choice in choices if choice is not None]

    @asynccontextmanager
    async def streaming(self, ask: Ask, request_id: str = "") -> AsyncIterator[tuple[Prompter, AsyncIterator[Delta]]]:
        """``async with service.streaming(ask) as (prompter, pieces): async for piece in pieces``. Let in once entered.

        Raises:
            ServiceError: it cannot be done, or was not.
        """
        async with self._running(ask, request_id, wants_steps=True) as (running, mailbox, ends_at):
            yield running.prompter, self._pieces(running, mailbox, ends_at)

    async def call(self, model: str, function: Callable[[Reasoner], Result]) -> Result:
        """Runs a function of a model on its engine's thread, between two passes. Running requests wait meanwhile."""
        self._check_open()
        ends_at = self._ends_at()
        async with self._held(model, ends_at) as thread, self._until(ends_at):
            return await asyncio.wrap_future(thread.run(function))

    async def decode_thoughts(self, model: str, thoughts: torch.Tensor, top_k: int) -> list[DecodedThought]:
        """The tokens nearest to thoughts [L, D]."""
        if not len(thoughts) or not top_k:
            return []
        return await self.call(model, lambda reasoner: _decoded(reasoner, thoughts, top_k))

    # For plain threads

    def answer_now(self, ask: Ask) -> list[Choice]:
        """As ``answer``; blocks."""
        check_numbers(ask, self.limits)
        self._check_open()
        with self.models.holding(ask.model) as thread:
            requests, mailbox = requests_of(ask, thread.reasoner, thread.capacity, self.limits), Mailbox()
            with self._submitted(ask, requests, thread, mailbox, "in-process", wants_steps=False) as running:
                ends_at = time.monotonic() + self.limits.request_s
                choices: dict[int, Choice] = {}
                while len(choices) < len(running.jobs):
                    try:
                        job, event = mailbox.get(max(0.0, ends_at - time.monotonic()))
                    except TimeoutError:
                        raise self._too_long() from None
                    if isinstance(event, Failed):
                        raise event.error
                    assert isinstance(event, Done)
                    choices[job.index] = running.choice(job, event.completion)
                return [choices[index] for index in range(len(choices))]

    def call_now(self, model: str, function: Callable[[Reasoner], Result]) -> Result:
        """As ``call``; blocks."""
        self._check_open()
        with self.models.holding(model) as thread:
            try:
                return thread.run(function).result(self.limits.request_s)
            except TimeoutError:
                raise self._too_long() from None

    # State

    @property
    def problems(self) -> dict[str, str]:
        """Models that cannot be used, and why."""
        threads = self.models.loaded.items()
        return {name: thread.problem for name, thread in threads if thread.problem is not None}

    @property
    def num_open(self) -> int:
        """Requests that were let in and have not ended, of all models."""
        return sum(thread.num_open for thread in self.models.loaded.values())

    def fail_all(self) -> None:
        """Ends what runs or waits; whoever waits for it is told that the server stops."""
        self.draining = True
        for thread in self.models.loaded.values():
            thread.stop()

    def close(self) -> None:
        """Ends all engines; what still runs fails."""
        self.fail_all()
        self.models.close()

    # Parts

    def _check_open(self) -> None:
        if self.draining:
            raise UnavailableError("the server is stopping", retry_after_s=5)

    def _too_long(self) -> TimeLimitError:
        return TimeLimitError(f"the request ran for more than {self.limits.request_s:.0f} s")

    @asynccontextmanager
    async def _until(self, ends_at: float) -> AsyncIterator[None]:
        """What takes longer than to ``ends_at``, a time of the loop, ends with a ``TimeLimitError``."""
        try:
            async with asyncio.timeout_at(ends_at):
                yield
        except TimeoutError:
            raise self._too_long() from None

    def _ends_at(self) -> float:
        return asyncio.get_running_loop().time() + self.limits.request_s

    @asynccontextmanager
    async def _held(self, model: str, ends_at: float) -> AsyncIterator[ModelThread]:
        """A model, loaded in another thread if need be."""
        thread = self.models.held(model)
        if thread is None:
            # A load that was begun ends, whoever stops waiting for it; its hold is given back then.
            loading = asyncio.ensure_future(asyncio.to_thread(self.models.hold, model))
            try:
                async with self._until(ends_at):
                    thread = await asyncio.shield(loading)
            except (asyncio.CancelledError, TimeLimitError):
                loading.add_done_callback(lambda done: self._give_back(done, model))
                raise
        try:
            yield thread
        finally:
            self.models.release(model)

    def _give_back(self, loading: "asyncio.Future[ModelThread]", model: str) -> None:
        if loading.exception() is None:
            self.models.release(model)

    @asynccontextmanager
    async def _running(
        self, ask: Ask, request_id: str, wants_steps: bool
    ) -> AsyncIterator[tuple[Running, AsyncMailbox, float]]:
        check_numbers(ask, self.limits)
        self._check_open()
        ends_at = self._ends_at()
        async with self._held(ask.model, ends_at) as thread:
            mailbox, arguments = AsyncMailbox(), (ask, thread.reasoner, thread.capacity, self.limits)
            if sum(len(prompt) for prompt in ask.prompts if isinstance(prompt, str)) > LONG_PROMPT:
                requests = await asyncio.to_thread(requests_of, *arguments)
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
        """Jobs in the engine; cancelled at the end, which does nothing to those that have ended."""
        name = request_id or secrets.token_hex(8)
        jobs = [Job(request, receiver, index, wants_steps, request_id=name) for index, request in enumerate(requests)]
        prompter = thread.reasoner.prompter
        streams = [TextStream(prompter.text, ask.stop) for _ in jobs] if wants_steps else []
        thread.submit(jobs)
        try:
            yield Running(ask.model, thread, ask, jobs, prompter, streams)
        finally:
            thread.cancel(jobs)

    async def _pieces(self, running: Running, mailbox: AsyncMailbox, ends_at: float) -> AsyncIterator[Delta]:
        left = len(running.jobs)
        while left:
            async with self._until(ends_at):
                job, event = await mailbox.get()
            piece = running.piece(job, event)
            left -= piece.choice is not None
            yield piece


def _decoded(reasoner: Reasoner, thoughts: torch.Tensor, top_k: int) -> list[DecodedThought]:
    return decode_thoughts(reasoner.loop, reasoner.backbone.tokenizer, thoughts.unsqueeze(0), top_k)[0]
