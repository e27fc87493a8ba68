"""``no_thoughts`` (the paper's "w/o thought"): the curriculum of ``coconut`` with nothing in place of the steps."""

from typing import ClassVar

from coconut_ds.methods.base import CurriculumSpec, Method
from coconut_ds.methods.cot import Cot


class NoThoughts(Cot):
    """Q **s[k:] A**."""

    name: ClassVar[str] = "no_thoughts"
    has_curriculum: ClassVar[bool] = True

    def num_removed(self, stage: int, num_steps: int, spec: CurriculumSpec) -> int:
        """The first k steps, as under the curriculum of ``coconut``."""
        return Method.num_removed(self, stage, num_steps, spec)
