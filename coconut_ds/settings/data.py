"""The group ``data``, and the registry of data sources."""

from dataclasses import replace
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, Field, field_validator, model_validator

from coconut_ds.formats import ANSWER_KINDS, FORMATS, Format
from coconut_ds.scoring import EXACT, SCORINGS, scoring_of
from coconut_ds.scoring.base import Scoring
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
GRAPHS = ("prosqa_symbolic", "synthetic")
"""The generators of questions about graphs."""


class SplitSizes(Group):
    """Number of problems in each split of a generated data set."""

    train: Positive = 6400
    """Number of training problems per epoch (generated data)."""
    valid: Positive = 300
    """Number of validation problems (generated data)."""
    test: Positive = 1000
    """Number of test problems (generated data)."""


class DataConfig(Group):
    """Where the problems come from, and how they are written as text."""

    kind: Annotated[str, AfterValidator(NameIn(SOURCES, "data source"))]
    """file, or the name of a generator."""
    train_path: str | None = None
    """File of training problems (kind=file)."""
    val_path: str | None = None
    """File of validation problems (kind=file)."""
    test_path: str | None = None
    """File of test problems (kind=file)."""
    made_by: str | None = None
    """Command that creates the files; shown if one is missing."""
    format: Annotated[str, AfterValidator(NameIn(FORMATS, "format"))] = "text"
    """text: all steps and the answer are written. symbolic: one target token per sequence, for graphs whose wording is
    triples or arrows."""
    answers: Annotated[str, AfterValidator(NameIn(ANSWER_KINDS, "kind of answers"))] = "text"
    """How scoring=exact compares answers. text: equal text, without thousands separators. numbers: also equal if both
    are numbers of the same value, so that 145, 145.0, $145 and 145% are the same."""
    scoring: Annotated[str, AfterValidator(NameIn(SCORINGS, "scoring convention"))] = EXACT.name
    """When an answer is right. exact: equal text after the last # (Coconut). number: that text is a number of the same
    value (LatentTTS, SVP). last_number: the last number of the text (CODI). choice: a letter, or True and False (CODI).
    math_verify: equal expressions (the package math-verify)."""
    chat_template: bool = False
    """Put each question through the tokenizer's own chat template, as the message of a user. A checkpoint's card
    records it, and everything that loads the checkpoint does the same."""
    cache_path: str = "~/.cache/coconut-ds"
    """Folder for tokenized training files, shared by all runs."""
    max_new_tokens: Positive = 128
    """Maximum length of a generated text, in tokens."""
    size: SplitSizes = SplitSizes()
    online: bool = True
    """Draw new training problems in each epoch (generated data)."""
    num_terms: Annotated[int, Field(ge=2, strict=True)] = 4
    """Number of terms of a sum or product (modular_sum, permutation_product)."""
    modulus: Annotated[int, Field(ge=2, strict=True)] = 10
    """Modulus (modular_sum)."""
    num_nodes: tuple[Positive, Positive] | None = None
    """Smallest and largest number of nodes of a graph. null: 16 to 24 (synthetic), or as in the published files, about
    23 (prosqa_symbolic)."""
    num_layers: tuple[Positive, Positive] | None = None
    """Smallest and largest number of layers of a graph (synthetic); null: 4 to 6."""
    num_edges: tuple[Positive, Positive] | None = None
    """Smallest and largest number of edges of a graph. null: 24 to 40 (synthetic), or any (prosqa_symbolic)."""
    num_symbols: Positive | None = None
    """Number of names that nodes can have; with wording=sentences, of concepts. A tokenizer of the words of the data
    then serves graphs of all sizes. null: as many as the largest graph needs, at least 31 (prosqa_symbolic) or 38
    concepts."""
    wording: Literal["sentences", "arrows", "triples"] | None = None
    """How graphs are written. sentences: the sentences of ProsQA. arrows: one word per edge. triples: two symbols per
    edge, and nodes as steps. null: sentences (synthetic), or triples (prosqa_symbolic, and with format=symbolic)."""
    split_by: Literal["graphs", "problems"] = "graphs"
    """What may occur in only one split of generated graphs. graphs: a graph, however its nodes are named. problems: a
    problem, for settings with few different graphs."""
    num_hops: tuple[Positive, Positive] | None = None
    """Smallest and largest number of edges from root to target. null: 3 to 4 (prosqa_symbolic), or any (synthetic)."""
    balanced: bool = False
    """Only questions whose two options have as many ancestors and as many mentions as each other, so that neither count
    tells the answer (prosqa_symbolic). Those of synthetic are equal on average."""
    schedule: tuple[dict[str, Any], ...] = ()
    """Problems to train on before these, one after the other. Each entry has the keys of data that differ, or group (an
    option of data), and its end: epochs, mastery (a share of wholly right validation problems), or both. Example:
    [{num_nodes: [8, 8], mastery: 0.97}, {group: synthetic_tiny, epochs: 5}]."""

    @property
    def graph_wording(self) -> str:
        """How graphs are written: ``wording``, or what null means."""
        triples = self.kind == "prosqa_symbolic" or self.text_format.one_token
        return self.wording or ("triples" if triples else "sentences")

    @property
    def text_format(self) -> Format:
        """The format that the key ``format`` names, with the chat template if ``chat_template`` is set."""
        return replace(FORMATS[self.format], chat_template=self.chat_template)

    @property
    def convention(self) -> Scoring:
        """The convention that ``scoring`` and ``answers`` name.

        Raises:
            ModelError: it needs a package that is not installed.
        """
        return scoring_of(self.scoring, self.answers)

    @model_validator(mode="after")
    def _check_format(self) -> Self:
        if self.text_format.one_token and (self.chat_template or self.scoring != EXACT.name):
            found = "chat_template=true" if self.chat_template else f"scoring={self.scoring}"
            raise ValueError(
                f"format={self.format} cannot have {found}: its problems are symbols, not text; leave it out"
            )
        return self

    @model_validator(mode="after")
    def _check_graphs(self) -> Self:
        if self.kind not in GRAPHS:
            return self
        if self.text_format.one_token and self.graph_wording == "sentences":
            raise ValueError(
                f"format={self.format} needs symbols, found wording=sentences; set data.format=text, or "
                "data.wording=triples or arrows"
            )
        if self.kind == "synthetic" and self.balanced:
            raise ValueError("balanced=true: only ProsQA's graphs can be balanced; set data=prosqa_balanced")
        if self.kind == "prosqa_symbolic" and self.num_layers is not None:
            raise ValueError(
                f"num_layers={list(self.num_layers)}: ProsQA's graphs are not drawn in layers; set data.num_hops="
                "[smallest,largest] instead, or use data=synthetic"
            )
        return self

    @field_validator("num_nodes", "num_layers", "num_edges", "num_hops")
    @classmethod
    def _ordered(cls, value: tuple[int, int] | None) -> tuple[int, int] | None:
        if value is not None and value[0] > value[1]:
            raise ValueError(f"smallest {value[0]} exceeds largest {value[1]}; write [smallest, largest]")
        return value
