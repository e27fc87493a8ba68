"""The keys of noise in thoughts, which evaluation and probing share.

GRPO has keys of its own (``objective.grpo``), since it also explores in other ways.
"""

from typing import Annotated

from pydantic import Field

from coconut_ds.noise_kinds import MOST_SIGMA

Sigma = Annotated[float, Field(ge=0, le=MOST_SIGMA)]
Dropout = Annotated[float, Field(ge=0, lt=1)]
