"""What the pages work on: checkpoints by name, files of problems, and what a visitor may ask for.

Everything that a browser sends passes ``Studio.asked`` or ``within``: a browser's own bounds hold nobody who does not
use it.
"""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coconut_ds.data.graph_answers import is_graph_problem
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.methods import METHODS
from coconut_ds.model.card import ModelCard
from coconut_ds.probing.cases import OnProgress
from coconut_ds.probing.trace import ThoughtTrace, trace_of
from coconut_ds.reasoner import Reasoner
from serve.app.problems import ProblemFile
from serve.asking import Ask
from serve.checkpoints import Catalogue
from serve.errors import RequestError
from serve.service import Choice, Delta, Service

Result = TypeVar("Result")
MAX_CHARACTERS = 6000
"""Of a question. ProsQA's have about 2,000."""
MAX_NEW_TOKENS = 128
MAX_REFERENCES = 60
"""Other questions, for means and donors."""
MAX_FOLLOWED = 4
"""Tokens whose way through thoughts and layers is followed."""
TOP_K = 5
"""Tokens shown of each state."""


@dataclass(frozen=True)
class Asked:
    """A question for a checkpoint, checked."""

    model: str
    question: str
    n_thoughts: int
    problem: Problem | None = None
    """The problem of the chosen file with this very question."""
    references: tuple[str, ...] = ()
    """Other questions of that file."""

    @property
    def answer(self) -> str | None:
        """The right one, where it is known."""
        return self.problem.answer if self.problem is not None and self.problem.has_answer else None


@dataclass
class Studio:
    """All that pages need."""

    service: Service
    files: dict[str, ProblemFile]
    file_of: dict[str, str] = field(default_factory=dict)
    """By checkpoint: the file of problems that its run kept."""

    @property
    def catalogue(self) -> Catalogue:
        """Checkpoints."""
        return self.service.models.catalogue

    @property
    def max_thoughts(self) -> int:
        """Most thoughts that can be asked for: twice what any checkpoint has, at least 8."""
        most = max(entry.card.num_latents for entry in self.catalogue)
        return min(max(8, 2 * most), self.service.limits.max_thoughts)

    @property
    def pausing(self) -> list[str]:
        """Checkpoints that pause instead of thinking."""
        return [entry.name for entry in self.catalogue if METHODS[entry.card.method].pauses]

    def card(self, model: str) -> ModelCard:
        """How a checkpoint thinks.

        Raises:
            UnknownModelError: there is none of this name.
        """
        return self.catalogue[model].card

    def file(self, name: str | None) -> ProblemFile | None:
        """A file of problems; None where none is chosen or there is none of this name."""
        return None if name is None else self.files.get(name)

    def asked(self, model: str, file: str | None, question: str, n_thoughts: float) -> Asked:
        """A visitor's question.

        Raises:
            ServiceError: says what is wrong with it.
        """
        card, chosen, text = self.card(model), self.file(file), checked_question(question)
        count = whole_number("thoughts", n_thoughts, 0, self.max_thoughts)
        if count and not METHODS[card.method].has_latents:
            raise RequestError(f"thoughts: {model} was trained with method={card.method} and has none; expected 0")
        problems = chosen.problems if chosen is not None else ()
        own = next((problem for problem in problems if problem.question.strip() == text), None)
        others = (problem.question for problem in problems if problem.question.strip() != text)
        references = tuple(dict.fromkeys(others))[:MAX_REFERENCES]
        return Asked(model, own.question if own is not None else text, count, own, references)

    @asynccontextmanager
    async def answering(self, asked: Asked) -> AsyncIterator[AsyncIterator[Delta]]:
        """``async with studio.answering(asked) as pieces``: the answer, thought by thought and token by token."""
        ask = Ask(asked.model, (asked.question,), n_thoughts=asked.n_thoughts, keep_thoughts=True)
        async with self.service.streaming(ask) as (_, pieces):
            yield pieces

    async def trace(self, asked: Asked, choice: Choice, followed: Sequence[str] = ()) -> ThoughtTrace:
        """What was thought on the way to an answer."""

        def decode(reasoner: Reasoner) -> ThoughtTrace:
            return trace_of(reasoner, asked.question, choice.completion, asked.n_thoughts, top_k=TOP_K, tokens=followed)

        return await self.service.call(asked.model, decode)

    async def think(self, asked: Asked, followed: Sequence[str] = ()) -> ThoughtTrace:
        """An answer with its trace, all at once."""
        async with self.answering(asked) as pieces:
            async for piece in pieces:
                if piece.choice is not None:
                    return await self.trace(asked, piece.choice, followed)
        raise AssertionError("the last piece holds the choice")

    async def call(self, model: str, function: Callable[[Reasoner], Result]) -> Result:
        """Runs a function on the engine's thread; see ``Service.call``."""
        return await self.service.call(model, function)

    async def watch(
        self, model: str, function: Callable[[Reasoner, OnProgress], Result]
    ) -> AsyncIterator[tuple[int, int] | Result]:
        """Runs a long function on the engine's thread: yields how far it is, and in the end its result.

        Ends the function when nobody asks for the next value any more.
        """
        gone = threading.Event()
        state = (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal state
            if gone.is_set():
                raise _Gone
            state = (done, total)

        work = asyncio.ensure_future(self.service.call(model, lambda reasoner: function(reasoner, progress)))
        work.add_done_callback(_swallow)
        try:
            while not (await asyncio.wait([work], timeout=0.2))[0]:
                yield state
            yield work.result()
        finally:
            gone.set()
            work.cancel()


class _Gone(Exception):
    """Nobody waits for the result."""


def _swallow(work: "asyncio.Future[Any]") -> None:
    """Marks an exception as seen, where nobody is left to see it."""
    if not work.cancelled():
        work.exception()


def checked_question(text: str) -> str:
    """A question without space around it.

    Raises:
        RequestError: it is empty, too long, or no text.
    """
    if not isinstance(text, str) or not text.strip():
        raise RequestError("question: is empty; type one, or choose a problem of a file")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"question: has {len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("question: holds half a character (a lone surrogate); type it again") from None
    return text.strip()


def whole_number(name: str, value: float, low: int, high: int) -> int:
    """A whole number within bounds.

    Raises:
        RequestError: names the field.
    """
    if not isinstance(value, (int, float)) or not low <= value <= high or value != int(value):
        raise RequestError(f"{name}: is {value}; expected a whole number from {low} to {high}")
    return int(value)


def followed_tokens(text: str) -> list[str]:
    """Tokens with commas between them.

    Raises:
        RequestError: there are too many, or they are too long.
    """
    tokens = [token.strip() for token in (text or "").split(",") if token.strip()]
    if len(tokens) > MAX_FOLLOWED or any(len(token) > 40 for token in tokens):
        raise RequestError(f"tokens to follow: expected at most {MAX_FOLLOWED}, each of at most 40 characters")
    return tokens


def graph_problem(asked: Asked) -> Problem:
    """The problem whose graph is to be drawn.

    Raises:
        DataError: the question is none of a file's graph problems.
    """
    if asked.problem is None or not is_graph_problem(asked.problem):
        raise DataError(
            "this page needs a problem with its graph: choose one from a file of graph problems (make one with "
            "python preprocessing/prosqa.py) and leave its question as it is"
        )
    return asked.problem
