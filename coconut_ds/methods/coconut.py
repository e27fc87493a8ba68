"""``coconut``: k·c thoughts between two markers replace the first k steps (arXiv 2412.06769, section 3)."""

from typing import ClassVar, Literal

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Method, Segment, padded_groups


class Coconut(Method):
    """Question, ``<s>``, thoughts, ``<e>``, **steps[k:], answer**. The loss is on the bold parts."""

    name: ClassVar[str] = "coconut"
    has_curriculum: ClassVar[bool] = True
    has_latents: ClassVar[bool] = True
    unit: ClassVar[Literal["step", "token"]] = "step"

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """min(k, M)·c; without ``pad_latent_to_max`` at most c for each step of the problem."""
        return padded_groups(stage, num_steps, spec) * spec.c_thought

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """Both markers are present at stage 0 too, so that later stages change only the thoughts."""
        return [
            Segment(question),
            Segment([markers.start], marker=True),
            Segment([markers.thought] * num_latents, thought=True),
            Segment([markers.end], marker=True),
            Segment([*written, *answer], loss=True),
        ]
