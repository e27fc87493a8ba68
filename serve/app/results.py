"""Results of the pages, which *Export* writes to files. Field names are those of the exported JSON."""

from dataclasses import dataclass

from coconut_ds.evaluation.hop_scores import HopValue
from coconut_ds.probing.answers import AnswerAfter, SweepPoint
from coconut_ds.probing.cases import Plain
from coconut_ds.probing.effects import Effect
from coconut_ds.probing.graph_values import GraphView, HeightValue, Parallelism
from coconut_ds.probing.intervene import InterventionReport
from coconut_ds.probing.linear import ProbeScore
from coconut_ds.probing.state_patching import StatePatching
from coconut_ds.probing.thought_attention import ThoughtAttention
from coconut_ds.probing.trace import ThoughtTrace


@dataclass(frozen=True)
class ThinkResult(Plain):
    """Result of *Think*."""

    model: str
    trace: ThoughtTrace
    answers: tuple[AnswerAfter, ...] = ()


@dataclass(frozen=True)
class SearchResult(Plain):
    """Result of *Search*."""

    model: str
    view: GraphView
    hops: tuple[HopValue, ...] = ()
    """What the model's head predicts at the states that become thoughts."""


@dataclass(frozen=True)
class InterventionResult(Plain):
    """Result of *Intervene*."""

    model: str
    report: InterventionReport
    overview: tuple[InterventionReport, ...] = ()


@dataclass(frozen=True)
class CompareResult(Plain):
    """Result of *Compare*."""

    models: tuple[str, str]
    traces: tuple[ThoughtTrace, ThoughtTrace]


@dataclass(frozen=True)
class DataSetResult(Plain):
    """Result of *Data set*."""

    model: str
    file: str
    num_problems: int
    n_thoughts: int = 0
    """Thoughts per problem."""
    draws: int = 0
    """Draws per problem of each intervention that is random or takes donors."""
    parts: tuple[str, ...] = ()
    """The parts that were requested (keys of ``measures.PARTS``)."""
    points: tuple[SweepPoint, ...] = ()
    effects: tuple[Effect, ...] = ()
    probes: tuple[ProbeScore, ...] = ()
    parallelism: tuple[Parallelism, ...] = ()
    heights: tuple[HeightValue, ...] = ()


@dataclass(frozen=True)
class StatesResult(Plain):
    """Result of *States*: one of the two."""

    model: str
    attention: ThoughtAttention | None = None
    patching: StatePatching | None = None


Result = ThinkResult | SearchResult | InterventionResult | CompareResult | StatesResult | DataSetResult
