"""What a model made of each problem, and the scores that follow."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from coconut_ds.data.graph_answers import categorise, is_graph_problem
from coconut_ds.data.problem import Problem
from coconut_ds.formats import Format, extract_answer, is_correct
from coconut_ds.generation.requests import FinishReason


@dataclass(frozen=True)
class Prediction:
    """What the model made of one problem. Where no answer is known, what compares with it is None."""

    index: int
    """Of the problem in its file, from 0."""
    question: str
    text: str
    """Generated text without markers."""
    extracted: str
    """The answer found in it."""
    answer: str | None
    correct: bool | None
    """Whether the answers are equal."""
    steps_match: bool | None
    """Whether what stands before the answer equals the steps that the stage still writes."""
    wholly_right: bool | None
    """Whether all tokens are those of a model that has mastered the stage."""
    num_steps: int | None
    """Steps of the problem."""
    num_thoughts: int
    num_pauses: int
    num_tokens: int
    finish_reason: FinishReason
    category: str | None
    """On graph data: see ``data.graph_answers``."""
    latency_s: float = field(compare=False)
    """From its first pass to its last, others running beside it."""

    def as_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True)
class Evaluation:
    """Predictions of all problems, in order."""

    predictions: list[Prediction]
    num_thoughts: int
    """Asked for."""
    num_pauses: int

    @property
    def judged(self) -> list[Prediction]:
        """Those whose answer is known."""
        return [prediction for prediction in self.predictions if prediction.correct is not None]

    @property
    def accuracy(self) -> float:
        """Share of right answers among the known; nan where none is."""
        return share([bool(p.correct) for p in self.judged])

    @property
    def wholly_right(self) -> float:
        """Share of problems with right answer and steps."""
        return share([bool(p.wholly_right) for p in self.judged])

    @property
    def steps_match(self) -> float:
        """Share of problems with right steps."""
        return share([bool(p.steps_match) for p in self.judged])


def share(flags: Sequence[bool]) -> float:
    """How many are set; nan where there are none."""
    return sum(flags) / len(flags) if flags else float("nan")


@dataclass(frozen=True)
class Judged:
    """What comparing a text with its problem says."""

    extracted: str
    correct: bool | None
    steps_match: bool | None
    category: str | None


def judge(problem: Problem, text: str, expected: str, form: Format, writes_all: bool) -> Judged:
    """Compares a generated text with its problem.

    Args:
        problem: with or without answer.
        text: what the model wrote.
        expected: what a model that has mastered the stage writes.
        form: how problems become text.
        writes_all: whether all steps are written at this stage, nothing stands for any.
    """
    extracted = extract_answer(text, form)
    if not problem.has_answer:
        return Judged(extracted, None, None, None)
    graph = is_graph_problem(problem)
    category = str(categorise(problem, text, form, whole=writes_all)) if graph else None
    steps_match = steps_of(text, form) == steps_of(expected, form)
    return Judged(extracted, is_correct(text, problem.answer, form), steps_match, category)


def steps_of(text: str, form: Format) -> str:
    """What stands before the answer."""
    before, found, _ = text.rpartition(form.answer_start.strip())
    return before.strip() if found else ("" if form.one_token else text.strip())
