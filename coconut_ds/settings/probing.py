"""One look inside a checkpoint."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from coconut_ds.settings.data import DataConfig
from coconut_ds.settings.model import ModelConfig
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import MethodName, Natural, Positive

MODES = {
    "think": "one question: each thought decoded, at each layer, and the answers after k thoughts",
    "intervene": "one question: a thought changed, with controls",
    "effects": "a data set: answers after k thoughts, linear probes, mean effects of changes",
    "graph": "graph problems: values of nodes, heights, parallelism, superposition, changed edges",
}
"""What there is to do."""
FREE_TEXT = ("question", "donor", "token", "tokens")
"""Keys whose values are taken as they are written."""


class ProbeConfig(Group):
    """One look inside a checkpoint."""

    mode: Literal["think", "intervene", "effects", "graph"] = "think"
    """The word before the keys."""
    checkpoint: str
    """Model folder, or the file of a state dict."""
    question: str | None = None
    """The question (think, intervene)."""
    data: DataConfig | None = None
    """Group of config/data, or a file of problems."""
    data_name: str = ""
    """Name of the data in the output folder; filled in."""
    problem: Natural = 0
    """Without question: which problem of the data, from 0."""
    model: ModelConfig | None = None
    """Architecture and tokenizer of a state dict: a group of config/model."""
    method: MethodName | None = None
    """Method of a checkpoint without coconut.json."""
    n_thoughts: Natural | None = None
    """Number of thoughts or pauses; null: the checkpoint's."""
    max_new_tokens: Positive = 128
    """Longest generated text, in tokens."""
    top_k: Positive = 5
    """Tokens of each decoded state."""
    tokens: tuple[str, ...] = ()
    """Tokens whose rank and probability are wanted, with commas between (a target and a foil)."""
    temperature: Annotated[float, Field(gt=0)] = 1.0
    """Of the softmax that decodes."""
    thought: Positive = 1
    """Which thought is changed, from 1 (intervene)."""
    kind: str = "noise"
    """zero, mean, noise, random, patch, token, scale, swap, repeat, drop (intervene)."""
    strength: float = 1.0
    """Of noise, relative to the thought's norm; the factor of scale."""
    other: Positive | None = None
    """The other thought of swap."""
    token: str | None = None
    """The token whose embedding is put in (kind=token)."""
    donor: str | None = None
    """The question whose thought is put in (kind=patch); null: problems of the data with another answer."""
    draws: Positive = 8
    """Draws of noise and random, and donors."""
    later: Literal["recomputed", "kept"] = "recomputed"
    """What becomes of the thoughts after the changed one."""
    pause: str | None = None
    """A checkpoint that pauses, as a control (intervene)."""
    num_problems: Positive = 500
    """At most so many problems of the data."""
    num_fit: Positive = 1000
    """Problems that linear probes are fit on (effects)."""
    bf16: bool = False
    """Compute in bfloat16."""
    seed: Annotated[int, Field(strict=True)] = 0
    """Seed of generated problems, and of draws."""
    out: str | None = None
    """Folder for the results; null: outputs/probe/<checkpoint>/<mode>."""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode in ("effects", "graph") and self.data is None:
            raise ValueError(f"{self.mode} needs problems; set data= to a group of config/data or a file")
        if self.question is None and self.data is None:
            raise ValueError("no question; set question='…', or data= and problem=")
        return self
