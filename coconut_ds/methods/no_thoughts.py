"""``no_thoughts`` (the paper's "w/o thought"): the curriculum of ``coconut`` with nothing in place of the steps."""

from typing import ClassVar

from coconut_ds.methods.base import Method


class NoThoughts(Method):
    """Q **s[k:] A**."""

    name: ClassVar[str] = "no_thoughts"
    has_curriculum: ClassVar[bool] = True
