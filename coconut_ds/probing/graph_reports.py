"""Mode ``graph`` of ``coconut_ds.probe``: node values, readable frontiers, effects of changed thoughts and edges."""

import sys
from collections.abc import Sequence
from pathlib import Path

from coconut_ds.data.checks import graph_warnings
from coconut_ds.data.graph_answers import has_usable_graph
from coconut_ds.data.problem import Problem
from coconut_ds.errors import DataError
from coconut_ds.evaluation.statistics import Mean
from coconut_ds.probing import graph_figures, readable_figures
from coconut_ds.probing.counterfactuals import Counterfactuals, counterfactuals
from coconut_ds.probing.export import Row, row_of, write_csv, write_json
from coconut_ds.probing.frontier_probes import SOURCES, Readable, ReadableHop, readable_frontiers
from coconut_ds.probing.graph_values import GraphView, graph_views, height_values, parallelism
from coconut_ds.probing.hop_effects import HopEffects, effects_by_hops
from coconut_ds.probing.inputs import graph_splits_of, problems_of
from coconut_ds.probing.measures import percent, progress_bar
from coconut_ds.probing.parts import KeptParts
from coconut_ds.probing.superposition import GroupValue, superposition
from coconut_ds.reasoner import Reasoner
from coconut_ds.settings import DataConfig, ProbeConfig

FILES = (
    *("values.json", "parallelism.json", "heights.csv", "counterfactuals.json", "graph.json", "groups.csv"),
    *("graph.png", "parallelism.png", "heights.png", "groups.png"),
    *("readable.json", "readable.csv", "readable.png", "interventions.json", "interventions.png"),
)
"""The files of the mode."""


def report_graph(config: ProbeConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> str:
    """Makes all measurements on the problems with graphs, and writes them. Returns a summary, as all modes."""
    assert config.data is not None
    found = problems_of(config, config.data)
    for line in graph_warnings(found, config.data_name):
        sys.stderr.write(f"{line}\n")
    problems = [one for one in found if has_usable_graph(one)][: config.num_problems]
    if not problems:
        raise DataError(f"data={config.data_name}: no problem has a graph; make some with preprocessing/prosqa.py")
    title = f"{reasoner.name}, {len(problems):,} problems of {config.data_name}"
    _write_values(config, reasoner, problems, out, title, parts)
    changed = parts.get(
        "counterfactuals", Counterfactuals, lambda: counterfactuals(reasoner, problems, seed=config.seed)
    )
    write_json(out / "counterfactuals.json", changed)
    groups: tuple[GroupValue, ...] = ()
    if reasoner.card.num_latents:
        groups = parts.get("groups", tuple[GroupValue, ...], lambda: tuple(superposition(reasoner, problems)))
    write_csv(out / "groups.csv", [row_of(one) for one in groups])
    if groups:
        graph_figures.draw_groups(groups, out / "groups.png", f"Groups of nodes and edges: {title}")
    if not reasoner.card.num_latents:
        return _changed_lines(changed)
    readable = _write_readable(config, config.data, reasoner, out, parts)
    effects = _write_effects(config, config.data, reasoner, problems, out, parts)
    return _changed_lines(changed) + _readable_lines(readable) + _effect_lines(effects)


def _write_values(
    config: ProbeConfig, reasoner: Reasoner, problems: Sequence[Problem], out: Path, title: str, parts: KeptParts
) -> None:
    def values() -> tuple[GraphView, ...]:
        with progress_bar("values of nodes") as progress:
            return tuple(graph_views(reasoner, problems, frontier_only=True, progress=progress))

    views = parts.get("values", tuple[GraphView, ...], values)
    curves, heights = parallelism(views), height_values(views)
    write_json(out / "values.json", views)
    write_json(out / "parallelism.json", curves)
    write_csv(out / "heights.csv", [row_of(one) for one in heights])
    chosen = min(config.problem, len(problems) - 1)
    view = graph_views(reasoner, [problems[chosen]])[0]
    write_json(out / "graph.json", view)
    graph_figures.draw_graph(view, out / "graph.png", f"{reasoner.name}: values of nodes, problem {chosen}")
    if curves:
        graph_figures.draw_parallelism(curves, out / "parallelism.png", f"Values of the best candidates: {title}")
        graph_figures.draw_heights(heights, out / "heights.png", f"Values by height: {title}")


def _write_readable(config: ProbeConfig, data: DataConfig, reasoner: Reasoner, out: Path, parts: KeptParts) -> Readable:
    def made() -> Readable:
        fit, scored = graph_splits_of(config, data)
        return readable_frontiers(reasoner, fit, scored, seed=config.seed)

    readable = parts.get("readable", Readable, made)
    write_json(out / "readable.json", readable)
    write_csv(out / "readable.csv", [readable_row(one) for one in readable.hops])
    if readable.hops:
        title = f"{reasoner.name}, {readable.num_scored:,} problems of {config.data_name}, fit on {readable.num_fit:,}"
        readable_figures.draw_readable(readable.hops, out / "readable.png", f"Frontiers read by linear maps: {title}")
    return readable


def _write_effects(
    config: ProbeConfig, data: DataConfig, reasoner: Reasoner, problems: Sequence[Problem], out: Path, parts: KeptParts
) -> tuple[HopEffects, ...]:
    def made() -> tuple[HopEffects, ...]:
        with progress_bar("changed thoughts") as progress:
            found = effects_by_hops(
                reasoner,
                problems,
                max_new_tokens=config.max_new_tokens,
                seed=config.seed,
                progress=progress,
                scoring=data.convention,
            )
        return tuple(found)

    effects = parts.get("interventions", tuple[HopEffects, ...], made)
    write_json(out / "interventions.json", effects)
    if effects:
        title = f"{reasoner.name}, {config.data_name}"
        readable_figures.draw_hop_effects(
            effects, out / "interventions.png", f"Right answers after one thought is replaced: {title}"
        )
    return effects


def readable_row(one: ReadableHop) -> Row:
    """A row of ``readable.csv``: both measures of each source of scores, with their intervals."""
    row = row_of(one)
    for name in SOURCES:
        ranking = getattr(one, name)
        row |= {f"{name}_{key}": value for key, value in ({} if ranking is None else row_of(ranking)).items()}
    return row


def _readable_lines(readable: Readable) -> str:
    lines = []
    for one in (one for one in readable.hops if one.is_own):
        before = None if one.before_thinking is None else one.before_thinking.in_frontier
        lines.append(
            f"thought {one.thought}: the best name is in the frontier at hop {one.hop} in "
            f"{percent(one.thought_state.in_frontier)} % (before thinking {percent(before)}, by mentions "
            f"{percent(one.mentions.in_frontier)}, chance {percent(one.chance.in_frontier)})"
        )
    return "".join(f"{line}\n" for line in lines)


def _effect_lines(effects: Sequence[HopEffects]) -> str:
    lines = []
    for group in effects:
        name = "all problems" if group.hops is None else f"{group.hops} hops"
        right: dict[str, list[Mean | None]] = {}
        for one in group.effects:
            right.setdefault(one.name, []).append(one.right)
        changed = "; ".join(f"{kind} {', '.join(map(percent, own))}" for kind, own in right.items())
        lines.append(f"{name}: {percent(group.undisturbed)} % right; with each thought replaced: {changed}")
    return "".join(f"{line}\n" for line in lines)


def _changed_lines(changed: Counterfactuals) -> str:
    lines = [f"{changed.num_right} of {changed.num_problems} problems are answered correctly"]
    if changed.followed is not None:
        lines.append(f"one edge changed so that the answer changes: {percent(changed.followed)} % new answers right")
    if changed.stayed is not None:
        lines.append(f"an edge changed that the root does not reach: {percent(changed.stayed)} % answers still right")
    return "\n".join(lines) + "\n"
