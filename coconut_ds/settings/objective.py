"""The group ``objective``."""

from typing import Literal

from pydantic import Field

from coconut_ds.settings.lotus import LotusConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Positive


class ObjectiveConfig(Group):
    """What is learned of the sequences that the method makes."""

    kind: Literal["likelihood", "lotus"] = "likelihood"
    """Name of an objective in coconut_ds/objectives."""
    feed: Literal["identity", "projection"] = "identity"
    """What a hidden state goes through before it is the next input embedding. identity: nothing. projection: two linear
    maps with a GELU between them, and a layer norm, all of which are learned (CODI)."""
    feed_width: Positive | None = None
    """Width between the two linear maps (feed=projection); null: the hidden size."""
    lotus: LotusConfig = Field(default_factory=LotusConfig)
    """Keys of objective=lotus."""
