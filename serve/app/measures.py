"""What pages compute: changed thoughts with their controls, and measures over a data set part by part.

Each part is one call of the engine's thread, so that other visitors' requests run between two parts.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from coconut_ds.data.graph_answers import is_graph_problem
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.probing.answers import AnswerAfter, SweepPoint, answers_after, sweep
from coconut_ds.probing.cases import OnProgress, Plain
from coconut_ds.probing.effects import Effect, measure_effects
from coconut_ds.probing.graph_values import (
    GraphView,
    HeightValue,
    Parallelism,
    graph_views,
    height_values,
    parallelism,
)
from coconut_ds.probing.intervene import InterventionReport, intervene
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.linear import ProbeScore, linear_probes
from coconut_ds.probing.trace import ThoughtTrace
from coconut_ds.reasoner import Reasoner
from serve.app.studio import MAX_NEW_TOKENS, Asked, Studio, graph_problem
from serve.app.words import KINDS

OVERVIEW = (Kind.PATCH, Kind.ZERO, Kind.MEAN, Kind.NOISE, Kind.RANDOM)
"""Changes that are made to every thought."""
OVERVIEW_DRAWS = 4
"""Of noise and donors, a change."""
REFERENCED = (Kind.PATCH, Kind.MEAN)
"""Those that need other questions."""
MAX_DRAWS = 32
MAX_MEASURED = 300
"""Problems of a data set that are measured."""
FEWEST = 4
"""Problems that anything can be said of."""


@dataclass(frozen=True)
class ThinkResult(Plain):
    """Of *Think*."""

    model: str
    trace: ThoughtTrace
    answers: tuple[AnswerAfter, ...] = ()


@dataclass(frozen=True)
class Searching(Plain):
    """Of *Search*."""

    model: str
    view: GraphView


@dataclass(frozen=True)
class Changing(Plain):
    """Of *Intervene*."""

    model: str
    report: InterventionReport
    overview: tuple[InterventionReport, ...] = ()


@dataclass(frozen=True)
class Comparing(Plain):
    """Of *Compare*."""

    models: tuple[str, str]
    traces: tuple[ThoughtTrace, ThoughtTrace]


@dataclass(frozen=True)
class Measuring(Plain):
    """Of *Data set*."""

    model: str
    file: str
    num_problems: int
    points: tuple[SweepPoint, ...] = ()
    effects: tuple[Effect, ...] = ()
    probes: tuple[ProbeScore, ...] = ()
    parallelism: tuple[Parallelism, ...] = ()
    heights: tuple[HeightValue, ...] = ()


Result = ThinkResult | Searching | Changing | Comparing | Measuring


async def answers(studio: Studio, asked: Asked) -> list[AnswerAfter]:
    """The answers after 0 to all thoughts."""

    def ask(reasoner: Reasoner) -> list[AnswerAfter]:
        numbers = range(asked.n_thoughts + 1)
        return answers_after(reasoner, [asked.question], [asked.answer], numbers, max_new_tokens=MAX_NEW_TOKENS)[0]

    return await studio.call(asked.model, ask)


async def search(studio: Studio, asked: Asked) -> Searching:
    """Values of all nodes after each number of thoughts."""
    problem = graph_problem(asked)
    size = max(studio.card(asked.model).c_thought, 1)
    numbers = range(0, asked.n_thoughts + 1, size)
    view = await studio.call(asked.model, lambda reasoner: graph_views(reasoner, [problem], numbers)[0])
    return Searching(asked.model, view)


async def changed(studio: Studio, asked: Asked, what: Intervention, pause: str | None = None) -> InterventionReport:
    """One change with its controls.

    Args:
        studio: see there.
        asked: the question.
        what: the change.
        pause: a checkpoint that pauses, as one more control; each checkpoint computes on its own thread.
    """
    report = (await _reports(studio, asked, asked.model, [what], asked.n_thoughts))[0]
    if pause is None:
        return report
    control = (await _reports(studio, asked, pause, [what], None, controls=False))[0].effect
    return replace(report, controls=(*report.controls, replace(control, name="pause")))


async def intervention_overview(studio: Studio, asked: Asked) -> list[InterventionReport]:
    """Each of ``OVERVIEW`` for every thought; those that need other questions only where there are some."""
    kinds = [kind for kind in OVERVIEW if asked.references or kind not in REFERENCED]
    what = [
        Intervention(kind, thought, draws=OVERVIEW_DRAWS)
        for kind in kinds
        for thought in range(1, asked.n_thoughts + 1)
    ]
    return await _reports(studio, asked, asked.model, what, asked.n_thoughts, controls=False)


async def _reports(
    studio: Studio,
    asked: Asked,
    model: str,
    what: Sequence[Intervention],
    n_thoughts: int | None,
    controls: bool = True,
) -> list[InterventionReport]:
    def make(reasoner: Reasoner) -> list[InterventionReport]:
        return intervene(
            reasoner,
            asked.question,
            what,
            references=asked.references,
            n_thoughts=n_thoughts,
            max_new_tokens=MAX_NEW_TOKENS,
            with_controls=controls,
        )

    return await studio.call(model, make)


PARTS = {
    "sweep": "answers after k thoughts",
    "effects": "changed thoughts",
    "probes": "linear probes",
    "graphs": "values on graphs",
}
"""What can be measured."""


async def measure_data(
    studio: Studio, model: str, file: str, count: int, parts: Sequence[str], n_thoughts: int, draws: int
) -> AsyncIterator[tuple[str, int, int] | Measuring]:
    """Measures part by part: yields how far it is, and the results whenever there are more.

    Raises:
        CoconutError: there is nothing to measure.
    """
    chosen = studio.file(file)
    problems = [one for one in chosen.problems if one.has_answer][:count] if chosen is not None else []
    if len(problems) < FEWEST:
        raise DataError(f"data set: has {len(problems)} problems with answers; expected at least {FEWEST}")
    made = Measuring(model, file, len(problems))
    for words, function in _parts(problems, parts, n_thoughts, draws):
        yield words, 0, 0
        async for step in studio.watch(model, function):
            if isinstance(step, tuple):
                yield words, *step
            else:
                more = {name: getattr(made, name) + tuple(values) for name, values in step.items()}
                made = replace(made, **more)
                yield made


Function = Callable[[Reasoner, OnProgress], dict[str, Sequence[Any]]]


def _parts(
    problems: Sequence[Problem], parts: Sequence[str], n_thoughts: int, draws: int
) -> list[tuple[str, Function]]:
    found: list[tuple[str, Function]] = []
    if "sweep" in parts:
        found.append((PARTS["sweep"], lambda reasoner, progress: _sweep(reasoner, problems, n_thoughts, progress)))
    if "effects" in parts:
        for thought in range(1, n_thoughts + 1):
            for kind in OVERVIEW:
                what = Intervention(kind, thought, draws=draws)
                found.append((f"{KINDS[kind]}, thought {thought}", _effect_of(problems, what, n_thoughts)))
    if "probes" in parts:
        found.append((PARTS["probes"], lambda reasoner, progress: _probes(reasoner, problems, n_thoughts)))
    graphs = [one for one in problems if is_graph_problem(one)]
    if "graphs" in parts:
        if not graphs:
            raise DataError("values on graphs: no problem of this file carries a graph; leave that out")
        found.append((PARTS["graphs"], lambda reasoner, progress: _graphs(reasoner, graphs, progress)))
    if not found:
        raise DataError("nothing to measure: choose at least one part, and thoughts to change")
    return found


def _sweep(
    reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int, progress: OnProgress
) -> dict[str, Sequence[Any]]:
    numbers = range(n_thoughts + 1)
    return {"points": sweep(reasoner, problems, numbers, max_new_tokens=MAX_NEW_TOKENS, progress=progress)}


def _effect_of(problems: Sequence[Problem], what: Intervention, n_thoughts: int) -> Function:
    questions, known = [one.question for one in problems], [one.answer for one in problems]

    def measure_it(reasoner: Reasoner, progress: OnProgress) -> dict[str, Sequence[Any]]:
        found = measure_effects(
            reasoner,
            questions,
            [what],
            known,
            n_thoughts=n_thoughts,
            max_new_tokens=MAX_NEW_TOKENS,
            progress=progress,
        )
        return {"effects": found}

    return measure_it


def _probes(reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int) -> dict[str, Sequence[Any]]:
    """Fit on the first half, scored on the second."""
    apart = list({one.question: one for one in problems}.values())
    half = len(apart) // 2
    return {"probes": linear_probes(reasoner, apart[:half], apart[half:], n_thoughts=n_thoughts)}


def _graphs(reasoner: Reasoner, problems: Sequence[Problem], progress: OnProgress) -> dict[str, Sequence[Any]]:
    views = graph_views(reasoner, problems, frontier_only=True, progress=progress)
    return {"parallelism": parallelism(views), "heights": height_values(views)}
