"""``cot``: the model writes all steps, then the answer. No thoughts, no curriculum."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Method


class Cot(Method):
    """Q **s A**."""

    name: ClassVar[str] = "cot"
    has_curriculum: ClassVar[bool] = False
    writes_steps: ClassVar[bool] = True

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """None at any stage."""
        return 0
