"""``pause`` (the paper's "Pause token"): M·c pause tokens between question and answer, no curriculum.

After Goyal et al. 2023 (arXiv 2310.02226), who also pretrain with pause tokens; here they are used in fine-tuning only.
"""

from typing import ClassVar, Literal

from coconut_ds.methods.base import CurriculumSpec, Ids, MarkerIds, Segment
from coconut_ds.methods.no_cot import NoCot


class Pause(NoCot):
    """Question, M·c pause tokens, **answer**. The loss is on the bold part."""

    name: ClassVar[str] = "pause"
    pauses: ClassVar[bool] = True
    has_latents: ClassVar[bool] = True
    unit: ClassVar[Literal["step", "token"]] = "step"

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """M·c for every problem."""
        return spec.max_latent_stage * spec.c_thought

    def segments(self, question: Ids, written: Ids, answer: Ids, num_latents: int, markers: MarkerIds) -> list[Segment]:
        """Markers around the pause tokens are not needed."""
        assert markers.pause is not None, "the tokenizer of a method with pause tokens has <|pause|>"
        return [Segment(question), Segment([markers.pause] * num_latents), Segment(answer, loss=True)]
