"""The one function that lays a problem out as tokens, labels and thoughts; training, evaluation and serving call it.

A layout holds at most one contiguous run of thoughts. Labels are ``IGNORE`` where no loss is.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method, Segment, TokenizedProblem

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
    def num_targets(self) -> int:
        """Positions with loss."""
        return sum(label != IGNORE for label in self.labels)

    def __len__(self) -> int:
        return len(self.input_ids)


def lay_out(method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec, markers: MarkerIds) -> Layout:
    """The training sequence of ``problem`` at ``stage``."""
    num_steps = len(problem.steps)
    segments = method.segments(
        problem,
        method.num_removed(stage, num_steps, spec),
        method.num_thoughts(stage, num_steps, spec),
        markers,
    )
    return _joined(segments)


def lay_out_prompt(method: Method, question: Sequence[int], num_thoughts: int, markers: MarkerIds) -> Layout:
    """What the model is given at inference: all that stands before the first target."""
    segments = method.segments(TokenizedProblem(question, (), ()), 0, num_thoughts, markers)
    first_target = next(index for index, segment in enumerate(segments) if segment.loss)
    return _joined(segments[:first_target])


def _joined(segments: Sequence[Segment]) -> Layout:
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
