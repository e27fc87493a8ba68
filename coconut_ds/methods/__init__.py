"""The registry of methods: what becomes of a problem's steps. Names are the values of ``method.kind``.

A new method is one file here, one line below and one YAML in ``config/method``.
"""

from coconut_ds.methods.base import Method
from coconut_ds.methods.coconut import Coconut
from coconut_ds.methods.cot import Cot
from coconut_ds.methods.no_cot import NoCot
from coconut_ds.methods.no_thoughts import NoThoughts

METHODS: dict[str, Method] = {method.name: method for method in (Coconut(), Cot(), NoCot(), NoThoughts())}
