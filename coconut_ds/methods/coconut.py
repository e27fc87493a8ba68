"""``coconut``: the first k steps become k·c thoughts between two markers (arXiv 2412.06769, section 3)."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, MarkerIds, Method, Segment, TokenizedProblem, join


class Coconut(Method):
    """Q ``<s>`` thoughts ``<e>`` **s[k:] A**."""

    name: ClassVar[str] = "coconut"
    has_curriculum: ClassVar[bool] = True

    def num_thoughts(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """min(stage, M)·c; without padding to the maximum at most c for each step the problem has."""
        groups = min(stage, spec.max_latent_stage)
        if not spec.pad_latent_to_max and num_steps is not None:
            groups = min(groups, num_steps)
        return groups * spec.c_thought

    def segments(
        self, problem: TokenizedProblem, num_removed: int, num_thoughts: int, markers: MarkerIds
    ) -> list[Segment]:
        """Both markers stand there at stage 0 too, so that later stages change nothing but the thoughts."""
        return [
            Segment([*problem.question, markers.start]),
            Segment([markers.thought] * num_thoughts, thought=True),
            Segment([markers.end]),
            Segment([*join(problem.steps[num_removed:]), *problem.answer], loss=True),
        ]
