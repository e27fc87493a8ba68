"""``coconut_no_curriculum`` (the paper's "w/o curriculum"): the last stage of ``coconut`` from the first epoch on."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec
from coconut_ds.methods.coconut import Coconut


class CoconutNoCurriculum(Coconut):
    """Q ``<s>`` thoughts ``<e>`` **A** with M·c thoughts."""

    name: ClassVar[str] = "coconut_no_curriculum"
    has_curriculum: ClassVar[bool] = False

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """All steps at any stage."""
        return num_steps

    def num_latents(self, stage: int, num_steps: int | None, spec: CurriculumSpec) -> int:
        """Those of ``coconut`` past its last stage."""
        return super().num_latents(spec.max_latent_stage + 1, num_steps, spec)
