"""What a method is: how many steps go, how many thoughts come, and in which order the segments stand.

Words: *stage k* replaces the first k steps; ``c_thought`` is the number of thoughts a step; past ``max_latent_stage``
all steps go and the number of thoughts stays (arXiv 2412.06769, section 3 and appendix).
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar

Ids = Sequence[int]


@dataclass(frozen=True)
class TokenizedProblem:
    """A problem as token ids: question with its newline, each step with its newline, answer with end of sequence."""

    question: Ids
    steps: tuple[Ids, ...]
    answer: Ids


@dataclass(frozen=True)
class MarkerIds:
    """Ids of the thought markers: ``<|start-latent|>``, ``<|end-latent|>``, ``<|latent|>``."""

    start: int
    end: int
    thought: int

    def all(self) -> tuple[int, ...]:
        """Every marker, to be removed from text."""
        return (self.start, self.end, self.thought)


@dataclass(frozen=True)
class CurriculumSpec:
    """The numbers that a layout depends on, beside problem and stage."""

    c_thought: int
    max_latent_stage: int
    pad_latent_to_max: bool = True


@dataclass(frozen=True)
class Segment:
    """A run of positions. ``loss``: they are targets; ``thought``: their inputs are hidden states, not tokens."""

    ids: Ids
    loss: bool = False
    thought: bool = False


class Method(ABC):
    """One way to treat the steps of a problem."""

    name: ClassVar[str]
    has_curriculum: ClassVar[bool]
    """False: the stage is always 0 and stage mixing does not apply."""

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """Steps that are left out at this stage."""
        return num_steps if stage > spec.max_latent_stage else min(stage, num_steps)

    def num_thoughts(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """Thoughts at this stage. ``num_steps=None`` at inference, where the gold steps may not be looked at."""
        return 0

    @abstractmethod
    def segments(
        self, problem: TokenizedProblem, num_removed: int, num_thoughts: int, markers: MarkerIds
    ) -> list[Segment]:
        """The sequence in order. Segments before the first one with loss are the prompt at inference."""


def join(steps: Iterable[Ids]) -> list[int]:
    """The tokens of several steps in a row."""
    return [token for step in steps for token in step]
