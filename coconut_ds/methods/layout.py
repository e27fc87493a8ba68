"""Turns a problem into the sequence that the model sees: input tokens, labels, and the positions of the thoughts.

Training, evaluation and serving all use these functions, so the prompt at inference is always the beginning of a
training sequence. A sequence contains at most one contiguous run of thoughts. Labels are not shifted: the label of a
position is its own token, or ``IGNORE`` where no loss is computed.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, Segment, TokenizedProblem

IGNORE = -100
"""Label of positions without loss (the value that PyTorch and Hugging Face use)."""


@dataclass(frozen=True)
class Layout:
    """One sequence of T positions, counted from 0."""

    input_ids: Sequence[int]
    """T token ids; the positions of thoughts hold the id of ``<|latent|>``."""
    labels: Sequence[int]
    """T labels: a position's own token, or ``IGNORE``."""
    first_thought: int
    """Position of the first thought, or T if there are none."""
    num_thoughts: int
    """Number of thoughts; they occupy consecutive positions."""
    answer_start: int = -1
    """Position of the answer's first token (``TokenizedProblem.answer``, without the cue); -1 if the answer is not in
    the sequence."""

    @property
    def targets(self) -> list[int]:
        """The tokens with loss, in order: the text that a perfectly trained model generates."""
        return [label for label in self.labels if label != IGNORE]

    @property
    def num_targets(self) -> int:
        """Number of positions with loss."""
        return len(self.targets)

    def __len__(self) -> int:
        return len(self.input_ids)

    def continued(self, tokens: Sequence[int]) -> "Layout":
        """This sequence without labels, followed by ``tokens``, which have loss; for a prompt and what was written."""
        labels = [*[IGNORE] * len(self), *tokens]
        first = self.first_thought if self.num_thoughts else len(labels)
        return Layout([*self.input_ids, *tokens], labels, first, self.num_thoughts, len(self))


def lay_out(method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec, markers: MarkerIds) -> Layout:
    """The training sequence of ``problem`` at ``stage``."""
    written = method.written(problem, stage, spec)
    num_latents = method.num_latents(stage, len(problem.steps), spec)
    segments = method.segments(problem.question, written, [*problem.cue, *problem.answer], num_latents, markers)
    num_answer = len(problem.answer)
    if problem.cue:
        segments = [*_bare_prompt(segments), *_one_target(method, problem, written)]
        if not method.writes_steps:
            num_answer = 0 if written else 1
    return _joined(segments, num_answer)


def lay_out_prompt(
    method: Method, question: Sequence[int], num_latents: int, markers: MarkerIds, cue: Sequence[int] = ()
) -> Layout:
    """The prompt at inference: everything before the first target of the training sequence of the last stage.

    Args:
        method: a value of ``METHODS``.
        question: tokens of the question.
        num_latents: number of thoughts or pause tokens.
        markers: ids of the markers.
        cue: the tokens that announce the answer, in formats that use them (``TokenizedProblem.cue``).
    """
    segments = method.segments(question, (), (), num_latents, markers)
    if cue:
        return _joined([*_bare_prompt(segments), Segment(() if method.writes_steps else cue)])
    return _joined(takewhile(lambda segment: not segment.loss, segments))


def expected_tokens(
    method: Method, problem: TokenizedProblem, stage: int, spec: CurriculumSpec, markers: MarkerIds
) -> list[int]:
    """The tokens that a model that has mastered ``stage`` generates after the prompt of ``problem``."""
    if problem.cue and not method.writes_steps:
        return list(problem.answer[:1])
    return lay_out(method, problem, stage, spec, markers).targets


def _bare_prompt(segments: Sequence[Segment]) -> list[Segment]:
    """The segments of the prompt, without markers."""
    return [segment for segment in segments if not (segment.loss or segment.marker)]


def _one_target(method: Method, problem: TokenizedProblem, written: Ids) -> list[Segment]:
    """What follows the prompt in formats with one target token per sequence.

    That is the first token of the next step or, where no step is left, the cue and the first token of the answer. A
    method that writes its steps has all steps, the cue and the answer as targets instead.
    """
    if method.writes_steps:
        return [Segment([*written, *problem.cue, *problem.answer], loss=True)]
    if written:
        return [Segment(written[:1], loss=True)]
    return [Segment(problem.cue), Segment(problem.answer[:1], loss=True)]


def _joined(segments: Iterable[Segment], num_answer: int = 0) -> Layout:
    """Concatenates segments to one sequence, whose last ``num_answer`` tokens are those of the answer."""
    input_ids: list[int] = []
    labels: list[int] = []
    first_thought, num_thoughts = -1, 0
    for segment in segments:
        if segment.thought and segment.ids:
            assert num_thoughts == 0, "a layout has at most one run of thoughts"
            first_thought, num_thoughts = len(input_ids), len(segment.ids)
        input_ids += segment.ids
        labels += segment.ids if segment.loss else [IGNORE] * len(segment.ids)
    length = len(input_ids)
    answer_start = length - num_answer if num_answer else -1
    return Layout(input_ids, labels, first_thought if num_thoughts else length, num_thoughts, answer_start)
