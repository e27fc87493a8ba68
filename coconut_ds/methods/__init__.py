"""The methods, and their registry. A method decides how the reasoning steps of a problem are replaced during training.

The names in ``METHODS`` are the values that ``method.kind`` accepts. To add a method, write one file in this folder,
add one line to ``METHODS`` and one YAML file to ``config/method``. Start reading in ``base``.
"""

from coconut_ds.methods.base import Method
from coconut_ds.methods.coconut import Coconut
from coconut_ds.methods.coconut_no_curriculum import CoconutNoCurriculum
from coconut_ds.methods.coconut_reversed import CoconutReversed
from coconut_ds.methods.cot import Cot
from coconut_ds.methods.icot import Icot
from coconut_ds.methods.no_cot import NoCot
from coconut_ds.methods.no_thoughts import NoThoughts
from coconut_ds.methods.pause import Pause
from coconut_ds.methods.pause_as_thought import PauseAsThought

METHODS: dict[str, Method] = {
    method.name: method
    for method in (
        Cot(),
        NoCot(),
        NoThoughts(),
        Icot(),
        Coconut(),
        CoconutNoCurriculum(),
        CoconutReversed(),
        PauseAsThought(),
        Pause(),
    )
}
