"""``coconut_reversed``: the *last* k steps become thoughts; the model decides when to think.

It writes the first steps, then ``<|start-latent|>`` by itself, thinks, and answers: in training that marker is a
target, at inference the prompt is the question alone.
"""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Segment, TokenizedProblem, join
from coconut_ds.methods.coconut import Coconut


class CoconutReversed(Coconut):
    """Q **s[:n-k]** **``<s>``** thoughts ``<e>`` **A**."""

    name: ClassVar[str] = "coconut_reversed"
    starts_thinking: ClassVar[bool] = True

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """All steps but the last k."""
        num_steps = len(problem.steps)
        return join(problem.steps[: num_steps - self.num_removed(stage, num_steps, spec)])

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """The end marker is given, not learned: the number of thoughts is not the model's choice."""
        return [
            Segment(question),
            Segment([*written, markers.start], loss=True),
            Segment([markers.thought] * num_latents, thought=True),
            Segment([markers.end]),
            Segment(answer, loss=True),
        ]
