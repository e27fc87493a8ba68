"""The computations of the pages: interventions with their controls, values on graphs, and measurements over a data set.

All of them run on the model's thread in small parts (``coconut_ds.parts``), between which requests and the work of
other visitors have their turns.
"""

from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace
from typing import Any

from coconut_ds.data.graph_answers import has_usable_graph
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.parts import Parts
from coconut_ds.probing.answers import AnswerAfter, answers_after, sweep
from coconut_ds.probing.cases import OnProgress
from coconut_ds.probing.effects import measure_effects
from coconut_ds.probing.graph_values import graph_views, height_values, parallelism
from coconut_ds.probing.hop_reading import hops_of
from coconut_ds.probing.intervene import InterventionReport, intervene
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.linear import linear_probes
from coconut_ds.probing.state_patching import Later, Positions, StatePatching, patch_states
from coconut_ds.probing.thought_attention import ThoughtAttention, thought_attention
from coconut_ds.reasoner import Reasoner
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring
from serve.app.results import DataSetResult, SearchResult
from serve.app.studio import MAX_NEW_TOKENS, CheckedQuestion, Studio, graph_problem
from serve.app.words import KINDS

OVERVIEW_KINDS = (Kind.PATCH, Kind.ZERO, Kind.MEAN, Kind.NOISE, Kind.RANDOM)
"""Kinds of intervention that the overview applies to every thought."""
OVERVIEW_DRAWS = 4
"""Draws (of noise, random directions or donors) per intervention in the overview."""
NEED_REFERENCES = (Kind.PATCH, Kind.MEAN)
"""Kinds of intervention that need other questions."""
MAX_DRAWS = 32
MAX_MEASURED = 300
"""Maximum number of problems of a data set that are measured."""
MIN_MEASURED = 4
"""Minimum number of problems for a measurement."""


async def answers_by_thoughts(studio: Studio, checked: CheckedQuestion) -> list[AnswerAfter]:
    """The answers after 0, 1, … up to ``checked.n_thoughts`` thoughts."""

    def ask(reasoner: Reasoner) -> Parts[list[list[AnswerAfter]]]:
        numbers = range(checked.n_thoughts + 1)
        return answers_after.parts(
            reasoner,
            [checked.question],
            [checked.answer],
            numbers,
            max_new_tokens=MAX_NEW_TOKENS,
            scoring=checked.scoring,
        )

    return (await studio.call(checked.model, ask))[0]


async def search_graph(studio: Studio, checked: CheckedQuestion) -> SearchResult:
    """Values of all nodes of the question's graph after 0, c, 2c, … thoughts, where a step of the task has c thoughts;
    and what the model's head predicts at the states that become them.

    Raises:
        DataError: the question does not have a graph.
    """
    problem = graph_problem(checked)
    size = max(studio.card(checked.model).c_thought, 1)
    numbers = range(0, checked.n_thoughts + 1, size)
    (view,) = await studio.call(checked.model, lambda reasoner: graph_views.parts(reasoner, [problem], numbers))
    hops = await studio.call(checked.model, lambda reasoner: hops_of.parts(reasoner, problem, checked.n_thoughts))
    return SearchResult(checked.model, view, tuple(hops))


async def run_intervention(
    studio: Studio, checked: CheckedQuestion, intervention: Intervention, pause: str | None = None
) -> InterventionReport:
    """Runs one intervention with its controls.

    Args:
        studio: runs the computations.
        checked: the question.
        intervention: the intervention.
        pause: name of a checkpoint that uses pauses instead of thoughts, as an additional control. It runs on its own
            model thread.
    """
    report = (await _reports(studio, checked, checked.model, [intervention], checked.n_thoughts))[0]
    if pause is None:
        return report
    control = (await _reports(studio, checked, pause, [intervention], None, controls=False))[0].effect
    return replace(report, controls=(*report.controls, replace(control, name="pause")))


async def intervention_overview(studio: Studio, checked: CheckedQuestion) -> list[InterventionReport]:
    """Runs each of ``OVERVIEW_KINDS`` on every thought, without the kinds whose other questions are missing."""
    kinds = [kind for kind in OVERVIEW_KINDS if checked.references or kind not in NEED_REFERENCES]
    interventions = [
        Intervention(kind, thought, draws=OVERVIEW_DRAWS)
        for kind in kinds
        for thought in range(1, checked.n_thoughts + 1)
    ]
    return await _reports(studio, checked, checked.model, interventions, checked.n_thoughts, controls=False)


async def attention_of(studio: Studio, checked: CheckedQuestion) -> ThoughtAttention:
    """What each thought of the question attends to."""
    return await studio.call(
        checked.model,
        lambda reasoner: thought_attention.parts(reasoner, checked.question, checked.problem, checked.n_thoughts),
    )


async def patching_of(
    studio: Studio, checked: CheckedQuestion, donor: str | None, positions: Positions, later: Later
) -> StatePatching:
    """Layer × position patching between the question and a donor; None: the first other question that is suitable."""
    return await studio.call(
        checked.model,
        lambda reasoner: patch_states.parts(
            reasoner,
            checked.question,
            donor,
            references=checked.references,
            n_thoughts=checked.n_thoughts,
            later=later,
            positions=positions,
            max_new_tokens=MAX_NEW_TOKENS,
        ),
    )


async def _reports(
    studio: Studio,
    checked: CheckedQuestion,
    model: str,
    interventions: Sequence[Intervention],
    n_thoughts: int | None,
    controls: bool = True,
) -> list[InterventionReport]:
    def make(reasoner: Reasoner) -> Parts[list[InterventionReport]]:
        return intervene.parts(
            reasoner,
            checked.question,
            interventions,
            references=checked.references,
            n_thoughts=n_thoughts,
            max_new_tokens=MAX_NEW_TOKENS,
            with_controls=controls,
        )

    return await studio.call(model, make)


PARTS = {
    "sweep": "answers after k thoughts",
    "effects": "interventions on thoughts",
    "probes": "linear probes",
    "graphs": "values on graphs",
}
"""The parts of a measurement, with their labels."""


async def measure_data_set(
    studio: Studio, model: str, file: str, count: int, parts: Sequence[str], n_thoughts: int, draws: int
) -> AsyncGenerator[tuple[str, int, int] | DataSetResult, None]:
    """Measures part by part. Yields progress as (label, problems done, problems in total), and all results so far.

    Args:
        studio: runs the computations.
        model: name of the checkpoint.
        file: name of a file of problems; those without an answer are skipped.
        count: maximum number of problems, taken from the start of the file.
        parts: keys of ``PARTS``.
        n_thoughts: thoughts per problem.
        draws: draws per problem of each intervention that is random or takes donors.

    Raises:
        CoconutError: there is nothing to measure.
    """
    chosen = studio.file(file)
    problems = [one for one in chosen.problems if one.has_answer][:count] if chosen is not None else []
    if len(problems) < MIN_MEASURED:
        raise DataError(
            f"data set: found {len(problems)} problems with answers; expected at least {MIN_MEASURED}, choose a file "
            "with more under Problems"
        )
    result = DataSetResult(model, file, len(problems), n_thoughts, draws, tuple(parts))
    scoring = chosen.scoring if chosen is not None else EXACT
    for label, function in _parts(problems, parts, n_thoughts, draws, scoring):
        yield label, 0, 0
        async for step in studio.watch(model, function):
            if isinstance(step, tuple):
                yield label, *step
            else:
                more = {name: getattr(result, name) + tuple(values) for name, values in step.items()}
                result = replace(result, **more)
                yield result


PartFunction = Callable[[Reasoner, OnProgress], Parts[dict[str, Sequence[Any]]]]
"""Measures one part; the result has values for fields of ``DataSetResult``."""


def _parts(
    problems: Sequence[Problem], parts: Sequence[str], n_thoughts: int, draws: int, scoring: Scoring
) -> list[tuple[str, PartFunction]]:
    """The label and the function of each part of a measurement."""
    found: list[tuple[str, PartFunction]] = []
    if "sweep" in parts:
        found.append((PARTS["sweep"], _sweep_of(problems, n_thoughts, scoring)))
    if "effects" in parts:
        for thought in range(1, n_thoughts + 1):
            for kind in OVERVIEW_KINDS:
                intervention = Intervention(kind, thought, draws=draws)
                found.append((f"{KINDS[kind]}, thought {thought}", _effect_of(problems, intervention, n_thoughts)))
    if "probes" in parts:
        found.append((PARTS["probes"], lambda reasoner, progress: _probes(reasoner, problems, n_thoughts)))
    graphs = [one for one in problems if has_usable_graph(one)]
    if "graphs" in parts:
        if not graphs:
            raise DataError(
                "values on graphs: none of the problems has a graph that can be used; select a file of graph problems, "
                "or deselect this"
            )
        found.append((PARTS["graphs"], lambda reasoner, progress: _graphs(reasoner, graphs, progress)))
    if not found:
        raise DataError(
            "nothing to measure: select at least one part; interventions need a checkpoint with at least 1 thought"
        )
    return found


def _sweep_of(problems: Sequence[Problem], n_thoughts: int, scoring: Scoring) -> PartFunction:
    def measure_sweep(reasoner: Reasoner, progress: OnProgress) -> Parts[dict[str, Sequence[Any]]]:
        numbers = range(n_thoughts + 1)
        points = yield from sweep.parts(
            reasoner, problems, numbers, max_new_tokens=MAX_NEW_TOKENS, progress=progress, scoring=scoring
        )
        return {"points": points}

    return measure_sweep


def _effect_of(problems: Sequence[Problem], intervention: Intervention, n_thoughts: int) -> PartFunction:
    questions, known = [one.question for one in problems], [one.answer for one in problems]

    def measure_effect(reasoner: Reasoner, progress: OnProgress) -> Parts[dict[str, Sequence[Any]]]:
        found = yield from measure_effects.parts(
            reasoner,
            questions,
            [intervention],
            known,
            n_thoughts=n_thoughts,
            max_new_tokens=MAX_NEW_TOKENS,
            progress=progress,
        )
        return {"effects": found}

    return measure_effect


def _probes(reasoner: Reasoner, problems: Sequence[Problem], n_thoughts: int) -> Parts[dict[str, Sequence[Any]]]:
    """Fits probes on the first half of the distinct problems and scores them on the second half."""
    distinct = list({one.question: one for one in problems}.values())
    half = len(distinct) // 2
    found = yield from linear_probes.parts(reasoner, distinct[:half], distinct[half:], n_thoughts=n_thoughts)
    return {"probes": found}


def _graphs(reasoner: Reasoner, problems: Sequence[Problem], progress: OnProgress) -> Parts[dict[str, Sequence[Any]]]:
    views = yield from graph_views.parts(reasoner, problems, frontier_only=True, progress=progress)
    return {"parallelism": parallelism(views), "heights": height_values(views)}
