"""``coconut_no_curriculum`` (the paper's "w/o curriculum"): the last stage of ``coconut`` from the first epoch."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.coconut import Coconut


class CoconutNoCurriculum(Coconut):
    """Question, ``<s>``, M·c thoughts, ``<e>``, **answer**. The loss is on the bold part."""

    name: ClassVar[str] = "coconut_no_curriculum"
    has_curriculum: ClassVar[bool] = False

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """All steps."""
        return num_steps

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """The number of thoughts that ``coconut`` has after stage M."""
        return super().num_latents(spec.max_latent_stage + 1, num_steps, spec)
