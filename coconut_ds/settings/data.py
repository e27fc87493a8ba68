"""The group ``data``."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, field_validator

from coconut_ds.formats import FORMATS, Format
from coconut_ds.settings.schema import Group
from coconut_ds.settings.types import NameIn, Positive

SOURCES = {
    "file": "coconut_ds.data.sources:FileSource",
    "modular_sum": "coconut_ds.data.arithmetic:ModularSum",
    "permutation_product": "coconut_ds.data.arithmetic:PermutationProduct",
    "prosqa_symbolic": "coconut_ds.data.symbolic:SymbolicProsqa",
    "synthetic": "coconut_ds.data.layered:LayeredGraphs",
}
"""The registry of data sources: each value of ``data.kind`` and the class that makes its problems, as ``module:class``.

The classes are named rather than imported: they take their settings from ``DataConfig``, so their modules import this
one. ``coconut_ds.data.sources.open_source`` imports the class when a run needs its problems.
"""


class SplitSizes(Group):
    """Problems in each split of a generated data set."""

    train: Positive = 6400
    """Training problems an epoch."""
    valid: Positive = 300
    """Validation problems."""
    test: Positive = 1000
    """Test problems."""


class DataConfig(Group):
    """Where problems come from."""

    kind: Annotated[str, AfterValidator(NameIn(SOURCES, "data source"))]
    """file, or the name of a generator."""
    train_path: str | None = None
    """Training problems (kind=file)."""
    val_path: str | None = None
    """Validation problems (kind=file)."""
    test_path: str | None = None
    """Test problems (kind=file)."""
    made_by: str | None = None
    """The command that makes the files; shown when one is missing."""
    format: Annotated[str, AfterValidator(NameIn(FORMATS, "format"))] = "text"
    """text: sentences; symbolic: triples of symbols, one target token a sequence (prosqa_symbolic)."""
    cache_path: str = "~/.cache/coconut-ds"
    """Folder for tokenized training files, shared by all runs."""
    max_new_tokens: Positive = 128
    """Longest generated text, in tokens."""
    size: SplitSizes = SplitSizes()
    """Problems a split (generated data)."""
    online: bool = True
    """Draw new training problems each epoch (generated data)."""
    num_terms: Annotated[int, Field(ge=2, strict=True)] = 4
    """Terms of a sum or product."""
    modulus: Annotated[int, Field(ge=2, strict=True)] = 10
    """Modulus of modular_sum."""
    num_nodes: tuple[Positive, Positive] = (16, 24)
    """Smallest and largest number of nodes (synthetic)."""
    num_layers: tuple[Positive, Positive] = (4, 6)
    """Smallest and largest number of layers (synthetic)."""
    num_edges: tuple[Positive, Positive] = (24, 40)
    """Smallest and largest number of edges (synthetic)."""
    wording: Literal["sentences", "arrows"] = "sentences"
    """sentences: those of ProsQA; arrows: one word an edge (synthetic)."""
    split_by: Literal["graphs", "problems"] = "graphs"
    """What stands in one split only: graphs, whatever their names; problems, where there are few graphs (synthetic)."""
    num_hops: tuple[Positive, Positive] = (3, 4)
    """Smallest and largest number of edges from root to target (prosqa_symbolic)."""

    @property
    def text_format(self) -> Format:
        """What ``format`` names."""
        return FORMATS[self.format]

    @field_validator("num_nodes", "num_layers", "num_edges", "num_hops")
    @classmethod
    def _ordered(cls, value: tuple[int, int]) -> tuple[int, int]:
        if value[0] > value[1]:
            raise ValueError(f"smallest {value[0]} exceeds largest {value[1]}; write [smallest, largest]")
        return value
