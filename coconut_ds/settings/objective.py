"""The group ``objective``."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import Natural, Positive


class SimCotConfig(Group):
    """SIM-CoT's auxiliary decoder, which must write each step from the thoughts that stand for it."""

    decoder_layers: Positive | None = None
    """Number of layers of the decoder, at most those of the model; null: as many."""
    decoder_width: Positive | None = None
    """Hidden size of the decoder; null: that of the model. Another width needs decoder_init=random."""
    decoder_init: Literal["model", "random"] = "model"
    """The decoder's first weights. model: those of the model's first layers, final norm and output head. random: drawn
    from run.seed."""
    step_factor: Annotated[float, Field(gt=0, strict=True)] = 1.0
    """Factor of the decoder's loss."""
    step_reduction: Literal["token", "thought", "row"] = "token"
    """Which mean the decoder's loss is. token: over all target tokens of the global batch. thought: over the tokens of
    each group of thoughts, then over the groups that have any (SIM-CoT on CODI). row: sum over the tokens of a target,
    then mean over problems and groups (SIM-CoT on Coconut; about ten times as large)."""
    missing_step: Literal["answer", "nothing"] = "answer"
    """What the decoder must write for a group of thoughts where a problem has fewer steps than groups. answer: the
    answer (SIM-CoT on Coconut). nothing: such groups are left out (SIM-CoT on CODI)."""
    from_stage: Natural = 0
    """First curriculum stage with the decoder's loss. Its weights do not learn before."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.decoder_width is not None and self.decoder_init == "model":
            raise ValueError(
                f"decoder_width={self.decoder_width} is another width than the model's, whose weights would not fit; "
                "set objective.sim_cot.decoder_init=random, or decoder_width=null"
            )
        return self


class ObjectiveConfig(Group):
    """What is learned of the sequences that the method makes."""

    kind: Literal["likelihood", "sim_cot"] = "likelihood"
    """Name of an objective in coconut_ds/objectives."""
    feed: Literal["identity", "projection"] = "identity"
    """What a hidden state goes through before it is the next input embedding. identity: nothing. projection: two linear
    maps with a GELU between them, and a layer norm, all of which are learned (CODI)."""
    feed_width: Positive | None = None
    """Width between the two linear maps (feed=projection); null: the hidden size."""
    sim_cot: SimCotConfig = Field(default_factory=SimCotConfig)
    """SIM-CoT's auxiliary decoder."""
