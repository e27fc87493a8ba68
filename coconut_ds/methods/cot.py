"""``cot``: chain of thought. The model writes all steps, then the answer. No thoughts, no curriculum."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Method


class Cot(Method):
    """Question, **steps, answer**. The loss is on the bold parts."""

    name: ClassVar[str] = "cot"
    has_curriculum: ClassVar[bool] = False
    writes_steps: ClassVar[bool] = True

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """No step is ever removed."""
        return 0
