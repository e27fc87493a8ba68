"""``no_cot``: the answer directly follows the question. No steps, no thoughts, no curriculum."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Method


class NoCot(Method):
    """Question, **answer**. The loss is on the bold part."""

    name: ClassVar[str] = "no_cot"
    has_curriculum: ClassVar[bool] = False

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """All steps."""
        return num_steps
