"""``no_thoughts`` (the paper's "w/o thought"): the curriculum of ``coconut``, but removed steps are not replaced."""

from typing import ClassVar

from coconut_ds.methods.base import Method


class NoThoughts(Method):
    """Question, **steps[k:], answer**. The loss is on the bold parts."""

    name: ClassVar[str] = "no_thoughts"
    has_curriculum: ClassVar[bool] = True
