"""``no_cot``: the answer straight after the question. No thoughts, no curriculum."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Method


class NoCot(Method):
    """Q **A**."""

    name: ClassVar[str] = "no_cot"
    has_curriculum: ClassVar[bool] = False

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """All steps at any stage."""
        return num_steps
