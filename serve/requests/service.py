"""The service runs requests on checkpoints, for coroutines and for plain threads. It knows nothing of HTTP.

``answer(ask)`` and ``streaming(ask)`` are for coroutines, ``answer_now(ask)`` is for plain threads; ``call(model,
function)`` and ``call_now`` run a function of a ``Reasoner`` on the model's thread, between two passes, and
``call_in_parts`` runs work that may take long. A caller that stops waiting (a cancelled coroutine, a closed generator)
frees the slots of its requests after at most one pass, and no further part of its work runs.
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, nullcontext
from dataclasses import replace
from typing import TypeVar

import torch

from coconut_ds.generation.decoding import DecodedThought, decode_thoughts
from coconut_ds.generation.prompter import Prompter
from coconut_ds.generation.requests import Completion, Request
from coconut_ds.parts import Parts
from coconut_ds.reasoner import Reasoner
from serve.aside import aside
from serve.clients.client import IN_PROCESS, Client
from serve.engine.deadlines import Deadline
from serve.engine.jobs import Done, Failed, Job, Receiver
from serve.engine.mailbox import AsyncMailbox, Mailbox
from serve.engine.model_thread import ModelThread
from serve.errors import UnavailableError
from serve.limits import Limits
from serve.models.pool import Models
from serve.requests.asking import Ask, check_numbers, requests_of
from serve.requests.continuations import Choice, Delta, Running
from serve.requests.holding import holding, holding_now, keeping
from serve.requests.text import TextStream

log = logging.getLogger("serve")
Result = TypeVar("Result")
LONG_PROMPT = 20_000
"""Characters or token ids. Prompts that are longer than this in total are read aside of the event loop."""
LONG_TEXT = 512
"""Tokens. Continuations that have more in total become text aside of the event loop."""


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
        async with self._running(ask, request_id, wants_steps=False) as (running, mailbox):
            done: dict[int, Completion] = {}
            for _ in running.jobs:
                async with running.deadline.limiting():
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
        async with self._running(ask, request_id, wants_steps=True) as (running, mailbox):
            yield running.prompter, self._deltas(running, mailbox)

    @asynccontextmanager
    async def keeping(self, ask: Ask) -> AsyncIterator[None]:
        """Within it, all that this coroutine asks of a model gets the same one, also if its files change meanwhile.

        Args:
            ask: what it asks first.

        Raises:
            ServiceError: the request is refused, the model cannot be used, or the deadline has passed.
        """
        check_numbers(ask, self.limits)
        self._check_accepting()
        async with holding(self.models, ask.model, self.deadline_of(ask)) as thread:
            with keeping(ask.model, thread):
                yield

    @contextmanager
    def keeping_that_of(self, prompter: Prompter, model: str) -> Iterator[None]:
        """Like ``keeping``, for the model of a running stream; ``prompter``: what ``streaming`` has returned."""
        threads = [one for one in self.models.threads if one.reasoner.backbone is prompter.backbone]
        with keeping(model, threads[0]) if threads else nullcontext():
            yield

    async def call(
        self,
        model: str,
        function: Callable[[Reasoner], Result],
        client: Client = IN_PROCESS,
        deadline: Deadline | None = None,
    ) -> Result:
        """Runs a function on the model's thread, between two passes; the model's running requests wait for it.

        Args:
            model: name of the checkpoint.
            function: given the reasoner, returns the result.
            client: who wants the result.
            deadline: of the request that this call belongs to; None: the server's time limit begins now.

        Raises:
            ServiceError: the model cannot be used, or the time limit was exceeded.
        """
        deadline = deadline or Deadline.after(self.limits.request_s)
        self._check_accepting()
        async with holding(self.models, model, deadline) as thread, deadline.limiting():
            return await asyncio.wrap_future(thread.run(function, client))

    async def call_in_parts(
        self,
        model: str,
        begin: Callable[[Reasoner], Parts[Result]],
        client: Client = IN_PROCESS,
        deadline: Deadline | None = None,
    ) -> Result:
        """Does long work on the model's thread, in parts that take turns with passes and with other clients' work.

        Args:
            model: name of the checkpoint.
            begin: given the reasoner, returns the work; see ``coconut_ds.parts``.
            client: who wants the result.
            deadline: when the work must have ended; None: it may take any time. Cancelling this coroutine ends it.

        Raises:
            ServiceError: the model cannot be used, or the deadline has passed.
        """
        limiting = nullcontext() if deadline is None else deadline.limiting()
        loaded_by = deadline or Deadline.after(self.limits.request_s)
        self._check_accepting()
        async with holding(self.models, model, loaded_by) as thread, limiting:
            return await asyncio.wrap_future(thread.run_in_parts(begin, client))

    async def decode_thoughts(self, ask: Ask, thoughts: torch.Tensor, top_k: int) -> list[DecodedThought]:
        """Decodes thoughts [L, D] of an answer with the model's head: the ``top_k`` most likely tokens of each.

        Raises:
            ServiceError: the model cannot be used, or the request's deadline has passed.
        """
        if not len(thoughts) or not top_k:
            return []
        deadline = self.deadline_of(ask)
        return await self.call(ask.model, lambda reasoner: _decoded(reasoner, thoughts, top_k), ask.client, deadline)

    # For plain threads

    def answer_now(self, ask: Ask) -> list[Choice]:
        """Like ``answer``, but blocks, and returns only the continuations."""
        check_numbers(ask, self.limits)
        deadline = self.deadline_of(ask)
        self._check_accepting()
        with holding_now(self.models, ask.model, deadline) as thread:
            requests, mailbox = requests_of(ask, thread.reasoner, thread.capacity, self.limits), Mailbox()
            with self._submitted(ask, requests, thread, mailbox, "in-process", False, deadline) as running:
                done: dict[int, Completion] = {}
                while len(done) < len(running.jobs):
                    try:
                        job, event = mailbox.get(running.deadline.remaining_s)
                    except TimeoutError:
                        raise running.deadline.error() from None
                    if isinstance(event, Failed):
                        raise event.error
                    assert isinstance(event, Done)
                    done[job.index] = event.completion
                return running.choices(done)

    def call_now(self, model: str, function: Callable[[Reasoner], Result]) -> Result:
        """Like ``call``, but blocks."""
        deadline = Deadline.after(self.limits.request_s)
        self._check_accepting()
        with holding_now(self.models, model, deadline) as thread:
            future = thread.run(function)
            try:
                return future.result(deadline.remaining_s)
            except TimeoutError:
                future.cancel()
                raise deadline.error() from None

    # State and shutdown

    def begun(self, ask: Ask) -> Ask:
        """The request with its deadline, which all calls for it share. Call it when the request arrives."""
        return replace(ask, deadline=self.deadline_of(ask))

    def deadline_of(self, ask: Ask) -> Deadline:
        """The deadline of a request; if it has none yet, that of one that begins now."""
        return ask.deadline or Deadline.after(self.limits.request_s, ask.timeout_s)

    @property
    def problems(self) -> dict[str, str]:
        """Loaded models that cannot be used, and the reason for each."""
        threads = self.models.loaded.items()
        return {name: thread.problem for name, thread in threads if thread.problem is not None}

    def fail_all(self) -> None:
        """Fails all running and waiting requests with the error that the server is stopping."""
        self.draining = True
        self.models.stop_loading()
        for thread in self.models.threads:
            thread.stop()

    def close(self) -> None:
        """Like ``fail_all``, and unloads all models."""
        self.fail_all()
        self.models.close()

    # Parts of the methods above

    def _check_accepting(self) -> None:
        if self.draining:
            raise UnavailableError("the server is stopping", retry_after_s=5)

    @asynccontextmanager
    async def _running(
        self, ask: Ask, request_id: str, wants_steps: bool
    ) -> AsyncIterator[tuple[Running, AsyncMailbox]]:
        """Accepts a request: yields its jobs, and the mailbox that receives their events."""
        check_numbers(ask, self.limits)
        deadline = self.deadline_of(ask)
        self._check_accepting()
        async with holding(self.models, ask.model, deadline) as thread:
            mailbox, arguments = AsyncMailbox(), (ask, thread.reasoner, thread.capacity, self.limits)
            if sum(map(len, ask.prompts)) > LONG_PROMPT:
                requests = await aside(requests_of, *arguments)
            else:
                requests = requests_of(*arguments)
            with self._submitted(ask, requests, thread, mailbox, request_id, wants_steps, deadline) as running:
                yield running, mailbox

    @contextmanager
    def _submitted(
        self,
        ask: Ask,
        requests: Sequence[Request],
        thread: ModelThread,
        receiver: Receiver,
        request_id: str,
        wants_steps: bool,
        deadline: Deadline,
    ) -> Iterator[Running]:
        """Submits jobs and cancels them at the end of the block, which has no effect on jobs that have ended."""
        name = request_id or secrets.token_hex(8)
        jobs = [
            Job(each, receiver, index, wants_steps, name, ask.client, deadline) for index, each in enumerate(requests)
        ]
        prompter = thread.reasoner.prompter
        streams = [TextStream(prompter.text, ask.stop) for _ in jobs] if wants_steps else []
        thread.submit(jobs)
        try:
            yield Running(ask, jobs, prompter, deadline, streams)
        finally:
            thread.cancel(jobs)

    async def _deltas(self, running: Running, mailbox: AsyncMailbox) -> AsyncIterator[Delta]:
        num_unfinished = len(running.jobs)
        while num_unfinished:
            async with running.deadline.limiting():
                job, event = await mailbox.get()
            delta = running.delta(job, event)
            num_unfinished -= delta.choice is not None
            yield delta


def _decoded(reasoner: Reasoner, thoughts: torch.Tensor, top_k: int) -> list[DecodedThought]:
    return decode_thoughts(reasoner.loop, reasoner.backbone.tokenizer, thoughts.unsqueeze(0), top_k)[0]
