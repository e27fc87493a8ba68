"""One evaluation."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.model import ModelConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import MethodName, Natural, Positive

SWEPT = ("n_thoughts", "force_text_after")
"""Keys that take one number or several."""


class EvalConfig(Group):
    """One evaluation."""

    checkpoint: str
    """Model folder, or the file of a state dict."""
    data: DataConfig
    """Group of config/data, or a file of problems."""
    data_name: str = ""
    """Name of the data in the output folder; filled in."""
    model: ModelConfig | None = None
    """Architecture and tokenizer of a state dict: a group of config/model."""
    method: MethodName | None = None
    """Method of a checkpoint without coconut.json."""
    n_thoughts: Natural | tuple[Natural, ...] | None = None
    """Number of thoughts; several (0,1,2) are a sweep; null: the checkpoint's."""
    force_text_after: Natural | tuple[Natural, ...] | None = None
    """Ends thinking early, after so many thoughts; several are a sweep."""
    min_thoughts: Natural | None = None
    """With it or max_thoughts the model ends thinking by itself, not before so many thoughts."""
    max_thoughts: Natural | None = None
    """As min_thoughts: the most thoughts there can be."""
    temperature: Annotated[float, Field(ge=0)] = 0.0
    """0: greedy."""
    top_k: Positive | None = None
    """Only the k likeliest tokens (with temperature)."""
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Only the likeliest tokens that together hold this probability (with temperature)."""
    batch_size: Positive = 64
    """Problems at a time."""
    bf16: bool = False
    """Compute in bfloat16 (needed by flash attention)."""
    attn_implementation: str = "sdpa"
    """sdpa, eager, flash_attention_2, flash_attention_3."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of generated problems, and of draws."""
    out: str | None = None
    """Folder for the results; null: outputs/eval/<checkpoint>/<data>, with what was asked for beside them."""

    @property
    def is_sweep(self) -> bool:
        """Whether there are several numbers of thoughts."""
        return any(isinstance(getattr(self, key), tuple) for key in SWEPT)

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.attn_implementation.startswith("flash") and not self.bf16:
            raise ValueError(
                f"attn_implementation={self.attn_implementation} computes in half precision; set bf16=true"
            )
        if all(isinstance(getattr(self, key), tuple) for key in SWEPT):
            raise ValueError("n_thoughts and force_text_after are both several numbers; sweep one of them")
        for key in SWEPT:
            value = getattr(self, key)
            if isinstance(value, tuple) and len(set(value)) != max(len(value), 1):
                raise ValueError(f"{key}={list(value)}: expected different numbers, at least one")
        if (self.top_k is not None or self.top_p < 1) and not self.temperature:
            raise ValueError("top_k and top_p choose among draws; set temperature too, or leave them out")
        return self
