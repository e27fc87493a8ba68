"""The one place that lays a problem out as tokens, labels and thoughts; training, evaluation and serving call it.

A layout holds at most one contiguous run of thoughts. Labels are ``IGNORE`` where no loss is.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, Segment, TokenizedProblem

IGNORE = -100
"""Label of positions without loss (the value that Hugging Face and torch use)."""


@dataclass(frozen=True)
class Layout:
    """One sequence. All lists have the sequence's length T; positions are counted from 0."""

    input_ids: Sequence[int]
    labels: Sequence[int]
    first_thought: int
    """Position of the first thought; T where there is none."""
    num_thoughts: int

    @property
    def targets(self) -> list[int]:
        """The tokens with loss, in order: what a model that has learned them writes."""
        return [label for label in self.labels if label != IGNORE]

    @property
    def num_targets(self) -> int:
        """Positions with loss."""
        return len(self.targets)

    def __len__(self) -> int:
        return len(self.input_ids)


def lay_out(method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec, markers: MarkerIds) -> Layout:
    """The training sequence of ``problem`` at ``stage``."""
    written = method.written(problem, stage, spec)
    num_latents = method.num_latents(stage, len(problem.steps), spec)
    segments = method.segments(problem.question, written, [*problem.cue, *problem.answer], num_latents, markers)
    if problem.cue:
        segments = [*_bare_prompt(segments), *_one_target(method, problem, written)]
    return _joined(segments)


def lay_out_prompt(
    method: Method, question: Sequence[int], num_latents: int, markers: MarkerIds, cue: Sequence[int] = ()
) -> Layout:
    """What the model is given at inference: all that stands before the first target of the last stage.

    Args:
        method: see ``methods``.
        question: tokens of the question.
        num_latents: thoughts or pauses.
        markers: their ids.
        cue: of formats that have one (``TokenizedProblem.cue``).
    """
    segments = method.segments(question, (), (), num_latents, markers)
    if cue:
        return _joined([*_bare_prompt(segments), Segment(() if method.writes_steps else cue)])
    return _joined(takewhile(lambda segment: not segment.loss, segments))


def expected_tokens(
    method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec, markers: MarkerIds
) -> list[int]:
    """What a model that has mastered ``stage`` writes after the prompt of ``problem``."""
    if problem.cue and not method.writes_steps:
        return list(problem.answer[:1])
    return lay_out(method, problem, stage, spec, markers).targets


def _bare_prompt(segments: Sequence[Segment]) -> list[Segment]:
    return [segment for segment in segments if not (segment.loss or segment.marker)]


def _one_target(method: Method, problem: TokenizedProblem, written: Ids) -> list[Segment]:
    """The next step alone, or the cue and the answer's first token; all of it for a method that writes its steps."""
    if method.writes_steps:
        return [Segment([*written, *problem.cue, *problem.answer], loss=True)]
    if written:
        return [Segment(written[:1], loss=True)]
    return [Segment(problem.cue), Segment(problem.answer[:1], loss=True)]


def _joined(segments: Iterable[Segment]) -> Layout:
    input_ids: list[int] = []
    labels: list[int] = []
    first_thought, num_thoughts = -1, 0
    for segment in segments:
        if segment.thought and segment.ids:
            assert num_thoughts == 0, "a layout holds one run of thoughts"
            first_thought, num_thoughts = len(input_ids), len(segment.ids)
        input_ids += segment.ids
        labels += segment.ids if segment.loss else [IGNORE] * len(segment.ids)
    return Layout(input_ids, labels, first_thought if num_thoughts else len(input_ids), num_thoughts)
