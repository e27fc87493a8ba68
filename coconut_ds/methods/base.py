"""What a method is: which steps go, what comes in their place, and in which order the segments stand.

Words: *stage k* replaces the first k steps; ``c_thought`` is the number of thoughts a step; past ``max_latent_stage``
(M) all steps go and the number of thoughts stays (arXiv 2412.06769, section 3 and appendix). A *latent* is one position
of the place where steps stood: a thought, or a pause token.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

Ids = Sequence[int]


@dataclass(frozen=True)
class TokenizedProblem:
    """A problem as token ids: question, steps, answer; where a format ends them, its newlines and end of sequence."""

    question: Ids
    steps: tuple[Ids, ...]
    answer: Ids
    cue: Ids = ()
    """What asks for the answer in formats that learn one token at a time (``formats``); else empty."""


@dataclass(frozen=True)
class MarkerIds:
    """Ids of ``<|start-latent|>``, ``<|end-latent|>``, ``<|latent|>`` and, where it is in use, ``<|pause|>``."""

    start: int
    end: int
    thought: int
    pause: int | None = None

    def all(self) -> tuple[int, ...]:
        """Every marker, to be removed from text."""
        return (self.start, self.end, self.thought, *([] if self.pause is None else [self.pause]))


@dataclass(frozen=True)
class CurriculumSpec:
    """The numbers that a layout depends on, beside problem and stage."""

    c_thought: int
    max_latent_stage: int
    pad_latent_to_max: bool = True
    tokens_per_epoch: int = 8
    """Step tokens that ``icot`` removes from one stage to the next."""


@dataclass(frozen=True)
class Segment:
    """A run of positions."""

    ids: Ids
    loss: bool = False
    """They are targets."""
    thought: bool = False
    """Their inputs are hidden states, not tokens."""
    marker: bool = False
    """They only mark where thinking begins or ends; formats without markers leave them out."""


class Method:
    """One way to treat the steps of a problem. As it stands: removed steps leave nothing behind."""

    name: ClassVar[str]
    has_curriculum: ClassVar[bool]
    """False: the stage is always 0 and stage mixing does not apply."""
    has_latents: ClassVar[bool] = False
    """Thoughts or pauses come at some stage."""
    pauses: ClassVar[bool] = False
    """Latents are pause tokens, not thoughts: nothing is fed back."""
    starts_thinking: ClassVar[bool] = False
    """The model begins to think by writing ``<|start-latent|>``, not because the prompt says so."""
    writes_steps: ClassVar[bool] = False
    """All steps are written at every stage."""
    epochs_per_stage: ClassVar[int | None] = None
    """Epochs a stage lasts under ``advance=epochs``; None: ``training.epochs_per_stage``."""

    def num_stages(self, problem: TokenizedProblem, spec: CurriculumSpec) -> int:
        """The stage at which this problem's own steps are all gone, wherever M lies."""
        return len(problem.steps)

    def final_stage(self, longest: int, spec: CurriculumSpec) -> int:
        """The stage after which nothing changes any more, for problems of at most ``longest`` ``num_stages``.

        One stage past M removes whatever steps are left; where none are left it would repeat its predecessor.
        """
        return spec.max_latent_stage if longest <= spec.max_latent_stage else spec.max_latent_stage + 1

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """Steps that are left out at this stage."""
        return num_steps if stage > spec.max_latent_stage else min(stage, num_steps)

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """The tokens of the steps that are still written at this stage."""
        return join(problem.steps[self.num_removed(stage, len(problem.steps), spec) :])

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """Latents at this stage. ``num_steps=None`` at inference, where the gold steps may not be looked at."""
        return 0

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """The sequence in order. Segments before the first one with loss are the prompt at inference.

        Args:
            question: tokens of the question.
            written: tokens of the steps that are still written.
            answer: tokens of the answer.
            num_latents: thoughts or pauses.
            markers: their ids.
        """
        return [Segment(question), Segment([*written, *answer], loss=True)]


def padded_groups(stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
    """Groups of c latents at a stage: min(stage, M); without padding to the maximum at most one a step there is."""
    groups = min(stage, spec.max_latent_stage)
    if not spec.pad_latent_to_max and num_steps is not None:
        groups = min(groups, num_steps)
    return groups


def join(steps: Iterable[Ids]) -> list[int]:
    """The tokens of several steps in a row."""
    return [token for step in steps for token in step]
