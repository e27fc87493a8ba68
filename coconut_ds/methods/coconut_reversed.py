"""``coconut_reversed``: thoughts replace the *last* k steps, and the model decides when to start thinking.

The model writes the first steps, then generates ``<|start-latent|>``, thinks, and answers. The marker is therefore a
training target, and the prompt at inference is only the question.
"""

from typing import ClassVar, Literal

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Segment, TokenizedProblem, join
from coconut_ds.methods.coconut import Coconut


class CoconutReversed(Coconut):
    """Question, **steps[:n-k], ``<s>``**, thoughts, ``<e>``, **answer**. The loss is on the bold parts; n is the number
    of steps."""

    name: ClassVar[str] = "coconut_reversed"
    starts_thinking: ClassVar[bool] = True
    unit: ClassVar[Literal["step", "token"]] = "step"

    def replaced(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> tuple[Ids, ...]:
        """The last k steps."""
        num_steps = len(problem.steps)
        return problem.steps[num_steps - self.num_removed(stage, num_steps, spec) :]

    def written(self, problem: TokenizedProblem, stage: int, spec: CurriculumSpec) -> list[int]:
        """All steps except the last k."""
        num_steps = len(problem.steps)
        return join(problem.steps[: num_steps - self.num_removed(stage, num_steps, spec)])

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """The end marker has no loss, because the model does not choose the number of thoughts."""
        return [
            Segment(question),
            Segment([*written, markers.start], loss=True),
            Segment([markers.thought] * num_latents, thought=True),
            Segment([markers.end]),
            Segment(answer, loss=True),
        ]
