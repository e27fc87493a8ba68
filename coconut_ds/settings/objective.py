"""The group ``objective``."""

from typing import Annotated, Literal

from pydantic import Field

from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Positive


class CodiConfig(Group):
    """Self-distillation (kind=codi): the model with thoughts learns from itself with the steps written out."""

    gamma: Annotated[float, Field(ge=0, strict=True)] = 1.0
    """Factor of the distance between the states of student and teacher; in the paper 1 for GPT-2, 20 for Llama 3.2
    1B."""
    teacher_weight: Annotated[float, Field(ge=0, strict=True)] = 1.0
    """Factor of the cross entropy of the written steps and the answer."""
    distance: Literal["smooth_l1", "l2"] = "smooth_l1"
    """Distance of two states, a mean over their numbers. smooth_l1: half the square below 1, the absolute value less
    1/2 above. l2: the square."""
    divide_by_std: bool = True
    """Divide the differences in each layer by the standard deviation of the teacher's states there, over all rows of
    the micro batch and all their numbers (distance=l2: by its square)."""
    teacher_last_step: bool = False
    """Whether the teacher reads the last step too. It usually contains the answer, which the teacher then only
    copies."""


class LotusConfig(Group):
    """Thoughts that learn to predict the tokens of the steps that they replace (kind=lotus)."""

    step_weight: Annotated[float, Field(ge=0, strict=True)] = 0.05
    """Weight of the cross entropy of the steps' tokens (the paper's λ)."""
    in_loop: bool = False
    """false: all blocks of thoughts are read after the last round. true: block k (from 1) is read after round k."""
    flat: bool = False
    """false: step k has the places of block k, and is cut to c_thought tokens. true: the tokens of all steps are packed
    from the first thought on, without gaps."""


class ObjectiveConfig(Group):
    """What is learned of the sequences that the method makes."""

    kind: Literal["likelihood", "codi", "lotus"] = "likelihood"
    """Name of an objective in coconut_ds/objectives."""
    feed: Literal["identity", "projection"] = "identity"
    """What a hidden state goes through before it is the next input embedding. identity: nothing. projection: two linear
    maps with a GELU between them, and a layer norm, all of which are learned (CODI)."""
    feed_width: Positive | None = None
    """Width between the two linear maps (feed=projection); null: the hidden size."""
    codi: CodiConfig = Field(default_factory=CodiConfig)
    """Self-distillation."""
    lotus: LotusConfig = Field(default_factory=LotusConfig)
    """Thoughts that predict steps."""
