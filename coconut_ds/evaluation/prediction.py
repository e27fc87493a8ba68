"""The model's prediction for each problem, and the shares computed from the predictions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from coconut_ds.data.checks import is_scored
from coconut_ds.data.graph_answers import categorise, has_usable_graph
from coconut_ds.data.problem import Problem
from coconut_ds.evaluation.hop_scores import HopScore
from coconut_ds.formats import Format
from coconut_ds.generation.requests import FinishReason
from coconut_ds.methods.base import Method
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring


@dataclass(frozen=True)
class Prediction:
    """The model's prediction for one problem.

    Fields that compare it with the answer are None if there is no answer that scoring can read (``checks.is_scored``).
    """

    index: int
    """Index of the problem in its file, from 0."""
    question: str
    text: str
    """Generated text without thought markers."""
    extracted: str
    """The answer extracted from the text."""
    answer: str | None
    """The problem's answer."""
    correct: bool | None
    """Whether the extracted answer equals the problem's answer."""
    steps_match: bool | None
    """Whether the text before the answer equals the steps that are still written at this curriculum stage."""
    wholly_right: bool | None
    """Whether every token equals that of a model that has mastered the stage."""
    num_steps: int | None
    """Number of steps in the problem."""
    num_thoughts: int
    num_pauses: int
    num_tokens: int
    finish_reason: FinishReason
    category: str | None
    """Category of an answer to a graph problem, see ``data.graph_answers``; None for other problems, for graphs that
    cannot be used, and until ``with_category`` has added it."""
    latency_s: float = field(compare=False)
    """Seconds from the request's first pass to its last, while other requests run in the same batch."""
    sample: int | None = None
    """Number of the sample, from 0; None if the evaluation has one answer to each problem."""

    def as_dict(self) -> dict[str, Any]:
        """The fields as plain values, ready for JSON. ``sample`` is left out if it is None."""
        values = asdict(self)
        if self.sample is None:
            del values["sample"]
        return values


@dataclass(frozen=True)
class Evaluation:
    """Predictions for all problems, in the order of the problems, and of the samples of each."""

    predictions: list[Prediction]
    num_thoughts: int
    """Requested number of thoughts per problem."""
    num_pauses: int
    """Requested number of pause tokens per problem."""
    hops: Mapping[int, HopScore] = field(default_factory=dict)
    """What the states that become thoughts say, by hop; empty if that was not measured."""

    @property
    def judged(self) -> list[Prediction]:
        """Predictions for the problems that have an answer."""
        return [prediction for prediction in self.predictions if prediction.correct is not None]

    @property
    def accuracy(self) -> float:
        """Share of correct answers to the problems that have an answer; nan if there are none."""
        return share([bool(p.correct) for p in self.judged])

    @property
    def wholly_right(self) -> float:
        """Share of texts in which every token is right; nan if no problem has an answer."""
        return share([bool(p.wholly_right) for p in self.judged])

    def mastery(self, metric: Literal["accuracy", "in_frontier", "mass"]) -> float:
        """How well the stage is learned, from 0 to 1, by the metric (``training.advance_metric``).

        Where no hops were measured, the metric is accuracy: ``wholly_right``.
        """
        if metric == "accuracy" or not self.hops:
            return self.wholly_right
        return min(one.in_frontier.estimate if metric == "in_frontier" else one.mass for one in self.hops.values())

    @property
    def steps_match(self) -> float:
        """Share of texts with the right steps before the answer; nan if no problem has an answer."""
        return share([bool(p.steps_match) for p in self.judged])


def share(flags: Sequence[bool]) -> float:
    """Share of flags that are True; nan if there are no flags."""
    return sum(flags) / len(flags) if flags else float("nan")


@dataclass(frozen=True)
class Judged:
    """Result of comparing a generated text with its problem; see ``Prediction`` for the fields."""

    extracted: str
    correct: bool | None
    steps_match: bool | None


def judge(problem: Problem, text: str, expected: str, form: Format, scoring: Scoring = EXACT) -> Judged:
    """Compares a generated text with its problem.

    Args:
        problem: with or without an answer.
        text: the text that the model generated.
        expected: the text that a model that has mastered the stage generates.
        form: the format that turns problems into text.
        scoring: the convention.
    """
    if not is_scored(problem, form, scoring):
        return Judged(scoring.read(text, form=form), None, None)
    steps_match = steps_of(text, form) == steps_of(expected, form)
    extracted = scoring.read(text, problem.answer, form)
    return Judged(extracted, scoring.is_correct(text, problem.answer, form), steps_match)


def writes_all_steps(method: Method, stage: int, num_latents: int) -> bool:
    """Whether a model writes all steps at a stage, so that no step is replaced by thoughts or pauses."""
    return num_latents == 0 and (method.writes_steps or (stage == 0 and method.has_curriculum))


def with_category(prediction: Prediction, problem: Problem, form: Format, writes_all: bool) -> Prediction:
    """The prediction with its category, if it was compared with an answer and the problem has a usable graph.

    Args:
        prediction: for this problem.
        problem: with or without a graph.
        form: the format that turns problems into text.
        writes_all: see ``writes_all_steps``.
    """
    if prediction.correct is None or not has_usable_graph(problem):
        return prediction
    return replace(prediction, category=str(categorise(problem, prediction.text, form, whole=writes_all)))


def steps_of(text: str, form: Format) -> str:
    """The part of the text before the answer."""
    before, found, _ = text.rpartition(form.answer_start.strip())
    return before.strip() if found else ("" if form.one_token else text.strip())
