"""Measures a checkpoint on a data set: answers after k thoughts, linear probes, and effects of interventions."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tqdm import tqdm

from coconut_ds.data.problem import Problem
from coconut_ds.evaluation.statistics import Mean
from coconut_ds.probing import figures
from coconut_ds.probing.answers import SweepPoint, sweep
from coconut_ds.probing.cases import OnProgress, Plain
from coconut_ds.probing.effects import Effect, measure_effects
from coconut_ds.probing.export import row_of, write_csv, write_json
from coconut_ds.probing.interventions import Intervention, Kind
from coconut_ds.probing.linear import ProbeScore, linear_probes
from coconut_ds.probing.parts import KeptParts
from coconut_ds.reasoner import Reasoner
from coconut_ds.scoring import EXACT
from coconut_ds.scoring.base import Scoring

STANDARD_KINDS = (Kind.ZERO, Kind.MEAN, Kind.NOISE, Kind.RANDOM, Kind.PATCH)
"""The interventions that are made on every thought."""


@dataclass(frozen=True)
class Measured(Plain):
    """All measurements of a checkpoint on a data set."""

    points: tuple[SweepPoint, ...]
    """Answers after each number of thoughts."""
    probes: tuple[ProbeScore, ...]
    effects: tuple[Effect, ...]
    """Effects of interventions; empty if the model does not think."""


def measure_checkpoint(
    reasoner: Reasoner,
    fit: Sequence[Problem],
    scored: Sequence[Problem],
    draws: int,
    seed: int,
    max_new_tokens: int = 128,
    scoring: Scoring = EXACT,
    parts: KeptParts | None = None,
) -> Measured:
    """Makes all measurements.

    Args:
        reasoner: the model.
        fit: problems to fit the linear probes on.
        scored: problems for everything else: answers, scores of the probes, and interventions.
        draws: number of draws of noise, and of donors, per problem.
        seed: seed of the shuffled labels and of the choice of donors.
        max_new_tokens: length limit of the generated texts, in tokens.
        scoring: the convention that decides which answers are right.
        parts: where each of the three measurements is kept as soon as it is made; None: nowhere.
    """
    parts = parts or KeptParts()
    questions, known = [p.question for p in scored], [p.answer for p in scored]
    count = reasoner.card.num_latents
    changes = [Intervention(kind, thought, draws=draws) for thought in range(1, count + 1) for kind in STANDARD_KINDS]

    def points() -> tuple[SweepPoint, ...]:
        with progress_bar("answers after k thoughts") as progress:
            return tuple(sweep(reasoner, scored, max_new_tokens=max_new_tokens, progress=progress, scoring=scoring))

    def effects() -> tuple[Effect, ...]:
        with progress_bar("changed thoughts") as progress:
            found = measure_effects(
                *(reasoner, questions, changes, known),
                max_new_tokens=max_new_tokens,
                seed=seed,
                progress=progress,
                scoring=scoring,
            )
        return tuple(found)

    return Measured(
        parts.get("answers", tuple[SweepPoint, ...], points),
        parts.get("probes", tuple[ProbeScore, ...], lambda: tuple(linear_probes(reasoner, fit, scored, seed=seed))),
        parts.get("effects", tuple[Effect, ...], effects),
    )


MEASURED = (
    *("effects.json", "effects.csv", "effects.png"),
    *("sweep.csv", "sweep.png", "probes.csv", "probes.png"),
)
"""The files that ``write_measured`` writes."""


def write_measured(made: Measured, out: Path, title: str) -> None:
    """Writes the measurements to the folder ``out`` as JSON, CSV and PNG files; every figure's title has ``title``."""
    write_json(out / "effects.json", made)
    write_csv(out / "sweep.csv", [row_of(one) for one in made.points])
    write_csv(out / "probes.csv", [row_of(one) for one in made.probes])
    figures.draw_sweep_points(made.points, out / "sweep.png", f"Answers after k thoughts: {title}")
    figures.draw_probes(made.probes, out / "probes.png", f"Linear probes and LM head at each state: {title}")
    if made.effects:
        write_csv(out / "effects.csv", [row_of(one) for one in made.effects])
        figures.draw_effects(made.effects, out / "effects.png", f"Effects of changed thoughts: {title}")


def summary(made: Measured) -> str:
    """Markdown tables of the measurements: shares in percent, with 95 % intervals."""
    numbers = [str(point.num_thoughts) for point in made.points]
    rows = [
        ["accuracy, free generation", *(percent(point.right) for point in made.points)],
        ["accuracy, forced answer", *(percent(point.forced_right) for point in made.points)],
    ]
    states = list(dict.fromkeys(one.state for one in made.probes))
    found = _table(["after k thoughts", *numbers], rows) + "\n" + _table(["state", *states], _probe_rows(made.probes))
    return found + ("\n" + _table(["change", *states[:-1]], _effect_rows(made.effects)) if made.effects else "")


def _probe_rows(probes: Sequence[ProbeScore]) -> list[list[str]]:
    labels = list(dict.fromkeys(one.label for one in probes))
    own = {label: [one for one in probes if one.label == label] for label in labels}
    rows = [[f"probe: {label}", *(percent(one.probe) for one in own[label])] for label in labels]
    return rows + [[f"LM head: {label}", *(percent(one.lens) for one in own[label])] for label in labels]


def _effect_rows(found: Sequence[Effect]) -> list[list[str]]:
    rows = []
    thoughts = sorted({one.thought for one in found})
    for name in dict.fromkeys(one.name for one in found):
        own = {one.thought: one for one in found if one.name == name}
        kept = [own[thought].kept if thought in own else None for thought in thoughts]
        became = [own[thought].became_donors if thought in own else None for thought in thoughts]
        rows.append([f"{name}: unchanged", *map(percent, kept)])
        if any(became):
            rows.append([f"{name}: donor's answer", *map(percent, became)])
    return rows


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def percent(mean: Mean | None) -> str:
    """A share in percent with its interval; a dash for None."""
    return "–" if mean is None else f"{100 * mean.estimate:.0f} ({100 * mean.low:.0f}–{100 * mean.high:.0f})"


@contextmanager
def progress_bar(name: str) -> Iterator[OnProgress]:
    """Shows a progress bar (only on a terminal), and yields the function that updates it."""
    with tqdm(desc=name, leave=False, disable=None) as bar:

        def move(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield move
