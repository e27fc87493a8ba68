"""``cot``: the model writes all steps, then the answer. No thoughts, no curriculum."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method, Segment, TokenizedProblem, join


class Cot(Method):
    """Q **s A**."""

    name: ClassVar[str] = "cot"
    has_curriculum: ClassVar[bool] = False

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """None at any stage."""
        return 0

    def segments(
        self, problem: TokenizedProblem, num_removed: int, num_thoughts: int, markers: MarkerIds
    ) -> list[Segment]:
        """Plain language, no markers."""
        return [
            Segment(problem.question),
            Segment([*join(problem.steps[num_removed:]), *problem.answer], loss=True),
        ]
