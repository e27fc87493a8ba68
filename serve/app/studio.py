"""The state and operations that all pages share: checkpoints, files of problems, and checks of visitors' input.

Everything that a browser sends is checked here, by ``Studio.check_question`` or ``whole_number``, because the bounds of
input fields in the browser can be bypassed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from coconut_ds.data.encoding import Place, unknown_places
from coconut_ds.data.graph_answers import is_graph_problem
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.methods import METHODS
from coconut_ds.model.card import ModelCard
from coconut_ds.parts import Parts
from coconut_ds.probing.cases import OnProgress
from coconut_ds.probing.trace import ThoughtTrace, trace_of
from coconut_ds.reasoner import Reasoner
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring
from serve.app.problems import ProblemFile
from serve.checkpoints.offered import Checkpoints
from serve.errors import RequestError
from serve.requests.asking import Ask
from serve.requests.continuations import Choice, Delta
from serve.requests.service import Service

Result = TypeVar("Result")
MAX_CHARACTERS = 6000
"""Maximum length of a question. Those of ProsQA have about 2,000 characters."""
MAX_NEW_TOKENS = 128
MAX_REFERENCES = 60
"""Maximum number of other questions that provide mean thoughts and donors."""
MAX_FOLLOWED = 4
"""Maximum number of tokens whose probability is followed along the thoughts."""
TOP_K = 5
"""Number of most likely tokens shown for each state."""


@dataclass(frozen=True)
class CheckedQuestion:
    """A question for a checkpoint that has passed all checks."""

    model: str
    question: str
    n_thoughts: int
    problem: Problem | None = None
    """The problem of the selected file that has exactly this question."""
    references: tuple[str, ...] = ()
    """Other questions of that file."""
    scoring: Scoring = EXACT
    """Decides whether an answer is right."""

    @property
    def answer(self) -> str | None:
        """The right answer, if it is known."""
        return self.problem.answer if self.problem is not None and self.problem.has_answer else None


@dataclass
class Studio:
    """Runs the pages' work on the service."""

    service: Service
    files: dict[str, ProblemFile]
    file_of: dict[str, str] = field(default_factory=dict)
    """By name of a checkpoint: name of the file of problems that its run stored."""

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints that visitors can choose from."""
        return self.service.models.checkpoints

    @property
    def max_thoughts(self) -> int:
        """Maximum number of thoughts that can be requested: twice that of any checkpoint, and at least 8."""
        most = max((checkpoint.card.num_latents for checkpoint in self.checkpoints), default=0)
        return min(max(8, 2 * most), self.service.limits.max_thoughts)

    @property
    def pausing(self) -> list[str]:
        """Names of the checkpoints that use pauses instead of thoughts."""
        return [checkpoint.name for checkpoint in self.checkpoints if METHODS[checkpoint.card.method].pauses]

    def card(self, model: str) -> ModelCard:
        """The card of a checkpoint: its method and number of thoughts.

        Raises:
            UnknownModelError: no checkpoint has this name.
        """
        return self.checkpoints[model].card

    def file(self, name: str | None) -> ProblemFile | None:
        """The file of problems with this name, or None."""
        return None if name is None else self.files.get(name)

    def check_question(self, model: str, file: str | None, question: str, n_thoughts: float) -> CheckedQuestion:
        """Checks a visitor's question.

        Args:
            model: name of a checkpoint.
            file: name of the selected file of problems; unknown names are treated as None.
            question: text of the question.
            n_thoughts: thoughts or pauses before the text.

        Raises:
            ServiceError: an input is invalid; the message says which and what is expected.
        """
        card, chosen, text = self.card(model), self.file(file), checked_text(question)
        count = whole_number("thoughts", n_thoughts, 0, self.max_thoughts)
        if count and not METHODS[card.method].has_latents:
            raise RequestError(
                f"thoughts: is {count}, but {model} was trained without thoughts (method={card.method}); set it to 0"
            )
        problems = chosen.problems if chosen is not None else ()
        own = next((problem for problem in problems if problem.question.strip() == text), None)
        others = (problem.question for problem in problems if problem.question.strip() != text)
        references = tuple(dict.fromkeys(others))[:MAX_REFERENCES]
        scoring = chosen.scoring if chosen is not None else EXACT
        return CheckedQuestion(model, own.question if own is not None else text, count, own, references, scoring)

    def is_right(self, checked: CheckedQuestion, text: str) -> bool | None:
        """Whether a generated text contains the right answer; None if that is not known."""
        if checked.answer is None:
            return None
        return checked.scoring.is_correct(text, checked.answer, self.card(checked.model).text_format)

    @asynccontextmanager
    async def answering(self, checked: CheckedQuestion) -> AsyncIterator[AsyncIterator[Delta]]:
        """Streams the answer: ``async with studio.answering(checked) as deltas``."""
        async with self.service.streaming(_ask(checked)) as (_, deltas):
            yield deltas

    async def trace(self, checked: CheckedQuestion, choice: Choice, followed: Sequence[str] = ()) -> ThoughtTrace:
        """Decodes the thoughts of an answer. ``followed``: tokens whose probability is reported for each thought."""

        def decode(reasoner: Reasoner) -> Parts[ThoughtTrace]:
            return trace_of.parts(
                reasoner, checked.question, choice.completion, checked.n_thoughts, top_k=TOP_K, tokens=followed
            )

        return await self.call(checked.model, decode)

    async def unknown_places(self, checked: CheckedQuestion) -> list[Place]:
        """The places in the question of words that the model's tokenizer does not know."""
        return await self.service.call(
            checked.model, lambda reasoner: unknown_places(reasoner.backbone.tokenizer, checked.question)
        )

    async def think(self, checked: CheckedQuestion, followed: Sequence[str] = ()) -> ThoughtTrace:
        """Generates an answer and decodes its thoughts."""
        async with self.service.keeping(_ask(checked)), self.answering(checked) as deltas:
            async for delta in deltas:
                if delta.choice is not None:
                    return await self.trace(checked, delta.choice, followed)
        raise AssertionError("the last delta has the choice")

    async def call(self, model: str, begin: Callable[[Reasoner], Parts[Result]]) -> Result:
        """Does work on the model's thread, in parts; see ``Service.call_in_parts``."""
        return await self.service.call_in_parts(model, begin)

    async def watch(
        self, model: str, begin: Callable[[Reasoner, OnProgress], Parts[Result]]
    ) -> AsyncIterator[tuple[int, int] | Result]:
        """Does long work on the model's thread: yields progress (done, total), and finally the result.

        If the caller closes this generator, no further part of the work runs.
        """
        state = (0, 0)

        def progress(done: int, total: int) -> None:
            nonlocal state
            state = (done, total)

        work = asyncio.ensure_future(self.call(model, lambda reasoner: begin(reasoner, progress)))
        work.add_done_callback(_retrieve_exception)
        try:
            while not (await asyncio.wait([work], timeout=0.2))[0]:
                yield state
            yield work.result()
        finally:
            work.cancel()


def _retrieve_exception(work: "asyncio.Future[Any]") -> None:
    """Retrieves the exception of a future, so that asyncio does not log it as never retrieved."""
    if not work.cancelled():
        work.exception()


def _ask(checked: CheckedQuestion) -> Ask:
    return Ask(checked.model, (checked.question,), n_thoughts=checked.n_thoughts, keep_thoughts=True)


def checked_text(text: str) -> str:
    """The text of a question, without surrounding white space.

    Raises:
        RequestError: the text is empty, too long, or not valid Unicode.
    """
    if not isinstance(text, str) or not text.strip():
        raise RequestError("question: is empty; type a question, or select a problem")
    if len(text) > MAX_CHARACTERS:
        raise RequestError(f"question: has {len(text):,} characters; expected at most {MAX_CHARACTERS:,}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RequestError("question: contains a lone surrogate; type the question again as valid Unicode") from None
    return text.strip()


def whole_number(name: str, value: float | None, low: int, high: int) -> int:
    """Checks that a value is a whole number within bounds.

    Raises:
        RequestError: it is not; the message names the field.
    """
    if not isinstance(value, (int, float)) or not low <= value <= high or value != int(value):
        raise RequestError(f"{name}: is {value}; expected a whole number from {low} to {high}")
    return int(value)


def followed_tokens(text: str) -> list[str]:
    """Splits a comma-separated list of tokens.

    Raises:
        RequestError: there are too many tokens, or one is too long.
    """
    tokens = [token.strip() for token in (text or "").split(",") if token.strip()]
    if len(tokens) > MAX_FOLLOWED or any(len(token) > 40 for token in tokens):
        raise RequestError(f"tokens to follow: expected at most {MAX_FOLLOWED} tokens of at most 40 characters each")
    return tokens


def graph_problem(checked: CheckedQuestion) -> Problem:
    """The graph problem that a question belongs to.

    Raises:
        DataError: the question is not that of a graph problem of the selected file.
    """
    if checked.problem is None or not is_graph_problem(checked.problem):
        raise DataError(
            "question: this page needs a problem with its graph; select one from a file of graph problems (create a "
            "file with python preprocessing/prosqa.py) and do not edit its question"
        )
    return checked.problem
