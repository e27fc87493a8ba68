"""One evaluation."""

from typing import Annotated, Self

from pydantic import Field, field_validator, model_validator

from coconut_ds.methods import METHODS
from coconut_ds.schema import Group
from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.types import Natural, Positive


class EvalConfig(Group):
    """One evaluation."""

    checkpoint: str
    """Model folder."""
    data: DataConfig
    """Group of config/data, or a file of problems."""
    data_name: str = ""
    """Name of the data in the output folder; filled in."""
    method: str | None = None
    """Method of a folder without coconut.json."""
    n_thoughts: Natural | None = None
    """Number of thoughts; null: the checkpoint's."""
    batch_size: Positive = 64
    """Problems at a time."""
    bf16: bool = False
    """Compute in bfloat16 (needed by flash attention)."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2, flash_attention_3."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of generated problems."""
    out: str | None = None
    """Folder for the results; null: outputs/eval/<checkpoint>/<data>, with n_thoughts where it was given."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attn_implementation.startswith("flash") and not self.bf16:
            raise ValueError(
                f"attn_implementation={self.attn_implementation} computes in half precision; set bf16=true"
            )
        return self

    @field_validator("method")
    @classmethod
    def _known(cls, value: str | None) -> str | None:
        if value is not None and value not in METHODS:
            raise ValueError(f"unknown method; expected one of {', '.join(sorted(METHODS))}")
        return value
